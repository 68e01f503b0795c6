"""Gradients with blocks computed again in the backward pass, which keep their inputs alone.

``Cell.recompute`` of a block saves nothing on an Ascend: the compiler finds most of what should be
computed again in the forward pass, and keeps it. So the chain of blocks is gone through by hand
here, and a block's input depends on the gradient that comes to it, as nothing of the forward pass
does.
"""

from typing import TYPE_CHECKING

from mindspore import Tensor, nn, ops

from var_transformer.model.block import Block, Given, with_scale

if TYPE_CHECKING:
    from var_transformer.model.transformer import Transformer


class RecomputedGradients(nn.Cell):
    """The loss of a model and its gradients by the arrays that it is given.

    loss: ``f(logits_blv, *targets) -> (what is differentiated, the loss)``.
    """

    def __init__(self, model: "Transformer", loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # or the weights would be renamed
        self.model = model
        self.begin, self.end = _Begin(model), _End(model, loss)
        self.blocks = [_Block(block) for block in model.blocks]
        self.gradients = ops.GradOperation(get_all=True, sens_param=True)

    def construct(
        self,
        labels_b: Tensor,
        inputs_blz: Tensor,
        keep_d2b11: Tensor,
        given: tuple[Given, ...],
        targets: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Given, ...]]:
        """The loss, and the gradients of ``given``, which ``Transformer.construct`` describes."""
        depth = len(self.blocks)
        outside, of_modulations, of_blocks = given[0], given[1 : depth + 1], given[depth + 1 :]
        first, last = outside[:-4], outside[-4:]
        x_blc, class_bc, modulations, scales = self.begin(
            labels_b, inputs_blz, first, of_modulations, of_blocks
        )
        keeps = self.model.keeps(keep_d2b11, class_bc.dtype)
        inputs: tuple = ()
        weights: tuple = ()
        for i in range(depth):
            inputs = (*inputs, x_blc)
            weights = (*weights, with_scale(of_blocks[i], scales, i))
            x_blc = self.blocks[i](x_blc, modulations[i], keeps[i], weights[i])
        scaled, loss = self.end(x_blc, class_bc, last, targets)
        d_scaled = ops.ones_like(scaled), ops.zeros_like(loss)
        d_end = self.gradients(self.end)(x_blc, class_bc, last, targets, d_scaled)
        d_x_blc = d_end[0]
        d_modulations: tuple = ()
        d_scales: tuple = ()
        d_blocks: tuple = ()
        for j in range(depth):
            i = depth - 1 - j
            d_x_blc, d_modulation, _, d_weights = self.gradients(self.blocks[i])(
                ops.depend(inputs[i], d_x_blc), modulations[i], keeps[i], weights[i], d_x_blc
            )
            d_modulations = (d_modulation, *d_modulations)
            d_scales = (d_weights[2], *d_scales) if len(scales) > 0 else ()
            d_blocks = (d_weights, *d_blocks)
        d_begin = self.gradients(self.begin)(
            *(labels_b, inputs_blz, first, of_modulations, of_blocks),
            (d_x_blc, d_end[1], d_modulations, d_scales),
        )
        found: tuple = ((*d_begin[2], *d_end[2]), *d_begin[3])
        for i in range(depth):
            # the gradients of the scales' logarithms are the only ones from the beginning
            d_logs = (d_begin[4][i][2],) if len(scales) > 0 else ()
            found = (*found, with_scale(d_blocks[i], d_logs, 0))
        return loss, found


class _Begin(nn.Cell):
    def __init__(self, model: "Transformer") -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(
        self,
        labels_b: Tensor,
        inputs_blz: Tensor,
        outside: Given,
        of_modulations: tuple[Given, ...],
        of_blocks: tuple[Given, ...],
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self.model.shared(labels_b, inputs_blz, outside, of_modulations, of_blocks)


class _Block(nn.Cell):
    def __init__(self, block: Block) -> None:
        super().__init__(auto_prefix=False)
        self.block = block

    def construct(
        self, x_blc: Tensor, modulation_b6c: Tensor, keep: tuple[Tensor, Tensor], weights: Given
    ) -> Tensor:
        return self.block(x_blc, modulation_b6c, keep, None, (), weights)[0]


class _End(nn.Cell):
    def __init__(self, model: "Transformer", loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.head_nm, self.head, self.loss = model.head_nm, model.head, loss

    def construct(
        self, x_blc: Tensor, class_bc: Tensor, weights: Given, targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        logits_blv = self.head(self.head_nm(x_blc, class_bc, weights[:2]), weights[2:])
        return self.loss(logits_blv, *targets)
