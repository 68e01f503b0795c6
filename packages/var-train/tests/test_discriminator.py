"""The discriminator, its loss, and the augmentation of what it sees."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from var_train.data.augmentation import augment, draw_augmentation
from var_train.losses.discriminator import AdversaryConfig, PatchDiscriminator, hinge_loss

RNG = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def test_the_discriminator_judges_patches_of_one_image_alone():
    judge = PatchDiscriminator(AdversaryConfig(weight=1, channels=32), np.random.default_rng(0))
    batch = images(3, 16, 16, 3)
    together = judge(Tensor(batch)).asnumpy()
    assert together.shape == (3, 4, 4, 1)
    alone = judge(Tensor(batch[:1])).asnumpy()
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_the_hinge_loss_is_zero_beyond_its_margins():
    assert float(hinge_loss(Tensor([1.0, 2.0]), Tensor([-1.0, -3.0]))) == 0
    assert float(hinge_loss(Tensor([0.0]), Tensor([0.0]))) == pytest.approx(1.0)


def test_augmentation_shifts_recolours_and_cuts():
    target = images(6, 16, 16, 3)
    colours, pixels, kept = draw_augmentation(np.random.default_rng(0), 6, (16, 16))
    plain = Tensor(np.array([[0.0] * 6, [1.0] * 6, [1.0] * 6], np.float32))
    moved = augment(Tensor(target), plain, pixels, Tensor(np.ones(kept.shape, np.float32)))
    rows = np.concatenate((target.reshape(-1, 3), np.zeros((1, 3), np.float32)))
    expected = rows[pixels.asnumpy()].reshape(target.shape)
    np.testing.assert_allclose(moved.asnumpy(), expected, atol=1e-5)
    changed = augment(Tensor(target), colours, pixels, kept).asnumpy()
    assert (changed[np.broadcast_to(kept.asnumpy() == 0, changed.shape)] == 0).all()
    share = kept.asnumpy().mean((1, 2, 3))
    assert (share >= 0.75).all() and (share < 1).any()


def test_each_worker_draws_its_part_of_the_batchs_augmentation():
    whole = draw_augmentation(np.random.default_rng(3), 4, (8, 8))
    parts = [
        draw_augmentation(np.random.default_rng(3), 4, (8, 8), slice(2 * r, 2 * r + 2))
        for r in (0, 1)
    ]
    target = images(4, 8, 8, 3)
    together = augment(Tensor(target), *whole).asnumpy()
    apart = [augment(Tensor(target[2 * r : 2 * r + 2]), *parts[r]).asnumpy() for r in (0, 1)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_the_gradient_passes_through_the_augmentation():
    changes = draw_augmentation(np.random.default_rng(1), 2, (8, 8))
    gradient = ms.grad(lambda x: (augment(x, *changes) ** 2).sum())(Tensor(images(2, 8, 8, 3)))
    assert np.abs(gradient.asnumpy()).max() > 0
