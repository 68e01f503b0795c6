"""The encoder and the decoder of the tokenizer, in PyTorch.

Shape suffixes: b batch, c channels, y x rows and columns, l pixels.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from var_tokenizer import TokenizerConfig


def conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size of its map."""
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), conv(c_in, c_out)
        self.norm2, self.conv2 = group_norm(c_out), conv(c_out, c_out)
        self.nin_shortcut = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x_bcyx: Tensor) -> Tensor:
        h_bcyx = self.conv1(F.silu(self.norm1(x_bcyx)))
        h_bcyx = self.conv2(F.silu(self.norm2(h_bcyx)))
        return h_bcyx + self.nin_shortcut(x_bcyx)


class PixelAttention(nn.Module):
    """One head over all pixels, residual: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = conv(channels, channels, 1)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        q_bcl, k_bcl, v_bcl = self.qkv(self.norm(x_bcyx)).flatten(2).chunk(3, dim=1)
        scores_bll = (q_bcl.transpose(1, 2) @ k_bcl) * q_bcl.shape[1] ** -0.5
        mixed_bcl = v_bcl @ scores_bll.softmax(-1).transpose(1, 2)
        return x_bcyx + self.proj_out(mixed_bcl.view_as(x_bcyx))


def middle(channels: int) -> nn.Sequential:
    """(B, C, H, W) -> the same shape."""
    parts = {
        "block_1": ResidualBlock(channels, channels),
        "attn_1": PixelAttention(channels),
        "block_2": ResidualBlock(channels, channels),
    }
    return nn.Sequential(OrderedDict(parts))


def downsample(channels: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, H / 2, W / 2); zeros to the right and below only, as published."""
    parts = {"pad": nn.ZeroPad2d((0, 1, 0, 1)), "conv": nn.Conv2d(channels, channels, 3, stride=2)}
    return nn.Sequential(OrderedDict(parts))


def upsample(channels: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
    parts = {"resize": nn.Upsample(scale_factor=2), "conv": conv(channels, channels)}
    return nn.Sequential(OrderedDict(parts))


class Level(nn.Module):
    """Residual blocks of one resolution, with attention after each where the map is smallest."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(c_out if j else c_in, c_out) for j in range(blocks)
        )
        self.attn = nn.ModuleList(PixelAttention(c_out) for _ in range(blocks if attention else 0))

    def forward(self, x_bcyx: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x_bcyx = block(x_bcyx)
            if self.attn:
                x_bcyx = self.attn[j](x_bcyx)
        return x_bcyx


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, z, H / downsampling, W / downsampling)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = conv(3, config.channels)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            level = Level(c_in, c_out, config.res_blocks, attention=i == last)
            level.downsample = downsample(c_out) if i != last else nn.Identity()
            self.down.append(level)
        self.mid = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv(widths[-1], config.latent_channels)

    def forward(self, image_bcyx: Tensor) -> Tensor:
        x_bcyx = self.conv_in(image_bcyx)
        for level in self.down:
            x_bcyx = level.downsample(level(x_bcyx))
        return self.conv_out(F.silu(self.norm_out(self.mid(x_bcyx))))


class Decoder(nn.Module):
    """(B, z, h, w) -> (B, 3, h * downsampling, w * downsampling); level 0 is the largest map."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = conv(config.latent_channels, widths[-1])
        self.mid = middle(widths[-1])
        self.up = nn.ModuleList()
        for i, c_out in enumerate(widths):
            c_in = widths[min(i + 1, last)]
            level = Level(c_in, c_out, config.res_blocks + 1, attention=i == last)
            level.upsample = upsample(c_out) if i else nn.Identity()
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], 3)

    def forward(self, latent_bcyx: Tensor) -> Tensor:
        x_bcyx = self.mid(self.conv_in(latent_bcyx))
        for level in reversed(self.up):
            x_bcyx = level.upsample(level(x_bcyx))
        return self.conv_out(F.silu(self.norm_out(x_bcyx)))
