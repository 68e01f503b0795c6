"""``python -m var_transformer.sample``: draws images of chosen classes into files."""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    check_integer,
    open_regular,
    quoted,
    replacing,
    to_pixels,
)
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import progress_bar

from var_transformer.commands.class_names import (
    class_numbers,
    names_of,
    number_ranges,
    other_numbers,
)
from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.image_files import (
    AnimationFormat,
    animation_path,
    grid,
    read_equal,
    save_animation,
    save_npz,
    save_png,
)
from var_transformer.commands.options import load_pair
from var_transformer.generation.generate import generate
from var_transformer.generation.refiner import Refiner
from var_transformer.generation.sampler import Sampler
from var_transformer.model.transformer import Transformer

log = logging.getLogger("var_transformer")

LARGEST_BATCH = 64
_GRID_ROWS, _GRID_COLUMNS, _MOST_COLUMNS = 20, 10, 100


@dataclass(frozen=True)
class SampleConfig:
    """Generate images of chosen classes.

    In OUT it writes one PNG file an image, NUMBER_CLASS.png, grid.png (a row for each of the
    first 20 classes with its first 10 images, or --columns) and settings.json. With --classes
    none the number is that behind the last class. Run again with the same
    settings, it continues where it stopped, byte for byte. Image n depends on the models, the
    sampler, the seed, n and its class; another batch size changes it by rounding alone.
    """

    tokenizer: Path
    """The tokenizer, a .safetensors file."""
    model: Path
    """The transformer, a .safetensors file."""
    classes: str
    """Classes by name or number: cat,7,980. Also ranges (0-999), all, and none (no class)."""
    out: Path
    """The folder for everything that the command writes."""
    per_class: int = 1
    """Images of each class."""
    numbers: str | None = None
    """The images' numbers, one for each: 57 or 57,60-63. By default they count from 0."""
    sampler: Annotated[Sampler, tyro.conf.arg(name="")] = field(default_factory=Sampler)
    refiner: Path | None = None
    """A smaller transformer of the same tokenizer that draws the last --refined-scales scales."""
    refined_scales: int = 0
    """How many of the last scales the refiner draws."""
    seed: int = 0
    """Image n draws from the random stream (seed, n)."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, or what the run began with."""
    class_names: Path | None = None
    """A text file whose n-th line, from 0, names class n, instead of the model's own names."""
    animate: AnimationFormat | None = None
    """Also write each image growing scale by scale: NUMBER_CLASS.gif or NUMBER_CLASS.anim.png."""
    npz: bool = False
    """Also write samples.npz for guided-diffusion's evaluator: uint8 arr_0 (N, H, W, 3), labels
    arr_1 (N,), in an order drawn from the seed, as its Inception Score needs it."""
    columns: int = 0
    """Columns of grid.png, which then has the first images in their order, in up to 20 rows."""

    def check(self) -> None:
        """Raises InputError for a field out of range."""
        for name, least in (("per_class", 1), ("seed", 0), ("batch", 0)):
            check_integer(name, getattr(self, name), least)
        check_integer("columns", self.columns, 0, _MOST_COLUMNS)
        if (self.refiner is None) != (self.refined_scales == 0):
            raise InputError(
                f"refiner is {quoted(str(self.refiner))} and refined_scales is "
                f"{self.refined_scales}; expected both or none"
            )


