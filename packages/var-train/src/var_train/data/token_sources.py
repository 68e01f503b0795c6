"""Where the transformer's training takes tokens from: memory, images, or a cache of shards.

Tokens are ids (N, L) here, the K scales of an image one after another; ``ScaleSchedule.split``
gives views by scale. They are checked once, when training receives them (``TokenSet``,
``TokenCache``), and not at each step.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, checked_integers, to_model_range

from var_train.data.batches import padded_batches
from var_train.data.crops import PlaceOf
from var_train.data.image_sources import (
    Batch,
    ImageFolder,
    ImageSet,
    ImageSource,
    ReadImages,
    read_images,
)
from var_train.parallel import workers
from var_train.reports.progress_bars import step_bar


class TokenSource(Protocol):
    """Tokens of N labelled images; some sources also have those of the mirrored images."""

    @property
    def mirrors(self) -> bool:
        """Whether ``batch`` can give the tokens of mirrored images."""

    @property
    def labels_n(self) -> np.ndarray:
        """(N,) int32."""

    def __len__(self) -> int:
        """N."""

    def batch(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """Ids int32 (B, L) and labels int32 (B,) at ``indices`` (B,).

        Ids are in [0, V): the source vouches for that, and no step checks it again.
        flip: (B,) bool, True for an image to mirror left to right. place_of: which crop of each
        image to take, if the source has several; None for the centre or the first.
        """


def read_tokens(
    source: TokenSource,
    indices: np.ndarray,
    flip: np.ndarray | None = None,
    place_of: PlaceOf | None = None,
) -> Callable[[], Batch]:
    """Reads what ``source.batch`` gives, which the result then returns.

    With sources that have a method ``read``, any thread may call this, ahead of the step that calls
    the result.
    """
    if hasattr(source, "read"):
        return source.read(indices, flip, place_of)
    batch = source.batch(indices, flip, place_of)
    return lambda: batch


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Tokens in memory: a ``TokenSource``. ids_nl: (N, L) int32. labels_n: (N,) int32.

    Raises InputError for arrays of another shape or dtype.
    """

    ids_nl: np.ndarray
    labels_n: np.ndarray
    flipped_nl: np.ndarray | None = None
    """Like ``ids_nl``, but of the mirrored images."""

    def __post_init__(self) -> None:
        shape = (len(self.labels_n), self.ids_nl.shape[-1])
        for name in ("ids_nl", "flipped_nl"):
            array = getattr(self, name)
            if array is not None and (array.dtype != np.int32 or array.shape != shape):
                raise InputError(f"{name} is {array.dtype} {array.shape}; expected int32 {shape}")

    def check_ids(self, vocab_size: int) -> None:
        """Raises InputError for ids outside of [0, vocab_size)."""
        for name in ("ids_nl", "flipped_nl"):
            if getattr(self, name) is not None:
                checked_integers(name, getattr(self, name), vocab_size)

    @property
    def mirrors(self) -> bool:
        return self.flipped_nl is not None

    def __len__(self) -> int:
        return len(self.labels_n)

    def batch(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """See ``TokenSource.batch``."""
        ids_bl = self.ids_nl[indices]
        if flip is not None:
            if self.flipped_nl is None:
                raise InputError("flip is True; expected tokens of mirrored images, too")
            ids_bl[flip] = self.flipped_nl[indices[flip]]
        return ids_bl, self.labels_n[indices]


class EncodedImages:
    """Images that are encoded whenever a batch asks for them: a ``TokenSource``."""

    mirrors = True
    remedy = "tokens (python -m var_train.tokenize)"
    """What to train from instead where decoding takes too long."""

    def __init__(self, tokenizer: Tokenizer, images: ImageSource) -> None:
        self._tokenizer, self._images, self.labels_n = tokenizer, images, images.labels_n

    def __len__(self) -> int:
        return len(self._images)

    def batch(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """See ``TokenSource.batch``."""
        return self._reading(read_images(self._images, indices, flip, place_of))()

    def read(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Callable[[], Batch]:
        """See ``read_tokens``: the images are read now, and encoded by the result."""
        if not hasattr(self._images, "read"):
            return lambda: self.batch(indices, flip, place_of)
        return self._reading(self._images.read(indices, flip, place_of))

    def _reading(self, images: ReadImages) -> Callable[[], Batch]:
        images_bcyx = to_model_range(images.pixels_byxc)
        take, labels_b = images.take, images.labels_b

        def encode() -> Batch:
            take()
            return self._tokenizer.encode_sequence(images_bcyx), labels_b

        return encode

    @property
    def processor_seconds(self) -> float:
        """As that of ``ImageFolder``."""
        return getattr(self._images, "processor_seconds", 0.0)

    @property
    def bytes_each(self) -> int:
        """As that of ``ImageFolder``."""
        return getattr(self._images, "bytes_each", 1)


def tokens_of(
    tokenizer: Tokenizer,
    source: ImageSet | ImageFolder | TokenSource,
    batch: int,
    flip: bool = False,
) -> TokenSource:
    """The tokens of ``source``: images in memory are encoded now, others batch by batch.

    Workers share the work, and each has all tokens in the end. batch: images at once. flip: encode
    the mirrored images, too.
    """
    if isinstance(source, ImageSet):
        images = EncodedImages(tokenizer, source)
        flipped = _encode(images, batch, np.ones(batch, bool)) if flip else None
        return TokenSet(_encode(images, batch, None), source.labels_n, flipped)
    return EncodedImages(tokenizer, source) if isinstance(source, ImageFolder) else source


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's configuration and weights, which its tokens depend on."""
    known = json.dumps(asdict(tokenizer.config)) + tokenizer.checksum()
    return hashlib.sha256(known.encode()).hexdigest()


def _encode(source: EncodedImages, batch: int, flip: np.ndarray | None) -> np.ndarray:
    batches = padded_batches(len(source), batch)
    size, rank = workers.size(), workers.rank()
    own = np.resize(np.arange(len(batches)), (-(-len(batches) // size), size))[:, rank]
    parts = []
    with step_bar("tokens     ", len(own) * batch, unit="images") as bar:
        for i in own:
            parts.append(source.batch(batches[i], flip)[0])
            bar.advance(batch, steps=batch)
    of_workers = workers.gather(np.stack(parts))  # (workers, turns, batch, L)
    return of_workers.swapaxes(0, 1).reshape(-1, of_workers.shape[-1])[: len(source)]
