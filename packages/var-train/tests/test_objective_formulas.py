"""A step of each objective is what PyTorch makes of the papers' formulas."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_train import AdamWConfig, TokenSet
from var_train.data.batches import step_indices
from var_train.losses.token_loss import token_losses
from var_train.objectives.contrast import ContrastLoss
from var_train.objectives.guidance_free import GuidanceFreeLoss
from var_train.objectives.objective_config import ContrastConfig, GuidanceFreeConfig
from var_train.training.transformer_settings import TransformerStageConfig
from var_train.training.transformer_stage import TransformerTraining
from var_transformer import Transformer

torch = pytest.importorskip("torch")
TorchTransformer = pytest.importorskip("var_convert.reference").TorchTransformer

SCALES = (1, 2, (2, 3))
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=SCALES)
MODEL = tiny.transformer(depth=1, num_classes=3, scales=SCALES)
STAGE = TransformerStageConfig(
    epochs=4,
    batch=8,
    # without memory and clipping the first moment is the gradient itself
    optimizer=AdamWConfig(1e-2, betas=(0.0, 0.95), clip=1e9),
    condition_drop=0.4,
    drop_path=0.0,
)
CCA = dataclasses.replace(STAGE, objective="cca", cca=ContrastConfig(0.5, 3.0))
GFT = dataclasses.replace(STAGE, objective="gft", gft=GuidanceFreeConfig(2.0))


def tokens() -> TokenSet:
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, MODEL.vocab_size, (24, MODEL.schedule.length))
    return TokenSet(ids_nl.astype(np.int32), rng.integers(0, 3, 24).astype(np.int32))


TRAIN = tokens()


def token_logs(logits_blv, ids_bl):
    """(B, L): the logarithm of the probability of each token."""
    return logits_blv.log_softmax(-1).gather(-1, ids_bl[..., None]).squeeze(-1)


def contrast(logits_blv, reference_blv, ids_bl, config: ContrastConfig):
    """The loss of arXiv:2410.09347, of a batch of pairs (x, c), then of (x, another c)."""
    ratio_b = (token_logs(logits_blv, ids_bl) - token_logs(reference_blv, ids_bl)).sum(-1)
    own_b, other_b = (config.beta * ratio_b).chunk(2)
    log_sigmoid = torch.nn.functional.logsigmoid
    return (-log_sigmoid(own_b) - config.negative_weight * log_sigmoid(-other_b)).mean()


def guidance_free(logits_blv, unconditional_blv, beta_bl1, ids_bl):
    """The loss of arXiv:2501.15420, of logits."""
    mixed_blv = beta_bl1 * logits_blv + (1 - beta_bl1) * unconditional_blv.detach()
    return -token_logs(mixed_blv, ids_bl).mean()


def drawn(b: int = 6, length: int = 30, v: int = 50):
    """Logits, others that are close to them, and ids."""
    rng = np.random.default_rng(0)
    logits_blv = 2 * rng.standard_normal((b, length, v)).astype(np.float32)
    others_blv = logits_blv + 0.1 * rng.standard_normal((b, length, v)).astype(np.float32)
    return logits_blv, others_blv, rng.integers(0, v, (b, length)).astype(np.int32)


def check_against_torch(loss: ms.nn.Cell, logits_blv, targets, wanted) -> None:
    """``wanted``: of a leaf of PyTorch's; the loss and its gradient agree within 1e-5."""
    leaf = torch.tensor(logits_blv, requires_grad=True)
    expected = wanted(leaf)
    expected.backward()
    gradient_of = ms.value_and_grad(
        lambda x: loss(x, *targets, Tensor(np.float32(1))), 0, has_aux=True
    )
    (scaled, plain), gradient = gradient_of(Tensor(logits_blv))
    assert float(scaled) == float(plain) == pytest.approx(expected.item(), rel=1e-5)
    gradient_blv, wanted_blv = gradient.asnumpy(), leaf.grad.numpy()
    assert np.abs(gradient_blv - wanted_blv).max() < 1e-5 * np.abs(wanted_blv).max()


@pytest.mark.parametrize(("beta", "weight"), [(0.02, 1e4), (0.2, 100.0), (1.0, 1.0)])
def test_the_contrast_and_its_gradient_are_those_of_the_papers_formula(beta, weight):
    config = ContrastConfig(beta, weight)
    logits_blv, reference_blv, ids_bl = drawn()
    torch_ids_bl, torch_blv = torch.tensor(ids_bl).long(), torch.tensor(reference_blv)
    targets = Tensor(ids_bl), token_losses(Tensor(reference_blv), Tensor(ids_bl), 0.0)
    check_against_torch(
        ContrastLoss(config),
        logits_blv,
        targets,
        lambda leaf: contrast(leaf, torch_blv, torch_ids_bl, config),
    )


