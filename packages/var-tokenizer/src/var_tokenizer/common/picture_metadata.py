"""Takes metadata out of image files before Pillow opens them.

Pillow parses profiles, comments and EXIF while it opens a file. Damaged metadata would make it
refuse a good picture, and hostile metadata would cost minutes and gigabytes.
"""

import re
import struct


def orientation_of(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block or TIFF file; 1 if it is missing or damaged.

    Not read by Pillow, which loads every entry of the block: each of 65,535 entries of a small
    file can claim the whole file as its value.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (begin,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, begin)
        for at in range(begin + 2, begin + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, at + 8)
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


# start and tables of a frame, restart interval, JFIF, Adobe's note on colours
_JPEG_KEPT = {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE, *range(0xC0, 0xC4), *range(0xC5, 0xC8)}
_JPEG_KEPT |= {*range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_JPEG_SCANS = 100  # progressive files have about ten
_JPEG_MARKER = re.compile(rb"\xff[^\0\xff]", re.DOTALL)


def strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """The parts of a JPEG file that its pixels need, and its EXIF block (or b"").

    Raises ValueError for too many scans.
    """
    if data.count(b"\xff\xda") > _JPEG_SCANS:  # each takes a pass over all pixels, even when empty
        raise ValueError(f"more than {_JPEG_SCANS} scans")
    kept, exif, at = [b"\xff\xd8"], b"", 2
    while found := _JPEG_MARKER.search(data, at):  # past junk and padding
        at = found.start()
        marker = data[at + 1]
        if marker == 0xDA:  # the scan: from here on there are pixels
            return b"".join([*kept, data[at:]]), exif
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # these have no content
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_KEPT:
            kept.append(data[at:end])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", at + 4):
            exif = data[at + 4 : end]
        at = max(end, at + 4)
    return b"".join(kept), exif


_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def strip_png(data: bytes) -> tuple[bytes, bytes]:
    """The parts of a PNG file that its pixels need, and its EXIF block (or b"").

    Pillow refuses a picture for a profile or compressed text above 1 MiB. The frames of an
    animation are dropped, too; the picture that every program shows stays.
    """
    kept, exif, at = [data[:8]], b"", 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        elif kind == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(kept), exif


_GIF_BLOCK = re.compile(rb"[!,;]")  # an extension, an image, the end


def strip_gif(data: bytes) -> bytes:
    """A GIF file without the extensions before its first image, except its control block.

    Pillow joins the parts of a comment one by one, which takes a minute for 16 MiB.
    """
    at = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)  # header and palette
    kept = [data[:at]]
    while (found := _GIF_BLOCK.search(data, at)) and found[0] == b"!":
        at = found.start()
        end = at + 2
        while data[end]:  # parts, each after its length; an empty one ends the list
            end += 1 + data[end]
        end += 1
        if data[at + 1] == 0xF9:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[found.start() :] if found else b""])


# entries that say where the pixels of a TIFF file are and how they are packed
_TIFF_KEPT = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320}
_TIFF_KEPT |= {322, 323, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532}
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_TABLE = 2**22  # bytes of one table, enough for 2**20 strips or tiles
_TIFF_TILE = 2**20  # pixels that a tile of a small picture can have


def strip_tiff(data: bytes, max_pixels: int) -> bytearray:
    """A TIFF file with one directory that holds only what its pixels need, each entry once.

    Pillow loads all entries of all directories, and each can claim the whole file as its value.
    Raises ValueError for a damaged directory, and for a tile larger than the picture.
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("no TIFF file, or one of the kind for more than 4 GB")
    patched = bytearray(data)
    order = "<" if data.startswith(b"II") else ">"
    (begin,) = struct.unpack_from(f"{order}I", data, 4)
    if begin < 8:
        raise ValueError("its directory lies in its header")
    (count,) = struct.unpack_from(f"{order}H", data, begin)
    numbers: dict[int, int] = {}
    at = begin + 2
    for entry in range(begin + 2, begin + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        size = length * _TIFF_BYTES.get(kind, 1)
        if tag not in _TIFF_KEPT or tag in numbers:
            continue
        if size > _TIFF_TABLE:
            raise ValueError(f"entry {tag} claims {size} bytes")
        (numbers[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
        patched[at : at + 12] = data[entry : entry + 12]
        at += 12
    struct.pack_into(f"{order}H", patched, begin, (at - begin - 2) // 12)
    patched[at : at + 4] = bytes(4)  # no further directory
    pixels = numbers.get(256, 0) * numbers.get(257, 0)
    tile = numbers.get(322, 0) * numbers.get(323, 0)
    if tile > min(max(pixels, _TIFF_TILE), max_pixels):
        raise ValueError(f"a tile of {tile} pixels in a picture of {pixels}")
    return patched
