"""The training loop, with a stage that computes nothing."""

import json
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from var_tokenizer.common import InputError, snapshots
from var_train.listing.source_errors import SourceError
from var_train.reports.metrics_log import MetricsLog
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.loop import BY_LOSS, LoopConfig, check_resumable, train_stage


class Counting:
    """A stage whose model is the number of its steps.

    on_step, on_validation: called with the step; the latter may give the loss.
    """

    name, batch, remedy, checkpoint_bytes = "tokenizer", 2, "a smaller --batch", 8

    def __init__(
        self,
        on_step: Callable[[int], object] = int,
        on_validation: Callable[[int], float | None] = lambda step: None,
        steps: int = 10,
        best_by: Mapping[str, object] = BY_LOSS,
    ) -> None:
        self.on_step, self.on_validation, self.steps, self.done = on_step, on_validation, steps, 0
        self.best_by = best_by

    def train_step(self, step):
        assert step == self.done
        self.on_step(step)
        self.done += 1
        return {"loss": 1.0}

    def validate(self, step):
        loss = self.on_validation(step)
        return {"loss": 1.0 if loss is None else loss, "FD": abs(step - 5.4)}

    def save(self, path):
        path.write_text(str(self.done))

    def metadata(self):
        return {}

    def state(self):
        return {"done": np.array(self.done)}, {}

    def restore(self, arrays, state):
        self.done = arrays["done"].item()


def trained(folder, stage, settings=None, **config):
    metrics = MetricsLog(folder, resume=True)
    try:
        train_stage(stage, folder, metrics, LoopConfig(**config), settings or {"seed": 0})
    finally:
        metrics.close()


def fails_at(wanted: int) -> Callable[[int], None]:
    def fail(step: int) -> None:
        if step == wanted:
            raise InterruptedError

    return fail


def at(wanted: int, number: int) -> Callable[[int], None]:
    """Sends a signal to this process in step ``wanted``."""
    return lambda step: signal.raise_signal(number) if step == wanted else None


@pytest.mark.parametrize("moment", ["on_step", "on_validation"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_is_saved_exits_with_130_and_goes_on(tmp_path, caplog, moment, number):
    caplog.set_level(logging.INFO)
    with pytest.raises(SystemExit) as end:
        trained(tmp_path, Counting(**{moment: at(4, number)}), validations=2)
    assert end.value.code == 130
    said = "terminated; saved after step 5 of 10; the same command continues there"
    assert said in caplog.text
    again = Counting()
    trained(tmp_path, again, validations=2)
    assert again.done == 10 and "resumed after step 5 of 10" in caplog.text
    steps = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if s["stage"] == "tokenizer"] == list(range(10))


def test_an_interrupt_while_a_checkpoint_is_written_leaves_it_whole(tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        write_tensors(*arguments)

    write_tensors = snapshots.write_tensors
    monkeypatch.setattr(snapshots, "write_tensors", interrupted)
    with pytest.raises(SystemExit) as end:
        trained(tmp_path, Counting(), checkpoint_every=3)
    assert end.value.code == 130
    monkeypatch.undo()
    again = Counting()
    trained(tmp_path, again)
    assert again.done == 10


def test_a_stage_whose_data_disappears_is_saved_and_goes_on(tmp_path, caplog):
    def disappears(step: int) -> None:
        if step == 7:
            raise SourceError("a.tar: is gone")

    caplog.set_level(logging.INFO)
    with pytest.raises(SourceError):
        trained(tmp_path, Counting(disappears), checkpoint_every=100)
    again = Counting()
    trained(tmp_path, again)
    assert again.done == 10 and "resumed after step 7 of 10" in caplog.text


def test_a_repeated_signal_counts_once_and_a_later_one_ends_at_once(tmp_path, monkeypatch):
    twice = Counting(lambda step: [signal.raise_signal(signal.SIGTERM) for _ in range(2)])
    with pytest.raises(SystemExit):
        trained(tmp_path / "twice", twice)
    monkeypatch.setattr("var_train.training.loop._PATIENCE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "later", Counting(at(2, signal.SIGINT)))


def test_a_stage_that_is_done_says_so_and_compiles_nothing(tmp_path, caplog, monkeypatch):
    trained(tmp_path, Counting())
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("var_train.training.loop.step_bar", None)
    trained(tmp_path, Counting(on_step=lambda step: pytest.fail("a step")))
    assert "tokenizer: all 10 steps are done" in caplog.text


@pytest.mark.parametrize(("losses", "best"), [((0.0, 1.0), 1), ((0.0, -1.0), 2), ((-2.0, 0.0), 1)])
def test_a_best_loss_of_zero_is_still_the_best_after_a_resumption(tmp_path, losses, best):
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1), losses.__getitem__, steps=2), validations=2)
    trained(tmp_path, Counting(on_validation=losses.__getitem__, steps=2), validations=2)
    found = CheckpointFolder(tmp_path / "checkpoints" / "tokenizer").best()
    assert found.stem == f"step-{best:09d}"


