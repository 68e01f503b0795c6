"""Image files made by Pillow or by hand, for the tests of the reader of pictures."""

import struct
import zlib
from io import BytesIO


def saved(image, kind="PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(columns, rows, depth, colour, rows_of_bytes: bytes, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand. colour: 0 grey, 2 RGB, 3 palette. before: chunks in front of the pixels."""
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *before,
        (b"IDAT", zlib.compress(rows_of_bytes, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A TIFF by hand: entries (tag, kind, count, value), and ``data``, which begins at 8."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + table + bytes(4)
