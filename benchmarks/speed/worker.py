"""One side of the benchmark: this project or the PyTorch reference, in a process of its own.

    python worker.py ours|torch codec|generate|train WEIGHTS

Loads what the part needs, then obeys lines on standard input, one job a line, and answers each
with a line of JSON: ``{"seconds": s, "result": [...], ...}``.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_convert.reference import TorchTransformer
    from var_tokenizer import TokenizerConfig
    from var_transformer import Transformer, TransformerConfig

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

import numpy as np

THREADS = 2
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
    """(B, 3, side, side) in [-1, 1], smooth, the same on both sides."""
    rng = np.random.default_rng(1)
    coarse = rng.uniform(-1, 1, (batch, 3, 16, 16)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, side // 16, side // 16), np.float32))


def ids_of(config: "TokenizerConfig | TransformerConfig", batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, config.vocab_size, (batch, n)) for n in config.schedule.tokens]


def labels_of(batch: int) -> np.ndarray:
    return np.arange(batch, dtype=np.int64) * 100 + 7


def digest(images: np.ndarray) -> list[float]:
    """A few pixels, for the comparison of the two sides."""
    return np.asarray(images)[..., ::32, ::32].astype(float).ravel().tolist()


# ------------------------------------------------------------------------------ this project
def ours(part: str, weights: Path) -> dict[str, Job]:
    from var_tokenizer import Tokenizer
    from var_transformer import Transformer, generate

    if part == "train":
        return {"train": _our_step(Transformer.load(weights / "var.safetensors"))}
    tokenizer = Tokenizer.load(weights / "vae.safetensors")
    if part == "codec":
        images, ids = images_of(1, tokenizer.config.image_size[0]), ids_of(tokenizer.config, 1)
        return {
            "encode": lambda: tokenizer.encode_sequence(images).tolist(),
            "decode": lambda: digest(tokenizer.decode(ids)),
        }
    model = Transformer.load(weights / "var.safetensors")
    sampling: dict[str, Any] = {"cfg": CFG, "top_k": TOP_K, "top_p": TOP_P}

    def images_of_labels(batch: int) -> list[float]:
        return digest(generate(model, tokenizer, labels_of(batch), **sampling).images)

    def likeliest() -> list[list[int]]:
        return np.concatenate(
            generate(model, tokenizer, labels_of(1), cfg=CFG, top_k=1).ids, 1
        ).tolist()

    def split() -> dict[str, float]:
        watch = Stopwatch()
        watch.attach("transformer", model, "condition", "extend")
        watch.attach("tokenizer", tokenizer, "add_scale", "scale_input")
        watch.attach("decoder", tokenizer, "decode_latent")
        return watch.split(lambda: images_of_labels(1))

    jobs: dict[str, Job] = {f"generate_b{b}": partial(images_of_labels, b) for b in (1, 4)}
    return jobs | {"likeliest": likeliest, "split": split}


def _our_step(model: "Transformer") -> Job:
    """Forward, backward and AdamW, compiled as the trainer compiles them."""
    import mindspore as ms
    from mindspore import Tensor
    from var_train import AdamW, AdamWConfig, is_decayed, release_gradients, token_losses

    config = model.config
    parameters = model.trainable_params()
    recipe = AdamWConfig(LEARNING_RATE, BETAS, WEIGHT_DECAY, clip=CLIP, warmup=0)
    optimizer = AdamW(parameters, recipe, is_decayed)

    def loss_of(labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor) -> Tensor:
        return token_losses(model(labels_b, inputs_blz), ids_bl, 0.0).mean()

    gradients_of = ms.value_and_grad(loss_of, None, parameters)

    @ms.jit
    def gradients(labels_b: Tensor, inputs_blz: Tensor, ids_bl: Tensor) -> tuple[Tensor, Any]:
        return gradients_of(labels_b, inputs_blz, ids_bl)

    @ms.jit
    def update(found: tuple[Tensor, ...], scalars_3: Tensor) -> Tensor:
        return optimizer(found, scalars_3)

    labels_b, inputs_blz, ids_bl = _training_batch(config)
    tensors = Tensor(labels_b.astype(np.int32)), Tensor(inputs_blz), Tensor(ids_bl.astype(np.int32))
    scalars = optimizer.scalars(1, 1000)

    def step() -> list[float]:
        loss, found = gradients(*tensors)
        norm = float(update(ms.mutable(found), scalars))
        release_gradients(found)
        return [float(loss), norm]

    return step


def _training_batch(config: "TransformerConfig") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, schedule = np.random.default_rng(3), config.schedule
    rest = schedule.length - schedule.tokens[0]
    inputs = rng.standard_normal((TRAINING_BATCH, rest, config.latent_channels))
    ids = np.concatenate(ids_of(config, TRAINING_BATCH), 1)
    return labels_of(TRAINING_BATCH), inputs.astype(np.float32), ids


# -------------------------------------------------------------------------------- PyTorch
def reference(part: str, weights: Path) -> dict[str, Job]:
    import torch
    from var_convert.reference import TorchTokenizer, TorchTransformer, torch_generate

    torch.set_num_threads(THREADS)
    if part == "train":
        return {"train": _reference_step(TorchTransformer.from_file(weights / "var.safetensors"))}
    tokenizer = TorchTokenizer.from_file(weights / "vae.safetensors")
    if part == "codec":
        images = torch.tensor(images_of(1, tokenizer.config.image_size[0]))
        ids = [torch.tensor(i) for i in ids_of(tokenizer.config, 1)]

        @torch.inference_mode()
        def encode() -> list[list[int]]:
            return torch.cat(tokenizer.encode(images), 1).tolist()

        @torch.inference_mode()
        def decode() -> list[float]:
            return digest(tokenizer.decode(ids))

        def work() -> dict[str, float]:
            return {"encode": _multiply_adds(encode), "decode": _multiply_adds(decode)}

        return {"encode": encode, "decode": decode, "work": work, "peak": _peak}
    model = TorchTransformer.from_file(weights / "var.safetensors")
    sampling = {"cfg": CFG, "top_k": TOP_K, "top_p": TOP_P}

    def generate(batch: int) -> list[float]:
        labels = torch.tensor(labels_of(batch))
        return digest(torch_generate(model, tokenizer, labels, **sampling).images)

    def split() -> dict[str, float]:
        watch = Stopwatch()
        modules = (model.class_emb, model.word_embed, *model.blocks, model.head_nm, model.head)
        for module in modules:
            watch.attach("transformer", module, "forward")
        watch.attach("decoder", tokenizer, "decode_latent")
        return watch.split(lambda: generate(1))

    jobs: dict[str, Job] = {f"generate_b{b}": partial(generate, b) for b in (1, 4)}
    jobs["likeliest"] = lambda: torch.cat(
        torch_generate(model, tokenizer, torch.tensor(labels_of(1)), cfg=CFG, top_k=1).ids, 1
    ).tolist()
    return jobs | {
        "split": split,
        "work": lambda: {"generate_b1": _multiply_adds(jobs["generate_b1"])},
    }


def _reference_step(model: "TorchTransformer") -> Job:
    import torch
    from var_train import is_decayed

    labels, inputs, ids = (torch.tensor(a) for a in _training_batch(model.config))
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[is_decayed(SimpleNamespace(name=name, ndim=parameter.ndim))].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": WEIGHT_DECAY},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        fused=True,
    )

    def step() -> list[float]:
        logits_blv = model(labels, inputs)
        loss = torch.nn.functional.cross_entropy(logits_blv.flatten(0, 1), ids.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return [loss.item(), norm.item()]

    return step


def _multiply_adds(job: Job) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 2


def _peak() -> dict[str, float]:
    """Multiply-adds a second of a large product of matrices, the machine's practical limit."""
    import torch

    side = 2048
    a = torch.randn(side, side)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return {"multiply_adds_per_second": side**3 / min(seconds)}


def peak_memory() -> int:
    """Bytes that this process held at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no VmHWM")


def main() -> None:
    side, part, weights = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    jobs = (ours if side == "ours" else reference)(part, Path(weights))
    for line in sys.stdin:
        start = time.perf_counter()
        result = jobs[line.strip()]()
        answer = {"seconds": time.perf_counter() - start, "result": result}
        answers.write(json.dumps(answer | {"peak_memory": peak_memory()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
