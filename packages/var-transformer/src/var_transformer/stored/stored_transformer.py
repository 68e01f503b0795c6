"""The passes of a transformer whose blocks stay in its file.

Memory holds what is small, and two blocks as the file has them: one that is computed with and one
that is being read. The kernels of ``cpp/stored.cpp`` widen a part of a weight at a time.
"""

import math
import os
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from mindspore import Tensor
from var_tokenizer.common import (
    Array,
    InputError,
    noted_checksum,
    one_at_a_time,
    open_checkpoint,
    quoted,
    read_scales,
)

from var_transformer import attention
from var_transformer.attention import BackendConfig, Cache, KeysValues
from var_transformer.model.checks import check_labels, check_pass, parse_class_names
from var_transformer.model.config import TransformerConfig
from var_transformer.model.operators import kernels
from var_transformer.model.restoration import pass_some
from var_transformer.model.shapes import transformer_shapes
from var_transformer.model.transformer import Transformer
from var_transformer.stored.weight_file import StoredWeight, WeightFile

_OF_BLOCK = ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2")  # as the kernel takes them
_HEAD = ("head.weight",)


class StoredTransformer:
    """A trained transformer that generates, and does nothing else, in little memory.

    ``StoredTransformer.load`` opens its file. What it computes is what ``Transformer`` does, which
    it takes the place of in ``generate`` and ``edit``; each pass reads the blocks from the file.
    Needs the C++ kernels, on a CPU. Threads may share it.
    """

    def __init__(
        self,
        config: TransformerConfig,
        small: dict[str, np.ndarray],
        weights: WeightFile,
        class_names: tuple[str, ...] | None,
        tokenizer_checksum: str | None,
    ) -> None:
        """small: what ``weights`` does not have, by published name."""
        self.config, self.class_names = config, class_names
        self._offsets = config.schedule.offsets
        self.backend = BackendConfig()
        self.tokenizer_checksum = tokenizer_checksum
        self._small, self._weights, self._blocks = small, weights, _block_groups(config)
        self._modulations = _modulation_groups(config)
        library = kernels()
        head_width = config.width // config.heads
        self._attend = attention.build(config.schedule, config.heads, head_width, config.qk_l2_norm)
        if library is None or self._attend.cached_block is None:
            raise InputError(
                f"low_memory is True, and heads are {head_width} wide; expected a CPU with the C++ "
                "kernels, and a multiple of 16"
            )
        self._linear_kernel = library.function("stored_linear")
        self._block_kernel = library.function("stored_block")
        self._norm_kernel = library.function("modulated_norm")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StoredTransformer":
        """Opens a native file; raises InputError unless it holds a complete transformer."""
        checkpoint = open_checkpoint(path, "transformer", TransformerConfig)
        checkpoint.check(transformer_shapes(checkpoint.config))
        config, tensors, source = checkpoint.config, checkpoint.tensors, quoted(path)
        names = parse_class_names(checkpoint.metadata, source, config.num_classes)
        checksum = noted_checksum(checkpoint.metadata, "tokenizer", source)
        scales = read_scales(checkpoint.path, checkpoint.scales)
        weights = WeightFile(checkpoint.path, tensors, _groups(config), scales)
        return cls(config, checkpoint.read(large_weights(config)), weights, names, checksum)

    def check_labels(self, labels: Array) -> Tensor:
        """As of ``Transformer``."""
        return check_labels(labels, self.config.num_classes)

    def condition(self, labels: Array) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Class embeddings (B, C), the modulations (B, 6, C) of all blocks, and the head's.

        Raises InputError for a label out of range.
        """
        class_bc = self._small["class_emb.weight"][self.check_labels(labels).asnumpy()]
        with np.errstate(over="ignore"):
            silu_bc = class_bc / (1 + np.exp(-class_bc))
        c = self.config.width
        with one_at_a_time:
            vectors = [
                self._linear(silu_bc, weights[0], group[0]).reshape(len(class_bc), -1, c)
                for group, weights in zip(
                    self._modulations, self._weights.groups(self._modulations), strict=True
                )
            ]
        if self.config.shared_adaln:
            own = [self._small[f"blocks.{i}.ada_gss"][0] for i in range(self.config.depth)]
            vectors = [*(vectors[0] + own_16c for own_16c in own), vectors[1]]
        return Tensor(class_bc), tuple(Tensor(vector) for vector in vectors)

    def extend(
        self,
        k: int,
        inputs_blz: Tensor | None,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        cache: Cache | None,
    ) -> tuple[Tensor, Cache]:
        """As of ``Transformer``, by what ``condition`` gives."""
        with one_at_a_time:
            x_blc, cache = self._embedded_scale(k, inputs_blz, class_bc, cache)
            cache.check_whole()
            groups, begin = self._weights.groups([*self._blocks, _HEAD]), self._offsets[k]
            x_blc = self._through_blocks(x_blc, groups, modulations, begin, cache.tensors)
            return self._logits(x_blc, groups, modulations), cache.after(())

    def extend_some(
        self,
        k: int,
        inputs_blz: Tensor | None,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        cache: Cache | None,
        some_bn: np.ndarray | None = None,
    ) -> tuple[Tensor, Cache]:
        """As of ``Transformer``, by what ``condition`` gives."""
        with one_at_a_time:
            x_blc, cache = self._embedded_scale(k, inputs_blz, class_bc, cache)
            groups, past = self._weights.groups([*self._blocks, _HEAD]), cache.tensors

            def through_blocks(
                x_bnc: np.ndarray, span: tuple[int, int]
            ) -> tuple[np.ndarray, KeysValues]:
                return self._through_blocks(x_bnc, groups, modulations, span[0], past), ()

            schedule = self.config.schedule
            x_blc, cache = pass_some(schedule, k, x_blc, cache, some_bn, through_blocks)
            return self._logits(x_blc, groups, modulations), cache

    def _embedded_scale(
        self, k: int, inputs_blz: Tensor | None, class_bc: Tensor, cache: Cache | None
    ) -> tuple[np.ndarray, Cache]:
        """What the first block reads of scale k, (B, s_y * s_x, C), and the cache before it."""
        small = self._small
        cache = cache or self._new_cache(class_bc.shape[0])
        check_pass(self.config, k, inputs_blz, class_bc.shape[0], cache)
        if inputs_blz is None:
            x_blc = class_bc.asnumpy()[:, None] + small["pos_start"]
        else:
            words_cz, bias_c = small["word_embed.weight"], small["word_embed.bias"]
            x_blc = inputs_blz.asnumpy() @ words_cz.T + bias_c
        begin, end = self._offsets[k], self._offsets[k + 1]
        return x_blc + small["lvl_embed.weight"][k] + small["pos_1LC"][:, begin:end], cache

    def _through_blocks(
        self,
        x_blc: np.ndarray,
        groups: Iterator[list[StoredWeight]],
        modulations: tuple[Tensor, ...],
        begin: int,
        past: KeysValues,
    ) -> np.ndarray:
        """x (B, l, C) after all blocks, whose tokens begin at ``begin``."""
        for i in range(self.config.depth):
            of_block = past[2 * i : 2 * i + 2]
            x_blc = self._block(i, next(groups), x_blc, modulations[i].asnumpy(), begin, of_block)
        return x_blc

    def _logits(
        self,
        x_blc: np.ndarray,
        groups: Iterator[list[StoredWeight]],
        modulations: tuple[Tensor, ...],
    ) -> Tensor:
        of_head = modulations[-1].asnumpy()
        scale_b1c, shift_b1c = (np.ascontiguousarray(of_head[:, i : i + 1]) for i in range(2))
        self._norm_kernel(x_blc, scale_b1c, shift_b1c, normed_blc := np.empty_like(x_blc))
        return Tensor.from_numpy(self._linear(normed_blc, next(groups)[0], _HEAD[0]))

    def _new_cache(self, batch: int) -> Cache:
        empty = [self._attend.empty_cache(batch) for _ in range(self.config.depth)]
        return Cache(batch, tuple(tensor for tensors in empty for tensor in tensors))

    def _linear(self, x: np.ndarray, weight: StoredWeight, name: str) -> np.ndarray:
        """x (..., C) by a weight of this name, and its bias."""
        bias_o = self._small[name.replace(".weight", ".bias")]
        y = np.empty((*x.shape[:-1], len(bias_o)), np.float32)
        kind = np.array([weight.kind], np.int32)
        self._linear_kernel(x, weight.elements, kind, weight.scales, bias_o, y)
        return y

    def _block(
        self,
        i: int,
        weights: list[StoredWeight],
        x_blc: np.ndarray,
        modulation_b6c: np.ndarray,
        begin: int,
        past: tuple[Tensor, ...],
    ) -> np.ndarray:
        """x (B, l, C) after block i, whose tokens begin at ``begin``."""
        small, prefix, unit = self._small, f"blocks.{i}", self.config.qk_l2_norm
        qkv, proj, fc1, fc2 = (weight.elements for weight in weights)
        biases = [small[f"{prefix}.{name}.bias"] for name in _OF_BLOCK[1:]]
        if unit:
            scale_h = small[f"{prefix}.attn.scale_mul_1H11"]
        else:
            scale_h = np.full(
                self.config.heads,
                0.25 / math.sqrt(self.config.width // self.config.heads),
                np.float32,
            )
        y_blc = np.empty_like(x_blc)
        self._block_kernel(
            *(x_blc, modulation_b6c, qkv, small[f"{prefix}.attn.q_bias"]),
            *(small[f"{prefix}.attn.v_bias"], scale_h, proj, biases[0], fc1, biases[1], fc2),
            *(biases[2], np.array([begin], np.int32), np.array([unit], np.int32), *past),
            np.array([weight.kind for weight in weights], np.int32),
            *(weight.scales for weight in weights),
            y_blc,
        )
        return y_blc


def large_weights(config: TransformerConfig) -> frozenset[str]:
    """The names of the weights that stay in the file: all but about 2 % of the numbers."""
    return frozenset(name for group in _groups(config) for name in group)


def _groups(config: TransformerConfig) -> list[tuple[str, ...]]:
    return [*_block_groups(config), *_modulation_groups(config), _HEAD]


def _block_groups(config: TransformerConfig) -> list[tuple[str, ...]]:
    """The large weights of each block."""
    return [tuple(f"blocks.{i}.{name}.weight" for name in _OF_BLOCK) for i in range(config.depth)]


def _modulation_groups(config: TransformerConfig) -> list[tuple[str, ...]]:
    """Those of the modulations, of the blocks and of the head."""
    of_blocks = [f"blocks.{i}.ada_lin.1.weight" for i in range(config.depth)]
    shared = ["shared_ada_lin.1.weight"]
    names = [*(shared if config.shared_adaln else of_blocks), "head_nm.ada_lin.1.weight"]
    return [(name,) for name in names]


AnyTransformer: TypeAlias = Transformer | StoredTransformer
"""What ``generate`` and ``edit`` take."""
