"""``python -m var_train.run``: images in; a tokenizer, a transformer and new images out."""

import os

os.environ.setdefault("GLOG_v", "3")  # before MindSpore is imported: its warnings are not ours

import argparse
import json
import logging
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from mindspore import Tensor
from var_tokenizer import InputError, Scale, Tokenizer, TokenizerConfig
from var_transformer import (
    Backend,
    Transformer,
    TransformerConfig,
    check_sampler,
    exit_codes,
    working,
)

from var_train import distributed
from var_train.arguments import format_size, sizes
from var_train.cache import SPLITS, TokenCache
from var_train.data import ImageSet, ImageSource, load_digits_split, load_image_tree
from var_train.loop import LoopConfig
from var_train.loop import train as train_stage
from var_train.precision import DTYPES
from var_train.presets import PRESETS, published_stage
from var_train.progress import MetricsLog, record_settings
from var_train.report import (
    Sampling,
    digit_figures,
    sample_classes,
    save_reconstructions,
    save_samples,
    tokenizer_figures,
    write_report,
)
from var_train.tokenizer_stage import TokenizerStage, TokenizerTraining, reconstruct
from var_train.tokens import fingerprint, tokens_of
from var_train.transformer_stage import TransformerStage, TransformerTraining
from var_train.watch import watched

log = logging.getLogger("var_train")


@dataclass(frozen=True)
class TransformerSize:
    """Blocks, channels and attention heads of the transformer."""

    depth: int = 4
    width: int = 128
    heads: int = 4
    shared_adaln: bool = False

    @classmethod
    def of(cls, model: TransformerConfig) -> "TransformerSize":
        return cls(model.depth, model.width, model.heads, model.shared_adaln)


@dataclass(frozen=True)
class Run:
    """Train VAR: first the tokenizer, then the transformer on its tokens; then sample.

    Without arguments it trains on 1,797 real handwritten digits that come with the package. In
    OUT it writes tokenizer.safetensors, transformer.safetensors, samples.png,
    reconstructions.png, metrics.jsonl and report.json.
    """

    preset: Literal[PRESETS] | None = None
    """A published transformer and how it was trained: the defaults of all that is not given.
    It trains the stage transformer alone."""
    init: Path | None = None
    """A transformer to start from, .safetensors, instead of random weights: to fine-tune it. If
    its number of classes is not the data's, the embeddings of classes alone start at random."""
    stage: Literal["all", "tokenizer", "transformer"] = "all"
    """What to train; the transformer alone needs a tokenizer that is trained."""
    tokenizer_file: Path | None = None
    """The tokenizer for the stage transformer; by default OUT/tokenizer.safetensors. It brings
    its own configuration, so --tokenizer.* is not read."""
    data: Path | None = None
    """An image tree, DATA/train/CLASS/*.jpg|png and DATA/val/CLASS/*; by default the digits."""
    tokens: Path | None = None
    """A token cache (python -m var_train.tokenize) for the stage transformer, instead of DATA."""
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
    """Go on from the newest checkpoint of each stage in OUT, where there is one."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(validations=1))
    train_tokenizer: TokenizerStage = field(default_factory=TokenizerStage)
    train_transformer: TransformerStage = field(default_factory=TransformerStage)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raises InputError for settings that do not go together."""
        if self.tokenizer_file is not None and self.stage != "transformer":
            raise InputError(
                f"tokenizer_file is {self.tokenizer_file} and stage {self.stage}; "
                "expected a tokenizer_file with the stage transformer only"
            )
        if self.init is not None and self.stage == "tokenizer":
            raise InputError(
                f"init is {self.init} and stage tokenizer; expected init where the transformer is "
                "trained"
            )
        if self.tokens is not None and (self.stage != "transformer" or self.data is not None):
            raise InputError(
                f"tokens is {self.tokens}, stage {self.stage} and data {self.data}; expected "
                "tokens with the stage transformer only, and no data"
            )


