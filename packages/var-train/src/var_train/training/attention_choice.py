"""``--attention auto``: the calls of attention that take a training step the least time.

They are timed in the first step, on its images and all scales, before it is taken. So one of them
computes every step, and the run is that of ``--attention NAME``, bit for bit. A checkpoint names
it, and a resumed run keeps it: another would give results that agree to rounding alone.
"""

import logging
import math
import time
from collections.abc import Callable

import numpy as np
from mindspore import Tensor
from var_tokenizer.common import quoted
from var_transformer import Transformer

from var_train.parallel import workers
from var_train.reports.metrics_log import Value

log = logging.getLogger(__name__)

_ROUNDS = 3  # timed calls of each, after one that compiles


class AttentionChoice:
    """Which calls a model attends all scales at once in; every worker takes the same.

    is_open: whether to ``choose`` before the next step. name: of the chosen calls; None until then,
    and where there is nothing to choose.
    """

    def __init__(self, model: Transformer) -> None:
        self.name: str | None = None
        self._model, self._names = model, model.attention_candidates
        self.is_open = model.backend.calls == "auto" and len(self._names) > 1
        if model.backend.calls == "auto" and not self.is_open:
            log.info("attention: this device has one way to compute it, and nothing to time")

    def choose(
        self, build: Callable[[], Callable], inputs: tuple[Tensor, ...]
    ) -> tuple[Callable, dict[str, Value]]:
        """The function of the fastest calls, and what to record; the model uses them from now on.

        build: a new function of ``inputs``, whose first result is the loss; compiled when called.
        Calls that fail, for want of memory, say, are left out; if all do, raises what one did.
        """
        functions: dict[str, Callable] = {}
        spent: list[float] = []
        for name in self._names:
            self._model.use_attention(name)
            functions[name] = build()
            spent.append(_seconds(name, functions[name], inputs))
        # a step takes as long as its slowest worker
        seconds = dict(
            zip(self._names, workers.gather(np.array(spent)).max(0).tolist(), strict=True)
        )
        best = min(seconds, key=lambda name: seconds[name])
        if math.isinf(seconds[best]):
            functions[best](*inputs)  # raises again what it did
        self._use(best)
        times = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
        log.info("attention: %s from now on (forward and backward: %s)", best, times)
        timed = {f"seconds_attention_{n}": round(s, 6) for n, s in seconds.items() if s < math.inf}
        return functions[best], {"attention": best, **timed}

    def restore(self, name: object) -> None:
        """Goes on with what a checkpoint names, if this device has it."""
        if self.is_open and isinstance(name, str) and name in self._names:
            self._use(name)
            log.info("attention: %s, as the checkpoint's run chose", name)

    def _use(self, name: str) -> None:
        self.name, self.is_open = name, False
        self._model.use_attention(name)


def _seconds(name: str, function: Callable, inputs: tuple[Tensor, ...]) -> float:
    """The least time of a call; infinity if it fails."""
    least = math.inf
    try:
        for turn in range(_ROUNDS + 1):
            begin = time.perf_counter()
            float(function(*inputs)[0])  # the loss; reading it waits for the device
            if turn:
                least = min(least, time.perf_counter() - begin)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        log.warning("attention: %s is left out: %s", name, quoted(first))
        return math.inf
    return least
