"""A training step is PyTorch's: the gradient of every parameter, and AdamW's weights."""

import dataclasses
from pathlib import Path

import numpy as np
import peers
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_train.data.batches import step_indices
from var_train.data.token_sources import TokenSet
from var_train.optimization.adamw import AdamWConfig
from var_train.training.transformer_stage import (
    TransformerStageConfig,
    TransformerTraining,
    is_decayed,
)
from var_transformer import Transformer, TransformerConfig

torch = pytest.importorskip("torch")
TorchTransformer = pytest.importorskip("var_convert.reference").TorchTransformer

SCALES = (1, 2, 3, 4)
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=SCALES)
MODEL = tiny.transformer(scales=SCALES)
STAGE = TransformerStageConfig(
    epochs=4,
    batch=8,
    label_smoothing=0.1,
    condition_drop=0.0,
    drop_path=0.0,
    scale_weights=(1, 2, 3, 4),
    samples_per_class=0,
)


def tokens() -> TokenSet:
    """Twenty images; one of them has the label of no class, as a dropped condition has."""
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, MODEL.vocab_size, (20, MODEL.schedule.length)).astype(np.int32)
    return TokenSet(ids_nl, (np.arange(20) % 6).astype(np.int32))


TOKENS = tokens()


def random_transformer(config: TransformerConfig) -> Transformer:
    """Weights that give every parameter a gradient, which published ones do not at first."""
    model, rng = Transformer(config, 0), np.random.default_rng(1)
    for parameter in model.get_parameters():
        shape = parameter.shape
        drawn = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)
        if "scale_mul" in parameter.name:
            drawn += 1.4
        parameter.set_data(type(parameter)(drawn.astype(np.float32)))
    return model


def reference_of(config: TransformerConfig, path: Path):
    """The reference of var-convert: named parameters, and labels and inputs to logits."""
    module = TorchTransformer.from_file(path)
    return dict(module.named_parameters()), module


def peer_of(config: TransformerConfig, path: Path):
    """The same of the implementation outside the repository, where there is one."""
    peer, var = peers.load(), peers.var_spec(config)
    module = TorchTransformer.from_file(path)
    weights = dict(module.state_dict(keep_vars=True))
    named = dict(module.named_parameters())
    return named, lambda labels, inputs: peer.logits(weights, labels, inputs, var)


def torch_step_loss(logits_of, tokenizer: Tokenizer, step: int):
    """The loss of a step by its definition, of the images that the trainer takes for it."""
    ids_bl, labels_b = TOKENS.batch(step_indices(len(TOKENS), STAGE.batch, 0, step))
    inputs_blz = tokenizer.teacher_inputs(MODEL.schedule.split(ids_bl))
    inputs_blz = torch.tensor(inputs_blz.asnumpy())
    logits_blv = logits_of(torch.tensor(labels_b).long(), inputs_blz)
    loss_bl = torch.nn.functional.cross_entropy(
        logits_blv.transpose(1, 2),
        torch.tensor(ids_bl).long(),
        reduction="none",
        label_smoothing=STAGE.label_smoothing,
    )
    weights_l = torch.tensor(np.repeat(STAGE.scale_weights, MODEL.schedule.tokens))
    return (loss_bl * weights_l).sum() / weights_l.sum() / STAGE.batch


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a few steps from a saved start gave."""

    config: TransformerConfig
    tokenizer: Tokenizer
    start: Path
    losses: list[float]
    arrays: dict[str, np.ndarray]


def train(folder: Path, shared: bool, optimizer: AdamWConfig, steps: int) -> Trained:
    config = dataclasses.replace(MODEL, shared_adaln=shared)
    tokenizer, model = Tokenizer(TOKENIZER, 0), random_transformer(config)
    start = folder / "start.safetensors"
    model.save(start)
    stage = dataclasses.replace(STAGE, optimizer=optimizer)
    training = TransformerTraining(model, tokenizer, TOKENS, TOKENS, stage, seed=0)
    assert training.steps == 10
    losses = [training.train_step(step)["loss"] for step in range(steps)]
    return Trained(config, tokenizer, start, losses, training.state()[0])


CASES = {"params": [False, True], "ids": ["own AdaLN", "shared AdaLN"]}
# without memory and clipping the first moment is the gradient itself
PLAIN = AdamWConfig(betas=(0.0, 0.95), clip=1e9)
PUBLISHED = AdamWConfig(learning_rate=1e-3, weight_decay=0.3, clip=0.3)


@pytest.fixture(scope="module", **CASES)
def one_step(request, tmp_path_factory) -> Trained:
    return train(tmp_path_factory.mktemp("one"), request.param, PLAIN, 1)


@pytest.fixture(scope="module", **CASES)
def ten_steps(request, tmp_path_factory) -> Trained:
    return train(tmp_path_factory.mktemp("ten"), request.param, PUBLISHED, 10)


REFERENCES = pytest.mark.parametrize("other", [reference_of, peer_of])


@REFERENCES
def test_one_steps_gradient_is_that_of_pytorch_for_every_parameter(one_step, other):
    named, logits_of = other(one_step.config, one_step.start)
    loss = torch_step_loss(logits_of, one_step.tokenizer, 0)
    loss.backward()
    assert one_step.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    prefix = "optimizer/first_moment."
    found = {n.removeprefix(prefix) for n in one_step.arrays if n.startswith(prefix)}
    assert found == named.keys()
    errors = {
        name: relative(one_step.arrays[prefix + name], parameter.grad.numpy())
        for name, parameter in named.items()
    }
    assert max(errors.values()) < 1e-3, errors


@pytest.mark.slow
@REFERENCES
def test_ten_steps_of_adamw_are_those_of_pytorch(ten_steps, other):
    named, logits_of = other(ten_steps.config, ten_steps.start)
    groups = {True: [], False: []}
    for name, parameter in Transformer(ten_steps.config, 0).parameters_and_names():
        groups[is_decayed(parameter)].append(named[name])
    start = {name: p.detach().numpy().copy() for name, p in named.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": PUBLISHED.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=PUBLISHED.betas,
    )
    for step, found in enumerate(ten_steps.losses):
        for group in optimizer.param_groups:
            group["lr"] = PUBLISHED.rate(step, 10)
        optimizer.zero_grad()
        loss = torch_step_loss(logits_of, ten_steps.tokenizer, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), PUBLISHED.clip)
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in named.items():
        found, wanted = ten_steps.arrays[f"transformer/{name}"], parameter.detach().numpy()
        assert relative(found, wanted) < 1e-3, name
        assert relative(found - start[name], wanted - start[name]) < 1e-3, name
