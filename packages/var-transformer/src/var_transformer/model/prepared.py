"""The passes over the cache on a device where every kernel costs a launch.

What all scales of a generation compute alike is computed once: weights in the type of products,
the bias of queries, keys and values, the scale of scores, and everything that follows from the
class. ``Transformer.grow`` is the same without; a CPU, whose block is one kernel, runs that.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import layout

from var_transformer.attention import KeysValues
from var_transformer.model import operators as fast
from var_transformer.model.block import scale_of

if TYPE_CHECKING:
    from var_transformer.model.transformer import Transformer

Arrays: TypeAlias = tuple[Tensor, ...]


class Prepared(nn.Cell):
    """``f(labels (B)) -> (of the images, of the model)``, as ``PreparedModel`` reads them.

    Of the images: their first tokens (B, l, C); factor and shift of the last norm; for each block
    its two gates, and factor and shift of each of its norms, (B, 1, C). Of the model: what is added
    to the tokens of each scale; the linear maps before and after the blocks; for each block its
    linear maps and its scale of scores, if it learns one.
    """

    def __init__(self, model: "Transformer") -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.dtype, self.depth = model.head.linear.dtype, model.config.depth
        offsets = model.config.schedule.offsets
        self.tokens = [Tensor(np.arange(a, b, dtype=np.int32)) for a, b in pairwise(offsets)]
        self.parts, self.rows = layout.parts(), fast.Rows()
        self.norm = fast.PreparedNorm(self.dtype)

    @ms.jit
    def construct(self, labels_b: Tensor) -> tuple[tuple[Arrays, ...], tuple[Arrays, ...]]:
        model, dtype = self.model, self.dtype
        class_bc = model.class_emb(labels_b)
        head_b2c = model.head_nm.ada_lin(class_bc).reshape(class_bc.shape[0], 2, -1)
        scale_b1c, shift_b1c = self.parts(head_b2c, 1, 1)
        start_blc = class_bc.expand_dims(1) + model.pos_start
        of_images: tuple = ((start_blc,), self.norm.prepared(scale_b1c, shift_b1c))
        modulations = model.modulations(class_bc)
        for i in range(self.depth):
            m = self.parts(modulations[i], 1, 1)
            first, second = self.norm.prepared(m[2], m[4]), self.norm.prepared(m[3], m[5])
            gates = (m[0].astype(ms.float32), m[1].astype(ms.float32))
            of_images = (*of_images, (*gates, *first, *second))

        level_lc = model.lvl_embed(model.scale_of_token)
        position_lc = model.pos_1LC.reshape(level_lc.shape) + level_lc
        positions: tuple = ()
        for k in range(len(self.tokens)):
            positions = (*positions, self.rows(position_lc, self.tokens[k]))
        words, head = model.word_embed, model.head
        outside = (
            *(words.weight.astype(dtype), words.bias.astype(dtype)),  # type: ignore[union-attr]
            *(head.weight.astype(dtype), head.bias.astype(dtype)),  # type: ignore[union-attr]
        )
        of_model: tuple = (positions, outside)
        for i in range(self.depth):
            of_model = (*of_model, self.of_block(i))
        return of_images, of_model

    def of_block(self, i: int) -> Arrays:
        attn, ffn, dtype = self.model.blocks[i].attn, self.model.blocks[i].ffn, self.dtype
        q_bias, v_bias = attn.q_bias.reshape(-1), attn.v_bias.reshape(-1)
        qkv_bias = ops.concat((q_bias, ops.zeros_like(q_bias), v_bias))
        arrays = (
            *(attn.mat_qkv.weight.astype(dtype), qkv_bias.astype(dtype)),
            *(attn.proj.weight.astype(dtype), attn.proj.bias.astype(dtype)),
            *(ffn.fc1.weight.astype(dtype), ffn.fc1.bias.astype(dtype)),
            *(ffn.fc2.weight.astype(dtype), ffn.fc2.bias.astype(dtype)),
        )
        if attn.scale_mul_1H11 is None:
            return arrays
        return (*arrays, scale_of(attn.scale_mul_1H11).astype(attn.attend.scale_dtype))


class PreparedModel(nn.Cell):
    """Logits of scale k, and the cache grown by it, of what ``Prepared`` gives."""

    def __init__(self, model: "Transformer") -> None:
        super().__init__(auto_prefix=False)
        self.dtype = model.head.linear.dtype
        self.attend = model.blocks[0].attn.attend  # it has no weights: all blocks have the same
        self.fixed_scale = model.blocks[0].attn.fixed_scale
        self.has_scale = model.config.qk_l2_norm
        self.depth = model.config.depth
        self.linear, self.gelu_linear = fast.Linear(), fast.GeluLinear()
        self.linear.dtype = self.gelu_linear.linear.dtype = self.dtype
        self.norm, self.gated_sum = fast.PreparedNorm(self.dtype), fast.PreparedGatedSum()

    def construct(
        self,
        k: int,
        position: int | Tensor,
        inputs_blz: Tensor | None,
        of_images: tuple[Arrays, ...],
        of_model: tuple[Arrays, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """position: k as the attention's ``graph_input`` gives it. inputs_blz: None at scale 0."""
        positions, outside = of_model[0], of_model[1]
        if inputs_blz is None:
            x_blc = of_images[0][0]
        else:
            x_blc = self.linear(inputs_blz, outside[0], outside[1]).astype(ms.float32)
            if inputs_blz.shape[0] != of_images[0][0].shape[0]:  # the unconditional half reads too
                x_blc = ops.concat((x_blc, x_blc))
        x_blc = x_blc + positions[k]
        grown = ()
        each = len(past) // self.depth
        for i in range(self.depth):
            of_block = past[each * i : each * (i + 1)]
            x_blc, of_block = self.block(
                x_blc, of_images[2 + i], of_model[2 + i], position, of_block
            )
            grown = grown + of_block
        normed_blc = self.norm(x_blc, of_images[1][0], of_images[1][1])
        return self.linear(normed_blc, outside[2], outside[3]), grown

    def block(
        self, x_blc: Tensor, of_images: Arrays, weights: Arrays, k: int | Tensor, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        """``Block`` over its cache."""
        score_scale = weights[8] if self.has_scale else self.fixed_scale
        normed_blc = self.norm(x_blc, of_images[2], of_images[3])
        qkv_bl3c = self.linear(normed_blc, weights[0], weights[1])
        mixed_blc, grown = self.attend.projected(qkv_bl3c, score_scale, k, past)
        attended_blc = self.linear(mixed_blc, weights[2], weights[3])
        x_blc = self.gated_sum(x_blc, attended_blc, of_images[0])
        normed_blc = self.norm(x_blc, of_images[4], of_images[5])
        expanded_blc = self.linear(normed_blc, weights[4], weights[5])
        expanded_blc = self.gelu_linear(expanded_blc, weights[6], weights[7])
        return self.gated_sum(x_blc, expanded_blc, of_images[1]), grown
