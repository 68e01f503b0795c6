"""The tokenizer's losses against their definitions, and the files of feature networks."""

import shlex
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file
from scipy.fft import dctn
from var_tokenizer.common import InputError
from var_train.data.augmentation import Augmentation, draw_augmentation
from var_train.losses.discriminator import AdversaryConfig, PatchDiscriminator, hinge_loss
from var_train.losses.perceptual_loss import FeatureNetwork
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


def vgg(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Two convolutions, a pooling, one convolution: numbers 0, 2, 5 as torchvision has them."""
    shapes = {0: (4, 3), 2: (4, 4), 5: (6, 4)}
    tensors = {f"features.{n}.weight": images(*s, 3, 3) for n, s in shapes.items()}
    tensors |= {f"features.{n}.bias": images(s[0]) for n, s in shapes.items()}
    return tensors | {"classifier.0.weight": images(2, 2)} | changes


@pytest.fixture
def network_file(tmp_path):
    def write(tensors):
        path = tmp_path / "vgg.safetensors"
        save_file(tensors, path)
        return path

    return write


def test_a_vgg_file_gives_the_maps_before_each_pooling_and_the_last(network_file):
    maps = FeatureNetwork.load(network_file(vgg()))(Tensor(images(2, 8, 8, 3)))
    assert [m.shape for m in maps] == [(2, 8, 8, 4), (2, 4, 4, 6)]


def test_the_perceptual_distance_is_zero_only_for_equal_images(network_file):
    network = FeatureNetwork.load(network_file(vgg()))
    one, other = Tensor(images(2, 8, 8, 3)), Tensor(images(2, 8, 8, 3))
    assert float(network.distance(one, one)) == 0
    assert float(network.distance(one, other)) > 0.01


def test_the_perceptual_loss_trains_the_image_not_the_network(network_file):
    weights = ReconstructionLossConfig(l1=1.0, l2=0.0, feature_network=network_file(vgg()))
    loss = ReconstructionLoss(weights, (8, 8))
    assert not loss.trainable_params()
    output, target = Tensor(images(1, 8, 8, 3)), Tensor(images(1, 8, 8, 3))
    with_network = ms.grad(loss)(output, target).asnumpy()
    without = ms.grad(ReconstructionLoss(ReconstructionLossConfig(l1=1.0, l2=0.0), (8, 8)))(
        output, target
    )
    assert np.abs(with_network - without.asnumpy()).max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.5.weight": images(6, 9, 3, 3)}, r"features.5.weight is \(6, 9, 3, 3\)"),
        ({"features.2.bias": images(9)}, "features.2.bias is missing or not"),
        (
            {"features.9.weight": images(6, 6, 3, 3), "features.9.bias": images(6)},
            "features.9 follows features.5",
        ),
    ],
)
def test_a_foreign_network_is_refused_with_its_layer(network_file, changes, message):
    with pytest.raises(InputError, match=message):
        FeatureNetwork.load(network_file(vgg(**changes)))


def test_a_pth_of_a_network_is_refused_with_the_command_that_converts_it(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors.torch")
    path = tmp_path / "it's vgg.pth"
    torch.save({name: torch.from_numpy(a) for name, a in vgg().items()}, path)
    with pytest.raises(InputError, match="a PyTorch checkpoint") as error:
        FeatureNetwork.load(path)
    command = shlex.split(str(error.value).partition(" VAR): ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    FeatureNetwork.load(path.with_suffix(".safetensors"))


def test_names_that_are_no_layers_are_ignored(network_file):
    strange = {f"features.{'9' * 5000}.weight": images(2), "features.\u0663.bias": images(2)}
    maps = FeatureNetwork.load(network_file(vgg(**strange)))(Tensor(images(1, 8, 8, 3)))
    assert len(maps) == 2


def test_a_file_without_a_network_is_refused(network_file, tmp_path):
    with pytest.raises(InputError, match=r"no features\.N\.weight"):
        FeatureNetwork.load(network_file({"other": images(2)}))
    with pytest.raises(InputError, match="not a readable"):
        FeatureNetwork.load(tmp_path / "missing.safetensors")


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
    moved = Augmentation()(Tensor(target), plain, pixels, Tensor(np.ones(kept.shape, np.float32)))
    rows = np.concatenate((target.reshape(-1, 3), np.zeros((1, 3), np.float32)))
    expected = rows[pixels.asnumpy()].reshape(target.shape)
    np.testing.assert_allclose(moved.asnumpy(), expected, atol=1e-5)
    changed = Augmentation()(Tensor(target), colours, pixels, kept).asnumpy()
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
    together = Augmentation()(Tensor(target), *whole).asnumpy()
    apart = [Augmentation()(Tensor(target[2 * r : 2 * r + 2]), *parts[r]).asnumpy() for r in (0, 1)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_the_gradient_passes_through_the_augmentation():
    changes = draw_augmentation(np.random.default_rng(1), 2, (8, 8))
    gradient = ms.grad(lambda x: (Augmentation()(x, *changes) ** 2).sum())(
        Tensor(images(2, 8, 8, 3))
    )
    assert np.abs(gradient.asnumpy()).max() > 0
