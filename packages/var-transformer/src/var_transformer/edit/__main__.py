"""``python -m var_transformer.edit``: redraws a part of an image, as of a chosen class."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from var_tokenizer.common import (
    InputError,
    check_integer,
    fit_picture,
    quoted,
    read_picture,
    to_model_range,
    to_pixels,
)
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import working

from var_transformer.commands.class_names import class_number, names_of, other_numbers
from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.image_files import (
    AnimationFormat,
    animation_path,
    save_animation,
    save_png,
)
from var_transformer.commands.options import load_pair
from var_transformer.generation.editing import box_mask, edit
from var_transformer.generation.sampler import Sampler

log = logging.getLogger("var_transformer")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class EditConfig:
    """Redraw a part of an image: in-painting, out-painting or editing by class.

    Exactly one of --mask, --box and --keep-box says which part. In OUT it writes one PNG file a
    variant, NUMBER_CLASS.png, of the tokenizer's size. An image of another size is resized until
    it covers that, and cropped to its centre; boxes are in pixels of the result.
    """

    tokenizer: Path
    """The tokenizer, a .safetensors file."""
    model: Path
    """The transformer, a .safetensors file."""
    image: Path
    """The image to edit."""
    label: Annotated[str, tyro.conf.arg(name="class")]
    """The class that the new part is drawn as, by name or number; none for no class."""
    out: Path
    """The folder for the variants."""
    mask: Path | None = None
    """An image of the image's size or the tokenizer's. Of any kind (1, L, I;16, RGB, P, with or
    without transparency) what is at least half white is redrawn; black and transparent stay."""
    box: Box | None = None
    """Y0 X0 Y1 X1 in pixels: the inside is redrawn (in-painting)."""
    keep_box: Box | None = None
    """Y0 X0 Y1 X1 in pixels: the outside is redrawn (out-painting)."""
    keep: bool = False
    """Put the image's own pixels back where nothing is redrawn: else they are the tokenizer's."""
    count: int = 1
    """Variants."""
    sampler: Annotated[Sampler, tyro.conf.arg(name="")] = field(default_factory=Sampler)
    seed: int = 0
    """Variant n draws from the random stream (seed, n)."""
    class_names: Path | None = None
    """A text file whose n-th line, from 0, names class n, instead of the model's own names."""
    animate: AnimationFormat | None = None
    """Also write each variant growing scale by scale: NUMBER_CLASS.gif or .anim.png."""

    def check(self) -> None:
        """Raises InputError for a field out of range."""
        check_integer("count", self.count, 1)
        check_integer("seed", self.seed, 0)
        given = [f for f in ("mask", "box", "keep_box") if getattr(self, f) is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'nothing'} given; "
                "expected exactly one of --mask, --box and --keep-box"
            )


def run(config: EditConfig) -> None:
    """Carries out ``config``; raises InputError for unusable files or settings."""
    config.check()
    image = read_picture(config.image)
    mask = None if config.mask is None else _read_mask(config.mask)
    model, tokenizer = load_pair(config.tokenizer, config.model)
    names = names_of(model, config.class_names)
    label = class_number(config.label, model.config.num_classes, names)
    if others := other_numbers([label], names):
        log.info("the class is meant by name, and files named by number: class %s", others)
    size = tokenizer.config.image_size
    pixels_yxc = np.asarray(fit_picture(image, size))
    if mask is not None and mask.size not in (image.size, size[::-1]):
        raise InputError(
            f"{quoted(config.mask)}: (rows, columns) is {mask.size[::-1]}; "
            f"expected {image.size[::-1]}, the image's, or {size}, the tokenizer's"
        )
    mask_yx = _fitted_mask(config, mask, size)

    def finished(images_ncyx: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) of images in [0, 1], as the user wants to see them."""
        pixels_nyxc = to_pixels(images_ncyx)
        return np.where(mask_yx[..., None], pixels_nyxc, pixels_yxc) if config.keep else pixels_nyxc

    frames: list[np.ndarray] = []
    graphs = {
        "models": [model.config, tokenizer.config],
        "count": config.count,
        "sampler": config.sampler,
        "animated": config.animate is not None,
        "redrawn": bool(mask_yx.any()),
    }
    with graph_cache(command="edit", **graphs), working("drawing"):
        out = edit(
            model,
            tokenizer,
            to_model_range(pixels_yxc[None])[0],
            mask_yx,
            np.full(config.count, label, np.int32),
            config.sampler,
            config.seed,
            on_scale=None
            if config.animate is None
            else lambda _k, images: frames.append(finished(images)),
        )
    for n, variant_yxc in enumerate(finished(out.images)):
        path = config.out / f"{n:06d}_{label}.png"
        if config.animate is not None:
            moving = animation_path(path, config.animate)
            save_animation([frame[n] for frame in frames], moving, config.animate)
        save_png(variant_yxc, path)
    log.info("wrote %d images to %s", config.count, quoted(config.out.resolve()))


def _read_mask(path: Path) -> Image.Image:
    """A mask file as grey, 255 where it is redrawn and 0 elsewhere."""
    grey = read_picture(path, background="black").convert("L")
    return grey.point(lambda value: 255 * (value >= 128))


def _fitted_mask(config: EditConfig, mask: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, true where the image is redrawn."""
    if mask is not None:
        return np.asarray(fit_picture(mask, size, Image.Resampling.NEAREST)) > 0
    kept = config.keep_box is not None
    mask_yx = box_mask(config.keep_box if kept else config.box, *size)
    return ~mask_yx if kept else mask_yx


def main() -> None:
    """The command; see ``run_command``."""
    run_command(EditConfig, "python -m var_transformer.edit", run)


if __name__ == "__main__":
    main()
