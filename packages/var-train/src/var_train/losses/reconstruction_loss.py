"""The reconstruction loss: pixels, structure, and features of a network that the user supplies.

Images are (B, Y, X, 3) in [-1, 1].
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import layout
from var_tokenizer.common import InputError, check_number

from var_train.judging.networks import load_perceptual_network
from var_train.operators import mean_magnitude


@dataclass(frozen=True)
class ReconstructionLossConfig:
    """Weights of the parts of the reconstruction loss."""

    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 1.0
    """Weight of the mean squared error."""
    structure: float = 0.0
    """Weight of the gradient and frequency loss (``StructureLoss``), which needs no network."""
    perceptual: float = 1.0
    """Weight of the distance between features of ``feature_network``."""
    feature_network: Path | None = None
    """EffLite0, EfficientNet-Lite0 from the extra [judge], or a .safetensors file of a VGG-like
    network (``FeatureNetwork``). Without one there is no perceptual loss."""

    def __post_init__(self) -> None:
        """Raises InputError for a weight below 0."""
        for name in ("l1", "l2", "structure", "perceptual"):
            check_number(name, getattr(self, name), least=0)
        if not self.l1 + self.l2 + self.structure > 0:
            raise InputError("l1, l2 and structure are all 0; expected one above 0")


class StructureLoss(nn.Cell):
    """How far edges and textures differ; needs no network.

    The mean absolute error of horizontal and vertical differences (of the image and of its
    halvings down to 8 pixels) and of the orthonormal cosine transform of the whole image. All of
    these are linear in the image, so they are computed from the error image, as matrix products.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = image_size
        halvings = max(1, int(math.log2(min(rows, columns) / 8)) + 1)
        self.pairs = [(Tensor(_cosines(rows)), Tensor(_cosines(columns)))]
        for level in range(halvings):
            small = [_pooling(n, n >> level) for n in (rows, columns)]
            edges = [(m[1:] - m[:-1]) for m in small]
            self.pairs.append((Tensor(edges[0]), Tensor(small[1])))
            self.pairs.append((Tensor(small[0]), Tensor(edges[1])))
        self.matmul_nt = ops.MatMul(transpose_b=True)

    def construct(self, error_byxc: Tensor) -> Tensor:
        b, y, x, c = error_byxc.shape
        error_nx = error_byxc.transpose(0, 3, 1, 2).reshape(b * c * y, x)
        loss = 0.0
        for rows_sy, columns_tx in self.pairs:
            t_bcyt = self.matmul_nt(error_nx, columns_tx).reshape(b * c, y, -1)
            t_ny = t_bcyt.transpose(0, 2, 1).reshape(-1, y)
            loss = loss + mean_magnitude(self.matmul_nt(t_ny, rows_sy))
        return loss / len(self.pairs)


class ReconstructionLoss(nn.Cell):
    """The weighted sum of the parts whose weight in ``ReconstructionLossConfig`` is above 0."""

    def __init__(self, weights: ReconstructionLossConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.l1, self.l2 = weights.l1, weights.l2
        self.structure_weight, self.perceptual_weight = weights.structure, weights.perceptual
        self.structure = StructureLoss(image_size) if weights.structure else None
        file = weights.feature_network if weights.perceptual else None
        self.network = None if file is None else load_perceptual_network(file)
        self.mean_square = layout.mean_square()

    def construct(self, output_byxc: Tensor, images_byxc: Tensor) -> Tensor:
        error = output_byxc - images_byxc
        loss = self.l2 * self.mean_square(error) + self.l1 * mean_magnitude(error)
        if self.structure is not None:
            loss = loss + self.structure_weight * self.structure(error)
        if self.network is not None:
            loss = loss + self.perceptual_weight * self.network.distance(output_byxc, images_byxc)
        return loss


def _cosines(n: int) -> np.ndarray:
    """(n, n): the orthonormal cosine transform (DCT-II)."""
    frequency, position = np.arange(n)[:, None], np.arange(n)[None] + 0.5
    matrix = np.sqrt(2 / n) * np.cos(np.pi / n * frequency * position)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)


def _pooling(n: int, cells: int) -> np.ndarray:
    """(cells, n): averages n pixels over ``cells`` equal parts; drops pixels that are left over."""
    return np.kron(np.eye(cells), np.full(n // cells, cells / n))[:, :n].astype(np.float32)
