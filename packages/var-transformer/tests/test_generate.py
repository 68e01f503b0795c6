import mindspore as ms
import numpy as np
import pytest
from var_tokenizer.common import InputError
from var_transformer import Refiner, Sampler, Transformer, check_pair, generate
from var_transformer.attention import BackendConfig

LABELS = np.array([1, 4, 1])


def test_a_generation_has_one_image_a_label_and_ids_of_every_scale(model, tokenizer):
    out = generate(model, tokenizer, LABELS, seed=5)
    assert out.images.shape == (3, 3, *tokenizer.config.image_size)
    assert out.images.min() >= 0 and out.images.max() <= 1
    assert [ids.shape for ids in out.ids] == [(3, 1), (3, 4), (3, 9)]


def test_the_same_seed_repeats_a_generation_and_another_does_not(model, tokenizer):
    first, second, third = (generate(model, tokenizer, LABELS, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.images, second.images)
    assert any((a != b).any() for a, b in zip(first.ids, third.ids, strict=True))


def test_images_of_one_label_in_a_batch_differ(model, tokenizer):
    out = generate(model, tokenizer, np.array([2, 2]), seed=0)
    assert any((ids[0] != ids[1]).any() for ids in out.ids)


def test_top_k_of_1_takes_the_likeliest_token_whatever_the_seed(model, tokenizer):
    first, second = (generate(model, tokenizer, LABELS, cfg=0, top_k=1, seed=s) for s in (1, 2))
    inputs = np.asarray(tokenizer.teacher_inputs(first.ids))
    logits = np.asarray(model.logits(LABELS, inputs))
    np.testing.assert_array_equal(logits.argmax(-1), np.concatenate(first.ids, 1))
    np.testing.assert_array_equal(first.images, second.images)


def test_guidance_grows_linearly_over_the_scales(model, tokenizer):
    out = generate(model, tokenizer, LABELS, cfg=3.0, top_k=1)
    strength = 3.0 * model.config.schedule.scale_of_token[:, None] / 2
    guided = guided_logits(model, tokenizer, out.ids, strength)
    np.testing.assert_array_equal(guided.argmax(-1), np.concatenate(out.ids, 1))


def test_more_smooth_keeps_the_range_and_is_seeded(model, tokenizer):
    first, second = (
        generate(model, tokenizer, LABELS, seed=1, more_smooth=True).images for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.min() >= 0 and first.max() <= 1


def test_the_settings_of_a_sampler_may_stand_in_its_place(model, tokenizer):
    sampler = Sampler(cfg=2.0, top_k=9, top_p=0.9, more_smooth=True)
    expected = generate(model, tokenizer, LABELS, sampler=sampler, seed=4).images
    by_position = generate(model, tokenizer, LABELS, 2.0, 9, 0.9, 4, True).images
    np.testing.assert_array_equal(by_position, expected)
    by_name = generate(model, tokenizer, LABELS, seed=4, **vars(sampler)).images
    np.testing.assert_array_equal(by_name, expected)


def test_settings_beside_a_sampler_are_an_error_that_names_them(model, tokenizer, no_model_runs):
    for positional, named, given in (((2.0,), {}, "cfg"), ((), {"top_k": 1}, "top_k")):
        with pytest.raises(InputError, match=f"{given} given beside a sampler; expected one"):
            generate(model, tokenizer, LABELS, *positional, sampler=Sampler(), **named)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 16}, "vocab_size is 16 in the transformer and 32 in the tokenizer"),
        ({"latent_channels": 4}, "latent_channels is 4 in the transformer and 8 in the tokenizer"),
        ({"scales": (1, 3)}, r"scales is \(1, 3\) in the transformer and \(1, 2, 3\) in the tok"),
    ],
)
def test_a_mismatched_pair_is_refused_before_any_model_runs(
    model, tokenizer, no_model_runs, make_config, change, message
):
    other = Transformer(make_config(**change))
    with pytest.raises(InputError, match=message):
        check_pair(other, tokenizer)
    with pytest.raises(InputError, match=message):
        generate(other, tokenizer, LABELS)
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, LABELS, refiner=Refiner(other, 1))


