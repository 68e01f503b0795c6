"""The next-scale transformer of VAR: token maps -> next token map."""

import var_tokenizer  # noqa: F401 (first: it quiets MindSpore's import in commands)

from var_transformer.adapters.adapter import Adapter
from var_transformer.adapters.low_rank import LowRankWeights
from var_transformer.adapters.merging import WeightedAdapter, merge_adapters
from var_transformer.adapters.peft_files import load_adapter, read_adapters, save_adapter
from var_transformer.adapters.targets import LoraConfig
from var_transformer.attention import AttentionCalls, BackendConfig
from var_transformer.commands.batch_size import fitting_batch
from var_transformer.cost.memory import USABLE, least_memory, most_images, step_memory
from var_transformer.edit import box_mask, edit, tokens_to_redraw
from var_transformer.generation.generate import Generation, generate
from var_transformer.generation.refiner import Refiner
from var_transformer.generation.sampler import Sampler
from var_transformer.generation.speed import SPEEDS, SpeedPoint
from var_transformer.model.checks import check_class_names, check_pair, parse_class_names
from var_transformer.model.config import TransformerConfig
from var_transformer.model.recomputed import RecomputedGradients
from var_transformer.model.shapes import transformer_shapes
from var_transformer.model.transformer import Transformer
from var_transformer.pretrained import load_pretrained
from var_transformer.stored.stored_transformer import StoredTransformer, large_weights

__all__ = [
    "SPEEDS",
    "USABLE",
    "Adapter",
    "AttentionCalls",
    "BackendConfig",
    "Generation",
    "LoraConfig",
    "LowRankWeights",
    "RecomputedGradients",
    "Refiner",
    "Sampler",
    "SpeedPoint",
    "StoredTransformer",
    "Transformer",
    "TransformerConfig",
    "WeightedAdapter",
    "box_mask",
    "check_class_names",
    "check_pair",
    "edit",
    "fitting_batch",
    "generate",
    "large_weights",
    "least_memory",
    "load_adapter",
    "load_pretrained",
    "merge_adapters",
    "most_images",
    "parse_class_names",
    "read_adapters",
    "save_adapter",
    "step_memory",
    "tokens_to_redraw",
    "transformer_shapes",
]
