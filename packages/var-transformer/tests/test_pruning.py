"""Scales of which only some tokens pass through the blocks, against a plain definition."""

import definitions
import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_transformer import Refiner, Sampler, box_mask, edit, generate
from var_transformer.generation.pruning import pivotal_tokens
from var_transformer.model.restoration import resized

SCALES = (1, 2, 3, 4)
LABELS = np.array([1, 4, 2])
PRUNED = [(0.5, 0.75), (0.4, 0.0), (0.9, 0.0, 0.4)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny.tokenizer(scales=SCALES))


@pytest.fixture(scope="module")
def model(make_model, backend):
    return make_model(backend, scales=SCALES)


class Watch:
    """What a generation reads, leaves out and computes at each scale."""

    def __init__(self, model, monkeypatch) -> None:
        self.model, self.inputs, self.some, self.logits = model, [], [], []
        extend_some = model.extend_some

        def watched(k, inputs_blz, class_bc, modulations, cache, some_bn):
            logits, cache = extend_some(k, inputs_blz, class_bc, modulations, cache, some_bn)
            self.inputs.append(None if inputs_blz is None else inputs_blz.asnumpy())
            self.some.append(some_bn)
            self.logits.append(logits.asnumpy())
            return logits, cache

        monkeypatch.setattr(model, "extend_some", watched)

    def check(self, labels, rows) -> None:
        """Compares all scales with the definition; ``rows`` images at each."""
        assert [len(logits) for logits in self.logits] == rows
        expected = Plain(self.model)
        for k, logits_blv in enumerate(self.logits):
            found = np.stack(
                [
                    expected.scale(k, labels[: rows[k]], self.inputs, self.some, image)
                    for image in range(rows[k])
                ]
            )
            np.testing.assert_allclose(logits_blv, found, rtol=0, atol=5e-5, err_msg=str(k))


class Plain:
    """The transformer over all scales up to k at once, image by image, in float64."""

    def __init__(self, model) -> None:
        self.config = model.config
        self.w = {n: a.astype(np.float64) for n, a in model.published_tensors().items()}

    def scale(self, last, labels, inputs, some, image):
        """Logits (s_y * s_x, V) of scale ``last``."""
        w, c = self.w, self.config.width
        class_c = w["class_emb.weight"][labels[image]]
        embedded, places = [], []
        for k in range(last + 1):
            begin, end = self.config.schedule.offsets[k], self.config.schedule.offsets[k + 1]
            if k:
                words = w["word_embed.weight"], w["word_embed.bias"]
                x_lc = definitions.linear(inputs[k][image].astype(np.float64), *words)
            else:
                x_lc = class_c + w["pos_start"][0]
            embedded.append(x_lc + w["lvl_embed.weight"][k] + w["pos_1LC"][0, begin:end])
            places.append(np.arange(end - begin) if some[k] is None else some[k][image])
        x_blc = np.concatenate([x[p] for x, p in zip(embedded, places, strict=True)])[None]
        offsets = np.cumsum([0] + [len(p) for p in places])
        for i in range(self.config.depth):
            x_blc = self.block(i, x_blc, class_c, offsets)
        passed = np.split(x_blc[0], offsets[1:-1])
        x_lc = passed[last]
        if some[last] is not None:
            whole = max(k for k in range(last) if some[k] is None)
            added = passed[whole] - embedded[whole]
            x_lc = embedded[last] + interpolated(added, SCALES[whole], SCALES[last])
            x_lc[places[last]] = passed[last]
        silu = class_c * definitions.sigmoid(class_c)
        name = "head_nm.ada_lin.1"
        scale, shift = definitions.linear(silu, w[f"{name}.weight"], w[f"{name}.bias"]).reshape(
            2, c
        )
        normed = definitions.modulated_norm(x_lc[None], scale, shift)[0]
        return definitions.linear(normed, w["head.weight"], w["head.bias"])

    def block(self, i, x_blc, class_c, offsets):
        w = {n.removeprefix(f"blocks.{i}."): a for n, a in self.w.items()}
        silu = class_c * definitions.sigmoid(class_c)
        m = definitions.linear(silu, w["ada_lin.1.weight"], w["ada_lin.1.bias"]).reshape(6, -1)
        bias = np.concatenate((w["attn.q_bias"], 0 * w["attn.q_bias"], w["attn.v_bias"]))
        read = definitions.modulated_norm(x_blc, m[2], m[4])
        qkv = definitions.linear(read, w["attn.mat_qkv.weight"], bias)
        scale_h = np.exp(np.minimum(w["attn.scale_mul_1H11"].reshape(-1), np.log(100)))
        mixed, _ = definitions.next_scale_attention(qkv, scale_h, offsets, True)
        branch = definitions.linear(mixed, w["attn.proj.weight"], w["attn.proj.bias"])
        x_blc = definitions.gated_sum(x_blc, branch, m[0])
        read = definitions.modulated_norm(x_blc, m[3], m[5])
        wide = definitions.gelu(definitions.linear(read, w["ffn.fc1.weight"], w["ffn.fc1.bias"]))
        branch = definitions.linear(wide, w["ffn.fc2.weight"], w["ffn.fc2.bias"])
        return definitions.gated_sum(x_blc, branch, m[1])


