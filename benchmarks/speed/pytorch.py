"""PyTorch's sides of the benchmark, eager and by torch.compile: the reference of var-convert.

python pytorch.py FOLDER     # draws the weights that all sides load
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
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
from machine import THREADS
from reference import (
    TokenizerConfig,
    TorchTokenizer,
    TorchTransformer,
    TransformerConfig,
    convert,
    torch_generate,
)
from torch.utils.flop_counter import FlopCounterMode


def compiled_jobs(part: str, weights: Path) -> dict[str, Job]:
    return jobs(part, weights, compiled=True)


def jobs(part: str, weights: Path, compiled: bool = False) -> dict[str, Job]:
    torch.set_num_threads(THREADS)
    if part == "train":
        model = TorchTransformer.from_file(weights / "var.safetensors")
        if compiled:
            _compile_blocks(model)
        return {"train": _step(model)}
    tokenizer = TorchTokenizer.from_file(weights / "vae.safetensors")
    if compiled:
        # weights as constants, laid out for oneDNN once; but then no code serves several blocks
        torch._inductor.config.freezing = part == "codec"
        tokenizer.requires_grad_(False)
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
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
    model = TorchTransformer.from_file(weights / "var.safetensors").requires_grad_(False)
    if compiled:
        _compile_blocks(model)
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

    found: dict[str, Job] = {f"generate_b{b}": partial(generate, b) for b in (1, 4)}
    found["likeliest"] = lambda: torch.cat(
        torch_generate(model, tokenizer, torch.tensor(labels_of(1)), cfg=CFG, top_k=1).ids, 1
    ).tolist()
    return found | {
        "split": split,
        "work": lambda: {"generate_b1": _multiply_adds(found["generate_b1"])},
    }


def _compile_blocks(model: TorchTransformer) -> None:
    """One by one: the code of a block serves all of them, for any number of tokens."""
    for block in model.blocks:
        block.compile(dynamic=True)


def _step(model: TorchTransformer) -> Job:
    labels, inputs, ids = (torch.tensor(a) for a in training_batch(model.config))
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        exempt = any(kind in name for kind in ("class_emb", "lvl_embed", "pos_"))  # as ours
        groups[parameter.ndim > 1 and not exempt].append(parameter)
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
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 2


def _peak() -> float:
    """Multiply-adds a second of a large product of matrices."""
    side = 2048
    a = torch.randn(side, side)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds)


def draw_weights(folder: Path) -> None:
    """Random ones, where they are missing: vae.safetensors and var.safetensors."""
    torch.manual_seed(0)
    models: dict[str, Callable[[], torch.nn.Module]] = {
        "vae": lambda: TorchTokenizer(TokenizerConfig()),
        "var": lambda: TorchTransformer(TransformerConfig.preset("d16")),
    }
    for name, build in models.items():
        target = folder / f"{name}.safetensors"
        if not target.exists():
            source = folder / f"{name}.pth"
            torch.save(build().state_dict(), source)
            convert(source, target)
            source.unlink()


if __name__ == "__main__":
    draw_weights(Path(sys.argv[1]))
