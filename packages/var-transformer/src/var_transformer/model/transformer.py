"""The next-scale transformer of VAR (arXiv:2404.02905, section 3.2 and appendix).

Reads like the paper: a block is attention and a feed-forward network, each behind an adaptive
layer norm whose shift, scale and gate come from the class (AdaLN, arXiv:2212.09748). Cells and
parameters are named as in the published checkpoints.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, z latent channels,
v vocabulary.
"""

import json
import math
import os

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer.common import (
    Array,
    CompiledPasses,
    InputError,
    check_shape,
    checked_floats,
    noted_checksum,
    one_at_a_time,
    open_checkpoint,
    quoted,
    write_checkpoint,
)

from var_transformer import attention
from var_transformer.attention import BackendConfig, Cache
from var_transformer.model import operators as fast
from var_transformer.model.checks import check_class_names, parse_class_names
from var_transformer.model.config import TransformerConfig
from var_transformer.model.shapes import transformer_shapes

Rng = np.random.Generator | None
Kept = tuple[Tensor, ...]  # what attention keeps of the scales so far

_MAX_LOG_SCALE = math.log(100)  # of the learned attention scale


def _normal(rng: Rng, shape: tuple[int, ...], std: float) -> Parameter:
    """Drawn from N(0, std), as the published truncation at +-2 leaves it; zeros without rng."""
    if rng is None or std == 0:
        # the array itself, not a copy: memory that nobody has written to takes no room
        return Parameter(Tensor.from_numpy(np.zeros(shape, np.float32)))
    return Parameter(Tensor((std * rng.standard_normal(shape)).astype(np.float32)))


class Linear(nn.Cell):
    """An affine map of the last axis; ``weight`` is (outputs, inputs)."""

    def __init__(
        self, rng: Rng, inputs: int, outputs: int, std: float, has_bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = _normal(rng, (outputs, inputs), std)
        self.bias = _normal(None, (outputs,), 0) if has_bias else None
        self.linear = fast.Linear()

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias)


