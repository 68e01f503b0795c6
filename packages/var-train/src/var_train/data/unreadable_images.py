"""Truncated and otherwise unreadable images: their substitutes, and how they are reported.

The next readable image of the class stands in, so a batch keeps its size, an epoch its number of
images, and a repeated run sees the same ones.
"""

import logging
from collections.abc import Iterator
from threading import Lock

import numpy as np
from var_tokenizer.common import InputError, quoted

from var_train.listing.image_files import ImageFiles
from var_train.listing.source_errors import refuse_lost

log = logging.getLogger(__name__)


class UnreadableImages:
    """The unreadable images of one split that were found so far. Threads may share it."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._errors: dict[int, str] = {}
        self._lock = Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._errors

    def candidates(self, index: int) -> Iterator[int]:
        """The image at ``index``, then the next ones of its class, cyclically."""
        labels_n = self._files.labels_n
        label = labels_n[index]
        first, end = np.searchsorted(labels_n, np.array([label, label + 1], np.int32)).tolist()
        yield from range(index, end)
        yield from range(first, index)

    def stand_ins(self) -> Iterator[tuple[int, int]]:
        """Each unreadable image and its substitute.

        Raises InputError for a class without a readable image.
        """
        for index in sorted(self._errors):
            found = next((i for i in self.candidates(index) if i not in self), None)
            if found is None:
                raise self.class_error(index)
            yield index, found

    def class_error(self, index: int) -> InputError:
        """What to raise if no image of the class of ``index`` can be read."""
        files = self._files
        place = files.class_place(files.classes[files.labels_n[index]])
        first = self._errors[index]
        return InputError(f"{place}: no readable image; expected at least one ({first})")

    def add(self, index: int, error: InputError) -> bool:
        """Notes why an image cannot be read; False if that was known.

        Raises SourceError if it is not the image's fault.
        """
        refuse_lost(error)
        with self._lock:
            known = index in self._errors
            self._errors.setdefault(index, str(error))
        return not known

    def report(self, index: int, error: InputError) -> None:
        """Notes an unreadable image and warns of it once.

        Raises InputError as ``check_count`` does.
        """
        if self.add(index, error):
            log.warning("skipped an unreadable image, the next of its class stands in: %s", error)
            self.check_count()

    def report_all(self) -> None:
        """Warns once about all noted images. Raises InputError as ``check_count`` does."""
        self.check_count()
        errors = self._sorted_errors()
        if errors:
            log.warning(
                "%s: skipped %d unreadable image(s), the next of their class stand in: %s%s",
                *(quoted(self._files.folder), len(errors)),
                *(", ".join(errors[:3]), ", ..." if errors[3:] else ""),
            )

    def check_count(self) -> None:
        """Raises InputError with the list if more than 10 and more than 1 % are unreadable."""
        total = len(self._files)
        if len(self._errors) > max(10, total / 100):
            errors = self._sorted_errors()
            raise InputError(
                f"{quoted(self._files.folder)}: {len(errors)} of {total} images are unreadable; "
                f"expected at most 10 or 1 %, whichever is more: {'; '.join(errors)}"
            )

    def _sorted_errors(self) -> list[str]:
        with self._lock:
            return [text for _, text in sorted(self._errors.items())]
