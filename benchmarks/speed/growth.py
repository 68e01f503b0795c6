"""How the seconds of one generation grow with batch, depth and resolution: ``nox -s growth``.

    python benchmarks/speed/growth.py [--rounds 3]

256x256 and random weights unless said; two threads. Writes ``benchmarks/growth.json``: for each
setting the samples, in seconds.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import numpy as np
from var_tokenizer import Tokenizer, TokenizerConfig
from var_transformer import Transformer, TransformerConfig, generate

log = logging.getLogger("benchmark")
TARGET = Path(__file__).resolve().parents[1] / "growth.json"
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)  # the published scales of 512x512


def samples(job: Callable[[], object], rounds: int) -> list[float]:
    job()  # compiles
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        seconds.append(round(time.perf_counter() - start, 3))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = Tokenizer(TokenizerConfig())
    found: dict[str, dict[str, list[float]]] = {"batch": {}, "depth": {}, "resolution": {}}

    def measure(kind: str, name: str, model: Transformer, of: Tokenizer, batch: int) -> None:
        labels = np.arange(batch)
        found[kind][name] = samples(lambda: generate(model, of, labels), rounds)
        log.info("%s %s: %s", kind, name, found[kind][name])

    model = Transformer(TransformerConfig.preset("d16"))
    for batch in (1, 2, 4, 8):
        measure("batch", str(batch), model, tokenizer, batch)
    found["depth"]["16"] = found["resolution"]["256"] = found["batch"]["1"]
    for depth in (20, 24):
        del model  # the weights of one size at a time
        model = Transformer(TransformerConfig.preset(f"d{depth}"))
        measure("depth", str(depth), model, tokenizer, 1)
    del model
    large = Tokenizer(TokenizerConfig(scales=LARGE))
    model = Transformer(TransformerConfig(depth=16, width=1024, heads=16, scales=LARGE))
    measure("resolution", "512", model, large, 1)
    written = TARGET.with_suffix(".tmp")
    written.write_text(json.dumps(found, indent=1) + "\n")
    written.replace(TARGET)


if __name__ == "__main__":
    main()
