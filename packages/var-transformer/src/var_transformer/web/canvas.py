"""The page's picture editor, and the picture and mask that it sends."""

import math
import os
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image, ImageOps
from var_tokenizer.common import InputError, read_alpha, read_picture, to_model_range

from var_transformer.web.auth import RefusedError
from var_transformer.web.files import find_file
from var_transformer.web.limits import MAX_LAYERS, MAX_PIXELS, MAX_UPLOAD

_SIDE = 384  # pixels of the editor's shorter side, at least
_FILE = {"type": "object", "description": "an uploaded image, gradio.FileData"}
_API_INFO = {
    "type": "object",
    "properties": {
        "background": _FILE,
        "layers": {"type": "array", "items": _FILE, "maxItems": MAX_LAYERS},
    },
    "description": "a picture, and layers of its size that mark what is redrawn",
}
_UPLOADED = {"path": "PATH", "meta": {"_type": "gradio.FileData"}}
_EXAMPLE = {"background": _UPLOADED, "layers": [_UPLOADED]}


def canvas_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the editor for images of (rows, columns): a whole multiple."""
    zoom = math.ceil(_SIDE / min(image_size))
    return image_size[0] * zoom, image_size[1] * zoom


def make_canvas(image_size: tuple[int, int]) -> gr.ImageEditor:
    """The editor for images of (rows, columns); ``read_canvas`` reads the value that it sends."""
    height, width = canvas_size(image_size)
    canvas = gr.ImageEditor(
        label="Picture",
        image_mode="RGBA",
        format="png",
        sources=["upload", "clipboard"],
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=height // 10, colors=["#ff3b6b"], color_mode="fixed"),
        canvas_size=(width, height),
        fixed_canvas=True,
        height=height + 140,
        buttons=[],
        elem_id="canvas",
        elem_classes="coarse" if min(image_size) < _SIDE // 2 else None,
    )
    # set on the instance: for a subclass, Gradio would write a file next to its source
    canvas.data_model = None  # Gradio's would refuse a value of another shape without a reason
    canvas.api_info = lambda: _API_INFO
    canvas.example_payload = lambda: _EXAMPLE
    return canvas


def read_canvas(
    painted: object, image_size: tuple[int, int], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (3, H, W) in [-1, 1], and the mask (H, W) bool, true where it is redrawn.

    painted: what the editor or a client sent. image_size: (H, W). A picture of another size is
    cropped to the same shape. Its transparent parts and what any layer covers are redrawn.

    Raises InputError for an empty canvas, files that are not pictures or too large, layers of
    another size than the picture's, too many of them, and an empty mask.
    """
    if painted is not None and not isinstance(painted, dict):
        raise InputError("the canvas is not an object with background and layers")
    background = None if painted is None else painted.get("background")
    layers = (painted or {}).get("layers") or []
    if background is None:
        raise InputError("the canvas is empty; upload a picture, or edit a generated one")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise InputError(f"layers must be a list of at most {MAX_LAYERS} pictures")
    data = _read(background, folder)
    pixels_yxc = np.asarray(_fit(read_picture(data, MAX_PIXELS), image_size))
    alpha = _alpha(data)
    mask_yx = np.asarray(_fit(alpha, image_size)) < 128
    for layer in layers:
        marks = _alpha(_read(layer, folder))
        if marks.size != alpha.size:
            raise InputError(
                f"a layer has (rows, columns) {marks.size[::-1]}; "
                f"expected {alpha.size[::-1]}, the picture's"
            )
        touched = marks.point(lambda alpha: 255 if alpha else 0)
        mask_yx |= np.asarray(_fit(touched, image_size)) > 0
    if not mask_yx.any():
        raise InputError("the mask is empty; paint over what is to be redrawn")
    return to_model_range(pixels_yxc[None])[0], mask_yx


def _fit(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    """The image resized by the mean of each cell, cropped to its centre if the shape differs."""
    return ImageOps.fit(image, image_size[::-1], Image.Resampling.BOX)


def _read(file: object, folder: Path) -> bytes:
    """The content of an uploaded file."""
    try:
        path = find_file(folder, file.get("path") if isinstance(file, dict) else None)
        # in case something has replaced the file since: follow no link, wait for no pipe
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (RefusedError, OSError) as error:
        raise InputError("the picture is not a file that was uploaded to this page") from error
    with os.fdopen(descriptor, "rb") as opened:
        data = opened.read(MAX_UPLOAD + 1)
    if len(data) > MAX_UPLOAD:
        raise InputError(f"the picture has more than {MAX_UPLOAD} bytes")
    return data


def _alpha(data: bytes) -> Image.Image:
    """The opacity of each pixel, 0 to 255; only a PNG has any below 255."""
    if data.startswith(b"\x89PNG"):
        return read_alpha(data, MAX_PIXELS)
    return Image.new("L", read_picture(data, MAX_PIXELS).size, 255)
