"""Where the transformer's training takes token maps from: memory, images, or a cache of shards."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError

from var_train.data.batches import padded_batches
from var_train.data.image_sources import ImageFolder, ImageSet, ImageSource
from var_train.parallel import workers
from var_train.reports.progress_bars import step_bar

Ids = list[np.ndarray]  # K arrays (B, s_y * s_x) of integers


class TokenSource(Protocol):
    """Token maps of N labelled images, of which some sources have the mirror images, too."""

    mirrors: bool
    """Whether ``batch`` can give the tokens of mirrored images."""

    def __len__(self) -> int:
        """N."""

    def batch(self, indices: np.ndarray, flip: np.ndarray | None = None) -> tuple[Ids, np.ndarray]:
        """Token maps, K arrays (B, s_y * s_x), and labels int32 (B,) at ``indices`` (B,).

        flip: (B,) bool, True where an image is to be mirrored left to right.
        """


@dataclass(frozen=True)
class TokenSet:
    """Token maps in memory: a ``TokenSource``. ids: K arrays (N, s_y * s_x). labels_n: (N,)."""

    ids: Ids
    labels_n: np.ndarray
    flipped: Ids | None = None
    """Like ``ids``, of the mirrored images."""

    @property
    def mirrors(self) -> bool:
        return self.flipped is not None

    def __len__(self) -> int:
        return len(self.labels_n)

    def batch(self, indices: np.ndarray, flip: np.ndarray | None = None) -> tuple[Ids, np.ndarray]:
        """See ``TokenSource.batch``."""
        ids = [ids_nl[indices] for ids_nl in self.ids]
        if flip is not None:
            if self.flipped is None:
                raise InputError("flip is True; expected tokens of mirrored images, too")
            for ids_bl, flipped_nl in zip(ids, self.flipped, strict=True):
                ids_bl[flip] = flipped_nl[indices[flip]]
        return ids, self.labels_n[indices]


class EncodedImages:
    """Images that are encoded whenever a batch asks for them: a ``TokenSource``."""

    mirrors = True

    def __init__(self, tokenizer: Tokenizer, images: ImageSource) -> None:
        self._tokenizer, self._images = tokenizer, images

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: np.ndarray, flip: np.ndarray | None = None) -> tuple[Ids, np.ndarray]:
        """See ``TokenSource.batch``."""
        images_bcyx, labels_b = self._images.batch(indices, flip)
        return [np.asarray(i) for i in self._tokenizer.encode(images_bcyx)], labels_b


def tokens_of(
    tokenizer: Tokenizer, source: ImageSource | TokenSource, batch: int, flip: bool = False
) -> TokenSource:
    """Images that lie in memory are encoded now, once; others whenever a batch asks for them."""
    if isinstance(source, ImageSet):
        return encode_all(tokenizer, source, batch, flip)
    if isinstance(source, ImageFolder):
        return EncodedImages(tokenizer, source)
    return source


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's configuration and weights, which token ids depend on."""
    known = json.dumps(asdict(tokenizer.config)) + tokenizer.checksum()
    return hashlib.sha256(known.encode()).hexdigest()


def encode_all(tokenizer: Tokenizer, images: ImageSource, batch: int, flip: bool) -> TokenSet:
    """Encodes all images once, each worker its part; all workers have all tokens.

    batch: images at once. flip: encode the mirrored images, too.
    """
    source = EncodedImages(tokenizer, images)
    flipped = _encode(source, batch, np.ones(batch, bool)) if flip else None
    return TokenSet(_encode(source, batch, None), images.labels_n, flipped)


def _encode(source: EncodedImages, batch: int, flip: np.ndarray | None) -> Ids:
    batches = padded_batches(len(source), batch)
    count = workers.size()
    turns = -(-len(batches) // count)
    own = np.resize(np.arange(len(batches)), (turns, count))[:, workers.rank()]
    parts = []
    with step_bar("tokens     ", len(own) * batch, unit="images") as bar:
        for i in own:
            parts.append(source.batch(batches[i], flip)[0])
            bar.advance(batch, steps=batch)
    ids = []
    for of_scale in zip(*parts, strict=True):
        of_workers = workers.gather(np.stack(of_scale))  # (workers, turns, batch, tokens)
        in_order = of_workers.swapaxes(0, 1).reshape(-1, of_workers.shape[-1])
        ids.append(in_order[: len(source)])
    return ids