def interpolated(map_lc, old, new):
    """A square map at another side, token by token."""
    result = np.zeros((new, new, map_lc.shape[1]))
    for y in range(new):
        for x in range(new):
            for j, u in nearest(y, old, new):
                for i, v in nearest(x, old, new):
                    result[y, x] += u * v * map_lc[j * old + i]
    return result.reshape(new * new, -1)


def nearest(cell, old, new):
    """The two old cells around the centre of a new one, and their shares."""
    place = min(max((cell + 0.5) * old / new - 0.5, 0), old - 1)
    low = int(place)
    return [(low, 1 - (place - low)), (min(low + 1, old - 1), place - low)]


@pytest.mark.parametrize("pruned", PRUNED)
def test_every_scale_is_that_of_the_definition(model, tokenizer, monkeypatch, pruned):
    watch = Watch(model, monkeypatch)
    generate(model, tokenizer, LABELS, cfg=3.0, pruned=pruned)
    whole = len(SCALES) - len(pruned)
    counts = [None if some is None else some.shape[1] for some in watch.some]
    expected = [
        side**2 - int(share * side**2) if share else None
        for side, share in zip(SCALES[whole:], pruned, strict=True)
    ]
    assert counts == [None] * whole + expected
    watch.check([*LABELS, 5, 5, 5], [6] * 4)


@pytest.mark.parametrize("guided", [0, 2])
def test_the_conditional_half_goes_on_alone_where_guidance_ends(
    model, tokenizer, monkeypatch, guided
):
    watch = Watch(model, monkeypatch)
    settings = {"guidance": "constant", "guided_scales": (guided,), "pruned": (0.5, 0.75)}
    generate(model, tokenizer, LABELS, **settings)
    watch.check([*LABELS, 5, 5, 5], [6] * (guided + 1) + [3] * (3 - guided))


def test_the_refiner_leaves_out_the_same_tokens_and_restores_them_from_its_own(
    model, make_model, tokenizer, monkeypatch
):
    small = make_model(scales=SCALES, depth=1, width=16, heads=1)
    large, refined = Watch(model, monkeypatch), Watch(small, monkeypatch)
    settings = {"cfg": 0.0, "pruned": (0.5, 0.75)}
    generate(model, tokenizer, LABELS, refiner=Refiner(small, 1), **settings)
    np.testing.assert_array_equal(large.some[2], refined.some[2])
    large.check(LABELS, [3] * 3)
    refined.check(LABELS, [3] * 4)


def test_a_refiner_equal_to_the_model_changes_nothing(model, tokenizer):
    settings = {"cfg": 3.0, "seed": 4, "pruned": (0.5, 0.75)}
    expected = generate(model, tokenizer, LABELS, **settings)
    for scales in (1, 2, 3):
        out = generate(model, tokenizer, LABELS, refiner=Refiner(model, scales), **settings)
        np.testing.assert_array_equal(out.images, expected.images)


def test_an_edit_leaves_out_tokens_and_keeps_those_of_the_image(model, tokenizer, monkeypatch):
    image = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8)).astype(np.float32)
    watch, sampler = Watch(model, monkeypatch), Sampler(pruned=(0.5, 0.75))
    mask_yx = box_mask((0, 0, 8, 4), 8, 8)
    out = edit(model, tokenizer, image, mask_yx, LABELS, sampler)
    watch.check([*LABELS, 5, 5, 5], [6] * 4)
    own = np.asarray(tokenizer.encode(image[None])[3]).reshape(4, 4)
    np.testing.assert_array_equal(
        out.ids[3].reshape(3, 4, 4)[:, :, 2:], own[None, :, 2:].repeat(3, 0)
    )


