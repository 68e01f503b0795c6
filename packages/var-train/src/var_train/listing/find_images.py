"""The images of what a command calls its data: a folder, or shards."""

from pathlib import Path

from var_train.listing.folder_scan import scan_folder, scan_tree
from var_train.listing.image_files import ImageFiles
from var_train.listing.shard_scan import is_sharded, scan_as_one_class, scan_shards


def find_images(
    data: Path, val_fraction: float | None = None, kept: bool = False
) -> tuple[ImageFiles, ImageFiles]:
    """The training and validation images; see ``scan_tree`` and ``scan_shards``."""
    if is_sharded(data):
        return scan_shards(data, val_fraction)
    return scan_tree(data, val_fraction, kept)


def find_all(data: Path) -> ImageFiles:
    """All images as one class; see ``scan_folder`` and ``scan_as_one_class``."""
    return scan_as_one_class(data) if is_sharded(data) else scan_folder(data)
