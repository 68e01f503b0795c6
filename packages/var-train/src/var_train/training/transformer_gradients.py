"""The transformer's loss and its gradients, to be compiled as one graph, and its drop path."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_transformer import RecomputedGradients, Transformer

from var_train.optimization.flat_weights import FlatWeights, OwnWeights


def loss_and_gradients(
    model: Transformer,
    weights: OwnWeights | FlatWeights,
    loss_of_logits: nn.Cell,
    recompute: bool,
) -> Callable:
    """``f(labels, inputs, keep, *targets, scale) -> (loss, gradients of weights.trained)``.

    The gradients are those of ``scale`` times the loss, as ``loss_of_logits(logits, *targets,
    scale)`` gives it before the loss itself. recompute: compute blocks again in the
    backward pass, to save memory.
    """
    if recompute and isinstance(weights, FlatWeights):
        recomputed = RecomputedGradients(model, loss_of_logits)
        of_trained = ops.GradOperation(get_by_list=True, sens_param=True)(weights, weights.trained)

        def by_block(
            labels_b: Tensor, inputs_blz: Tensor, keep_d2b11: Tensor, *targets: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss, found = recomputed(labels_b, inputs_blz, keep_d2b11, weights(), targets)
            return loss, of_trained(found)

        return by_block
    if recompute:
        for block in model.blocks:
            block.recompute()

    def loss_of(
        labels_b: Tensor, inputs_blz: Tensor, keep_d2b11: Tensor, *targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_blv = model(labels_b, inputs_blz, keep_d2b11, weights())
        return loss_of_logits(logits_blv, *targets)

    gradients_of = ms.value_and_grad(loss_of, None, weights.trained, has_aux=True)

    def at_once(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, loss), found = gradients_of(*inputs)
        return loss, found

    return at_once


def draw_drop_path(
    rng: np.random.Generator, rates_d: np.ndarray, batch: int, own: slice
) -> np.ndarray:
    """Drop path, or stochastic depth (arXiv:1603.09382): images skip branches of blocks at random.

    (depth, 2, b, 1, 1) float32 for the images ``own`` of a batch, by which the branches of the
    blocks are multiplied. It is 0 for a branch that an image skips, else 1 / (1 - rate).
    """
    rates_d1111 = rates_d.reshape(-1, 1, 1, 1, 1)
    drawn_db = np.stack([draw_for(rng, batch, own) for _ in range(2 * len(rates_d))])
    stays_d2b11 = drawn_db.reshape(len(rates_d), 2, -1, 1, 1) >= rates_d1111
    return (stays_d2b11 / (1 - rates_d1111)).astype(np.float32)


def draw_for(rng: np.random.Generator, batch: int, own: slice) -> np.ndarray:
    """What ``rng.random(batch)`` gives the images ``own``; passes over the others' numbers."""
    state = rng.bit_generator
    assert isinstance(state, np.random.PCG64)  # which takes one step a number
    state.advance(own.start)
    drawn_b = rng.random(own.stop - own.start)
    state.advance(batch - own.stop)
    return drawn_b
