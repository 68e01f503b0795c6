"""Times on the device: of what the checks call, of a training step, and of a generation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import on_cpu, quoted

from var_transformer.attention import BackendConfig
from var_transformer.check_ascend.checks import Check, calls, inputs
from var_transformer.generation.generate import generate
from var_transformer.model.config import TransformerConfig
from var_transformer.model.transformer import Transformer


@dataclass(frozen=True)
class Timing:
    """Medians in ms; peak_gib: of the device's memory so far. None where nothing was measured.

    failure: why, in one line.
    """

    name: str
    dtype: str
    forward_ms: float | None = None
    gradient_ms: float | None = None
    peak_gib: float | None = None
    failure: str = ""


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    """The median time of a call until the device is done, after two that compile and warm up."""
    times = []
    for i in range(runs + 2):
        begin = time.perf_counter()
        _wait(call())
        if i > 1:
            times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def _wait(results: Any) -> None:  # noqa: ANN401 (what a call returns)
    """Until they are computed."""
    if not on_cpu():
        ms.runtime.synchronize()
        return
    # on a CPU, that call only logs an error; the results of a graph come together
    first = results[0] if isinstance(results, tuple) else results
    if isinstance(first, Tensor):
        first.asnumpy()


def time_check(check: Check, runs: int) -> Timing:
    """The call of a check, and that of its gradients (which compute the forward call, too)."""

    def measured() -> Timing:
        tensors, d_out = inputs(check)
        forward, backward = calls(check)
        gradient = None
        if check.names:
            gradient = milliseconds(lambda: backward(*tensors, d_out), runs)
        return _timing(
            check.name, check.dtype, milliseconds(lambda: forward(*tensors), runs), gradient
        )

    return _tried(check.name, check.dtype, measured)


class _Loss(nn.Cell):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def construct(self, labels_b: Tensor, inputs_blz: Tensor, ids_n: Tensor) -> Tensor:
        logits_blv = self.model(labels_b, inputs_blz)
        return ops.cross_entropy(logits_blv.reshape(-1, logits_blv.shape[-1]), ids_n)


def time_step(
    config: TransformerConfig, name: str, backend: BackendConfig, batch: int, runs: int
) -> Timing:
    """Loss and gradients of all weights for a batch, in one graph; without the update."""

    def measured() -> Timing:
        model, rng = Transformer(config, backend=backend), np.random.default_rng(0)
        loss, length = _Loss(model), config.schedule.length
        gradients = ops.GradOperation(get_by_list=True)(loss, model.trainable_params())
        rest = length - config.schedule.tokens[0]
        x = rng.standard_normal((batch, rest, config.latent_channels), np.float32)
        arrays = (
            Tensor(rng.integers(0, config.num_classes, batch).astype(np.int32)),
            Tensor(x),
            Tensor(rng.integers(0, config.vocab_size, batch * length).astype(np.int32)),
        )

        @ms.jit
        def step(labels_b: Tensor, inputs_blz: Tensor, ids_n: Tensor) -> Any:  # noqa: ANN401
            return gradients(labels_b, inputs_blz, ids_n)

        return _timing(
            name, backend.dtype, None, milliseconds(lambda: step(*arrays), runs), memory=True
        )

    return _tried(name, backend.dtype, measured)


def time_images(
    config: TransformerConfig,
    codec: TokenizerConfig,
    name: str,
    backend: BackendConfig,
    images: int,
    runs: int,
) -> Timing:
    """A generation of so many images with guidance and both filters, decoding included."""

    def measured() -> Timing:
        model, tokenizer = Transformer(config, backend=backend), Tokenizer(codec)
        labels = np.arange(images) % config.num_classes
        top_k = min(900, config.vocab_size)
        spent = milliseconds(
            lambda: generate(model, tokenizer, labels, cfg=4.0, top_k=top_k, top_p=0.95), runs
        )
        return _timing(name, backend.dtype, spent, None, memory=True)

    return _tried(name, backend.dtype, measured)


def _timing(
    name: str,
    dtype: ms.Type,
    forward: float | None,
    gradient: float | None,
    memory: bool = False,
) -> Timing:
    peak = ms.runtime.max_memory_allocated() / 2**30 if memory else None
    return Timing(name, str(dtype).lower(), forward, gradient, peak)


def _tried(name: str, dtype: ms.Type, measured: Callable[[], Timing]) -> Timing:
    try:
        return measured()
    except Exception as error:  # what else can be measured is, all the same
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return Timing(name, str(dtype).lower(), failure=quoted(first))
