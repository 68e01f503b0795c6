"""The networks whose features judge images, behind one interface.

A network is the default one, EfficientNet-Lite0, or a file of the user's: Inception v3, which
var-convert makes of PyTorch's, or a VGG-like stack. Figures that depend on a
network carry its name, and saved statistics its identity: those of two networks do not compare.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from mindspore import Tensor
from PIL import Image
from var_tokenizer.common import (
    CLASSES_OF_2015,
    CLASSES_OF_TORCHVISION,
    InputError,
    TensorHeader,
    arrays_checksum,
    check_tensors,
    file_digest,
    format_of,
    inception_shapes,
    is_inception,
    one_at_a_time,
    quoted,
    read_header,
    read_tensors,
    to_floats,
)

from var_train.judging import efficientnet, inception
from var_train.losses.perceptual_loss import (
    FeatureNetwork,
    PerceptualNetwork,
    safetensors_command,
)

DEFAULT_NETWORK = "EffLite0"
NETWORK_BYTES = 2**26  # an image in a network at 299 px, at most
_AT_ONCE = 10  # images: their maps nearly fit into the processor's cache


@dataclass(frozen=True)
class Features:
    """What a network says of B images."""

    pooled_bf: np.ndarray
    """(B, F) float32: the last map's means over its pixels, of the Frechet distance and others."""
    logits_bk: np.ndarray | None
    """(B, K) float32, of the Inception Score and class probabilities; None without a classifier."""
    spatial_bf: np.ndarray | None
    """(B, S) float32, of sFID; None for a network that it is not defined for."""


class JudgeNetwork(Protocol):
    """A network that judges.

    name: of its Frechet distance: "FID" for the Inception of 2015 alone, "FD-..." for any other.
    identity: a digest of its weights.
    """

    name: str
    identity: str

    def features(self, images_byxc: np.ndarray) -> Features:
        """Of uint8 images (B, Y, X, 3) of any size, which it resizes as its training did.

        Raises InputError for another type or shape.
        """


def load_network(name_or_path: str | Path | None) -> JudgeNetwork:
    """The default network for None and DEFAULT_NETWORK, otherwise that of a .safetensors file.

    Raises InputError if the package of the default is missing, and for a file that is missing,
    holds another network, or has tensors that are missing, of other shapes or not finite.
    """
    if name_or_path is None or str(name_or_path) == DEFAULT_NETWORK:
        return _EfficientNetLite()
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"{quoted(path)}: no such file; expected a network, .safetensors, or {DEFAULT_NETWORK}"
        )
    try:
        found = format_of(path)
    except OSError as error:
        raise InputError(f"{quoted(path)}: cannot read it: {error.strerror}") from error
    if found == "PyTorch":
        raise InputError(
            f"{quoted(path)}: a PyTorch checkpoint; expected .safetensors, which var-convert makes "
            "of Inception v3 (var-convert IT inception.safetensors), and this of a VGG-like one: "
            f"{safetensors_command(path)}"
        )
    _, header = read_header(path)
    if is_inception(header):
        return _InceptionV3(path, header)
    if not any(name.startswith("features.") for name in header):
        raise InputError(
            f"{quoted(path)}: holds {', '.join(quoted(name) for name in list(header)[:3])}; "
            "expected Inception v3 (Conv2d_1a_3x3.conv.weight, ...) or a VGG-like network "
            "(features.0.weight, ...)"
        )
    return _VggLike(path)


def load_perceptual_network(name_or_path: Path) -> PerceptualNetwork:
    """The network of a perceptual loss: DEFAULT_NETWORK, or a VGG-like file.

    Raises InputError as ``load_network`` does.
    """
    if str(name_or_path) == DEFAULT_NETWORK:
        return efficientnet.EfficientNetLevels()
    return FeatureNetwork.load(name_or_path)


def network_digest(name_or_path: Path) -> str:
    """What tells the network of a perceptual loss from others: the SHA-256 of its file."""
    is_default = str(name_or_path) == DEFAULT_NETWORK
    return efficientnet.DIGEST if is_default else file_digest(name_or_path)


class _EfficientNetLite:
    """Images are resized to 224x224, whole, by Pillow's bicubic filter."""

    name = f"FD-{DEFAULT_NETWORK}"

    def __init__(self) -> None:
        weights = efficientnet.read_packaged()
        self.identity = arrays_checksum(weights, f"{self.name} {efficientnet.SIDE}")
        self.network = efficientnet.EfficientNetLite(weights)

    def features(self, images_byxc: np.ndarray) -> Features:
        size = (efficientnet.SIDE, efficientnet.SIDE)
        pooled, logits = [], []
        for images in _parts(images_byxc):
            resized = [Image.fromarray(i).resize(size, Image.Resampling.BICUBIC) for i in images]
            pixels = np.stack([np.asarray(image) for image in resized])
            with one_at_a_time:
                outputs = self.network(Tensor(efficientnet.normalized(pixels)))
                pooled.append(outputs[0].asnumpy())
                logits.append(outputs[1].asnumpy())
        return Features(np.concatenate(pooled), np.concatenate(logits), None)


class _InceptionV3:
    """Images are resized to 299x299, whole, as TensorFlow 1 did for published figures."""

    def __init__(self, path: Path, header: dict[str, TensorHeader]) -> None:
        shown = quoted(path)
        bias = header.get("fc.bias")
        classes = CLASSES_OF_2015 if bias is None or len(bias.shape) != 1 else bias.shape[0]
        if classes not in (CLASSES_OF_2015, CLASSES_OF_TORCHVISION):
            raise InputError(
                f"{shown}: fc.bias has {classes} numbers; expected {CLASSES_OF_2015}, of the "
                f"network of 2015, or {CLASSES_OF_TORCHVISION}, of torchvision's"
            )
        check_tensors(shown, inception_shapes(classes), header)
        weights = read_tensors(path, header)
        for name, array in weights.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise InputError(
                    f"{shown}: tensor {name} holds NaN or infinity, or integers; expected finite "
                    "floating-point weights"
                )
        self.name = "FID" if classes == CLASSES_OF_2015 else "FD-InceptionV3"
        self.identity = arrays_checksum(weights, self.name)
        self.network = inception.Inception(weights)

    def features(self, images_byxc: np.ndarray) -> Features:
        found: list[list[np.ndarray]] = []
        for images in _parts(images_byxc):
            with one_at_a_time:
                outputs = self.network(Tensor(inception.prepared(images)))
                found.append([output.asnumpy() for output in outputs])
        return Features(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class _VggLike:
    """A ``FeatureNetwork``, which reads images at their own size."""

    def __init__(self, path: Path) -> None:
        self.network = FeatureNetwork.load(path)
        self.name, self.identity = f"FD-{quoted(path.stem)}", file_digest(path)

    def features(self, images_byxc: np.ndarray) -> Features:
        pooled = []
        for images in _parts(images_byxc):
            with one_at_a_time:
                last_byxc = self.network(Tensor(to_floats(images)))[-1].asnumpy()
            pooled.append(last_byxc.mean((1, 2), dtype=np.float64).astype(np.float32))
        return Features(np.concatenate(pooled), None, None)


def _parts(images_byxc: np.ndarray) -> list[np.ndarray]:
    """The images, a few at a time; raises InputError unless they are uint8 (B, Y, X, 3), B > 0."""
    shape, dtype = images_byxc.shape, images_byxc.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not images_byxc.size:
        raise InputError(f"images are {dtype} {shape}; expected uint8 (B, Y, X, 3)")
    return [images_byxc[i : i + _AT_ONCE] for i in range(0, len(images_byxc), _AT_ONCE)]
