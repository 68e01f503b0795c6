"""What a path holds that is judged: images, statistics of them, or both."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from var_tokenizer.common import InputError, quoted

from var_train.judging.measuring import measure_set
from var_train.judging.networks import JudgeNetwork
from var_train.judging.npz_files import NpzFile
from var_train.judging.sets import FolderImages, ImagesToJudge, NpzImages
from var_train.judging.statistics import INCEPTION, SetStatistics, load_statistics
from var_train.reports.progress_bars import step_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class JudgedSet:
    """A set of images as a network sees it, or will."""

    path: Path
    images: ImagesToJudge | None = None
    saved: SetStatistics | None = None

    def count(self) -> int | None:
        """Images that features can be had of."""
        if self.images is not None:
            return len(self.images)
        if self.saved is None or self.saved.features_nf is None:
            return None
        return len(self.saved.features_nf)

    def check(self) -> tuple[int, int] | None:
        """Reads all images once: (rows, columns), or None if there are no images.

        Raises InputError for a damaged image, and for images of several sizes.
        """
        if self.images is None:
            return None
        title = f"checking {quoted(self.path.name)}"
        with step_bar(title, len(self.images), unit="images") as bar:
            return self.images.check(lambda n: bar.advance(n, steps=n))

    def statistics(self, network: JudgeNetwork, batch: int, title: str) -> SetStatistics:
        """The saved ones, or those that ``network`` gives, ``batch`` images at once."""
        if self.images is None:
            assert self.saved is not None
            return self.saved
        with step_bar(title, len(self.images), unit="images") as bar:
            found = measure_set(network, self.images, batch, lambda n: bar.advance(n, steps=n))
        if self.saved is not None:  # as OpenAI's evaluator does: of more images than there are
            return replace(found, pooled=self.saved.pooled, spatial=self.saved.spatial)
        return found


def open_set(path: Path, network: JudgeNetwork) -> JudgedSet:
    """A folder of images or an ``.npz`` file, to be judged by ``network``.

    Raises InputError for any other file, and for statistics of another network.
    """
    if path.is_dir():
        return JudgedSet(path, FolderImages(path))
    file = NpzFile(path)
    has_statistics = "mu" in file.arrays
    # of OpenAI's reference batches, images serve any network, statistics one alone
    is_of_another = has_statistics and "about" not in file.arrays and network.name != INCEPTION
    images = NpzImages(file) if "arr_0" in file.arrays else None
    if images is not None and is_of_another:
        log.info("%s: mu and sigma are the Inception's: not read", quoted(path))
    saved = None
    if has_statistics and (images is None or not is_of_another):
        saved = load_statistics(file, network)
    if images is None and saved is None:
        held = ", ".join(quoted(name) for name in sorted(file.arrays)[:8]) or "no array"
        raise InputError(
            f"{quoted(path)}: has {held}; expected arr_0, images uint8 (N, Y, X, 3), or mu and "
            "sigma, statistics"
        )
    return JudgedSet(path, images, saved)
