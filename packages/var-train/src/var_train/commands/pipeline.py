"""``python -m var_train.run``: trains a tokenizer and a transformer on images, and draws."""

import argparse
import hashlib
import json
import logging
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from mindspore import Tensor
from var_tokenizer import Scale, Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError, open_checkpoint, quoted, weights_checksum
from var_tokenizer.common.command import exit_codes
from var_tokenizer.common.progress import working
from var_transformer import BackendConfig, Transformer, TransformerConfig, check_sampler

from var_train.commands import arguments
from var_train.commands.arguments import format_size
from var_train.commands.presets import PRESETS, published_stage
from var_train.data.digits import load_digits_split
from var_train.data.image_sources import ImageFolder, ImageSet, load_image_tree
from var_train.data.resume_check import DataRecord
from var_train.data.token_cache import SPLITS, TokenCache
from var_train.data.token_sources import fingerprint, tokens_of
from var_train.optimization.loss_scale import DTYPES
from var_train.parallel import workers
from var_train.parallel.watch import watched
from var_train.reports.generated_images import SamplingConfig, sample_classes
from var_train.reports.image_sheets import save_reconstructions, save_samples
from var_train.reports.metrics_log import MetricsLog
from var_train.reports.report_json import digit_figures, tokenizer_figures, write_report
from var_train.reports.settings_record import record_settings
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.loop import LoopConfig, check_resumable, stage_folder
from var_train.training.loop import train as train_stage
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining, reconstruct
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining

log = logging.getLogger("var_train")

_TOKENIZER = "tokenizer.safetensors"  # in OUT

Source = ImageSet | ImageFolder | TokenCache


@dataclass(frozen=True)
class TransformerSizeConfig:
    """Blocks, channels and attention heads of the transformer."""

    depth: int = 4
    """Blocks."""
    width: int = 128
    """Channels."""
    heads: int = 4
    """Attention heads; they divide the width."""
    shared_adaln: bool = False
    """One modulation layer for all blocks, not one each."""

    @classmethod
    def of(cls, model: TransformerConfig) -> "TransformerSizeConfig":
        return cls(model.depth, model.width, model.heads, model.shared_adaln)


DIGITS = TokenizerConfig(
    vocab_size=128,
    latent_channels=8,
    channels=32,
    channel_multipliers=(1, 1, 2, 2),
    res_blocks=1,
    scales=(1, 2, 3, 4),
)
"""The tokenizer of a run that says nothing else, for images of 32x32."""


