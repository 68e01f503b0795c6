"""``--attention auto``: the fastest calls that a device has; the run is theirs, bit for bit."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from mindspore.ops import constexpr
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train import RunConfig, SamplingConfig, TransformerSizeConfig, run_training
from var_train.commands.run_config import DIGITS
from var_train.data.token_sources import TokenSet
from var_train.training import attention_choice
from var_train.training.attention_choice import AttentionChoice
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import BackendConfig, Transformer
from var_transformer.attention import portable

SCALES = (1, 2, (2, 3))
MODEL = tiny.transformer(depth=1, num_classes=3, scales=SCALES)


@pytest.fixture(autouse=True)
def cheap_calls(monkeypatch):
    """Segments of these few tokens are two calls, of which the first is masked."""
    monkeypatch.setattr(portable, "_LAUNCH", 5.0)


def model(calls: str = "auto") -> Transformer:
    return Transformer(MODEL, 0, BackendConfig("portable", calls=calls))


# ---------------------------------------------------------------- the choice
class Timed:
    """Functions that take so many seconds by a clock of their own, or fail."""

    def __init__(self, monkeypatch, model: Transformer, seconds: dict[str, float | None]) -> None:
        self.now, self.seconds, self.used = 0.0, seconds, ""
        self.calls = dict.fromkeys(seconds, 0)
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(attention_choice, "time", clock)
        use = model.use_attention

        def use_attention(name: str) -> None:
            self.used = name
            use(name)

        monkeypatch.setattr(model, "use_attention", use_attention)

    def build(self):
        name = self.used

        def function() -> tuple[float, str]:
            seconds = self.seconds[name]
            if seconds is None:
                raise RuntimeError("Allocate memory failed\nin a kernel")
            self.now += seconds if self.calls[name] else 100.0  # it is compiled first
            self.calls[name] += 1
            return 0.0, name

        return function


def test_the_calls_that_take_the_least_time_are_kept_and_recorded(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    of = model()
    timed = Timed(monkeypatch, of, {"segments": 0.5, "masked": 0.25})
    choice = AttentionChoice(of)
    assert choice.is_open and choice.name is None
    function, recorded = choice.choose(timed.build, ())
    assert function()[1] == timed.used == choice.name == "masked" and not choice.is_open
    assert recorded == {
        "attention": "masked",
        "seconds_attention_segments": 0.5,
        "seconds_attention_masked": 0.25,
    }
    assert timed.calls["segments"] > 2
    assert "masked from now on" in caplog.text and "segments 500.0 ms" in caplog.text


def test_calls_that_fail_are_left_out_with_a_line_that_says_why(monkeypatch, caplog):
    of = model()
    timed = Timed(monkeypatch, of, {"segments": None, "masked": 0.25})
    _, recorded = AttentionChoice(of).choose(timed.build, ())
    assert recorded == {"attention": "masked", "seconds_attention_masked": 0.25}
    assert "segments is left out: Allocate memory failed" in caplog.text
    timed.seconds["masked"] = None
    with pytest.raises(RuntimeError, match="Allocate memory failed"):
        AttentionChoice(of).choose(timed.build, ())


def test_all_workers_choose_what_is_fastest_for_the_slowest_of_them(monkeypatch):
    of = model()
    timed = Timed(monkeypatch, of, {"segments": 0.25, "masked": 0.5})
    another = np.array([0.75, 0.5])
    monkeypatch.setattr(
        attention_choice.workers, "gather", lambda array: np.stack((array, another))
    )
    _, recorded = AttentionChoice(of).choose(timed.build, ())
    assert recorded["attention"] == "masked"
    assert recorded["seconds_attention_segments"] == 0.75


def test_nothing_is_timed_where_calls_are_named_or_a_device_has_one_way(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for calls in ("cheapest", "masked"):
        assert not AttentionChoice(model(calls)).is_open
    monkeypatch.setattr(Transformer, "attention_candidates", ("segments",))
    assert not AttentionChoice(model()).is_open
    assert "this device has one way to compute it" in caplog.text


# ---------------------------------------------------------------- in training
def training(of: Transformer) -> TransformerTraining:
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, MODEL.vocab_size, (30, MODEL.schedule.length)).astype(np.int32)
    data = TokenSet(ids_nl, rng.integers(0, 3, 30).astype(np.int32))
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=SCALES), 0)
    stage = TransformerStageConfig(batch=8, samples_per_class=0)
    return TransformerTraining(of, tokenizer, data, data, stage, seed=0)


def run(stage: TransformerTraining, begin: int, end: int) -> list[dict]:
    steps = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in s.items() if not k.startswith("seconds")} for s in steps]


def assert_same_weights(ours: TransformerTraining, theirs: TransformerTraining) -> None:
    found, expected = ours.state()[0], theirs.state()[0]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.fixture
def masked_is_fastest(monkeypatch):
    """Times are made up; what is timed runs. Gives the keys of all masked calls compiled so far."""
    seconds, ends = attention_choice._seconds, []

    def made_up(name, function, inputs):
        assert seconds(name, function, inputs) < np.inf
        return {"segments": 2.0, "masked": 1.0}[name]

    def mask(scales, end, seen, hidden):
        ends.append(end)
        return of_scales(scales, end, seen, hidden)

    of_scales = portable.block_causal_mask
    monkeypatch.setattr(attention_choice, "_seconds", made_up)
    monkeypatch.setattr(portable, "block_causal_mask", constexpr(reuse_result=False)(mask))
    return ends


def test_a_run_with_auto_is_bit_for_bit_that_of_the_calls_it_chose(masked_is_fastest):
    auto, named = training(model()), training(model("masked"))
    first, *later = run(auto, 0, 3)
    assert set(masked_is_fastest) == {5, 11}  # the first call of two, and one for all
    assert first.pop("attention") == "masked"
    assert [first, *later] == run(named, 0, 3)
    assert_same_weights(auto, named)


def test_a_resumed_run_keeps_what_was_chosen_and_gives_the_same_bits(
    monkeypatch, masked_is_fastest
):
    whole = training(model())
    run(whole, 0, 2)
    arrays, state = whole.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    assert json.loads(json.dumps(state))["attention"] == "masked"
    expected = run(whole, 2, 4)
    monkeypatch.delattr(attention_choice, "_seconds")  # nothing is timed again
    resumed = training(model())
    resumed.restore(arrays, state)
    assert run(resumed, 2, 4) == expected
    assert_same_weights(resumed, whole)


def test_a_checkpoint_that_names_no_calls_of_this_device_lets_it_choose(masked_is_fastest):
    whole = training(model("segments"))
    run(whole, 0, 1)
    arrays, state = whole.state()
    assert state["attention"] is None
    for known in (state, state | {"attention": "banded"}, {**state, "attention": ["masked"]}):
        resumed = training(model())
        resumed.restore(arrays, known)
        assert run(resumed, 1, 2)[0]["attention"] == "masked"


def test_calls_that_a_device_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="attention is 'banded'; expected one of cheapest"):
        run_training(RunConfig(attention="banded", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_records_its_choice_once(tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    Tokenizer(DIGITS).save(path)
    config = RunConfig(
        stage="transformer",
        tokenizer_file=path,
        attention="auto",
        transformer=TransformerSizeConfig(depth=1, width=48, heads=2),  # not the C++ kernels'
        train_transformer=TransformerStageConfig(epochs=1, batch=256, samples_per_class=0),
        sampling=SamplingConfig(per_class=1),
        out=tmp_path / "out",
    )
    run_training(config)
    lines = map(json.loads, (config.out / "metrics.jsonl").read_text().splitlines())
    first, *later = (line for line in lines if line["stage"] == "transformer")
    named = ("segments", "masked")
    assert first["attention"] == min(named, key=lambda n: first[f"seconds_attention_{n}"])
    assert later and not any("attention" in line for line in later)
