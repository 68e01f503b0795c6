"""Residual quantization over K scales, in PyTorch (arXiv:2404.02905, Algorithms 1 and 2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from var_tokenizer import TokenizerConfig

from var_convert.reference.autoencoder import conv

Ids = list[Tensor]  # K tensors (B, tokens of the scale), int64


class Refinements(nn.Module):
    """The shared 3x3 convolutions (phi); scale k uses the one nearest to its place in [0, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        z, count, scale_count = config.latent_channels, config.phi_count, len(config.scales)
        self.qresi_ls = nn.ModuleList(conv(z, z) for _ in range(count))
        # The published code spaces four convolutions by a rule of their own.
        margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
        places = torch.linspace(margin, 1 - margin, count, dtype=torch.float64, device="cpu")
        self.choice = [
            int((places - k / max(scale_count - 1, 1)).abs().argmin()) for k in range(scale_count)
        ]
        self.register_load_state_dict_pre_hook(_accept_other_spellings)

    def forward(self, x_bcyx: Tensor, k: int) -> Tensor:
        return 0.5 * x_bcyx + 0.5 * self.qresi_ls[self.choice[k]](x_bcyx)


def _accept_other_spellings(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """The published names are ``qresi.*`` for one shared convolution and ``{k}.*`` for K."""
    for name in [n for n in state if n.startswith(prefix)]:
        tail = name.removeprefix(prefix)
        if tail.startswith("qresi."):
            state[f"{prefix}qresi_ls.0.{tail.removeprefix('qresi.')}"] = state.pop(name)
        elif tail[0].isdigit():
            state[f"{prefix}qresi_ls.{tail}"] = state.pop(name)


class Quantizer(nn.Module):
    """Residual quantization over K scales (arXiv:2404.02905, Algorithms 1 and 2)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.sizes = config.schedule.sizes
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)
        self.using_znorm = config.using_znorm
        self.quant_resi = Refinements(config)
        hits = torch.zeros(len(self.sizes), config.vocab_size)
        self.register_buffer("ema_vocab_hit_SV", hits)

    def contribution(self, ids_bl: Tensor, k: int) -> Tensor:
        """What scale k adds to the latent map: (B, l) -> (B, z, h, w)."""
        codes_bzyx = self.embedding(ids_bl).transpose(1, 2).unflatten(2, self.sizes[k])
        if k != len(self.sizes) - 1:
            codes_bzyx = F.interpolate(codes_bzyx, size=self.sizes[-1], mode="bicubic")
        return self.quant_resi(codes_bzyx, k)

    def distances(self, rest_bzyx: Tensor, k: int) -> Tensor:
        """Squared distances (B*l, V) from what is left of the map, at scale k, to every code."""
        if k != len(self.sizes) - 1:
            rest_bzyx = F.interpolate(rest_bzyx, size=self.sizes[k], mode="area")
        book_vz = self.embedding.weight
        x_nz = rest_bzyx.permute(0, 2, 3, 1).reshape(-1, book_vz.shape[1])
        if self.using_znorm:  # of unit vectors, so that the smallest angle is the nearest
            x_nz, book_vz = F.normalize(x_nz), F.normalize(book_vz)
        square_n1 = x_nz.square().sum(1, keepdim=True)
        return square_n1 + book_vz.square().sum(1) - 2 * x_nz @ book_vz.T

    def accumulated(self, ids: Ids) -> list[Tensor]:
        """K maps (B, z, h, w): the sum of the contributions of the first 1, 2, ... K scales."""
        total: Any = 0
        totals = []
        for k, ids_bl in enumerate(ids):
            total = total + self.contribution(ids_bl, k)
            totals.append(total)
        return totals

    def next_input(self, total_bzyx: Tensor, k: int) -> Tensor:
        """What the transformer reads at scale k: (B, l_k, z)."""
        return F.interpolate(total_bzyx, size=self.sizes[k], mode="area").flatten(2).transpose(1, 2)
