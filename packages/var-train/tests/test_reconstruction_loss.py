"""The reconstruction loss against its definition."""

import numpy as np
import pytest
from mindspore import Tensor
from scipy.fft import dctn
from var_tokenizer.common import InputError
from var_train.losses.reconstruction_loss import (
    ReconstructionLoss,
    ReconstructionLossConfig,
    StructureLoss,
)

RNG = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def test_l1_and_l2_are_the_mean_absolute_and_squared_error():
    output, target = images(2, 8, 8, 3), images(2, 8, 8, 3)
    for weights, expected in (
        (ReconstructionLossConfig(l1=2.0, l2=0.0), 2 * np.abs(output - target).mean()),
        (ReconstructionLossConfig(l1=0.0, l2=1.0), ((output - target) ** 2).mean()),
    ):
        loss = ReconstructionLoss(weights, (8, 8))(Tensor(output), Tensor(target))
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_structure_loss_is_the_differences_and_cosines_of_the_error():
    error = images(2, 16, 24, 3)
    half = error.reshape(2, 8, 2, 12, 2, 3).mean((2, 4))
    parts = [dctn(error, axes=(1, 2), norm="ortho")]
    parts += [np.diff(e, axis=axis) for e in (error, half) for axis in (1, 2)]
    expected = np.mean([np.abs(p).mean() for p in parts])
    assert float(StructureLoss((16, 24))(Tensor(error))) == pytest.approx(expected, rel=1e-5)


def test_the_structure_loss_ignores_a_constant_shift_but_for_its_mean():
    flat = np.full((1, 16, 16, 3), 0.5, np.float32)
    checkered = flat * (1 - 2 * (np.indices((16, 16)).sum(0) % 2))[None, :, :, None]
    loss = StructureLoss((16, 16))
    assert float(loss(Tensor(checkered.astype(np.float32)))) > 5 * float(loss(Tensor(flat)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"l1": -1.0}, "l1 is -1.0; expected a number of at least 0"),
        ({"l1": 0.0, "l2": 0.0}, "l1, l2 and structure are all 0"),
        ({"structure": float("inf")}, "structure is inf"),
    ],
)
def test_unusable_loss_weights_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        ReconstructionLossConfig(**weights)
