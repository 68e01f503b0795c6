"""Caches that grow, are cut and are handed on: every scale against the teacher-forced pass."""

import itertools

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_transformer import BackendConfig, Refiner, Sampler, Transformer, box_mask, edit, generate

SCALES = (1, 2, 3, 4)  # several after a cut: the first of them cannot show what is lost
LABELS = np.array([1, 4, 1])
NO_CLASS = np.full(3, 5)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tiny.tokenizer(scales=SCALES))


@pytest.fixture(scope="module")
def model(backend, make_model):
    return make_model(backend, scales=SCALES)


@pytest.fixture(scope="module")
def smaller(backend, make_model):
    return make_model(backend, scales=SCALES, depth=1, width=16, heads=1)


class Watch:
    """Every pass of a model: what it read, and the logits that it gave."""

    def __init__(self, model, monkeypatch):
        self.model, self.inputs, self.logits = model, [], []
        extend = model.extend

        def watched(k, inputs_blz, *others):
            logits, cache = extend(k, inputs_blz, *others)
            assert k == len(self.logits), "every scale runs once, in order"
            if inputs_blz is not None:
                self.inputs.append(inputs_blz.asnumpy())
            self.logits.append(logits.asnumpy())
            return logits, cache

        monkeypatch.setattr(model, "extend", watched)

    @property
    def rows(self):
        return [len(logits) for logits in self.logits]

    def read(self):
        """What it read for the labels, (3, tokens after the first scale, z)."""
        return np.concatenate([np.empty((3, 0, 8), np.float32), *(i[:3] for i in self.inputs)], 1)

    def check(self):
        """All logits that were given, of both halves, against the pass over all scales at once."""
        schedule, scales = self.model.config.schedule, len(self.logits)
        inputs = self.read()
        missing = schedule.length - 1 - inputs.shape[1]  # of scales that another model drew
        inputs = np.pad(inputs, ((0, 0), (0, missing), (0, 0)))
        conditional, free = (self.model.logits(y, inputs).asnumpy() for y in (LABELS, NO_CLASS))
        for k in range(scales):
            begin, end = schedule.offsets[k], schedule.offsets[k + 1]
            expected = np.concatenate((conditional[:, begin:end], free[:, begin:end]))
            got = self.logits[k]
            np.testing.assert_allclose(got, expected[: len(got)], rtol=0, atol=5e-5, err_msg=str(k))


GUIDED = [None, (0,), (1,), (0, 2), (3,)]


@pytest.mark.parametrize("guided_scales", GUIDED)
@pytest.mark.parametrize("more_smooth", [False, True])
def test_every_scale_equals_the_pass_over_all_wherever_guidance_ends(
    model, tokenizer, monkeypatch, guided_scales, more_smooth
):
    watch = Watch(model, monkeypatch)
    sampler = Sampler(guidance="constant", guided_scales=guided_scales, more_smooth=more_smooth)
    generate(model, tokenizer, LABELS, sampler=sampler)
    last = 3 if guided_scales is None else max(guided_scales)
    assert watch.rows == [6] * (last + 1) + [3] * (3 - last)
    watch.check()


@pytest.mark.parametrize(
    ("guided", "refined"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (3, 1)]
)
def test_drafter_and_refiner_equal_their_own_passes_over_all(
    model, smaller, tokenizer, monkeypatch, guided, refined
):
    watches = [Watch(m, monkeypatch) for m in (model, smaller)]
    sampler = Sampler(guidance="constant", guided_scales=(guided,))
    refiner = Refiner(smaller, refined)
    out = generate(model, tokenizer, LABELS, sampler=sampler, refiner=refiner)
    assert [len(w.rows) for w in watches] == [4 - refined, 4]
    teacher = tokenizer.teacher_inputs(out.ids).asnumpy()
    for watch in watches:
        watch.check()
        inputs = watch.read()
        np.testing.assert_allclose(inputs, teacher[:, : inputs.shape[1]], atol=1e-5)


@pytest.mark.parametrize("guided_scales", [(0,), (1,)])
def test_scales_of_an_edit_equal_the_pass_over_all(model, tokenizer, monkeypatch, guided_scales):
    image = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8)).astype(np.float32)
    sampler = Sampler(guidance="constant", guided_scales=guided_scales)
    watch = Watch(model, monkeypatch)
    edit(model, tokenizer, image, box_mask((0, 0, 8, 4), 8, 8), LABELS, sampler)
    watch.check()


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (1, 2, 3)])
def test_a_cache_that_is_cut_repeatedly_stays_right(model, cuts):
    """Three images, then two, then one: each of those left sees all of its own keys."""
    schedule = model.config.schedule
    inputs = np.random.default_rng(3).standard_normal((3, schedule.length - 1, 8), np.float32)
    expected = model.logits(LABELS, inputs).asnumpy()
    class_bc, modulations = model.condition(model.check_labels(LABELS))
    cache, batch = None, 3
    for k, (begin, end) in enumerate(itertools.pairwise(schedule.offsets)):
        if k in cuts:
            batch = max(batch - 1, 1)
            cache = cache.first(batch)
            assert cache.batch == batch and cache.scales == k
        read = Tensor(inputs[:batch, begin - 1 : end - 1]) if k else None
        given = class_bc[:batch], tuple(m[:batch] for m in modulations)
        logits, cache = model.extend(k, read, *given, cache)
        np.testing.assert_allclose(
            logits.asnumpy(), expected[:batch, begin:end], rtol=0, atol=5e-5, err_msg=str(k)
        )


@pytest.mark.parametrize("name", ["auto", "portable", "ascend"])
def test_a_cut_cache_is_memory_of_its_own_and_the_rest_is_freed(make_config, name):
    backend = BackendConfig(name, ms.float16 if name == "ascend" else ms.float32)
    cache = Transformer(make_config(scales=SCALES), backend=backend).new_cache(4)
    if name == "portable":  # grows by joining: nothing before the first scale
        cache = cache.after(tuple(Tensor(np.ones((4, 2, 1, 16), np.float32)) for _ in range(2)))
    whole = [tensor.nbytes for tensor in cache.tensors]
    cut = cache.first(1)
    for tensor, size in zip(cut.tensors, whole, strict=True):
        assert held(tensor) == size // 4 and tensor.shape[0] == 1
    assert all(held(tensor) == 0 for tensor in cache.tensors)


def held(tensor: Tensor) -> int:
    """The bytes of memory that a tensor has."""
    try:
        return tensor.untyped_storage().nbytes()
    except RuntimeError:  # before MindSpore 2.8 only another device has storage
        return tensor.nbytes
