"""What a training step and a generation cost: products, bytes, launches and memory of each part.

Counted from the architecture, not measured. Every operator reads its operands from memory and
writes its results there; a matrix product, a fused attention call and each element-wise operator
is one launch. A backward pass costs two products for each of the forward's, as both operands get
a gradient (fused attention five for two: it computes the weights again), and twice the bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from var_tokenizer import TokenizerConfig

from var_transformer.attention.devices import Device
from var_transformer.attention.segments import Plan, forward_work, gradient_work
from var_transformer.model.config import TransformerConfig


@dataclass(frozen=True)
class Part:
    """madds: multiply-adds. bytes: moved from and to memory. memory: bytes that stay meanwhile."""

    name: str
    madds: float = 0
    bytes: float = 0
    launches: int = 0
    memory: float = 0

    def times(self, count: int) -> "Part":
        values = (self.madds, self.bytes, self.launches, self.memory)
        return Part(self.name, *(count * value for value in values))

    def plus(self, other: "Part") -> "Part":
        return Part(
            self.name,
            self.madds + other.madds,
            self.bytes + other.bytes,
            self.launches + other.launches,
            self.memory + other.memory,
        )

    def seconds(self, device: Device) -> float:
        """The roofline: products or bytes, whichever takes the device longer."""
        return max(2 * self.madds / device.flops, self.bytes / device.bandwidth)


def total(parts: Iterable[Part]) -> Part:
    result = Part("total")
    for part in parts:
        result = result.plus(part)
    return result


def linear(name: str, rows: int, inputs: int, outputs: int, number: int) -> Part:
    """x @ weight + bias of so many rows."""
    moved = rows * inputs + inputs * outputs + rows * outputs
    return Part(name, rows * inputs * outputs, number * moved, 1, number * rows * outputs)


def elementwise(name: str, arrays: int, elements: int, launches: int, number: int) -> Part:
    """So many operators that together read and write ``arrays`` arrays; half of them stay."""
    return Part(name, 0, arrays * elements * number, launches, launches * elements * number)


def attention(config: TransformerConfig, batch: int, plan: Plan, number: int) -> list[Part]:
    """The attention of one block over all scales, forward and gradient: its calls, its copies."""
    row = batch * config.width * number  # one token's bytes
    forward = forward_work(plan)
    work = forward.plus(gradient_work(plan))
    masks = sum(segment.end**2 for segment in plan if segment.masked)
    madds = 2 * work.scores * batch * config.width
    moved = work.called * row + 3 * masks
    return [
        Part("attention", madds, moved, work.calls, config.schedule.length * row),
        Part("attention's copies", 0, work.copied * row, work.copies),
    ]


def block(config: TransformerConfig, rows: int, number: int, fused: bool = False) -> list[Part]:
    """One block but for its attention, forward. fused: with the operators of ``ascend_c``."""
    c, tokens = config.width, rows * config.width
    unit = 4 if config.qk_l2_norm else 0  # square, sum, root and product, of queries and keys
    norms = (4, 2) if fused else (12, 6)  # norm, scale, shift; twice
    heads = elementwise("QK norm, scale", 2 * 2 * unit + 2, tokens, 2 * unit + 1, number)
    if fused and config.qk_l2_norm:  # queries, keys and values are read and written
        heads = Part("QK norm, scale", 0, 6 * tokens * number, 1, 3 * tokens * number)
    return [
        elementwise("AdaLN norm, modulate", norms[0], tokens, norms[1], number),
        linear("qkv", rows, c, 3 * c, number),
        heads,
        linear("projection", rows, c, c, number),
        linear("feed-forward", rows, c, 4 * c, number).plus(linear("", rows, 4 * c, c, number)),
        elementwise("GELU", 2, 4 * tokens, 1, number),
        elementwise("gates, residuals", 10, tokens, 4, number),
    ]


def training_step(
    config: TransformerConfig,
    batch: int,
    plan: Plan,
    device: Device,
    fused: bool = False,
) -> list[Part]:
    """Forward, backward and AdamW of ``batch`` images, every part of all blocks together.

    fused: the forward pass has the operators of ``ascend_c``; the gradient is composed.
    """
    rows, c, number = batch * config.schedule.length, config.width, device.number
    parts = [
        _trained(linear("embedding", rows, config.latent_channels, c, number)).plus(
            elementwise("", 6, rows * c, 3, number)
        ),
        _trained(_modulation(config, batch, number)),
    ]
    composed = block(config, rows, number)
    for part, plain in zip(block(config, rows, number, fused), composed, strict=True):
        parts.append(_trained(part, plain).times(config.depth))
    attended = attention(config, batch, plan, number)
    parts[5:5] = [part.times(config.depth) for part in attended]
    parts.append(_trained(_head(config, batch, rows, number)))
    parts.append(elementwise("loss", 4, rows * config.vocab_size, 2, 4))
    parts.append(_adamw(config, number))
    return parts


def _trained(forward: Part, differentiated: Part | None = None) -> Part:
    gradient = replace((differentiated or forward).times(2), memory=0)
    return forward.plus(gradient)


def _modulation(config: TransformerConfig, rows: int, number: int) -> Part:
    c, layers = config.width, 1 if config.shared_adaln else config.depth
    return linear("AdaLN vectors", rows, c, 6 * c, number).times(layers)


def _head(config: TransformerConfig, images: int, rows: int, number: int) -> Part:
    c = config.width
    norm = elementwise("head", 6, rows * c, 3, number)
    modulation = linear("", images, c, 2 * c, number)
    return norm.plus(modulation).plus(linear("", rows, c, config.vocab_size, number))


def parameter_count(config: TransformerConfig) -> int:
    """Numbers in all weights."""
    c, k = config.width, len(config.schedule)
    scale = config.heads if config.qk_l2_norm else 0
    of_block = 3 * c * c + 2 * c + scale + c * c + c + 8 * c * c + 5 * c
    vectors = 6 * c * c + 6 * c
    modulation = vectors + 6 * c * config.depth if config.shared_adaln else vectors * config.depth
    embeddings = (config.num_classes + 1 + config.schedule.tokens[0] + config.schedule.length) * c
    ends = (config.latent_channels + 1) * c + k * c + (c + 1) * 2 * c
    return config.depth * of_block + modulation + embeddings + ends + (c + 1) * config.vocab_size


def _adamw(config: TransformerConfig, number: int) -> Part:
    """float32 weight, gradient and two moments, three of them written; and a cast copy."""
    count = parameter_count(config)
    tensors = config.depth * (11 if config.shared_adaln else 12) + 10
    copy = number if number < 4 else 0
    moved = count * (7 * 4 + copy)
    return Part("AdamW", 0, moved, tensors, count * (4 * 4 + copy))


def generation(
    config: TransformerConfig,
    codec: TokenizerConfig,
    batch: int,
    in_place: bool,
    device: Device,
    fused: bool = False,
) -> list[Part]:
    """``batch`` images with guidance: every scale's pass, and the decoder.

    in_place: keys and values are written into their cache; else old and new are joined. fused:
    with the operators of ``ascend_c``, of which one writes the cache.
    """
    images, number = 2 * batch, device.number
    c, schedule = config.width, config.schedule
    named = {part.name: Part(part.name) for part in block(config, 1, number)}
    attended, written = Part("attention"), Part("cache")
    ends, head = Part("embedding"), Part("head")
    for tokens, end in zip(schedule.tokens, schedule.offsets[1:], strict=True):
        rows = images * tokens
        for part in block(config, rows, number, fused):
            named[part.name] = named[part.name].plus(part.times(config.depth))
        called = (2 * tokens + 2 * end) * images * c * number
        call = Part("attention", 2 * tokens * end * images * c, called, 1)
        attended = attended.plus(call.times(config.depth))
        kept = 2 * (tokens if in_place else end) * images * c * number
        write = Part("cache", 0, 2 * kept, 1 if in_place else 2)
        if not (fused and config.qk_l2_norm):
            written = written.plus(write.times(config.depth))
        ends = ends.plus(linear("", rows, config.latent_channels, c, number))
        head = head.plus(_head(config, images, rows, number))
    # activations of the last scale, and of the cache while old and new are both held
    whole = 2 * config.depth * schedule.length * images * c * number
    past = whole * schedule.offsets[-2] / schedule.length / config.depth
    written = replace(written, memory=whole + (0 if in_place else past))
    rest = [replace(part, memory=part.memory / config.depth) for part in named.values()]
    parts = [replace(ends, memory=0), _modulation(config, images, number), *rest]
    parts.insert(5, attended)
    parts.insert(5, written)
    return [*parts, replace(head, memory=0), decoder(codec, batch, number)]


def decoder(codec: TokenizerConfig, batch: int, number: int) -> Part:
    """The tokenizer's decoder, latent map to image; group norms and SiLU three passes each."""
    rows, columns = codec.schedule.sizes[-1]
    pixels = batch * rows * columns
    widths = [codec.channels * multiplier for multiplier in codec.channel_multipliers]
    c = widths[-1]
    part = Part("decoder")

    def convolution(pixels: int, inputs: int, outputs: int, kernel: int = 9) -> None:
        nonlocal part
        one = linear("", pixels, kernel * inputs, outputs, number)
        moved = number * (pixels * (inputs + outputs) + kernel * inputs * outputs)
        part = part.plus(replace(one, bytes=moved, memory=0))

    def residual(pixels: int, inputs: int, outputs: int) -> None:
        nonlocal part
        convolution(pixels, inputs, outputs)
        convolution(pixels, outputs, outputs)
        if inputs != outputs:
            convolution(pixels, inputs, outputs, 1)
        part = part.plus(replace(elementwise("", 14, pixels * outputs, 5, number), memory=0))

    def self_attention(pixels: int, c: int) -> None:
        nonlocal part
        convolution(pixels, c, 3 * c, 1)
        scores = pixels * rows * columns
        part = part.plus(Part("", 2 * scores * c, 4 * scores * number, 3))
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
    return replace(part, memory=6 * pixels * c * number)
