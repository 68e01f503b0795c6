"""The perceptual loss, and the files of feature networks."""

import shlex
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file
from var_tokenizer.common import InputError
from var_train.losses.perceptual_loss import FeatureNetwork
from var_train.losses.reconstruction_loss import (
    ReconstructionLoss,
    ReconstructionLossConfig,
)

RNG = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


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