def run(config: Run) -> dict[str, object]:
    """Carries out ``config`` and returns what ``report.json`` holds.

    Raises InputError for unusable data or settings, before any file is written.
    """
    started = time.monotonic()
    first = distributed.rank() == 0  # worker 0 alone writes
    tokenizer = _tokenizer(config)
    _check_image_size(config.image_size, tokenizer.config)
    with working("reading the images", silent=not first):
        if config.tokens is None:
            train, val = _load(config, tokenizer.config.image_size)
        else:
            train, val = (TokenCache(config.tokens, split, tokenizer) for split in SPLITS)
    if config.stage != "transformer":
        stage = TokenizerTraining(tokenizer, train, val, config.train_tokenizer, config.seed)
    if config.stage != "tokenizer":
        model = _model(config, tokenizer.config, len(train.classes))
        config.train_transformer.check(model.config, len(train))
        sampling = config.sampling
        check_sampler(sampling.cfg, sampling.top_k, sampling.top_p, tokenizer.vocab_size)
    log.info("%d training and %d validation images", len(train), len(val))
    metrics = MetricsLog(config.out, config.resume)
    seconds: dict[str, float] = {}
    figures: dict[str, object] = {}
    batch = config.train_tokenizer.batch
    if first:
        record_settings(config.out, asdict(config))

    if config.stage != "transformer":
        settings = _settings(config, "tokenizer")
        train_stage(stage, config.out, metrics, config.loop, settings, config.resume)
        stage.finish()
        if first:
            tokenizer.save(config.out / "tokenizer.safetensors")
            save_reconstructions(tokenizer, val, config.out / "reconstructions.png", batch)
        seconds["tokenizer"] = _since(started, seconds)

    if config.stage != "tokenizer":
        flip = config.train_transformer.flip
        train_tokens = tokens_of(tokenizer, train, batch, flip)
        val_tokens = tokens_of(tokenizer, val, batch)
        seconds["tokens"] = _since(started, seconds)
        stage = TransformerTraining(
            model,
            tokenizer,
            train_tokens,
            val_tokens,
            config.train_transformer,
            config.seed,
            sampling,
        )
        settings = _settings(config, "transformer") | {"tokenizer": fingerprint(tokenizer)}
        figures |= train_stage(stage, config.out, metrics, config.loop, settings, config.resume)
        stage.finish()
        seconds["transformer"] = _since(started, seconds)

    if first and isinstance(val, ImageSet):
        val_ids, reconstructions = reconstruct(tokenizer, val, batch)
        figures |= tokenizer_figures(val_ids, reconstructions, val, tokenizer.vocab_size)
    if first and config.stage != "tokenizer":
        model.save(config.out / "transformer.safetensors")
        generated, labels_n = sample_classes(model, tokenizer, config.sampling, config.seed)
        save_samples(
            generated, config.sampling.per_class, train.classes, config.out / "samples.png"
        )
        seconds["sampling"] = _since(started, seconds)
        if config.data is None and config.tokens is None:
            figures |= digit_figures(generated, labels_n, reconstructions, train, val)

    figures["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    figures["total_seconds"] = round(time.monotonic() - started, 1)
    figures["peak_memory_gib"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
    )
    if first:
        write_report(config.out / "report.json", figures)
        log.info("wrote %s", config.out.resolve())
    metrics.close()
    distributed.wait_for_all()
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


def _model(config: Run, tokenizer: TokenizerConfig, classes: int) -> Transformer:
    model_config = TransformerConfig(
        depth=config.transformer.depth,
        width=config.transformer.width,
        heads=config.transformer.heads,
        shared_adaln=config.transformer.shared_adaln,
        num_classes=classes,
        vocab_size=tokenizer.vocab_size,
        latent_channels=tokenizer.latent_channels,
        scales=tokenizer.scales,
    )
    backend = Backend(dtype=DTYPES[config.train_transformer.precision.dtype])
    if config.init is None:
        return Transformer(model_config, config.seed, backend)
    init = Transformer.load(config.init, backend)
    for name, value in asdict(init.config).items():
        wanted = getattr(model_config, name)
        if name != "num_classes" and value != wanted:
            raise InputError(
                f"{config.init}: {name} is {value}; expected {wanted}, that of this run's "
                "transformer and tokenizer"
            )
    if init.config.num_classes == classes:
        return init
    log.info(
        "%s: num_classes is %d and the data's %d: class embeddings start anew",
        *(config.init, init.config.num_classes, classes),
    )
    return _with_new_classes(init, Transformer(model_config, config.seed, backend))


def _with_new_classes(init: Transformer, model: Transformer) -> Transformer:
    """``model`` with the weights of ``init``, but its own embeddings of classes."""
    tensors = init.published_tensors()
    own, no_class = model.class_emb.weight.asnumpy()[:-1], tensors["class_emb.weight"][-1:]
    tensors["class_emb.weight"] = np.concatenate([own, no_class])
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(tensors[name]))
    return model


def preset_defaults(name: str) -> Run:
    """What ``--preset NAME``, one of ``PRESETS``, means where nothing else is given."""
    stage = published_stage(name)
    return Run(
        preset=name,
        stage="transformer",
        out=Path("runs") / name,
        transformer=TransformerSize.of(TransformerConfig.preset(name)),
        train_transformer=stage,
        loop=LoopConfig(validations=stage.epochs // 10),
        sampling=Sampling(per_class=1),
    )


def _load(config: Run, image_size: tuple[int, int]) -> tuple[ImageSource, ImageSource]:
    if config.data is not None:
        return load_image_tree(config.data, image_size)
    if image_size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that, not {image_size}"
        )
    return load_digits_split()


def _settings(config: Run, stage: Literal["tokenizer", "transformer"]) -> dict[str, object]:
    """What the training of a stage depends on, as JSON has it."""
    parts = {
        stage: asdict(getattr(config, stage)),
        f"train_{stage}": asdict(getattr(config, f"train_{stage}")),
        "seed": config.seed,
        "init": None if config.init is None else str(config.init.resolve()),
        "data": None if config.data is None else str(config.data.resolve()),
        "tokens": None if config.tokens is None else str(config.tokens.resolve()),
    }
    if stage == "transformer":  # where moments lie changes no number
        del parts["train_transformer"]["shard_optimizer"]
    return json.loads(json.dumps(parts, default=str))


def _since(started: float, before: dict[str, float]) -> float:
    return time.monotonic() - started - sum(before.values())


def parse() -> Run:
    """The command line, over the defaults of its ``--preset``."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    name = first.parse_known_args()[0].preset
    default = preset_defaults(name) if name in PRESETS else Run()
    return tyro.cli(Run, default=default, prog="python -m var_train.run", registry=sizes)


def main() -> None:
    """The command; see ``exit_codes`` for how it ends."""
    with exit_codes("interrupted; the same command continues from the last checkpoint"):
        distributed.start()
        config = parse()
        with watched(config.out):
            run(config)


if __name__ == "__main__":
    main()