JUDGED = {"figure": "FD", "samples": 100}


def best_of(folder: Path, stage: Counting) -> tuple[str, str]:
    """The best checkpoint of 5 validations and the best model, by the number of their steps."""
    trained(folder, stage, validations=5)
    found = CheckpointFolder(folder / "checkpoints" / "tokenizer").best()
    return found.stem, (folder / "tokenizer-best.safetensors").read_text()


def test_the_best_model_is_that_of_the_lowest_figure_which_the_stage_names(tmp_path):
    losses = best_of(tmp_path / "loss", Counting(on_validation=lambda step: -float(step)))
    assert losses == ("step-000000010", "10")
    stage = Counting(on_validation=lambda step: -float(step), best_by=JUDGED)
    assert best_of(tmp_path / "figure", stage) == ("step-000000006", "6")


@pytest.mark.parametrize(
    ("now", "best"), [(JUDGED, "6"), (JUDGED | {"samples": 200}, "8"), (BY_LOSS, "8")]
)
def test_a_figure_by_other_means_does_not_compare_with_that_of_the_best_model(tmp_path, now, best):
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(7), best_by=JUDGED), validations=5)
    assert best_of(tmp_path, Counting(best_by=now))[1] == best


def test_a_run_of_version_0_1_0_resumes_under_the_new_name_of_a_setting(tmp_path):
    def settings(name: str) -> dict:
        optimizer = {"learning_rate": 0.1, name: "lin0"}
        stage = {"optimizer": optimizer, "adversary": {"optimizer": optimizer}}
        return {"data": None, "tokens": None, "train_tokenizer": stage}

    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1)), settings("schedule"), checkpoint_every=1)
    now = settings("rate_schedule")
    assert check_resumable(tmp_path, "tokenizer", now, None, 10) == 1
    again = Counting()
    trained(tmp_path, again, now)
    assert again.done == 10


def test_each_validation_writes_the_model_and_the_best_one_stays_beside_it(tmp_path):
    losses = {1: 3.0, 3: 1.0, 5: 2.0, 7: 1.0}
    seen = []

    def loss(step):
        seen.append({p.name: p.read_text() for p in tmp_path.glob("*.safetensors")})
        return losses[step]

    trained(tmp_path, Counting(on_validation=loss, steps=8), validations=4)
    last, best = "tokenizer.safetensors", "tokenizer-best.safetensors"
    assert seen == [{}, {last: "2", best: "2"}, {last: "4", best: "4"}, {last: "6", best: "4"}]
    assert (tmp_path / last).read_text() == "8" and (tmp_path / best).read_text() == "4"


def without_memory(step: int) -> float:
    raise MemoryError


def recorded(folder) -> list[dict]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "seconds_step", "images_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.mark.parametrize("moment", ["on_validation", "save"])
def test_a_validation_that_did_not_end_loses_no_step_and_is_repeated(tmp_path, moment):
    """It may take more memory than the training, so a checkpoint is written before it."""
    losses = {4: 2.0, 9: 1.0}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    trained(undisturbed, Counting(on_validation=losses.__getitem__), validations=2)

    stage = Counting(on_validation=losses.__getitem__)
    setattr(stage, moment, without_memory)
    with pytest.raises(MemoryError):
        trained(killed, stage, validations=2)
    assert CheckpointFolder(killed / "checkpoints" / "tokenizer").newest().step == 5

    again = Counting(lambda step: pytest.fail("a step") if step < 5 else None, losses.__getitem__)
    trained(killed, again, validations=2)
    assert recorded(killed) == recorded(undisturbed)
    for name in ("tokenizer.safetensors", "tokenizer-best.safetensors"):
        assert (killed / name).read_text() == (undisturbed / name).read_text()
    newest = [CheckpointFolder(f / "checkpoints" / "tokenizer") for f in (killed, undisturbed)]
    first, second = (folder.newest() for folder in newest)
    assert first.state == second.state
    assert newest[0].best().name == newest[1].best().name


def test_a_run_that_goes_on_where_processes_were_killed_for_memory_names_the_option(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("var_tokenizer.common.memory.memory_kills", lambda: 1)
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1)), checkpoint_every=1)
    assert not caplog.messages
    trained(tmp_path, Counting())
    assert "1 process(es) of this control group were killed because memory was short" in caplog.text
    assert any(text.endswith("give it a smaller --batch") for text in caplog.messages)


def test_a_last_validation_that_did_not_end_is_repeated_without_a_step(tmp_path):
    with pytest.raises(MemoryError):
        trained(tmp_path, Counting(on_validation=without_memory), validations=1)
    trained(tmp_path, Counting(on_step=lambda step: pytest.fail("a step")), validations=1)
    assert [line["stage"] for line in recorded(tmp_path)].count("validation") == 1
    assert (tmp_path / "tokenizer.safetensors").read_text() == "10"