def run(config: SampleConfig) -> None:
    """Carries out ``config``.

    Raises InputError for unusable files or settings, and for an ``out`` that another run with
    other settings has begun, before any model runs or any file is written.
    """
    config.check()
    model, tokenizer = load_pair(config.tokenizer, config.model)
    config.sampler.check(len(tokenizer.schedule), tokenizer.vocab_size)
    refiner = None
    if config.refiner is not None:
        refiner = Refiner(Transformer.load(config.refiner), config.refined_scales)
        refiner.check(model, tokenizer)
    names = names_of(model, config.class_names)
    classes = class_numbers(config.classes, model.config.num_classes, names)
    if others := other_numbers(classes, names):
        log.info("classes are meant by name, and files named by number: class %s", others)
    labels_n = np.repeat(np.array(classes, np.int32), config.per_class)
    numbers_n = _numbers(config, len(labels_n))
    pairs = list(zip(numbers_n.tolist(), labels_n.tolist(), strict=True))
    if len(set(pairs)) < len(pairs):
        raise InputError(f"numbers are {config.numbers}; expected each once for a class")
    targets = [config.out / f"{n:06d}_{label}.png" for n, label in pairs]
    batch = _settle(config, labels_n, batch_size(config, model, tokenizer, len(targets)))
    _remove_leftovers(config.out)

    graphs = {
        "models": [model.config, tokenizer.config, refiner and refiner.model.config],
        "batch": batch,
        "sampler": config.sampler,
        "refined_scales": config.refined_scales,
        "animated": config.animate is not None,
    }
    with graph_cache(command="sample", **graphs):
        _write_images(config, model, tokenizer, refiner, labels_n, numbers_n, targets, batch)
    _save_grid(config, targets, len(classes))
    if config.npz:
        save_shuffled(config, targets, labels_n)
    log.info("wrote %d images to %s", len(targets), quoted(config.out.resolve()))


def save_shuffled(config: SampleConfig, targets: list[Path], labels_n: np.ndarray) -> None:
    """Writes samples.npz, in an order that depends on the seed and the number of images alone.

    The evaluator takes the Inception Score of consecutive parts of the array. In the order of
    classes each part would have few of them, and a perfect model would score badly.
    """
    order_n = np.random.default_rng([config.seed, *b"npz"]).permutation(len(targets))
    save_npz([targets[n] for n in order_n], labels_n[order_n], config.out / "samples.npz")


def _numbers(config: SampleConfig, count: int) -> np.ndarray:
    """(count,) the images' numbers."""
    if config.numbers is None:
        return np.arange(count)
    ranges = number_ranges(config.numbers)
    given = sum(map(len, ranges))
    if given != count:
        raise InputError(
            f"numbers has {given} entries; expected {count}, one for each image of the classes"
        )
    return np.concatenate([np.arange(r.start, r.stop) for r in ranges])


def _save_grid(config: SampleConfig, targets: list[Path], classes: int) -> None:
    if config.columns:
        columns, shown = config.columns, targets[: config.columns * _GRID_ROWS]
    else:
        columns = min(config.per_class, _GRID_COLUMNS)
        rows = (targets[row * config.per_class :][:columns] for row in range(classes))
        shown = [target for row in islice(rows, _GRID_ROWS) for target in row]
    save_png(grid(list(read_equal(shown)), min(columns, len(shown))), config.out / "grid.png")


def _write_images(
    config: SampleConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    refiner: Refiner | None,
    labels_n: np.ndarray,
    numbers_n: np.ndarray,
    targets: list[Path],
    batch: int,
) -> None:
    """Writes the files of ``targets`` that are missing.

    Batches begin at multiples of the batch size, and one that is partly there is drawn whole:
    an interrupted run computes what an uninterrupted one would have.
    """
    count = len(targets)
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=count, unit="images")
        for begin in range(0, count, batch):
            places = range(begin, min(begin + batch, count))
            missing = [n for n in places if not _finished(targets[n], config.animate)]
            bar.advance(task, len(places) - len(missing))
            if not missing:
                continue
            # the last batch repeats its last image: batches of one size compile once
            padded = np.minimum(np.arange(begin, begin + batch), count - 1)
            frames: list[np.ndarray] = []
            out = generate(
                model,
                tokenizer,
                labels_n[padded],
                sampler=config.sampler,
                seed=config.seed,
                numbers=numbers_n[padded],
                on_scale=None
                if config.animate is None
                else lambda _k, images, frames=frames: frames.append(to_pixels(images)),
                refiner=refiner,
            )
            pixels_nyxc = to_pixels(out.images)
            for n in missing:
                if config.animate is not None:
                    path = animation_path(targets[n], config.animate)
                    save_animation([frame[n - begin] for frame in frames], path, config.animate)
                save_png(pixels_nyxc[n - begin], targets[n])
                bar.advance(task)


