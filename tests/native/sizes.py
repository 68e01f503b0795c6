"""Calls of every kernel at all sizes around its tiles, vectors and chunks."""

from native.calls import Call, CallMaker

# Of every instruction set at once: vectors have 4, 8 or 16 numbers, tiles up to 14 rows and up to
# 6 vectors. Chunks are given where they are used.
ROWS = range(1, 17)
WIDTHS = (*range(1, 36), 47, 48, 49, 63, 64, 65, 79, 95, 97, 111, 112, 113, 127, 128, 129)


def every_size() -> list[Call]:
    make = CallMaker(1)
    _tokenizer(make)
    _transformer(make)
    for size in (*WIDTHS, 16383, 16384, 16385, 40000):
        make.optimizer(size)
    for c in WIDTHS:
        make.depthwise((1, 3, 4, c), 3)
    for kernel in (1, 2, 3, 5):
        for stride in (1, 2, 3):
            for pads in ((0, 0), (0, 1), (1, 2), (2, 2)):
                make.depthwise((2, 7, 8, 17), kernel, stride, pads)
    make.optimizer(3, 5, 7, finite=False)
    return make.calls


def _tokenizer(make: CallMaker) -> None:
    # 3x3 of whole vectors and of others, with tiles that hang over, at least 16 of them
    maps = (1, 13, 14), (2, 9, 19), (3, 8, 16), (1, 17, 18)
    channels = (16, 16), (16, 48), (32, 32), (48, 16), (64, 80), (80, 32), (96, 112)
    channels += (8, 8), (24, 40), (4, 12), (20, 32), (32, 20), (3, 32), (32, 3), (17, 33)
    for i, (c, outputs) in enumerate(channels):
        b, y, x = maps[i % len(maps)]
        make.convolutions((b, y, x, c), outputs, 3)
        make.convolutions((b, y // 2, x // 2, c), outputs, 3, upsampled=True)
    for kernel in (1, 2, 3, 4, 5):
        for stride in (1, 2, 3):
            for pads in ((0, 0), (0, 1), (1, 1)):
                c, outputs = ((3, 8), (16, 5), (8, 32))[stride - 1]
                make.convolutions((2, 7, 8, c), outputs, kernel, stride, pads)
    for c in WIDTHS:
        groups = next(g for g in (4, 3, 2, 1) if c % g == 0)
        make.group_norm((2, 3, 5, c), groups, silu=c % 2 == 0)
    for pixels in (1, 255, 256, 257, 513):  # chunks of 256
        for silu in (False, True):
            make.group_norm((1, 1, pixels, 12), 3, silu)
    for codes in WIDTHS:
        make.nearest_code(codes % 9 + 1, codes, codes % 33 + 1)


def _transformer(make: CallMaker) -> None:
    for size in (*WIDTHS, 16383, 16384, 16385):  # chunks of 16,384
        make.gelu(size)
    for c in WIDTHS:
        make.modulation(2, c % 33 + 1, c)  # chunks of 16 tokens
    for rows in ROWS:
        for outputs in range(1, 11):
            make.linear((rows,), WIDTHS[(7 * rows + 5 * outputs) % len(WIDTHS)], outputs)
    for rows in (39, 40, 41, 65):
        for depth, outputs in ((1, 1), (5, 70), (16, 64), (33, 31), (70, 1), (128, 96)):
            make.linear((rows,), depth, outputs)
    for i, width in enumerate(WIDTHS):
        make.stored_linear((i % 5 + 1,), width, WIDTHS[-i], i % 4)
    for outputs in (95, 96, 97, 193):  # parts of 96 outputs, if so many numbers go in
        make.stored_linear((3, 17), 5500, outputs, outputs % 4)
    for kind in range(4):
        make.stored_block([kind] * 4, 1, 2, 16, 0, 1, 30, unit=kind % 2 == 0)
    # scales of 1, 2, 3 ... tokens: every number of queries, and of keys many
    offsets = [n * (n + 1) // 2 for n in range(28)]
    for unit, width in ((True, 16), (False, 32), (True, 48), (False, 64), (True, 80), (True, 128)):
        make.attention(1, 2, width, offsets, 378, unit)
    for tokens in range(1, 34):
        make.attention(2, 1, 16, (0, tokens), tokens, unit=True)
        make.cached_attention(1, 3, 16 * (tokens % 8 + 1), 2 * tokens, tokens, 100, unit=False)
    make.cached_attention(2, 2, 64, 0, 1, 1, unit=True)
    make.cached_attention(1, 2, 64, 424, 256, 680, unit=True)
    make.cached_block(1, 2, 16, 0, 1, 30, unit=False)
    make.cached_block(5, 2, 32, 0, 300, 300, unit=True)  # more rows than fit at once
