"""Condition contrastive alignment (CCA, arXiv:2410.09347): images against classes not theirs.

With r(x, c) = log p(x|c) - log p_reference(x|c), of a model and of the one that it began as, the
loss of an image x of class c and another class c' is

    -log sigmoid(beta * r(x, c)) - lambda * log sigmoid(-beta * r(x, c'))

where c' is drawn as the classes of the data are, apart from x. Its optimum is the distribution that
guidance of the strength 1 / beta draws from.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops
from var_transformer import Transformer

from var_train.losses.token_loss import token_losses
from var_train.objectives.likelihood import Examples
from var_train.objectives.objective_config import ContrastConfig
from var_train.operators import mean, on_ascend


class ContrastLoss(nn.Cell):
    """The mean of the images' losses times the loss scale, and by itself."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.beta, self.negative_weight = config.beta, config.negative_weight

    def construct(
        self, logits_blv: Tensor, ids_bl: Tensor, reference_bl: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The batch is that of images with their classes, then of the same with others.

        reference_bl: the cross entropy of each token by the reference.
        """
        loss_bl = token_losses(logits_blv, ids_bl, 0.0)
        # token by token: sums over all tokens would round away most of their difference
        ratio_b = (reference_bl - loss_bl).sum(-1) * self.beta
        half = ratio_b.shape[0] // 2
        if not on_ascend():  # a CPU's exponential of float32 is off by up to 95 units in the last
            ratio_b = ratio_b.astype(ms.float64)
        loss_b = _softplus(-ratio_b[:half]) + self.negative_weight * _softplus(ratio_b[half:])
        loss = mean(loss_b.astype(ms.float32))
        return loss * scale, loss


def _softplus(x: Tensor) -> Tensor:
    """-log sigmoid(-x), of any x: an exponential of a positive number might overflow."""
    return ops.maximum(x, 0.0) + ops.log1p(ops.exp(-ops.abs(x)))


class Contrast:
    """The objective, which takes each image twice; as ``Likelihood``."""

    def __init__(self, config: ContrastConfig, reference: Transformer) -> None:
        """reference: what ``model`` was at first; see ``reference_of``."""
        self.loss, self._reference = ContrastLoss(config), _token_losses_of(reference)

    def inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """As that of ``Likelihood``, of images with their classes, then of the same with others."""
        labels_b = ops.concat((examples.labels_b, examples.mismatched_b))
        inputs_blz = ops.concat((examples.inputs_blz, examples.inputs_blz))
        ids_bl = ops.concat((examples.ids_bl, examples.ids_bl))
        keep_d2b11 = ops.concat((examples.keep_d2b11, examples.keep_d2b11), 2)
        reference_bl = self._reference(labels_b, inputs_blz, ids_bl)
        return labels_b, inputs_blz, keep_d2b11, ids_bl, reference_bl


def _token_losses_of(reference: Transformer) -> Callable[..., Tensor]:
    @ms.jit
    def losses(labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor) -> Tensor:
        return token_losses(reference(labels_b, inputs_blz), ids_bl, 0.0)

    return losses


def reference_of(model: Transformer, copied: bool) -> Transformer:
    """The model as it is now, without an adapter that is trained beside its weights.

    copied: whether it keeps a copy of the weights, because they are trained; else it reads them.
    """
    reference = Transformer(model.config, None, model.backend)
    weights = dict(model.parameters_and_names())
    for name, cell in reference.cells_and_names():
        prefix = f"{name}." if name else ""
        for key in list(cell._params):
            weight = weights[f"{prefix}{key}"]
            if copied:
                cell._params[key].set_data(Tensor(weight.asnumpy().copy()))
            else:
                setattr(cell, key, weight)
    return reference
