"""OpenVINO's side of the benchmark: the PyTorch reference, converted.

    python converted.py WEIGHTS     # converts, in a process that needs PyTorch

Published for OpenVINO is no VAR, so this is what its user would write: ``encode``, ``decode``, and
one pass of the transformer over the tokens of a scale, whose keys and values are state inside the
graph. The shapes of tokens are dynamic, so one graph serves all scales. Sampling is NumPy's.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from inputs import CFG, TOP_K, TOP_P, Job, digest, ids_of, images_of, labels_of
from machine import THREADS

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of d16, 256 px
TOKENS = tuple(side * side for side in SCALES)
OFFSETS = tuple(sum(TOKENS[:k]) for k in range(len(TOKENS) + 1))
FOLDER = f"openvino-{openvino.__version__.split('-')[0]}"
SETTINGS = {
    "INFERENCE_NUM_THREADS": THREADS,
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "PERFORMANCE_HINT": "LATENCY",
}


_NEXT = [f"next{k}" for k in range(len(SCALES))]


class _Config:
    """As ``ids_of`` reads one."""

    class schedule:  # noqa: N801
        tokens = TOKENS

    vocab_size = 4096


def export(weights: Path, target: Path) -> None:
    """Writes the graphs, and ``bounded``, the pass for AVX2.

    Products of matrices are MLAS's in OpenVINO, which no setting holds to AVX2. It gives those
    with a follower to its oneDNN, which obeys: there, a bound that changes nothing.
    """
    import torch
    from reference import TorchTokenizer, TorchTransformer
    from torch import Tensor, nn

    def bounded(*arguments: Any) -> Tensor:
        return linear(*arguments).clamp(-1e30, 1e30)

    class Method(nn.Module):
        """A method of a module as a module."""

        def __init__(self, inner: nn.Module, method: Any) -> None:
            super().__init__()
            self.inner, self.method = inner, method

        def forward(self, *tensors: Tensor) -> Any:
            return self.method(*tensors)

    class Pass(nn.Module):
        """A scale's tokens to logits; keys and values of the scales before it, and with it."""

        def __init__(self, model: TorchTransformer) -> None:
            super().__init__()
            self.model = model

        def forward(self, labels_b: Tensor, x_blc: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
            model = self.model
            condition_bc = model.class_emb(labels_b)
            grown: list[Tensor] = []
            for i, block in enumerate(model.blocks):
                past = caches[2 * i], caches[2 * i + 1]
                x_blc, present = block(x_blc, condition_bc, None, cache=past)
                grown += present
            return (model.head(model.head_nm(x_blc, condition_bc)), *grown)

    target.mkdir(parents=True, exist_ok=True)
    tokenizer = TorchTokenizer.from_file(weights / "vae.safetensors").requires_grad_(False)
    model = TorchTransformer.from_file(weights / "var.safetensors").requires_grad_(False)
    assert model.config.schedule.tokens == TOKENS
    quantizer, config = tokenizer.quantize, model.config
    place_1lc = model.lvl_embed(model.lvl_1L) + model.pos_1LC

    def first(labels_b: Tensor) -> Tensor:
        return model.class_emb(labels_b)[:, None] + model.pos_start + place_1lc[:, : TOKENS[0]]

    def following(k: int, ids_bl: Tensor, total_bzyx: Tensor) -> tuple[Tensor, ...]:
        total_bzyx = total_bzyx + quantizer.contribution(ids_bl, k)
        if k + 1 == len(SCALES):
            return (total_bzyx,)
        next_blz = quantizer.next_input(total_bzyx, k + 1)
        x_blc = model.word_embed(next_blz) + place_1lc[:, OFFSETS[k + 1] : OFFSETS[k + 2]]
        return total_bzyx, x_blc.repeat(2, 1, 1)

    def write(name: str, module: nn.Module, example: tuple[Tensor, ...]) -> None:
        graph = openvino.convert_model(module, example_input=example)
        openvino.save_model(graph, target / f"{name}.xml", compress_to_fp16=False)

    side = tokenizer.config.image_size[0]
    latent = (torch.zeros(1, config.latent_channels, SCALES[-1], SCALES[-1]),)
    with torch.inference_mode():
        write("encode", Method(tokenizer, tokenizer.encode), (torch.zeros(1, 3, side, side),))
        ids = tuple(torch.tensor(i) for i in ids_of(config, 1))
        write("decode", Method(tokenizer, lambda *ids: tokenizer.decode(list(ids))), ids)
        write("latent", Method(tokenizer, tokenizer.decode_latent), latent)
        write("first", Method(model, first), (torch.zeros(2, dtype=torch.long),))
        for k in range(len(SCALES)):
            example = (ids[k], *latent)
            write(f"next{k}", Method(tokenizer, partial(following, k)), example)
        c, d = config.width, config.width // config.heads
        caches = tuple(torch.zeros(2, config.heads, 4, d) for _ in range(2 * config.depth))
        example = torch.zeros(2, dtype=torch.long), torch.zeros(2, 9, c), *caches
        write("pass", Pass(model), example)
        nn.functional.linear, linear = bounded, nn.functional.linear
        write("bounded", Pass(model), example)
        nn.functional.linear = linear


def jobs(part: str, weights: Path) -> dict[str, Job]:
    from openvino._offline_transformations import apply_make_stateful_transformation

    core = openvino.Core()
    folder = weights / FOLDER

    def compiled(name: str) -> Any:
        return core.compile_model(folder / f"{name}.xml", "CPU", SETTINGS).create_infer_request()

    if part == "codec":
        encode, decode = compiled("encode"), compiled("decode")
        images, ids = images_of(1, 256), ids_of(_Config, 1)  # type: ignore[arg-type]
        return {
            "encode": lambda: np.concatenate(encode.infer(images).to_tuple(), 1).tolist(),
            "decode": lambda: digest(decode.infer(ids).to_tuple()[0]),
        }
    graphs = {name: compiled(name) for name in ("first", "latent", *_NEXT)}
    passes: dict[int, Any] = {}

    def pass_of(batch: int) -> Any:
        """For a batch, with the caches as state; the number of tokens is free."""
        name = "bounded" if os.environ.get("OV_CPU_MAX_ISA") == "AVX2" else "pass"
        graph = core.read_model(folder / f"{name}.xml")
        ports = zip(graph.inputs[2:], graph.outputs[1:], strict=True)
        names = {}
        for i, (past, present) in enumerate(ports):
            past.get_tensor().set_names({f"past{i}"})
            present.get_tensor().set_names({f"present{i}"})
            names[f"past{i}"] = f"present{i}"
        shapes = {graph.inputs[0]: [2 * batch], graph.inputs[1]: [2 * batch, -1, 1024]}
        graph.reshape(shapes | {port: [2 * batch, 16, -1, 64] for port in graph.inputs[2:]})
        apply_make_stateful_transformation(graph, names)
        return core.compile_model(graph, "CPU", SETTINGS).create_infer_request()

    def generate(batch: int, top_k: int = TOP_K, top_p: float = TOP_P) -> tuple[Any, list[Any]]:
        if batch not in passes:
            passes.clear()  # one at a time in memory
            passes[batch] = pass_of(batch)
        scale, rng, ids = passes[batch], np.random.default_rng(0), []
        scale.reset_state()
        labels_b = np.concatenate((labels_of(batch), np.full(batch, 1000)))
        x_blc = graphs["first"].infer([labels_b]).to_tuple()[0]
        total_bzyx = np.zeros((batch, 32, SCALES[-1], SCALES[-1]), np.float32)
        for k in range(len(SCALES)):
            with_class, without = np.split(scale.infer([labels_b, x_blc]).to_tuple()[0], 2)
            t = CFG * k / (len(SCALES) - 1)
            ids.append(draw((1 + t) * with_class - t * without, top_k, top_p, rng))
            total_bzyx, *rest = graphs[f"next{k}"].infer([ids[k], total_bzyx]).to_tuple()
            x_blc = rest[0] if rest else None
        return (graphs["latent"].infer([total_bzyx]).to_tuple()[0] + 1) / 2, ids

    def pixels(batch: int) -> list[float]:
        return digest(generate(batch)[0])

    found: dict[str, Job] = {f"generate_b{b}": partial(pixels, b) for b in (1, 4)}
    return found | {"likeliest": lambda: np.concatenate(generate(1, top_k=1)[1], 1).tolist()}


def draw(logits_blv: np.ndarray, top_k: int, top_p: float, rng: np.random.Generator) -> np.ndarray:
    """(B, l) ids from the top_k, and of these from the nucleus of mass top_p."""
    likely_blk = np.argpartition(-logits_blv, top_k - 1, -1)[..., :top_k]
    values_blk = np.take_along_axis(logits_blv, likely_blk, -1)
    order_blk = np.argsort(-values_blk, -1)
    values_blk = np.take_along_axis(values_blk, order_blk, -1)
    mass_blk = np.exp(values_blk - values_blk[..., :1])
    mass_blk = np.cumsum(mass_blk / mass_blk.sum(-1, keepdims=True), -1)
    inside_bl1 = np.argmax(mass_blk >= top_p, -1)[..., None]  # the last of the nucleus
    drawn_bl1 = rng.random(inside_bl1.shape) * np.take_along_axis(mass_blk, inside_bl1, -1)
    place_bl1 = np.argmax(mass_blk > drawn_bl1, -1)[..., None]
    return np.take_along_axis(likely_blk, np.take_along_axis(order_blk, place_bl1, -1), -1)[..., 0]


if __name__ == "__main__":
    if not Path(sys.argv[1], FOLDER, "bounded.xml").exists():  # the last of them
        export(Path(sys.argv[1]), Path(sys.argv[1], FOLDER))
