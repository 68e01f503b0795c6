"""The published recipes as ``--preset`` gives them."""

import sys

import pytest
from var_train.commands.presets import PRESETS, published_stage
from var_train.commands.run_config import preset_defaults, read_run_config
from var_transformer import TransformerConfig


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "peak", "decay_at_the_end"),
    [
        ("d16", 768, 200, 3e-4, 0.05),
        ("d20", 768, 250, 3e-4, 0.05),
        ("d24", 768, 350, 2.4e-4, 0.05),
        ("d30", 1024, 350, 3.2e-4, 0.08),
        ("d36-s", 768, 350, 2.4e-4, 0.08),
    ],
)
def test_each_size_has_its_batch_epochs_rate_and_decay(name, batch, epochs, peak, decay_at_the_end):
    stage = published_stage(name)
    assert (stage.batch, stage.epochs) == (batch, epochs)
    rates = [stage.adamw.rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(peak)
    assert stage.adamw.decay(0, 1000) == pytest.approx(0.05)
    assert stage.adamw.decay(999, 1000) == pytest.approx(decay_at_the_end)
    assert stage.adamw.betas == (0.9, 0.95)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_the_published_architecture(name):
    run, model = preset_defaults(name), TransformerConfig.preset(name)
    size = run.transformer
    assert run.stage == "transformer"
    assert (size.depth, size.width, size.heads) == (model.depth, 64 * model.depth, model.depth)
    assert size.shared_adaln == (name == "d36-s")


def test_options_override_a_preset(monkeypatch):
    changes = ("--train-transformer.batch", "256", "--transformer.depth", "2")
    monkeypatch.setattr(sys, "argv", ["run", "--preset", "d20", *changes])
    run = read_run_config()
    assert (run.preset, run.transformer.depth, run.transformer.width) == ("d20", 2, 1280)
    assert run.train_transformer.adamw.learning_rate == pytest.approx(1e-4)
    assert run.train_transformer.epochs == 250
