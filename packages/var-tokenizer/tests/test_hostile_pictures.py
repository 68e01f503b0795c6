"""Image files of somebody who means harm cost neither memory nor time."""

import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from picture_files import png, saved, tiff
from PIL import Image
from var_tokenizer.common import MAX_PIXELS, InputError, read_picture


def claims_the_whole_file(entries: int, size: int) -> bytes:
    """An EXIF block of ``size`` bytes in which each of ``entries`` is all of it."""
    table = b"".join(
        struct.pack("<HHII", 40000 + n % 25000, 7, size - 8, 8) for n in range(entries)
    )
    block = struct.pack("<2sHIH", b"II", 42, 8, entries) + table + bytes(4)
    return block.ljust(size, b"x")


def jpeg_of_claims() -> bytes:
    data = saved(Image.new("RGB", (16, 8)), "JPEG")
    block = claims_the_whole_file(20000, 2**20)
    parts = [b"Exif\0\0" + block[at : at + 65000] for at in range(0, len(block), 65000)]
    segments = [struct.pack(">BBH", 0xFF, 0xE1, len(part) + 2) + part for part in parts]
    start = data.index(b"\xff\xdb")  # without JFIF: its density would be asked of the EXIF block
    return data[:2] + b"".join(segments) + data[start:]


def webp(columns, rows) -> bytes:
    """An animated WebP that claims a size."""
    data = saved(
        Image.new("RGBA", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    at = data.index(b"VP8X") + 12
    size = (columns - 1).to_bytes(3, "little") + (rows - 1).to_bytes(3, "little")
    return data[:at] + size + data[at + 6 :]


def gif(columns, rows) -> bytes:
    """An animated GIF whose second frame is as large as can be said."""
    frames = [Image.new("P", (8, 8), colour) for colour in (0, 1)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return data[:6] + struct.pack("<HH", columns, rows) + data[10:]


def gif_of(comment: bytes) -> bytes:
    data = saved(Image.new("RGB", (64, 64)), "GIF")
    at = data.index(b",")
    return data[:at] + comment + data[at:]


def apng(columns, rows) -> bytes:
    """An animated PNG whose header claims a size and whose only frame is smaller."""
    control = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0)
    before = ((b"acTL", struct.pack(">II", 9, 0)), (b"fcTL", control))
    return png(columns, rows, 8, 0, bytes(72), *before)


def small_tiff(*more: tuple[int, int, int, int]) -> bytes:
    sizes = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    changed = {entry[0]: entry for entry in (*sizes, (277, 3, 1, 1), *more)}
    return tiff(*changed.values(), data=bytes(4096))


def rle_bmp(columns, rows) -> bytes:
    """A BMP whose first order is to leave out 255 rows."""
    orders = b"\0\2\xff\xff\0\1"
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 62, 40, columns, rows, 1, 8, 1, 0, 0, 0, 2, 0
    )
    return head + bytes(8) + orders


def png_with(kind: bytes, data: bytes, times: int = 1) -> bytes:
    """A PNG of one pixel behind a chunk that claims more."""
    return png(1, 1, 8, 0, b"\0\0", *[(kind, data)] * times)


BOMBS = {
    "PNG of 13,300 x 13,300 pixels": lambda: png(
        13_300, 13_300, 1, 0, (b"\0" + b"\xff" * 1663) * 13_300
    ),
    "PNG of 40,000 x 40,000 pixels": lambda: png(40_000, 40_000, 8, 2, b"\0"),
    "animated PNG": lambda: apng(30_000, 30_000),
    "GIF": lambda: gif(65_535, 65_535),
    "animated WebP": lambda: webp(16_384, 16_384),
    "JPEG": lambda: saved(Image.new("L", (9, 9)), "JPEG").replace(
        b"\0\x09\0\x09", b"\xff\xff\xff\xff"
    ),
    "PPM": lambda: b"P6 65000 65000 255\n",
    "text PPM": lambda: b"P3 65000 65000 255\n1 2 3\n",
    "BMP that is one row": lambda: rle_bmp(MAX_PIXELS, 1),
    "TIFF": lambda: small_tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31)),
}
LIES = {
    "ICC profile": lambda: png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**28), 9)),
    "compressed text": lambda: png_with(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**28), 9)),
    "many texts": lambda: png_with(
        b"zTXt", b"x\0\0" + zlib.compress(bytes(2**20 - 1), 9), times=1000
    ),
    "EXIF of a PNG": lambda: png_with(b"eXIf", claims_the_whole_file(20000, 2**20)),
    "EXIF of a JPEG": jpeg_of_claims,
    "entries of a TIFF": lambda: (
        small_tiff(
            (273, 4, 1, 8), (279, 4, 1, 4096), *((40000 + n, 7, 2**20, 0) for n in range(20000))
        )
        + bytes(2**20)
    ),
    "directories of a TIFF": lambda: (
        small_tiff((273, 4, 1, 8), (279, 4, 1, 4096), (34665, 4, 1, 4096 + 300))
        + claims_the_whole_file(20000, 2**20)[8:]
    ),
    "a table of a TIFF": lambda: small_tiff((273, 4, 2**29, 8), (279, 4, 2**29, 8)),
    "tile of a TIFF": lambda: small_tiff(
        (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 4096)
    ),
    "strip of a TIFF": lambda: small_tiff(
        (273, 4, 1, 8), (279, 4, 1, 2**32 - 1), (278, 4, 1, 2**32 - 1)
    ),
    "PPM that ends early": lambda: b"P6 8000 8000 255\n",
    "comment of a GIF": lambda: gif_of(comment=b"\0!\xfe" + (b"\xff" + b"c" * 255) * 2**16 + b"\0"),
    "a BMP of skipped rows": lambda: rle_bmp(60_000, 1000),
}
REFUSED = {"PPM that ends early", "a BMP", "a table", "tile"}
MEASURE = """
import sys
import PIL.Image
from pathlib import Path
from var_tokenizer.common import InputError
from var_tokenizer.common.pictures import read_picture
PIL.Image.init()
def kibibytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
for path in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kibibytes("VmRSS")
    try:
        said = str(read_picture(path).size)
    except InputError as error:
        said = str(error)
    print(path.name, kibibytes("VmHWM") - before, said, sep="|")
"""


