"""What a token cache holds, which shards, and whether a shard is whole: CACHE/index.json."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from var_tokenizer import Scale, ScaleSchedule
from var_tokenizer.common import (
    InputError,
    arrays_checksum,
    check_flag,
    check_integer,
    quoted,
)

from var_train.data.token_shards import DTYPES, Arrays, Shard

SPLITS = ("train", "val")
FORMAT = 2  # of the index and the shards; 1 did not note the image files


@dataclass(frozen=True)
class CacheIndex:
    """The content of a cache; two caches with equal indices hold the same tokens."""

    tokenizer: str
    """The tokenizer's fingerprint."""
    vocab_size: int
    scales: tuple[Scale, ...]
    classes: tuple[str, ...]
    shard: int
    """Images in a shard; the last one of a split has the rest."""
    images: dict[str, int]
    """The number of images in each split."""
    files: str
    """SHA-256 of the names of all image files."""
    format: int = FORMAT
    crops: int = 0
    """Random crops of each training image; 0 for all of an image that fits."""
    mirrored: bool = True
    """Whether the tokens of mirrored images are there, too."""
    seed: int = 0
    """Seed of the crops."""

    def __post_init__(self) -> None:
        """Raises InputError for a value that no cache has."""
        for name in ("vocab_size", "shard"):
            check_integer(name, getattr(self, name), 1)
        for name in ("crops", "seed"):
            check_integer(name, getattr(self, name), 0)
        check_flag("mirrored", self.mirrored)
        for split in SPLITS:
            check_integer(f"images of {split}", self.images[split], 1)
        if not all(isinstance(word, str) for word in (self.tokenizer, self.files, *self.classes)):
            raise InputError("tokenizer, files and classes hold other things; expected strings")

    @classmethod
    def read(cls, folder: Path) -> "CacheIndex":
        """Raises InputError if ``folder`` is not a token cache."""
        path = folder / "index.json"
        try:
            fields = json.loads(path.read_text())
            version = fields.get("format", 1 if fields else FORMAT)
            fields["scales"] = ScaleSchedule(fields["scales"]).scales
            index = cls(**(fields | {"classes": tuple(fields["classes"])}))
        except OSError as error:
            raise InputError(
                f"{quoted(path)}: cannot read it: {error.strerror}; expected a token cache "
                "(python -m var_train.tokenize makes one)"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{quoted(path)}: no index of a token cache: {quoted(str(error))}"
            ) from error
        if version != FORMAT:
            raise InputError(
                f"{quoted(folder)}: a token cache of format {version}; expected {FORMAT} "
                "(python -m var_train.tokenize into another --out, or after removing this folder, "
                "encodes the images again)"
            )
        return index

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays in a shard."""
        return ("ids", "flipped", "labels") if self.mirrored else ("ids", "labels")

    def crops_of(self, split: str) -> int:
        """How many rows of tokens an image has."""
        return max(1, self.crops) if split == "train" else 1

    def shards(self, folder: Path, split: str) -> Iterator[tuple[Path, range]]:
        """The files of a split, in order, and the images that each holds."""
        every = range(self.images[split])
        for begin in every[:: self.shard]:
            name = f"{begin // self.shard:05d}.safetensors"
            yield folder / split / name, every[begin:][: self.shard]

    def expected(self, split: str, images: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and end of the range of each array in a shard of ``images``."""
        shape = (images * self.crops_of(split), ScaleSchedule(self.scales).length)
        expected = {name: (shape, self.vocab_size) for name in self.arrays}
        return expected | {"labels": ((images,), len(self.classes))}

    def has_whole(self, split: str, path: Path, images: int) -> bool:
        """Whether a shard of ``images`` exists, with the right checksum and tokens in range."""
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in self.arrays}
                noted = file.metadata()["sha256"]
        except (OSError, SafetensorError, KeyError, TypeError):
            return False
        return self.is_whole(split, images, arrays, noted)

    def is_whole(self, split: str, images: int, arrays: Arrays, checksum: str) -> bool:
        """Whether a shard's arrays have this checksum, and tokens in range."""
        return checksum == arrays_checksum(arrays) and all(
            arrays[name].dtype in DTYPES.values()
            and arrays[name].shape == shape
            and arrays[name].min() >= 0
            and arrays[name].max() < end
            for name, (shape, end) in self.expected(split, images).items()
        )

    def has_header(self, split: str, images: int, shard: Shard) -> bool:
        """Whether the header is that of a shard of ``images``."""
        return bool(shard.checksum) and all(
            name in shard.tensors
            and shard.tensors[name].dtype in DTYPES
            and shard.tensors[name].shape == shape
            for name, (shape, _) in self.expected(split, images).items()
        )
