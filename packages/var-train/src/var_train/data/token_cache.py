"""Tokens of an image tree on disk, in shards with checksums, mirrored images and crops included.

    CACHE/index.json                 tokenizer, classes, images, crops and size of the shards
    CACHE/train/00000.safetensors    ids and flipped (n * C, L), labels (n,), their SHA-256
    CACHE/val/...

A row of ``ids`` holds the K token maps of an image one after another. The C random crops of an
image are neighbouring rows; C is 1 for validation images, and for training images that are not
cropped. A shard also notes the index, name, size, time and content hash of every image file that it
was made from, so that a repeated command finds the shards with replaced images and rewrites only
those. If a file's time changed but not its size, its content decides.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    arrays_checksum,
    quoted,
    remove_leftovers,
    replacing,
    to_model_range,
    write_tensors,
)

from var_train.data.batches import padded_batches
from var_train.data.cache_index import SPLITS, CacheIndex
from var_train.data.crops import PlaceOf, draw_place
from var_train.data.image_sources import Batch, ImageFolder, ReadImages
from var_train.data.loader import read_ahead
from var_train.data.token_shards import Arrays, Shard, TokenShards
from var_train.data.token_sources import fingerprint
from var_train.listing.image_files import ImageFiles, content_hash, first_of, gone_and_new
from var_train.listing.name_list import NameList
from var_train.parallel import workers
from var_train.reports.progress_bars import step_bar

log = logging.getLogger(__name__)

_MOST_CROPS = 16  # of an image at once, so that memory does not grow with their number
_FIELDS = {
    "classes": "list of classes",
    "images": "number of images",
    "files": "list of image files",
    "shard": "shard size",
    "crops": "number of crops",
    "mirrored": "choice of mirrored images",
    "seed": "seed of the crops",
}


class TokenCache:
    """One split of a finished cache: a ``TokenSource`` that reads rows straight from disk."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        """Reads all headers and labels. A shard is checked when its first token is read.

        Raises InputError unless the cache is complete and of this tokenizer.
        """
        index = CacheIndex.read(Path(folder))
        if index.tokenizer != fingerprint(tokenizer):
            raise InputError(
                f"{quoted(folder)}: holds tokens of another tokenizer; expected those of the one "
                "that this run uses"
            )
        self.classes, self.mirrors, self.crops = index.classes, index.mirrored, index.crops
        self._rows = index.crops_of(split)
        self._size, self._length = index.images[split], tokenizer.schedule.length
        self.bytes_each = 4 * self._length  # as ids
        self._shard = index.shard
        digest, shards, labels = hashlib.sha256(), [], []
        for path, images in index.shards(Path(folder), split):
            shard = _header(index, split, path, len(images))
            digest.update(shard.checksum.encode())
            shards.append(shard)
            labels.append(shard.labels())
        self.digest = digest.hexdigest()
        """SHA-256 of all tokens and labels."""
        self._folder, self._paths = Path(folder, split), [shard.path for shard in shards]
        self.labels_n = np.concatenate(labels)

        def is_whole(number: int, arrays: Arrays) -> bool:
            own_n = self.labels_n[number * self._shard :][: self._shard]
            return np.array_equal(arrays["labels"], own_n) and index.is_whole(
                split, len(own_n), arrays, shards[number].checksum
            )

        self._shards = TokenShards(shards, index.arrays, is_whole)

    def __len__(self) -> int:
        return self._size

    @property
    def files(self) -> ImageFiles | None:
        """The image files that the tokens were made from; None if a shard does not name them."""
        lists, notes = [], []
        for path in self._paths:
            found = _notes(path, len(self))
            if found is None or found[0] is None:
                return None
            lists.append(("", found[0]))
            notes.append(found[1])
        index_n, first_n = np.unique(np.concatenate([n["index"] for n in notes]), return_index=True)
        sizes_n, times_n, hashes_n = (
            np.concatenate([n[key] for n in notes])[first_n] for key in ("size", "time", "hash")
        )
        names, labels_n = NameList.joined(lists).take(first_n), self.labels_n[index_n]
        return ImageFiles(self._folder, names, labels_n, self.classes, sizes_n, times_n, hashes_n)

    def read(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Callable[[], Batch]:
        """See ``read_tokens``."""
        batch = self.batch(indices, flip, place_of)
        return lambda: batch

    def batch(
        self, indices: np.ndarray, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """See ``TokenSource.batch``."""
        flip = np.zeros(len(indices), bool) if flip is None else flip
        ids_bl = np.empty((len(indices), self._length), np.int32)
        for b, (index, mirrored) in enumerate(zip(indices.tolist(), flip.tolist(), strict=True)):
            name = "flipped" if mirrored else "ids"
            crop = 0 if place_of is None else int(place_of(index)[0] * self._rows)
            row = index % self._shard * self._rows + crop
            ids_bl[b] = self._shards.row(name, index // self._shard, row)
        return ids_bl, self.labels_n[indices]


def _header(index: CacheIndex, split: str, path: Path, images: int) -> Shard:
    try:
        shard = Shard.read(path)
    except InputError:
        shard = None
    if shard is None or not index.has_header(split, images, shard):
        raise InputError(
            f"{quoted(path)}: missing or damaged; expected a whole shard (the same "
            "var_train.tokenize command writes it again)"
        )
    return shard


def write_cache(
    tokenizer: Tokenizer,
    splits: dict[str, ImageFolder],
    folder: Path,
    shard: int,
    batch: int,
    *,
    crops: int = 0,
    mirror: bool = True,
    seed: int = 0,
) -> None:
    """Encodes images into ``folder``; workers share the work.

    Keeps shards that are whole and were made from the same image files. splits: the images of
    "train" and "val". shard: images in a file. batch: images at once. crops: of each training image
    at random, by ``seed``; 0 for the image as ``splits`` gives it. mirror: encode them mirrored,
    too. Raises InputError if the folder holds other tokens, and if workers have other images.
    """
    index = CacheIndex(
        tokenizer=fingerprint(tokenizer),
        vocab_size=tokenizer.vocab_size,
        scales=tokenizer.schedule.scales,
        classes=splits["train"].classes,
        shard=shard,
        images={name: len(splits[name]) for name in SPLITS},
        files=_names_digest(splits),
        crops=crops,
        mirrored=mirror,
        seed=seed,
    )
    workers.check_alike({"the data": asdict(index)})
    _claim(folder, index)
    if workers.rank() == 0:
        for name in SPLITS:
            remove_leftovers(folder / name)
    work = [(name, *shard) for name in SPLITS for shard in index.shards(folder, name)]
    work = work[workers.rank() :: workers.size()]
    replaced: list[str] = []
    done = []
    for name, path, rows in work:
        whole = index.has_whole(name, path, len(rows))
        others = _replaced(path, splits[name].files) if whole else None
        replaced += others or []
        done.append(others == [])
    log.info("%d of %d shards are there", sum(done), len(done))
    if replaced:
        log.info(
            "%d image(s) were replaced, their shards are written anew: %s",
            *(len(replaced), first_of(replaced)),
        )
    with step_bar("tokens", sum(index.images.values()), unit="images") as bar:
        for (name, path, rows), is_done in zip(work, done, strict=True):
            if not is_done:
                _write_shard(path, tokenizer, splits[name], np.array(rows), batch, index, name)
            bar.advance(len(rows), steps=len(rows))
    workers.wait_for_all()


def _names_digest(splits: dict[str, ImageFolder]) -> str:
    """SHA-256 of SPLIT/NAME of all image files, a newline between each two."""
    digest, between = hashlib.sha256(), b""
    for split in SPLITS:
        for text in splits[split].files.names.texts(f"{split}/".encode()):
            digest.update(between + text[:-1].replace(b"\0", b"\n"))
            between = b"\n"
    return digest.hexdigest()


def _notes(path: Path, images: int) -> tuple[NameList | None, dict[str, np.ndarray]] | None:
    """What a shard of a split of ``images`` notes of its image files, their names first.

    None if it is damaged; up to version 0.1.0 shards do not note names.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            notes = {name: file.get_tensor(name) for name in ("index", "size", "time", "hash")}
            names = json.loads((file.metadata() or {}).get("names", "null"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return None
    index_n = notes["index"]
    if any(
        a.ndim != 1 or a.size != index_n.size or a.dtype.kind not in "iu" for a in notes.values()
    ):
        return None
    if index_n.size and not 0 <= index_n.min() <= index_n.max() < images:
        return None
    if not isinstance(names, list) or len(names) != index_n.size:
        return None, notes
    texts = (str(name).encode("utf-8", "backslashreplace").decode() for name in names)
    return NameList.of(text.replace("\0", " ") for text in texts), notes


def _replaced(path: Path, files: ImageFiles) -> list[str] | None:
    """The images of a whole shard that have been replaced; None if its notes are damaged."""
    found = _notes(path, len(files))
    if found is None:
        return None
    made_of = found[1]
    index_n = made_of["index"]
    other_n = files.sizes_n[index_n] != made_of["size"]
    for i in np.flatnonzero(~other_n & (files.times_n[index_n] != made_of["time"])):
        other_n[i] = _hash_of(files, index_n[i]) != made_of["hash"][i]
    return [files.names[i] for i in index_n[other_n]]


def _made_of(source: ImageFolder, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What a shard notes about the files that its ``rows``, read before, come from."""
    files = source.files
    index_n = np.unique([i for row in rows.tolist() for i in source.sources(row)])
    hashes_n = np.array([_hash_of(files, index) for index in index_n], np.uint64)
    # if a file was replaced after the folder was listed, it may not be the one encoded
    same_n = np.array([files.is_as_listed(index) for index in index_n])
    return {
        "index": index_n,
        "size": np.where(same_n, files.sizes_n[index_n], -1),
        "time": files.times_n[index_n],
        "hash": hashes_n,
    }


def _hash_of(files: ImageFiles, index: int) -> int:
    """The hash of a file's content; 0 if it cannot be read."""
    try:
        return content_hash(files.source(index))
    except InputError:
        return 0


def _claim(folder: Path, index: CacheIndex) -> None:
    """Writes the index. Raises InputError if there is a different one."""
    path = folder / "index.json"
    if path.exists():
        before = CacheIndex.read(folder)
        for field, value in asdict(before).items():
            wanted = asdict(index)[field]
            if value != wanted:
                raise InputError(
                    f"{quoted(folder)}: holds tokens with another {_FIELDS.get(field, field)}"
                    f"{_difference(value, wanted)}; expected the same one, or another --out "
                    "(a new or missing image moves all after it, so all are encoded again)"
                )
    elif workers.rank() == 0:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(index), indent=2) + "\n")
    workers.wait_for_all()


def _difference(before: object, now: object) -> str:
    """How an error message shows what differs between two values of a field."""
    if isinstance(before, dict):
        return f" ({before} then, {now} now)"
    if not isinstance(before, tuple | list) or not isinstance(now, tuple | list):
        return ""
    gone, new = gone_and_new([str(v) for v in before], [str(v) for v in now])
    if not gone and not new:
        return " (in another order)"
    return f" (no longer: {first_of(gone) or '-'}; new: {first_of(new) or '-'})"


def _write_shard(
    path: Path,
    tokenizer: Tokenizer,
    images: ImageFolder,
    rows: np.ndarray,
    batch: int,
    index: CacheIndex,
    split: str,
) -> None:
    dtype = np.dtype(np.uint16 if index.vocab_size <= 2**16 else np.int32)
    crops, batches = index.crops_of(split), padded_batches(len(rows), batch)
    shape = (len(rows) * crops, tokenizer.schedule.length)
    arrays = {name: np.empty(shape, dtype) for name in index.arrays[:-1]}
    cropped = split == "train" and index.crops > 0
    parts = [range(crops)[first:][:_MOST_CROPS] for first in range(0, crops, _MOST_CROPS)]
    jobs = [(number, part) for number in range(len(batches)) for part in parts]

    def read(n: int) -> ReadImages:
        number, part = jobs[n]
        places_of = [partial(draw_place, index.seed, c) if cropped else None for c in part]
        return images.read_crops(rows[batches[number]], places_of)

    found_ahead = read_ahead(images, read, len(jobs), batch * len(parts[0]))
    for (number, part), found in zip(jobs, found_ahead, strict=True):
        found.take()
        for c, pixels_byxc in zip(part, np.split(found.pixels_byxc, len(part)), strict=True):
            own = slice(number * batch * crops + c, (number + 1) * batch * crops, crops)
            for name, array in arrays.items():
                turned_byxc = pixels_byxc[:, :, :: -1 if name == "flipped" else 1]
                ids_bl = tokenizer.encode_sequence(
                    to_model_range(np.ascontiguousarray(turned_byxc))
                )
                array[own] = ids_bl[: len(array[own])]  # repeats fill up the last batch
    arrays["labels"] = images.labels_n[rows]
    with replacing(path) as temporary:
        made_of = _made_of(images, rows)
        names = json.dumps([images.files.names[index] for index in made_of["index"]])
        texts = {"sha256": arrays_checksum(arrays), "names": names}
        write_tensors(temporary, arrays | made_of, texts)
