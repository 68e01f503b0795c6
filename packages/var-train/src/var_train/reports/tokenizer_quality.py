"""How good a tokenizer is on images that it was not trained on: PSNR, SSIM, codes, bits, and the
Frechet distance of a network's features."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from skimage.metrics import structural_similarity
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, to_model_range, to_pixels, to_unit_range

from var_train.data.batches import padded_batches
from var_train.data.image_sources import ImageSource, ReadImages, read_images
from var_train.data.loader import read_ahead
from var_train.judging.figures import Moments, frechet_distance
from var_train.judging.networks import JudgeNetwork
from var_train.reports.progress_bars import step_bar
from var_train.training.codebook import count_hits, perplexities


@dataclass(frozen=True)
class TokenizerFigures:
    """Figures of a tokenizer of K scales, as means over a set of images."""

    images: int
    scale_sizes: tuple[tuple[int, int], ...]
    """K pairs (rows, columns)."""
    psnr: float
    """PSNR of the reconstruction, in dB."""
    scale_psnr: list[float]
    """K numbers: PSNR of the image after 1, 2, ... K scales."""
    ssim: float
    """Structural similarity (Wang et al. 2004) of the reconstruction, at most 1, in windows of 7x7,
    or the largest odd ones that fit into a smaller image."""
    codebook_usage: float
    """Share of the codes that any scale used, in [0, 1]."""
    scale_codes_used: list[int]
    """K numbers: how many different codes each scale used."""
    scale_perplexity: list[float]
    """K numbers: exp of the entropy of each scale's codes, at most the vocabulary."""
    bits: float
    """Bits of an image: log2(vocabulary) for each token."""
    entropy_bits: float
    """Bits of an ideally coded image: for each token, the entropy of its scale."""
    frechet: float | None
    """Frechet distance between features of the images and of their reconstructions
    (arXiv:1706.08500); None without a feature network."""
    network: str | None
    """What that distance is called by its network: "FD-EffLite0", or "FID"."""

    def report(self) -> dict[str, object]:
        """As it is written: the distance by its name."""
        figures = asdict(self)
        frechet, network = figures.pop("frechet"), figures.pop("network")
        return figures if network is None else figures | {network: frechet}


def measure_tokenizer(
    tokenizer: Tokenizer,
    images: ImageSource,
    batch: int,
    limit: int | None = None,
    network: JudgeNetwork | None = None,
    measured: Callable[[int], None] = lambda images: None,
) -> TokenizerFigures:
    """Encodes and decodes ``images``; of more than ``limit`` it takes evenly spaced ones.

    batch: images at once. network: whose features give the Frechet distance. measured: called
    after each batch with its number of images.

    Raises InputError for a single image with a ``network``, and for features that are not finite.
    """
    count = len(images) if limit is None else min(limit, len(images))
    if network is not None and count < 2:
        raise InputError(f"{count} image(s); expected at least 2 for {network.name}")
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    errors, similarities = [], []
    real, reconstructed = Moments(), Moments()
    side = min(tokenizer.config.image_size)
    window = min(7, side - 1 + side % 2)
    hits_sv = np.zeros((len(tokenizer.schedule), tokenizer.vocab_size), np.float32)
    for wanted, pixels_byxc, _ in _batches(images, chosen, batch):
        originals = np.ascontiguousarray(to_model_range(pixels_byxc))
        ids_bl = tokenizer.encode_sequence(originals)
        decoded = [np.asarray(d) for d in tokenizer.decode_progressive(ids_bl)]
        if network is not None:
            outputs_byxc = to_pixels(to_unit_range(decoded[-1]))
            for pixels, moments in ((pixels_byxc, real), (outputs_byxc, reconstructed)):
                moments.add(_pooled(network, pixels)[:wanted])
        decoded = [d[:wanted] for d in decoded]
        originals = originals[:wanted]
        hits_sv += count_hits(tokenizer.schedule.split(ids_bl[:wanted]), tokenizer.vocab_size)
        errors.append([squared_errors(d, originals) for d in decoded])
        for original, output in zip(originals, decoded[-1], strict=True):
            similarities.append(
                structural_similarity(
                    original, output, win_size=window, channel_axis=0, data_range=2
                )
            )
        measured(wanted)
    scale_psnr = [
        float(psnr(np.concatenate(of_scale)).mean()) for of_scale in zip(*errors, strict=True)
    ]
    perplexity = perplexities(hits_sv)
    tokens = tokenizer.schedule.tokens
    return TokenizerFigures(
        images=count,
        scale_sizes=tokenizer.schedule.sizes,
        psnr=scale_psnr[-1],
        scale_psnr=scale_psnr,
        ssim=float(np.mean(similarities)),
        codebook_usage=float(hits_sv.any(0).mean()),
        scale_codes_used=hits_sv.astype(bool).sum(1).tolist(),
        scale_perplexity=perplexity,
        bits=tokenizer.schedule.length * math.log2(tokenizer.vocab_size),
        entropy_bits=sum(n * math.log2(p) for n, p in zip(tokens, perplexity, strict=True)),
        frechet=(
            None if network is None else frechet_distance(real.gaussian(), reconstructed.gaussian())
        ),
        network=None if network is None else network.name,
    )


