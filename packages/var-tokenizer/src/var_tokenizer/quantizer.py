"""Multi-scale residual vector quantization (arXiv:2404.02905, Algorithms 1 and 2)."""

import numpy as np
from mindspore import Tensor, nn, ops

from var_tokenizer.autoencoder import Conv2d
from var_tokenizer.config import TokenizerConfig
from var_tokenizer.initialization import Rng, codes, usage
from var_tokenizer.layout import fork, map_of_tokens, mean_square, parts, rows_at, tokens_of_map
from var_tokenizer.operators import nearest_code
from var_tokenizer.resize import area_matrix, bicubic_matrix


def phi_index(k: int, scales: int, phi_count: int) -> int:
    """Which of the shared convolutions phi refines scale k of ``scales``: the nearest one.

    Scales are evenly spaced from 0 to 1, convolutions between a margin and 1 - margin. The margin
    is a third of a step for the published count of 4, half a step otherwise.
    """
    margin = 1 / (3 * phi_count) if phi_count == 4 else 1 / (2 * phi_count)
    # from both ends inwards, like torch.linspace: in a tie the last bit decides
    begin, end = margin, 1 - margin
    step = (end - begin) / max(phi_count - 1, 1)
    i = np.arange(phi_count)
    positions = np.where(i < phi_count // 2, begin + step * i, end - step * (phi_count - 1 - i))
    return int(np.abs(positions - k / max(scales - 1, 1)).argmin())


class Codebook(nn.Cell):
    """V codes of width z: ``weight`` (V, z)."""

    def __init__(self, config: TokenizerConfig, rng: Rng) -> None:
        super().__init__()
        self.weight = codes(rng, config)
        self.using_znorm = config.using_znorm
        self.nearest_code, self.rows_at = nearest_code(), rows_at()

    def construct(self, ids: Tensor) -> Tensor:
        """Ids of any shape (...) to their codes (..., z)."""
        return self.rows_at(self.weight, ids)

    def nearest(self, vectors_nz: Tensor) -> Tensor:
        """(N, z) -> (N,) int32: the index of the code at the smallest distance or angle."""
        codes_vz = self.weight
        if self.using_znorm:  # among codes of length 1, the nearest has the smallest angle
            length_v1 = (codes_vz * codes_vz).sum(1, keepdims=True)
            codes_vz = codes_vz * ops.rsqrt(ops.maximum(length_v1, 1e-24))
        return self.nearest_code(vectors_nz, codes_vz)


class Refinements(nn.Cell):
    """The P shared 3x3 convolutions phi that refine an upsampled scale."""

    def __init__(self, config: TokenizerConfig, rng: Rng) -> None:
        super().__init__()
        z = config.latent_channels
        self.qresi_ls = nn.CellList([Conv2d(rng, z, z, 3) for _ in range(config.phi_count)])


class MultiScaleQuantizer(nn.Cell):
    """Latent maps <-> token ids (B, L) of K scales, one after another.

    A latent map has z channels, and the layout of the device (``layout``): (B, Y, X, z) on the CPU.
    """

    def __init__(self, config: TokenizerConfig, rng: Rng) -> None:
        super().__init__()
        self.sizes = config.schedule.sizes
        self.full = self.sizes[-1]
        self.embedding = Codebook(config, rng)
        self.quant_resi = Refinements(config, rng)
        self.ema_vocab_hit_SV = usage(config)  # the published name
        self.phi_of_scale = [
            phi_index(k, len(self.sizes), config.phi_count) for k in range(len(self.sizes))
        ]
        self.down_kts = [Tensor(area_matrix(self.full, size)) for size in self.sizes]
        self.up_kst = [Tensor(bicubic_matrix(size, self.full)) for size in self.sizes]
        self.matmul = ops.MatMul()
        self.tokens_of_map, self.map_of_tokens = tokens_of_map(), map_of_tokens(self.full)
        self.fork, self.parts, self.mean_square = fork(), parts(), mean_square()

    def contribution(self, ids_bl: Tensor, k: int) -> Tensor:
        """What the tokens of scale k, (B, l), add to the latent map."""
        return self.refine(self.embedding(ids_bl), k)

    def mixture(self, weights_blv: Tensor, k: int) -> Tensor:
        """Like ``contribution``, of codes that are mixed by weights (B, l, V)."""
        b, n, v = weights_blv.shape
        codes_nz = self.matmul(weights_blv.reshape(b * n, v), self.embedding.weight)
        return self.refine(codes_nz.reshape(b, n, -1), k)

    def refine(self, codes_blz: Tensor, k: int) -> Tensor:
        """The codes of scale k, upsampled to the full size and refined: a latent map."""
        matrix = None if self.sizes[k] == self.full else self.up_kst[k]
        h_byxz, same_byxz = self.fork(self.map_of_tokens(codes_blz, matrix))
        return 0.5 * h_byxz + 0.5 * self.quant_resi.qresi_ls[self.phi_of_scale[k]](same_byxz)

    def downsample(self, latent_byxz: Tensor, k: int) -> Tensor:
        """The latent map at the size of scale k: (B, s_y * s_x, z)."""
        matrix = None if self.sizes[k] == self.full else self.down_kts[k]
        return self.tokens_of_map(latent_byxz, matrix)

    def encode(self, latent_byxz: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 1: each scale quantizes what the coarser ones left over.

        Returns the ids (B, L) int32 and the vectors (B, L, z) that they are the nearest codes of.
        """
        rest = latent_byxz
        ids: tuple[Tensor, ...] = ()
        vectors: tuple[Tensor, ...] = ()
        for k in range(len(self.sizes)):
            vectors_blz = self.downsample(rest, k)
            ids_bl = self.nearest(vectors_blz)
            rest = rest - self.contribution(ids_bl, k)
            ids, vectors = (*ids, ids_bl), (*vectors, vectors_blz)
        return ops.concat(ids, 1), ops.concat(vectors, 1)

    def nearest(self, vectors_blz: Tensor) -> Tensor:
        """Ids (B, l) int32 of the codes nearest to the vectors (B, l, z)."""
        b, n, z = vectors_blz.shape
        return self.embedding.nearest(vectors_blz.reshape(b * n, z)).reshape(b, n)

    def construct(
        self, latent_byxz: Tensor, beta: float, kept_kb: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The training pass: straight-through latent map, loss, ids (B, L), vectors (B, L, z).

        After every scale the running sum and the latent map are pulled together: the
        codes and refinements to the map with weight 1, the map to them (the commitment) with
        weight ``beta``; the mean over the K scales is the loss (VQ-VAE, arXiv:1711.00937).
        kept_kb: see ``Tokenizer.construct``; a scale that is left out of an image's reconstruction
        adds nothing to its loss. The vectors are what was looked up, the ids what was found.
        """
        target = ops.stop_gradient(latent_byxz)
        total, loss = ops.zeros_like(latent_byxz), 0.0
        kept_k = () if kept_kb is None else self.parts(kept_kb, 1, 0)
        ids: tuple[Tensor, ...] = ()
        vectors: tuple[Tensor, ...] = ()
        for k in range(len(self.sizes)):
            vectors_blz = self.downsample(target - ops.stop_gradient(total), k)
            ids_bl = ops.stop_gradient(self.nearest(vectors_blz))
            contribution = self.contribution(ids_bl, k)
            kept_b111 = 1.0 if kept_kb is None else kept_k[k].reshape(-1, 1, 1, 1)
            total, same = self.fork(total + kept_b111 * contribution)
            codes_error = kept_b111 * (same - target)
            commitment_error = kept_b111 * (latent_byxz - ops.stop_gradient(total))
            loss = loss + self.mean_square(codes_error)
            loss = loss + beta * self.mean_square(commitment_error)
            ids, vectors = (*ids, ids_bl), (*vectors, vectors_blz)
        straight_through = latent_byxz + ops.stop_gradient(total - latent_byxz)
        loss = loss / len(self.sizes)
        return straight_through, loss, ops.concat(ids, 1), ops.concat(vectors, 1)
