"""The tokenizer, images <-> token maps, and the part of it that the transformer needs."""

import os
from collections.abc import Sequence
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from var_tokenizer.autoencoder import Conv2d, Decoder, Encoder
from var_tokenizer.common import CompiledPasses, InputError, checkpoint, checks, quoted
from var_tokenizer.common.checks import Array
from var_tokenizer.common.versions import memory_address
from var_tokenizer.config import TokenizerConfig
from var_tokenizer.layout import maps, parts, pixels
from var_tokenizer.quantizer import MultiScaleQuantizer
from var_tokenizer.schedule import ScaleSchedule
from var_tokenizer.shapes import tokenizer_shapes


class LatentMaps(Protocol):
    """Between ids and latent maps, in the graphs of a generation on a device: nothing is checked.

    A cell, whose methods are compiled; k is a constant of each graph. Latent maps are in the layout
    of the device.
    """

    def contribution(self, ids_bl: Tensor, k: int) -> Tensor:
        """What the ids of scale k, (B, s_y * s_x), add to the latent map."""

    def downsample(self, latent_byxz: Tensor, k: int) -> Tensor:
        """The latent map resized to scale k: (B, s_y * s_x, z)."""


class LatentCodec(Protocol):
    """All that the transformer needs from a tokenizer. It never sees the autoencoder.

    ``quantize`` and ``decode_own`` are used where a generation stays on the device: not on a CPU.
    """

    @property
    def schedule(self) -> ScaleSchedule: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def quantize(self) -> LatentMaps: ...

    def belongs_to(self, checksum: str) -> bool:
        """Whether these are the weights that a transformer knows by their checksum."""

    def add_scale(self, latent: Tensor | None, tokens: Array, k: int) -> Tensor:
        """The latent map with the tokens of scale k added to it.

        tokens: ids (B, s_y * s_x), or weights (B, s_y * s_x, V) that mix the codes.
        """

    def scale_input(self, latent: Tensor, k: int) -> Tensor:
        """What the transformer reads to predict scale k: (B, s_y * s_x, z)."""

    def decode_latent(self, latent: Tensor) -> Tensor:
        """A latent map as images in [-1, 1], channels last as the map: (B, H, W, 3)."""

    def decode_own(self, latent: Tensor) -> Tensor:
        """``decode_latent`` of a map that ``quantize`` made, in its layout: nothing is checked."""


class _Pass(nn.Cell):
    """A compiled pass of a tokenizer.

    Each is a cell of its own: MindSpore 2.10 mixes up the graphs of a cell that has several
    compiled methods, and its compile cache loses the weights that a compiled closure reads.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        super().__init__(auto_prefix=False)
        self.encoder, self.quant_conv = tokenizer.encoder, tokenizer.quant_conv
        self.quantize = tokenizer.quantize
        self.post_quant_conv, self.decoder = tokenizer.post_quant_conv, tokenizer.decoder


class _Encode(_Pass):
    @ms.jit
    def construct(self, images_byxc: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantize.encode(self.quant_conv(self.encoder(images_byxc)))


class _Decode(_Pass):
    @ms.jit
    def construct(self, latent_byxz: Tensor) -> Tensor:
        return ops.clamp(self.decoder(self.post_quant_conv(latent_byxz)), -1.0, 1.0)


class _PassOverScales(_Pass):
    """A pass that reads ids (B, L), the scales one after another."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        super().__init__(tokenizer)
        self.tokens, self.parts = tokenizer.schedule.tokens, parts()


class _SumScales(_PassOverScales):
    @ms.jit
    def construct(self, ids_bl: Tensor) -> tuple[Tensor, ...]:
        ids, total = self.parts(ids_bl, self.tokens, 1), 0.0
        sums: tuple[Tensor, ...] = ()
        for k in range(len(self.tokens)):
            total = total + self.quantize.contribution(ids[k], k)
            sums = (*sums, total)
        return sums


class _TeacherInputs(_PassOverScales):
    @ms.jit
    def construct(self, ids_bl: Tensor) -> Tensor:
        ids, total = self.parts(ids_bl, self.tokens, 1), 0.0
        inputs: tuple[Tensor, ...] = ()
        for k in range(len(self.tokens) - 1):
            total = total + self.quantize.contribution(ids[k], k)
            inputs = (*inputs, self.quantize.downsample(total, k + 1))
        return ops.concat(inputs, 1)


class _Compiled(CompiledPasses):
    def __init__(self, tokenizer: "Tokenizer") -> None:
        super().__init__(tokenizer)
        self.encode, self.decode = _Encode(tokenizer), _Decode(tokenizer)
        self.sum_scales, self.teacher_inputs = _SumScales(tokenizer), _TeacherInputs(tokenizer)


