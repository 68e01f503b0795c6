"""The next-scale transformer of VAR (arXiv:2404.02905, section 3.2 and appendix).

A block is attention and a feed-forward network, each behind an adaptive layer norm whose shift,
scale and gate come from the class (AdaLN, arXiv:2212.09748). Cells and parameters have the names of
the published checkpoints; ``initialization.py`` draws them, ``attention/`` attends.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, z latent channels,
v vocabulary. ``k`` is the index of a scale, from 0.
"""

import json
import math
import os

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer.common import (
    Array,
    InputError,
    check_shape,
    checked_floats,
    native_metadata,
    noted_checksum,
    one_at_a_time,
    open_checkpoint,
    quoted,
    write_checkpoint,
)

from var_transformer import attention
from var_transformer.attention import BackendConfig, Cache, KeysValues
from var_transformer.model import operators as fast
from var_transformer.model.checks import check_class_names, parse_class_names
from var_transformer.model.compiled_passes import TransformerPasses
from var_transformer.model.config import TransformerConfig
from var_transformer.model.initialization import initialize
from var_transformer.model.shapes import transformer_shapes

_MAX_LOG_SCALE = math.log(100)  # of the learned attention scale


def _zeros(*shape: int) -> Parameter:
    # the array itself, not a copy: memory that is never written takes no room
    return Parameter(Tensor.from_numpy(np.zeros(shape, np.float32)))


class Linear(nn.Cell):
    """An affine map of the last axis; ``weight`` is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = _zeros(outputs, inputs)
        self.bias = _zeros(outputs) if has_bias else None
        self.linear = fast.Linear()

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias)


class Embedding(nn.Cell):
    """A table of learned vectors; ``weight`` is (entries, C)."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = _zeros(entries, width)

    def construct(self, ids: Tensor) -> Tensor:
        return ops.gather(self.weight, ids, 0)


class SiLU(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x)


