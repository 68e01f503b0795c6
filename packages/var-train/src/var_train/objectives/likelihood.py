"""The likelihood of images with their classes: the cross entropy of every token."""

from dataclasses import dataclass

from mindspore import Tensor, nn

from var_train.losses.token_loss import token_losses
from var_train.operators import mean


@dataclass(frozen=True)
class Examples:
    """What a step computes at once.

    labels_b: the number of classes for "no class". mismatched_b: classes drawn apart from the
    images. inputs_blz, ids_bl: of the first few scales or of all. keep_d2b11: what
    ``draw_drop_path`` gives. weights_l: of tokens in the loss, 1 in the mean.
    """

    labels_b: Tensor
    mismatched_b: Tensor
    inputs_blz: Tensor
    ids_bl: Tensor
    keep_d2b11: Tensor
    weights_l: Tensor


class LikelihoodLoss(nn.Cell):
    """The mean loss of tokens times the loss scale, and by itself."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def construct(
        self, logits_blv: Tensor, ids_bl: Tensor, weights_l: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss_bl = token_losses(logits_blv, ids_bl, self.label_smoothing)
        loss = mean(loss_bl * weights_l)
        return loss * scale, loss


class Likelihood:
    """An objective: ``loss(logits_blv, *targets, scale)``, and what the compiled step reads.

    ``loss`` is a cell that gives the loss times ``scale``, and by itself.
    """

    def __init__(self, label_smoothing: float) -> None:
        self.loss = LikelihoodLoss(label_smoothing)

    def inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Labels, inputs and drop path of the model's pass, then the targets."""
        of_model = examples.labels_b, examples.inputs_blz, examples.keep_d2b11
        return *of_model, examples.ids_bl, examples.weights_l
