"""The models of a run before training: loaded from files, or new with random weights."""

import logging
from dataclasses import asdict, replace

from var_tokenizer import Scale, Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError, open_checkpoint, quoted, weights_checksum
from var_transformer import BackendConfig, Transformer, TransformerConfig, transformer_shapes

from var_train.commands.arguments import format_size
from var_train.commands.run_config import (
    DIGITS,
    TOKENIZER_FILE,
    RunConfig,
    TransformerSizeConfig,
    check_given,
    starts_from_tokenizer,
)
from var_train.commands.starting_points import (
    adapted,
    say_classes,
    say_new_classes,
    say_scales,
)
from var_train.optimization.loss_scale import DTYPES
from var_train.training.adapter_training import new_classes

log = logging.getLogger(__name__)


def build_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer to train, new or from ``init``; for the stage transformer, the trained one.

    Raises InputError if it is unusable or does not fit the settings.
    """
    init = config.init if starts_from_tokenizer(config) else None
    if config.trains_tokenizer and init is None:
        tokenizer = Tokenizer(config.tokenizer, config.seed)
    else:
        path = init or config.tokenizer_file or config.out / TOKENIZER_FILE
        tokenizer = Tokenizer.load(path)
        if config.tokenizer != DIGITS:
            check_given(path, "tokenizer", tokenizer.config, config.tokenizer)
    _check_image_size(config.image_size, tokenizer.config)
    return tokenizer


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


def transformer_config(
    config: RunConfig, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> TransformerConfig:
    """That of what ``build_transformer`` gives, known before weights are drawn or read.

    Raises InputError if ``init`` is unusable.
    """
    if config.init is None or starts_from_tokenizer(config):
        return TransformerConfig(
            num_classes=len(classes),
            vocab_size=tokenizer.config.vocab_size,
            latent_channels=tokenizer.config.latent_channels,
            scales=tokenizer.config.scales,
            **asdict(config.transformer),
        )
    init = open_checkpoint(config.init, "transformer", TransformerConfig)
    init.check(transformer_shapes(init.config))  # a file may claim any size
    if config.train_transformer.lora.rank:
        return init.config
    return replace(init.config, num_classes=len(classes), scales=tokenizer.config.scales)


def build_transformer(
    config: RunConfig, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> tuple[Transformer, str | None]:
    """The transformer before training, and the checksum of the weights of ``init`` if it is one.

    For an adapter it is ``init`` as it is, without the classes that are new to it.

    Raises InputError if ``init`` is unusable or does not fit the tokenizer or the settings, and for
    an attention that this device does not have.
    """
    dtype = DTYPES[config.train_transformer.precision.dtype]
    backend = BackendConfig(dtype=dtype, calls=config.attention)
    contrasted = config.train_transformer.objective == "cca"
    if config.init is None or starts_from_tokenizer(config):
        if contrasted:
            raise InputError(
                f"train_transformer.objective is cca and init {quoted(config.init or '')} a "
                "tokenizer; expected a transformer, which the model is compared with"
            )
        new = transformer_config(config, tokenizer, classes)
        gate_gain = config.train_transformer.gate_gain
        return Transformer(new, config.seed, backend, gate_gain), None
    init = Transformer.load(config.init, backend)
    if config.transformer != TransformerSizeConfig():
        check_given(
            config.init, "transformer", TransformerSizeConfig.of(init.config), config.transformer
        )
    name = quoted(config.init)
    for field in ("vocab_size", "latent_channels"):
        value, wanted = getattr(init.config, field), getattr(tokenizer.config, field)
        if value != wanted:
            raise InputError(
                f"{name}: {field} is {value} and {wanted} in this run's tokenizer; expected the "
                "same"
            )
    checksum = weights_checksum((n, a.shape, [a]) for n, a in init.published_tensors().items())
    known = init.tokenizer_checksum
    if config.stage == "all" or (known is not None and not tokenizer.belongs_to(known)):
        log.warning(
            "%s: was trained on another tokenizer's tokens; it has to learn the new ones", name
        )
    if config.train_transformer.lora.rank:
        if known is not None and not tokenizer.belongs_to(known):
            raise InputError(
                f"{name}: was trained on another tokenizer's tokens; expected that tokenizer for "
                "an adapter, which is added to its weights"
            )
        if init.config.scales != tokenizer.config.scales:
            raise InputError(
                f"{name}: its scales are {init.config.scales}, and {tokenizer.config.scales} in "
                "the tokenizer; expected the same for an adapter, beside which positions stay"
            )
        say_new_classes(name, init, new_classes(init, classes))
        return init, checksum
    say_classes(name, init, classes)
    fitting = transformer_config(config, tokenizer, classes)
    if fitting == init.config:
        return init, checksum
    if contrasted:
        raise InputError(
            f"{name}: has {init.config.num_classes} classes and the scales {init.config.scales}, "
            f"and the data {len(classes)} and {fitting.scales}; expected the same for the "
            "objective cca, which compares the model with it"
        )
    if fitting.scales != init.config.scales:
        say_scales(name, init.config.schedule, fitting.schedule)
    return adapted(init, fitting, config.seed, backend), checksum
