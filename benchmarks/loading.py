"""How fast photographs are read: by this project, plain Pillow and MindSpore's own pipeline.

    python benchmarks/loading.py       # a part of ``nox -s growth``

The photographs, JPEGs of 500x375 pixels, are cut from those that scikit-image and scikit-learn
bring. Each reader fits them to 256x256 (the shorter side to 288, resized by Lanczos, a random crop)
in a process of its own, at 1, 2 and all cores; "processes" are as many of Pillow as there are
cores. Then a stand-in for a device sleeps as long as a step takes that uses 80 % of what the loader
reads, and the share of a step that it waits is measured. Writes ``benchmarks/loading.json``.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

log = logging.getLogger("benchmark")
PHOTOGRAPHS, BATCH, SIZE, ROUNDS = 192, 32, (256, 256), 3
READERS = ("Pillow", "processes", "loader", "MindSpore")
OF_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
TARGET = Path(__file__).resolve().parent / "loading.json"
LANCZOS = Image.Resampling.LANCZOS


def make_photographs(target: Path) -> None:
    """Writes TARGET/train/{a,b}/*.jpg and two images to validate on."""
    rng = np.random.default_rng(0)
    known = [Path(skimage.data.__file__).parent / name for name in OF_SKIMAGE]
    known += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    pictures = [Image.open(path).convert("RGB") for path in known]
    for n in range(PHOTOGRAPHS + 2):
        split = "train" if n < PHOTOGRAPHS else "val"
        folder = target / split / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = pictures[n % len(pictures)]
        width = int(min(picture.width, picture.height * 4 / 3) * rng.uniform(0.6, 1))
        height = width * 3 // 4
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(picture.height - height + 1))
        cut = picture.resize((500, 375), LANCZOS, (left, top, left + width, top + height))
        cut.save(folder / f"{n:04d}.jpg", quality=95)


def crop(path: Path, place: tuple[float, float]) -> np.ndarray:
    """What ``crops_of`` does, in plain Pillow."""
    picture = Image.open(path).convert("RGB")
    scale = 288 / min(picture.size)
    picture = picture.resize([int(side * scale) for side in picture.size], LANCZOS)
    left = int(place[1] * (picture.width - 255))
    top = int(place[0] * (picture.height - 255))
    return np.asarray(picture.crop((left, top, left + 256, top + 256)))


def read(reader: str, folder: Path, cores: int) -> int:
    """Reads all photographs ROUNDS times; returns how many."""
    paths = sorted((folder / "train").rglob("*.jpg")) * ROUNDS
    places = np.random.default_rng(1).random((len(paths), 2)).tolist()
    if reader == "Pillow":
        for path, place in zip(paths, places, strict=True):
            crop(path, (place[0], place[1]))
    elif reader == "processes":
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(crop, paths, places, chunksize=8))
    elif reader == "MindSpore":
        for _ in mindspore_pipeline(folder, cores).create_tuple_iterator(output_numpy=True):
            pass
    else:
        wait(folder, len(paths) // BATCH, 0.0)
    return len(paths)


def mindspore_pipeline(folder: Path, cores: int) -> Any:
    """Decoding, resizing and random crops in C++; it has no Lanczos there, so bicubic."""
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    ds.config.set_num_parallel_workers(cores)
    images = ds.ImageFolderDataset(str(folder / "train"), shuffle=False)
    steps = [vision.Decode(), vision.Resize(288, vision.Inter.BICUBIC), vision.RandomCrop(256)]
    return images.map(steps, "image").repeat(ROUNDS).batch(BATCH)


def place_of(step: int, index: int) -> tuple[float, float]:
    vertical, horizontal = np.random.default_rng((step, index)).random(2).tolist()
    return vertical, horizontal


def wait(folder: Path, steps: int, seconds: float) -> float:
    """The share of the time that a device waits whose steps take ``seconds``."""
    from var_train import ImageFolder, Loader, load_image_tree

    images, _ = load_image_tree(folder, SIZE, memory_limit=0, random_crops=True)

    assert isinstance(images, ImageFolder)

    def prepare(step: int) -> Any:
        indices = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        return images.read(indices, None, partial(place_of, step))

    loader, waited = Loader(images, prepare, steps, BATCH), 0.0
    begin = time.perf_counter()
    for step in range(steps):
        asked = time.perf_counter()
        loader.take(step).take()
        waited += time.perf_counter() - asked if step else 0.0  # nothing was read before the first
        time.sleep(seconds)
    loader.close()
    return waited / (time.perf_counter() - begin)


def pixel_difference(folder: Path) -> float:
    """The mean difference of a photograph's pixels, resized by MindSpore's bicubic and as ours."""
    from mindspore.dataset import vision

    path = next((folder / "train").rglob("*.jpg"))
    resized = vision.Resize((288, 384), vision.Inter.BICUBIC)(
        vision.Decode()(np.fromfile(path, np.uint8))
    )
    ours = Image.open(path).convert("RGB").resize((384, 288), LANCZOS)
    return float(np.abs(np.asarray(resized, np.float32) - np.asarray(ours, np.float32)).mean())


def one(reader: str, folder: Path, cores: int) -> dict[str, float]:
    """The figures of a process that is held to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if reader == "MindSpore":
        import mindspore.dataset  # noqa: F401 (not a part of the time)
    if reader == "loader":
        wait(folder, 1, 0.0)  # nor are our imports
    begin, before = time.perf_counter(), os.times()
    images = read(reader, folder, cores)
    seconds, after = time.perf_counter() - begin, os.times()
    spent = sum(after[:4]) - sum(before[:4])
    found = {"images_per_second": images / seconds, "processor_ms": 1000 * spent / images}
    if reader == "loader":
        found["waiting"] = wait(folder, 30, 1.25 * BATCH * seconds / images)
    if reader == "MindSpore":
        found["pixel_difference"] = pixel_difference(folder)
    return found


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        reader, folder, cores = arguments.one
        sys.stdout.write(json.dumps(one(reader, Path(folder), int(cores))))
        return
    found = []
    every = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        make_photographs(Path(folder))
        for cores in sorted({1, min(2, every), every}):
            for reader in READERS:
                if reader == ("Pillow" if cores > 1 else "processes"):
                    continue  # Pillow is one thread
                command = [sys.executable, __file__, "--one", reader, folder, str(cores)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                found.append({"reader": reader, "cores": cores} | json.loads(output))
                log.info("%s", found[-1])
    written = TARGET.with_suffix(".tmp")
    written.write_text(json.dumps(found, indent=1) + "\n")
    written.replace(TARGET)


if __name__ == "__main__":
    main()
