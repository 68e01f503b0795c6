"""Weights that change after a tokenizer has run: every pass is of the weights of now."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError

Weights = dict[str, np.ndarray]


def each(change: Callable[[Parameter, np.ndarray], object]) -> Callable[[Tokenizer, Weights], None]:
    def change_all(tokenizer: Tokenizer, weights: Weights) -> None:
        for name, parameter in tokenizer.parameters_and_names():
            change(parameter, weights[name])

    return change_all


def load_param_into_net(tokenizer: Tokenizer, weights: Weights) -> None:
    ms.load_param_into_net(tokenizer, {n: Parameter(Tensor(w), name=n) for n, w in weights.items()})


def other_parameters(tokenizer: Tokenizer, weights: Weights) -> None:
    cells = dict(tokenizer.cells_and_names())
    for name in [name for name, _ in tokenizer.parameters_and_names()]:
        path, _, leaf = name.rpartition(".")
        setattr(cells[path], leaf, Parameter(Tensor(weights[name]), name=name))


def written_into(parameter: Parameter, weight: np.ndarray) -> None:
    parameter.asnumpy()[...] = weight


def replaced_by_a_result(parameter: Parameter, weight: np.ndarray) -> None:
    parameter.set_data(Tensor(2 * weight) / 2)


WAYS = {
    "load_param_into_net": load_param_into_net,
    "load_state_dict": lambda t, w: t.load_state_dict({n: Tensor(a) for n, a in w.items()}),
    "set_data": each(lambda p, w: p.set_data(Tensor(w))),
    "set_data of a result": each(replaced_by_a_result),
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


@pytest.fixture(scope="module")
def both(tokenizer, images_bcyx):
    """Two sets of weights, each with what every pass gives of a tokenizer made with them."""
    other, rng = Tokenizer(tokenizer.config, seed=1), np.random.default_rng(1)
    for name, parameter in other.parameters_and_names():
        if "hit" not in name:
            noise = 0.1 * rng.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_data(Tensor(parameter.asnumpy() + noise))
    found = [
        ({n: p.asnumpy().copy() for n, p in t.parameters_and_names()}, every_pass(t, images_bcyx))
        for t in (tokenizer, other)
    ]
    (_, first), (_, second) = found
    assert not any((first[name] == second[name]).all() for name in first)
    return found


@pytest.fixture(scope="module")
def changing(tokenizer):
    """A tokenizer all of whose passes have run, from the first change on."""
    return Tokenizer(tokenizer.config)


def every_pass(tokenizer: Tokenizer, images_bcyx: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, tokenizer.vocab_size, (3, n)) for n in tokenizer.schedule.tokens]
    weights = rng.uniform(0, 1, (3, 4, tokenizer.vocab_size)).astype(np.float32)
    latent = tokenizer.add_scale(None, ids[0], 0)
    results = {
        "encode": np.concatenate([np.asarray(i) for i in tokenizer.encode(images_bcyx)], 1),
        "residual_vectors": tokenizer.residual_vectors(images_bcyx)[-1],
        "decode": tokenizer.decode(ids),
        "decode_progressive": tokenizer.decode_progressive(ids)[0],
        "teacher_inputs": tokenizer.teacher_inputs(ids),
        "add_scale": latent,
        "add_scale, weights": tokenizer.add_scale(latent, weights, 1),
        "scale_input": tokenizer.scale_input(latent, 1),
        "decode_latent": tokenizer.decode_latent(latent),
    }
    return {name: np.asarray(result) for name, result in results.items()}


@pytest.mark.parametrize("way", WAYS)
def test_every_pass_uses_the_current_weights_whatever_changed_them(
    changing, both, images_bcyx, way
):
    for weights, expected in both:
        WAYS[way](changing, weights)
        got = every_pass(changing, images_bcyx)
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        for name, parameter in changing.parameters_and_names():
            np.testing.assert_array_equal(parameter.asnumpy(), weights[name])


def test_one_changed_parameter_and_a_change_before_the_first_pass_are_followed(
    tokenizer, images_bcyx
):
    tokenizer, fresh = (Tokenizer(tokenizer.config) for _ in range(2))
    ids = tokenizer.encode(images_bcyx)  # compiles one pass alone
    bias = np.full(3, 0.25, np.float32)
    for changed in (tokenizer, fresh):
        changed.decoder.conv_out.bias.set_data(Tensor(bias))
    np.testing.assert_array_equal(tokenizer.decode(ids).asnumpy(), fresh.decode(ids).asnumpy())
    ops.assign(tokenizer.decoder.conv_out.bias, Tensor(-bias))  # where graphs read, by now
    fresh.decoder.conv_out.bias.set_data(Tensor(-bias))
    np.testing.assert_array_equal(tokenizer.decode(ids).asnumpy(), fresh.decode(ids).asnumpy())


def test_weights_of_another_shape_are_an_error_that_names_the_parameter(tokenizer, images_bcyx):
    tokenizer = Tokenizer(tokenizer.config)
    tokenizer.encode(images_bcyx)
    tokenizer.quant_conv.bias.assign_value(Tensor(np.zeros(5, np.float32)))
    with pytest.raises(InputError, match=r"quant_conv.bias is Float32 of shape \(5,\); expected"):
        tokenizer.encode(images_bcyx)
