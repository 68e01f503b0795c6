"""What a digits model draws in one pass after it has learned what guidance draws in two.

    python benchmarks/one_pass.py --out runs/one-pass

Trains the digits model (once: it is kept in the folder), fine-tunes it by condition contrastive
alignment and by guidance-free training, and has the judge of the digits look at what each draws
without guidance, beside what the model draws with guidance and without. Several seeds, each of a
fine-tuning and of its images.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import logging
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train import (
    AdamWConfig,
    ContrastConfig,
    DigitJudge,
    GuidanceFreeConfig,
    ImageSet,
    RunConfig,
    SamplingConfig,
    TransformerStageConfig,
    distinct,
    load_digits_split,
    run_training,
)
from var_transformer import Transformer, generate

log = logging.getLogger("one_pass")


@dataclass(frozen=True)
class Config:
    """Fine-tune a digits model to draw in one pass, and judge what it draws."""

    out: Path = Path("runs/one-pass")
    """The folder for everything that is written."""
    cfg: float = 1.5
    """Guidance of the model that is compared with, and that gft learns."""
    seeds: int = 5
    """Seeds: 0, 1, ..."""
    per_class: int = 100
    """Images of each digit that are judged."""
    batch: int = 50
    """Images that are drawn at once."""
    cca: ContrastConfig = field(default_factory=lambda: ContrastConfig(0.1, 10.0))
    cca_epochs: int = 2
    """Passes over the training images by cca."""
    cca_rate: float = 1e-4
    """Its peak learning rate."""
    gft_epochs: int = 6
    """Passes over the training images by gft."""
    gft_rate: float = 5e-4
    """Its peak learning rate."""

    def stages(self) -> dict[str, TransformerStageConfig]:
        """How each objective fine-tunes."""
        common = TransformerStageConfig(samples_per_class=0)
        return {
            "cca": replace(
                common,
                objective="cca",
                cca=self.cca,
                epochs=self.cca_epochs,
                optimizer=AdamWConfig(self.cca_rate),
            ),
            "gft": replace(
                common,
                objective="gft",
                gft=GuidanceFreeConfig(self.cfg),
                epochs=self.gft_epochs,
                optimizer=AdamWConfig(self.gft_rate),
            ),
        }


@dataclass(frozen=True)
class Drawn:
    """What the judge says of images, and the processor seconds that they took."""

    accuracy: float
    distinct: float
    seconds: float


class Judged:
    """Draws the images of each digit, and judges them."""

    def __init__(self, config: Config, tokenizer: Tokenizer, train: ImageSet) -> None:
        self._config, self._tokenizer, self._train = config, tokenizer, train
        self._judge = DigitJudge(train)

    def __call__(self, path: Path, cfg: float, seed: int) -> Drawn:
        model, per_class = Transformer.load(path), self._config.per_class
        labels_n = np.repeat(np.arange(model.config.num_classes, dtype=np.int32), per_class)
        self._draw(model, labels_n, 0, cfg, seed)  # which compiles
        images, begin = [], time.process_time()
        for first in range(0, len(labels_n), self._config.batch):
            images.append(self._draw(model, labels_n, first, cfg, seed))
        seconds = time.process_time() - begin
        images_ncyx = np.concatenate(images)
        accuracy = self._judge.accuracy(images_ncyx, labels_n)
        return Drawn(accuracy, distinct(images_ncyx, labels_n, self._train), seconds)

    def _draw(
        self, model: Transformer, labels_n: np.ndarray, first: int, cfg: float, seed: int
    ) -> np.ndarray:
        labels_b = labels_n[first : first + self._config.batch]
        numbers = range(first, first + len(labels_b))
        drawn = generate(model, self._tokenizer, labels_b, cfg=cfg, seed=seed, numbers=numbers)
        return drawn.images


def fine_tuned(config: Config, base: Path, name: str, seed: int) -> Path:
    """The transformer after fine-tuning by an objective, and the log of what it took."""
    out, begin = config.out / f"{name}-{seed}", time.monotonic()
    run_training(
        RunConfig(
            stage="transformer",
            init=base / "transformer.safetensors",
            tokenizer_file=base / "tokenizer.safetensors",
            out=out,
            seed=seed,
            resume=False,
            train_transformer=config.stages()[name],
            sampling=SamplingConfig(per_class=1),
        )
    )
    log.info("%s, seed %d: fine-tuned in %.0f s", name, seed, time.monotonic() - begin)
    return out / "transformer.safetensors"


def measure(config: Config) -> dict[str, list[Drawn]]:
    """What was drawn, by seed, of each model."""
    base, (train, _) = config.out / "base", load_digits_split()
    if not (base / "report.json").exists():
        run_training(RunConfig(out=base))
    judged = Judged(config, Tokenizer.load(base / "tokenizer.safetensors"), train)
    names = ("guided", "unguided", *config.stages())
    found: dict[str, list[Drawn]] = {name: [] for name in names}
    for seed in range(config.seeds):
        for name in names:
            is_base = name in ("guided", "unguided")
            path = base / "transformer.safetensors"
            path = path if is_base else fine_tuned(config, base, name, seed)
            found[name].append(judged(path, config.cfg if name == "guided" else 0.0, seed))
            log.info("%s, seed %d: %s", name, seed, found[name][-1])
    return found


def table(found: dict[str, list[Drawn]], cfg: float) -> str:
    """In Markdown: means over the seeds, their ranges, and time relative to the guided model's."""
    titles = {
        "guided": f"two passes, `--cfg {cfg:g}`",
        "unguided": "one pass, before",
        "cca": "one pass, after `cca`",
        "gft": "one pass, after `gft`",
    }
    lines = [
        "| | judged accuracy | `distinct` | time |",
        "| --- | --- | --- | --- |",
    ]
    for name, rows in found.items():
        accuracy = np.array([row.accuracy for row in rows])
        varied = np.array([row.distinct for row in rows])
        seconds = sum(r.seconds for r in rows) / sum(r.seconds for r in found["guided"])
        ranges = f"{100 * accuracy.min():.1f} to {100 * accuracy.max():.1f}"
        lines.append(
            f"| {titles[name]} | {100 * accuracy.mean():.1f} % ({ranges}) "
            f"| {varied.mean():.3f} ({varied.min():.3f} to {varied.max():.3f}) | {seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = tyro.cli(Config)
        config = replace(config, out=config.out.resolve())
        found = table(measure(config), config.cfg)
        (config.out / "table.md").write_text(found)
        sys.stdout.write(found)
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
