"""The figures of ``report.json``, which a run writes at its end."""

import json
from pathlib import Path

import numpy as np
from var_tokenizer import Tokenizer
from var_tokenizer.common import replacing, to_model_range, to_unit_range

from var_train.data.batches import padded_batches
from var_train.data.image_sources import ImageSet, ImageSource
from var_train.reports.digit_metrics import DigitJudge, distinct, nearest_train_distance
from var_train.reports.image_quality import psnr, squared_errors
from var_train.reports.progress_bars import step_bar


def reconstruct(
    tokenizer: Tokenizer, images: ImageSource, batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Ids of every scale, K arrays (N, s_y * s_x), and reconstructions (N, 3, Y, X) in [-1, 1]."""
    ids, outputs = [], []
    with step_bar("decoding   ", len(images), unit="images") as bar:
        for number, indices in enumerate(padded_batches(len(images), batch)):
            pixels_byxc, _ = images.batch(indices)
            ids.append(tokenizer.encode_sequence(to_model_range(pixels_byxc)))
            outputs.append(np.asarray(tokenizer.decode(ids[-1])))
            bar.advance(batch, steps=min(batch, len(images) - number * batch))
    n = len(images)
    return tokenizer.schedule.split(np.concatenate(ids)[:n]), np.concatenate(outputs)[:n]


def tokenizer_figures(
    ids: list[np.ndarray], reconstructions: np.ndarray, images: ImageSource, vocab_size: int
) -> dict[str, object]:
    """Codebook usage (total and of each scale) and PSNR in dB on held-out images.

    ids: K arrays (N, s_y * s_x). reconstructions: (N, 3, Y, X) in [-1, 1].
    """
    pixels_nyxc, _ = images.batch(np.arange(len(images)))
    psnr_n = psnr(squared_errors(reconstructions, to_model_range(pixels_nyxc)))
    return {
        "codebook_usage": len(np.unique(np.concatenate([i.ravel() for i in ids]))) / vocab_size,
        "scale_codes_used": [len(np.unique(i)) for i in ids],
        "reconstruction_psnr": float(psnr_n.mean()),
    }


def digit_figures(
    generated: np.ndarray,
    labels_n: np.ndarray,
    reconstructions: np.ndarray,
    train: ImageSet,
    val: ImageSet,
) -> dict[str, object]:
    """How real the digits look, compared with real ones (``digit_metrics``).

    generated, reconstructions: (N, 3, Y, X) in [0, 1] and [-1, 1]. labels_n: of ``generated``.
    "distinct" is None if a class has a single image, which has nothing to differ from.
    """
    fewest = np.unique(labels_n, return_counts=True)[1].min()
    judge = DigitJudge(train)
    real_val = val.images_nyxc.transpose(0, 3, 1, 2)
    return {
        "judge_accuracy": judge.accuracy(real_val, val.labels_n),
        "reconstruction_accuracy": judge.accuracy(to_unit_range(reconstructions), val.labels_n),
        "generated_accuracy": judge.accuracy(generated, labels_n),
        "distinct": distinct(generated, labels_n, train) if fewest > 1 else None,
        "nearest_train_distance": nearest_train_distance(generated, train, val),
    }


def write_report(path: Path, figures: dict[str, object]) -> None:
    """Writes ``figures`` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