def measure_reconstructions(
    tokenizer: Tokenizer,
    images: ImageSource,
    batch: int,
    reconstructed: Callable[[np.ndarray, np.ndarray], None] = lambda images, labels: None,
) -> dict[str, object]:
    """Figures of held-out images: codebook usage, in total and of each scale, and PSNR in dB.

    reconstructed: called after each batch with its reconstructions (B, 3, Y, X) in [-1, 1] and
    their labels (B,).
    """
    n, errors = len(images), []
    used_sv = np.zeros((len(tokenizer.schedule), tokenizer.vocab_size), bool)
    with step_bar("decoding   ", n, unit="images") as bar:
        for wanted, pixels_byxc, labels_b in _batches(images, np.arange(n), batch):
            originals = to_model_range(pixels_byxc)
            ids_bl = tokenizer.encode_sequence(originals)
            output = np.asarray(tokenizer.decode(ids_bl))[:wanted]
            ids = tokenizer.schedule.split(ids_bl[:wanted])
            used_sv |= count_hits(ids, tokenizer.vocab_size).astype(bool)
            errors.append(squared_errors(output, originals[:wanted]))
            reconstructed(output, labels_b[:wanted])
            bar.advance(batch, steps=wanted)
    return {
        "codebook_usage": float(used_sv.any(0).mean()),
        "scale_codes_used": used_sv.sum(1).tolist(),
        "reconstruction_psnr": float(psnr(np.concatenate(errors)).mean()),
    }


def _batches(
    images: ImageSource, chosen: np.ndarray, batch: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields pixels and labels of ``chosen`` images, a batch at a time, after how many to measure.

    MindSpore compiles once for batches of one size: repeats fill up the last, to be cut off.
    """
    batches = chosen[padded_batches(len(chosen), batch)]

    def read(number: int) -> ReadImages:
        return read_images(images, batches[number])

    for number, found in enumerate(read_ahead(images, read, len(batches), batch)):
        found.take()
        yield min(batch, len(chosen) - number * batch), found.pixels_byxc, found.labels_b


def squared_errors(output_ncyx: np.ndarray, images_ncyx: np.ndarray) -> np.ndarray:
    """(N,): the mean squared error of each image."""
    # in one layout, because the last bit of a mean depends on the order of its terms
    output_ncyx, images_ncyx = (np.ascontiguousarray(i) for i in (output_ncyx, images_ncyx))
    return ((output_ncyx - images_ncyx) ** 2).mean((1, 2, 3))


def psnr(squared_error_n: np.ndarray) -> np.ndarray:
    """PSNR in dB from mean squared errors of images in [-1, 1], whose range is 2."""
    return 10 * np.log10(4 / np.maximum(squared_error_n, 1e-12))


def _pooled(network: JudgeNetwork, pixels_byxc: np.ndarray) -> np.ndarray:
    """(B, F) float32."""
    pooled_bf = network.features(pixels_byxc).pooled_bf
    if not np.isfinite(pooled_bf).all():
        raise InputError(f"{network.name}: features are NaN or infinite; expected finite ones")
    return pooled_bf
