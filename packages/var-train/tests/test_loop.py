"""The training loop, with a stage that computes nothing."""

import numpy as np
import pytest
from var_train.reports.metrics_log import MetricsLog
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.loop import LoopConfig, check_resumable, train_stage


class Scripted:
    """A stage whose validations find given losses; step ``fails_at`` raises."""

    name, batch = "transformer", 1

    def __init__(self, losses: list[float], fails_at: int | None = None) -> None:
        self.losses, self.fails_at, self.steps = losses, fails_at, len(losses)

    def train_step(self, step: int) -> dict:
        if step == self.fails_at:
            raise InterruptedError
        return {"loss": 1.0}

    def validate(self, step: int) -> dict:
        return {"loss": self.losses[step]}

    def state(self) -> tuple[dict, dict]:
        return {"weight": np.zeros(1, np.float32)}, {}

    def restore(self, arrays, state) -> None:
        pass


@pytest.mark.parametrize(("losses", "best"), [((0.0, 1.0), 1), ((0.0, -1.0), 2), ((-2.0, 0.0), 1)])
def test_a_best_loss_of_zero_is_still_the_best_after_a_resumption(tmp_path, losses, best):
    config, metrics = LoopConfig(validations=2), MetricsLog(tmp_path)
    with pytest.raises(InterruptedError):
        train_stage(Scripted(losses, fails_at=1), tmp_path, metrics, config, {})
    train_stage(Scripted(losses), tmp_path, metrics, config, {})
    metrics.close()
    found = CheckpointFolder(tmp_path / "checkpoints" / "transformer").best()
    assert found.stem == f"step-{best:09d}"


def test_a_run_of_version_0_1_0_resumes_under_the_new_name_of_a_setting(tmp_path):
    def settings(name: str) -> dict:
        optimizer = {"learning_rate": 0.1, name: "lin0"}
        stage = {"optimizer": optimizer, "adversary": {"optimizer": optimizer}}
        return {"data": None, "tokens": None, "train_tokenizer": stage}

    config, metrics = LoopConfig(checkpoint_every=1), MetricsLog(tmp_path)
    with pytest.raises(InterruptedError):
        train_stage(
            Scripted([1.0, 1.0], fails_at=1), tmp_path, metrics, config, settings("schedule")
        )
    now = settings("rate_schedule")
    assert check_resumable(tmp_path, "transformer", now, None) == 1
    train_stage(Scripted([1.0, 1.0]), tmp_path, metrics, config, now)
    metrics.close()
    assert CheckpointFolder(tmp_path / "checkpoints" / "transformer").newest().step == 2