def measured(folder: Path) -> dict[str, tuple[float, str]]:
    """Mebibytes that the peak grows by at each file of a folder, and the answer."""
    done = subprocess.run(
        [sys.executable, "-W", "error::Warning:__main__", "-c", MEASURE, folder],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32)),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {name: (int(kib) / 1024, said) for name, kib, said in lines}


def test_a_jpeg_of_endless_empty_scans_is_refused_at_once():
    """Each scan goes over 64 million pixels."""
    whole = saved(Image.new("L", (8192, 8192)), "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    assert read_picture(whole).size == (8192, 8192)
    begin = time.process_time()
    with pytest.raises(InputError, match="more than 100 scans"):
        read_picture(whole[:at] + whole[at:-2] * 1000 + whole[-2:])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("start", [b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"])
def test_big_and_mixed_tiff_headers_are_refused(start):
    with pytest.raises(InputError, match="no TIFF file, or one of the kind"):
        read_picture(start + small_tiff()[4:])


def test_a_picture_that_is_too_large_is_refused_by_its_header(tmp_path):
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    results = measured(tmp_path)
    assert results.keys() == BOMBS.keys()
    for name, (grown, said) in results.items():
        assert "expected at most" in said or "TIFF" in name, (name, said)
        assert grown < 16, (name, grown)


def test_claims_besides_the_size_cost_neither_memory_nor_time(tmp_path):
    for name, make in LIES.items():
        (tmp_path / name).write_bytes(make())
    begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    results = measured(tmp_path)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin
    assert took < 30  # seconds of the processor; Pillow alone takes more than 60 for the comment
    assert results.keys() == LIES.keys()
    read = {
        name for name, (_, said) in results.items() if said in ("(64, 64)", "(16, 8)", "(1, 1)")
    }
    assert read == {name for name in LIES if name.partition(" of ")[0] not in REFUSED}
    for name, (grown, said) in results.items():
        assert grown < 100, (name, grown, said)
