"""The command ``evaluate classifier``: a judge of the user's classes, trained on real images."""

from dataclasses import dataclass
from pathlib import Path

from var_tokenizer.common import InputError, quoted, read_picture

from var_train.data.digits import load_digits_split
from var_train.data.image_sources import ImageSource, load_image_tree
from var_train.judging.classifier import accuracy_of, train_classifier
from var_train.judging.networks import default_network
from var_train.listing.find_images import find_images
from var_train.reports.progress_bars import step_bar

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """Train a classifier of real images, to judge or to select generated ones.

    It is a linear map of what EfficientNet-Lite0 sees (the extra [judge]). Shows the share of the
    held-out images that it knows. For evaluate samples --judge, sample --judge and
    --loop.judge.network.
    """

    out: Path
    """The file to write, NAME.safetensors."""
    data: Path | None = None
    """An image tree, DATA/train/CLASS/* and DATA/val/CLASS/*, or shards; by default the digits.
    Images have the size of the first."""
    val_fraction: float | None = None
    """Share of each class to hold out if there is no val."""

    def __post_init__(self) -> None:
        """Raises InputError for a file of another suffix."""
        if self.out.suffix != _SUFFIX:
            raise InputError(f"{quoted(self.out)}: the file to write; expected NAME{_SUFFIX}")


def make_classifier(config: ClassifierTrainingConfig) -> float:
    """Runs the command: the share of the held-out images that the classifier knows, 0 to 1.

    Raises InputError for unusable images.
    """
    network = default_network()
    train, val = _images(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with step_bar("looking  ", 2 * len(train), unit="images") as bar:
        classifier = train_classifier(
            network, config.out.stem, train, lambda n: bar.advance(n, steps=n)
        )
    with step_bar("measuring", len(val), unit="images") as bar:
        accuracy = accuracy_of(classifier, val, lambda n: bar.advance(n, steps=n))
    classifier.save(config.out)
    return accuracy


def _images(config: ClassifierTrainingConfig) -> tuple[ImageSource, ImageSource]:
    if config.data is None:
        return load_digits_split()
    files, _ = find_images(config.data, config.val_fraction, kept=True)
    columns, rows = read_picture(files.source(0)).size
    return load_image_tree(config.data, (rows, columns), val_fraction=config.val_fraction)