class Tokenizer(nn.Cell):
    """The multi-scale VQ autoencoder of VAR (arXiv:2404.02905, section 3.2).

    Images are (B, 3, H, W) float32 in [-1, 1], H and W as ``config.image_size`` says; token
    ids are a list of K integer arrays (B, s_y * s_x), coarse to fine. Arrays go in as NumPy
    arrays or MindSpore tensors and come out as MindSpore tensors (``np.asarray`` reads them).

    ``seed`` draws the weights, ``Tokenizer.load`` reads them from a file, and MindSpore's functions
    may change them at any time. Threads may share a tokenizer: its methods for images, ids and
    latent maps take turns (``construct`` does not).
    """

    # of a rounded file: the checksums before and after; addresses of the weights, their checksum
    _rounded: tuple[str, str] | None = None
    _summed: tuple[tuple[int, ...], str] | None = None
    _checksum_of_file: str | None = None  # of one whose encoder was left there

    def __init__(self, config: TokenizerConfig, seed: int | None = 0) -> None:
        super().__init__()
        rng = None if seed is None else np.random.default_rng(seed)
        self.config, self.schedule = config, config.schedule
        self.vocab_size, self.latent_channels = config.vocab_size, config.latent_channels
        z = config.latent_channels
        self.encoder = Encoder(config, rng)
        self.quant_conv = Conv2d(rng, z, z, 3)
        self.quantize = MultiScaleQuantizer(config, rng)
        self.post_quant_conv = Conv2d(rng, z, z, 3)
        self.decoder = Decoder(config, rng)
        self.maps, self.pixels = maps(), pixels()
        self._compiled = _Compiled(self)

    # ------------------------------------------------------------ files
    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: bool = True) -> "Tokenizer":
        """Reads a native file; raises InputError unless it holds a complete tokenizer.

        encoder: without it, which saves 40 % of the memory, images can be decoded alone; what
        needs all weights raises InputError.
        """
        file = checkpoint.open_checkpoint(path, "tokenizer", TokenizerConfig)
        file.check(tokenizer_shapes(file.config))
        rounded_from = checkpoint.noted_checksum(file.metadata, "rounded_from", quoted(path))
        tokenizer, tensors = cls(file.config, seed=None), file.read()
        if not encoder:
            summed = ((name, array.shape, [array]) for name, array in tensors.items())
            tokenizer._checksum_of_file = checkpoint.weights_checksum(summed)
        for name, parameter in tokenizer.parameters_and_names():
            array = tensors.pop(name)
            if not encoder and name.startswith("encoder."):
                continue
            if array.ndim == 4:
                array = array.transpose(0, 2, 3, 1)
            parameter.set_data(Tensor.from_numpy(np.ascontiguousarray(array)))
        if rounded_from is not None:
            tokenizer._rounded = (rounded_from, tokenizer.checksum())
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and configuration as a native file, atomically.

        If the weights are still those of a rounded file, as ``var-convert --dtype`` writes it, the
        new file also notes the checksum from before rounding.
        """
        metadata = {}
        if self._rounded is not None and self.checksum() == self._rounded[1]:
            metadata["rounded_from"] = self._rounded[0]
        checkpoint.write_checkpoint(
            path, "tokenizer", self.config, self.published_tensors(), metadata
        )

    def metadata(self) -> dict[str, str]:
        """What a native file says besides the weights, while these are trained."""
        return checkpoint.native_metadata("tokenizer", self.config)

    def published_tensors(self) -> dict[str, np.ndarray]:
        """Published name -> float32 array in the published layout (convolutions OIHW)."""
        self._need_encoder()
        tensors = {}
        for name, parameter in self.parameters_and_names():
            array = parameter.asnumpy()
            tensors[name] = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        return tensors

    def checksum(self) -> str:
        """SHA-256 of the current weights, ``sha256:`` and 64 hexadecimal digits.

        ``var-convert inspect`` shows the same for any file of them. Takes about half a second at
        the published size.
        """
        if self._checksum_of_file is not None:
            return self._checksum_of_file
        tensors = self.published_tensors()
        checksum = checkpoint.weights_checksum((n, a.shape, [a]) for n, a in tensors.items())
        self._summed = (self._places(), checksum)
        return checksum

    def belongs_to(self, checksum: str) -> bool:
        """Whether the weights have this checksum, or were rounded from weights that have it.

        Computes the checksum at the first call, and again when the weights have moved in memory,
        as after loading others. Changes in place, as in training, go unnoticed until
        ``checksum`` is called.
        """
        if self._checksum_of_file is not None:
            own = self._checksum_of_file
        elif self._summed is not None and self._summed[0] == self._places():
            own = self._summed[1]
        else:
            own = self.checksum()
        return checksum == own or (checksum, own) == self._rounded

    def _places(self) -> tuple[int, ...]:
        return (self._compiled.moves, *(memory_address(p) for p in self.get_parameters()))

    # ------------------------------------------------------------ images <-> tokens
    def encode(self, images: Array) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to the ids of each scale: K int32 arrays (B, s_y * s_x).

        ``read_images`` gives such images from files and PIL images. Images of ``generate`` are in
        [0, 1]: pass ``2 * images - 1``. Raises InputError for another shape, for numbers that are
        not floats, and for values outside [-1, 1] or NaN.
        """
        scales = self.schedule.split(self.encode_sequence(images))
        return [Tensor(np.ascontiguousarray(ids_bl)) for ids_bl in scales]

    def encode_sequence(self, images: Array) -> np.ndarray:
        """Like ``encode``, but one array int32 (B, L), scale after scale.

        ``schedule.split`` gives views of each scale.
        """
        with self._compiled.turn():
            return self._compiled.encode(self._check_images(images))[0].asnumpy()

    def residual_vectors(self, images: Array) -> list[np.ndarray]:
        """The vectors whose nearest codes ``encode`` finds: K arrays (B, s_y * s_x, z).

        Codes placed on some of them start close to the data. Raises InputError as ``encode`` does.
        """
        with self._compiled.turn():
            vectors_blz = self._compiled.encode(self._check_images(images))[1].asnumpy()
        return self.schedule.split(vectors_blz)

    def decode(self, ids: Sequence[Array] | Array) -> Tensor:
        """Ids of all K scales to images (B, 3, H, W) in [-1, 1].

        ids: K arrays (B, s_y * s_x) as ``encode`` gives them, or one (B, L) of
        ``encode_sequence``. ``to_pictures`` turns the result into PIL images. Raises InputError
        for other shapes, and for ids that are not integers in [0, vocab_size).
        """
        with self._compiled.turn():
            latent = self._compiled.sum_scales(self._check_ids(ids))[-1]
            return self._compiled.decode(latent).transpose(0, 3, 1, 2)

    def decode_progressive(self, ids: Sequence[Array] | Array) -> list[Tensor]:
        """K batches of images (B, 3, H, W) in [-1, 1]: after 1, 2, ... K scales.

        Raises InputError as ``decode`` does.
        """
        with self._compiled.turn():
            latents = self._compiled.sum_scales(self._check_ids(ids))
            return [self._compiled.decode(latent).transpose(0, 3, 1, 2) for latent in latents]

    def teacher_inputs(self, ids: Sequence[Array] | Array) -> Tensor:
        """The transformer's input in training: (B, L - tokens of scale 0, z) float32.

        For each scale but the first, the sum of all coarser scales, resized to it. Raises
        InputError as ``decode`` does.
        """
        with self._compiled.turn():
            return self._compiled.teacher_inputs(self._check_ids(ids))

    def training_inputs(self, ids_bl: Tensor) -> Tensor:
        """``teacher_inputs`` for a training loop, whose tokens were checked when they were read.

        ids_bl: (B, L) int32, the scales one after another, each id in [0, vocab_size).
        """
        with self._compiled.turn():
            return self._compiled.teacher_inputs(ids_bl)

    # ------------------------------------------------------------ for the transformer
    def add_scale(self, latent: Tensor | None, tokens: Array, k: int) -> Tensor:
        """The latent map (B, Y, X, z) with scale k added; None stands for the map before scale 0.

        tokens: ids (B, s_y * s_x), or weights (B, s_y * s_x, V) that mix the codes.
        Raises InputError for arrays of another shape, batch or type, for values out of range, and
        for a scale that the schedule does not have.
        """
        with self._compiled.turn():
            # not compiled: a graph for each scale would take longer than all of its runs
            self._check_scale(k)
            latent = None if latent is None else self._check_latent(latent)
            batch = "B" if latent is None else latent.shape[0]
            if len(np.shape(tokens)) == 3:
                field = f"weights of scale {k}"
                expected = (batch, self.schedule.tokens[k], self.vocab_size)
                checks.check_shape(field, np.shape(tokens), expected)
                weights_blv = Tensor(checks.checked_floats(field, tokens))
                contribution = self.pixels(self.quantize.mixture(weights_blv, k))
            else:
                ids_bl = Tensor(self._check_tokens(tokens, k, batch))
                contribution = self.pixels(self.quantize.contribution(ids_bl, k))
            return contribution if latent is None else latent + contribution

    def scale_input(self, latent: Tensor, k: int) -> Tensor:
        """The latent map so far, resized to scale k: (B, s_y * s_x, z).

        Raises InputError as ``add_scale`` does.
        """
        with self._compiled.turn():
            self._check_scale(k)
            return self.quantize.downsample(self.maps(self._check_latent(latent)), k)

    def decode_latent(self, latent: Tensor) -> Tensor:
        """A latent map (B, Y, X, z) as images in [-1, 1], channels last too: (B, H, W, 3).

        Raises InputError for another shape, and for values that are not finite floats.
        """
        with self._compiled.turn():
            return self._compiled.decode(self.maps(self._check_latent(latent)))

    def decode_own(self, latent: Tensor) -> Tensor:
        """``decode_latent`` of a map that ``quantize`` made, in its layout: nothing is checked."""
        with self._compiled.turn():
            return self._compiled.decode(latent)

    # ------------------------------------------------------------ training
    def construct(
        self, images_byxc: Tensor, beta: float = 0.25, kept_kb: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The training pass on channels-last images (B, H, W, 3).

        Returns the features, a map of H by W that ``reconstruction`` reads, the quantization
        loss with the commitment weighted by ``beta``, the ids (B, L) of all scales, and the
        vectors (B, L, z) that were looked up for them.
        kept_kb: (K, B), 0 for the scales that are left out of an image's reconstruction, else 1.
        """
        latent = self.quant_conv(self.encoder(images_byxc))
        quantized, loss, ids_bl, vectors_blz = self.quantize(latent, beta, kept_kb)
        return self.decoder.features(self.post_quant_conv(quantized)), loss, ids_bl, vectors_blz

    def reconstruction(self, features_byxc: Tensor) -> Tensor:
        """The decoder's last convolution, for training: images (B, H, W, 3), unclipped."""
        # not by a method of the decoder: MindSpore mixes up the arguments of its gradients
        return self.pixels(self.decoder.conv_out(features_byxc))

    @property
    def last_layer(self) -> Parameter:
        """The weight of that convolution, at which losses are balanced (arXiv:2012.09841)."""
        return self.decoder.conv_out.weight

    # ------------------------------------------------------------ checks
    def _need_encoder(self) -> None:
        if self._checksum_of_file is not None:
            raise InputError("the tokenizer was loaded with encoder=False; expected a whole one")

    def _check_images(self, images: Array) -> Tensor:
        """Images (B, 3, H, W) as the encoder reads them, channels last."""
        self._need_encoder()
        checks.check_shape("images", np.shape(images), ("B", 3, *self.config.image_size))
        images_bcyx = checks.checked_images("images", images)
        return Tensor(np.ascontiguousarray(images_bcyx.transpose(0, 2, 3, 1)))

    def _check_ids(self, ids: Sequence[Array] | Array) -> Tensor:
        """Ids of K scales, one after another: (B, L)."""
        tokens = self.schedule.tokens
        if isinstance(ids, np.ndarray | Tensor) and ids.ndim == 2:
            checks.check_shape("ids", np.shape(ids), ("B", self.schedule.length))
            return Tensor(checks.checked_integers("ids", ids, self.vocab_size))
        if len(ids) != len(tokens):
            raise InputError(f"ids has {len(ids)} scales; expected {len(tokens)}")
        checks.check_shape("ids of scale 0", np.shape(ids[0]), ("B", tokens[0]))
        batch = len(ids[0])
        parts = [self._check_tokens(ids[k], k, batch) for k in range(len(tokens))]
        return Tensor(np.concatenate(parts, 1))

    def _check_tokens(self, ids: Array, k: int, batch: int | str) -> np.ndarray:
        field = f"ids of scale {k}"
        checks.check_shape(field, np.shape(ids), (batch, self.schedule.tokens[k]))
        return checks.checked_integers(field, ids, self.vocab_size)

    def _check_scale(self, k: int) -> None:
        checks.check_integer("scale", k, 0, len(self.schedule) - 1)

    def _check_latent(self, latent: Array) -> Tensor:
        expected = ("B", *self.schedule.sizes[-1], self.latent_channels)
        checks.check_shape("latent maps", np.shape(latent), expected)
        values_byxz = checks.checked_floats("latent maps", latent)
        on_device = isinstance(latent, Tensor) and latent.dtype == ms.float32
        return latent if on_device else Tensor(values_byxz)
