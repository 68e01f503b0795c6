"""``python -m var_transformer.sample``: draws images of chosen classes into files."""

import dataclasses
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    check_integer,
    fewer_images,
    file_digest,
    holding,
    needing_memory,
    quoted,
    save_png,
    to_pixels,
    warn_of_kills,
)
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import progress_bar

from var_transformer.adapters.peft_files import adapter_file, read_adapters
from var_transformer.commands.batch_size import fitting_batch
from var_transformer.commands.class_names import class_numbers, number_ranges
from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.image_files import grid, has_npz, read_equal, save_npz
from var_transformer.commands.options import DrawConfig, Names, log_other_numbers
from var_transformer.commands.resume import begin_or_resume, file_version
from var_transformer.commands.selection import Candidate, Selection, load_judge
from var_transformer.generation.generate import generate
from var_transformer.generation.refiner import Refiner
from var_transformer.model.transformer import Transformer
from var_transformer.stored.stored_transformer import AnyTransformer

log = logging.getLogger("var_transformer")

_GRID_ROWS, _GRID_COLUMNS, _MOST_COLUMNS = 20, 10, 100


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    """Generate images of chosen classes.

    OUT gets a PNG file for each image, NUMBER_CLASS.png, grid.png (a row for each of the first 20
    classes with its first 10 images, or --columns) and settings.json. For --classes none, CLASS
    is the number after the last class. The same command continues an interrupted run, byte for
    byte. Image n depends on the models, the sampler, the seed, n and its class; another batch
    size changes only its rounding.
    """

    classes: str = "all"
    """Classes by name or number: cat,7,980. Also ranges (0-999), all, and none (no class)."""
    per_class: int = 1
    """Images of each class."""
    candidates: int = 0
    """Draw so many images of each class, of which those stay that the judge most surely takes for
    the class; candidates.jsonl has all probabilities. 0 draws --per-class, unjudged."""
    keep: int = 1
    """How many of the candidates stay."""
    judge: Path | None = None
    """What judges candidates: a classifier (var_train.evaluate classifier), .safetensors. By
    default EfficientNet-Lite0, for the 1,000 classes of ImageNet."""
    numbers: str | None = None
    """The images' numbers, one for each: 57 or 57,60-63. By default they count from 0."""
    refiner: Path | None = None
    """A smaller transformer of the same tokenizer that draws the last --refined-scales scales."""
    refined_scales: int = 0
    """How many of the last scales the refiner draws."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, or what the run began with. An
    interrupted run may go on with fewer."""
    npz: bool = False
    """Also write samples.npz for guided-diffusion's evaluator: uint8 arr_0 (N, H, W, 3), labels
    arr_1 (N,), in an order drawn from the seed, as its Inception Score needs it."""
    columns: int = 0
    """Columns of grid.png, which then has the first images in their order, in up to 20 rows."""

    def __post_init__(self) -> None:
        """Raises InputError for a field out of range."""
        super().__post_init__()
        check_integer("per_class", self.per_class, 1)
        check_integer("candidates", self.candidates, 0)
        check_integer("keep", self.keep, 1)
        check_integer("batch", self.batch, 0)
        check_integer("columns", self.columns, 0, _MOST_COLUMNS)
        if (self.refiner is None) != (self.refined_scales == 0):
            raise InputError(
                f"refiner is {quoted(str(self.refiner))} and refined_scales is "
                f"{self.refined_scales}; expected both or none"
            )
        self._check_candidates()

    def _check_candidates(self) -> None:
        if not self.candidates and (self.keep > 1 or self.judge is not None):
            raise InputError(
                f"candidates is 0, keep {self.keep} and judge {quoted(str(self.judge))}; expected "
                "candidates to keep or to judge"
            )
        if self.candidates and (self.keep > self.candidates or self.per_class > 1):
            raise InputError(
                f"candidates is {self.candidates}, keep {self.keep} and per_class "
                f"{self.per_class}; expected at most as many to keep, and no per_class"
            )

    @property
    def drawn_per_class(self) -> int:
        """Images of each class that are drawn."""
        return self.candidates or self.per_class

    @property
    def kept_per_class(self) -> int:
        """Images of each class that the folder has in the end."""
        return self.keep if self.candidates else self.per_class


