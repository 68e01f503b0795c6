"""The models of a run before training: loaded from files, or new with random weights."""

import logging
from dataclasses import asdict, replace

import numpy as np
from mindspore import Tensor
from var_tokenizer import Scale, Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError, quoted, weights_checksum
from var_transformer import BackendConfig, Transformer, TransformerConfig

from var_train.commands.arguments import format_size
from var_train.commands.run_config import (
    DIGITS,
    TOKENIZER_FILE,
    RunConfig,
    TransformerSizeConfig,
    check_given,
)
from var_train.optimization.loss_scale import DTYPES

log = logging.getLogger(__name__)


def build_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer to train; for the stage transformer, the trained one.

    Raises InputError if it is unusable or does not fit the settings.
    """
    if config.trains_tokenizer:
        tokenizer = Tokenizer(config.tokenizer, config.seed)
    else:
        path = config.tokenizer_file or config.out / TOKENIZER_FILE
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


def build_transformer(
    config: RunConfig, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> tuple[Transformer, str | None]:
    """The transformer before training, and the checksum of the weights of ``init``.

    Raises InputError if ``init`` is unusable or does not fit the tokenizer or the settings.
    """
    backend = BackendConfig(dtype=DTYPES[config.train_transformer.precision.dtype])
    if config.init is None:
        model_config = TransformerConfig(
            num_classes=len(classes),
            vocab_size=tokenizer.config.vocab_size,
            latent_channels=tokenizer.config.latent_channels,
            scales=tokenizer.config.scales,
            **asdict(config.transformer),
        )
        gate_gain = config.train_transformer.gate_gain
        return Transformer(model_config, config.seed, backend, gate_gain), None
    init = Transformer.load(config.init, backend)
    if config.transformer != TransformerSizeConfig():
        check_given(
            config.init, "transformer", TransformerSizeConfig.of(init.config), config.transformer
        )
    for name in ("vocab_size", "latent_channels", "scales"):
        value, wanted = getattr(init.config, name), getattr(tokenizer.config, name)
        if value != wanted:
            raise InputError(
                f"{quoted(config.init)}: {name} is {value} and {wanted} in this run's tokenizer; "
                "expected the same"
            )
    checksum = weights_checksum((n, a.shape, [a]) for n, a in init.published_tensors().items())
    _compare_init(config, quoted(config.init), init, tokenizer, classes)
    if init.config.num_classes == len(classes):
        return init, checksum
    model_config = replace(init.config, num_classes=len(classes))
    return _with_new_classes(init, Transformer(model_config, config.seed, backend)), checksum


def _compare_init(
    config: RunConfig, name: str, init: Transformer, tokenizer: Tokenizer, classes: tuple[str, ...]
) -> None:
    """Logs how the run's data differ from what the weights of ``init`` were trained on."""
    known = init.tokenizer_checksum
    if config.stage == "all" or (known is not None and not tokenizer.belongs_to(known)):
        log.warning(
            "%s: was trained on another tokenizer's tokens; it has to learn the new ones", name
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
    """``model`` with the weights of ``init``, but its own class embeddings."""
    tensors = init.published_tensors()
    own, no_class = model.class_emb.weight.asnumpy()[:-1], tensors["class_emb.weight"][-1:]
    tensors["class_emb.weight"] = np.concatenate([own, no_class])
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(tensors[name]))
    return model
