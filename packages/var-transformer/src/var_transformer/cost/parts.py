"""The cost of training and generation: products, bytes and launches of each part.

These are counts from the architecture, not measurements. Every operator reads its operands from
memory and writes its results there; a matrix product, a fused attention call and each element-wise
operator is one launch. A backward pass costs two products for each of the forward's, as both
operands get a gradient, and twice the bytes. (Fused attention: five for two, because it computes
the weights again.)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from var_tokenizer import TokenizerConfig

from var_transformer.attention.devices import Device
from var_transformer.attention.segments import Plan, forward_work, gradient_work
from var_transformer.model.config import TransformerConfig
from var_transformer.model.shapes import transformer_shapes


@dataclass(frozen=True)
class Part:
    """madds: multiply-adds. bytes: moved from and to memory."""

    name: str
    madds: float = 0
    bytes: float = 0
    launches: int = 0

    def times(self, n: int) -> "Part":
        return Part(self.name, n * self.madds, n * self.bytes, n * self.launches)

    def plus(self, other: "Part") -> "Part":
        madds, moved = self.madds + other.madds, self.bytes + other.bytes
        return Part(self.name, madds, moved, self.launches + other.launches)

    def seconds(self, device: Device) -> float:
        """The roofline: products or bytes, whichever takes the device longer."""
        return max(2 * self.madds / device.flops, self.bytes / device.bandwidth)


def total(parts: Iterable[Part]) -> Part:
    result = Part("total")
    for part in parts:
        result = result.plus(part)
    return result


def linear(name: str, rows: int, inputs: int, outputs: int, itemsize: int) -> Part:
    """x @ weight + bias, for x (rows, inputs)."""
    moved = rows * inputs + inputs * outputs + rows * outputs
    return Part(name, rows * inputs * outputs, itemsize * moved, 1)


def elementwise(name: str, arrays: int, elements: int, launches: int, itemsize: int) -> Part:
    """``launches`` operators that together read and write ``arrays`` arrays."""
    return Part(name, 0, arrays * elements * itemsize, launches)


def attention(config: TransformerConfig, batch: int, plan: Plan, itemsize: int) -> list[Part]:
    """The attention of one block over all scales, forward and gradient: calls and copies."""
    row = batch * config.width * itemsize  # one token's bytes
    passes = forward_work(plan), gradient_work(plan)
    masks = sum(segment.end**2 for segment in plan if segment.masked)
    madds = 2 * sum(work.scores for work in passes) * batch * config.width
    moved = sum(work.called for work in passes) * row + 3 * masks
    copied = sum(work.copied for work in passes) * row
    calls, copies = sum(work.calls for work in passes), sum(work.copies for work in passes)
    return [
        Part("attention", madds, moved, calls),
        Part("attention's copies", 0, copied, copies),
    ]


def block(config: TransformerConfig, rows: int, itemsize: int, fused: bool = False) -> list[Part]:
    """One block without its attention, forward. fused: with the operators of ``ascend_c``."""
    c, tokens = config.width, rows * config.width
    unit = 4 if config.qk_l2_norm else 0  # square, sum, root and product, of queries and keys
    norms = (4, 2) if fused else (12, 6)  # norm, scale, shift; twice
    heads = elementwise("QK norm, scale", 2 * 2 * unit + 2, tokens, 2 * unit + 1, itemsize)
    if fused and config.qk_l2_norm:  # queries, keys and values are read and written
        heads = Part("QK norm, scale", 0, 6 * tokens * itemsize, 1)
    return [
        elementwise("AdaLN norm, modulate", norms[0], tokens, norms[1], itemsize),
        linear("qkv", rows, c, 3 * c, itemsize),
        heads,
        linear("projection", rows, c, c, itemsize),
        linear("feed-forward", rows, c, 4 * c, itemsize).plus(linear("", rows, 4 * c, c, itemsize)),
        elementwise("GELU", 2, 4 * tokens, 1, itemsize),
        elementwise("gates, residuals", 10, tokens, 4, itemsize),
    ]


def training_step(config: TransformerConfig, batch: int, plan: Plan, device: Device) -> list[Part]:
    """Forward, backward and AdamW for ``batch`` images, each part summed over the blocks.

    The operators of ``ascend_c`` save nothing here: a gradient computes the composed form again.
    """
    rows, c, itemsize = batch * config.schedule.length, config.width, device.itemsize
    parts = [
        _trained(linear("embedding", rows, config.latent_channels, c, itemsize)).plus(
            elementwise("", 6, rows * c, 3, itemsize)
        ),
        _trained(_modulation(config, batch, itemsize)),
    ]
    parts += [_trained(part).times(config.depth) for part in block(config, rows, itemsize)]
    attended = attention(config, batch, plan, itemsize)
    parts[5:5] = [part.times(config.depth) for part in attended]
    parts.append(_trained(_head(config, batch, rows, itemsize)))
    parts.append(elementwise("loss", 4, rows * config.vocab_size, 2, 4))
    parts.append(_adamw(config, itemsize))
    return parts


def _trained(forward: Part) -> Part:
    return forward.times(3)


def _modulation(config: TransformerConfig, rows: int, itemsize: int) -> Part:
    c, layers = config.width, 1 if config.shared_adaln else config.depth
    return linear("AdaLN vectors", rows, c, 6 * c, itemsize).times(layers)


def _head(config: TransformerConfig, images: int, rows: int, itemsize: int) -> Part:
    c = config.width
    norm = elementwise("head", 6, rows * c, 3, itemsize)
    modulation = linear("", images, c, 2 * c, itemsize)
    return norm.plus(modulation).plus(linear("", rows, c, config.vocab_size, itemsize))


def parameter_count(config: TransformerConfig) -> int:
    """Elements of all weights."""
    return sum(math.prod(shape) for _, shape in transformer_shapes(config))


def _adamw(config: TransformerConfig, itemsize: int) -> Part:
    """float32 weight, gradient and two moments, three of them written; and a cast copy."""
    count, tensors = parameter_count(config), len(list(transformer_shapes(config)))
    copy = itemsize if itemsize < 4 else 0
    moved = count * (7 * 4 + copy)
    return Part("AdamW", 0, moved, tensors)


def generation(
    config: TransformerConfig,
    codec: TokenizerConfig,
    batch: int,
    in_place: bool,
    device: Device,
    fused: bool = False,
) -> list[Part]:
    """A generation of ``batch`` images with guidance: a pass for each scale, and the decoder.

    in_place: keys and values are written into their cache; else old and new are joined. fused:
    with the operators of ``ascend_c``, of which one writes the cache.
    """
    images, itemsize = 2 * batch, device.itemsize
    c, schedule = config.width, config.schedule
    named = {part.name: Part(part.name) for part in block(config, 1, itemsize)}
    attended, written = Part("attention"), Part("cache")
    ends, head = Part("embedding"), Part("head")
    for tokens, end in zip(schedule.tokens, schedule.offsets[1:], strict=True):
        rows = images * tokens
        for part in block(config, rows, itemsize, fused):
            named[part.name] = named[part.name].plus(part.times(config.depth))
        called = (2 * tokens + 2 * end) * images * c * itemsize
        call = Part("attention", 2 * tokens * end * images * c, called, 1)
        attended = attended.plus(call.times(config.depth))
        stored = 2 * (tokens if in_place else end) * images * c * itemsize
        write = Part("cache", 0, 2 * stored, 1 if in_place else 2)
        if not (fused and config.qk_l2_norm):
            written = written.plus(write.times(config.depth))
        ends = ends.plus(linear("", rows, config.latent_channels, c, itemsize))
        head = head.plus(_head(config, images, rows, itemsize))
    parts = [ends, _modulation(config, images, itemsize), *named.values()]
    parts.insert(5, attended)
    parts.insert(5, written)
    return [*parts, head, decoder(codec, batch, itemsize)]


def decoder(codec: TokenizerConfig, batch: int, itemsize: int) -> Part:
    """The tokenizer's decoder, latent map to image; group norms and SiLU take three passes each."""
    rows, columns = codec.schedule.sizes[-1]
    pixels = batch * rows * columns
    widths = [codec.channels * multiplier for multiplier in codec.channel_multipliers]
    c = widths[-1]
    parts: list[Part] = []

    def convolution(pixels: int, inputs: int, outputs: int, kernel: int = 9) -> None:
        one = linear("", pixels, kernel * inputs, outputs, itemsize)
        moved = itemsize * (pixels * (inputs + outputs) + kernel * inputs * outputs)
        parts.append(replace(one, bytes=moved))

    def residual(pixels: int, inputs: int, outputs: int) -> None:
        convolution(pixels, inputs, outputs)
        convolution(pixels, outputs, outputs)
        if inputs != outputs:
            convolution(pixels, inputs, outputs, 1)
        parts.append(elementwise("", 14, pixels * outputs, 5, itemsize))

    def self_attention(pixels: int, c: int) -> None:
        convolution(pixels, c, 3 * c, 1)
        scores = pixels * rows * columns
        parts.append(Part("", 2 * scores * c, 4 * scores * itemsize, 3))
        convolution(pixels, c, c, 1)

    convolution(pixels, codec.latent_channels, codec.latent_channels)
    convolution(pixels, codec.latent_channels, c)
    residual(pixels, c, c)
    self_attention(pixels, c)
    residual(pixels, c, c)
    for level in reversed(range(len(widths))):
        for _ in range(codec.res_blocks + 1):
            residual(pixels, c, widths[level])
            c = widths[level]
            if level == len(widths) - 1:
                self_attention(pixels, c)
        if level:
            pixels *= 4
            convolution(pixels, c, c)
    convolution(pixels, c, 3)
    return replace(total(parts), name="decoder")
