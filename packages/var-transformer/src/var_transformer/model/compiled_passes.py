"""The compiled passes of a transformer: all scales at once, and one scale after another.

Each is a cell of its own: MindSpore 2.10 mixes up the graphs of a cell that has several compiled
methods, and its compile cache loses the weights that a compiled closure reads.
"""

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import Tensor, nn
from var_tokenizer.common import CompiledPasses

from var_transformer.attention import KeysValues

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
    """Scale k, in one graph for each scale."""

    @ms.jit
    def construct(
        self,
        k: int | Tensor,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        return self.model.grow(k, x_blc, class_bc, modulations, past)


def _extend_any(model: "Transformer") -> _Pass:
    """Like ``_Extend``, in one graph for all scales."""
    any_length = Tensor(shape=(None, None, model.config.width), dtype=ms.float32)

    class ExtendAny(_Pass):
        @ms.enable_dynamic(x_blc=any_length)
        @ms.jit
        def construct(
            self,
            k: Tensor,
            x_blc: Tensor,
            class_bc: Tensor,
            modulations: tuple[Tensor, ...],
            past: KeysValues,
        ) -> tuple[Tensor, KeysValues]:
            return self.model.grow(k, x_blc, class_bc, modulations, past)

    return ExtendAny(model)


class TransformerPasses(CompiledPasses):
    """``logits``, ``condition`` and ``extend``, compiled when first called. They check nothing."""

    def __init__(self, model: "Transformer") -> None:
        super().__init__(model)
        self.logits, self.condition = _Logits(model), _Condition(model)
        one_graph = isinstance(model.blocks[0].attn.attend.graph_input(0), Tensor)
        self.extend = _extend_any(model) if one_graph else _Extend(model)
