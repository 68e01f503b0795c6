"""Training to draw without guidance: exact in resumption, what it learns, what is refused."""

import dataclasses

import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train import AdamWConfig, AdapterTraining, RunConfig, TokenSet
from var_train.commands.models import build_transformer
from var_train.losses.token_loss import token_losses
from var_train.objectives.objective_config import ContrastConfig, GuidanceFreeConfig
from var_train.training.transformer_settings import TransformerStageConfig
from var_train.training.transformer_stage import TransformerTraining
from var_transformer import LoraConfig, Transformer

SCALES = (1, 2, (2, 3))
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=SCALES)
MODEL = tiny.transformer(depth=1, num_classes=3, scales=SCALES)
CCA = TransformerStageConfig(
    epochs=2,
    batch=8,
    optimizer=AdamWConfig(1e-2),
    objective="cca",
    cca=ContrastConfig(beta=0.5, negative_weight=3.0),
    samples_per_class=0,
)
GFT = dataclasses.replace(CCA, objective="gft", cca=ContrastConfig(), gft=GuidanceFreeConfig(2.0))
LORA = dataclasses.replace(CCA, lora=LoraConfig(rank=2, targets=("attn.*", "fc2", "ada_lin")))
CASES = pytest.mark.parametrize("stage", [CCA, GFT, LORA], ids=["cca", "gft", "cca with LoRA"])


def tokens(count: int, seed: int) -> TokenSet:
    """Each class has its own four tokens."""
    rng = np.random.default_rng(seed)
    labels_n = rng.integers(0, 3, count).astype(np.int32)
    ids_nl = 4 * labels_n[:, None] + rng.integers(0, 4, (count, MODEL.schedule.length))
    return TokenSet(ids_nl.astype(np.int32), labels_n)


TRAIN, VAL = tokens(24, 0), tokens(7, 1)


def training(stage: TransformerStageConfig, model: Transformer | None = None):
    given = model or Transformer(MODEL, 0, gate_gain=1.0), Tokenizer(TOKENIZER, 0)
    if stage.lora.rank:
        return AdapterTraining(*given, TRAIN, VAL, stage, 0, ("a", "b", "c"))
    return TransformerTraining(*given, TRAIN, VAL, stage, 0)


def run(stage: TransformerTraining, begin: int, end: int) -> list[dict]:
    steps = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in s.items() if not k.startswith("seconds")} for s in steps]


# ------------------------------------------------------------ steps
def test_the_contrast_begins_where_the_model_is_its_reference():
    for stage in (CCA, LORA):
        loss = run(training(stage), 0, 1)[0]["loss"]
        assert loss == pytest.approx(4 * np.log(2), rel=1e-6)  # 1 + negative_weight


def test_an_adapters_reference_is_its_base_and_no_copy_of_it():
    model = Transformer(MODEL, 0, gate_gain=1.0)
    stage = training(LORA, model)
    run(stage, 0, 3)
    own = dict(model.parameters_and_names())
    for name, parameter in stage._reference.parameters_and_names():
        assert parameter is own[name]
    given = VAL.labels_n, Tokenizer(TOKENIZER, 0).training_inputs(Tensor(VAL.ids_nl))
    plain_blv = Transformer(MODEL, 0, gate_gain=1.0).logits(*given).asnumpy()
    np.testing.assert_array_equal(stage._reference.logits(*given).asnumpy(), plain_blv)


@pytest.mark.parametrize(
    "stage",
    [pytest.param(CCA, marks=pytest.mark.slow), GFT, pytest.param(LORA, marks=pytest.mark.slow)],
    ids=["cca", "gft", "cca with LoRA"],
)
def test_a_resumed_run_gives_the_same_losses_and_weights(stage):
    whole = training(dataclasses.replace(stage, ema=0.9))
    run(whole, 0, 3)
    arrays, state = whole.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    measured = whole.validate(2)
    assert "cross_entropy" in measured and "loss" not in measured  # the likeliest is not the best
    expected = run(whole, 3, 6)
    resumed = training(dataclasses.replace(stage, ema=0.9))
    resumed.restore(arrays, state)
    assert run(resumed, 3, 6) == expected
    for name, array in whole.state()[0].items():
        np.testing.assert_array_equal(resumed.state()[0][name], array, name)


