"""The networks whose features judge images, behind one interface.

A network is the default one, EfficientNet-Lite0, or a file of the user's: Inception v3, which
var-convert makes of PyTorch's, or a VGG-like stack. Figures that depend on a
network carry its name, and saved statistics its identity: those of two networks do not compare.
"""

import json
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
    replacing,
    to_floats,
    write_tensors,
)

from var_train.judging import efficientnet, inception
from var_train.losses.perceptual_loss import (
    FeatureNetwork,
    PerceptualNetwork,
    safetensors_command,
)

DEFAULT_NETWORK = "EffLite0"
CLASSIFIER = "image classifier"  # the kind of its files
NETWORK_BYTES = 2**26  # an image in a network at 299 px, at most
_MOST_CLASSES = 100_000
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
    described_bd: np.ndarray | None = None
    """(B, D) float32, what classifiers of other classes read; None but for the default network."""


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


class DescribingNetwork(JudgeNetwork, Protocol):
    """One whose ``described_bd`` have D numbers."""

    described: int
    """D."""


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
    metadata, header = read_header(path)
    if metadata.get("kind") == CLASSIFIER:
        return _load_classifier(_EfficientNetLite(), path, metadata, header)
    if is_inception(header):
        return _InceptionV3(path, header)
    if not any(name.startswith("features.") for name in header):
        raise InputError(
            f"{quoted(path)}: holds {', '.join(quoted(name) for name in list(header)[:3])}; "
            "expected Inception v3 (Conv2d_1a_3x3.conv.weight, ...) or a VGG-like network "
            "(features.0.weight, ...)"
        )
    return _VggLike(path)


def default_network() -> DescribingNetwork:
    """EfficientNet-Lite0; raises InputError if its package is missing."""
    return _EfficientNetLite()


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
    described = efficientnet.DESCRIBED

    def __init__(self) -> None:
        weights = efficientnet.read_packaged()
        self.identity = arrays_checksum(weights, f"{self.name} {efficientnet.SIDE}")
        self.network = efficientnet.EfficientNetLite(weights)

    def features(self, images_byxc: np.ndarray) -> Features:
        size = (efficientnet.SIDE, efficientnet.SIDE)
        found: list[list[np.ndarray]] = []
        for images in _parts(images_byxc):
            resized = [Image.fromarray(i).resize(size, Image.Resampling.BICUBIC) for i in images]
            pixels = np.stack([np.asarray(image) for image in resized])
            with one_at_a_time:
                outputs = self.network(Tensor(efficientnet.normalized(pixels)))
                found.append([output.asnumpy() for output in outputs])
        pooled_bf, logits_bk, described_bd = (
            np.concatenate(parts) for parts in zip(*found, strict=True)
        )
        return Features(pooled_bf, logits_bk, None, described_bd)


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


class Classifier:
    """Logits of the user's classes, by a linear map; other features are the network's below."""

    def __init__(
        self,
        network: DescribingNetwork,
        name: str,
        classes: tuple[str, ...],
        tensors: dict[str, np.ndarray],
    ) -> None:
        """tensors: "weight" (K, D) and "bias" (K,), float32."""
        self.classes = classes
        self._network, self._tensors = network, tensors
        self.name = f"FD-{name}"
        head = f"{network.identity} {json.dumps(classes)}"
        self.identity = arrays_checksum(tensors, head)

    def features(self, images_byxc: np.ndarray) -> Features:
        """See ``JudgeNetwork``."""
        found = self._network.features(images_byxc)
        weight_kd, bias_k = self._tensors["weight"], self._tensors["bias"]
        assert found.described_bd is not None
        logits_bk = found.described_bd @ weight_kd.T + bias_k
        return Features(found.pooled_bf, logits_bk, found.spatial_bf)

    def save(self, path: Path) -> None:
        """Writes the classifier without the network below, whole or not at all."""
        metadata = {
            "format": "var-mindspore",
            "kind": CLASSIFIER,
            "classes": json.dumps(self.classes),
            "network": self._network.identity,
        }
        with replacing(path) as temporary:
            write_tensors(temporary, self._tensors, metadata)


def _load_classifier(
    network: DescribingNetwork,
    path: Path,
    metadata: dict[str, str],
    header: dict[str, TensorHeader],
) -> Classifier:
    """What ``Classifier.save`` wrote, by the metadata and the tensors of its header."""
    shown = quoted(path)
    try:
        classes = json.loads(metadata.get("classes", ""))
    except (ValueError, RecursionError):
        classes = None
    if (
        not isinstance(classes, list)
        or not 2 <= len(classes) <= _MOST_CLASSES
        or not all(isinstance(name, str) for name in classes)
        or len(set(classes)) < len(classes)
    ):
        raise InputError(f"{shown}: classes are damaged; expected at least two different names")
    if metadata.get("network") != network.identity:
        raise InputError(
            f"{shown}: a classifier over another network; expected one over {DEFAULT_NETWORK}, as "
            "evaluate classifier makes it"
        )
    shapes = {"weight": (len(classes), network.described), "bias": (len(classes),)}
    check_tensors(shown, shapes, header)
    tensors = read_tensors(path, header)
    for name, array in tensors.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise InputError(f"{shown}: tensor {name} is not finite float32; expected that")
    return Classifier(network, quoted(path.stem), tuple(classes), tensors)


def _parts(images_byxc: np.ndarray) -> list[np.ndarray]:
    """The images, a few at a time; raises InputError unless they are uint8 (B, Y, X, 3), B > 0."""
    shape, dtype = images_byxc.shape, images_byxc.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not images_byxc.size:
        raise InputError(f"images are {dtype} {shape}; expected uint8 (B, Y, X, 3)")
    return [images_byxc[i : i + _AT_ONCE] for i in range(0, len(images_byxc), _AT_ONCE)]
