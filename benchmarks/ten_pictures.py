"""What ten pictures of each of two new classes teach a digits model by LoRA.

    python benchmarks/ten_pictures.py --out runs/ten-pictures

Trains the digits model without two of the digits (once: it is kept in the folder), draws pictures
of the others with it, and trains an adapter on ten real pictures of each new digit beside them; the
judge of the digits looks at what is drawn afterwards. Several draws of the ten pictures.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, save_png, to_pixels
from var_train import (
    AdamWConfig,
    DigitJudge,
    ImageSet,
    RunConfig,
    SamplingConfig,
    TransformerStageConfig,
    distinct,
    load_digits_split,
    run_training,
)
from var_transformer import (
    LoraConfig,
    Transformer,
    WeightedAdapter,
    generate,
    load_adapter,
    merge_adapters,
)

log = logging.getLogger("ten_pictures")


@dataclass(frozen=True)
class Config:
    """Adapt a digits model to two digits that it has never seen, and judge what it draws."""

    out: Path = Path("runs/ten-pictures")
    """The folder for everything that is written."""
    new: tuple[int, int] = (3, 8)
    """The digits that the model does not see at first."""
    pictures: int = 10
    """Real pictures of each new digit."""
    rehearsed: int = 5
    """Pictures of each old digit that the model draws and is trained on, too."""
    draws: int = 3
    """Draws of the ten pictures: 0, 1, ..."""
    per_class: int = 50
    """Images of each digit that are judged."""
    rank: int = 2
    """Rank of the adapter."""
    targets: tuple[str, ...] = ("mat_qkv", "proj", "fc1", "fc2", "ada_lin")
    """What is adapted; the modulation, too, by which a class says what it is."""
    epochs: int = 200
    """Passes of the adapter's training over all pictures."""
    rate: float = 1e-2
    """Its peak learning rate."""
    cfg: float = 1.5
    """Guidance of everything that is drawn."""


@dataclass(frozen=True)
class Row:
    """What a draw of the pictures gave."""

    draw: int
    seconds: float
    share: float
    new_accuracy: float
    old_accuracy: float
    old_before: float
    new_distinct: float


def write_images(folder: Path, images_nyxc: np.ndarray) -> None:
    for n, pixels_yxc in enumerate(images_nyxc):
        save_png(pixels_yxc, folder / f"{n}.png")


def write_digits(folder: Path, digits: ImageSet, chosen: Mapping[int, np.ndarray]) -> None:
    """FOLDER/DIGIT/N.png of the images of each digit at some places."""
    for digit, places in chosen.items():
        of_digit_nyxc = digits.images_nyxc[digits.labels_n == digit]
        write_images(folder / str(digit), of_digit_nyxc[places])


def base_run(config: Config, train: ImageSet, val: ImageSet) -> Path:
    """The folder of a digits run that never saw the new digits."""
    out = config.out / "base"
    if not (out / "report.json").exists():
        for split, digits in (("train", train), ("val", val)):
            counts = {d: np.sum(digits.labels_n == d) for d in old_digits(config)}
            write_digits(
                config.out / "digits" / split,
                digits,
                {digit: np.arange(count) for digit, count in counts.items()},
            )
        run = RunConfig(data=config.out / "digits", out=out)
        # Mirrored digits and more epochs: a tokenizer of eight digits alone draws an 8 that the
        # judge takes for another digit, one in five times.
        tokenizer = replace(run.train_tokenizer, epochs=12, flip=True)
        run_training(replace(run, train_tokenizer=tokenizer))
    return out


def old_digits(config: Config) -> list[int]:
    return [digit for digit in range(10) if digit not in config.new]


def drawn(
    model: Transformer,
    tokenizer: Tokenizer,
    digits: list[int],
    count: int,
    config: Config,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images (N, 3, Y, X) in [0, 1] of each digit, and their digits (N,)."""
    assert model.class_names is not None
    images, labels_n = [], np.repeat(digits, count)
    for digit in digits:
        label = model.class_names.index(str(digit))
        numbers = range(label * count, (label + 1) * count)
        labels = np.full(count, label, np.int32)
        found = generate(model, tokenizer, labels, cfg=config.cfg, seed=seed, numbers=numbers)
        images.append(found.images)
    return np.concatenate(images), labels_n


def adapt(
    config: Config, base: Path, draw: int, train: ImageSet, val: ImageSet
) -> tuple[Path, dict]:
    """Trains an adapter on one draw of the pictures; its folder, and the report."""
    folder, out = config.out / f"pictures-{draw}", config.out / f"adapted-{draw}"
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(draw)
    for split, digits, count in (("train", train, config.pictures), ("val", val, 20)):
        places = {
            digit: rng.permutation(np.sum(digits.labels_n == digit))[:count] for digit in config.new
        }
        write_digits(folder / split, digits, places)
    model = Transformer.load(base / "transformer.safetensors")
    tokenizer = Tokenizer.load(base / "tokenizer.safetensors")
    old = old_digits(config)
    images_ncyx, labels_n = drawn(model, tokenizer, old, config.rehearsed, config, 1000 + draw)
    for digit in old:
        of_digit = to_pixels(images_ncyx[labels_n == digit])
        write_images(folder / "train" / str(digit), of_digit)
        write_images(folder / "val" / str(digit), of_digit[:1])
    stage = TransformerStageConfig(
        epochs=config.epochs,
        batch=30,
        optimizer=AdamWConfig(learning_rate=config.rate),
        lora=LoraConfig(config.rank, 2.0 * config.rank, config.targets),
        samples_per_class=0,
    )
    report = run_training(
        RunConfig(
            stage="transformer",
            init=base / "transformer.safetensors",
            tokenizer_file=base / "tokenizer.safetensors",
            data=folder,
            out=out,
            resume=False,
            train_transformer=stage,
            sampling=SamplingConfig(per_class=4, cfg=config.cfg),
        )
    )
    return out / "adapter", report


def measure(config: Config) -> list[Row]:
    train, val = load_digits_split()
    judge, base, old = DigitJudge(train), base_run(config, train, val), old_digits(config)
    tokenizer = Tokenizer.load(base / "tokenizer.safetensors")
    rows = []
    for draw in range(config.draws):
        begin = time.monotonic()
        adapter, report = adapt(config, base, draw, train, val)
        seconds = time.monotonic() - begin
        model = Transformer.load(base / "transformer.safetensors")
        before = judge.accuracy(*drawn(model, tokenizer, old, config.per_class, config, draw))
        model = Transformer.load(base / "transformer.safetensors")
        merge_adapters(model, [WeightedAdapter(load_adapter(adapter))])
        new = drawn(model, tokenizer, list(config.new), config.per_class, config, draw)
        after = judge.accuracy(*drawn(model, tokenizer, old, config.per_class, config, draw))
        share = float(str(report["trained_share"]))
        accuracy, varied = judge.accuracy(*new), distinct(*new, train)
        rows.append(Row(draw, seconds, share, accuracy, after, before, varied))
        log.info("%s", rows[-1])
    return rows


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [
        "| draw | s | adapter | new digits known | `distinct` | old ones, before and after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.draw} | {row.seconds:.0f} | {100 * row.share:.2f} % "
            f"| {100 * row.new_accuracy:.1f} % | {row.new_distinct:.2f} "
            f"| {100 * row.old_before:.1f} %, {100 * row.old_accuracy:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = tyro.cli(Config)
        found = table(measure(replace(config, out=config.out.resolve())))
        (config.out / "table.md").write_text(found)
        sys.stdout.write(found)
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
