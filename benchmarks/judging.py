"""How the figures of ``evaluate samples`` answer to five corruptions of real images.

``python benchmarks/judging.py --data DIR --out OUT`` judges DIR/val by DIR/train, as it is and
blurred, noisy, compressed, discoloured and occluded in three grades, with the default network. It
writes OUT/table.md, and says whether the Frechet distance grows with each grade.
"""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageEnhance, ImageFilter

GRADES = (1, 2, 3)
SHOWN = ("precision", "recall", "density", "coverage", "nearest distance")


@dataclass(frozen=True)
class Config:
    """Judge real images that are corrupted in five ways."""

    data: Path
    """An image tree, DATA/train/CLASS/* and DATA/val/CLASS/*."""
    out: Path
    """A folder for the judgements and the table."""


def blurred(picture: Image.Image, grade: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.4 * grade))


def noisy(picture: Image.Image, grade: int) -> Image.Image:
    pixels_yxc = np.asarray(picture, np.float64)
    seed = [grade, *picture.tobytes()[:8]]
    noise_yxc = 8 * grade * np.random.default_rng(seed).standard_normal(pixels_yxc.shape)
    return Image.fromarray(np.clip(pixels_yxc + noise_yxc, 0, 255).astype(np.uint8))


def compressed(picture: Image.Image, grade: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=(60, 25, 8)[grade - 1])
    return Image.open(file).convert("RGB")


def discoloured(picture: Image.Image, grade: int) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(1 - grade / 3)


def occluded(picture: Image.Image, grade: int) -> Image.Image:
    changed = picture.copy()
    rows, columns = (round(side * grade / 8) for side in (picture.height, picture.width))
    changed.paste((0, 0, 0), (0, 0, columns, rows))
    return changed


CORRUPTIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "blur": blurred,
    "noise": noisy,
    "JPEG": compressed,
    "colour": discoloured,
    "occlusion": occluded,
}


def judge(samples: Path, reference: Path, out: Path, *options: str) -> dict:
    files = ("--samples", str(samples), "--reference", str(reference), "--out", str(out))
    command = (sys.executable, "-m", "var_train.evaluate", "samples", *files, *options)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict = json.loads((out / "samples.json").read_text())
    return report


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    paths = sorted(path for path in (config.data / "val").rglob("*") if path.is_file())
    pictures = [Image.open(path).convert("RGB") for path in paths]
    clean, statistics = config.out / "clean", config.out / "clean" / "reference-statistics.npz"
    first = judge(config.data / "val", config.data / "train", clean, "--save-statistics")
    distance = first["network"]
    rows = [("none", 0, first["figures"])]
    for name, corrupted in CORRUPTIONS.items():
        for grade in GRADES:
            out = config.out / f"{name}-{grade}"
            out.mkdir(parents=True, exist_ok=True)
            images_nyxc = np.stack([np.asarray(corrupted(p, grade)) for p in pictures])
            np.savez(out / "samples.npz", arr_0=images_nyxc)
            rows.append((name, grade, judge(out / "samples.npz", statistics, out)["figures"]))
            logging.info("%s %d: %s %.4g", name, grade, distance, rows[-1][2][distance])
    lines = [f"| corruption | grade | {' | '.join((distance, *SHOWN))} |", "| --- " * 8 + "|"]
    for name, grade, figures in rows:
        values = " | ".join(f"{figures[key]:.4g}" for key in (distance, *SHOWN))
        lines.append(f"| {name} | {grade} | {values} |")
    (config.out / "table.md").write_text("\n".join(lines) + "\n")
    for name in CORRUPTIONS:
        found = [figures[distance] for of, _, figures in rows if of in ("none", name)]
        grows = all(a < b for a, b in pairwise(found))
        logging.info(
            "%s: %s %s with each grade", name, distance, "grows" if grows else "DOES NOT GROW"
        )


if __name__ == "__main__":
    main()
