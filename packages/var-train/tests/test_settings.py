"""The settings of training: their ranges, and the published recipes that ``--preset`` gives."""

import sys

import pytest
from var_tokenizer.common import InputError
from var_train.commands.presets import PRESETS
from var_train.commands.run_config import preset_defaults, read_run_config
from var_train.losses.reconstruction_loss import ReconstructionLossConfig
from var_train.optimization.adamw import AdamWConfig
from var_train.training.codebook import CodebookConfig
from var_train.training.tokenizer_stage import TokenizerStageConfig
from var_train.training.transformer_stage import TransformerStageConfig
from var_transformer import TransformerConfig


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


NAN, INF = float("nan"), float("inf")
NO_PART_AT_FIRST = {"scale_weights": (0.0, 0.0, 1.0), "progressive": 0.5}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (AdamWConfig, {"learning_rate": 0.0}, "learning_rate is 0.0; expected"),
        (AdamWConfig, {"betas": (0.9, 1.0)}, "betas is 1.0; expected"),
        (AdamWConfig, {"weight_decay": -1.0}, "weight_decay is -1.0; expected"),
        (AdamWConfig, {"clip": 0.0}, "clip is 0.0; expected"),
        (AdamWConfig, {"warmup": 2.0}, "warmup is 2.0; expected"),
        (AdamWConfig, {"warmup_start": 1.5}, "warmup_start is 1.5; expected"),
        (AdamWConfig, {"final": -0.1}, "final is -0.1; expected"),
        (CodebookConfig, {"start": "zeros"}, "start is 'zeros'; expected"),
        (CodebookConfig, {"update": "none"}, "update is 'none'; expected"),
        (CodebookConfig, {"ema_decay": 1.0}, "ema_decay is 1.0; expected"),
        (CodebookConfig, {"commitment": -1.0}, "commitment is -1.0; expected"),
        (CodebookConfig, {"revive_every": -1}, "revive_every is -1; expected"),
        (CodebookConfig, {"scale_dropout": 1.5}, "scale_dropout is 1.5; expected"),
        (ReconstructionLossConfig, {"l1": -1.0}, "l1 is -1.0; expected a number of at least 0"),
        (ReconstructionLossConfig, {"l1": 0.0, "l2": 0.0}, "l1, l2 and structure are all 0"),
        (ReconstructionLossConfig, {"structure": INF}, "structure is inf"),
        (TokenizerStageConfig, {"epochs": 0}, "epochs is 0; expected"),
        (TokenizerStageConfig, {"batch": 0}, "batch is 0; expected"),
        (TokenizerStageConfig, {"ema": 1.0}, "ema is 1.0; expected"),
        (TransformerStageConfig, {"base_rate": 0.0}, "base_rate is 0.0; expected a number above 0"),
        (TransformerStageConfig, {"base_rate": NAN}, "base_rate is nan; expected a number above 0"),
        (TransformerStageConfig, {"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        (
            TransformerStageConfig,
            {"label_smoothing": 1.0},
            "label_smoothing is 1.0; expected a number of at least 0 and below 1",
        ),
        (TransformerStageConfig, {"ema": 1.0}, "ema is 1.0"),
        (TransformerStageConfig, {"drop_path": -0.1}, "drop_path is -0.1"),
        (TransformerStageConfig, {"gate_gain": -1.0}, "gate_gain is -1.0"),
        (TransformerStageConfig, {"progressive": 1.5}, "progressive is 1.5"),
        (TransformerStageConfig, {"scale_weights": (0.0, 0.0)}, "scale_weights is"),
        (TransformerStageConfig, {"scale_weights": (0.0, NAN, 1.0)}, "scale_weights is"),
        (
            TransformerStageConfig,
            NO_PART_AT_FIRST,
            "progressive_start 2; expected a weight above 0 among the first 2",
        ),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(kind, changes, message):
    with pytest.raises(InputError, match=message):
        kind(**changes)
