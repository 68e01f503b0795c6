"""How a training's costs grow with the number of its images: a part of ``nox -s growth``.

    python benchmarks/data_growth.py [--check] [--sizes 20000 100000]

Made-up data: hard links of a small picture in 1,000 classes, a cache of random tokens (680 an
image, mirrored too), a metrics.jsonl with a step for every two images. Writes its figures into
``benchmarks/growth-data.json``, beside those of other sizes. ``--check`` takes the smallest two
sizes and writes nothing; it fails if an image or a step costs more than twice as much with the
larger one, and if memory grows by more than 200 bytes an image. It compares processor time and
memory, not time.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import numpy as np
import tyro
from PIL import Image
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import arrays_checksum, write_tensors
from var_train import ImageFolder, MetricsLog, TokenCache, load_image_tree
from var_train.data.batches import step_indices
from var_train.data.cache_index import CacheIndex
from var_train.data.resume_check import DataRecord, check_data
from var_train.data.token_sources import fingerprint
from var_train.data.unreadable_images import UnreadableImages

log = logging.getLogger("benchmark")
TARGET = Path(__file__).resolve().parent / "growth-data.json"
SIZES = (20_000, 100_000, 400_000, 1_281_167)
CLASSES = tuple(f"n{number:08d}" for number in range(1000))
LINKS = 60_000  # of one file; ext4 allows 65,000
SHARD = 4096
BATCH = 256
SIDE = 8
# figures of an image, a step or a shard; of a start; and of memory
EACH = ("step", "class", "image", "image_one_class", "cache_image", "cache_check")
WHOLE = ("scan", "note", "resume", "cache_open", "metrics")
MEMORY = ("bytes", "peak_bytes")
LIMIT = 200  # bytes an image
SPARE = 4e6  # bytes, by which the allocator's own differ from one process to the next
_TURNS = 3
TOKENS = TokenizerConfig(vocab_size=4096, latent_channels=4, channels=32, res_blocks=1)
PIXELS = (
    *("--tokenizer.channels", "32", "--tokenizer.channel-multipliers", "1", "1"),
    *("--tokenizer.res-blocks", "1", "--tokenizer.scales", "1", "2", "4"),
    *("--train-tokenizer.batch", "64", "--random-crops", "--loop.checkpoint-every", "100000"),
)
SMALL = (
    *("--transformer.depth", "1", "--transformer.width", "32", "--transformer.heads", "1"),
    *("--train-transformer.batch", "16", "--loop.checkpoint-every", "100000"),
)


@dataclass(frozen=True)
class Config:
    """Measure what a training costs by the number of its images."""

    sizes: tuple[int, ...] = SIZES
    """Numbers of images."""
    check: bool = False
    """Compare the smallest two sizes, and write nothing."""
    child: Path | None = None
    """Measure the data in this folder, of the only size, and print the figures."""


# ---------------------------------------------------------------- made-up data
def make_images(folder: Path, count: int) -> None:
    """FOLDER/train with ``count`` images, FOLDER/val with one of each class: links of a few."""
    noise_yxc = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    originals = []
    for n in range(-(-(count + len(CLASSES)) // LINKS)):
        originals.append(folder / f"{n}.jpg")
        Image.fromarray(noise_yxc).save(originals[-1])
    number = 0
    for split, images in (("train", count), ("val", len(CLASSES))):
        for place, name in enumerate(CLASSES):
            below = folder / split / name
            below.mkdir(parents=True)
            for n in range(place, images, len(CLASSES)):
                os.link(originals[number // LINKS], f"{below}/{name}_{n}.JPEG")
                number += 1


def make_cache(folder: Path, count: int, tokenizer: Tokenizer) -> None:
    """A cache as ``write_cache`` makes it, with the same random tokens in every shard."""
    index = CacheIndex(
        tokenizer=fingerprint(tokenizer),
        vocab_size=tokenizer.vocab_size,
        scales=tokenizer.schedule.scales,
        classes=CLASSES,
        shard=SHARD,
        images={"train": count, "val": len(CLASSES)},
        files="made up",
    )
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps(asdict(index)))
    shape = (SHARD, tokenizer.schedule.length)
    ids_nl = np.random.default_rng(0).integers(0, tokenizer.vocab_size, shape).astype(np.uint16)
    for split, images in index.images.items():
        (folder / split).mkdir()
        labels_n = np.sort(np.arange(images) % len(CLASSES)).astype(np.int32)
        for path, rows in index.shards(folder, split):
            index_n = np.array(rows)
            own_n = labels_n[index_n]
            arrays = {"ids": ids_nl[: len(rows)], "flipped": ids_nl[: len(rows)], "labels": own_n}
            noted = {name: index_n for name in ("index", "size", "time", "hash")}
            names = [
                f"{CLASSES[c]}/{CLASSES[c]}_{n}.JPEG" for c, n in zip(own_n, rows, strict=True)
            ]
            texts = {"sha256": arrays_checksum(arrays), "names": json.dumps(names)}
            write_tensors(path, arrays | noted, texts)


def make_metrics(folder: Path, steps: int) -> None:
    """metrics.jsonl of a run of both stages."""
    with (folder / "metrics.jsonl").open("w") as file:
        for stage in ("tokenizer", "transformer"):
            for step in range(steps // 2):
                line = {"stage": stage, "step": step, "seconds": float(step), "loss": 6.123456}
                line |= {f"seconds_{part}": 0.123456 for part in ("step", "data", "optimizer")}
                file.write(json.dumps(line) + "\n")


# ---------------------------------------------------------------- figures of one size
def spent(job: Callable[[], object], rounds: int = 1) -> float:
    """Least processor seconds of a call, of all threads."""
    least = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        job()
        least = min(least, time.process_time() - begin)
    return least


def memory(field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def measure(count: int, folder: Path) -> dict[str, float]:
    """Processor seconds, but bytes where a name says so."""
    found: dict[str, float] = {}
    rng = np.random.default_rng(1)
    before = memory("VmRSS")
    sources: list[ImageFolder] = []
    records: list[DataRecord] = []

    def scan() -> None:
        train, val = load_image_tree(folder, (SIDE, SIDE), random_crops=True)
        assert isinstance(train, ImageFolder) and val.files is not None
        sources[:] = [train]
        records[:] = [DataRecord.of(train.files, val.files)]

    found["scan"] = spent(scan)
    (train,), (record,) = sources, records
    found["note"] = spent(lambda: record.save(folder), 2)
    step_indices(count, BATCH, 0, 0)
    found["bytes"] = memory("VmRSS") - before
    settings = {"data": record.settings, "tokens": None}

    def compare() -> None:
        check_data(folder, settings, settings, record)
        record.watch((train, None), [folder])

    found["resume"] = spent(compare)
    found["peak_bytes"] = memory("VmHWM") - before
    found["scan_again"] = spent(scan)

    steps = cycle(range(count // BATCH))
    found["step"] = spent(
        lambda: [step_indices(count, BATCH, 0, step) for step in islice(steps, 50)], 9
    )
    found["step"] /= 50
    names = ("all",)
    one = ImageFolder(
        replace(train.files, labels_n=np.zeros(count, np.int32), classes=names), (SIDE, SIDE)
    )
    chosen = rng.integers(0, count, BATCH)
    bad = UnreadableImages(train.files)
    found["class"] = spent(lambda: [next(bad.candidates(i)) for i in chosen.tolist()], 9) / BATCH
    found["image"] = spent(lambda: train.batch(chosen), 9) / BATCH
    found["image_one_class"] = spent(lambda: one.batch(chosen), 9) / BATCH

    def resume() -> None:
        metrics = MetricsLog(folder, resume=True)
        metrics.rewind("tokenizer", count // 4)
        metrics.rewind("transformer", count // 4 - 100)
        metrics.close()

    found["metrics"] = spent(resume)

    tokenizer = Tokenizer(TOKENS, 0)
    caches: list[TokenCache] = []
    found["cache_open"] = spent(
        lambda: caches.append(TokenCache(folder / "cache", "train", tokenizer)), 3
    )
    cache = caches.pop()
    caches.clear()
    firsts = np.arange(0, count, SHARD)
    found["cache_check"] = spent(lambda: cache.batch(firsts)) / len(firsts)
    chosen = rng.integers(0, count, BATCH)
    found["cache_image"] = spent(lambda: cache.batch(chosen), 9) / BATCH
    return found


def first_step(folder: Path, out: Path, words: tuple[str, ...]) -> float:
    """Seconds, by the clock, from a command's start to the end of its first step."""
    command = [sys.executable, "-m", "var_train.run", "--out", str(out), *words]
    begin, metrics = time.monotonic(), out / "metrics.jsonl"
    with (folder / "log").open("w") as written:
        process = subprocess.Popen(command, stderr=written, stdout=written)
    try:
        while not metrics.exists() or b"\n" not in metrics.read_bytes():
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.02)
        return time.monotonic() - begin
    finally:
        process.kill()
        process.wait()