def _finished(target: Path, animate: AnimationFormat | None) -> bool:
    return target.exists() and (animate is None or animation_path(target, animate).exists())


# ---------------------------------------------------------------- settings of a run
def _settle(config: SampleConfig, labels_n: np.ndarray, batch: int) -> int:
    """Records what the images depend on, or holds it against the record of an earlier run.

    Returns the batch size: ``batch``, or, where the user gives none, the earlier run's. Matrix
    products of other numbers of rows differ in the last bits, and so, rarely, a pixel by 1.
    """
    settings = {
        "tokenizer": _digest(config.tokenizer),
        "model": _digest(config.model),
        "refiner": None if config.refiner is None else _digest(config.refiner),
        "refined_scales": config.refined_scales,
        "classes": [int(label) for label in labels_n[:: config.per_class]],
        "per_class": config.per_class,
        "numbers": config.numbers,
        "seed": config.seed,
        "batch": batch,
        "sampler": dataclasses.asdict(config.sampler),
    }
    settings = json.loads(json.dumps(settings))  # tuples as the lists that a file holds
    path = config.out / "settings.json"
    if path.exists():
        try:
            with open_regular(path) as file:
                before = {"numbers": None} | json.load(file)  # a run may be from before --numbers
            found = {name: before[name] for name in settings}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{quoted(path)}: not the settings of a run: {error!r}") from error
        if config.batch == 0 and isinstance(found["batch"], int) and found["batch"] > 0:
            settings["batch"] = found["batch"]
        for name, value in settings.items():
            if found[name] != value:
                raise InputError(
                    f"{name} is {value} and was {quoted(str(found[name]))} in the run that "
                    f"{quoted(config.out)} holds; "
                    "expected the same, or another --out"
                )
        return settings["batch"]
    if next(config.out.glob("[0-9]*_[0-9]*.png"), None) is not None:
        raise InputError(
            f"{quoted(config.out)}: holds images but no settings.json; expected another --out"
        )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
    return batch


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(out: Path) -> None:
    """Removes the temporary files of a killed run (those of ``replacing``)."""
    for pattern in (".[0-9]*_[0-9]*.*", ".grid.*.png", ".samples.*.npz", ".settings.*.json"):
        for leftover in out.glob(pattern):
            leftover.unlink(missing_ok=True)


# ---------------------------------------------------------------- memory
def batch_size(config: SampleConfig, model: Transformer, tokenizer: Tokenizer, count: int) -> int:
    """Images at once: as the user says, else what half of the free memory holds, at most 64."""
    fitting = int(0.5 * _free_bytes() / bytes_per_image(config, model, tokenizer))
    return min(config.batch or max(min(fitting, LARGEST_BATCH), 1), count)


def bytes_per_image(config: SampleConfig, model: Transformer, tokenizer: Tokenizer) -> int:
    """An estimate of the memory that one more image in a batch takes, from above.

    Keys and values, twice while they grow; the last scale's logits with what filters and draws
    copy of them; and the decoder's pixel lookup of nine neighbours at full size.
    """
    transformer, codec = model.config, tokenizer.config
    rows = (
        2
        if any(settings.unconditional for settings in config.sampler.plan(len(codec.scales)))
        else 1
    )
    cache = rows * 2 * 2 * transformer.depth * transformer.schedule.length * transformer.width * 4
    copies = 4 * rows + (64 if config.sampler.more_smooth else 40)
    logits = copies * max(transformer.schedule.tokens) * transformer.vocab_size
    height, width = codec.image_size
    widest = codec.channels * codec.channel_multipliers[0]
    decoder = 4 * height * width * widest * (9 + 6)
    return cache + logits + decoder


def _free_bytes() -> int:
    """Memory that is free for new use; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 4 * 2**30


def main() -> None:
    """The command; see ``run_command``."""
    run_command(
        SampleConfig,
        "python -m var_transformer.sample",
        run,
        "interrupted; the same command continues",
    )


if __name__ == "__main__":
    main()