@dataclass(frozen=True)
class RunConfig:
    """Train VAR: first the tokenizer, then the transformer on its tokens; then sample.

    Without arguments it trains on 1,797 real handwritten digits that come with the package. In
    OUT it writes tokenizer.safetensors, transformer.safetensors, samples.png,
    reconstructions.png, settings.json, metrics.jsonl and report.json. After Ctrl-C, the same
    command continues.
    """

    preset: Literal[PRESETS] | None = None
    """A published transformer: its size and recipe are the defaults then, and the stage is
    transformer."""
    init: Path | None = None
    """A transformer to start from, .safetensors, instead of random weights: to fine-tune it. It
    brings its own size: --transformer.* need not be given. If its number of classes is not the
    data's, the embeddings of classes alone start at random."""
    stage: Literal["all", "tokenizer", "transformer"] = "all"
    """What to train; the transformer alone needs a tokenizer that is trained."""
    tokenizer_file: Path | None = None
    """The tokenizer for the stage transformer; by default OUT/tokenizer.safetensors. It brings
    its own configuration: --tokenizer.* need not be given."""
    data: Path | None = None
    """An image tree, DATA/train/CLASS/* and DATA/val/CLASS/*; by default the digits."""
    val_fraction: float | None = None
    """Share of each class of DATA/CLASS/* (or of DATA/train/CLASS/*, where there is no val) that is
    held out to validate on."""
    tokens: Path | None = None
    """A token cache (python -m var_train.tokenize) for the stage transformer, instead of DATA."""
    out: Path = Path("runs/digits")
    """The folder for everything that the run writes."""
    image_size: Scale | None = None
    """The images' side, or ROWSxCOLUMNS. It follows from the tokenizer: its last scale *
    2 ** (channel multipliers - 1); where it is given, the tokenizer has to fit it."""
    seed: int = 0
    """Of weights, order, dropout and sampling."""
    tokenizer: TokenizerConfig = DIGITS
    """Each channel multiplier after the first halves the image; the last of the scales (sizes
    such as 1 2 3x4) is what is left of it."""
    transformer: TransformerSizeConfig = field(default_factory=TransformerSizeConfig)
    resume: bool = True
    """Go on from the newest checkpoint of each stage in OUT, if there is one."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(validations=1))
    train_tokenizer: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    train_transformer: TransformerStageConfig = field(default_factory=TransformerStageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        """Raises InputError for settings that do not go together."""
        if self.tokenizer_file is not None and self.stage != "transformer":
            raise InputError(
                f"tokenizer_file is {self.tokenizer_file} and stage {self.stage}; "
                "expected a tokenizer_file only with the stage transformer"
            )
        if self.init is not None and self.stage == "tokenizer":
            raise InputError(
                f"init is {self.init} and stage tokenizer; expected init where the transformer is "
                "trained"
            )
        if self.tokens is not None and (self.stage != "transformer" or self.data is not None):
            raise InputError(
                f"tokens is {self.tokens}, stage {self.stage} and data {self.data}; expected "
                "tokens only with the stage transformer, and no data"
            )
        if self.val_fraction is not None and self.data is None:
            raise InputError(
                f"val_fraction is {self.val_fraction} without data; expected both or none"
            )


def run(config: RunConfig) -> dict[str, object]:
    """Carries out ``config`` and returns what ``report.json`` holds.

    Raises InputError for unusable data or settings, before any file is written.
    """
    started = time.monotonic()
    first = workers.rank() == 0  # worker 0 alone writes
    tokenizer = _tokenizer(config)
    _check_image_size(config.image_size, tokenizer.config)
    train, val = _load(config, tokenizer)
    given: dict[str, str | None] = {"init": None}
    tokenizer_steps = 0
    if config.stage != "transformer":
        stage = TokenizerTraining(tokenizer, train, val, config.train_tokenizer, config.seed)
        tokenizer_steps = stage.steps
    else:
        given["tokenizer"] = fingerprint(tokenizer)
    if config.stage != "tokenizer":
        model, given["init"] = _model(config, tokenizer, train.classes)
        config = replace(config, transformer=TransformerSizeConfig.of(model.config))
        config.train_transformer.check(model.config, len(train))
        sampling = config.sampling
        check_sampler(sampling.cfg, sampling.top_k, sampling.top_p, tokenizer.vocab_size)
    log.info("%d training and %d validation images", len(train), len(val))
    metrics, settings = _begin(config, given, train, val, tokenizer_steps)
    seconds: dict[str, float] = {}
    figures: dict[str, object] = {}
    batch = config.train_tokenizer.batch
    if first:
        record_settings(config.out, asdict(config))

    if config.stage != "transformer":
        train_stage(stage, config.out, metrics, config.loop, settings["tokenizer"], config.resume)
        stage.finish()
        if first:
            tokenizer.save(config.out / _TOKENIZER)
            with working("drawing reconstructions"):
                save_reconstructions(tokenizer, val, config.out / "reconstructions.png", batch)
        seconds["tokenizer"] = _since(started, seconds)

    if config.stage != "tokenizer":
        flip = config.train_transformer.flip
        model.class_names, model.tokenizer_checksum = train.classes, tokenizer.checksum()
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
        full = settings["transformer"] | {"tokenizer": fingerprint(tokenizer)}
        figures |= train_stage(stage, config.out, metrics, config.loop, full, config.resume)
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
            with working("judging the digits"):
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
    workers.wait_for_all()
    return figures


def _tokenizer(config: RunConfig) -> Tokenizer:
    if config.stage != "transformer":
        return Tokenizer(config.tokenizer, config.seed)
    path = config.tokenizer_file or config.out / _TOKENIZER
    tokenizer = Tokenizer.load(path)
    if config.tokenizer != DIGITS:
        _check_given(path, "tokenizer", tokenizer.config, config.tokenizer)
    return tokenizer


def _check_given(path: Path, group: str, brought: object, given: object) -> None:
    """Raises InputError where settings of ``group`` contradict the file that brings its own."""
    for name, theirs in asdict(brought).items():
        ours = getattr(given, name)
        if ours != theirs:
            raise InputError(
                f"{quoted(path)}: {name} is {theirs} and {group}.{name} {ours}; expected the same "
                f"(or no {group}.{name}: the file brings its own)"
            )


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


def _model(
    config: RunConfig, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> tuple[Transformer, str | None]:
    """The transformer before training, and the checksum of the weights of ``init``."""
    tokens = {
        "vocab_size": tokenizer.config.vocab_size,
        "latent_channels": tokenizer.config.latent_channels,
        "scales": tokenizer.config.scales,
    }
    backend = BackendConfig(dtype=DTYPES[config.train_transformer.precision.dtype])
    if config.init is None:
        model_config = TransformerConfig(
            num_classes=len(classes), **asdict(config.transformer), **tokens
        )
        return Transformer(model_config, config.seed, backend), None
    init = Transformer.load(config.init, backend)
    if config.transformer != TransformerSizeConfig():
        _check_given(
            config.init, "transformer", TransformerSizeConfig.of(init.config), config.transformer
        )
    for name, wanted in tokens.items():
        value = getattr(init.config, name)
        if value != wanted:
            raise InputError(
                f"{quoted(config.init)}: {name} is {value} and {wanted} in this run's tokenizer; "
                "expected the same"
            )
    checksum = weights_checksum((n, a.shape, [a]) for n, a in init.published_tensors().items())
    _compare_init(config, init, tokenizer, classes)
    if init.config.num_classes == len(classes):
        return init, checksum
    model_config = replace(init.config, num_classes=len(classes))
    return _with_new_classes(init, Transformer(model_config, config.seed, backend)), checksum


def _compare_init(
    config: RunConfig, init: Transformer, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> None:
    """Says in what the run differs from what the weights of ``init`` were trained on."""
    name, known = quoted(config.init), init.tokenizer_checksum
    if config.stage == "all" or (known is not None and not tokenizer.belongs_to(known)):
        log.warning(
            "%s: was trained on the tokens of another tokenizer; it has to learn these anew", name
        )
    if init.config.num_classes != len(classes):
        log.info(
            "%s: num_classes is %d and the data's %d: class embeddings start anew",
            *(name, init.config.num_classes, len(classes)),
        )
    elif init.class_names not in (None, classes):
        differ = [
            n
            for n, pair in enumerate(zip(init.class_names, classes, strict=True))
            if pair[0] != pair[1]
        ]
        log.warning(
            "%s: %d of %d classes have other names in the data, which start from the embeddings "
            "of the same numbers: class %d is %s there and %s here",
            *(name, len(differ), len(classes), differ[0]),
            *(quoted(init.class_names[differ[0]]), quoted(classes[differ[0]])),
        )


def _with_new_classes(init: Transformer, model: Transformer) -> Transformer:
    """``model`` with the weights of ``init``, but its own embeddings of classes."""
    tensors = init.published_tensors()
    own, no_class = model.class_emb.weight.asnumpy()[:-1], tensors["class_emb.weight"][-1:]
    tensors["class_emb.weight"] = np.concatenate([own, no_class])
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(tensors[name]))
    return model


def preset_defaults(name: str) -> RunConfig:
    """What ``--preset NAME``, one of ``PRESETS``, means where nothing else is given."""
    stage = published_stage(name)
    return RunConfig(
        preset=name,
        stage="transformer",
        out=Path("runs") / name,
        transformer=TransformerSizeConfig.of(TransformerConfig.preset(name)),
        train_transformer=stage,
        loop=LoopConfig(validations=stage.epochs // 10),
        sampling=SamplingConfig(per_class=1),
    )


def _load(config: RunConfig, tokenizer: Tokenizer) -> tuple[Source, Source]:
    if config.tokens is not None:
        with working("checking the tokens", silent=workers.rank() > 0):
            return tuple(TokenCache(config.tokens, split, tokenizer) for split in SPLITS)
    size = tokenizer.config.image_size
    if config.data is not None:
        return load_image_tree(config.data, size, val_fraction=config.val_fraction)
    if size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that, not {size}"
        )
    return load_digits_split()


def _begin(
    config: RunConfig, given: Mapping[str, object], train: Source, val: Source, tokenizer_steps: int
) -> tuple[MetricsLog, dict[str, dict[str, object]]]:
    """Begins to write into OUT, once it is certain that each stage can go on from what lies there.

    given: settings that come from files. tokenizer_steps: all of the tokenizer's stage, where it
    is trained. Returns the metrics and the settings by stage. Raises InputError for checkpoints
    of other settings or data, before anything is written.
    """
    record, data = _data(train, val)
    names = ("tokenizer", "transformer") if config.stage == "all" else (config.stage,)
    settings = {name: _settings(config, name, given | data) for name in names}
    if config.resume:
        done = {n: check_resumable(config.out, n, settings[n], record) for n in names}
        follows = CheckpointFolder(stage_folder(config.out, "transformer")).peek()
        if config.stage != "transformer" and follows and done["tokenizer"] != tokenizer_steps:
            raise InputError(
                f"{quoted(config.out)}: holds checkpoints of a transformer, but the tokenizer that "
                f"it belongs to has {done['tokenizer'] or 'none'} of {tokenizer_steps} steps; "
                "expected all (--stage transformer goes on with OUT/tokenizer.safetensors, "
                "--no-resume starts from the beginning)"
            )
    workers.wait_for_all()  # all have read what worker 0 now writes
    metrics = MetricsLog(config.out, config.resume)
    if workers.rank() == 0:
        for folder in (stage_folder(config.out, name) for name in names):
            if not config.resume:
                CheckpointFolder(folder).clear()
            if record is not None:
                record.save(folder)
    return metrics, settings


def _data(train: Source, val: Source) -> tuple[DataRecord | None, dict[str, object]]:
    """The image files, and the settings that say what a run is trained on; all None for digits."""
    if isinstance(train, TokenCache):
        tokens = {
            "classes": list(train.classes),
            "images": [len(train), len(val)],
            "digests": [train.digest, val.digest],
        }
        return None, {"data": None, "tokens": tokens}
    if train.files is None:
        return None, {"data": None, "tokens": None}
    record = DataRecord.of(train.files, val.files)
    return record, {"data": record.settings, "tokens": None}


def _settings(
    config: RunConfig, stage: Literal["tokenizer", "transformer"], given: Mapping[str, object]
) -> dict[str, object]:
    """What the training of a stage depends on, as JSON has it: no path, but what lies there."""
    parts = {
        stage: asdict(getattr(config, stage)),
        f"train_{stage}": asdict(getattr(config, f"train_{stage}")),
        "seed": config.seed,
        **given,
    }
    if stage == "transformer":  # where moments lie changes no number
        del parts["train_transformer"]["shard_optimizer"]
    else:
        network = config.train_tokenizer.losses.feature_network
        if network is not None:
            with network.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            parts["train_tokenizer"]["losses"]["feature_network"] = digest
    return json.loads(json.dumps(parts, default=str))


def _since(started: float, before: dict[str, float]) -> float:
    return time.monotonic() - started - sum(before.values())


def parse() -> RunConfig:
    """The command line, over the defaults of its ``--preset`` and of the files that it names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--init", "--stage", "--out"):
        first.add_argument(name, nargs="?")
    first.add_argument("--tokenizer-file", "--tokenizer_file", nargs="?")
    named = first.parse_known_args()[0]
    default = preset_defaults(named.preset) if named.preset in PRESETS else RunConfig()
    brought = {}
    if named.init and default.preset is None:
        brought["transformer"] = (Path(named.init), _config_in(named.init, TransformerConfig))
    if (named.stage or default.stage) == "transformer":
        path = Path(named.tokenizer_file or Path(named.out or default.out, _TOKENIZER))
        brought["tokenizer"] = (path, _config_in(path, TokenizerConfig))
    brought = {group: found for group, found in brought.items() if found[1] is not None}
    config = arguments.parse(
        replace(default, **{group: found for group, (_, found) in brought.items()}),
        "python -m var_train.run",
    )
    for group, (path, found) in brought.items():
        _check_given(path, group, found, getattr(config, group))
    return config


def _config_in(
    path: str | Path, config_type: type[TokenizerConfig] | type[TransformerConfig]
) -> TokenizerConfig | TransformerSizeConfig | None:
    """The settings that a native file brings; None where it is unusable, as loading it will say."""
    kind = "tokenizer" if config_type is TokenizerConfig else "transformer"
    try:
        found = open_checkpoint(path, kind, config_type).config
    except InputError:
        return None
    return found if config_type is TokenizerConfig else TransformerSizeConfig.of(found)


def main() -> None:
    """The command; see ``exit_codes`` for how it ends."""
    with exit_codes("interrupted; the same command continues from the last checkpoint"):
        workers.start()
        config = parse()
        with watched(config.out):
            run(config)


if __name__ == "__main__":
    main()