def test_a_refiner_with_other_class_names_is_refused(make_model, tokenizer, no_model_runs):
    model, other = make_model(), make_model()
    model.class_names, other.class_names = tuple("abcde"), tuple("abdce")
    with pytest.raises(InputError, match="class 2 is d in the refiner and c in the transformer"):
        generate(model, tokenizer, LABELS, refiner=Refiner(other, 1))


def guided_logits(model, tokenizer, ids, strength):
    """Of all scales, teacher forced: what a generation without a cache would compute."""
    inputs = np.asarray(tokenizer.teacher_inputs(ids))
    conditional = np.asarray(model.logits(LABELS, inputs))
    unconditional = np.asarray(model.logits(np.full(3, 5), inputs))
    return (1 + strength) * conditional - strength * unconditional


def count_rows(model, monkeypatch):
    """The list to which each later pass of ``model`` adds its number of rows."""
    rows, extend = [], model.extend

    def counted(k, inputs_blz, class_bc, *others):
        rows.append(class_bc.shape[0])
        return extend(k, inputs_blz, class_bc, *others)

    monkeypatch.setattr(model, "extend", counted)
    return rows


def test_the_unconditional_half_ends_with_guidance(model, tokenizer, monkeypatch):
    rows = count_rows(model, monkeypatch)
    out = generate(
        model, tokenizer, LABELS, cfg=3.0, top_k=1, guidance="constant", guided_scales=(1,)
    )
    assert rows == [6, 6, 3]
    strength = np.where(model.config.schedule.scale_of_token == 1, 3.0, 0.0)[:, None]
    guided = guided_logits(model, tokenizer, out.ids, strength)
    np.testing.assert_array_equal(guided.argmax(-1), np.concatenate(out.ids, 1))


def test_an_image_depends_on_its_number_and_not_on_its_place(model, tokenizer):
    out = generate(model, tokenizer, LABELS, seed=5)
    turned = generate(model, tokenizer, LABELS[::-1].copy(), seed=5, numbers=[2, 1, 0])
    for a, b in zip(out.ids, turned.ids, strict=True):
        np.testing.assert_array_equal(a, b[::-1])


