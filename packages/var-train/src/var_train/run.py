"""``python -m var_train.run``: images in; a tokenizer, a transformer and new images out."""

import os

os.environ.setdefault("GLOG_v", "3")  # before MindSpore is imported: its warnings are not ours

import json
import logging
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from var_tokenizer import InputError, Tokenizer, TokenizerConfig
from var_transformer import Transformer, TransformerConfig, check_sampler

from var_train.data import ImageSet, ImageSource, load_digits_split, load_image_tree
from var_train.loop import LoopConfig
from var_train.loop import train as train_stage
from var_train.progress import MetricsLog
from var_train.report import (
    Sampling,
    digit_figures,
    sample_classes,
    save_reconstructions,
    save_samples,
    tokenizer_figures,
    write_report,
)
from var_train.tokenizer_stage import (
    TokenizerStage,
    TokenizerTraining,
    reconstruct,
    steps_in_epoch,
)
from var_train.transformer_stage import TokenSet, TransformerStage, train_transformer

log = logging.getLogger("var_train")


@dataclass(frozen=True)
class TransformerSize:
    """Blocks, channels and attention heads of the transformer."""

    depth: int = 4
    width: int = 128
    heads: int = 4
    shared_adaln: bool = False


@dataclass(frozen=True)
class Run:
    """Train VAR: first the tokenizer, then the transformer on its tokens; then sample.

    Without arguments it trains on 1,797 real handwritten digits that come with the package. In
    OUT it writes tokenizer.safetensors, transformer.safetensors, samples.png,
    reconstructions.png, metrics.jsonl and report.json.
    """

    data: Path | None = None
    """An image tree, DATA/train/CLASS/*.jpg|png and DATA/val/CLASS/*; by default the digits."""
    out: Path = Path("runs/digits")
    """The folder for everything that the run writes."""
    seed: int = 0
    """Of weights, order, dropout and sampling."""
    tokenizer: TokenizerConfig = field(
        default_factory=lambda: TokenizerConfig(
            vocab_size=128,
            latent_channels=8,
            channels=32,
            channel_multipliers=(1, 1, 2, 2),
            res_blocks=1,
            scales=(1, 2, 3, 4),
        )
    )
    """Image side = last scale * 2 ** (channel multipliers - 1)."""
    transformer: TransformerSize = field(default_factory=TransformerSize)
    resume: bool = True
    """Go on from the newest checkpoint of the tokenizer in OUT, where there is one."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(validations=1))
    train_tokenizer: TokenizerStage = field(default_factory=TokenizerStage)
    train_transformer: TransformerStage = field(default_factory=TransformerStage)
    sampling: Sampling = field(default_factory=Sampling)


def run(config: Run) -> dict[str, object]:
    """Carries out ``config`` and returns what ``report.json`` holds.

    Raises InputError for unusable data or settings, before any file is written.
    """
    started = time.monotonic()
    train, val = _load(config)
    model_config = TransformerConfig(
        depth=config.transformer.depth,
        width=config.transformer.width,
        heads=config.transformer.heads,
        shared_adaln=config.transformer.shared_adaln,
        num_classes=len(train.classes),
        vocab_size=config.tokenizer.vocab_size,
        latent_channels=config.tokenizer.latent_channels,
        scales=config.tokenizer.scales,
    )
    check_sampler(
        config.sampling.cfg,
        config.sampling.top_k,
        config.sampling.top_p,
        config.tokenizer.vocab_size,
    )
    for stage in (config.train_tokenizer, config.train_transformer):
        steps_in_epoch(len(train), stage.batch)
    log.info("%d training and %d validation images", len(train), len(val))
    metrics = MetricsLog(config.out, config.resume)
    seconds = {}

    tokenizer = Tokenizer(config.tokenizer, config.seed)
    stage = TokenizerTraining(tokenizer, train, val, config.train_tokenizer, config.seed)
    train_stage(stage, config.out, metrics, config.loop, _settings(config), config.resume)
    stage.finish()
    tokenizer.save(config.out / "tokenizer.safetensors")
    seconds["tokenizer"] = _since(started, seconds)

    batch = config.train_tokenizer.batch
    train_ids, _ = reconstruct(tokenizer, train, batch)
    val_ids, reconstructions = reconstruct(tokenizer, val, batch)
    save_reconstructions(tokenizer, val, config.out / "reconstructions.png", batch)
    seconds["tokens"] = _since(started, seconds)

    metrics.rewind("transformer", 0)
    model = Transformer(model_config, config.seed)
    validation = train_transformer(
        model,
        tokenizer,
        TokenSet(train_ids, train.labels_n),
        TokenSet(val_ids, val.labels_n),
        config.train_transformer,
        config.seed,
        metrics,
    )
    model.save(config.out / "transformer.safetensors")
    seconds["transformer"] = _since(started, seconds)

    generated, labels_n = sample_classes(model, tokenizer, config.sampling, config.seed)
    save_samples(generated, config.sampling.per_class, train.classes, config.out / "samples.png")
    seconds["sampling"] = _since(started, seconds)

    figures = tokenizer_figures(val_ids, reconstructions, val, config.tokenizer.vocab_size)
    figures |= validation
    if isinstance(train, ImageSet) and isinstance(val, ImageSet) and config.data is None:
        figures |= digit_figures(generated, labels_n, reconstructions, train, val)
    figures["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    figures["total_seconds"] = round(time.monotonic() - started, 1)
    figures["peak_memory_gib"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
    )
    write_report(config.out / "report.json", figures)
    metrics.close()
    log.info("wrote %s", config.out.resolve())
    return figures


def _load(config: Run) -> tuple[ImageSource, ImageSource]:
    size = config.tokenizer.image_size
    if config.data is not None:
        return load_image_tree(config.data, size)
    if size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that, not {size}"
        )
    return load_digits_split()


def _settings(config: Run) -> dict[str, object]:
    """What a tokenizer's training depends on, as JSON has it."""
    parts = {
        "tokenizer": asdict(config.tokenizer),
        "train_tokenizer": asdict(config.train_tokenizer),
        "seed": config.seed,
        "data": None if config.data is None else str(config.data.resolve()),
    }
    return json.loads(json.dumps(parts, default=str))


def _since(started: float, before: dict[str, float]) -> float:
    return time.monotonic() - started - sum(before.values())


def main() -> None:
    """The command: exits with 2 and one line where the input is unusable."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        config = tyro.cli(Run, prog="python -m var_train.run")
        run(config)
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
