"""What float16 does to the gradients on an Ascend, against float64 and PyTorch's autocast.

The forms of an Ascend run on the CPU here, with models of its operators in their places: products
of halves are added up in float32 and rounded once, as its matrix units do.
"""

import math

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor, mint, nn, ops
from var_transformer import BackendConfig, Transformer
from var_transformer.attention.block_causal_mask import block_causal_mask
from var_transformer.model import ascend_operators, operators

torch = pytest.importorskip("torch")
from var_convert.reference import TorchTransformer  # noqa: E402 (needs torch)

SCALES = (1, 2, 3, 4)
CONFIG = tiny.transformer(depth=2, width=64, heads=4, scales=SCALES)
BATCH = 4
LOSS_SCALE = 2.0**11  # the first of a training in float16


# ---------------------------------------------------------------- operators of an Ascend
def wide(x: Tensor) -> Tensor:
    return x.astype(ms.float32)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = wide(x).reshape(-1, x.shape[-1])
    product = ops.MatMul(transpose_b=True)(rows, wide(weight)) + wide(bias)
    return product.reshape(*x.shape[:-1], weight.shape[0]).astype(x.dtype)


def gelu(x: Tensor, approximate: str) -> Tensor:
    x32 = wide(x)
    return (0.5 * x32 * (1 + ops.tanh(0.7978845608 * (x32 + 0.044715 * x32 * x32 * x32)))).astype(
        x.dtype
    )


def layer_norm(x: Tensor, shape: tuple[int], gain: None, bias: None, epsilon: float) -> Tensor:
    x32 = wide(x)
    centred = x32 - x32.mean(-1, keep_dims=True)
    rate = ops.rsqrt((centred * centred).mean(-1, keep_dims=True) + epsilon)
    return (centred * rate).astype(x.dtype)


def addcmul(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return x + one * other


def sum_of(x: Tensor, axis: int, keepdim: bool) -> Tensor:
    return wide(x).sum(axis, keepdims=keepdim).astype(x.dtype)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    x32 = wide(x)
    rate = ops.rsqrt((x32 * x32).mean(-1, keep_dims=True) + epsilon)
    return (x32 * rate * wide(gamma)).astype(x.dtype), rate


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    return ops.gather(table, ids, 0)


def flash_attention_score(q, k, v, heads, attn_mask=None, **_):
    """One call over all scales, (B, L, H, d)."""
    q, k, v32 = (wide(x).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = ops.BatchMatMul(transpose_b=True)(q, k)
    scores = scores + block_causal_mask(CONFIG.schedule.scales, q.shape[2], 0.0, -1e9)
    weights = wide(ops.softmax(scores, -1).astype(v.dtype))
    return ops.BatchMatMul()(weights, v32).transpose(0, 2, 1, 3).astype(v.dtype)


@pytest.fixture
def ascend(monkeypatch):
    monkeypatch.setattr(ascend_operators, "is_used", lambda: True)
    monkeypatch.setattr(operators, "kernels", lambda: None)
    for form in (linear, gelu, layer_norm, embedding):
        monkeypatch.setattr(mint.nn.functional, form.__name__, form)
    for form in (rms_norm, flash_attention_score):
        monkeypatch.setattr(ops, form.__name__, form)
    monkeypatch.setattr(mint, "addcmul", addcmul)
    monkeypatch.setattr(mint, "sum", sum_of)


# ---------------------------------------------------------------- gradients
def arrays(seed: int) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Weights in which every part matters, labels, inputs and ids."""
    rng = np.random.default_rng(seed)
    weights = {}
    for parameter in Transformer(CONFIG, 0).trainable_params():
        drawn = rng.standard_normal(parameter.shape).astype(np.float32)
        size = 1 / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else 0.1
        weights[parameter.name] = size * drawn + (1.4 if "scale_mul" in parameter.name else 0)
    length = CONFIG.schedule.length
    labels = rng.integers(0, CONFIG.num_classes + 1, BATCH)
    inputs = rng.standard_normal((BATCH, length - 1, CONFIG.latent_channels)).astype(np.float32)
    return weights, labels, inputs, rng.integers(0, CONFIG.vocab_size, (BATCH, length))


def torch_gradients(seed: int, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """In float64, or by float32 weights under autocast to float16."""
    weights, labels, inputs, ids = arrays(seed)
    model = TorchTransformer(CONFIG)
    model.load_state_dict({n: torch.tensor(a) for n, a in weights.items()}, strict=False)
    half = dtype == torch.float16
    model = model if half else model.double()
    inputs = torch.tensor(inputs) if half else torch.tensor(inputs).double()
    with torch.autocast("cpu", torch.float16, enabled=half):
        logits = model(torch.tensor(labels), inputs)
    logits = logits.float() if half else logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids).flatten())
    (loss * LOSS_SCALE).backward()
    return {n: p.grad.double().numpy() / LOSS_SCALE for n, p in model.named_parameters()}


def ascend_gradients(seed: int) -> dict[str, np.ndarray]:
    weights, labels, inputs, ids = arrays(seed)
    model = Transformer(CONFIG, 0, BackendConfig("ascend", ms.float16, "banded"))
    names = [p.name for part in model.weights() for p in part]

    def given_as(parameter) -> Tensor:
        # as ``FlatWeights`` of var-train gives them: what products read, in their type
        read_by_products = parameter.ndim < 3 and "emb.weight" not in parameter.name
        read_by_products &= "lvl_embed" not in parameter.name
        array = Tensor(weights[parameter.name])
        return array.astype(ms.float16) if read_by_products else array

    given = ms.mutable(tuple(tuple(map(given_as, part)) for part in model.weights()))
    keep = Tensor(np.ones((CONFIG.depth, 2, BATCH, 1, 1), np.float32))
    labels, inputs = Tensor(labels.astype(np.int32)), Tensor(inputs)
    ids = Tensor(ids.reshape(-1).astype(np.int32))

    class Loss(nn.Cell):
        def construct(self, given: tuple) -> Tensor:
            logits = model.construct(labels, inputs, keep, given).astype(ms.float32)
            return LOSS_SCALE * ops.cross_entropy(logits.reshape(-1, CONFIG.vocab_size), ids)

    found = ms.jit(ops.GradOperation(get_all=True)(Loss()))(given)[0]
    flat = [array for part in found for array in part]
    return {n: a.asnumpy() / LOSS_SCALE for n, a in zip(names, flat, strict=True)}


def errors(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each tensor, relative to its length."""
    return {n: np.linalg.norm(found[n] - exact[n]) / np.linalg.norm(exact[n]) for n in exact}


@pytest.mark.slow
def test_gradients_err_less_than_with_autocast_in_the_mean(ascend):
    """Measured over four seeds: 7 % less in the mean.

    6 of 34 tensors err more: the scale of scores of the first block, which is rounded with the
    queries to the half type, by 13 %, the others by 5 % at most.
    """
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for seed in range(4):
        exact = torch_gradients(seed, torch.float64)
        for errors_of, found in (
            (ours, ascend_gradients(seed)),
            (theirs, torch_gradients(seed, torch.float16)),
        ):
            for name, error in errors(found, exact).items():
                errors_of.setdefault(name, []).append(error)
    ratios = [np.mean(ours[name]) / np.mean(theirs[name]) for name in ours]
    assert max(ratios) <= 1.15
    assert np.mean(ratios) <= 0.95
