"""The transformer's stage with LoRA (arXiv:2106.09685): a small adapter is trained, not the model.

A run's folder gets the adapter as ``peft`` lays it out, ``adapter/adapter_model.safetensors`` and
its settings, in the place of ``transformer.safetensors``; checkpoints hold the adapter and its
moments alone. The base stays in the file of ``--init``, whose checksum is among the settings that a
resumed run compares.
"""

from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter
from var_tokenizer import Tokenizer
from var_transformer import LowRankWeights, Transformer, save_adapter

from var_train.data.token_sources import TokenSource
from var_train.judging.validations import ValidationJudge
from var_train.objectives.contrast import reference_of
from var_train.optimization.adamw import is_decayed
from var_train.optimization.averages import averaged
from var_train.optimization.flat_weights import OwnWeights
from var_train.reports.images import SamplingConfig
from var_train.reports.metrics_log import Value
from var_train.training.transformer_settings import TransformerStageConfig
from var_train.training.transformer_stage import TransformerTraining


class AdapterTraining(TransformerTraining):
    """``TransformerTraining`` of an adapter, and of the embeddings of classes new to ``model``.

    The classes of the data that the model has by name are trained as these; the others come after
    the model's own. A model without names whose number of classes is the data's has the same.
    ``finish`` leaves the model with the adapter added to its weights.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        train: TokenSource,
        val: TokenSource,
        config: TransformerStageConfig,
        seed: int,
        classes: Sequence[str],
        sampling: SamplingConfig | None = None,
        judge: ValidationJudge | None = None,
    ) -> None:
        """model: as loaded. classes: of the data, in the order of their labels."""
        new = new_classes(model, classes)
        self._low_rank = LowRankWeights(model, config.lora, seed, new)
        names = known_names(model, classes)
        self._numbers_n = np.array([names.index(name) for name in classes], np.int32)
        model.class_names = names
        super().__init__(model, tokenizer, train, val, config, seed, sampling, judge)

    @property
    def share(self) -> float:
        """The share of all parameters that is trained, 0 to 1."""
        return self._low_rank.share

    def _trained(self, dtype: ms.Type, averages: bool, pieces: int) -> OwnWeights:
        return OwnWeights(self._low_rank.parameters, is_decayed)

    def _new_reference(self) -> Transformer:
        return reference_of(self._model, copied=False)

    @property
    def _classes_k(self) -> np.ndarray:
        return self._numbers_n

    def _labels(self, labels_b: np.ndarray) -> np.ndarray:
        return self._numbers_n[labels_b]

    def _drawn(self) -> dict[str, Value]:
        with self._low_rank.merged():
            return super()._drawn()

    def _kept(self) -> tuple[str, list[Parameter]]:
        return "adapter", self._low_rank.parameters

    def metadata(self) -> dict[str, str]:
        """What a checkpoint says besides its arrays: it holds no model."""
        return {"format": "var-mindspore", "kind": "LoRA adapter without its base"}

    def save(self, path: Path) -> None:
        """Writes the folder ``adapter`` or ``adapter-best`` beside ``path``, a model's file."""
        name = path.stem.replace(self.name, "adapter")
        with averaged(self._ema):
            adapter = self._low_rank.adapter()
        alpha = self._config.lora.alpha
        save_adapter(adapter, path.with_name(name), alpha, self._low_rank.num_classes)

    def finish(self) -> None:
        """Adds the adapter to the weights of the model."""
        super().finish()
        self._low_rank.finish()


def known_names(model: Transformer, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of a model's classes; without names, the data's of as many, or else numbers."""
    count = model.config.num_classes
    if model.class_names is None and len(classes) == count:
        return tuple(classes)
    return model.class_names or tuple(map(str, range(count)))


def new_classes(model: Transformer, classes: Sequence[str]) -> tuple[str, ...]:
    """Those of the data that the model does not have."""
    known = set(known_names(model, classes))
    return tuple(name for name in classes if name not in known)