@dataclass(frozen=True)
class Plan:
    """What a run draws.

    Image n has the class labels_n[n], draws from the random stream numbers_n[n], and becomes the
    file paths[n].
    """

    model: AnyTransformer
    tokenizer: Tokenizer
    refiner: Refiner | None
    labels_n: np.ndarray
    numbers_n: np.ndarray
    paths: list[Path]
    selection: Selection | None = None
    selected_by: dict[str, object] | None = None
    """What the selection depends on, for settings.json."""

    def is_wanted(self, n: int) -> bool:
        """Whether the folder is to have image n, by what is known now."""
        return self.selection is None or not self.selection.is_rejected(n)

    def kept(self) -> tuple[list[Path], np.ndarray]:
        """Paths and labels of the images that the folder has in the end."""
        places = range(len(self.paths)) if self.selection is None else self.selection.kept()
        return [self.paths[n] for n in places], self.labels_n[list(places)]


def run(config: SampleConfig) -> None:
    """Runs the command.

    Raises InputError for unusable files or settings, and for an ``out`` begun by a run with
    other settings, before any model runs or any file is written.
    """
    tokenizer_file, model_file = config.files()
    files = {"tokenizer": tokenizer_file, "model": model_file, "refiner": config.refiner}
    read = [*files.values(), *map(adapter_file, config.adapter)]
    versions = [file_version(path) for path in read]
    with ThreadPoolExecutor() as pool:  # beside the loading, which takes as long
        digests = pool.map(lambda path: path and file_digest(path), files.values())
        plan = make_plan(config)
        digest_of: dict[str, object] = dict(zip(files, digests, strict=True))
    found = read_adapters(config.adapter)
    digest_of["adapters"] = [[each.adapter.digest, each.weight] for each in found]
    for path, version in zip(read, versions, strict=True):
        if file_version(path) != version:
            raise InputError(f"{quoted(str(path))}: changed while it was read; start again")
    most = config.batch or fitting_batch(plan.model, plan.tokenizer, config.sampler)
    settings: dict[str, object] = digest_of | _settings(config, plan, min(most, len(plan.paths)))
    with holding(config.out):
        if (config.out / "settings.json").exists():
            warn_of_kills("a smaller --batch")
        is_done = plan.selection is None and all(config.is_saved(path) for path in plan.paths)
        keep = config.batch == 0
        batch = begin_or_resume(config.out, settings, keep_batch=keep, is_done=is_done)
        if plan.selection is not None:
            plan.selection.resume()
        _write(config, plan, batch)
    log.info("wrote %d images to %s", len(plan.kept()[0]), quoted(config.out.resolve()))


def _write(config: SampleConfig, plan: Plan, batch: int) -> None:
    """Draws the images that are missing, and writes the files about all of them."""
    refiner = plan.refiner
    graphs = {
        "models": [plan.model.config, plan.tokenizer.config, refiner and refiner.model.config],
        "backend": plan.model.backend,
        "low_memory": config.low_memory,  # then the transformer has no graphs
        "batch": batch,
        "sampler": config.sampler,
        "refined_scales": config.refined_scales,
        "animated": config.animate is not None,
    }
    with graph_cache(command="sample", **graphs):
        _draw(config, plan, batch)
    paths, labels_n = plan.kept()
    _save_grid(config, paths)
    if config.npz:
        save_shuffled(config, paths, labels_n)


def make_plan(config: SampleConfig) -> Plan:
    """Loads the models and lists the images; raises InputError if they cannot be drawn."""
    model, tokenizer, names = config.load(encodes=False)
    config.sampler.check(len(tokenizer.schedule), tokenizer.vocab_size)
    refiner = None
    if config.refiner is not None:
        small = Transformer.load(config.refiner, config.backend)
        refiner = Refiner(small, config.refined_scales)
        refiner.check(model, tokenizer)
    classes = class_numbers(config.classes, model.config.num_classes, names)
    log_other_numbers(classes, names)
    labels_n = np.repeat(np.array(classes, np.int32), config.drawn_per_class)
    numbers_n = _numbers(config, len(labels_n))
    images = list(zip(numbers_n.tolist(), labels_n.tolist(), strict=True))
    if len(set(images)) < len(images):
        raise InputError(f"numbers are {config.numbers}; expected each once for a class")
    paths = [config.path(*image) for image in images]
    plan = Plan(model, tokenizer, refiner, labels_n, numbers_n, paths)
    return _selecting(config, plan, names) if config.candidates else plan


