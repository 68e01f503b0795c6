"""The next-scale transformer of VAR (arXiv:2404.02905, section 3.2 and appendix).

A block is attention and a feed-forward network, each behind an adaptive layer norm whose shift,
scale and gate come from the class (AdaLN, arXiv:2212.09748). Cells and parameters have the names of
the published checkpoints; ``initialization.py`` draws them, ``attention/`` attends.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, z latent channels,
v vocabulary. ``k`` is the index of a scale, from 0.
"""

import json
import os
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer import layout
from var_tokenizer.common import (
    Array,
    check_shape,
    checked_floats,
    native_metadata,
    noted_checksum,
    one_at_a_time,
    open_checkpoint,
    quoted,
    write_checkpoint,
)

from var_transformer.attention import BackendConfig, Cache, KeysValues, Place
from var_transformer.model import operators as fast
from var_transformer.model.block import (
    Block,
    Embedding,
    Given,
    Linear,
    Modulation,
    SiLU,
    scale_of,
    with_scale,
    zeros,
)
from var_transformer.model.checks import (
    check_class_names,
    check_labels,
    check_pass,
    parse_class_names,
)
from var_transformer.model.compiled_passes import TransformerPasses
from var_transformer.model.config import TransformerConfig
from var_transformer.model.initialization import initialize
from var_transformer.model.restoration import pass_some
from var_transformer.model.shapes import transformer_shapes


