"""The page itself, in Gradio. It asks no other host for anything and reports to nobody."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from var_tokenizer import InputError, Tokenizer, unit_to_pixels

from var_transformer.classes import class_number
from var_transformer.edit import edit
from var_transformer.generate import Generation, OnScale, generate
from var_transformer.pictures import save_png
from var_transformer.sampler import Sampler
from var_transformer.serve.streaming import Streamer, TimeOverError
from var_transformer.transformer import Transformer

logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own server whether it is up

_CANVAS = 384  # pixels that the shorter side of the editor has at least
_MAX_WAITING = 32  # visitors in the queue
_STYLE = """
.pictures img, .canvas canvas { image-rendering: pixelated; }
footer { display: none !important; }
"""
Value = str | float | bool | None  # of a control
Update = tuple[Any, ...]  # of the pictures, the status line, the download and the chosen picture


def make_page(
    model: Transformer,
    tokenizer: Tokenizer,
    names: list[str] | None,
    max_images: int,
    streamer: Streamer,
) -> gr.Blocks:
    """The page for a pair of models.

    names: of the classes, or None. max_images: that a visitor may ask for at once. streamer:
    where generations run.
    """
    studio = _Studio(model, tokenizer, names, max_images, streamer)
    with gr.Blocks(
        title="VAR", analytics_enabled=False, delete_cache=(600, 3600), fill_width=False
    ) as page:
        gr.Markdown("# VAR\nPictures by next-scale prediction: each is drawn coarse to fine.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                settings = _settings(studio)
            with gr.Column(scale=2, min_width=400):
                with gr.Tabs() as tabs:
                    with gr.Tab("Generate", id="generate"):
                        draw = gr.Button("Generate", variant="primary", elem_id="generate")
                    with gr.Tab("Edit", id="edit"):
                        gr.Markdown(
                            "Paint over what is to be redrawn. "
                            "What the picture leaves empty is redrawn, too."
                        )
                        canvas = _canvas(studio)
                        redraw = gr.Button("Redraw", variant="primary", elem_id="redraw")
                status = gr.Markdown(elem_id="status", min_height=28)
                pictures = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=4,
                    object_fit="contain",
                    height=400,
                    buttons=["fullscreen"],
                    interactive=False,
                    elem_id="pictures",
                    elem_classes="pictures" if min(studio.size) < _CANVAS // 2 else None,
                )
                with gr.Row():
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    download = gr.DownloadButton("Download", interactive=False, elem_id="download")
                    to_canvas = gr.Button("Edit the picture", elem_id="to-canvas")
        selected = gr.State(0)

        outputs = [pictures, status, download, selected]
        one_at_a_time = {"concurrency_id": "models", "concurrency_limit": 1}
        drawing = draw.click(studio.draw, settings, outputs, **one_at_a_time)
        redrawing = redraw.click(studio.redraw, [canvas, *settings], outputs, **one_at_a_time)
        stop.click(lambda: "Stopped.", None, status, cancels=[drawing, redrawing], queue=False)
        pictures.select(_selected_index, None, selected, queue=False)
        # first the tab: a canvas that is not shown takes no picture
        to_canvas.click(lambda: gr.Tabs(selected="edit"), None, tabs, queue=False).then(
            studio.to_canvas, [pictures, selected], canvas, queue=False
        )
    return page.queue(max_size=_MAX_WAITING)


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Starts to serve the page and returns its address.

    Raises InputError where the address cannot be listened on.
    """
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            run_history=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size="20mb",
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=_STYLE,
        )
    except OSError as error:
        raise InputError(f"host is {host!r} and port is {port}: {error}") from error
    return url


def _settings(studio: "_Studio") -> list[gr.components.Component]:
    """The controls, in the order in which ``_Studio._request`` takes their values."""
    label = gr.Dropdown(
        studio.choices, value="0", label="Class", allow_custom_value=True, elem_id="class"
    )
    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
    cfg = gr.Slider(0, 10, 1.5, step=0.1, label="Guidance", elem_id="guidance")
    images = gr.Slider(1, studio.max_images, 1, step=1, label="Pictures", elem_id="count")
    with gr.Accordion("Sampler", open=False):
        top_k = gr.Number(0, label="Top k (0 for all)", precision=0, elem_id="top-k")
        top_p = gr.Slider(0, 1, 0, step=0.01, label="Top p (0 for all)", elem_id="top-p")
        temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature", elem_id="temperature")
        more_smooth = gr.Checkbox(False, label="More smooth", elem_id="more-smooth")
    return [label, images, seed, cfg, top_k, top_p, temperature, more_smooth]


def _canvas(studio: "_Studio") -> gr.ImageEditor:
    height, width = studio.canvas_size
    return gr.ImageEditor(
        label="Picture",
        type="numpy",
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
        elem_classes="canvas",
    )


