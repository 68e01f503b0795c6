"""Inception v3 (arXiv:1512.00567) as judges use it: pooled features, logits, features of sFID.

The network of 1008 classes is the one that TensorFlow published in 2015, by which FID
(arXiv:1706.08500), published Inception Scores (arXiv:1606.03498) and sFID (arXiv:2103.03841) are
defined; that of 1000 classes is torchvision's, whose poolings differ. Batch norms are folded into
the convolutions.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import layout
from var_tokenizer.common import CLASSES_OF_2015, on_cpu

from var_train.judging.convolutions import Weights, convolution, folded, frozen

SIDE = 299  # rows and columns that the network reads
_SPATIAL = 7  # channels that sFID reads


class Inception(nn.Cell):
    """Images (B, 299, 299, 3), ``prepared``, to (B, 2048), (B, K) and (B, 17 * 17 * 7).

    These are the means over the pixels of the last map; the logits, without the classifier's bias
    in the network of 2015, as in published Inception Scores; and the first 7 channels of the third
    block of 17x17 pixels, TensorFlow's ``mixed_6/conv``.
    """

    def __init__(self, weights: Weights) -> None:
        """weights: as of ``inception_shapes``."""
        super().__init__()
        make, of_2015 = _Parts(weights), len(weights["fc.bias"]) == CLASSES_OF_2015
        self.first = nn.SequentialCell(
            make.conv("Conv2d_1a_3x3", 2, padded=False),
            make.conv("Conv2d_2a_3x3", padded=False),
            make.conv("Conv2d_2b_3x3"),
            _MaxPool(2),
            make.conv("Conv2d_3b_1x1"),
            make.conv("Conv2d_4a_3x3", padded=False),
            _MaxPool(2),
            *(make.block_a(f"Mixed_5{i}") for i in "bcd"),
            make.block_b("Mixed_6a"),
            *(make.block_c(f"Mixed_6{i}") for i in "bc"),
        )
        self.third = make.block_c("Mixed_6d")
        self.last = nn.SequentialCell(
            make.block_c("Mixed_6e"),
            make.block_d("Mixed_7a"),
            make.block_e("Mixed_7b", averages=True),
            make.block_e("Mixed_7c", averages=not of_2015),
        )
        self.classes = nn.Dense(*weights["fc.weight"].shape[::-1], has_bias=not of_2015)
        self.classes.weight = frozen(weights["fc.weight"])
        if not of_2015:
            self.classes.bias = frozen(weights["fc.bias"])
        self.maps, self.pixels = layout.maps(), layout.pixels()

    def construct(self, images_byxc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.third(self.first(self.maps(images_byxc)))
        spatial_byxc = self.pixels(x)[:, :, :, :_SPATIAL]
        pooled_bf = self.pixels(self.last(x)).mean((1, 2))
        return pooled_bf, self.classes(pooled_bf), spatial_byxc.reshape(len(images_byxc), -1)


def prepared(pixels_byxc: np.ndarray) -> np.ndarray:
    """uint8 images of any size as the network reads them: float32 (B, 299, 299, 3) in [-1, 1).

    Bilinear as TensorFlow 1 resizes: pixel i of the result is at i * (size / 299), with no halves
    added, and nothing is averaged on the way down. Other resizing gives other figures
    (arXiv:2104.11222).
    """
    images = pixels_byxc.astype(np.float32)
    for axis in (1, 2):
        size = images.shape[axis]
        place = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        low = place.astype(int)
        between = (place - low.astype(np.float32)).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        below = images.take(low, axis)
        images = below + (images.take(np.minimum(low + 1, size - 1), axis) - below) * between
    return (images - 128) / 128


class _Parts:
    """Builds the parts of the network."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def _folded(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return folded(self.weights, f"{name}.conv", f"{name}.bn")

    def conv(self, name: str, stride: int = 1, padded: bool = True) -> nn.Cell:
        return _ConvRelu(*self._folded(name), stride, padded)

    def chain(self, block: str, names: str, stride: int = 1) -> nn.Cell:
        """Convolutions, the last of which has the ``stride``; above 1 it has no zeros around."""
        *before, last = (f"{block}.branch{name}" for name in names.split())
        cells = [self.conv(name) for name in before]
        return nn.SequentialCell(*cells, self.conv(last, stride, padded=stride == 1))

    def pooled(self, block: str, side: int, averages: bool = True) -> nn.Cell:
        name = f"{block}.branch_pool"
        if not averages:
            return nn.SequentialCell(_MaxPool(1), self.conv(name))
        zeros_count = len(self.weights["fc.bias"]) != CLASSES_OF_2015
        return _ConvAverageRelu(*self._folded(name), _average(side, zeros_count), side)

    def block_a(self, block: str) -> nn.Cell:
        chains = ("1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3")
        return _Side(*(self.chain(block, names) for names in chains), self.pooled(block, 35))

    def block_b(self, block: str) -> nn.Cell:
        chains = ("3x3", "3x3dbl_1 3x3dbl_2 3x3dbl_3")
        return _Side(*(self.chain(block, names, 2) for names in chains), _MaxPool(2))

    def block_c(self, block: str) -> nn.Cell:
        chains = ("1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5")
        return _Side(*(self.chain(block, names) for names in chains), self.pooled(block, 17))

    def block_d(self, block: str) -> nn.Cell:
        chains = ("3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4")
        return _Side(*(self.chain(block, names, 2) for names in chains), _MaxPool(2))

    def block_e(self, block: str, averages: bool) -> nn.Cell:
        def split(names: str, one: str, other: str) -> nn.Cell:
            ends = _Side(self.chain(block, one), self.chain(block, other))
            return nn.SequentialCell(self.chain(block, names), ends)

        return _Side(
            self.chain(block, "1x1"),
            split("3x3_1", "3x3_2a", "3x3_2b"),
            split("3x3dbl_1 3x3dbl_2", "3x3dbl_3a", "3x3dbl_3b"),
            self.pooled(block, 8, averages),
        )


