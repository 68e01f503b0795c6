"""The training loop of both stages: resumes, records, validates, saves and stops cleanly."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import numpy as np
from var_tokenizer.common import (
    InputError,
    Snapshot,
    check_integer,
    snapshot_folder,
    warn_of_kills,
)
from var_tokenizer.common.command import INTERRUPTED

from var_train.data.resume_check import DataRecord, check_data
from var_train.judging.validations import JudgeConfig
from var_train.listing.source_errors import SourceError
from var_train.parallel import workers
from var_train.reports.metrics_log import MetricsLog, Value
from var_train.reports.progress_bars import step_bar
from var_train.reports.startup import Startup
from var_train.training.changes import check_settings
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.saving import BackgroundSaver

log = logging.getLogger(__name__)

BY_LOSS: Mapping[str, object] = {"figure": "loss"}
"""``Stage.best_by`` where the lowest loss is the best model."""

_PATIENCE = 2.0  # seconds; some launchers send a signal twice
_MOST_KEPT = 10_000  # checkpoints; their folder is listed at each save


class Stage(Protocol):
    """What the loop trains, one step at a time.

    All randomness of a step comes from its number (``np.random.default_rng((seed, stream,
    step))``), so a stage that is restored after n steps continues as if it had never stopped.
    Every worker calls all methods, in the same order.
    """

    name: str
    """"tokenizer" or "transformer"."""
    steps: int
    """All steps of the training."""
    batch: int
    """Images per step, of all workers together."""
    remedy: str
    """What to change if memory does not suffice."""
    checkpoint_bytes: int
    """About how large a checkpoint is."""
    best_by: Mapping[str, object]
    """"figure": the number of a validation that is lowest for the best model. Whatever else is
    there says what it was measured with; figures of other means do not compare."""

    def train_step(self, step: int) -> Mapping[str, Value]:
        """Step ``step`` (0-based); its metrics, "loss" among them, the same on every worker."""

    def validate(self, step: int) -> Mapping[str, Value] | None:
        """Measures the model that step ``step`` left.

        Pictures, uint8 (Y, X, 3), are allowed among the values.
        """

    def save(self, path: Path) -> None:
        """Writes the model that ``validate`` measures as a native file."""

    def metadata(self) -> dict[str, str]:
        """What a native file of the model says besides its weights."""

    def state(self) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        """Everything that training changes: arrays by name, the rest in JSON's types.

        Every worker asks for all arrays, in their order.
        """

    def restore(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Restores what ``state`` returned."""


