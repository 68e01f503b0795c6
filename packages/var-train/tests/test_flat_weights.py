"""Training with the weights in a few flat arrays, as on an Ascend, is the same training."""

from functools import partial

import numpy as np
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.data.token_sources import TokenSet
from var_train.optimization.flat_weights import FlatWeights
from var_train.training import transformer_stage
from var_train.training.checkpoints import ArraysOnDemand
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer, TransformerConfig

SCALES = (1, 2, (2, 3))
MODEL = tiny.transformer(depth=1, num_classes=3, scales=SCALES)
CONFIG = TransformerStageConfig(batch=8, ema=0.9)


def training(stage: TransformerStageConfig, model: TransformerConfig = MODEL):
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, MODEL.vocab_size, (30, MODEL.schedule.length)).astype(np.int32)
    data = TokenSet(ids_nl, rng.integers(0, 3, 30).astype(np.int32))
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=SCALES), 0)
    return TransformerTraining(Transformer(model, 0), tokenizer, data, data, stage, seed=0)


def run(stage: TransformerTraining, begin: int, end: int) -> list[dict]:
    steps = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in s.items() if not k.startswith("seconds")} for s in steps]


def weights(stage: TransformerTraining) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in stage.state()[0].items()}


def flat_training(config: TransformerStageConfig, pieces: int = 1, **changes):
    """``training`` with flat weights; decayed ones in ``pieces``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformer_stage,
            "weights_in_training",
            lambda model, decays, dtype, averages, _: FlatWeights(
                model, decays, dtype, averages, pieces
            ),
        )
        return training(config, **changes)


def assert_same_steps(ours: TransformerTraining, theirs: TransformerTraining) -> None:
    """The order of sums in the norm of the gradient may differ."""
    for one, other in zip(run(ours, 0, 3), run(theirs, 0, 3), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("pieces", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_flat_weights_take_the_steps_of_separate_ones(pieces):
    assert_same_steps(flat_training(CONFIG, pieces), training(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shared_adaln", [False, True])
def test_they_do_in_parts_recomputed_and_with_common_modulations(shared_adaln, recompute):
    config = TransformerStageConfig(batch=12, accumulation=3, recompute=recompute)
    model = tiny.transformer(depth=2, num_classes=3, scales=SCALES, shared_adaln=shared_adaln)
    assert_same_steps(flat_training(config, model=model), training(config, model))


@pytest.mark.slow
def test_a_run_resumes_on_either_kind_of_device():
    separate = training(CONFIG)
    run(separate, 0, 2)
    arrays, state = weights(separate), separate.state()[1]
    flat = flat_training(CONFIG, pieces=2)
    flat.restore(arrays, state)
    for name, array in weights(flat).items():
        np.testing.assert_array_equal(array, arrays[name], name)
    one, other = run(flat, 2, 3)[0], run(separate, 2, 3)[0]
    assert one == pytest.approx(other, rel=1e-6)


def test_moments_of_flat_weights_are_gathered_once_each_and_in_order():
    flat = flat_training(CONFIG, pieces=3)._weights
    asked: list[str] = []

    def moment(name: str, size: int) -> np.ndarray:
        asked.append(name)
        return np.zeros(size, np.float32)

    masters = [f"optimizer/first_moment.{p.name}" for p in flat.flat]
    makers = {
        name: partial(moment, name, int(p.size)) for name, p in zip(masters, flat.flat, strict=True)
    }
    found = {n: a.shape for n, a in flat.named(ArraysOnDemand(makers)).items()}
    shapes = {p.name: tuple(p.shape) for p in (*flat.decayed, *flat.others)}
    assert found == {f"optimizer/first_moment.{name}": shape for name, shape in shapes.items()}
    assert asked == masters


def test_a_checkpoint_says_by_name_which_weights_have_no_decay():
    stages = (training(CONFIG), flat_training(CONFIG))
    separate, flat = (stage.state()[1]["optimizer"]["undecayed"] for stage in stages)
    assert flat == separate
    assert "pos_1LC" in flat and "head.bias" in flat and "class_emb.weight" not in flat


@pytest.mark.slow
def test_a_checkpoint_without_a_moment_is_refused_by_its_name():
    flat = flat_training(CONFIG)
    arrays, state = flat.state()
    arrays = dict(arrays)
    del arrays["optimizer/first_moment.head.bias"]
    with pytest.raises(InputError, match="first_moment"):
        flat.restore(arrays, state)


@pytest.mark.slow
def test_a_saved_model_has_the_averaged_weights(tmp_path):
    separate, flat = training(CONFIG), flat_training(CONFIG)
    saved = []
    for stage in (separate, flat):
        run(stage, 0, 2)
        path = tmp_path / f"{len(saved)}.safetensors"
        stage.save(path)
        saved.append(Transformer.load(path).published_tensors())
    for name, array in saved[0].items():
        np.testing.assert_allclose(saved[1][name], array, rtol=1e-5, atol=1e-7, err_msg=name)
