"""The convolutional encoder and decoder around the quantizer (arXiv:2012.09841, VQGAN).

Feature maps are in the layout of the device (see ``layout``): channels last on the CPU. Cells and
parameters have the names of the published checkpoints. A cell draws its initial weights from a
NumPy generator; None means that a file will supply them (``initialization.py``).
"""

from mindspore import Tensor, nn

from var_tokenizer.config import GROUPS, TokenizerConfig
from var_tokenizer.initialization import Rng, convolution, norm
from var_tokenizer.layout import fork, maps, pixel_attention, pixels
from var_tokenizer.operators import conv2d, conv2d_plus, group_norm


class Conv2d(nn.Cell):
    """A convolution. ``weight`` is (O, k, k, I), the layout that the matrix product needs."""

    def __init__(
        self,
        rng: Rng,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        pads: tuple[int, int] | None = None,
        upsampled: bool = False,
    ) -> None:
        super().__init__()
        self.weight, self.bias = convolution(rng, channels_in, channels_out, kernel)
        self.conv2d = conv2d(kernel, stride, pads, upsampled)

    def construct(self, x_byxc: Tensor) -> Tensor:
        return self.conv2d(x_byxc, self.weight, self.bias)


class Conv2dPlus(Conv2d):
    """A convolution of stride 1 that adds its result to another map."""

    def __init__(self, rng: Rng, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(rng, channels_in, channels_out, kernel)
        self.conv2d = conv2d_plus(kernel)

    def construct(self, x_byxc: Tensor, plus_byxc: Tensor) -> Tensor:  # type: ignore[override]
        return self.conv2d(x_byxc, self.weight, self.bias, plus_byxc)


class GroupNorm(nn.Cell):
    """Normalizes 32 groups of channels; each channel has a learned gain ``weight`` and ``bias``."""

    silu = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = norm(channels)
        self.group_norm = group_norm(GROUPS, silu=self.silu)

    def construct(self, x_byxc: Tensor) -> Tensor:
        return self.group_norm(x_byxc, self.weight, self.bias)


class NormSilu(GroupNorm):
    """silu(norm(x)), which every inner convolution reads; silu(x) is x * sigmoid(x)."""

    silu = True


class ResidualBlock(nn.Cell):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut if the width changes."""

    def __init__(self, rng: Rng, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = NormSilu(channels_in)
        self.conv1 = Conv2d(rng, channels_in, channels_out, 3)
        self.norm2 = NormSilu(channels_out)
        self.conv2 = Conv2dPlus(rng, channels_out, channels_out, 3)
        widens = channels_in != channels_out
        self.nin_shortcut = Conv2d(rng, channels_in, channels_out, 1) if widens else None
        self.fork = fork()

    def construct(self, x_byxc: Tensor) -> Tensor:
        x_byxc, shortcut = self.fork(x_byxc)
        h = self.conv1(self.norm1(x_byxc))
        if self.nin_shortcut is not None:
            shortcut = self.nin_shortcut(shortcut)
        return self.conv2(self.norm2(h), shortcut)


class PixelAttention(nn.Cell):
    """Residual single-head self-attention among the pixels of a map."""

    def __init__(self, rng: Rng, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.qkv = Conv2d(rng, channels, 3 * channels, 1)
        self.proj_out = Conv2dPlus(rng, channels, channels, 1)
        self.scale = channels**-0.5
        self.fork, self.attend = fork(), pixel_attention()

    def construct(self, x_byxc: Tensor) -> Tensor:
        x_byxc, shortcut = self.fork(x_byxc)
        mixed_byxc = self.attend(self.qkv(self.norm(x_byxc)), self.scale)
        return self.proj_out(mixed_byxc, shortcut)


class Middle(nn.Cell):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, rng: Rng, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(rng, channels, channels)
        self.attn_1 = PixelAttention(rng, channels)
        self.block_2 = ResidualBlock(rng, channels, channels)

    def construct(self, x_byxc: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_byxc)))


class Resize(nn.Cell):
    """Halves rows and columns by a strided convolution, or doubles them before a convolution."""

    def __init__(self, rng: Rng, channels: int, upsampled: bool) -> None:
        super().__init__()
        stride, pads = (1, (1, 1)) if upsampled else (2, (0, 1))  # halving pads the end only
        self.conv = Conv2d(rng, channels, channels, 3, stride, pads, upsampled)

    def construct(self, x_byxc: Tensor) -> Tensor:
        return self.conv(x_byxc)


class Level(nn.Cell):
    """The blocks of one resolution, then the resize. At the coarsest, attention follows each."""

    def __init__(
        self,
        rng: Rng,
        channels_in: int,
        channels: int,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.CellList(
            [ResidualBlock(rng, channels if j else channels_in, channels) for j in range(blocks)]
        )
        self.attn = nn.CellList(
            [PixelAttention(rng, channels) for _ in range(blocks if attention else 0)]
        )
        self.downsample = Resize(rng, channels, upsampled=False) if downsample else None
        self.upsample = Resize(rng, channels, upsampled=True) if upsample else None

    def construct(self, x_byxc: Tensor) -> Tensor:
        for j in range(len(self.block)):
            x_byxc = self.block[j](x_byxc)
            if len(self.attn):
                x_byxc = self.attn[j](x_byxc)
        if self.downsample is not None:
            x_byxc = self.downsample(x_byxc)
        if self.upsample is not None:
            x_byxc = self.upsample(x_byxc)
        return x_byxc


class Encoder(nn.Cell):
    """Images (B, H, W, 3) to unquantized maps of z channels, H/f by W/f, f the downsampling."""

    def __init__(self, config: TokenizerConfig, rng: Rng) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        top = len(widths) - 1
        self.maps = maps()
        self.conv_in = Conv2d(rng, 3, config.channels, 3)
        self.down = nn.CellList(
            [
                Level(
                    rng,
                    widths[i - 1] if i else config.channels,
                    widths[i],
                    config.res_blocks,
                    attention=i == top,
                    downsample=i != top,
                )
                for i in range(top + 1)
            ]
        )
        self.mid = Middle(rng, widths[top])
        self.norm_out = NormSilu(widths[top])
        self.conv_out = Conv2d(rng, widths[top], config.latent_channels, 3)

    def construct(self, images_byxc: Tensor) -> Tensor:
        x_byxc = self.conv_in(self.maps(images_byxc))
        for level in self.down:
            x_byxc = level(x_byxc)
        return self.conv_out(self.norm_out(self.mid(x_byxc)))


class Decoder(nn.Cell):
    """Maps of z channels, H/f by W/f, to images (B, H, W, 3), not yet clipped to [-1, 1]."""

    def __init__(self, config: TokenizerConfig, rng: Rng) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        top = len(widths) - 1
        self.conv_in = Conv2d(rng, config.latent_channels, widths[top], 3)
        self.mid = Middle(rng, widths[top])
        self.up = nn.CellList(
            [
                Level(
                    rng,
                    widths[min(i + 1, top)],
                    widths[i],
                    config.res_blocks + 1,
                    attention=i == top,
                    upsample=i != 0,
                )
                for i in range(top + 1)
            ]
        )
        self.norm_out = NormSilu(widths[0])
        self.conv_out = Conv2d(rng, widths[0], 3, 3)
        self.pixels = pixels()

    def features(self, latent_byxz: Tensor) -> Tensor:
        """The input of the last convolution, a map of H by W."""
        x_byxc = self.mid(self.conv_in(latent_byxz))
        for i in range(len(self.up) - 1, -1, -1):
            x_byxc = self.up[i](x_byxc)
        return self.norm_out(x_byxc)

    def construct(self, latent_byxz: Tensor) -> Tensor:
        return self.pixels(self.conv_out(self.features(latent_byxz)))
