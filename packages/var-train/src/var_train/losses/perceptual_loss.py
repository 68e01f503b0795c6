"""The perceptual loss, from features of a network that the user supplies."""

import re
import shlex
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer import Conv2d, layout
from var_tokenizer.common import InputError, format_of, quoted, read_header, read_tensors

from var_train.operators import mean

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, as torchvision's networks expect
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_LAYER = re.compile(r"(?:features\.)?([0-9]{1,4})\.(weight|bias)")


class PerceptualNetwork(nn.Cell):
    """Images (B, Y, X, 3) in [-1, 1] to maps (B, y, x, C), fine to coarse, by frozen weights."""

    def distance(self, output_byxc: Tensor, images_byxc: Tensor) -> Tensor:
        """The perceptual loss: mean squared distance of unit features (LPIPS, arXiv:1801.03924)."""
        total = 0.0
        ours, theirs = self.construct(output_byxc), self.construct(images_byxc)
        for i in range(len(ours)):
            error = _unit(ours[i]) - _unit(theirs[i])
            total = total + mean((error * error).sum(3))
        return total / len(ours)


class FeatureNetwork(PerceptualNetwork):
    """A VGG-like stack of 3x3 convolutions, ReLU and 2x2 maximum pooling.

    Its file is .safetensors with torchvision's names, ``features.N.weight`` (O, I, 3, 3) and
    ``features.N.bias`` (O,). Layers are numbered as torchvision does: a convolution 2 above the
    one before it follows a ReLU, one 3 above follows a ReLU and a pooling. Other names are
    ignored, so ``torchvision.models.vgg16(...).state_dict()``, saved unchanged, will do. Images are
    (B, Y, X, 3) in [-1, 1]; the network normalizes them by ImageNet's mean and deviation.
    """

    def __init__(self, layers: list[tuple[bool, np.ndarray, np.ndarray]]) -> None:
        """layers: (whether it pools first, weight (O, I, 3, 3), bias (O,)) of each convolution."""
        super().__init__()
        self.pools_first = tuple(pools for pools, _, _ in layers)
        self.convs = nn.CellList(
            [Conv2d(None, w.shape[1], w.shape[0], w.shape[2]) for _, w, _ in layers]
        )
        for conv, (_, weight, bias) in zip(self.convs, layers, strict=True):
            conv.weight = _frozen(weight.transpose(0, 2, 3, 1))
            conv.bias = _frozen(bias)
        self.maps, self.pixels = layout.maps(), layout.pixels()
        self.pool = nn.MaxPool2d(2, 2)
        self.gain, self.offset = Tensor(0.5 / _STD), Tensor((0.5 - _MEAN) / _STD)

    @classmethod
    def load(cls, path: Path) -> "FeatureNetwork":
        """Raises InputError if the file is missing or holds no such network."""
        path, shown = Path(path), quoted(path)
        if path.is_file() and format_of(path) == "PyTorch":
            raise InputError(
                f"{shown}: a PyTorch checkpoint; expected .safetensors, which this makes of a "
                "plain state dict (var-convert is for the models of VAR): "
                f"{safetensors_command(path)}"
            )
        _, header = read_header(path)
        matches = {name: match for name in header if (match := _LAYER.fullmatch(name))}
        arrays = read_tensors(path, {name: header[name] for name in matches})
        found = {
            (int(match[1]), match[2]): arrays[name].astype(np.float32)
            for name, match in matches.items()
        }
        for (number, kind), array in found.items():
            if not np.isfinite(array).all():
                raise InputError(
                    f"{shown}: tensor features.{number}.{kind} holds NaN or infinity; expected "
                    "finite weights"
                )
        numbers = sorted(number for number, kind in found if kind == "weight")
        channels = 3
        layers: list[tuple[bool, np.ndarray, np.ndarray]] = []
        for before, number in zip([None, *numbers], numbers, strict=False):
            weight, bias = found[number, "weight"], found.get((number, "bias"))
            where = f"{shown}: features.{number}"
            if weight.ndim != 4 or weight.shape[1:] != (channels, 3, 3):
                raise InputError(
                    f"{where}.weight is {weight.shape}; expected (outputs, {channels}, 3, 3)"
                )
            if bias is None or bias.shape != weight.shape[:1]:
                raise InputError(f"{where}.bias is missing or not ({weight.shape[0]},)")
            step = 2 if before is None else number - before
            if step not in (2, 3):
                raise InputError(f"{where} follows features.{before}; expected 2 or 3 layers later")
            layers.append((step == 3, weight, bias))
            channels = weight.shape[0]
        if not layers:
            raise InputError(f"{shown}: no features.N.weight; expected a VGG-like network")
        return cls(layers)

    def construct(self, images_byxc: Tensor) -> tuple[Tensor, ...]:
        """The maps (B, y, x, C) before each pooling, and the last one: fine to coarse."""
        x_byxc = images_byxc * self.gain + self.offset
        maps: tuple[Tensor, ...] = ()
        for i in range(len(self.convs)):
            if self.pools_first[i]:
                maps = (*maps, x_byxc)
                x_byxc = self.pool(x_byxc.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
            x_byxc = ops.relu(self.pixels(self.convs[i](self.maps(x_byxc))))
        return (*maps, x_byxc)


def safetensors_command(path: Path) -> str:
    """What makes .safetensors of a plain state dict in PyTorch's file."""
    script = (
        "import torch, safetensors.torch as s; s.save_file("
        f"torch.load({quoted(path)!r}, weights_only=True), "
        f"{quoted(path.with_suffix('.safetensors'))!r})"
    )
    return f"python -c {shlex.quote(script)}"


def _unit(x_byxc: Tensor) -> Tensor:
    return x_byxc * ops.rsqrt((x_byxc * x_byxc).sum(3, keepdims=True) + 1e-10)


def _frozen(array: np.ndarray) -> Parameter:
    return Parameter(Tensor(np.ascontiguousarray(array)), requires_grad=False)
