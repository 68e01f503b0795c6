"""Attention in segments, and by the C++ kernels, against one call under the full mask.

    python benchmarks/attention.py [--batch 2] [--rounds 15]

d16, float32, CPU. Prints the medians, and the median of each ratio to the masked form round by
round, forward and with gradient.
"""

import argparse
import logging
import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from var_transformer import BackendConfig, TransformerConfig
from var_transformer.attention import build

log = logging.getLogger("benchmark")


def passes(attend: nn.Cell, scale: Tensor) -> dict[str, Callable[..., object]]:
    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, scale, None, ())[0]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mixed(q, k, v).square().sum()

    return {"forward": ms.jit(mixed), "with gradient": ms.jit(ms.grad(loss, (0, 1, 2)))}


def seconds(function: Callable[..., object], tensors: list[Tensor]) -> float:
    start = time.perf_counter()
    results = function(*tensors)
    for result in results if isinstance(results, tuple) else (results,):
        result.asnumpy().sum()  # graphs run on while their results are not read
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    config = TransformerConfig.preset("d16")
    rng = np.random.default_rng(0)
    shape = (options.batch, config.schedule.length, config.width)
    tensors = [Tensor(rng.standard_normal(shape).astype(np.float32)) for _ in range(3)]
    scale = Tensor(np.full((1, config.heads, 1, 1), 4, np.float32))
    choices = (
        ("masked", BackendConfig("portable", calls="masked")),
        ("segmented", BackendConfig("portable")),
        ("kernels", BackendConfig()),
    )
    forms = {}
    for form, backend in choices:
        attend = build(config.schedule, config.heads, 64, True, backend)
        log.info("%s: %s", form, type(attend).__name__)
        forms[form] = passes(attend, scale)
    for name in ("forward", "with gradient"):
        samples: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(options.rounds + 2):
            for form in forms if turn % 2 else reversed(forms):
                samples[form].append(seconds(forms[form][name], tensors))
        kept = {form: np.array(values[2:]) for form, values in samples.items()}
        for form in forms:
            ratio = np.median(kept[form] / kept["masked"])
            median = 1e3 * np.median(kept[form])
            log.info("%s, %s: %.0f ms, %.2f of masked", name, form, median, ratio)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
