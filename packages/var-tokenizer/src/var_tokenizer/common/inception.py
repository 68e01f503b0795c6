"""The tensors of Inception v3 (arXiv:1512.00567), under the names of torchvision.

var-convert writes them and var-train judges images by them. There are two networks: the one that
TensorFlow published in 2015, by which FID is defined, has 1008 classes, and torchvision's 1000.
"""

from collections.abc import Collection, Iterator

Shape = tuple[int, ...]

CLASSES_OF_2015, CLASSES_OF_TORCHVISION = 1008, 1000

_STEM = "1a_3x3 3 32 3x3, 2a_3x3 32 32 3x3, 2b_3x3 32 64 3x3, 3b_1x1 64 80 1x1, 4a_3x3 80 192 3x3"


def _block_a(inputs: int, pooled: int) -> str:
    return (
        f"1x1 {inputs} 64 1x1, 5x5_1 {inputs} 48 1x1, 5x5_2 48 64 5x5, "
        f"3x3dbl_1 {inputs} 64 1x1, 3x3dbl_2 64 96 3x3, 3x3dbl_3 96 96 3x3, "
        f"_pool {inputs} {pooled} 1x1"
    )


def _block_c(width: int) -> str:
    w = width
    return (
        f"1x1 768 192 1x1, 7x7_1 768 {w} 1x1, 7x7_2 {w} {w} 1x7, 7x7_3 {w} 192 7x1, "
        f"7x7dbl_1 768 {w} 1x1, 7x7dbl_2 {w} {w} 7x1, 7x7dbl_3 {w} {w} 1x7, "
        f"7x7dbl_4 {w} {w} 7x1, 7x7dbl_5 {w} 192 1x7, _pool 768 192 1x1"
    )


def _block_e(inputs: int) -> str:
    return (
        f"1x1 {inputs} 320 1x1, 3x3_1 {inputs} 384 1x1, 3x3_2a 384 384 1x3, 3x3_2b 384 384 3x1, "
        f"3x3dbl_1 {inputs} 448 1x1, 3x3dbl_2 448 384 3x3, 3x3dbl_3a 384 384 1x3, "
        f"3x3dbl_3b 384 384 3x1, _pool {inputs} 192 1x1"
    )


# block -> its convolutions: name, channels in, channels out, rows x columns of the kernel
_BLOCKS = {
    "5b": _block_a(192, 32),
    "5c": _block_a(256, 64),
    "5d": _block_a(288, 64),
    "6a": "3x3 288 384 3x3, 3x3dbl_1 288 64 1x1, 3x3dbl_2 64 96 3x3, 3x3dbl_3 96 96 3x3",
    "6b": _block_c(128),
    "6c": _block_c(160),
    "6d": _block_c(160),
    "6e": _block_c(192),
    "7a": "3x3_1 768 192 1x1, 3x3_2 192 320 3x3, 7x7x3_1 768 192 1x1, 7x7x3_2 192 192 1x7, "
    "7x7x3_3 192 192 7x1, 7x7x3_4 192 192 3x3",
    "7b": _block_e(1280),
    "7c": _block_e(2048),
}


def is_inception(names: Collection[str]) -> bool:
    """Whether tensors of such names are an Inception v3."""
    return "Conv2d_1a_3x3.conv.weight" in names


def inception_shapes(classes: int) -> dict[str, Shape]:
    """Name and shape of each tensor: weights (O, I, rows, columns), those of norms, classifier."""
    shapes = dict(_tensors("Conv2d_", _STEM))
    for block, convolutions in _BLOCKS.items():
        shapes |= _tensors(f"Mixed_{block}.branch", convolutions)
    return shapes | {"fc.weight": (classes, 2048), "fc.bias": (classes,)}


def _tensors(prefix: str, convolutions: str) -> Iterator[tuple[str, Shape]]:
    for line in convolutions.split(", "):
        name, inputs, outputs, kernel = line.split()
        rows, columns = map(int, kernel.split("x"))
        yield f"{prefix}{name}.conv.weight", (int(outputs), int(inputs), rows, columns)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{prefix}{name}.bn.{part}", (int(outputs),)
