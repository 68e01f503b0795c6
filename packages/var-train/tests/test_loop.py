"""The training loop, with a stage that computes nothing."""

import numpy as np
import pytest
from var_train.reports.metrics_log import MetricsLog
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.loop import LoopConfig, train


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
        train(Scripted(losses, fails_at=1), tmp_path, metrics, config, {})
    train(Scripted(losses), tmp_path, metrics, config, {})
    metrics.close()
    found = CheckpointFolder(tmp_path / "checkpoints" / "transformer").best()
    assert found.stem == f"step-{best:09d}"
