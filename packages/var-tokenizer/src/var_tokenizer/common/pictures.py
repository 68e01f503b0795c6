"""The one reader of image files, and the ranges of pixels.

Files may come from anyone. The format must be on a short list and is recognized by content. The
size is checked before anything is decoded. Everything else in a file (profiles, comments, further
frames, damaged or hostile metadata) is ignored where the format allows it.

Pixels are uint8 ``(N, Y, X, 3)``. Models read and write float32 ``(N, 3, Y, X)`` in [-1, 1];
generated images are in [0, 1].
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from var_tokenizer.common import picture_metadata
from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.files import open_regular, replacing

MAX_PIXELS = 2**26  # 8192 x 8192: reading takes 0.3 to 0.8 GB, 1.3 GB for WebP
MAX_SIDE = 65_535  # rows or columns: the limit of JPEG and GIF

# formats that Pillow decodes in this process; PostScript, say, would start a program
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

PictureFile = str | os.PathLike[str] | bytes | BinaryIO


# ---------------------------------------------------------------- ranges
def to_model_range(pixels_nyxc: np.ndarray) -> np.ndarray:
    """uint8 (N, Y, X, 3) as float32 (N, 3, Y, X) in [-1, 1]: a view, channels last in memory."""
    return to_floats(pixels_nyxc).transpose(0, 3, 1, 2)


def to_floats(pixels: np.ndarray) -> np.ndarray:
    """uint8 as float32 in [-1, 1], in the same layout."""
    images = pixels.astype(np.float32)
    images /= 127.5
    images -= 1
    return images


def to_unit_range(images_ncyx: np.ndarray) -> np.ndarray:
    """Images from [-1, 1], the range of models, to [0, 1], the range of users."""
    return (images_ncyx + 1) / 2


def to_pixels(images_ncyx: np.ndarray) -> np.ndarray:
    """(N, 3, Y, X) in [0, 1] as uint8 (N, Y, X, 3), rounded and clipped."""
    pixels_ncyx = np.rint(np.clip(images_ncyx, 0, 1) * 255)
    return np.ascontiguousarray(pixels_ncyx.transpose(0, 2, 3, 1), dtype=np.uint8)


# ---------------------------------------------------------------- for users of Python
def read_images(
    pictures: PictureFile | Image.Image | Sequence[PictureFile | Image.Image],
    image_size: tuple[int, int],
) -> np.ndarray:
    """Reads pictures as ``Tokenizer.encode`` takes them: float32 (N, 3, Y, X) in [-1, 1].

    pictures: one or several image files (paths, bytes or open binary files) or PIL images.
    image_size: (rows, columns), ``tokenizer.config.image_size``. Pictures of another size are
    resized and cropped as ``fit_picture`` says. Raises InputError as ``read_picture`` does.
    """
    sources: Sequence[PictureFile | Image.Image]
    if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes):
        sources = pictures
    else:
        sources = [pictures]
    fitted = [
        fit_picture(upright_rgb(p) if isinstance(p, Image.Image) else read_picture(p), image_size)
        for p in sources
    ]
    if not fitted:
        raise InputError("pictures is empty; expected at least one image")
    return to_model_range(np.stack([np.asarray(picture) for picture in fitted]))


def to_pictures(images_ncyx: np.ndarray) -> list[Image.Image]:
    """Images (N, 3, Y, X) in [-1, 1], as ``Tokenizer.decode`` gives them, as N PIL images."""
    pixels_nyxc = to_pixels(to_unit_range(np.asarray(images_ncyx)))
    return [Image.fromarray(pixels_yxc) for pixels_yxc in pixels_nyxc]


def save_png(pixels_yxc: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes uint8 (Y, X, 3) as PNG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(pixels_yxc).save(temporary, "PNG")


# ---------------------------------------------------------------- reading
def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture when a folder is searched."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def read_picture(
    source: PictureFile, max_pixels: int = MAX_PIXELS, *, background: str = "white"
) -> Image.Image:
    """An image file as an RGB picture of 8 bits, upright.

    source: a path, the file's bytes or an open binary file; the format is recognized by content. An
    animation gives its first frame. The picture is turned as its EXIF orientation says. Palette,
    grey and CMYK become RGB, 16 bits are cut to the high byte, and transparency is laid over the
    colour ``background``.

    Raises InputError that names the file if it is not a regular file, not one of
    ``PICTURE_FORMATS``, damaged, or has a side above ``MAX_SIDE`` or more than ``max_pixels``
    pixels. The size is read from the header, before anything is decoded.
    """
    with _decoded(source, max_pixels) as (image, orientation):
        picture = _turned(_flat(image, background), orientation)
        picture.info = {}  # so that no caller turns it again or passes on its metadata
        return picture


def read_alpha(source: PictureFile, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The opacity of each pixel of an image file, 0 to 255, as an upright grey picture.

    It is 255 everywhere if the file has no transparency. Reads and raises as ``read_picture``.
    """
    with _decoded(source, max_pixels) as (image, orientation):
        image = _of_8_bits(image)
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
        else:
            alpha = Image.new("L", image.size, 255)
        return _turned(alpha, orientation)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image turned and flattened as ``read_picture`` does. Raises InputError as it does."""
    _check_size("image", image.size, MAX_PIXELS)
    with _named("image"):
        return _turned(
            _flat(image, "white"), picture_metadata.orientation_of(image.info.get("exif", b""))
        )


def fit_picture(
    image: Image.Image,
    image_size: tuple[int, int],
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The picture resized until it just covers ``image_size``, and cropped around its centre.

    image_size: (rows, columns), larger or smaller than the picture. method: of resizing.
    """
    rows, columns = image_size
    return ImageOps.fit(image, (columns, rows), method)


