"""``python -m var_train.tokenize``: encodes an image tree once, for all epochs of training."""

import logging
from dataclasses import dataclass
from pathlib import Path

from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    check_integer,
    fewer_images,
    images_that_fit,
    needing_memory,
    quoted,
)
from var_tokenizer.common.command import exit_codes, read_settings

from var_train.data.image_sources import ImageFolder
from var_train.data.token_cache import write_cache
from var_train.listing.find_images import find_images
from var_train.parallel import workers
from var_train.parallel.watch import alone_in, watched

log = logging.getLogger("var_train")

_LARGEST_BATCH = 32


@dataclass(frozen=True)
class TokenizeConfig:
    """Encode an image tree into a token cache.

    If it is killed, the same command continues where it stopped. Under msrun, workers share the
    work.
    """

    tokenizer: Path
    """A trained tokenizer, .safetensors."""
    data: Path
    """An image tree, DATA/train/CLASS/* and DATA/val/CLASS/*; with --val-fraction, DATA/CLASS/*.
    Or shards, quoted: 'train-{0000..1023}.tar'."""
    out: Path
    """The folder of the cache."""
    val_fraction: float | None = None
    """Share of each class to hold out for validation, if DATA has no val."""
    crops: int = 0
    """Random crops of each training image, after its shorter side was resized to 1.125 times the
    size, as published; validation images are cropped at the centre. 0 for all of an image that
    fits."""
    mirror: bool = True
    """Encode each image or crop mirrored left to right, too."""
    seed: int = 0
    """Seed of the crops."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, at most 32."""
    shard: int = 4096
    """Images in a file."""

    def __post_init__(self) -> None:
        """Raises InputError for a value that is too small."""
        check_integer("crops", self.crops, 0)
        check_integer("seed", self.seed, 0)
        check_integer("batch", self.batch, 0)
        check_integer("shard", self.shard, 1)


def tokenize(config: TokenizeConfig) -> None:
    """Runs the command; raises InputError for unusable files before it encodes."""
    tokenizer = Tokenizer.load(config.tokenizer)
    size = tokenizer.config.image_size
    train, val = find_images(config.data, config.val_fraction)
    crops = config.crops > 0
    splits = {"train": ImageFolder(train, size, crops), "val": ImageFolder(val, size, crops)}
    batch = config.batch or images_that_fit(tokenizer.config.bytes_per_image, _LARGEST_BATCH)
    doing, remedy = f"encoding {batch} images at once", fewer_images("--batch", batch)
    with needing_memory(doing, remedy):
        write_cache(
            tokenizer,
            splits,
            config.out,
            config.shard,
            batch,
            crops=config.crops,
            mirror=config.mirror,
            seed=config.seed if crops else 0,
        )
    log.info("wrote %s", quoted(config.out.resolve()))


def main() -> None:
    """The command; see ``exit_codes`` for how it ends."""
    interrupted = "interrupted; the same command goes on with the next shard"
    with workers.leaving(), exit_codes(interrupted):
        workers.start()
        config = read_settings(TokenizeConfig, prog="python -m var_train.tokenize")
        with alone_in(config.out), watched(config.out):
            tokenize(config)


if __name__ == "__main__":
    main()
