"""Judging a transformer while it trains, by the images that it draws at each validation."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    InputError,
    check_integer,
    file_digest,
    images_that_fit,
    needing_memory,
    quoted,
    to_pixels,
)
from var_transformer import Transformer

from var_train.data.image_sources import ImageSource
from var_train.judging.measuring import Figures, compare, figure_names, look, statistics_of
from var_train.judging.networks import NETWORK_BYTES, Features, JudgeNetwork, load_network
from var_train.judging.opened_sets import JudgedSet, open_set
from var_train.judging.sets import Measured
from var_train.judging.statistics import MOST_KEPT, SetStatistics
from var_train.parallel import workers
from var_train.reports.images import SamplingConfig, draw_images

log = logging.getLogger(__name__)

_Draw = Callable[[np.ndarray, np.ndarray], Iterator[np.ndarray]]  # labels, numbers -> images
_MOST_HELD_OUT = 10_000  # images
_LARGEST_BATCH = 50


@dataclass(frozen=True)
class JudgeConfig:
    """What validations of the transformer judge its images by."""

    samples: int = 0
    """How many images each validation draws and judges, of all classes of the data alike; 0 for
    none."""
    reference: Path | None = None
    """Real images or their statistics, as evaluate samples takes them; by default up to 10,000
    held-out images."""
    network: Path | None = None
    """The network whose features are compared, as evaluate samples takes it (--judge)."""
    chooses: bool = False
    """The best model is that of the lowest Frechet distance, not of the lowest loss."""

    def __post_init__(self) -> None:
        """Raises InputError for a number out of range, and for settings that nothing would read."""
        check_integer("samples", self.samples, 0, MOST_KEPT)
        if self.samples == 1 or (
            not self.samples and (self.reference or self.network or self.chooses)
        ):
            raise InputError(
                f"samples is {self.samples}, reference {self.reference}, network {self.network} "
                f"and chooses {self.chooses}; expected at least 2 samples, or 0 and no other "
                "setting of the judge"
            )


class ValidationJudge:
    """The network, and on worker 0 the reference, which is measured once."""

    def __init__(self, config: JudgeConfig, held_out: ImageSource | None) -> None:
        """held_out: the images of the run that it is not trained on; None if it has only tokens.

        Raises InputError for an unusable network or reference.
        """
        self._samples, self._chooses = config.samples, config.chooses
        self._network = load_network(config.network)
        self._names = figure_names(self._network.name)
        if config.reference is not None:
            images: JudgedSet = open_set(config.reference, self._network)
        elif held_out is not None:
            images = JudgedSet(_HeldOut.path, _HeldOut(held_out))
        else:
            raise InputError(
                "loop.judge.reference is None and the data are tokens; expected images or their "
                "statistics to judge by"
            )
        self._reference: SetStatistics | None = None
        if workers.rank() == 0:
            self._reference = _measured(self._network, images)
        workers.wait_for_all()
        self._about: list[object] = [str(images.path), images.count()]
        if config.chooses and config.reference is not None and config.reference.is_file():
            self._about.append(file_digest(config.reference))

    def best_by(self, sampling: SamplingConfig) -> Mapping[str, object] | None:
        """As a ``Stage`` has it; None if the loss decides."""
        if not self._chooses:
            return None
        return {
            "figure": _key(self._names["frechet"]),
            "samples": self._samples,
            "network": self._network.identity,
            "reference": self._about,
            "sampling": [sampling.cfg, sampling.top_k, sampling.top_p],
        }

    def judge(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        seed: int,
        classes_k: np.ndarray,
    ) -> dict[str, float]:
        """Figures of what ``model`` draws, by their names, on every worker.

        classes_k: the model's numbers of the K classes of the data. Image n is of the data's class
        n % K and from the random stream (seed, n); each worker draws its share. Raises InputError
        if memory does not suffice, and for features that are not finite.
        """

        def draw(labels_n: np.ndarray, numbers_n: np.ndarray) -> Iterator[np.ndarray]:
            return draw_images(model, tokenizer, labels_n, sampling, seed, numbers_n)

        remedy = "a smaller --loop.judge.samples"
        with needing_memory(f"judging {self._samples} images", remedy):
            features, labels_n = self._drawn(draw, classes_k)
            values = np.full(len(fields(Figures)), np.nan)
            if self._reference is not None:
                drawn = statistics_of(features, "the images that the model draws", labels_n)
                found = astuple(compare(drawn, self._reference)[0])
                values = np.array([np.nan if value is None else value for value in found])
        values = workers.gather(values)[0]
        pairs = zip(fields(Figures), values.tolist(), strict=True)
        judged = {_key(self._names[f.name]): value for f, value in pairs if not np.isnan(value)}
        if workers.rank() == 0:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in judged.items())
            log.info("judged %d images: %s", self._samples, shown)
        return judged

    def _drawn(self, draw: _Draw, classes_k: np.ndarray) -> tuple[Features, np.ndarray]:
        """The features of all workers' images, and the data's labels, in the order of the numbers.

        A network knows classes by the data's labels, which an adapter's base may number otherwise.
        """
        count, several = self._samples, workers.size()
        share = -(-count // several)
        # collectives need as many on each worker
        own_n = np.minimum(workers.rank() + several * np.arange(share), count - 1)
        found, batch = [], 0
        for images_bcyx in draw(classes_k[own_n % len(classes_k)].astype(np.int32), own_n):
            batch = batch or len(images_bcyx)
            seen = look(self._network, to_pixels(images_bcyx), batch)
            found.append(replace(seen, described_bd=None))  # six times as much as the others

        def gathered(parts: list[np.ndarray]) -> np.ndarray:
            of_workers_wnf = workers.gather(np.concatenate(parts))
            return of_workers_wnf.swapaxes(0, 1).reshape(-1, parts[0].shape[1])[:count]

        logits = [f.logits_bk for f in found if f.logits_bk is not None]
        spatial = [f.spatial_bf for f in found if f.spatial_bf is not None]
        features = Features(
            gathered([f.pooled_bf for f in found]),
            gathered(logits) if logits else None,
            gathered(spatial) if spatial else None,
        )
        return features, np.arange(count) % len(classes_k)


class _HeldOut:
    """``ImagesToJudge``: held-out images of a run, evenly spaced ones of many."""

    path = Path("the held-out images")
    labels_n: np.ndarray | None = None

    def __init__(self, source: ImageSource) -> None:
        count = min(len(source), _MOST_HELD_OUT)
        self._source = source
        self._chosen_n = np.linspace(0, len(source) - 1, count).round().astype(int)

    def __len__(self) -> int:
        return len(self._chosen_n)

    def check(self, measured: Measured) -> tuple[int, int]:
        """The run has checked them."""
        rows, columns = self._source.batch(self._chosen_n[:1])[0].shape[1:3]
        measured(len(self))
        return rows, columns

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        for begin in range(0, len(self), batch):
            yield self._source.batch(self._chosen_n[begin : begin + batch])[0]

    def chosen(self, indices: np.ndarray) -> list[np.ndarray]:
        return list(self._source.batch(self._chosen_n[indices])[0])


def _measured(network: JudgeNetwork, images: JudgedSet) -> SetStatistics:
    """Raises InputError for a damaged image, and for a reference without a distance to it."""
    rows, columns = images.check() or (1, 1)
    if images.images is not None and len(images.images) < 2:
        raise InputError(f"{quoted(images.path)}: 1 image; expected at least 2 to judge by")
    batch = images_that_fit(NETWORK_BYTES + 24 * rows * columns, _LARGEST_BATCH)
    batch = min(batch, images.count() or 1)
    found = images.statistics(network, batch, "reference  ")
    assert found.pooled is not None
    seen = look(network, np.zeros((1, rows, columns, 3), np.uint8), batch).pooled_bf.shape[1]
    if len(found.pooled.mean_f) != seen:
        raise InputError(
            f"{quoted(images.path)}: mu has {len(found.pooled.mean_f)} features; expected {seen}, "
            f"as {network.name} has"
        )
    return found


def _key(name: str) -> str:
    """The name of a figure as metrics have it."""
    return name.replace(", ", "_").replace(" ", "_")
