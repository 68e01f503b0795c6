"""The next-scale transformer of VAR (arXiv:2404.02905, section 3.2 and appendix).

A block is attention and a feed-forward network, each behind an adaptive layer norm whose shift,
scale and gate come from the class (AdaLN, arXiv:2212.09748). Cells and parameters have the names of
the published checkpoints; ``initialization.py`` draws them, ``attention/`` attends.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, z latent channels,
v vocabulary. ``k`` is the index of a scale, from 0.
"""

import json
import os

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
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

from var_transformer.attention import BackendConfig, Cache, KeysValues
from var_transformer.model import operators as fast
from var_transformer.model.block import Block, Embedding, Linear, SiLU, zeros
from var_transformer.model.checks import check_class_names, parse_class_names
from var_transformer.model.compiled_passes import TransformerPasses
from var_transformer.model.config import TransformerConfig
from var_transformer.model.initialization import initialize
from var_transformer.model.shapes import transformer_shapes


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
        self.pos_start = zeros(1, schedule.tokens[0], c)
        self.pos_1LC = zeros(1, schedule.length, c)
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