def test_an_interrupt_before_a_validation_leaves_it_to_the_continued_run(tmp_path):
    stage = Counting(at(4, signal.SIGTERM), lambda step: pytest.fail("a validation"))
    with pytest.raises(SystemExit):
        trained(tmp_path, stage, validations=2)
    validated = []
    trained(tmp_path, Counting(on_validation=validated.append), validations=2)
    assert validated == [4, 9]


def test_a_run_from_before_a_setting_existed_is_refused_by_its_name(tmp_path):
    old = {"data": None, "tokens": None, "train_tokenizer": {"optimizer": {"warmup": 0.05}}}
    new = {**old, "train_tokenizer": {"optimizer": {"warmup": 0.05, "warmup_start": 0.005}}}
    switched_off = {**old, "random_crops": False}
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1)), old, checkpoint_every=1)
    said = r"by a version without the setting train_tokenizer\.optimizer\.warmup_start = 0.005"
    with pytest.raises(InputError, match=said):
        check_resumable(tmp_path, "tokenizer", new, None, 10)
    assert check_resumable(tmp_path, "tokenizer", switched_off, None, 10) == 1


def settings_with(name: str = "seed", value: object = 0) -> dict:
    """Settings of a transformer's stage, one of which, "group.name", has another value."""
    settings = {
        "data": None,
        "tokens": None,
        "seed": 0,
        "init": None,
        "tokenizer": "a digest",
        "transformer": {"depth": 2},
        "train_transformer": {
            "epochs": 2,
            "batch": 8,
            "accumulation": 1,
            "recompute": False,
            "progressive": 0.0,
            "optimizer": {"learning_rate": 0.1},
            "precision": {"dtype": "float16", "loss_scale": 2048.0, "growth_every": 1000},
            "validation_images": 100,
            "samples_per_class": 4,
        },
        "train_tokenizer": {"epochs": 4, "validation_images": 100},
    }
    group = settings
    *outer, inner = name.split(".")
    for key in outer:
        group = group[key]
    assert inner in group
    group[inner] = value
    return settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_transformer.accumulation", 4),
        ("train_transformer.recompute", True),
        ("train_transformer.precision.loss_scale", 16.0),
        ("train_transformer.precision.growth_every", 10),
        ("train_transformer.validation_images", 7),
        ("train_transformer.samples_per_class", 0),
        ("train_tokenizer.validation_images", 7),
    ],
)
def test_a_setting_that_leaves_the_result_as_it_is_may_change(tmp_path, name, value):
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1)), settings_with(), checkpoint_every=1)
    again, now = Counting(), settings_with(name, value)
    assert check_resumable(tmp_path, "tokenizer", now, None, 10) == 1
    trained(tmp_path, again, now)
    assert again.done == 10


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("seed", 1, "all random numbers follow from it"),
        ("init", "another digest", "the weights that the training started from"),
        ("tokenizer", "another digest", "the tokens that they are trained on"),
        ("transformer.depth", 3, "the weights have these shapes"),
        ("train_transformer.epochs", 1, "the learning rate has followed a longer schedule"),
        ("train_transformer.batch", 16, "which images a step takes"),
        ("train_transformer.precision.dtype", "float32", "far more coarsely than 32"),
        ("train_transformer.optimizer.learning_rate", 0.2, "it changes what a step learns"),
        ("train_tokenizer.epochs", 8, "the revival of codes follow a share of all steps"),
    ],
)
def test_a_setting_that_is_held_fixed_says_why(tmp_path, name, value, why):
    with pytest.raises(InterruptedError):
        trained(tmp_path, Counting(fails_at(1)), settings_with(), checkpoint_every=1)
    now = settings_with(name, value)
    with pytest.raises(InputError, match=f"was trained with {name} = .*, since .*{why}"):
        check_resumable(tmp_path, "tokenizer", now, None, 10)
    with pytest.raises(InputError, match=why):
        trained(tmp_path, Counting(), now)


def test_a_finished_transformer_goes_on_for_more_epochs_and_never_for_fewer(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trained(tmp_path, Counting(), settings_with())
    again, more = Counting(steps=20), settings_with("train_transformer.epochs", 4)
    trained(tmp_path, again, more)
    assert again.done == 20 and "follows the new total of 20 from step 10 on" in caplog.text
    with pytest.raises(InputError, match=r"epochs = 4, now it is 2; .* they may only grow"):
        trained(tmp_path, Counting(), settings_with())


@pytest.mark.parametrize(("share", "goes_on"), [(0.5, True), (0.6, False)])
def test_more_epochs_are_refused_where_scales_that_joined_would_leave(tmp_path, share, goes_on):
    settings = settings_with("train_transformer.progressive", share)
    trained(tmp_path, Counting(), settings)
    again = Counting(steps=20)
    settings["train_transformer"]["epochs"] = 4
    if goes_on:
        trained(tmp_path, again, settings)
    else:
        with pytest.raises(InputError, match=r"progressive is 0\.6, .* join up to step 12,"):
            trained(tmp_path, again, settings)
    assert again.done == (20 if goes_on else 0)
