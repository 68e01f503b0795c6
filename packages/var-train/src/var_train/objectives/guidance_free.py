"""Guidance-free training (GFT, arXiv:2501.15420): the model is what guidance would draw from.

Of logits that guidance of the strength s gives, guided = (1 + s) * conditional - s * unconditional,
the conditional ones are

    conditional = beta * guided + (1 - beta) * unconditional,    beta = 1 / (1 + s)

So the cross entropy of these trains the model's logits to be the guided ones. The unconditional
ones are the model's own, without a gradient; images whose class is dropped train them, with a beta
of 1. As guidance grows over the scales, so does s, and there is a model for one strength: the paper
also gives beta to the model, which the published architecture has no input for.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_transformer import Sampler, Transformer

from var_train.losses.token_loss import token_losses
from var_train.objectives.likelihood import Examples
from var_train.objectives.objective_config import GuidanceFreeConfig
from var_train.operators import mean
from var_train.optimization.flat_weights import FlatWeights, OwnWeights


class GuidanceFreeLoss(nn.Cell):
    """The mean loss of tokens times the loss scale, and by itself."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def construct(
        self,
        logits_blv: Tensor,
        ids_bl: Tensor,
        weights_l: Tensor,
        beta_bl1: Tensor,
        unconditional_blv: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        guided_blv = logits_blv.astype(ms.float32)
        conditional_blv = beta_bl1 * guided_blv + (1 - beta_bl1) * unconditional_blv
        loss_bl = token_losses(conditional_blv, ids_bl, self.label_smoothing)
        loss = mean(loss_bl * weights_l)
        return loss * scale, loss


class GuidanceFree:
    """The objective; as ``Likelihood``."""

    def __init__(
        self,
        config: GuidanceFreeConfig,
        label_smoothing: float,
        model: Transformer,
        weights: OwnWeights | FlatWeights,
    ) -> None:
        """weights: of the model, in training."""
        self.loss = GuidanceFreeLoss(label_smoothing)
        self._no_class = model.config.num_classes
        schedule = model.config.schedule
        plan = Sampler(cfg=config.cfg).plan(len(schedule))
        beta_k = 1 / (1 + np.array([scale.strength for scale in plan]))
        self._beta_l = np.repeat(beta_k, schedule.tokens).astype(np.float32)
        self._logits = _logits_of(model, weights)

    def inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """As that of ``Likelihood``."""
        labels_b, ids_bl = examples.labels_b.asnumpy(), examples.ids_bl
        is_dropped_b1 = (labels_b == self._no_class)[:, None]
        beta_bl = np.where(is_dropped_b1, np.float32(1), self._beta_l[: ids_bl.shape[1]])
        of_model = examples.labels_b, examples.inputs_blz, examples.keep_d2b11
        no_class_b = Tensor(np.full(len(labels_b), self._no_class, np.int32))
        unconditional_blv = self._logits(
            no_class_b, examples.inputs_blz, ops.ones_like(examples.keep_d2b11)
        )
        targets = ids_bl, examples.weights_l, Tensor(beta_bl[..., None]), unconditional_blv
        return *of_model, *targets


def _logits_of(model: Transformer, weights: OwnWeights | FlatWeights) -> Callable[..., Tensor]:
    @ms.jit
    def logits(labels_b: Tensor, inputs_blz: Tensor, keep_d2b11: Tensor) -> Tensor:
        return model(labels_b, inputs_blz, keep_d2b11, weights()).astype(ms.float32)

    return logits