def run_one(count: int, whole: bool) -> dict[str, float]:
    """Makes data of one size, measures it in a process of its own, and removes it."""
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "kept")  # where lists of images are kept
        make_images(folder, count)
        tokenizer = Tokenizer(TOKENS, 0)
        tokenizer.save(folder / "tokenizer.safetensors")
        make_cache(folder / "cache", count, tokenizer)
        make_metrics(folder, count // 2)
        if whole:
            time.sleep(6)  # the list of a folder that has only just changed is not kept
        command = [sys.executable, __file__, "--child", name, "--sizes", str(count)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if whole:
            pixels = ("--stage", "tokenizer", "--data", name, *PIXELS)
            files = str(folder / "cache"), "--tokenizer-file", str(folder / "tokenizer.safetensors")
            tokens = ("--stage", "transformer", "--tokens", *files, *SMALL)
            for kind, words in (("pixels", pixels), ("tokens", tokens)):
                found[f"first_step_{kind}"] = first_step(folder, folder / kind, words)
        log.info("%d images: %s", count, {k: float(f"{v:.3g}") for k, v in found.items()})
        return found


# ---------------------------------------------------------------- the law
def problems(small: dict[str, float], large: dict[str, float], fewer: int, more: int) -> list[str]:
    """What is not flat, of the figures for ``fewer`` and for ``more`` images."""
    found = []
    for name in EACH:
        most = 2 * small[name] + 5e-6
        if large[name] > most:
            found.append(f"{name}: {large[name] * 1e6:.0f} us; expected at most {most * 1e6:.0f}")
    for name in WHOLE:
        most = 2 * more / fewer * small[name] + 0.2
        if large[name] > most:
            found.append(f"{name}: {large[name]:.2f} s; expected at most {most:.2f}")
    for name in MEMORY:
        each = (large[name] - small[name] - SPARE) / (more - fewer)
        if each > LIMIT:
            found.append(f"{name}: {each:.0f} an image; expected at most {LIMIT}")
    return found


def check(fewer: int, more: int) -> None:
    """Raises SystemExit if something is not flat in each of three turns.

    What else runs on the machine makes processor time longer, too, but not shorter: the least of
    each figure counts.
    """
    small: dict[str, float] = {}
    large: dict[str, float] = {}
    wrong: list[str] = []
    for _ in range(_TURNS):
        for count, least in ((fewer, small), (more, large)):
            for name, value in run_one(count, whole=False).items():
                least[name] = min(value, least.get(name, value))
        wrong = problems(small, large, fewer, more)
        if not wrong:
            return
    raise SystemExit("not flat in the number of images:\n" + "\n".join(wrong))


def record(count: int, found: dict[str, float]) -> None:
    """Writes the figures of one size beside those of others."""
    others = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    every = {int(size): of for size, of in others.items()} | {count: found}
    written = TARGET.with_suffix(".tmp")
    written.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")
    written.replace(TARGET)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(Config)
    if config.child is not None:
        logging.disable()
        sys.stdout.write(json.dumps(measure(config.sizes[0], config.child)))
        return
    if config.check:
        check(*config.sizes[:2])
        return
    for count in config.sizes:
        record(count, run_one(count, whole=True))


if __name__ == "__main__":
    main()
