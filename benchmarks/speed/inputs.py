"""What all sides compute, and the same inputs for each."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from var_tokenizer import TokenizerConfig
    from var_transformer import TransformerConfig

CFG, TOP_K, TOP_P = 1.5, 900, 0.96  # as the paper samples
TRAINING_BATCH = 2
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 0.05, 2.0

Job = Callable[[], Any]


class Stopwatch:
    """Seconds by part of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def attach(self, part: str, target: object, *methods: str) -> None:
        """From now on times these methods of ``target`` as ``part``, to the end of their work."""
        for name in methods:
            setattr(target, name, self._timed(part, getattr(target, name)))

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: object, **named: object) -> object:
            start = time.perf_counter()
            result = method(*arguments, **named)
            first = result[0] if isinstance(result, tuple) else result
            if hasattr(first, "asnumpy"):  # graphs run on while their results are not read
                first.asnumpy()
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            return result

        return timed

    def split(self, job: Job) -> dict[str, float]:
        """Seconds of a job by part; "sampling" is what is attached to none."""
        start = time.perf_counter()
        job()
        self.seconds["sampling"] = time.perf_counter() - start - sum(self.seconds.values())
        return self.seconds


def images_of(batch: int, side: int) -> np.ndarray:
    """(B, 3, side, side) in [-1, 1], smooth."""
    rng = np.random.default_rng(1)
    coarse = rng.uniform(-1, 1, (batch, 3, 16, 16)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, side // 16, side // 16), np.float32))


def ids_of(config: "TokenizerConfig | TransformerConfig", batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, config.vocab_size, (batch, n)) for n in config.schedule.tokens]


def labels_of(batch: int) -> np.ndarray:
    return np.arange(batch, dtype=np.int64) * 100 + 7


def training_batch(config: "TransformerConfig") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels (B), inputs (B, L - l_1, z) and ids (B, L)."""
    rng, schedule = np.random.default_rng(3), config.schedule
    rest = schedule.length - schedule.tokens[0]
    inputs = rng.standard_normal((TRAINING_BATCH, rest, config.latent_channels))
    ids = np.concatenate(ids_of(config, TRAINING_BATCH), 1)
    return labels_of(TRAINING_BATCH), inputs.astype(np.float32), ids


def digest(images: Any) -> list[float]:
    """A few pixels, for the comparison of the sides."""
    return np.asarray(images)[..., ::32, ::32].astype(float).ravel().tolist()
