"""Classifier-free guidance (arXiv:2207.12598), whose strength grows over the scales."""

from typing import Literal

import numpy as np
from mindspore import Tensor
from var_tokenizer.common import one_at_a_time

from var_transformer.attention import Cache
from var_transformer.generation.pruning import pivotal_tokens
from var_transformer.stored.stored_transformer import AnyTransformer

Guidance = Literal["linear", "constant", "none"]


def guidance_strength(guidance: Guidance, cfg: float, ratio: float) -> float:
    """The strength at ``ratio``, the position of a scale in [0, 1].

    linear: grows from 0 to cfg, as published. constant: cfg. none: 0.
    """
    if guidance == "none":
        return 0.0
    return cfg * ratio if guidance == "linear" else cfg


class GuidedPasses:
    """A transformer's passes over the scales of one batch, guided at the scales that ask for it.

    The unconditional half of the batch has keys and values of its own, so it can stop only if
    no later scale is guided.
    """

    def __init__(self, model: AnyTransformer, labels_b: Tensor, unconditional: bool) -> None:
        """unconditional: whether any scale is guided."""
        self._model = model
        self._count = labels_b.shape[0]
        self._unconditional = unconditional  # whether that half still runs
        self._cache: Cache | None = None
        if unconditional:
            no_class = np.full(self._count, model.config.num_classes, np.int32)
            labels_b = Tensor(np.concatenate((labels_b.asnumpy(), no_class)))
        self._class_bc, self._modulations = model.condition(labels_b)

    def logits(
        self,
        k: int,
        inputs_blz: np.ndarray | None,
        strength: float,
        unconditional: bool,
        pruned: float | None,
    ) -> np.ndarray:
        """(1 + strength) conditional - strength unconditional, (B, s_y * s_x, V), of scale k.

        unconditional: whether this scale or a later one is guided. pruned: the share of tokens to
        leave out; None if no scale of this batch leaves out any.
        """
        if self._unconditional and not unconditional:
            self._drop_unconditional()
        if inputs_blz is not None and self._unconditional:
            inputs_blz = np.concatenate((inputs_blz, inputs_blz))
        inputs = None if inputs_blz is None else Tensor(inputs_blz)
        given = k, inputs, self._class_bc, self._modulations, self._cache
        if pruned is None:
            logits, self._cache = self._model.extend(*given)
        else:
            some_bn = None
            if pruned and inputs_blz is not None:  # the first scale is always whole
                some_bn = pivotal_tokens(inputs_blz, pruned)
            logits, self._cache = self._model.extend_some(*given, some_bn)
        # an Ascend gives them in the type of its products; all that follows is float32
        logits_blv = logits.asnumpy().astype(np.float32, copy=False)
        if not strength:
            return logits_blv[: self._count]
        t = np.float32(strength)
        return (1 + t) * logits_blv[: self._count] - t * logits_blv[self._count :]

    def release(self) -> None:
        """Frees the keys and values."""
        if self._cache is not None:
            self._cache.release()

    def _drop_unconditional(self) -> None:
        n = self._count
        self._unconditional = False
        with one_at_a_time:
            self._class_bc = self._class_bc[:n]
            self._modulations = tuple(m[:n] for m in self._modulations)
        if self._cache is not None:
            self._cache = self._cache.first(n)