def test_guidance_free_training_and_its_gradient_are_those_of_the_papers_formula():
    logits_blv, unconditional_blv, ids_bl = drawn()
    beta_bl1 = np.random.default_rng(1).uniform(0.2, 1, (*ids_bl.shape, 1)).astype(np.float32)
    weights_l = np.ones(ids_bl.shape[1], np.float32)
    targets = ids_bl, weights_l, beta_bl1, unconditional_blv
    check_against_torch(
        GuidanceFreeLoss(0.0),
        logits_blv,
        tuple(map(Tensor, targets)),
        lambda leaf: guidance_free(
            leaf, *map(torch.tensor, (unconditional_blv, beta_bl1)), torch.tensor(ids_bl).long()
        ),
    )


# ------------------------------------------------------------ steps
@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """``f(arrays by name) -> a module, labels and inputs to logits``."""
    path = tmp_path_factory.mktemp("references") / "model.safetensors"

    def of(arrays):
        model = Transformer(MODEL, None)
        for name, parameter in model.parameters_and_names():
            parameter.set_data(Tensor(arrays[name]))
        model.save(path)
        return TorchTransformer.from_file(path)

    return of


def weights_of(stage: TransformerTraining) -> dict[str, np.ndarray]:
    arrays, prefix = stage.state()[0], "transformer/"
    return {n.removeprefix(prefix): a.copy() for n, a in arrays.items() if n.startswith(prefix)}


def torch_loss(stage: TransformerStageConfig, now, before, step: int):
    """The loss of a step by the papers' formulas; now, before: of the model, and at first."""
    ids_bl, labels_b = TRAIN.batch(step_indices(len(TRAIN), stage.batch, 0, step))
    inputs_blz = Tokenizer(TOKENIZER, 0).teacher_inputs(MODEL.schedule.split(ids_bl))
    inputs_blz, ids_bl = torch.tensor(inputs_blz.asnumpy()), torch.tensor(ids_bl).long()
    rng = np.random.default_rng((0, 4, step))
    is_dropped_b = rng.random(stage.batch) < stage.condition_drop
    rng.random((MODEL.depth, 2, stage.batch, 1, 1))  # drop path
    mismatched_b = TRAIN.labels_n[(rng.random(stage.batch) * len(TRAIN)).astype(int)]
    labels_b = torch.tensor(np.where(is_dropped_b, 3, labels_b)).long()
    if stage.objective == "cca":
        labels_b = torch.cat((labels_b, torch.tensor(mismatched_b).long()))
        inputs_blz, ids_bl = inputs_blz.repeat(2, 1, 1), ids_bl.repeat(2, 1)
        logits_blv, reference_blv = now(labels_b, inputs_blz), before(labels_b, inputs_blz)
        return contrast(logits_blv, reference_blv.detach(), ids_bl, stage.cca)
    strength_l = torch.tensor(np.repeat(stage.gft.cfg * np.arange(3) / 2, MODEL.schedule.tokens))
    beta_bl1 = (1 / (1 + strength_l)).repeat(stage.batch, 1)
    beta_bl1[torch.tensor(is_dropped_b)] = 1
    logits_blv, unconditional_blv = (now(x, inputs_blz) for x in (labels_b, 0 * labels_b + 3))
    return guidance_free(logits_blv, unconditional_blv, beta_bl1.float()[..., None], ids_bl)


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray] | None = None) -> float:
    """Over all arrays together; from 0, if there are no others."""
    arrays = [array - theirs[name] if theirs else array for name, array in ours.items()]
    return float(np.sqrt(sum(np.sum(np.square(array)) for array in arrays)))


@pytest.mark.parametrize("stage", [CCA, GFT], ids=["cca", "gft"])
def test_a_steps_gradient_is_that_of_the_papers_formula_for_every_weight(stage, references):
    model = Transformer(MODEL, 0, gate_gain=1.0)
    training = TransformerTraining(model, Tokenizer(TOKENIZER, 0), TRAIN, TRAIN, stage, 0)
    before = references(weights_of(training))
    for step in range(3):
        training.train_step(step)
    now = references(weights_of(training))
    found_loss = training.train_step(3)["loss"]
    loss = torch_loss(stage, now, before, 3)
    loss.backward()
    assert found_loss == pytest.approx(loss.item(), rel=1e-5)
    named, arrays = dict(now.named_parameters()), training.state()[0]
    found = {name: arrays[f"optimizer/first_moment.{name}"] for name in named}
    wanted = {name: parameter.grad.numpy() for name, parameter in named.items()}
    assert distance(found, wanted) < 1e-5 * distance(wanted)
    for name, array in wanted.items():  # small sums of large numbers
        assert np.linalg.norm(found[name] - array) < 5e-5 * np.linalg.norm(array), name
