"""The transformer's loss: the cross entropy of every token, with label smoothing."""

import mindspore as ms
from mindspore import Tensor, mint, ops

from var_train.operators import on_ascend

_log_softmax = ops.LogSoftmax(-1)


def token_losses(logits_blv: Tensor, ids_bl: Tensor, label_smoothing: float) -> Tensor:
    """(B, L) float32: the cross entropy of each token in nats.

    logits_blv: (B, L, V), of any float type. ids_bl: (B, L) int32, the right tokens.
    label_smoothing: the share of the target, in [0, 1), that is spread over all V tokens.
    """
    logits_nv = logits_blv.reshape(-1, logits_blv.shape[2]).astype(ms.float32)
    if on_ascend():  # a softmax of one kernel, forward and backward; it has none on a CPU
        loss_n = mint.nn.functional.cross_entropy(
            logits_nv, ids_bl.reshape(-1), reduction="none", label_smoothing=label_smoothing
        )
        return loss_n.reshape(ids_bl.shape)
    # not ops.cross_entropy: the last bits of its logarithms follow from the parts that MindSpore
    # divides them into, which are those that were fastest in a trial
    logs_nv = _log_softmax(logits_nv)
    loss_n = -ops.gather_elements(logs_nv, 1, ids_bl.reshape(-1, 1)).reshape(-1)
    if label_smoothing:
        loss_n = (1 - label_smoothing) * loss_n - label_smoothing * logs_nv.mean(-1)
    return loss_n.reshape(ids_bl.shape)
