"""Generation that stays on the device, tried on a CPU: as NumPy draws, and read once."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from var_tokenizer.common import InputError
from var_transformer import Refiner, Sampler, box_mask, edit, generate
from var_transformer.generation import generate as generate_module

pytestmark = pytest.mark.slow  # each compiles the graphs of three scales

LABELS = np.array([1, 4, 1])


@pytest.fixture
def on_device(monkeypatch):
    """From then on generations take the device's path."""

    def switch():
        monkeypatch.setattr(generate_module, "stays_on_device", lambda sampler: True)

    return switch


def assert_same(out, expected):
    for got, ids in zip(out.ids, expected.ids, strict=True):
        np.testing.assert_array_equal(got, ids)
    np.testing.assert_allclose(out.images, expected.images, atol=1e-5)


SAMPLERS = [
    Sampler(cfg=3.0),
    Sampler(cfg=2.0, top_k=9, top_p=0.9, temperature=0.8),
    Sampler(cfg=2.0, top_k=(1, 0, 5), top_p=(0.0, 0.5, 1.0)),
]


def test_ids_and_images_are_those_of_the_cpu(model, tokenizer, on_device):
    expected = [generate(model, tokenizer, LABELS, sampler=s, seed=5) for s in SAMPLERS]
    on_device()
    for sampler, of_cpu in zip(SAMPLERS, expected, strict=True):
        assert_same(generate(model, tokenizer, LABELS, sampler=sampler, seed=5), of_cpu)


def test_the_unconditional_half_ends_with_guidance(model, tokenizer, on_device):
    settings = {"cfg": 3.0, "guidance": "constant", "guided_scales": (1,), "seed": 2}
    expected = generate(model, tokenizer, LABELS, **settings)
    on_device()
    assert_same(generate(model, tokenizer, LABELS, **settings), expected)


def test_an_edit_keeps_the_tokens_outside_its_mask(model, tokenizer, on_device):
    image = np.random.default_rng(0).uniform(-1, 1, (3, 6, 6)).astype(np.float32)
    mask = box_mask((0, 0, 3, 6), 6, 6)
    expected = edit(model, tokenizer, image, mask, LABELS, Sampler(cfg=3.0), seed=1)
    on_device()
    assert_same(edit(model, tokenizer, image, mask, LABELS, Sampler(cfg=3.0), seed=1), expected)


def test_a_refiner_draws_the_last_scales(model, smaller, tokenizer, on_device):
    settings = {"cfg": 3.0, "refiner": Refiner(smaller, 1), "seed": 3}
    expected = generate(model, tokenizer, LABELS, **settings)
    on_device()
    assert_same(generate(model, tokenizer, LABELS, **settings), expected)


def test_on_scale_sees_the_picture_after_every_scale(model, tokenizer, on_device):
    on_device()
    seen = []
    out = generate(model, tokenizer, LABELS, cfg=3.0, on_scale=lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == [0, 1, 2]
    for (_, images), expected in zip(seen, tokenizer.decode_progressive(out.ids), strict=True):
        np.testing.assert_allclose(images, (expected.asnumpy() + 1) / 2, atol=1e-5)


def test_only_ids_and_images_are_read(model, tokenizer, on_device, monkeypatch):
    on_device()
    read, asnumpy = [], Tensor.asnumpy

    def counted(tensor):
        read.append(tuple(tensor.shape))
        return asnumpy(tensor)

    monkeypatch.setattr(Tensor, "asnumpy", counted)
    out = generate(model, tokenizer, LABELS, cfg=3.0)
    b, _, y, x = out.images.shape
    assert sorted(read[1:]) == sorted([(b, y, x, 3), *(ids.shape for ids in out.ids)])
    assert read[0] == LABELS.shape  # they never were on the device


def test_weights_that_are_not_finite_are_refused(make_model, tokenizer, on_device):
    model = make_model()
    model.head.bias.set_data(Tensor(np.full(32, np.nan, np.float32)))
    on_device()
    with pytest.raises(InputError, match="probabilities are NaN"):
        generate(model, tokenizer, LABELS, cfg=3.0)


def test_weights_may_change_between_generations(make_model, tokenizer, on_device):
    model, other = make_model(), make_model()
    for parameter in other.get_parameters():
        parameter.set_data(Tensor(0.5 * parameter.asnumpy()))
    expected = generate(other, tokenizer, LABELS, cfg=3.0)
    on_device()
    generate(model, tokenizer, LABELS, cfg=3.0)
    ms.load_param_into_net(model, {p.name: p for p in other.get_parameters()})
    assert_same(generate(model, tokenizer, LABELS, cfg=3.0), expected)
