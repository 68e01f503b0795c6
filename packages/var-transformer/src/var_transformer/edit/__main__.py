"""``python -m var_transformer.edit``: redraws part of an image, as a chosen class."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from var_tokenizer.common import (
    InputError,
    check_integer,
    fewer_images,
    fit_picture,
    needing_memory,
    quoted,
    read_picture,
    to_model_range,
    to_pixels,
)
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import working

from var_transformer.commands.class_names import class_number
from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.options import DrawConfig, log_other_numbers
from var_transformer.generation.editing import box_mask, edit
from var_transformer.pretrained import PICTURE_FILE

log = logging.getLogger("var_transformer")

Box = tuple[int, int, int, int]
_EXAMPLE: dict[str, object] = {"image": PICTURE_FILE, "label": "8", "box": (0, 0, 32, 16)}
_ABOUT_THE_IMAGE = ("image", "label", "mask", "box", "keep_box")


@dataclass(frozen=True, kw_only=True)
class EditConfig(DrawConfig):
    """Redraw part of an image: in-painting, out-painting or editing by class.

    Exactly one of --mask, --box and --keep-box says which part. OUT gets a PNG file for each
    variant, NUMBER_CLASS.png, of the tokenizer's size. An image of another size is resized to
    cover that size, and cropped to its centre; boxes are in pixels of the result.
    """

    out: Path = Path("edited")
    """The folder for everything that the command writes."""
    image: Path | None = None
    """The image to edit. Without it and the models: a three in the box, whose left half becomes an
    eight's."""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of the new part, by name or number; none for no class."""
    mask: Path | None = None
    """An image of the image's size or the tokenizer's, of any kind (1, L, I;16, RGB, P, with or
    without transparency). What is at least half white is redrawn; black and transparent stay."""
    box: Box | None = None
    """Y0 X0 Y1 X1 in pixels: the inside is redrawn (in-painting)."""
    keep_box: Box | None = None
    """Y0 X0 Y1 X1 in pixels: the outside is redrawn (out-painting)."""
    keep: bool = False
    """Keep the image's own pixels where nothing is redrawn, instead of their reconstruction."""
    count: int = 1
    """How many variants to draw."""

    def __post_init__(self) -> None:
        """Raises InputError for a field out of range."""
        super().__post_init__()
        check_integer("count", self.count, 1)
        if self.model is None and all(getattr(self, field) is None for field in _ABOUT_THE_IMAGE):
            for field, value in _EXAMPLE.items():
                object.__setattr__(self, field, value)
        for option, value in (("image", self.image), ("class", self.label)):
            if value is None:
                raise InputError(f"{option} is not given; expected --image and --class")
        given = [f for f in ("mask", "box", "keep_box") if getattr(self, f) is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'nothing'} given; "
                "expected exactly one of --mask, --box and --keep-box"
            )


def run(config: EditConfig) -> None:
    """Runs the command; raises InputError for unusable files or settings."""
    assert config.image is not None and config.label is not None
    image = read_picture(config.image)
    mask = None if config.mask is None else _read_mask(config.mask)
    model, tokenizer, names = config.load()
    label = class_number(config.label, model.config.num_classes, names)
    log_other_numbers([label], names)
    size = tokenizer.config.image_size
    pixels_yxc = np.asarray(fit_picture(image, size))
    if mask is not None and mask.size not in (image.size, size[::-1]):
        raise InputError(
            f"{quoted(str(config.mask))}: (rows, columns) is {mask.size[::-1]}; "
            f"expected {image.size[::-1]}, the image's, or {size}, the tokenizer's"
        )
    mask_yx = _fitted_mask(config, mask, size)
    frames: list[np.ndarray] = []

    def finished(images_bcyx: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) from images in [0, 1], with the original's pixels where they stay."""
        pixels_byxc = to_pixels(images_bcyx)
        return np.where(mask_yx[..., None], pixels_byxc, pixels_yxc) if config.keep else pixels_byxc

    def keep(_k: int, images_bcyx: np.ndarray) -> None:
        frames.append(finished(images_bcyx))

    graphs = {
        "models": [model.config, tokenizer.config],
        "backend": model.backend,
        "low_memory": config.low_memory,
        "count": config.count,
        "sampler": config.sampler,
        "animated": config.animate is not None,
        "redrawn": bool(mask_yx.any()),
    }
    memory = needing_memory(
        f"drawing {config.count} images at once", fewer_images("--count", config.count)
    )
    with graph_cache(command="edit", **graphs), working("drawing"), memory:
        out = edit(
            model,
            tokenizer,
            to_model_range(pixels_yxc[None])[0],
            mask_yx,
            np.full(config.count, label, np.int32),
            config.sampler,
            config.seed,
            on_scale=None if config.animate is None else keep,
        )
    for n, variant_yxc in enumerate(finished(out.images)):
        config.save(variant_yxc, [frame[n] for frame in frames], config.path(n, label))
    log.info("wrote %d images to %s", config.count, quoted(config.out.resolve()))


def _read_mask(path: Path) -> Image.Image:
    """A mask file in grey: 255 where the image is redrawn, 0 elsewhere."""
    grey = read_picture(path, background="black").convert("L")
    return grey.point(lambda value: 255 * (value >= 128))


def _fitted_mask(config: EditConfig, mask: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, true where the image is redrawn."""
    if mask is not None:
        return np.asarray(fit_picture(mask, size, Image.Resampling.NEAREST)) > 0
    if config.keep_box is not None:
        return ~box_mask(config.keep_box, *size)
    assert config.box is not None
    return box_mask(config.box, *size)


def main() -> None:
    """The command; see ``run_command``."""
    run_command(EditConfig, "python -m var_transformer.edit", run)


if __name__ == "__main__":
    main()
