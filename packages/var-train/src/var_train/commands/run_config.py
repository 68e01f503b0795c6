"""The settings of a training run, and how its command line is read."""

import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from var_tokenizer import Scale, TokenizerConfig
from var_tokenizer.common import InputError, open_checkpoint, quoted
from var_transformer import AttentionCalls, TransformerConfig

from var_train.commands import arguments
from var_train.commands.presets import PRESETS, Preset, published_stage
from var_train.reports.images import SamplingConfig
from var_train.training.loop import LoopConfig
from var_train.training.tokenizer_stage import TokenizerStageConfig
from var_train.training.transformer_settings import TransformerStageConfig

ModelConfig = TypeVar("ModelConfig", TokenizerConfig, TransformerConfig)

TOKENIZER_FILE = "tokenizer.safetensors"  # in OUT


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
    """One modulation layer for all blocks, instead of one for each."""

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
"""The default tokenizer, for images of 32x32."""


@dataclass(frozen=True)
class RunConfig:
    """Train VAR: first the tokenizer, then the transformer on its tokens; then sample.

    Without arguments it trains on 1,797 real handwritten digits that come with the package. In
    OUT it writes tokenizer.safetensors, transformer.safetensors (at each validation, and the best
    ones beside them), samples.png, reconstructions.png, settings.json, metrics.jsonl and
    report.json. After Ctrl-C, the same command continues.
    """

    preset: Preset | None = None
    """A published transformer: the default size, recipe and stage (transformer)."""
    init: Path | None = None
    """A transformer to fine-tune, of any classes and
    scales; or a tokenizer, whose codebook stays. It
    brings its own size."""
    stage: Literal["all", "tokenizer", "transformer"] = "all"
    """What to train; the transformer alone needs a trained tokenizer."""
    tokenizer_file: Path | None = None
    """The tokenizer for the stage transformer; by default
    OUT/tokenizer.safetensors."""
    data: Path | None = None
    """An image tree, DATA/train/CLASS/* and
    DATA/val/CLASS/*, or shards, 'train-{000..146}.tar';
    by default the digits."""
    val_fraction: float | None = None
    """Share of each class to hold out if there is no val:
    of DATA/CLASS/* or DATA/train/CLASS/*."""
    tokens: Path | None = None
    """A token cache (python -m var_train.tokenize) for the stage transformer, instead of DATA."""
    out: Path = Path("runs/digits")
    """The folder for everything that the run writes."""
    image_size: Scale | None = None
    """The images' side, or ROWSxCOLUMNS, which follows from
    the tokenizer: its last scale times its downsampling.
    If given, the tokenizer must fit it."""
    random_crops: bool = False
    """Train on random crops of DATA's images, resized to 1.125 times the size, as published, and
    validate on the centre. With TOKENS, var_train.tokenize --crops decides."""
    attention: AttentionCalls = "cheapest"
    """How training attends; auto times all ways in its first step."""
    seed: int = 0
    """Seed of all random numbers."""
    tokenizer: TokenizerConfig = DIGITS
    """Each channel multiplier after the first halves the image; the last scale (of sizes such as
    1 2 3x4) is the result."""
    transformer: TransformerSizeConfig = field(default_factory=TransformerSizeConfig)
    resume: bool = True
    """Continue from the newest checkpoint of each stage in OUT, if there is one."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(validations=1))
    train_tokenizer: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    train_transformer: TransformerStageConfig = field(default_factory=TransformerStageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def trains_tokenizer(self) -> bool:
        return self.stage != "transformer"

    @property
    def trains_transformer(self) -> bool:
        return self.stage != "tokenizer"

    def __post_init__(self) -> None:
        """Raises InputError for settings that contradict each other."""
        if self.tokenizer_file is not None and self.stage != "transformer":
            raise InputError(
                f"tokenizer_file is {self.tokenizer_file} and stage {self.stage}; "
                "expected a tokenizer_file only with the stage transformer"
            )
        if self.tokens is not None and (self.stage != "transformer" or self.data is not None):
            raise InputError(
                f"tokens is {self.tokens}, stage {self.stage} and data {self.data}; expected "
                "tokens only with the stage transformer, and no data"
            )
        rank = self.train_transformer.lora.rank
        if rank and (self.init is None or self.stage != "transformer"):
            raise InputError(
                f"train_transformer.lora.rank is {rank}, init {self.init} and stage {self.stage}; "
                "expected the stage transformer and an init, whose weights an adapter is for"
            )
        judge = self.loop.judge
        if judge.samples and not self.trains_transformer:
            raise InputError(
                f"loop.judge.samples is {judge.samples} and stage {self.stage}; expected the stage "
                "all or transformer, whose images are judged"
            )
        if judge.samples and self.tokens is not None and judge.reference is None:
            raise InputError(
                f"loop.judge.samples is {judge.samples} and tokens {self.tokens}; expected a "
                "loop.judge.reference, images or their statistics, since tokens are no images"
            )
        objective = self.train_transformer.objective
        if objective != "likelihood" and not self.trains_transformer:
            raise InputError(
                f"train_transformer.objective is {objective} and stage {self.stage}; expected the "
                "stage transformer"
            )
        if objective == "cca" and self.init is None:
            raise InputError(
                "train_transformer.objective is cca and init None; expected an init, which the "
                "model is compared with"
            )
        if self.val_fraction is not None and self.data is None:
            raise InputError(
                f"val_fraction is {self.val_fraction} without data; expected both or none"
            )


def preset_defaults(name: Preset) -> RunConfig:
    """The defaults of ``--preset NAME``."""
    stage = published_stage(name)
    return RunConfig(
        preset=name,
        stage="transformer",
        out=Path("runs") / name,
        random_crops=True,
        transformer=TransformerSizeConfig.of(TransformerConfig.preset(name)),
        train_transformer=stage,
        loop=LoopConfig(validations=stage.epochs // 10),
        sampling=SamplingConfig(per_class=1),
    )


def read_run_config() -> RunConfig:
    """Reads the command line; its ``--preset`` and the files that it names give the defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--init", "--stage", "--out"):
        first.add_argument(name, nargs="?")
    first.add_argument("--tokenizer-file", "--tokenizer_file", nargs="?")
    named = first.parse_known_args()[0]
    default = preset_defaults(named.preset) if named.preset in PRESETS else RunConfig()
    brought: list[tuple[Path, str, TokenizerConfig | TransformerSizeConfig]] = []
    stage = named.stage or default.stage
    if named.init and default.preset is None:
        init = _config_in(Path(named.init), "transformer", TransformerConfig)
        if init is not None:
            size = TransformerSizeConfig.of(init)
            default = replace(default, transformer=size)
            brought.append((Path(named.init), "transformer", size))
    of_transformer = Path(named.tokenizer_file or Path(named.out or default.out, TOKENIZER_FILE))
    path = of_transformer if stage == "transformer" else named.init and Path(named.init)
    tokenizer = _config_in(path, "tokenizer", TokenizerConfig) if path else None
    if path and tokenizer is not None:
        default = replace(default, tokenizer=tokenizer)
        brought.append((path, "tokenizer", tokenizer))
    config = arguments.parse(default, "python -m var_train.run")
    for path, group, found in brought:
        check_given(path, group, found, getattr(config, group))
    return config


def starts_from_tokenizer(config: RunConfig) -> bool:
    """Whether ``init`` is a tokenizer to train: by the stage, or by content if both are trained."""
    if config.stage == "all" and config.init is not None:
        return _config_in(config.init, "tokenizer", TokenizerConfig) is not None
    return config.stage == "tokenizer" and config.init is not None


def _config_in(path: Path, kind: str, config_type: type[ModelConfig]) -> ModelConfig | None:
    """The configuration in a native file; None if it is unusable, which loading will report."""
    try:
        return open_checkpoint(path, kind, config_type).config
    except InputError:
        return None


def check_given(
    path: Path, group: str, brought: TokenizerConfig | TransformerSizeConfig, given: object
) -> None:
    """Raises InputError if settings of ``group`` contradict those in a file."""
    for name, theirs in asdict(brought).items():
        ours = getattr(given, name)
        if ours != theirs:
            raise InputError(
                f"{quoted(path)}: {name} is {theirs} and {group}.{name} {ours}; expected the same "
                f"(or no {group}.{name}: the file brings its own)"
            )
