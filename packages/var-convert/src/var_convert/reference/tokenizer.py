"""The tokenizer in PyTorch: images <-> token ids of K scales."""

import torch
from torch import Tensor
from var_tokenizer import TokenizerConfig

from var_convert.reference.autoencoder import Decoder, Encoder, conv
from var_convert.reference.loading import Reference
from var_convert.reference.quantizer import Ids, Quantizer


class TorchTokenizer(Reference):
    """Images (B, 3, H, W) in [-1, 1] <-> token ids of K scales."""

    kind = "tokenizer"
    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        z = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv, self.post_quant_conv = conv(z, z), conv(z, z)

    def latent(self, image_bcyx: Tensor) -> Tensor:
        """Images in [-1, 1] to the latent map (B, z, h, w), not quantized."""
        return self.quant_conv(self.encoder(image_bcyx))

    def to_ids(self, latent_bzyx: Tensor) -> tuple[Ids, Tensor]:
        """Token ids of each scale, and the quantized map (B, z, h, w)."""
        rest_bzyx, ids = latent_bzyx, []
        for k in range(len(self.quantize.sizes)):
            nearest_n = self.quantize.distances(rest_bzyx, k).argmin(1)
            ids.append(nearest_n.view(len(latent_bzyx), -1))
            rest_bzyx = rest_bzyx - self.quantize.contribution(ids[-1], k)
        return ids, latent_bzyx - rest_bzyx

    def runner_up_gaps(self, latent_bzyx: Tensor, ids: Ids) -> list[Tensor]:
        """How clear each choice of ``ids`` was: K tensors (B, l) of d2 / d1 - 1.

        d1 and d2 are the squared distances of the nearest and of the second nearest code. Two
        implementations may differ in a token if the gap is as small as their rounding.
        """
        rest_bzyx, gaps = latent_bzyx, []
        for k, ids_bl in enumerate(ids):
            nearest_n2 = self.quantize.distances(rest_bzyx, k).topk(2, largest=False).values
            gaps.append((nearest_n2[:, 1] / nearest_n2[:, 0] - 1).view_as(ids_bl))
            rest_bzyx = rest_bzyx - self.quantize.contribution(ids_bl, k)
        return gaps

    def encode(self, image_bcyx: Tensor) -> Ids:
        """Images in [-1, 1] to K tensors (B, l) of token ids."""
        return self.to_ids(self.latent(image_bcyx))[0]

    def teacher_inputs(self, ids: Ids) -> Tensor:
        """What the transformer reads at scales 2..K in training: (B, L - l_1, z)."""
        totals = self.quantize.accumulated(ids[:-1])
        parts = [self.quantize.next_input(total, k + 1) for k, total in enumerate(totals)]
        if not parts:
            return self.quantize.embedding.weight.new_zeros(
                len(ids[0]), 0, self.config.latent_channels
            )
        return torch.cat(parts, 1)

    def decode_latent(self, latent_bzyx: Tensor) -> Tensor:
        """A quantized latent map to images in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent_bzyx)).clamp(-1, 1)

    def decode(self, ids: Ids) -> Tensor:
        """Token ids of all K scales to images in [-1, 1]."""
        return self.decode_latent(self.quantize.accumulated(ids)[-1])

    def decode_progressive(self, ids: Ids) -> list[Tensor]:
        """K image batches in [-1, 1]: after 1, 2, ... K scales."""
        return [self.decode_latent(total) for total in self.quantize.accumulated(ids)]