@pytest.mark.slow
@CASES
def test_a_batch_in_parts_takes_the_step_of_the_whole_batch(stage):
    once, parts = (training(dataclasses.replace(stage, accumulation=n)) for n in (1, 3))
    for ours, theirs in zip(run(parts, 0, 3), run(once, 0, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@CASES
def test_recomputing_the_blocks_changes_no_number(stage):
    kept, again = (training(dataclasses.replace(stage, recompute=on)) for on in (False, True))
    assert run(again, 0, 3) == run(kept, 0, 3)


@pytest.mark.slow
def test_the_contrast_tells_the_class_of_an_image_from_others():
    model = Transformer(MODEL, 0, gate_gain=1.0)

    def advantage() -> float:
        """How much likelier an image is with its class than with the next one, in nats."""
        inputs = Tokenizer(TOKENIZER, 0).training_inputs(Tensor(VAL.ids_nl))
        of_two = [
            token_losses(model.logits(labels_n, inputs), Tensor(VAL.ids_nl), 0.0).asnumpy()
            for labels_n in (VAL.labels_n, (VAL.labels_n + 1) % 3)
        ]
        return float((of_two[1] - of_two[0]).sum(-1).mean())

    before = advantage()
    stage = training(dataclasses.replace(CCA, epochs=10), model)
    run(stage, 0, stage.steps)
    stage.finish()
    assert advantage() > before + 2


# ------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dpo"}, "objective is 'dpo'; expected"),
        ({"objective": "cca", "label_smoothing": 0.1}, "objective is cca and label_smoothing 0.1"),
        ({"objective": "cca", "drop_path": 0.1}, "objective is cca and drop_path 0.1"),
        ({"objective": "cca", "progressive": 0.5}, "objective is cca and progressive 0.5"),
        ({"objective": "cca", "scale_weights": (1.0,)}, r"is cca and scale_weights \(1.0,\)"),
        ({"objective": "gft", "condition_drop": 0.0}, "objective is gft and condition_drop 0"),
        ({"cca": ContrastConfig(beta=1.0)}, "cca.beta is 1.0 and objective likelihood"),
        ({"objective": "cca", "gft": GuidanceFreeConfig(2.0)}, "gft.cfg is 2.0 and objective cca"),
    ],
)
def test_settings_that_an_objective_has_no_use_for_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TransformerStageConfig(**changes)


def test_a_number_that_an_objective_cannot_use_is_refused():
    for make in (
        lambda: ContrastConfig(beta=0.0),
        lambda: ContrastConfig(negative_weight=-1.0),
        lambda: GuidanceFreeConfig(cfg=0.0),
    ):
        with pytest.raises(InputError, match=r"(beta|negative_weight|cfg) is -?[01].0; expected"):
            make()


def test_a_contrast_without_a_model_of_the_same_classes_is_refused(tmp_path):
    stage = TransformerStageConfig(objective="cca")
    with pytest.raises(InputError, match=r"objective is cca and init None; expected an init"):
        RunConfig(train_transformer=stage)
    with pytest.raises(InputError, match="objective is gft and stage tokenizer"):
        RunConfig(stage="tokenizer", train_transformer=dataclasses.replace(stage, objective="gft"))
    tokenizer, init = tmp_path / "tokenizer.safetensors", tmp_path / "init.safetensors"
    Tokenizer(TOKENIZER, 0).save(tokenizer)
    config = RunConfig(init=tokenizer, out=tmp_path / "out", train_transformer=stage)
    message = r"is cca and init .* a tokenizer; expected a transformer"
    with pytest.raises(InputError, match=message):
        build_transformer(config, Tokenizer.load(tokenizer), ("a", "b"))
    Transformer(MODEL, 0).save(init)
    config = dataclasses.replace(config, stage="transformer", init=init, tokenizer_file=tokenizer)
    with pytest.raises(InputError, match=r"has 3 classes .* and the data 2 .* expected the same"):
        build_transformer(config, Tokenizer.load(tokenizer), ("a", "b"))
