"""What int8 weights change in what a trained transformer computes and draws.

    python benchmarks/int8_accuracy.py --run runs/digits

Takes a run of var_train.run, converts its transformer, and compares it with the one of float32: the
likeliest token at each position of teacher-forced images, their loss, and the same images drawn.
"""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from var_convert import convert
from var_tokenizer import Tokenizer
from var_transformer import Transformer, generate

log = logging.getLogger("benchmark")


@dataclass(frozen=True)
class Config:
    """Compare a transformer's weights of int8 with those of float32."""

    run: Path
    """The --out of a training, which has tokenizer.safetensors and transformer.safetensors."""
    images: int = 100
    """How many to draw and compare."""


def losses(logits_blv: np.ndarray, ids_bl: np.ndarray) -> np.ndarray:
    """The cross-entropy (B, L) of the ids, in float64."""
    shifted_blv = logits_blv.astype(np.float64) - logits_blv.max(-1, keepdims=True)
    chosen_bl = np.take_along_axis(shifted_blv, ids_bl[..., None], -1)[..., 0]
    return np.log(np.exp(shifted_blv).sum(-1)) - chosen_bl


def compare(config: Config) -> list[str]:
    """Rows of a table."""
    source = config.run / "transformer.safetensors"
    tokenizer = Tokenizer.load(config.run / "tokenizer.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        convert(source, target := Path(folder, "int8.safetensors"), dtype="int8")
        models = Transformer.load(source), Transformer.load(target)
        share = target.stat().st_size / source.stat().st_size
    labels = np.arange(config.images) % models[0].config.num_classes
    drawn = [generate(model, tokenizer, labels, cfg=1.5) for model in models]
    ids = [np.concatenate(out.ids, 1) for out in drawn]
    inputs = tokenizer.teacher_inputs(drawn[0].ids)
    logits = [model.logits(labels, inputs).asnumpy() for model in models]
    likeliest = [each.argmax(-1) for each in logits]
    means = [losses(each, ids[0]).mean() for each in logits]
    return [
        f"| size of the file | {share:.2f} of float32's |",
        f"| logits, largest error / deviation | {_error(*logits):.3f} |",
        f"| likeliest tokens that are the same | {(likeliest[0] == likeliest[1]).mean():.2%} |",
        f"| loss of drawn tokens, float32 and int8 | {means[0]:.4f}, {means[1]:.4f} |",
        f"| drawn tokens that are the same | {(ids[0] == ids[1]).mean():.1%} |",
    ]


def _error(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / wanted.std())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = compare(tyro.cli(Config))
    log.info("%s", "\n".join(["| int8 | |", "| --- | --- |", *rows]))


if __name__ == "__main__":
    main()