def test_on_scale_sees_the_picture_after_every_scale(model, tokenizer):
    seen = []
    out = generate(model, tokenizer, LABELS, seed=5, on_scale=lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == [0, 1, 2]
    for (_, images), expected in zip(seen, tokenizer.decode_progressive(out.ids), strict=True):
        np.testing.assert_allclose(images, (expected.asnumpy() + 1) / 2, atol=1e-5)
    np.testing.assert_array_equal(seen[-1][1], out.images)


@pytest.mark.parametrize("more_smooth", [False, True])
def test_a_refiner_equal_to_the_model_changes_nothing(model, tokenizer, more_smooth):
    settings = {"cfg": 3.0, "seed": 4, "more_smooth": more_smooth}
    expected = generate(model, tokenizer, LABELS, **settings)
    for scales in (1, 2):
        out = generate(model, tokenizer, LABELS, refiner=Refiner(model, scales), **settings)
        np.testing.assert_array_equal(out.images, expected.images)


def test_the_refiner_draws_guided_from_the_whole_draft(model, smaller, tokenizer):
    out = generate(model, tokenizer, LABELS, cfg=3.0, top_k=1, refiner=Refiner(smaller, 1))
    scale_of_token = model.config.schedule.scale_of_token
    strength = 3.0 * scale_of_token[:, None] / 2
    ids_bl, drafted = np.concatenate(out.ids, 1), scale_of_token < 2
    for author, its_own in ((model, drafted), (smaller, ~drafted)):
        chosen = guided_logits(author, tokenizer, out.ids, strength).argmax(-1)
        np.testing.assert_array_equal(chosen[:, its_own], ids_bl[:, its_own])
        assert (chosen != ids_bl).any()  # the other's differ: the test can tell them apart


@pytest.mark.parametrize(
    ("guided_scales", "rows", "refiner_rows"),
    [((1,), [6, 6], [3, 3, 3]), ((2,), [3, 3], [6, 6, 6])],
)
def test_each_model_runs_the_unconditional_half_for_its_own_guidance_alone(
    model, smaller, tokenizer, monkeypatch, guided_scales, rows, refiner_rows
):
    counted, counted_refiner = (count_rows(m, monkeypatch) for m in (model, smaller))
    settings = {"guidance": "constant", "guided_scales": guided_scales}
    generate(model, tokenizer, LABELS, refiner=Refiner(smaller, 1), **settings)
    assert (counted, counted_refiner) == (rows, refiner_rows)


@pytest.mark.parametrize("scales", [0, 3, 1.5, True])
def test_a_refiner_of_no_or_all_scales_is_refused(model, smaller, tokenizer, no_model_runs, scales):
    with pytest.raises(InputError, match=f"scales is {scales}; expected an integer from 1 to 2"):
        generate(model, tokenizer, LABELS, refiner=Refiner(smaller, scales))


def test_a_refiner_with_other_classes_is_refused(model, tokenizer, make_config, no_model_runs):
    other = Transformer(make_config(num_classes=7))
    with pytest.raises(InputError, match="num_classes is 7 in the refiner and 5 in the transf"):
        generate(model, tokenizer, LABELS, refiner=Refiner(other, 1))


def test_a_model_of_float16_products_draws_what_one_of_float32_draws(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    half = Transformer.load(tmp_path / "m.safetensors", BackendConfig(dtype=ms.float16))
    ours, theirs = (generate(m, tokenizer, [1, 2, 3], seed=0).ids for m in (half, model))
    same = np.concatenate([(a == b).reshape(-1) for a, b in zip(ours, theirs, strict=True)])
    assert same.mean() > 0.9  # a token flips where two are as likely to within the rounding


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=str)
def test_guidance_of_logits_in_half_is_computed_in_float32(model, tokenizer, monkeypatch, dtype):
    """As an Ascend gives them."""
    extend, seen = Transformer.extend, []

    def in_half(*arguments):
        logits, cache = extend(*arguments)
        seen.append(logits.astype(dtype))
        return seen[-1], cache

    def rounded(*arguments):
        logits, cache = extend(*arguments)
        return logits.astype(dtype).astype(ms.float32), cache

    monkeypatch.setattr(Transformer, "extend", rounded)
    labels, settings = np.arange(32) % 5, {"cfg": 7.3, "top_p": 0.9, "seed": 3}
    expected = generate(model, tokenizer, labels, **settings)
    monkeypatch.setattr(Transformer, "extend", in_half)
    found = generate(model, tokenizer, labels, **settings)
    assert {logits.dtype for logits in seen} == {dtype}
    np.testing.assert_array_equal(np.concatenate(found.ids, 1), np.concatenate(expected.ids, 1))


def test_a_seed_by_position_and_by_name_is_an_error(model, tokenizer, no_model_runs):
    with pytest.raises(TypeError, match="multiple values for seed"):
        generate(model, tokenizer, np.array([0]), 1.5, 0, 0.0, 3, seed=9)


def test_a_sampler_of_another_type_is_an_error(model, tokenizer, no_model_runs):
    with pytest.raises(InputError, match=r"sampler is .*; expected a Sampler"):
        generate(model, tokenizer, np.array([0]), sampler={"cfg": 1.5})


def test_images_are_contiguous(model, tokenizer):
    seen = []
    out = generate(
        model, tokenizer, np.array([0, 1]), on_scale=lambda _, images: seen.append(images)
    )
    assert all(images.flags.c_contiguous for images in (*seen, out.images))