class _Studio:
    """What the page's buttons do, with the one pair of models that all visitors share."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        names: list[str] | None,
        max_images: int,
        streamer: Streamer,
    ) -> None:
        self._model, self._tokenizer, self._names = model, tokenizer, names
        self.max_images = max_images
        self.size = tokenizer.config.image_size
        self._zoom = math.ceil(_CANVAS / min(self.size))
        self._scales = len(tokenizer.schedule)
        self._streamer = streamer

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(shown, value) of every class."""
        if self._names is None:
            return [(str(n), str(n)) for n in range(self._model.config.num_classes)]
        return [(f"{n} {name}", str(n)) for n, name in enumerate(self._names)]

    @property
    def canvas_size(self) -> tuple[int, int]:
        """(rows, columns) of the editor: the image's, times a whole number."""
        return self.size[0] * self._zoom, self.size[1] * self._zoom

    # ------------------------------------------------------------ the buttons
    def draw(self, *settings: Value) -> Iterator[Update]:
        with _errors_shown():
            labels, seed, sampler = self._request(*settings)
            yield from self._updates(
                labels,
                seed,
                lambda on_scale: generate(
                    self._model,
                    self._tokenizer,
                    labels,
                    seed=seed,
                    on_scale=on_scale,
                    **vars(sampler),
                ),
            )

    def redraw(self, painted: dict[str, Any] | None, *settings: Value) -> Iterator[Update]:
        with _errors_shown():
            labels, seed, sampler = self._request(*settings)
            image_cyx, mask_yx = self._read_canvas(painted)
            yield from self._updates(
                labels,
                seed,
                lambda on_scale: edit(
                    self._model,
                    self._tokenizer,
                    image_cyx,
                    mask_yx,
                    labels,
                    sampler,
                    seed,
                    on_scale=on_scale,
                ),
            )

    def to_canvas(
        self, pictures: list[tuple[str, str | None]] | None, index: int
    ) -> dict[str, Any]:
        """The chosen picture in the editor."""
        with _errors_shown():
            if not pictures:
                raise InputError("there is no picture yet; generate one, or upload one")
            path, _ = pictures[min(index, len(pictures) - 1)]
            with Image.open(path) as image:
                height, width = self.canvas_size
                large = image.convert("RGBA").resize((width, height), Image.Resampling.NEAREST)
            return {"background": large, "layers": [], "composite": None}

    # ------------------------------------------------------------ what a visitor asks for
    def _request(
        self,
        label: str | None,
        images: int | None,
        seed: int | None,
        cfg: float | None,
        top_k: int | None,
        top_p: float | None,
        temperature: float | None,
        more_smooth: bool,
    ) -> tuple[np.ndarray, int, Sampler]:
        """Labels (B,), seed and sampler; raises InputError for a value that cannot be used."""
        numbers = {
            "images": images,
            "seed": seed,
            "cfg": cfg,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
        }
        for field, value in numbers.items():
            if value is None:
                raise InputError(f"{field} is empty; expected a number")
        if not 1 <= images <= self.max_images:
            raise InputError(f"images is {images}; expected 1 to {self.max_images}")
        number = class_number(label or "", self._model.config.num_classes, self._names)
        sampler = Sampler(
            cfg=cfg, top_k=top_k, top_p=top_p, temperature=temperature, more_smooth=more_smooth
        )
        return np.full(int(images), number, np.int32), seed, sampler

    def _read_canvas(self, painted: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
        """The image (3, H, W) in [-1, 1] and the mask (H, W) bool, true where it is redrawn.

        Raises InputError for an empty canvas, one of another size, and where nothing is marked.
        """
        if painted is None or painted["background"] is None:
            raise InputError("the canvas is empty; upload a picture, or edit a generated one")
        height, width = self.size
        for part_yxc in (painted["background"], *painted["layers"]):
            if part_yxc.shape[:2] != self.canvas_size:
                raise InputError(
                    f"image has (rows, columns) {part_yxc.shape[:2]}; "
                    f"expected {self.canvas_size}, the canvas's"
                )
        background = Image.fromarray(painted["background"]).resize((width, height), Image.BOX)
        rgba_yxc = np.asarray(background)
        mask_yx = rgba_yxc[..., 3] < 128
        for layer_yxc in painted["layers"]:
            cells = layer_yxc[..., 3].reshape(height, self._zoom, width, self._zoom)
            mask_yx |= cells.max((1, 3)) > 0
        if not mask_yx.any():
            raise InputError("the mask is empty; paint over what is to be redrawn")
        return rgba_yxc[..., :3].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1, mask_yx

    # ------------------------------------------------------------ what a visitor sees
    def _updates(
        self, labels: np.ndarray, seed: int, draw: Callable[[OnScale], Generation]
    ) -> Iterator[Update]:
        started = time.monotonic()
        idle = gr.DownloadButton(interactive=False)
        yield [], f"Scale 1 of {self._scales} …", idle, 0
        pictures = gr.Gallery()
        pixels_nyxc = np.zeros((0, *self.size, 3), np.uint8)
        try:
            for k, images in self._streamer.stream(draw):
                pixels_nyxc = unit_to_pixels(images)
                # a single picture is shown large
                index = 0 if len(pixels_nyxc) == 1 else None
                pictures = gr.Gallery(list(pixels_nyxc), selected_index=index)
                if k + 1 < self._scales:
                    yield pictures, f"Scale {k + 2} of {self._scales} …", idle, gr.skip()
            ending = f"{time.monotonic() - started:.1f} s"
        except TimeOverError as error:
            gr.Warning(str(error), duration=None)
            ending = str(error)
        shown = f"Class {labels[0]}, seed {seed}: {ending}"
        with tempfile.TemporaryDirectory() as folder:
            path = _save(pixels_nyxc, int(labels[0]), Path(folder))
            download = gr.DownloadButton(value=str(path), interactive=True)
            yield pictures, shown, download, gr.skip()


def _save(pixels_nyxc: np.ndarray, label: int, folder: Path) -> Path:
    """One picture as a PNG file, several as a ZIP file of them."""
    paths = [folder / f"{n:06d}_{label}.png" for n in range(len(pixels_nyxc))]
    for path, pixels_yxc in zip(paths, pixels_nyxc, strict=True):
        save_png(pixels_yxc, path)
    if len(paths) == 1:
        return paths[0]
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return folder / "pictures.zip"


def _selected_index(event: gr.SelectData) -> int:
    return event.index


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Shows what is wrong with a visitor's input in the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