class Embedding(nn.Cell):
    """A table of learned vectors; ``weight`` is (entries, C)."""

    def __init__(self, rng: Rng, entries: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = _normal(rng, (entries, width), std)

    def construct(self, ids: Tensor) -> Tensor:
        return ops.gather(self.weight, ids, 0)


class SiLU(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x)


class Attention(nn.Cell):
    """Multi-head self-attention; with QK-L2 norm, cosine scores times a learned scale a head.

    The scale is exp(min(scale_mul, log 100)); without QK-L2 it is 0.25 / sqrt(d), as published.
    """

    def __init__(
        self, config: TransformerConfig, rng: Rng, std: float, backend: BackendConfig
    ) -> None:
        super().__init__()
        c, h = config.width, config.heads
        self.mat_qkv = Linear(rng, c, 3 * c, std, has_bias=False)
        self.q_bias = _normal(None, (c,), 0)
        self.v_bias = _normal(None, (c,), 0)
        if config.qk_l2_norm:
            self.scale_mul_1H11 = Parameter(Tensor(np.full((1, h, 1, 1), math.log(4), np.float32)))
        else:
            self.scale_mul_1H11 = None
        self.fixed_scale = 0.25 / math.sqrt(c // h)
        self.proj = Linear(rng, c, c, std / math.sqrt(2 * config.depth))
        self.attend = attention.build(config.schedule, h, c // h, config.qk_l2_norm, backend)

    def construct(
        self, x_blc: Tensor, index: int | Tensor | None, past: Kept
    ) -> tuple[Tensor, Kept]:
        """Attends to x and, where it is the one scale ``index``, to the scales before it."""
        qkv_bias = ops.concat((self.q_bias, ops.zeros_like(self.q_bias), self.v_bias))
        qkv_bl3c = self.mat_qkv.linear(x_blc, self.mat_qkv.weight, qkv_bias)
        scale = self.fixed_scale
        if self.scale_mul_1H11 is not None:
            scale = ops.exp(ops.minimum(self.scale_mul_1H11, _MAX_LOG_SCALE))
        mixed_blc, kept = self.attend.projected(qkv_bl3c, scale, index, past)
        return self.proj(mixed_blc), kept


class FeedForward(nn.Cell):
    """Two affine maps with a GELU (tanh form) between, four times as wide inside."""

    def __init__(self, config: TransformerConfig, rng: Rng, std: float) -> None:
        super().__init__()
        c = config.width
        self.fc1 = Linear(rng, c, 4 * c, std)
        self.fc2 = Linear(rng, 4 * c, c, std / math.sqrt(2 * config.depth))
        self.gelu = fast.Gelu()

    def construct(self, x_blc: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x_blc)))


class Block(nn.Cell):
    """x + gate * attention(modulated_norm(x)), then the same with the feed-forward network."""

    def __init__(
        self, config: TransformerConfig, rng: Rng, std: float, backend: BackendConfig
    ) -> None:
        super().__init__()
        self.modulated_norm, self.gated_sum = fast.ModulatedNorm(), fast.GatedSum()
        self.attn = Attention(config, rng, std, backend)
        self.ffn = FeedForward(config, rng, std)
        if config.shared_adaln:
            self.ada_gss = _normal(rng, (1, 1, 6, config.width), config.width**-0.5)
        else:
            self.ada_lin = nn.SequentialCell(
                SiLU(), Linear(rng, config.width, 6 * config.width, std)
            )

    def construct(
        self,
        x_blc: Tensor,
        modulation_b6c: Tensor,
        keep_2b11: Tensor | None = None,
        index: int | Tensor | None = None,
        past: Kept = (),
    ) -> tuple[Tensor, Kept]:
        gate1, gate2, scale1, scale2, shift1, shift2 = ops.split(modulation_b6c, 1, 1)
        if keep_2b11 is not None:  # drop path: a dropped image passes the block unchanged
            gate1, gate2 = gate1 * keep_2b11[0], gate2 * keep_2b11[1]
        attended, kept = self.attn(self.modulated_norm(x_blc, scale1, shift1), index, past)
        x_blc = self.gated_sum(x_blc, attended, gate1)
        expanded = self.ffn(self.modulated_norm(x_blc, scale2, shift2))
        return self.gated_sum(x_blc, expanded, gate2), kept


class HeadNorm(nn.Cell):
    """The adaptive layer norm before the logits."""

    def __init__(self, config: TransformerConfig, rng: Rng, std: float) -> None:
        super().__init__()
        self.modulated_norm = fast.ModulatedNorm()
        self.ada_lin = nn.SequentialCell(SiLU(), Linear(rng, config.width, 2 * config.width, std))

    def construct(self, x_blc: Tensor, class_bc: Tensor) -> Tensor:
        scale_b1c, shift_b1c = ops.split(
            self.ada_lin(class_bc).expand_dims(1), class_bc.shape[-1], 2
        )
        return self.modulated_norm(x_blc, scale_b1c, shift_b1c)


class _Pass(nn.Cell):
    """A compiled pass of a transformer.

    Each is a cell of its own: MindSpore 2.10 mixes up the graphs of a cell that has several
    compiled methods, and its compile cache loses the weights that a compiled closure reads.
    """

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
    @ms.jit
    def construct(
        self,
        place: int | Tensor,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: Kept,
    ) -> tuple[Tensor, Kept]:
        return self.model.grow(place, x_blc, class_bc, modulations, past)


def _extend_any(model: "Transformer") -> _Pass:
    """``_Extend`` in one graph for all scales."""
    any_length = Tensor(shape=(None, None, model.config.width), dtype=ms.float32)

    class ExtendAny(_Pass):
        @ms.enable_dynamic(x_blc=any_length)
        @ms.jit
        def construct(
            self,
            place: Tensor,
            x_blc: Tensor,
            class_bc: Tensor,
            modulations: tuple[Tensor, ...],
            past: Kept,
        ) -> tuple[Tensor, Kept]:
            return self.model.grow(place, x_blc, class_bc, modulations, past)

    return ExtendAny(model)


class _Compiled(CompiledPasses):
    def __init__(self, model: "Transformer") -> None:
        super().__init__(model)
        self.logits, self.condition = _Logits(model), _Condition(model)
        one_graph = isinstance(model.blocks[0].attn.attend.place(0), Tensor)
        self.extend = _extend_any(model) if one_graph else _Extend(model)


class Transformer(nn.Cell):
    """VAR's transformer: class label and token maps so far -> logits of the next token map.

    Arrays go in as NumPy arrays or MindSpore tensors and come out as MindSpore tensors.
    Weights are drawn from ``seed`` as published; ``Transformer.load`` reads them from a file.
    ``backend`` says which attention computes; by default what is right for the device.

    Weights may be changed at any time in MindSpore's ways, and threads may share a model:
    ``logits``, ``condition`` and ``extend`` run one at a time (``construct`` does not wait).

    ``class_names`` (one for each class) and ``tokenizer_checksum`` (of the tokenizer whose tokens
    it predicts) are None where nobody knows them, as in published weights. Set them before
    ``save``, and the file carries them.
    """

    class_names: tuple[str, ...] | None = None
    tokenizer_checksum: str | None = None

    def __init__(
        self,
        config: TransformerConfig,
        seed: int | None = 0,
        backend: BackendConfig = BackendConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        rng = None if seed is None else np.random.default_rng(seed)
        c, std = config.width, math.sqrt(1 / (3 * config.width))
        self.config = config
        schedule = config.schedule
        self.offsets = schedule.offsets
        self.word_embed = Linear(rng, config.latent_channels, c, std)
        self.class_emb = Embedding(rng, config.num_classes + 1, c, std)
        self.pos_start = _normal(rng, (1, schedule.tokens[0], c), std)
        self.pos_1LC = _normal(rng, (1, schedule.length, c), std)
        self.lvl_embed = Embedding(rng, len(schedule), c, std)
        if config.shared_adaln:
            self.shared_ada_lin = nn.SequentialCell(SiLU(), Linear(rng, c, 6 * c, std))
        self.blocks = nn.CellList([Block(config, rng, std, backend) for _ in range(config.depth)])
        self.head_nm = HeadNorm(config, rng, std)
        self.head = Linear(rng, c, config.vocab_size, 0.02 * std)  # init_head
        self.scale_of_token = Tensor(schedule.scale_of_token)
        for _, cell in self.cells_and_names():
            if isinstance(cell, fast.Linear):
                cell.dtype = backend.dtype
        self._compiled = _Compiled(self)
        if rng is not None:
            self._scale_modulation()

    def _scale_modulation(self) -> None:
        """Published initialization of AdaLN: gates times 1e-5, scales and shifts times 0.5."""
        c = self.config.width
        for block in self.blocks:
            modulation = block.ada_gss if self.config.shared_adaln else block.ada_lin[1].weight
            array_6 = modulation.asnumpy().reshape(6, c, -1).copy()
            array_6[:2] *= 1e-5  # init_adaln_gamma
            array_6[2:] *= 0.5  # init_adaln
            modulation.set_data(Tensor(array_6.reshape(modulation.shape)))
        head = self.head_nm.ada_lin[1].weight
        head.set_data(Tensor(head.asnumpy() * np.float32(0.5)))

    # ------------------------------------------------------------ files
    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: BackendConfig = BackendConfig(),  # noqa: B008 (frozen)
    ) -> "Transformer":
        """Reads a native file; raises InputError for one that is not a whole transformer."""
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

        Raises InputError where the class names are not one string for each class.
        """
        metadata = {}
        if self.class_names is not None:
            names = check_class_names(self.class_names, self.config.num_classes)
            metadata["class_names"] = json.dumps(names)
        if self.tokenizer_checksum is not None:
            metadata["tokenizer"] = self.tokenizer_checksum
        write_checkpoint(path, "transformer", self.config, self.published_tensors(), metadata)

    def published_tensors(self) -> dict[str, np.ndarray]:
        """Published name -> float32 array in the published layout."""
        return {name: p.asnumpy() for name, p in self.parameters_and_names()}

    # ------------------------------------------------------------ all scales at once
    def logits(self, labels: Array, inputs: Array) -> Tensor:
        """Teacher-forced logits (B, L, V) of all scales, without any dropout.

        labels: (B,) in [0, num_classes], where num_classes means "no class". inputs: what the
        tokenizer's ``teacher_inputs`` gives, (B, L - tokens of scale 0, z).
        Raises InputError for a label out of range, and for inputs of another shape or that are no
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

        keep_d2b11: for each block, branch and image 0 (dropped) or 1 / (1 - rate).
        """
        class_bc = self.class_emb(labels_b)
        start_blc = class_bc.expand_dims(1) + self.pos_start
        x_blc = ops.concat((start_blc, self.word_embed(inputs_blz)), 1)
        length = x_blc.shape[1]  # of the first few scales, where the later ones are not trained yet
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

        They depend on the class alone, so that a generation computes them once.
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
        scale: int,
        inputs_blz: Tensor | None,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        cache: Cache | None,
    ) -> tuple[Tensor, Cache]:
        """Logits (B, s_y * s_x, V) of one scale, and the cache grown by it.

        inputs_blz: None at scale 0, which starts from the class alone. cache: None at scale 0.
        Raises InputError for a cache that is full, of another batch or not at this scale, and
        for inputs of another shape.
        """
        with self._compiled.turn():
            batch, schedule = class_bc.shape[0], self.config.schedule
            cache = cache or self.new_cache(batch)
            cache.check(schedule, scale, batch)
            if (inputs_blz is None) != (scale == 0):
                raise InputError(
                    f"inputs of scale {scale} are {'None' if scale else 'given'}; expected them at "
                    "every scale but 0"
                )
            if inputs_blz is None:
                x_blc = class_bc.expand_dims(1) + self.pos_start
            else:
                expected = (batch, schedule.tokens[scale], self.config.latent_channels)
                check_shape(f"inputs of scale {scale}", np.shape(inputs_blz), expected)
                x_blc = self.word_embed(inputs_blz)
            begin, end = self.offsets[scale], self.offsets[scale + 1]
            x_blc = x_blc + self.lvl_embed.weight[scale] + self.pos_1LC[:, begin:end]
            place = self.blocks[0].attn.attend.place(scale)
            # plain tuples would be compiled in as constants
            modulations, past = ms.mutable(modulations), cache.tensors and ms.mutable(cache.tensors)
            logits, grown = self._compiled.extend(place, x_blc, class_bc, modulations, past)
            return logits, cache.after(grown)

    def new_cache(self, batch: int) -> Cache:
        """The cache of ``batch`` images before the first scale."""
        with one_at_a_time:
            empty = [block.attn.attend.empty_cache(batch) for block in self.blocks]
        return Cache(batch, tuple(tensor for tensors in empty for tensor in tensors))

    def grow(
        self,
        place: int | Tensor,
        x_blc: Tensor,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        past: Kept,
    ) -> tuple[Tensor, Kept]:
        """The uncompiled body of ``extend``, after the embedding of the tokens."""
        grown = ()
        each = len(past) // len(self.blocks)
        for i in range(len(self.blocks)):
            of_block = past[each * i : each * (i + 1)]
            x_blc, kept = self.blocks[i](x_blc, modulations[i], None, place, of_block)
            grown = grown + kept
        return self.head(self.head_nm(x_blc, class_bc)), grown
