"""Generated images as files: PNG, a grid, animations, and the array of FID evaluators."""

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image
from var_tokenizer.common import InputError, quoted, read_picture, replacing

AnimationFormat = Literal["gif", "apng"]

_SUFFIX = {"gif": ".gif", "apng": ".anim.png"}
_FRAME_MS = 300
_LAST_FRAME_MS = 2000
_GUTTER = 2  # pixels between the cells of a grid


def image_name(number: int, label: int) -> str:
    """The file name of image ``number`` of class ``label``."""
    return f"{number:06d}_{label}.png"


def read_equal(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """Yields image files as uint8 (H, W, 3); raises InputError unless they have one size."""
    first = None
    for path in paths:
        pixels_yxc = np.asarray(read_picture(path))
        first = pixels_yxc.shape if first is None else first
        if pixels_yxc.shape != first:
            raise InputError(
                f"{quoted(path)}: (rows, columns) is {pixels_yxc.shape[:2]}; "
                f"expected {first[:2]}, the size of the run's first image"
            )
        yield pixels_yxc


def grid(pixels_nyxc: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """A grid of images of one size, uint8 (H, W, 3), in rows of ``columns`` on white."""
    height, width, _ = pixels_nyxc[0].shape
    rows = math.ceil(len(pixels_nyxc) / columns)
    step_y, step_x = height + _GUTTER, width + _GUTTER
    sheet_yxc = np.full((rows * step_y + _GUTTER, columns * step_x + _GUTTER, 3), 255, np.uint8)
    for n, pixels_yxc in enumerate(pixels_nyxc):
        y, x = (n // columns) * step_y + _GUTTER, (n % columns) * step_x + _GUTTER
        sheet_yxc[y : y + height, x : x + width] = pixels_yxc
    return sheet_yxc


def animation_path(png: Path, kind: AnimationFormat) -> Path:
    """The path of the animation of the image NAME.png: NAME.gif or NAME.anim.png."""
    return png.with_suffix(_SUFFIX[kind])


def save_animation(
    frames_kyxc: Sequence[np.ndarray], path: str | os.PathLike[str], kind: AnimationFormat
) -> None:
    """Writes K frames, uint8 (H, W, 3), as a looping GIF or APNG, whole or not at all.

    Each frame lasts 0.3 s, the last one 2 s. GIF has 256 colours per frame; APNG keeps all.
    """
    frames = [Image.fromarray(pixels_yxc) for pixels_yxc in frames_kyxc]
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(path) as temporary:
        frames[0].save(
            temporary,
            "GIF" if kind == "gif" else "PNG",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def save_npz(paths: Sequence[Path], labels_n: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes N PNG files as ``arr_0``, uint8 (N, H, W, 3), whole or not at all.

    labels_n: (N,) ints, written as ``arr_1``, int64. The layout of OpenAI's guided-diffusion
    evaluator. Memory holds one image at a time; the bytes depend only on the images and labels.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with _member(archive, "arr_0.npy") as file:
            for n, pixels_yxc in enumerate(read_equal(paths)):
                if n == 0:
                    shape = (len(paths), *pixels_yxc.shape)
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(pixels_yxc.tobytes())
        with _member(archive, "arr_1.npy") as file:
            np.lib.format.write_array(file, labels_n.astype("<i8"))


def has_npz(paths: Sequence[Path], labels_n: np.ndarray, path: str | os.PathLike[str]) -> bool:
    """Whether ``save_npz`` wrote ``path``, with these labels, after all of the N files."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            np.lib.format.read_magic(file)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + math.prod(shape)
            is_whole = size == archive.getinfo("arr_0.npy").file_size and not by_columns
            with archive.open("arr_1.npy") as labels:
                found_n = np.lib.format.read_array(labels)
        written = path.stat().st_mtime_ns
        return (
            is_whole
            and dtype == np.uint8
            and np.array_equal(found_n, labels_n)
            and shape[:1] == labels_n.shape
            and all(png.stat().st_mtime_ns < written for png in paths)
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True)