def _selecting(config: SampleConfig, plan: Plan, names: Names) -> Plan:
    """The same plan, of whose images some stay; raises InputError for classes not to be judged."""
    num_classes = plan.model.config.num_classes
    if (plan.labels_n == num_classes).any():
        raise InputError("classes has none; expected classes to judge candidates by")
    judge = load_judge(config.judge, num_classes, names)
    images = zip(plan.numbers_n.tolist(), plan.labels_n.tolist(), plan.paths, strict=True)
    candidates = [Candidate(*image) for image in images]
    selection = Selection(config, judge, candidates, config.candidates, config.keep)
    selected_by = {"keep": config.keep, "judge": judge.identity}
    return dataclasses.replace(plan, selection=selection, selected_by=selected_by)


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


def _settings(config: SampleConfig, plan: Plan, batch: int) -> dict[str, object]:
    """Everything that the images depend on, besides the models."""
    settings: dict[str, object] = {}
    if plan.selected_by is not None:
        settings["selection"] = plan.selected_by
    return settings | {
        "dtype": str(plan.model.backend.dtype).lower(),
        "refined_scales": config.refined_scales,
        "classes": [int(label) for label in plan.labels_n[:: config.drawn_per_class]],
        "per_class": config.drawn_per_class,
        "numbers": config.numbers,
        "seed": config.seed,
        "batch": batch,
        "sampler": dataclasses.asdict(config.sampler),
    }


def _draw(config: SampleConfig, plan: Plan, batch: int) -> None:
    """Draws the images whose files are missing, and writes them.

    Batches begin at multiples of the batch size, and a partly written batch is drawn again as a
    whole, so an interrupted run computes what an uninterrupted one would have. Threads write the
    images of a batch while the next one is drawn.
    """
    count = len(plan.paths)
    remedy = fewer_images("--batch", batch)
    writing: list[Future[None]] = []
    with progress_bar() as bar, ThreadPoolExecutor(thread_name_prefix="png") as pool:

        def finish_writing() -> None:
            while writing:
                writing.pop(0).result()  # raises what the thread did
                bar.advance(task)

        task = bar.add_task("sampling", total=count, unit="images")
        for begin in range(0, count, batch):
            places = range(begin, min(begin + batch, count))
            missing = [
                n for n in places if plan.is_wanted(n) and not config.is_saved(plan.paths[n])
            ]
            bar.advance(task, len(places) - len(missing))
            if not missing:
                continue
            # the last batch repeats its last image: batches of one size compile once
            padded = np.minimum(np.arange(begin, begin + batch), count - 1)
            frames: list[np.ndarray] = []

            def keep(_k: int, images_bcyx: np.ndarray, frames: list[np.ndarray] = frames) -> None:
                frames.append(to_pixels(images_bcyx))

            with needing_memory(f"drawing {batch} images at once", remedy):
                out = generate(
                    plan.model,
                    plan.tokenizer,
                    plan.labels_n[padded],
                    sampler=config.sampler,
                    seed=config.seed,
                    numbers=plan.numbers_n[padded].tolist(),
                    on_scale=None if config.animate is None else keep,
                    refiner=plan.refiner,
                )
            finish_writing()
            if plan.selection is not None:
                plan.selection.settle(begin)
            pixels_byxc = to_pixels(out.images)
            for n in missing:
                b = n - begin
                shown = [frame[b] for frame in frames]
                writing.append(pool.submit(config.save, pixels_byxc[b], shown, plan.paths[n]))
        finish_writing()
        if plan.selection is not None:
            plan.selection.settle(count)


def _save_grid(config: SampleConfig, paths: list[Path]) -> None:
    if config.columns:
        columns, shown = config.columns, paths[: config.columns * _GRID_ROWS]
    else:
        columns = min(config.kept_per_class, _GRID_COLUMNS)
        rows = (paths[row:][:columns] for row in range(0, len(paths), config.kept_per_class))
        shown = [path for row in islice(rows, _GRID_ROWS) for path in row]
    save_png(grid(list(read_equal(shown)), min(columns, len(shown))), config.out / "grid.png")


def save_shuffled(config: SampleConfig, paths: list[Path], labels_n: np.ndarray) -> None:
    """Writes samples.npz, in an order that depends only on the seed and the number of images.

    One that is whole and later than the images stays as it is.

    The evaluator takes the Inception Score of consecutive parts of the array. In class order,
    each part would have few classes, and a perfect model would score badly.
    """
    order_n = np.random.default_rng([config.seed, *b"npz"]).permutation(len(paths))
    files = [paths[n] for n in order_n], labels_n[order_n], config.out / "samples.npz"
    if not has_npz(*files):
        save_npz(*files)


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
