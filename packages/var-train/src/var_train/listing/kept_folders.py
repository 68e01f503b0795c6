"""The list of a folder's images, from the last time if no folder in it has changed since.

The time of a folder shows whether names came or went in it, not whether a file was rewritten in
place. So who reads a file of a kept list compares its size and time with those of the list first;
if they differ, the list is forgotten (``ImageFiles.source``).
"""

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from var_tokenizer.common import PICTURE_SUFFIXES, quoted

from var_train.listing.image_files import ImageFiles
from var_train.listing.kept_lists import FRESH, KeptLists
from var_train.listing.name_list import NameList

LEAST = 10_000  # images: fewer are listed anew, in less than a second on most disks

log = logging.getLogger(__name__)

Visited = list[tuple[str, os.stat_result]]
"""The folders that a scan read, links to folders that it had read before included."""


@dataclass(frozen=True)
class FolderList:
    """What is kept of ``folder`` with these classes."""

    folder: Path
    classes: tuple[str, ...]
    ignored: frozenset[str]
    lists: KeptLists = field(default_factory=KeptLists)

    def recall(self) -> tuple[ImageFiles, Counter[str]] | None:
        """The images, and what was left out; None if that is unknown or no longer so."""
        arrays = self.lists.read(self.folder, self._state())
        if arrays is None:
            return None
        folders = NameList(arrays["folders"])
        try:
            now_d4 = _states([(self.folder / name).stat() for name in folders])
        except OSError:
            return None
        if not np.array_equal(now_d4, arrays["states"]):
            return None
        names = NameList(arrays["names"])
        log.info("%s: %d images, as listed before", quoted(self.folder), len(names))
        numbers = (arrays["labels"], self.classes, arrays["sizes"], arrays["times"])
        forget = self.lists.forget
        files = ImageFiles(self.folder, names, *numbers, stale=lambda: forget(self.folder))
        return files, Counter(json.loads(arrays["left_out"].tobytes()))

    def keep(self, files: ImageFiles, visited: Visited, began: int, left_out: Counter[str]) -> None:
        """Keeps a list that a scan made; began: when, in nanoseconds since 1970.

        Not if a folder had changed just before that, and not beside broken links: nothing in a
        folder shows that they lead somewhere again.
        """
        newest = max(max(status.st_mtime_ns, status.st_ctime_ns) for _, status in visited)
        if len(files) < LEAST or newest >= began - FRESH or left_out["broken link"]:
            return
        arrays = {
            "names": files.names.terminated,
            "labels": files.labels_n,
            "sizes": files.sizes_n,
            "times": files.times_n,
            "folders": NameList.of(name for name, _ in visited).terminated,
            "states": _states([status for _, status in visited]),
            "left_out": np.frombuffer(json.dumps(left_out).encode(), np.uint8),
        }
        self.lists.keep(self.folder, self._state(), arrays)

    def _state(self) -> str:
        rules = (self.classes, sorted(PICTURE_SUFFIXES), sorted(self.ignored))
        return blake2b(repr(rules).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _states(statuses: list[os.stat_result]) -> np.ndarray:
    """(D, 4) uint64: which folder each is, and when names in it and it itself last changed."""
    rows = [(s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for s in statuses]
    return np.array([[value % 2**64 for value in row] for row in rows], np.uint64)
