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
from typing import Literal

import tyro
from var_tokenizer import InputError, Scale, Tokenizer, TokenizerConfig
from var_transformer import Transformer, TransformerConfig, check_sampler

from var_train.arguments import format_size, sizes
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

    Raises InputError for settings that do not go together.
    """

    stage: Literal["all", "tokenizer", "transformer"] = "all"
    """What to train; the transformer alone needs a tokenizer that is trained."""
    tokenizer_file: Path | None = None
    """The tokenizer for the stage transformer; by default OUT/tokenizer.safetensors. It brings
    its own configuration, so --tokenizer.* is not read."""
    data: Path | None = None
    """An image tree, DATA/train/CLASS/*.jpg|png and DATA/val/CLASS/*; by default the digits."""
    out: Path = Path("runs/digits")
    """The folder for everything that the run writes."""
    image_size: Scale | None = None
    """The images' side, or ROWSxCOLUMNS. It follows from the tokenizer: its last scale *
    2 ** (channel multipliers - 1); where it is given, the tokenizer has to fit it."""
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
    """Each channel multiplier after the first halves the image; the last of the scales (sizes
    such as 1 2 3x4) is what is left of it."""
    transformer: TransformerSize = field(default_factory=TransformerSize)
    resume: bool = True
    """Go on from the newest checkpoint of the tokenizer in OUT, where there is one."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(validations=1))
    train_tokenizer: TokenizerStage = field(default_factory=TokenizerStage)
    train_transformer: TransformerStage = field(default_factory=TransformerStage)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.tokenizer_file is not None and self.stage != "transformer":
            raise InputError(
                f"tokenizer_file is {self.tokenizer_file} and stage {self.stage}; "
                "expected a tokenizer_file with the stage transformer only"
            )


def run(config: Run) -> dict[str, object]:
    """Carries out ``config`` and returns what ``report.json`` holds.

    Raises InputError for unusable data or settings, before any file is written.
    """
    started = time.monotonic()
    tokenizer = _tokenizer(config)
    _check_image_size(config.image_size, tokenizer.config)
    train, val = _load(config, tokenizer.config.image_size)
    if config.stage != "transformer":
        stage = TokenizerTraining(tokenizer, train, val, config.train_tokenizer, config.seed)
    if config.stage != "tokenizer":
        steps_in_epoch(len(train), config.train_transformer.batch)
        model_config = _model_config(config, tokenizer.config, len(train.classes))
        sampling = config.sampling
        check_sampler(sampling.cfg, sampling.top_k, sampling.top_p, tokenizer.vocab_size)
    log.info("%d training and %d validation images", len(train), len(val))
    metrics = MetricsLog(config.out, config.resume)
    seconds: dict[str, float] = {}
    batch = config.train_tokenizer.batch

    if config.stage != "transformer":
        train_stage(stage, config.out, metrics, config.loop, _settings(config), config.resume)
        stage.finish()
        tokenizer.save(config.out / "tokenizer.safetensors")
        save_reconstructions(tokenizer, val, config.out / "reconstructions.png", batch)
        seconds["tokenizer"] = _since(started, seconds)
    val_ids, reconstructions = reconstruct(tokenizer, val, batch)
    figures = tokenizer_figures(val_ids, reconstructions, val, tokenizer.vocab_size)

    if config.stage != "tokenizer":
        train_ids, _ = reconstruct(tokenizer, train, batch)
        seconds["tokens"] = _since(started, seconds)
        metrics.rewind("transformer", 0)
        model = Transformer(model_config, config.seed)
        figures |= train_transformer(
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
        save_samples(
            generated, config.sampling.per_class, train.classes, config.out / "samples.png"
        )
        seconds["sampling"] = _since(started, seconds)
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


def _tokenizer(config: Run) -> Tokenizer:
    if config.stage == "transformer":
        return Tokenizer.load(config.tokenizer_file or config.out / "tokenizer.safetensors")
    return Tokenizer(config.tokenizer, config.seed)


def _check_image_size(size: Scale | None, tokenizer: TokenizerConfig) -> None:
    if size is None:
        return
    factor = tokenizer.downsampling
    pair = (size, size) if isinstance(size, int) else size
    if any(n < 1 or n % factor for n in pair):
        raise InputError(
            f"image_size is {format_size(size)}; expected multiples of {factor}, the downsampling "
            f"of {len(tokenizer.channel_multipliers)} channel multipliers"
        )
    latent = (pair[0] // factor, pair[1] // factor)
    if latent != tokenizer.schedule.sizes[-1]:
        raise InputError(
            f"scales ends with {format_size(tokenizer.scales[-1])}; expected "
            f"{format_size(latent)}, which downsampling by {factor} leaves of an image_size of "
            f"{format_size(size)}"
        )


def _model_config(config: Run, tokenizer: TokenizerConfig, classes: int) -> TransformerConfig:
    return TransformerConfig(
        depth=config.transformer.depth,
        width=config.transformer.width,
        heads=config.transformer.heads,
        shared_adaln=config.transformer.shared_adaln,
        num_classes=classes,
        vocab_size=tokenizer.vocab_size,
        latent_channels=tokenizer.latent_channels,
        scales=tokenizer.scales,
    )


def _load(config: Run, image_size: tuple[int, int]) -> tuple[ImageSource, ImageSource]:
    if config.data is not None:
        return load_image_tree(config.data, image_size)
    if image_size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that, not {image_size}"
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
        config = tyro.cli(Run, prog="python -m var_train.run", registry=sizes)
        run(config)
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