@contextmanager
def _decoded(source: PictureFile, max_pixels: int) -> Iterator[tuple[Image.Image, int]]:
    """The decoded first frame of an image file, and its orientation from 1 to 8."""
    name = _name(source)
    with _named(name), _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        if size > 8 * max_pixels:  # more than four channels of 16 bits need
            raise InputError(
                f"{name}: {size} bytes; expected at most {8 * max_pixels}, as {max_pixels} pixels"
            )
        file.seek(0)
        start, exif = file.read(4), b""
        file.seek(0)
        if start.startswith(b"\xff\xd8\xff"):
            content, exif = picture_metadata.strip_jpeg(file.read())
            file = BytesIO(content)
        elif start == b"\x89PNG":
            content, exif = picture_metadata.strip_png(file.read())
            file = BytesIO(content)
        elif start == b"GIF8":
            file = BytesIO(picture_metadata.strip_gif(file.read()))
        elif start[:2] in (b"II", b"MM"):
            exif = file.read()
            file = BytesIO(picture_metadata.strip_tiff(exif, max_pixels))
        try:
            image = Image.open(file, formats=PICTURE_FORMATS)
        except UnidentifiedImageError as error:
            formats = ", ".join(PICTURE_FORMATS[:-1]) + " or " + PICTURE_FORMATS[-1]
            raise InputError(f"{name}: not a readable image; expected {formats} data") from error
        except Image.DecompressionBombError as error:
            claimed = str(error).partition(" exceeds")[0]
            raise InputError(f"{name}: {claimed}; expected at most {max_pixels} pixels") from error
        with image:
            _check_size(name, image.size, max_pixels)
            _scale_transparent_colour(image)
            image.load()
            yield image, picture_metadata.orientation_of(exif or image.info.get("exif", b""))


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    columns, rows = size
    if rows < 1 or columns < 1:
        raise InputError(f"{name}: {rows} x {columns} pixels; expected at least one")
    if rows > MAX_SIDE or columns > MAX_SIDE or rows * columns > max_pixels:
        raise InputError(
            f"{name}: {rows} x {columns} pixels; expected at most {max_pixels} in all "
            f"and {MAX_SIDE} a side"
        )


def _name(source: PictureFile) -> str:
    if isinstance(source, str | os.PathLike):
        return quoted(source)
    named = getattr(source, "name", None)
    return quoted(named) if isinstance(named, str) else "image"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns every failure into an InputError that names the file: a broken file can raise anything.

    Even MemoryError: a file can lie about the size of its tables.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{name}: not a readable image: {reason}") from error
    except Exception as error:
        raise InputError(
            f"{name}: not a readable image: {error or type(error).__name__}"
        ) from error


@contextmanager
def _opened(source: PictureFile) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        with open_regular(source) as file:
            yield file
    else:
        yield source


# ---------------------------------------------------------------- pixels
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation != 1 else image


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Scales the transparent colour of a PNG to 8 bits if Pillow has scaled the pixels.

    Pillow leaves the colour at the depth of the file. It leaves 16-bit grey unscaled, both colour
    and pixels.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None or not image.tile:
        return
    packing = image.tile[0][3]
    packing = packing[0] if isinstance(packing, tuple) else packing
    if isinstance(colour, int) and packing in ("L;2", "L;4"):
        image.info["transparency"] = colour * (255 // (2 ** int(packing[2]) - 1))
    elif isinstance(colour, tuple) and packing == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _flat(image: Image.Image, background: str) -> Image.Image:
    """The image as RGB of 8 bits, over ``background``. Raises ValueError for an unknown range."""
    image = _of_8_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, background)
        image.paste(layer, mask=layer)
        return image
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """The image, with grey of 16 bits cut to 8. Raises ValueError for an unknown range."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey_of_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError("grey of 32 bits, of no known range; expected 8 or 16 bits")
    return image


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    values_yx = np.asarray(image)
    grey = Image.fromarray((values_yx >> 8).astype(np.uint8))  # convert() would clip at 255
    colour = image.info.get("transparency")
    if colour is not None:
        grey.putalpha(Image.fromarray(np.where(values_yx == colour, 0, 255).astype(np.uint8)))
    return grey
