"""Weights that change after a transformer has run: every pass is of the weights of now."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from var_tokenizer.common import InputError
from var_transformer import Refiner, Sampler, Transformer, box_mask, edit, generate

LABELS = np.array([1, 4, 1])


def each(change):
    return lambda model, weights: [change(p, weights[n]) for n, p in model.parameters_and_names()]


def load_param_into_net(model, weights):
    ms.load_param_into_net(model, {n: Parameter(Tensor(w), name=n) for n, w in weights.items()})


def other_parameters(model, weights):
    cells = dict(model.cells_and_names())
    for name in [name for name, _ in model.parameters_and_names()]:
        path, _, leaf = name.rpartition(".")
        setattr(cells[path], leaf, Parameter(Tensor(weights[name]), name=name))


def written_into(parameter, weight):
    parameter.asnumpy()[...] = weight


WAYS = {
    "load_param_into_net": load_param_into_net,
    "load_state_dict": lambda m, w: m.load_state_dict({n: Tensor(a) for n, a in w.items()}),
    "set_data": each(lambda p, w: p.set_data(Tensor(w))),
    "data =": each(lambda p, w: setattr(p, "data", Tensor(w))),
    "ops.assign": each(lambda p, w: ops.assign(p, Tensor(w))),
    "assign_value": each(lambda p, w: p.assign_value(Tensor(w))),
    "copy_": each(lambda p, w: p.copy_(Tensor(w))),
    "[...] =": each(lambda p, w: p.__setitem__(..., Tensor(w))),
    "asnumpy": each(written_into),
    "other parameters": other_parameters,
}
if ms.__version__.startswith("2.7."):  # has no setter; gives a copy where no graph reads the weight
    del WAYS["data ="], WAYS["asnumpy"]


def every_pass(model, tokenizer, smaller):
    inputs = np.random.default_rng(0).standard_normal((3, 13, 8)).astype(np.float32)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 6, 6)).astype(np.float32)
    mask = box_mask((0, 0, 3, 6), 6, 6)
    class_bc, modulations = model.condition(model.check_labels(LABELS))
    logits, cache = model.extend(0, None, class_bc, modulations, None)
    following, _ = model.extend(1, Tensor(inputs[:, :4]), class_bc, modulations, cache)
    made = {
        "generate": generate(model, tokenizer, LABELS, seed=1),
        "as drafter": generate(model, tokenizer, LABELS, refiner=Refiner(smaller, 1)),
        "as refiner": generate(smaller, tokenizer, LABELS, refiner=Refiner(model, 2)),
        "edit": edit(model, tokenizer, image, mask, LABELS, Sampler(cfg=3.0)),
    }
    return {
        "logits": model.logits(LABELS, inputs).asnumpy(),
        "condition": class_bc.asnumpy(),
        "modulations": modulations[-1].asnumpy(),
        "extend": logits.asnumpy(),
        "extend again": following.asnumpy(),
    } | {name: out.images for name, out in made.items()}


@pytest.fixture(scope="module")
def changing(backend, make_config):
    """A transformer all of whose passes have run, from the first change on."""
    return Transformer(make_config(), backend=backend)


@pytest.fixture(scope="module")
def both(backend, smaller, make_config, tokenizer):
    """Two sets of weights, each with what every pass gives of a transformer made with them."""
    found = []
    for seed in (0, 1):
        model, rng = Transformer(make_config(), seed, backend), np.random.default_rng(seed)
        for parameter in model.get_parameters():
            noise = 0.2 * rng.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_data(Tensor(parameter.asnumpy() + noise))
        weights = {n: p.asnumpy().copy() for n, p in model.parameters_and_names()}
        found.append((weights, every_pass(model, tokenizer, smaller)))
    (_, first), (_, second) = found
    assert not any((first[name] == second[name]).all() for name in first)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_pass_uses_the_current_weights(changing, both, tokenizer, smaller, way):
    for weights, expected in both:
        WAYS[way](changing, weights)
        got = every_pass(changing, tokenizer, smaller)
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        for name, parameter in changing.parameters_and_names():
            np.testing.assert_array_equal(parameter.asnumpy(), weights[name])


def test_a_generation_follows_weights_that_change_midway(model, make_config):
    """As a fresh model with the keys and values of the old weights, and the new weights."""
    changed, fresh = (Transformer(make_config()) for _ in range(2))
    inputs = Tensor(np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32))
    start = changed.condition(changed.check_labels(LABELS))
    caches = [changed.extend(0, None, *start, None)[1] for _ in range(2)]
    weights = {n: Parameter(Tensor(p.asnumpy())) for n, p in model.parameters_and_names()}
    for other in (changed, fresh):
        ms.load_param_into_net(other, weights)
    got, expected = (
        m.extend(1, inputs, *start, c)[0].asnumpy()
        for m, c in zip((changed, fresh), caches, strict=True)
    )
    np.testing.assert_array_equal(got, expected)


def test_weights_of_another_shape_are_an_error_that_names_the_parameter(make_config):
    model = Transformer(make_config())
    model.condition(model.check_labels(LABELS))
    model.head.bias.assign_value(Tensor(np.zeros(5, np.float32)))
    with pytest.raises(InputError, match=r"head.bias is Float32 of shape \(5,\); expected Flo"):
        model.condition(model.check_labels(LABELS))
