"""The transformer's loss: the cross entropy of every token, with label smoothing."""

import mindspore as ms
from mindspore import Tensor, mint, ops

from var_train.operators import on_ascend


def token_losses(logits_blv: Tensor, ids_bl: Tensor, label_smoothing: float) -> Tensor:
    """(B, L) float32: the cross entropy of each token in nats.

    logits_blv: (B, L, V), of any float type. ids_bl: (B, L) int32, the right tokens.
    label_smoothing: the share of the target, in [0, 1), that is spread over all V tokens.
    """
    logits_nv = logits_blv.reshape(-1, logits_blv.shape[2]).astype(ms.float32)
    # on an Ascend a softmax of one kernel, forward and backward; it has none on a CPU
    cross_entropy = mint.nn.functional.cross_entropy if on_ascend() else ops.cross_entropy
    loss_n = cross_entropy(
        logits_nv, ids_bl.reshape(-1), reduction="none", label_smoothing=label_smoothing
    )
    return loss_n.reshape(ids_bl.shape)
