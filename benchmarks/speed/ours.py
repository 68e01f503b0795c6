"""This project's side of the benchmark."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from inputs import (
    BETAS,
    CFG,
    CLIP,
    LEARNING_RATE,
    TOP_K,
    TOP_P,
    WEIGHT_DECAY,
    Job,
    Stopwatch,
    digest,
    ids_of,
    images_of,
    labels_of,
    training_batch,
)
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_transformer import SPEEDS, Sampler, Transformer, generate
from var_transformer.model.operators import Linear


def jobs(part: str, weights: Path) -> dict[str, Job]:
    if part == "train":
        return {"train": _our_step(Transformer.load(weights / "var.safetensors"))}
    tokenizer = Tokenizer.load(weights / "vae.safetensors")
    if part == "codec":
        images, ids = images_of(1, tokenizer.config.image_size[0]), ids_of(tokenizer.config, 1)
        return {
            "encode": lambda: tokenizer.encode_sequence(images).tolist(),
            "decode": lambda: digest(tokenizer.decode(ids)),
            "peak": _peak,
        }
    model = Transformer.load(weights / "var.safetensors")
    sampling: dict[str, Any] = {"cfg": CFG, "top_k": TOP_K, "top_p": TOP_P}

    def images_of_labels(batch: int, speed: int = 0) -> list[float]:
        sampler = Sampler(speed=speed, **sampling)
        return digest(generate(model, tokenizer, labels_of(batch), sampler=sampler).images)

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

    found: dict[str, Job] = {f"generate_b{b}": partial(images_of_labels, b) for b in (1, 4)}
    found |= {f"speed_{n}": partial(images_of_labels, 1, n) for n in range(len(SPEEDS))}
    return found | {"likeliest": likeliest, "split": split}


def _our_step(model: Transformer) -> Job:
    """Forward, backward and AdamW, compiled as the trainer compiles them."""
    # here, because what it imports takes memory that the other parts do not need
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

    labels_b, inputs_blz, ids_bl = training_batch(config)
    tensors = Tensor(labels_b.astype(np.int32)), Tensor(inputs_blz), Tensor(ids_bl.astype(np.int32))
    scalars = optimizer.scalars(1, 1000)

    def step() -> list[float]:
        loss, found = gradients(*tensors)
        norm = float(update(ms.mutable(found), scalars))
        release_gradients(found)
        return [float(loss), norm]

    return step


def _peak() -> float:
    """Multiply-adds a second of a large product of matrices, on the threads of our kernels."""
    side = 2048
    a = Tensor(np.random.default_rng(0).standard_normal((side, side)).astype(np.float32))
    bias = Tensor(np.zeros(side, np.float32))
    product = ms.jit(Linear())
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        product(a, a, bias).asnumpy()
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds)
