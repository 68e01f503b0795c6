"""The tensors of a tokenizer, from its configuration alone.

A file may claim any configuration, so this builds nothing. A test compares it with built ones.
"""

from collections.abc import Iterator

from var_tokenizer.config import TokenizerConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def tokenizer_shapes(config: TokenizerConfig) -> Shapes:
    """Name and shape (convolutions OIHW) of every tensor of a native file, in order."""
    z, widths = config.latent_channels, [config.channels * m for m in config.channel_multipliers]
    top, last = widths[-1], len(widths) - 1
    c = config.channels
    yield from _conv("encoder.conv_in", 3, c)
    for i, width in enumerate(widths):
        yield from _level(f"encoder.down.{i}", c, width, config.res_blocks, i == last)
        if i != last:
            yield from _conv(f"encoder.down.{i}.downsample.conv", width, width)
        c = width
    yield from _middle("encoder.mid", top)
    yield from _norm("encoder.norm_out", top)
    yield from _conv("encoder.conv_out", top, z)
    yield from _conv("decoder.conv_in", z, top)
    yield from _middle("decoder.mid", top)
    for i, width in enumerate(widths):
        c = widths[min(i + 1, last)]
        yield from _level(f"decoder.up.{i}", c, width, config.res_blocks + 1, i == last)
        if i:
            yield from _conv(f"decoder.up.{i}.upsample.conv", width, width)
    yield from _norm("decoder.norm_out", widths[0])
    yield from _conv("decoder.conv_out", widths[0], 3)
    yield "quantize.ema_vocab_hit_SV", (len(config.scales), config.vocab_size)
    yield "quantize.embedding.weight", (config.vocab_size, z)
    for p in range(config.phi_count):
        yield from _conv(f"quantize.quant_resi.qresi_ls.{p}", z, z)
    yield from _conv("quant_conv", z, z)
    yield from _conv("post_quant_conv", z, z)


def _level(name: str, c_in: int, c_out: int, blocks: int, attention: bool) -> Shapes:
    for j in range(blocks):
        yield from _residual(f"{name}.block.{j}", c_out if j else c_in, c_out)
    for j in range(blocks if attention else 0):
        yield from _pixel_attention(f"{name}.attn.{j}", c_out)


def _middle(name: str, c: int) -> Shapes:
    yield from _residual(f"{name}.block_1", c, c)
    yield from _pixel_attention(f"{name}.attn_1", c)
    yield from _residual(f"{name}.block_2", c, c)


def _residual(name: str, c_in: int, c_out: int) -> Shapes:
    yield from _norm(f"{name}.norm1", c_in)
    yield from _conv(f"{name}.conv1", c_in, c_out)
    yield from _norm(f"{name}.norm2", c_out)
    yield from _conv(f"{name}.conv2", c_out, c_out)
    if c_in != c_out:
        yield from _conv(f"{name}.nin_shortcut", c_in, c_out, 1)


def _pixel_attention(name: str, c: int) -> Shapes:
    yield from _norm(f"{name}.norm", c)
    yield from _conv(f"{name}.qkv", c, 3 * c, 1)
    yield from _conv(f"{name}.proj_out", c, c, 1)


def _norm(name: str, c: int) -> Shapes:
    yield f"{name}.weight", (c,)
    yield f"{name}.bias", (c,)


def _conv(name: str, c_in: int, c_out: int, kernel: int = 3) -> Shapes:
    yield f"{name}.weight", (c_out, c_in, kernel, kernel)
    yield f"{name}.bias", (c_out,)
