"""The compiled passes of a transformer: all scales at once, and one scale after another.

Each is a cell of its own: MindSpore 2.10 mixes up the graphs of a cell that has several compiled
methods, and its compile cache loses the weights that a compiled closure reads.
"""

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import Tensor, nn
from var_tokenizer.common import CompiledPasses

from var_transformer.attention import KeysValues, Place

if TYPE_CHECKING:
    from var_transformer.model.transformer import Transformer


class _Pass(nn.Cell):
    def __init__(self, model: "Transformer") -> None:
        super().__init__(auto_prefix=False)
        self.model = model


class _Logits(_Pass):
    @ms.jit
    def construct(self, labels_b: Tensor, inputs_blz: Tensor) -> Tensor:
        return self.model.construct(labels_b, inputs_blz)


class _Condition(_Pass):
    @ms.jit
    def construct(self, labels_b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        class_bc = self.model.class_emb(labels_b)
        return class_bc, self.model.modulations(class_bc)


class _Extend(_Pass):
    """Scale k, in one graph for each scale: logits, or without the head what the blocks give."""

    def __init__(self, model: "Transformer", has_head: bool) -> None:
        super().__init__(model)
        self.has_head = has_head

    @ms.jit
    def construct(
        self,
        k: Place,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        return self.grow(k, x_blc, class_bc, modulations, past)

    def grow(
        self,
        k: Place,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        x_blc, grown = self.model.grow(k, x_blc, modulations, past)
        return (self.model.to_logits(x_blc, class_bc) if self.has_head else x_blc), grown


class _Head(_Pass):
    """Logits of what the blocks give."""

    @ms.jit
    def construct(self, x_blc: Tensor, class_bc: Tensor) -> Tensor:
        return self.model.to_logits(x_blc, class_bc)


def _any_length(model: "Transformer") -> Tensor:
    return Tensor(shape=(None, None, model.config.width), dtype=ms.float32)


def _extend_any(model: "Transformer", has_head: bool) -> _Pass:
    """Like ``_Extend``, in one graph for all scales."""

    class ExtendAny(_Extend):
        @ms.enable_dynamic(x_blc=_any_length(model))
        @ms.jit
        def construct(
            self,
            k: Tensor,
            x_blc: Tensor,
            class_bc: Tensor,
            modulations: tuple[Tensor, ...],
            past: KeysValues,
        ) -> tuple[Tensor, KeysValues]:
            return self.grow(k, x_blc, class_bc, modulations, past)

    return ExtendAny(model, has_head)


def _head_any(model: "Transformer") -> _Pass:
    class HeadAny(_Pass):
        @ms.enable_dynamic(x_blc=_any_length(model))
        @ms.jit
        def construct(self, x_blc: Tensor, class_bc: Tensor) -> Tensor:
            return self.model.to_logits(x_blc, class_bc)

    return HeadAny(model)


class TransformerPasses(CompiledPasses):
    """``logits``, ``condition`` and ``extend``, compiled when first called. They check nothing.

    ``blocks`` and ``head`` are the two parts of ``extend``.
    """

    def __init__(self, model: "Transformer") -> None:
        super().__init__(model)
        self.logits, self.condition = _Logits(model), _Condition(model)
        one_graph = isinstance(model.blocks[0].attn.attend.graph_input(0), Tensor)
        extend = _extend_any if one_graph else _Extend
        self.extend, self.blocks = extend(model, True), extend(model, False)
        self.head = _head_any(model) if one_graph else _Head(model)