@dataclass(frozen=True)
class LoopConfig:
    """Checkpoints and validations of a stage."""

    checkpoint_every: int = 500
    """Steps between checkpoints; one is written before and after each validation, too."""
    keep: int = 3
    """How many of the newest checkpoints stay, besides the best."""
    validations: int = 5
    """How many times the held-out images are measured, evenly over the run."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("checkpoint_every", "validations"):
            check_integer(name, getattr(self, name), 1)
        check_integer("keep", self.keep, 1, _MOST_KEPT)

    def most_checkpoints(self, steps: int) -> int:
        """How many checkpoints a stage of ``steps`` has on disk at once, with an unfinished one."""
        written = steps // self.checkpoint_every + self.validations
        return 1 + min(self.keep + 1, written, steps)


class Stopwatch:
    """Measures the parts of a step: ``with watch("data"): ...``."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """``seconds_PART`` of each part since the last lap."""
        seconds, self._seconds = self._seconds, {}
        return {f"seconds_{part}": round(value, 6) for part, value in seconds.items()}


def train_stage(
    stage: Stage,
    folder: Path,
    metrics: MetricsLog,
    config: LoopConfig,
    settings: dict[str, object],
    resume: bool = True,
    data: DataRecord | None = None,
    startup: Startup | None = None,
) -> dict[str, Value]:
    """Trains ``stage`` to its last step; returns the last validation's numbers.

    folder: of the run; checkpoints are in ``FOLDER/checkpoints/STAGE``. Each validation writes the
    model as ``FOLDER/STAGE.safetensors``, and the best one as ``STAGE-best.safetensors``.
    settings: what the training depends on, in JSON's types; ``changes`` says what of it may differ
    from the checkpoint's. resume: continue from the newest checkpoint, if there is one; otherwise
    all checkpoints of the stage are removed. data: what each checkpoint brings up to date. startup:
    what names the parts of the time to the first step.

    Ctrl-C and SIGTERM save after the current step and exit with 130: the training is not done.
    Raises InputError for a checkpoint of other settings, a loss that is not finite (the last good
    checkpoint stays), and a disk that cannot be written.
    """
    checkpoints = CheckpointFolder(snapshot_folder(folder, stage.name), config.keep)
    saver = BackgroundSaver(checkpoints, stage.checkpoint_bytes)
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in a checkpoint
    if workers.rank() == 0 and not resume:
        checkpoints.clear()
    done, best, stop = 0, math.inf, False
    pending = False  # whether the validation after the last step is still to come
    validation: dict[str, Value] = {}
    snapshot = checkpoints.newest() if resume else None
    _check_same_step(snapshot)
    if snapshot:
        if snapshot.state["settings"] is None:
            log.warning(
                "%s: goes on with what another framework trained; whether its settings and data "
                "were the same is not on record",
                stage.name,
            )
        else:
            saved = snapshot.state["settings"]
            if check_settings(checkpoints.folder, saved, settings, snapshot.step, stage.steps):
                log.info(
                    "%s: trained for more epochs than before: the learning rate, and all else that "
                    "is a share of the steps, follows the new total of %d from step %d on",
                    *(stage.name, stage.steps, snapshot.step),
                )
        stage.restore(snapshot.arrays, snapshot.state["stage"])
        done, validation = snapshot.step, snapshot.state["validation"]
        pending = snapshot.state.get("pending", False)
        lowest = snapshot.state["best_loss"]
        if snapshot.state.get("best_by", BY_LOSS) != stage.best_by:
            lowest = None  # it was another figure, or measured by other means
        best = math.inf if lowest is None else lowest
        if done < stage.steps:
            log.info("%s: resumed after step %d of %d", stage.name, done, stage.steps)
            warn_of_kills(stage.remedy)
        snapshot = None  # or its file would take room on the disk for as long as the training lasts
    metrics.rewind(stage.name, done, pending)
    if startup is not None:
        startup.end("checkpoint and metrics")

    def save(is_best: bool = False) -> None:
        if data is not None:
            data.note(checkpoints.folder)
        arrays, state = stage.state()
        if workers.rank() == 0:
            entries: dict[str, Any] = {
                "settings": settings,
                "validation": validation,
                "pending": pending,
                "stage": state,
                "best_loss": best if math.isfinite(best) else None,
                "best_by": stage.best_by,
            }
            saver.save(Snapshot(done, arrays, entries, stage.metadata()), is_best)
        else:
            for _ in arrays.values():  # worker 0 may need a part of each
                pass

    def save_model(is_best: bool) -> None:
        # before the checkpoint, which may say that the best model is this one
        stage.save(folder / f"{stage.name}.safetensors")
        if is_best:
            stage.save(folder / f"{stage.name}-best.safetensors")

    if done >= stage.steps and not pending:
        log.info("%s: all %d steps are done", stage.name, stage.steps)
        return validation
    validations = min(config.validations, stage.steps)
    validate_after = set(np.linspace(0, stage.steps, validations + 1).astype(int)[1:])
    title, first = stage.name.ljust(11), done
    bars = step_bar(title, stage.steps, done)
    with interrupts() as interrupted, metrics.complete(), saver, bars as bar:

        def validate() -> None:
            nonlocal validation, best, pending
            with bar.doing("saving"):
                saver.wait()
                workers.wait_for_all()  # one that ends in the validation takes worker 0 with it
            with bar.doing("validating"):
                found = stage.validate(done - 1)
            is_best = False
            if found is not None:
                metrics.write_validation(stage.name, done - 1, **found)
                validation = {k: v for k, v in found.items() if not isinstance(v, np.ndarray)}
                measured = cast(float, validation.get(str(stage.best_by["figure"]), math.inf))
                is_best = measured < best
                best = min(best, measured)
            pending = False
            with bar.doing("saving"):
                if workers.rank() == 0:
                    save_model(is_best)
                save(is_best)

        if pending:
            log.info("%s: the validation after step %d did not end; again", stage.name, done)
            validate()
            stop = workers.any_worker(interrupted())
        while done < stage.steps and not stop:
            begin = time.perf_counter()
            try:
                values = stage.train_step(done)
            except SourceError:  # of all workers, from the data of one, before anything has changed
                if done > first:
                    save()
                    saver.wait()
                    workers.wait_for_all()  # or msrun would kill worker 0, which saves
                    log.error("%s: saved after step %d of %d", stage.name, done, stage.steps)
                raise
            seconds = time.perf_counter() - begin
            loss = check_finite(_loss_of(values), stage.name, done)
            speed = {"images_per_second": stage.batch / seconds, "seconds_step": seconds}
            metrics.write(stage.name, done, **values, **speed)
            bar.advance(stage.batch, loss)
            if done == first:
                if startup is not None:
                    startup.end_first_step()
                if workers.rank() == 0:
                    saver.reserve(stage.name)
            saver.check()
            done += 1
            stop = workers.any_worker(interrupted())
            pending = done in validate_after
            if pending or done % config.checkpoint_every == 0 or stop:
                with bar.doing("saving"):  # before the validation, which takes other memory
                    save()
            if pending and not stop:
                validate()
                stop = workers.any_worker(interrupted())
        with bar.doing("saving"):
            saver.wait()
    if stop:
        workers.wait_for_all()  # or msrun would kill worker 0, which saves, when another ends
        log.error(
            "%s: terminated; saved after step %d of %d; the same command continues there",
            *(stage.name, done, stage.steps),
        )
        raise SystemExit(INTERRUPTED)
    return validation


def check_resumable(
    folder: Path,
    stage: str,
    settings: Mapping[str, object],
    data: DataRecord | None,
    steps: int,
) -> int | None:
    """Raises InputError if a stage cannot continue from the checkpoint that it has.

    folder: of the run. settings: those of ``train_stage`` that are known before training. data:
    the images, whose digest is in ``settings``. steps: all steps of the stage. Returns the step of
    the checkpoint, None for none.
    """
    checkpoints = CheckpointFolder(snapshot_folder(folder, stage))
    found = checkpoints.peek()
    if found is None:
        return None
    step, state = found
    saved = state["settings"]
    if saved is None:  # of another framework
        return step
    # before the data: other settings may be why images were read otherwise
    keys = settings.keys() - {"data", "tokens"}
    known = {key: saved[key] for key in saved.keys() & keys}
    wanted = json.loads(json.dumps({key: settings[key] for key in keys}))
    check_settings(checkpoints.folder, known, wanted, step, steps)
    check_data(checkpoints.folder, saved, settings, data)
    return step


def _loss_of(metrics: Mapping[str, Value]) -> float:
    """The loss; infinity if it was not measured."""
    return cast(float, metrics.get("loss", math.inf))


def check_finite(loss: float, stage: str, step: int) -> float:
    """The loss itself; raises InputError if it is NaN or infinite."""
    if not np.isfinite(loss):
        raise InputError(
            f"{stage} loss is {loss} at step {step}; expected a finite number "
            "(a lower learning_rate or clip may help)"
        )
    return loss


def _check_same_step(snapshot: Snapshot | None) -> None:
    steps = workers.gather(np.array(snapshot.step if snapshot else 0))
    if (steps != steps[0]).any():
        raise InputError(
            f"the workers found checkpoints of steps {steps.tolist()}; expected the same one "
            "(the run folder must be shared by all nodes)"
        )


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C or SIGTERM came since the block began.

    Another one, more than ``_PATIENCE`` seconds later, raises KeyboardInterrupt: a step may take
    minutes.
    """
    came: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        if came[-1] - came[0] > _PATIENCE:
            handler = before[number] if callable(before[number]) else signal.default_int_handler
            handler(number, frame)
        if len(came) == 1:
            log.warning(
                "interrupted: saving after the current step; another Ctrl-C ends without saving"
            )

    before: dict[int, Any] = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
