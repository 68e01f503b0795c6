"""PSNR of images, and FID of sets of images; ``tokenizer_quality`` adds SSIM."""

import math

import numpy as np
from var_tokenizer.common import InputError


def squared_errors(output_ncyx: np.ndarray, images_ncyx: np.ndarray) -> np.ndarray:
    """(N,): the mean squared error of each image."""
    # in one layout, because the last bit of a mean depends on the order of its terms
    output_ncyx, images_ncyx = (np.ascontiguousarray(i) for i in (output_ncyx, images_ncyx))
    return ((output_ncyx - images_ncyx) ** 2).mean((1, 2, 3))


def psnr(squared_error_n: np.ndarray) -> np.ndarray:
    """PSNR in dB from mean squared errors of images in [-1, 1], whose range is 2."""
    return 10 * np.log10(4 / np.maximum(squared_error_n, 1e-12))


def fid(real_nf: np.ndarray, other_nf: np.ndarray) -> float:
    """The Frechet distance of two sets of features (N, F), as normal distributions.

    Source: arXiv:1706.08500. The sets may differ in N. It is computed exactly for any N, but
    few images overestimate it: published figures are of 10,000 images and more.

    Raises InputError for a set of fewer than two images, which has no covariance, and for features
    that differ in number or are not finite.
    """
    for name, features_nf in (("real", real_nf), ("other", other_nf)):
        check_fid_count(len(features_nf), name)
        if not np.isfinite(features_nf).all():
            raise InputError(f"the {name} features hold NaN or infinity; expected finite numbers")
    if real_nf.shape[1] != other_nf.shape[1]:
        raise InputError(
            f"the real images have {real_nf.shape[1]} features and the other {other_nf.shape[1]}; "
            "expected as many"
        )
    mean_f = real_nf.mean(0, dtype=np.float64) - other_nf.mean(0, dtype=np.float64)
    real_mf, other_mf = _covariance_root(real_nf), _covariance_root(other_nf)
    # For covariances A'A and B'B, the trace of the root of their product is the sum of the singular
    # values of AB', which are real for any rank. The matrix root itself (sqrtm) turns complex
    # or NaN for fewer images than features.
    overlap = np.linalg.svd(real_mf @ other_mf.T, compute_uv=False).sum()
    distance = mean_f @ mean_f + (real_mf**2).sum() + (other_mf**2).sum() - 2 * overlap
    return max(0.0, float(distance))  # rounding alone can take it below 0


def check_fid_count(count: int, name: str) -> None:
    """Raises InputError if ``count`` images are too few for an FID; ``name`` says which set."""
    if count < 2:
        raise InputError(f"{count} {name} image(s); expected at least 2 for the FID")


def _covariance_root(features_nf: np.ndarray) -> np.ndarray:
    """(min(N, F), F) float64: A with A'A = the covariance."""
    centred_nf = features_nf - features_nf.mean(0, dtype=np.float64)
    root_mf = np.asarray(np.linalg.qr(centred_nf, mode="r"))
    return root_mf / math.sqrt(len(features_nf) - 1)
