"""Training of VAR: two stages, their settings, the data, and whole runs."""

import var_tokenizer  # noqa: F401 (first: it quiets MindSpore's import in commands)

# Export no function named run, tokenize or evaluate: the command module would hide it.
from var_train.commands.pipeline import run_training
from var_train.commands.presets import PRESETS, published_stage
from var_train.commands.run_config import RunConfig, TransformerSizeConfig, preset_defaults
from var_train.data.digits import load_digits_split
from var_train.data.image_sources import (
    ImageFolder,
    ImageSet,
    ImageSource,
    load_folder,
    load_image_tree,
)
from var_train.data.loader import Loader
from var_train.data.token_cache import TokenCache, write_cache
from var_train.data.token_sources import TokenSet, TokenSource, tokens_of
from var_train.judging.figures import Gaussian, frechet_distance
from var_train.losses.discriminator import AdversaryConfig
from var_train.losses.perceptual_loss import FeatureNetwork
from var_train.losses.reconstruction_loss import ReconstructionLossConfig
from var_train.losses.token_loss import token_losses
from var_train.objectives.objective_config import ContrastConfig, GuidanceFreeConfig
from var_train.optimization.adamw import AdamW, AdamWConfig, is_decayed, release_gradients
from var_train.optimization.averages import Ema
from var_train.optimization.loss_scale import PrecisionConfig
from var_train.reports.digit_metrics import DigitJudge, distinct
from var_train.reports.images import SamplingConfig
from var_train.reports.metrics_log import MetricsLog
from var_train.reports.tokenizer_quality import TokenizerFigures, measure_tokenizer
from var_train.training.adapter_training import AdapterTraining
from var_train.training.codebook import CodebookConfig
from var_train.training.loop import LoopConfig, train_stage
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining
from var_train.training.transformer_settings import TransformerStageConfig
from var_train.training.transformer_stage import TransformerTraining

__all__ = [
    "PRESETS",
    "AdamW",
    "AdamWConfig",
    "AdapterTraining",
    "AdversaryConfig",
    "CodebookConfig",
    "ContrastConfig",
    "DigitJudge",
    "Ema",
    "FeatureNetwork",
    "Gaussian",
    "GuidanceFreeConfig",
    "ImageFolder",
    "ImageSet",
    "ImageSource",
    "Loader",
    "LoopConfig",
    "MetricsLog",
    "PrecisionConfig",
    "ReconstructionLossConfig",
    "RunConfig",
    "SamplingConfig",
    "TokenCache",
    "TokenSet",
    "TokenSource",
    "TokenizerFigures",
    "TokenizerStageConfig",
    "TokenizerTraining",
    "TransformerSizeConfig",
    "TransformerStageConfig",
    "TransformerTraining",
    "distinct",
    "frechet_distance",
    "is_decayed",
    "load_digits_split",
    "load_folder",
    "load_image_tree",
    "measure_tokenizer",
    "preset_defaults",
    "published_stage",
    "release_gradients",
    "run_training",
    "token_losses",
    "tokens_of",
    "train_stage",
    "write_cache",
]