class _Side(nn.Cell):
    """Branches of one map, side by side: the channels of one after those of another."""

    def __init__(self, *branches: nn.Cell) -> None:
        super().__init__()
        self.branches = nn.CellList(list(branches))
        self.axis = 3 if on_cpu() else 1

    def construct(self, x: Tensor) -> Tensor:
        return ops.concat([branch(x) for branch in self.branches], self.axis)


class _ConvRelu(nn.Cell):
    def __init__(
        self, weight_oihw: np.ndarray, bias_o: np.ndarray, stride: int, padded: bool
    ) -> None:
        super().__init__()
        kernel = weight_oihw.shape[2]
        around = kernel // 2 if padded else 0
        self.conv = convolution(weight_oihw, bias_o, stride, (around, around))

    def construct(self, x: Tensor) -> Tensor:
        return ops.relu(self.conv(x))


class _ConvAverageRelu(nn.Cell):
    """Means of 3x3 pixels, then a 1x1 convolution: in the other order, for fewer channels."""

    def __init__(
        self, weight_oihw: np.ndarray, bias_o: np.ndarray, average_nn: np.ndarray, side: int
    ) -> None:
        super().__init__()
        self.conv = convolution(weight_oihw, np.zeros_like(bias_o), 1, (0, 0))
        self.bias, self.average = frozen(bias_o), Tensor(average_nn)
        self.tokens, self.map = layout.tokens_of_map(), layout.map_of_tokens((side, side))

    def construct(self, x: Tensor) -> Tensor:
        means_bnc = self.tokens(self.conv(x), self.average)
        return self.map(ops.relu(means_bnc + self.bias), None)


class _MaxPool(nn.Cell):
    """Of 3x3 pixels that are not negative: with a stride of 1, zeros are around them."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride, pad_mode="same" if stride == 1 else "valid")
        self.transposed = on_cpu()

    def construct(self, x: Tensor) -> Tensor:
        if not self.transposed:
            return self.pool(x)
        return self.pool(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)


def _average(side: int, zeros_count: bool) -> np.ndarray:
    """(side**2, side**2): the mean of each pixel and its neighbours, which may be fewer than 8."""
    near = np.tri(side, k=1) - np.tri(side, k=-2)
    sums = np.kron(near, near)
    return (sums / (9 if zeros_count else sums.sum(1, keepdims=True))).astype(np.float32)