class Attention(nn.Cell):
    """Multi-head self-attention; with QK-L2 norm, cosine scores times a learned scale per head.

    The scale is exp(min(scale_mul, log 100)); without QK-L2 it is 0.25 / sqrt(d), as published.
    """

    def __init__(self, config: TransformerConfig, backend: BackendConfig) -> None:
        super().__init__()
        c, h = config.width, config.heads
        self.mat_qkv = Linear(c, 3 * c, has_bias=False)
        self.q_bias = _zeros(c)
        self.v_bias = _zeros(c)
        self.scale_mul_1H11 = _zeros(1, h, 1, 1) if config.qk_l2_norm else None
        self.fixed_scale = 0.25 / math.sqrt(c // h)
        self.proj = Linear(c, c)
        self.attend = attention.build(config.schedule, h, c // h, config.qk_l2_norm, backend)

    def construct(
        self, x_blc: Tensor, k: int | Tensor | None, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        """All scales at once, or scale k over ``past``, the keys and values of those before."""
        # Reshaped, because MindSpore counts a tuple of parameters as a side effect, and copies all
        # weights that are read again after one, in the backward pass.
        q_bias, v_bias = self.q_bias.reshape(-1), self.v_bias.reshape(-1)
        qkv_bias = ops.concat((q_bias, ops.zeros_like(q_bias), v_bias))
        qkv_bl3c = self.mat_qkv.linear(x_blc, self.mat_qkv.weight, qkv_bias)
        score_scale = self.fixed_scale
        if self.scale_mul_1H11 is not None:
            score_scale = ops.exp(ops.minimum(self.scale_mul_1H11, _MAX_LOG_SCALE))
        mixed_blc, grown = self.attend.projected(qkv_bl3c, score_scale, k, past)
        return self.proj(mixed_blc), grown


class FeedForward(nn.Cell):
    """Two affine maps with a GELU (tanh form) between, four times as wide inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config.width
        self.fc1 = Linear(c, 4 * c)
        self.fc2 = Linear(4 * c, c)
        self.gelu = fast.Gelu()

    def construct(self, x_blc: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x_blc)))


class Block(nn.Cell):
    """x + gate * attention(modulated_norm(x)), then the same with the feed-forward network."""

    def __init__(self, config: TransformerConfig, backend: BackendConfig) -> None:
        super().__init__()
        self.modulated_norm, self.gated_sum = fast.ModulatedNorm(), fast.GatedSum()
        self.attn = Attention(config, backend)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = _zeros(1, 1, 6, config.width)
        else:
            self.ada_lin = nn.SequentialCell(SiLU(), Linear(config.width, 6 * config.width))
        self.cached = self.attn.attend.cached_block if backend.dtype == ms.float32 else None

    def construct(
        self,
        x_blc: Tensor,
        modulation_b6c: Tensor,
        keep_2b11: Tensor | None = None,
        k: int | Tensor | None = None,
        past: KeysValues = (),
    ) -> tuple[Tensor, KeysValues]:
        if self.cached is not None and len(past) > 0 and x_blc.dtype == ms.float32:
            return self._in_one_call(x_blc, modulation_b6c, k, past), ()
        gate_attn, gate_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn = ops.split(
            modulation_b6c, 1, 1
        )
        if keep_2b11 is not None:  # drop path: a dropped image passes the block unchanged
            gate_attn, gate_ffn = gate_attn * keep_2b11[0], gate_ffn * keep_2b11[1]

        attended, grown = self.attn(self.modulated_norm(x_blc, scale_attn, shift_attn), k, past)
        x_blc = self.gated_sum(x_blc, attended, gate_attn)
        expanded = self.ffn(self.modulated_norm(x_blc, scale_ffn, shift_ffn))
        x_blc = self.gated_sum(x_blc, expanded, gate_ffn)
        return x_blc, grown

    def _in_one_call(
        self, x_blc: Tensor, modulation_b6c: Tensor, begin: Tensor, past: KeysValues
    ) -> Tensor:
        """The same by one kernel: starting its operators takes longer than a small scale."""
        attn, ffn = self.attn, self.ffn
        if attn.scale_mul_1H11 is None:
            scale_h = fast.filled(attn.attend.heads, attn.fixed_scale)
        else:
            scale_h = attn.scale_mul_1H11
        return self.cached(  # type: ignore[misc]  # it is there
            *(x_blc, modulation_b6c, attn.mat_qkv.weight, attn.q_bias, attn.v_bias, scale_h),
            *(attn.proj.weight, attn.proj.bias, ffn.fc1.weight, ffn.fc1.bias),
            *(ffn.fc2.weight, ffn.fc2.bias, begin, attn.attend.unit, *past),
        )


class HeadNorm(nn.Cell):
    """The adaptive layer norm before the logits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulated_norm = fast.ModulatedNorm()
        self.ada_lin = nn.SequentialCell(SiLU(), Linear(config.width, 2 * config.width))

    def construct(self, x_blc: Tensor, class_bc: Tensor) -> Tensor:
        scale_b1c, shift_b1c = ops.split(
            self.ada_lin(class_bc).expand_dims(1), class_bc.shape[-1], 2
        )
        return self.modulated_norm(x_blc, scale_b1c, shift_b1c)


class Transformer(nn.Cell):
    """VAR's transformer: class label and token maps so far -> logits of the next token map.

    Arrays go in as NumPy arrays or MindSpore tensors and come out as MindSpore tensors.
    ``seed`` draws the weights as published; with None they are zeros. ``gate_gain`` multiplies
    those of AdaLN's gates. ``Transformer.load`` reads weights from a file. ``backend`` chooses the
    attention; by default the best for the device.

    Weights may be changed at any time, in any way that MindSpore offers. Threads may share a model:
    ``logits``, ``condition`` and ``extend`` run one at a time (``construct`` does not wait).

    ``class_names`` (one for each class) and ``tokenizer_checksum`` (of the tokenizer whose tokens
    it predicts) are None if they are unknown, as in published weights. ``save`` writes them to
    the file.
    """

    class_names: tuple[str, ...] | None = None
    tokenizer_checksum: str | None = None

    def __init__(
        self,
        config: TransformerConfig,
        seed: int | None = 0,
        backend: BackendConfig = BackendConfig(),  # noqa: B008 (frozen)
        gate_gain: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config = config
        c, schedule = config.width, config.schedule
        self.offsets = schedule.offsets
        self.word_embed = Linear(config.latent_channels, c)
        self.class_emb = Embedding(config.num_classes + 1, c)
        self.pos_start = _zeros(1, schedule.tokens[0], c)
        self.pos_1LC = _zeros(1, schedule.length, c)
        self.lvl_embed = Embedding(len(schedule), c)
        if config.shared_adaln:
            self.shared_ada_lin = nn.SequentialCell(SiLU(), Linear(c, 6 * c))
        self.blocks = nn.CellList([Block(config, backend) for _ in range(config.depth)])
        self.head_nm = HeadNorm(config)
        self.head = Linear(c, config.vocab_size)
        self.scale_of_token = Tensor(schedule.scale_of_token)
        for _, cell in self.cells_and_names():
            if isinstance(cell, fast.Linear):
                cell.dtype = backend.dtype
        if seed is not None:
            initialize(self, seed, gate_gain)
        self._compiled = TransformerPasses(self)

    # ------------------------------------------------------------ files
    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: BackendConfig = BackendConfig(),  # noqa: B008 (frozen)
    ) -> "Transformer":
        """Reads a native file; raises InputError unless it holds a complete transformer."""
        checkpoint = open_checkpoint(path, "transformer", TransformerConfig)
        checkpoint.check(transformer_shapes(checkpoint.config))
        config, metadata, source = checkpoint.config, checkpoint.metadata, quoted(path)
        class_names = parse_class_names(metadata, source, config.num_classes)
        tokenizer_checksum = noted_checksum(metadata, "tokenizer", source)
        model, tensors = cls(config, None, backend), checkpoint.read()
        model.class_names, model.tokenizer_checksum = class_names, tokenizer_checksum
        for name, parameter in model.parameters_and_names():
            parameter.set_data(Tensor.from_numpy(tensors.pop(name)))
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, configuration, class names and the tokenizer's checksum, atomically.

        Raises InputError if the class names are not one string for each class.
        """
        tensors, metadata = self.published_tensors(), self.metadata()
        write_checkpoint(path, "transformer", self.config, tensors, metadata)

    def metadata(self) -> dict[str, str]:
        """What a native file says besides the weights.

        Raises InputError if the class names are not one string for each class.
        """
        metadata = {}
        if self.class_names is not None:
            names = check_class_names(self.class_names, self.config.num_classes)
            metadata["class_names"] = json.dumps(names)
        if self.tokenizer_checksum is not None:
            metadata["tokenizer"] = self.tokenizer_checksum
        return native_metadata("transformer", self.config, metadata)

    def published_tensors(self) -> dict[str, np.ndarray]:
        """Published name -> float32 array in the published layout."""
        return {name: p.asnumpy() for name, p in self.parameters_and_names()}

    # ------------------------------------------------------------ all scales at once
    def logits(self, labels: Array, inputs: Array) -> Tensor:
        """Teacher-forced logits (B, L, V) of all scales, without any dropout.

        labels: (B,) in [0, num_classes], where num_classes means "no class". inputs: what the
        tokenizer's ``teacher_inputs`` gives, (B, L - tokens of scale 0, z).
        Raises InputError for a label out of range, and for inputs of another shape or that are not
        finite floats.
        """
        with self._compiled.turn():
            labels_b = self.check_labels(labels)
            rest = self.config.schedule.length - self.config.schedule.tokens[0]
            expected = (labels_b.shape[0], rest, self.config.latent_channels)
            check_shape("inputs", np.shape(inputs), expected)
            inputs_blz = checked_floats("inputs", inputs, source="Tokenizer.teacher_inputs")
            return self._compiled.logits(labels_b, Tensor(inputs_blz))

    def check_labels(self, labels: Array) -> Tensor:
        """Labels as an int32 tensor (B,); raises InputError for one out of range."""
        labels_b = np.asarray(labels)
        if labels_b.ndim != 1 or labels_b.dtype.kind not in "iu":
            raise InputError(
                f"labels have shape {labels_b.shape} and dtype {labels_b.dtype}; expected (B,) ints"
            )
        if not len(labels_b):
            raise InputError("labels are empty; expected at least one")
        for label in labels_b:
            if not 0 <= label <= self.config.num_classes:
                raise InputError(
                    f"labels hold {label}; expected 0 to {self.config.num_classes - 1} "
                    f"(or {self.config.num_classes} for no class)"
                )
        return Tensor(labels_b.astype(np.int32))

    def construct(
        self, labels_b: Tensor, inputs_blz: Tensor, keep_d2b11: Tensor | None = None
    ) -> Tensor:
        """As ``logits``, for training: unchecked, with drop path, of all or the first few scales.

        keep_d2b11: 0 (dropped) or 1 / (1 - rate) for each block, branch and image.
        """
        class_bc = self.class_emb(labels_b)
        start_blc = class_bc.expand_dims(1) + self.pos_start
        x_blc = ops.concat((start_blc, self.word_embed(inputs_blz)), 1)
        length = x_blc.shape[1]  # of the first few scales, while the later ones are not trained yet
        level_lc = self.lvl_embed(self.scale_of_token[:length])
        x_blc = x_blc + level_lc + self.pos_1LC[:, :length]
        modulations = self.modulations(class_bc)
        for i in range(len(self.blocks)):
            keep = None if keep_d2b11 is None else keep_d2b11[i]
            x_blc, _ = self.blocks[i](x_blc, modulations[i], keep)
        return self.head(self.head_nm(x_blc, class_bc))

    # ------------------------------------------------------------ scale by scale
    def modulations(self, class_bc: Tensor) -> tuple[Tensor, ...]:
        """The six modulation vectors of each block: depth tensors (B, 6, C).

        They depend only on the class, so a generation computes them once.
        """
        b, c = class_bc.shape
        if self.config.shared_adaln:
            shared_b6c = self.shared_ada_lin(class_bc).reshape(b, 6, c)
            return tuple(shared_b6c + block.ada_gss.reshape(1, 6, c) for block in self.blocks)
        return tuple(block.ada_lin(class_bc).reshape(b, 6, c) for block in self.blocks)

    def condition(self, labels: Array) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Class embeddings (B, C) and the modulations of all blocks.

        Raises InputError for a label out of range.
        """
        with self._compiled.turn():
            return self._compiled.condition(self.check_labels(labels))

    def extend(
        self,
        k: int,
        inputs_blz: Tensor | None,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        cache: Cache | None,
    ) -> tuple[Tensor, Cache]:
        """Logits (B, s_y * s_x, V) of scale k, and the cache grown by it.

        inputs_blz: None at scale 0, which starts from the class alone. cache: None at scale 0.
        Raises InputError for a cache that is full, of another batch or not at this scale, and
        for inputs of another shape.
        """
        with self._compiled.turn():
            batch, schedule = class_bc.shape[0], self.config.schedule
            cache = cache or self.new_cache(batch)
            cache.check(schedule, k, batch)
            if (inputs_blz is None) != (k == 0):
                raise InputError(
                    f"inputs of scale {k} are {'None' if k else 'given'}; expected them at "
                    "every scale but 0"
                )
            if inputs_blz is None:
                x_blc = class_bc.expand_dims(1) + self.pos_start
            else:
                expected = (batch, schedule.tokens[k], self.config.latent_channels)
                check_shape(f"inputs of scale {k}", np.shape(inputs_blz), expected)
                x_blc = self.word_embed(inputs_blz)
            begin, end = self.offsets[k], self.offsets[k + 1]
            x_blc = x_blc + self.lvl_embed.weight[k] + self.pos_1LC[:, begin:end]
            # plain tuples would be compiled in as constants
            modulations, past = ms.mutable(modulations), cache.tensors and ms.mutable(cache.tensors)
            k_input = self.blocks[0].attn.attend.graph_input(k)
            logits, grown = self._compiled.extend(k_input, x_blc, class_bc, modulations, past)
            return logits, cache.after(grown)

    def new_cache(self, batch: int) -> Cache:
        """The cache of ``batch`` images before the first scale."""
        with one_at_a_time:
            empty = [block.attn.attend.empty_cache(batch) for block in self.blocks]
        return Cache(batch, tuple(tensor for tensors in empty for tensor in tensors))

    def grow(
        self,
        k: int | Tensor,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """The uncompiled body of ``extend``, after the embedding of the tokens.

        k: as the attention's ``graph_input`` gives it.
        """
        grown = ()
        each = len(past) // len(self.blocks)
        for i in range(len(self.blocks)):
            of_block = past[each * i : each * (i + 1)]
            x_blc, of_block = self.blocks[i](x_blc, modulations[i], None, k, of_block)
            grown = grown + of_block
        return self.head(self.head_nm(x_blc, class_bc)), grown
