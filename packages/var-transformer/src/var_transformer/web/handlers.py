"""The handlers of the page's buttons, with the one pair of models that all visitors share."""

import html
import logging
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_flag, check_integer, quoted, save_png, to_pixels

from var_transformer.commands.class_names import NONE, class_number
from var_transformer.commands.image_files import image_name
from var_transformer.edit import edit
from var_transformer.generation.generate import Generation, OnScale, generate
from var_transformer.generation.sampler import Sampler
from var_transformer.stored.stored_transformer import AnyTransformer
from var_transformer.stored.weight_file import ChangedFileError
from var_transformer.web.canvas import canvas_size, read_canvas
from var_transformer.web.sessions import Sessions
from var_transformer.web.streaming import Streamer, TimeOverError

log = logging.getLogger("var_transformer")

Value = str | int | float | bool | None  # of a control, as a client sent it
Update = tuple[Any, ...]  # for the gallery, the status line, the download, and the session's state
_QUEUE_LAG = 2.0  # seconds for which the queue may keep a job that has ended
_LONGEST = 80  # characters of a wrong value in a message


class Handlers:
    """The handlers of the page's buttons; errors in a visitor's input become messages.

    names: of the classes, if known. max_images: how many a visitor may ask for at once. streamer:
    runs the generations. sessions: counts the visitors. folder: for the page's files.
    """

    def __init__(
        self,
        model: AnyTransformer,
        tokenizer: Tokenizer,
        names: Sequence[str] | None,
        max_images: int,
        streamer: Streamer,
        sessions: Sessions,
        folder: Path,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        # names of folders may not be Unicode, which no page can be sent with
        readable = [name.encode(errors="backslashreplace").decode() for name in names or ()]
        self._names = None if names is None else readable
        self.max_images = max_images
        self.size = tokenizer.config.image_size
        self._scales = len(tokenizer.schedule)
        self._streamer, self.sessions, self._folder = streamer, sessions, folder

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(shown, value) of every class, and of no class."""
        names = self._names or [""] * self._model.config.num_classes
        classes = [(f"{n} {name}".rstrip(), self._text(n)) for n, name in enumerate(names)]
        return [*classes, ("No class", NONE)]

    def _text(self, number: int) -> str:
        """The text that means a class: its number, unless that is the name of another class."""
        for text in (str(number), *(self._names or ())[number : number + 1]):
            with suppress(InputError):
                if class_number(text, self._model.config.num_classes, self._names) == number:
                    return text
        return str(number)

    # ------------------------------------------------------------ the buttons
    def generate(
        self,
        label: str,
        images: int,
        seed: int,
        cfg: float,
        top_k: int,
        top_p: float,
        temperature: float,
        more_smooth: bool,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Draws pictures of a class. Yields pictures, a sentence, and a file with all of them."""
        with _errors_shown():
            labels, seed, sampler = self._request(
                label, images, seed, cfg, top_k, top_p, temperature, more_smooth
            )

            def draw(on_scale: OnScale) -> Generation:
                pair = self._model, self._tokenizer
                return generate(*pair, labels, sampler=sampler, seed=seed, on_scale=on_scale)

            yield from self._updates(labels, seed, request.session_hash, draw)

    def redraw(
        self,
        picture: dict[str, Any],
        label: str,
        images: int,
        seed: int,
        cfg: float,
        top_k: int,
        top_p: float,
        temperature: float,
        more_smooth: bool,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Redraws the marked part of a picture. Yields pictures, a sentence, and a file."""
        with _errors_shown():
            labels, seed, sampler = self._request(
                label, images, seed, cfg, top_k, top_p, temperature, more_smooth
            )
            image_cyx, mask_yx = read_canvas(picture, self.size, self._folder)

            def draw(on_scale: OnScale) -> Generation:
                part = image_cyx, mask_yx, labels
                pair = self._model, self._tokenizer
                return edit(*pair, *part, sampler, seed, on_scale=on_scale)

            yield from self._updates(labels, seed, request.session_hash, draw)

    def to_canvas(self, drawn_nyxc: np.ndarray | None, index: int | None) -> dict[str, Any]:
        """The chosen one of the session's pictures, for the editor."""
        with _errors_shown():
            if drawn_nyxc is None:
                raise InputError("there is no picture yet; generate one, or upload one")
            height, width = canvas_size(self.size)
            picture = Image.fromarray(drawn_nyxc[min(index or 0, len(drawn_nyxc) - 1)])
            large = picture.convert("RGBA").resize((width, height), Image.Resampling.NEAREST)
            return {"background": large, "layers": [], "composite": None}

    def ended(
        self, drawn_nyxc: np.ndarray | None, request: gr.Request
    ) -> tuple[gr.Button, gr.DownloadButton]:
        """The buttons to stop and to download, after a job of the session."""
        end = time.monotonic() + _QUEUE_LAG
        while (pending := self.sessions.pending(request.session_hash)) and time.monotonic() < end:
            time.sleep(0.05)
        return gr.Button(interactive=pending), gr.DownloadButton(interactive=drawn_nyxc is not None)

    # ------------------------------------------------------------ what a visitor asks for
    def _request(
        self,
        label: Value,
        images: Value,
        seed: Value,
        cfg: Value,
        top_k: Value,
        top_p: Value,
        temperature: Value,
        more_smooth: Value,
    ) -> tuple[np.ndarray, int, Sampler]:
        """Labels (B,), seed and sampler; raises InputError for a value that cannot be used."""
        count = _integer("images", images, f"an integer from 1 to {self.max_images}")
        check_integer("images", count, 1, self.max_images)
        seed = _integer("seed", seed, "an integer of at least 0")
        check_integer("seed", seed, 0)
        sampler = Sampler(
            cfg=_number("cfg", cfg, "a number of at least 0"),
            top_k=_integer("top_k", top_k, "an integer of at least 0"),
            top_p=_number("top_p", top_p, "a number from 0 to 1"),
            temperature=_number("temperature", temperature, "a number above 0"),
            more_smooth=check_flag("more_smooth", more_smooth),
        )
        sampler.check(self._scales, self._tokenizer.vocab_size)
        classes = self._model.config.num_classes
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < classes:
            number = label
        elif isinstance(label, str) and len(label) <= 1000:
            number = class_number(label, classes, self._names)
        else:
            raise InputError(
                f"class is {_shown(label)}; expected 0 to {classes - 1}, a name or {NONE!r}"
            )
        return np.full(count, number, np.int32), seed, sampler

    # ------------------------------------------------------------ what a visitor sees
    def _updates(
        self, labels: np.ndarray, seed: int, session: str, draw: Callable[[OnScale], Generation]
    ) -> Iterator[Update]:
        if not self.sessions.wait_for_listener(session):
            log.info("a job was dropped: nobody waits for it")
            return
        started = time.monotonic()
        label = int(labels[0])
        what = f"class {label}" if label < self._model.config.num_classes else "no class"
        pixels_nyxc = np.zeros((0, *self.size, 3), np.uint8)

        def scale(k: int) -> str:
            return f"Scale {k + 1} of {self._scales} …"

        def gallery() -> list[tuple[np.ndarray, str]]:
            count = len(pixels_nyxc)
            return [(pixels_nyxc[n], f"Picture {n + 1} of {count}: {what}") for n in range(count)]

        # show a single picture large
        empty = gr.Gallery([], selected_index=0 if len(labels) == 1 else None)
        yield empty, scale(0), gr.DownloadButton(interactive=False), None, 0
        k, ending = -1, None
        try:
            for k, images in self._streamer.stream(draw, lambda: self.sessions.gone(session)):
                pixels_nyxc = to_pixels(images)
                if k + 1 < self._scales:
                    yield gallery(), scale(k + 1), gr.skip(), gr.skip(), gr.skip()
        except TimeOverError as error:
            gr.Warning(str(error), duration=None)
            ending = str(error)
        if ending is None:
            if k + 1 < self._scales:
                return  # the visitor has left
            ending = f"{time.monotonic() - started:.1f} s"
        status = f"{what.capitalize()}, seed {seed}: {ending}"
        with tempfile.TemporaryDirectory() as folder:
            path = _save(pixels_nyxc, label, Path(folder))
            yield gallery(), status, str(path), pixels_nyxc, gr.skip()


def chosen_index(event: gr.SelectData) -> int:
    """The index of the picture that was clicked in the gallery."""
    return event.index


def _number(field: str, value: Value, expected: str) -> float:
    """A number that a client sent; raises InputError for anything else."""
    if value is None or value == "":
        raise InputError(f"{field} is empty; expected a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{field} is {_shown(value)}; expected {expected}")
    return value


def _integer(field: str, value: Value, expected: str) -> int:
    """An integer that a client sent, as 3 or 3.0; raises InputError for anything else."""
    number = _number(field, value, expected)
    if not math.isfinite(number) or number != int(number):
        raise InputError(f"{field} is {number}; expected {expected}")
    return int(number)


def _shown(value: object) -> str:
    text = repr(value)
    return quoted(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _save(pixels_nyxc: np.ndarray, label: int, folder: Path) -> Path:
    """One picture as a PNG file, several as a ZIP file."""
    paths = [folder / image_name(n, label) for n in range(len(pixels_nyxc))]
    for path, pixels_yxc in zip(paths, pixels_nyxc, strict=True):
        save_png(pixels_yxc, path)
    if len(paths) == 1:
        return paths[0]
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return folder / "pictures.zip"


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Shows errors on the page: what is wrong with a visitor's input, or that something failed."""
    try:
        yield
    except (gr.Error, GeneratorExit):
        raise
    except Exception as error:
        if isinstance(error, InputError) and not isinstance(error, ChangedFileError):
            message = html.escape(str(error), quote=False)  # the page reads it as HTML
        else:
            log.exception("a job failed")
            message = "Something failed on the server. Its log says what."
        raise gr.Error(message, duration=None, print_exception=False) from error