class HeadNorm(nn.Cell):
    """The adaptive layer norm before the logits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulated_norm, self.parts = fast.ModulatedNorm(), layout.parts()
        self.ada_lin = Modulation(config.width, 2)

    def construct(self, x_blc: Tensor, class_bc: Tensor, given: Given = ()) -> Tensor:
        scale_b1c, shift_b1c = self.parts(
            self.ada_lin(class_bc, given).expand_dims(1), class_bc.shape[-1], 2
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
    device_graphs: Any = None  # what a generation on a device compiled of this model

    def __init__(
        self,
        config: TransformerConfig,
        seed: int | None = 0,
        backend: BackendConfig = BackendConfig(),  # noqa: B008 (frozen)
        gate_gain: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        c, schedule = config.width, config.schedule
        self.offsets = schedule.offsets
        self.word_embed = Linear(config.latent_channels, c)
        self.class_emb = Embedding(config.num_classes + 1, c)
        self.pos_start = zeros(1, schedule.tokens[0], c)
        self.pos_1LC = zeros(1, schedule.length, c)
        self.lvl_embed = Embedding(len(schedule), c)
        if config.shared_adaln:
            self.shared_ada_lin = Modulation(c, 6)
        self.blocks = nn.CellList([Block(config, backend) for _ in range(config.depth)])
        self.head_nm = HeadNorm(config)
        self.head = Linear(c, config.vocab_size)
        self.silu, self.first, self.parts = SiLU(), fast.First(), layout.parts()
        self.fork, self.for_blocks = layout.fork(), layout.forks(config.depth)
        self.scale_of_token = Tensor(schedule.scale_of_token)
        for _, cell in self.cells_and_names():
            if isinstance(cell, fast.Linear | fast.ModulatedNorm):
                cell.dtype = backend.dtype
        if seed is not None:
            initialize(self, seed, gate_gain)
        self._compiled = TransformerPasses(self)

    def weights(self) -> tuple[tuple[Parameter, ...], ...]:
        """The parameters by part, as ``construct`` takes others in their place.

        The first part is outside the blocks. Each block has two: those of its modulation, and what
        its ``construct`` takes.
        """
        modulations = [
            tuple(p for p in b.trainable_params() if "ada_" in p.name) for b in self.blocks
        ]
        blocks = [
            tuple(p for p in b.trainable_params() if "ada_" not in p.name) for b in self.blocks
        ]
        inside = {p.name for part in (*modulations, *blocks) for p in part}
        outside = tuple(p for p in self.trainable_params() if p.name not in inside)
        return (outside, *modulations, *blocks)

    @property
    def attention_candidates(self) -> tuple[str, ...]:
        """The calls (see ``BackendConfig``) that all scales at once may be attended in here."""
        return self.blocks[0].attn.attend.candidates

    def use_attention(self, calls: str) -> None:
        """Attends all scales at once in other calls, in graphs that are compiled from now on.

        Raises InputError for calls that this device does not have.
        """
        for block in self.blocks:
            block.attn.attend.use(calls)

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

        They are float32; on an Ascend, of the type that the model computes its products in.

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
        return check_labels(labels, self.config.num_classes)

    def construct(
        self,
        labels_b: Tensor,
        inputs_blz: Tensor,
        keep_d2b11: Tensor | None = None,
        given: tuple[Given, ...] = (),
    ) -> Tensor:
        """As ``logits``, for training: unchecked, with drop path, of all or the first few scales.

        keep_d2b11: 0 (dropped) or 1 / (1 - rate) for each block, branch and image. given: arrays in
        the place of ``weights()``, part by part; () for the parameters.
        """
        depth = len(self.blocks)
        if len(given) == 0:
            x_blc, class_bc = self.embedded(labels_b, inputs_blz)
            modulations = self.modulations(class_bc)
            for i in range(depth):
                keep = None if keep_d2b11 is None else keep_d2b11[i]
                x_blc, _ = self.blocks[i](x_blc, modulations[i], keep)
            return self.head(self.head_nm(x_blc, class_bc))
        x_blc, class_bc, modulations, scales = self.shared(
            labels_b, inputs_blz, given[0], given[1 : depth + 1], given[depth + 1 :]
        )
        keeps = self.keeps(keep_d2b11, class_bc.dtype)
        for i in range(depth):
            of_block = with_scale(given[depth + 1 + i], scales, i)
            x_blc, _ = self.blocks[i](x_blc, modulations[i], keeps[i], None, (), of_block)
        return self.head(self.head_nm(x_blc, class_bc, given[0][-4:-2]), given[0][-2:])

    def embedded(
        self, labels_b: Tensor, inputs_blz: Tensor, given: Given = ()
    ) -> tuple[Tensor, Tensor]:
        """What the first block reads, (B, L, C), and the class embeddings (B, C)."""
        start_1lc = self.pos_start if len(given) == 0 else given[0]
        position_1lc = self.pos_1LC if len(given) == 0 else given[1]
        class_bc = self.class_emb(labels_b, given[4:5]).astype(start_1lc.dtype)
        class_bc, same_bc = self.fork(class_bc)
        start_blc = class_bc.expand_dims(1) + start_1lc
        words_blc = self.word_embed(inputs_blz, given[2:4])
        x_blc = ops.concat((start_blc, words_blc.astype(start_blc.dtype)), 1)
        length = x_blc.shape[1]  # of the first few scales, while the later ones are not trained yet
        level_lc = self.lvl_embed(self.first(self.scale_of_token, length, 0), given[5:6])
        return x_blc + level_lc + self.first(position_1lc, length, 1), same_bc

    def shared(
        self,
        labels_b: Tensor,
        inputs_blz: Tensor,
        outside: Given,
        of_modulations: tuple[Given, ...],
        of_blocks: tuple[Given, ...],
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the blocks read, of weights as ``construct`` is given them.

        x (B, L, C), the class behind its SiLU (B, C) in the type of products, and for each block
        its modulation (B, 6, C) and scale of scores (1, H, 1, 1), if it learns one.
        """
        x_blc, class_bc = self.embedded(labels_b, inputs_blz, outside[:6])
        class_bc, same_bc = self.fork(self.silu(class_bc).astype(outside[2].dtype))
        modulations = self.modulations(same_bc, outside[6:8], of_modulations)
        if not self.config.qk_l2_norm:
            return x_blc, class_bc, modulations, ()
        logs = ()
        for weights in of_blocks:
            logs = (*logs, weights[2])  # type: ignore[assignment]
        return x_blc, class_bc, modulations, self.parts(scale_of(ops.concat(logs)), 1, 0)

    def keeps(self, keep_d2b11: Tensor, dtype: ms.Type) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each block what its two branches are multiplied by, (B, 1, 1) each."""
        depth, _, b, _, _ = keep_d2b11.shape
        parts = self.parts(keep_d2b11.astype(dtype).reshape(2 * depth * b, 1, 1), b, 0)
        pairs = ()
        for i in range(depth):
            pairs = (*pairs, (parts[2 * i], parts[2 * i + 1]))  # type: ignore[assignment]
        return pairs

    # ------------------------------------------------------------ scale by scale
    def modulations(
        self, class_bc: Tensor, shared: Given = (), given: tuple[Given, ...] = ()
    ) -> tuple[Tensor, ...]:
        """The six modulation vectors of each block: depth tensors (B, 6, C).

        They depend only on the class, so a generation computes them once. shared, given: arrays in
        the place of the parameters, of all blocks and of each.
        """
        b, c = class_bc.shape
        vectors = ()
        if self.config.shared_adaln:
            shared_b6c = self.for_blocks(self.shared_ada_lin(class_bc, shared).reshape(b, 6, c))
            for i in range(len(self.blocks)):
                own = given[i][0] if len(given) > 0 else self.blocks[i].ada_gss
                vectors = (*vectors, shared_b6c[i] + own.reshape(1, 6, c))  # type: ignore[assignment]
        else:
            same_bc = self.for_blocks(class_bc)
            for i in range(len(self.blocks)):
                of_block = given[i] if len(given) > 0 else ()
                own_b6c = self.blocks[i].ada_lin(same_bc[i], of_block).reshape(b, 6, c)
                vectors = (*vectors, own_b6c)  # type: ignore[assignment]
        return vectors

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
        Raises InputError for a cache that is full, of another batch, not at this scale or without
        tokens that ``extend_some`` left out, and for inputs of another shape.
        """
        with self._compiled.turn():
            x_blc, cache = self._embedded_scale(k, inputs_blz, class_bc, cache)
            cache.check_whole()
            # plain tuples would be compiled in as constants
            modulations, past = ms.mutable(modulations), cache.tensors and ms.mutable(cache.tensors)
            k_input = self.blocks[0].attn.attend.graph_input(k)
            logits, grown = self._compiled.extend(k_input, x_blc, class_bc, modulations, past)
            return logits, cache.after(grown)

    def extend_some(
        self,
        k: int,
        inputs_blz: Tensor | None,
        class_bc: Tensor,
        modulations: tuple[Tensor, ...],
        cache: Cache | None,
        some_bn: np.ndarray | None = None,
    ) -> tuple[Tensor, Cache]:
        """As ``extend``, but only some tokens pass through the blocks (arXiv:2503.23367).

        The others get what the blocks added to the tokens of the last scale that was passed whole,
        resized, and have no keys and values. So a generation passes each scale by this or each by
        ``extend``. some_bn: ascending places in the scale, as many for each image; None for all.
        """
        with self._compiled.turn():
            x_blc, cache = self._embedded_scale(k, inputs_blz, class_bc, cache)

            def through_blocks(
                x_bnc: np.ndarray, span: tuple[int, int]
            ) -> tuple[np.ndarray, KeysValues]:
                place = self.blocks[0].attn.attend.graph_input(k, span)
                given = class_bc, ms.mutable(modulations), past and ms.mutable(past)
                passed_bnc, grown = self._compiled.blocks(place, Tensor(x_bnc), *given)
                return passed_bnc.asnumpy(), grown

            past, schedule = cache.tensors, self.config.schedule
            whole_blc, cache = pass_some(
                schedule, k, x_blc.asnumpy(), cache, some_bn, through_blocks
            )
            return self._compiled.head(Tensor(whole_blc), class_bc), cache

    def _embedded_scale(
        self, k: int, inputs_blz: Tensor | None, class_bc: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """What the first block reads of scale k, (B, s_y * s_x, C), and the cache before it."""
        batch = class_bc.shape[0]
        cache = cache or self.new_cache(batch)
        check_pass(self.config, k, inputs_blz, batch, cache)
        if inputs_blz is None:
            x_blc = class_bc.expand_dims(1) + self.pos_start
        else:
            x_blc = self.word_embed(inputs_blz)
        begin, end = self.offsets[k], self.offsets[k + 1]
        return x_blc + self.lvl_embed.weight[k] + self.pos_1LC[:, begin:end], cache

    def new_cache(self, batch: int) -> Cache:
        """The cache of ``batch`` images before the first scale."""
        with one_at_a_time:
            empty = [block.attn.attend.empty_cache(batch) for block in self.blocks]
        return Cache(batch, tuple(tensor for tensors in empty for tensor in tensors))

    def grow(
        self,
        k: Place,
        x_blc: Tensor,
        modulations: tuple[Tensor, ...],
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        """The blocks of ``extend``, uncompiled. k: as the attention's ``graph_input`` gives it."""
        grown = ()
        each = len(past) // len(self.blocks)
        for i in range(len(self.blocks)):
            of_block = past[each * i : each * (i + 1)]
            x_blc, of_block = self.blocks[i](x_blc, modulations[i], None, k, of_block)
            grown = grown + of_block
        return x_blc, grown

    def to_logits(self, x_blc: Tensor, class_bc: Tensor) -> Tensor:
        """Of what the blocks give, uncompiled."""
        return self.head(self.head_nm(x_blc, class_bc))