def test_an_edit_of_everything_is_a_generation(model, tokenizer):
    image, sampler = np.zeros((3, 8, 8), np.float32), Sampler(pruned=(0.5, 0.75))
    everything = edit(model, tokenizer, image, np.ones((8, 8), bool), LABELS, sampler, seed=3)
    expected = generate(model, tokenizer, LABELS, sampler=sampler, seed=3)
    np.testing.assert_array_equal(everything.images, expected.images)


def test_an_image_depends_on_its_number_and_class_and_not_on_its_batch(model, tokenizer):
    settings = {"cfg": 3.0, "seed": 5, "pruned": (0.5, 0.75)}
    together = generate(model, tokenizer, LABELS, **settings)
    for n, label in enumerate(LABELS):
        alone = generate(model, tokenizer, [label], numbers=[n], **settings)
        for a, b in zip(alone.ids, together.ids, strict=True):
            np.testing.assert_array_equal(a[0], b[n])


def test_no_share_changes_nothing(model, tokenizer):
    expected = generate(model, tokenizer, LABELS, cfg=3.0)
    out = generate(model, tokenizer, LABELS, cfg=3.0, pruned=(0.0, 0.0))
    np.testing.assert_array_equal(out.images, expected.images)


def test_passes_of_all_tokens_are_those_of_extend(model):
    condition, caches = model.condition(LABELS), [None, None]
    rng = np.random.default_rng(0)
    for k, side in enumerate(SCALES):
        inputs = rng.standard_normal((3, side**2, 8), np.float32)
        read = Tensor(inputs) if k else None
        logits, caches[0] = model.extend(k, read, *condition, caches[0])
        passed, caches[1] = model.extend_some(k, read, *condition, caches[1])
        np.testing.assert_allclose(passed.asnumpy(), logits.asnumpy(), rtol=0, atol=1e-6)


def test_extend_refuses_a_cache_without_the_tokens_that_were_left_out(model):
    condition, cache = model.condition(LABELS), None
    for k, some in enumerate((None, None, np.tile([0, 4], (3, 1)))):
        read = Tensor(np.zeros((3, SCALES[k] ** 2, 8), np.float32)) if k else None
        _, cache = model.extend_some(k, read, *condition, cache, some)
    with pytest.raises(InputError, match="cache is without 7 tokens that extend_some left out"):
        model.extend(3, Tensor(np.zeros((3, 16, 8), np.float32)), *condition, cache)


def test_the_chosen_tokens_are_those_farthest_from_the_mean_and_ties_go_to_the_earlier():
    values = np.array([[0, 5, 0, 0, -7, 0, 0, 2, 0, 0], [0] * 10], np.float32)
    inputs = np.repeat(values[:, :, None], 8, 2)
    np.testing.assert_array_equal(pivotal_tokens(inputs, 0.75), [[1, 4, 7], [0, 1, 2]])
    np.testing.assert_array_equal(pivotal_tokens(inputs, 0.99), [[4], [0]])


def test_a_map_is_resized_between_the_centres_of_its_tokens():
    rng = np.random.default_rng(0)
    for old, new in ((1, 4), (3, 4), (4, 4), (5, 13)):
        map_blc = rng.standard_normal((2, old * old, 6), np.float32)
        found = resized(map_blc, (old, old), (new, new))
        expected = np.stack([interpolated(one.astype(np.float64), old, new) for one in map_blc])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    wide = resized(np.arange(6, dtype=np.float32).reshape(1, 6, 1), (2, 3), (2, 6))
    np.testing.assert_allclose(
        wide.reshape(2, 6), [[0, 0.25, 0.75, 1.25, 1.75, 2], [3, 3.25, 3.75, 4.25, 4.75, 5]]
    )


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        (0.5, "pruned is 0.5; expected a tuple"),
        (None, "pruned is None; expected a tuple"),
        ((1.0,), "a share of pruned is 1.0; expected a number of at least 0 and below 1"),
        ((-0.1,), "a share of pruned is -0.1; expected"),
        ((0.5, float("nan")), "a share of pruned is nan; expected"),
        ((True,), "a share of pruned is True; expected"),
        ((0.5,) * 4, "pruned has 4 values; expected less than 4, the scales: the first is whole"),
    ],
)
def test_shares_without_a_meaning_are_refused(model, tokenizer, no_model_runs, pruned, message):
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, LABELS, pruned=pruned)
