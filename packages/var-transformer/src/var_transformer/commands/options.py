"""The options that commands share: the pair of models, class names, sampler and output files."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_integer, quoted, save_png
from var_tokenizer.common.progress import working

from var_transformer.adapters.merging import merge_adapters
from var_transformer.adapters.peft_files import read_adapters
from var_transformer.attention import BackendConfig, ProductType
from var_transformer.commands.class_names import names_of, other_numbers
from var_transformer.commands.image_files import (
    AnimationFormat,
    animation_path,
    image_name,
    save_animation,
)
from var_transformer.generation.sampler import Sampler
from var_transformer.model.checks import check_pair
from var_transformer.model.transformer import Transformer
from var_transformer.pretrained import TOKENIZER_FILE, TRANSFORMER_FILE
from var_transformer.stored.stored_transformer import AnyTransformer, StoredTransformer

log = logging.getLogger("var_transformer")

Names = tuple[str, ...] | None
"""The names of a model's classes, if they are known."""


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """A transformer and the tokenizer that it was trained with."""

    tokenizer: Path | None = None
    """The tokenizer, a .safetensors file. Without it and --model: the digits in the box."""
    model: Path | None = None
    """The transformer, a .safetensors file."""
    class_names: Path | None = None
    """A text file whose n-th line, from 0, names class n; commas separate synonyms. By default
    the names in the transformer's file, if it has any."""
    adapter: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FILE[:WEIGHT]"), tyro.conf.UseAppendAction
    ] = ()
    """A LoRA adapter, .safetensors or peft's folder, that is added to the transformer WEIGHT times
    (1 by default), with its new classes. May be given several times."""
    dtype: ProductType | None = None
    """Type of the transformer's matrix products. By default float16 on an Ascend, with its fused
    attention, and float32 elsewhere. A CPU has no bfloat16."""
    low_memory: bool = False
    """Leave the transformer in its file and read each block whenever it is needed: slower, and in
    a fraction of the memory. Needs the C++ kernels, on a CPU."""

    def __post_init__(self) -> None:
        """Raises InputError for one model without the other and what contradicts low_memory."""
        if (self.tokenizer is None) != (self.model is None):
            given, missing = ("model", "tokenizer") if self.model else ("tokenizer", "model")
            raise InputError(f"{given} is given and {missing} is not; expected both or none")
        if self.low_memory and self.adapter:
            raise InputError(
                f"low_memory is True and adapter is {quoted(self.adapter[0])}; expected one of "
                "them, or the file with the adapter in it that var-convert merge writes"
            )
        if self.low_memory and self.dtype not in (None, "float32"):
            raise InputError(
                f"low_memory is True and dtype is {self.dtype}; expected float32, in which it "
                "computes whatever the file's type"
            )

    def files(self) -> tuple[Path, Path]:
        """The tokenizer's file and the transformer's."""
        return self.tokenizer or TOKENIZER_FILE, self.model or TRANSFORMER_FILE

    @property
    def backend(self) -> BackendConfig:
        """How the transformer computes; raises InputError for a type that the device lacks."""
        return BackendConfig.for_drawing(self.dtype)

    def load(self, encodes: bool = True) -> tuple[AnyTransformer, Tokenizer, Names]:
        """Both models and the names of the classes.

        encodes: whether the tokenizer will; else ``low_memory`` leaves out its encoder.
        Raises InputError unless the files are whole and belong together, and for a type or a head
        width that the device lacks.
        """
        adapters = read_adapters(self.adapter)
        tokenizer_file, model_file = self.files()
        with working("loading the models"):
            model: AnyTransformer
            if self.low_memory:
                model = StoredTransformer.load(model_file)
            else:
                model = Transformer.load(model_file, self.backend)
            whole = encodes or not self.low_memory
            tokenizer = Tokenizer.load(tokenizer_file, encoder=whole)
        check_pair(model, tokenizer)
        names = names_of(model, self.class_names)
        if isinstance(model, Transformer) and adapters:
            model.class_names = names
            with working("adding the adapters"):
                merge_adapters(model, adapters)
            names = model.class_names
        return model, tokenizer, names


@dataclass(frozen=True, kw_only=True)
class DrawConfig(PairConfig):
    """How images are drawn, and which files are written."""

    out: Path = Path("samples")
    """The folder for everything that the command writes."""
    sampler: Annotated[Sampler, tyro.conf.arg(name="")] = field(default_factory=Sampler)
    seed: int = 0
    """Image n draws from the random stream (seed, n)."""
    animate: AnimationFormat | None = None
    """Also write each image growing scale by scale: NUMBER_CLASS.gif or NUMBER_CLASS.anim.png."""

    def __post_init__(self) -> None:
        """Raises InputError for a negative seed, and as ``PairConfig`` does."""
        super().__post_init__()
        check_integer("seed", self.seed, 0)

    def path(self, number: int, label: int) -> Path:
        """The path of the image of this number and class."""
        return self.out / image_name(number, label)

    def save(self, pixels_yxc: np.ndarray, frames_kyxc: list[np.ndarray], path: Path) -> None:
        """Writes an image, uint8 (H, W, 3). Writes its animation, if wanted, first."""
        if self.animate is not None:
            save_animation(frames_kyxc, animation_path(path, self.animate), self.animate)
        save_png(pixels_yxc, path)

    def files_of(self, path: Path) -> list[Path]:
        """All files of an image."""
        return [path] if self.animate is None else [path, animation_path(path, self.animate)]

    def is_saved(self, path: Path) -> bool:
        """Whether an image has all of its files."""
        return all(file.exists() for file in self.files_of(path))


def log_other_numbers(classes: list[int], names: Names) -> None:
    """Tells the user about classes whose names are numbers, but not their own."""
    if others := other_numbers(classes, names):
        log.info("classes are given by name, and files named by number: class %s", others)
