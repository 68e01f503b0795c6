"""The adversarial loss: a patch discriminator sharpens reconstructions (arXiv:1611.07004)."""

from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import Conv2d, GroupNorm, layout
from var_tokenizer.common import InputError, check_integer, check_number

from var_train.operators import mean, total
from var_train.optimization.adamw import AdamWConfig

_MOST_ADAPTIVE = 1e4  # the published bound of the adaptive weight


@dataclass(frozen=True)
class AdversaryConfig:
    """The adversarial loss."""

    weight: float = 0.0
    """Weight of the loss, before the adaptive weight; 0 trains without a discriminator."""
    start: float = 0.5
    """Share of the steps before it starts, while reconstructions are not worth judging yet."""
    channels: int = 64
    """Channels of the discriminator's first layer, a multiple of 32."""
    layers: int = 2
    """How often the resolution is halved; each time the channels double, at most to 8 times."""
    augment: bool = True
    """Shift, recolour and cut what the discriminator sees (``data.augmentation``)."""
    optimizer: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(learning_rate=2e-4, betas=(0.5, 0.9), weight_decay=0.0)
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_number("weight", self.weight, least=0)
        check_number("start", self.start, least=0, below=1)
        check_integer("layers", self.layers, 1)
        check_integer("channels", self.channels, 32)
        if self.channels % 32:
            raise InputError(f"channels is {self.channels}; expected a multiple of 32")


class PatchDiscriminator(nn.Cell):
    """Images (B, Y, X, 3) in [-1, 1] to a logit for each patch, (B, y, x, 1): real is positive.

    It uses group norm, not the original's batch norm, so a verdict depends on one image alone.
    """

    def __init__(self, config: AdversaryConfig, rng: np.random.Generator) -> None:
        super().__init__()
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        self.conv_in = Conv2d(rng, 3, widths[0], 4, 2, (1, 1))
        self.convs = nn.CellList(
            [
                Conv2d(rng, widths[i], widths[i + 1], 4, 2, (1, 1))
                if i + 1 < config.layers
                else Conv2d(rng, widths[i], widths[i + 1], 3)
                for i in range(config.layers)
            ]
        )
        self.norms = nn.CellList([GroupNorm(width) for width in widths[1:]])
        self.conv_out = Conv2d(rng, widths[-1], 1, 3)
        self.maps, self.pixels, self.fork = layout.maps(), layout.pixels(), layout.fork()

    def construct(self, images_byxc: Tensor) -> Tensor:
        x_byxc = self._leaky(self.conv_in(self.maps(images_byxc)))
        for i in range(len(self.convs)):
            x_byxc = self._leaky(self.norms[i](self.convs[i](x_byxc)))
        return self.pixels(self.conv_out(x_byxc))

    def _leaky(self, x: Tensor) -> Tensor:
        x, same = self.fork(x)
        return ops.maximum(x, 0.2 * same)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: 0 if all real logits are above 1, all reconstructed below -1."""
    return 0.5 * (mean(ops.relu(1 - real)) + mean(ops.relu(1 + fake)))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """VQGAN's weight of the adversarial loss (arXiv:2012.09841, equation 7), at most 1e4.

    Both arguments are gradients of a loss at the decoder's last layer; the weight makes them
    equally long.
    """
    ratio = _norm(reconstruction) / (_norm(adversarial) + 1e-4)
    return ops.minimum(ratio, _MOST_ADAPTIVE)


def _norm(gradient: Tensor) -> Tensor:
    return ops.sqrt(total(gradient * gradient))
