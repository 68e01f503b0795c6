"""The data of a run, and what its checkpoints record of it."""

from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_tokenizer.common.progress import working

from var_train.commands.run_config import RunConfig
from var_train.data.digits import load_digits_split
from var_train.data.image_sources import ImageFolder, ImageSet, load_image_tree
from var_train.data.resume_check import DataRecord
from var_train.data.token_cache import SPLITS, TokenCache
from var_train.parallel import workers

Source = ImageSet | ImageFolder | TokenCache


def load_data(config: RunConfig, tokenizer: Tokenizer) -> tuple[Source, Source]:
    """The training and the held-out data: a token cache, an image tree or the digits.

    Raises InputError if it is unusable or does not fit the tokenizer.
    """
    if config.tokens is not None:
        with working("checking the tokens", silent=workers.rank() > 0):
            train, val = (TokenCache(config.tokens, split, tokenizer) for split in SPLITS)
            return train, val
    size = tokenizer.config.image_size
    if config.data is not None:
        return load_image_tree(config.data, size, val_fraction=config.val_fraction)
    if size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that size, not {size}"
        )
    return load_digits_split()


def describe_data(train: Source, val: Source) -> tuple[DataRecord | None, dict[str, object]]:
    """The image files, and the settings that identify what a run is trained on; None for digits."""
    if isinstance(train, TokenCache) and isinstance(val, TokenCache):
        tokens = {
            "classes": list(train.classes),
            "images": [len(train), len(val)],
            "digests": [train.digest, val.digest],
        }
        return None, {"data": None, "tokens": tokens}
    files = [None if isinstance(source, TokenCache) else source.files for source in (train, val)]
    if files[0] is None or files[1] is None:
        return None, {"data": None, "tokens": None}
    record = DataRecord.of(files[0], files[1])
    return record, {"data": record.settings, "tokens": None}
