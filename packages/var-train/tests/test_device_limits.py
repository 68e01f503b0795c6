"""A batch that the device's memory cannot hold is refused before the first step."""

import re
from dataclasses import replace

import pytest
import tiny
from var_tokenizer.common import InputError
from var_train import RunConfig, run_training
from var_train.commands.presets import published_stage
from var_train.training import device_limits
from var_train.training.device_limits import check_device
from var_transformer import Transformer, TransformerConfig

ASCEND_910B = 62432 * 2**20  # as MindSpore's documentation shows it
D16 = TransformerConfig.preset("d16")
PUBLISHED = published_stage("d16")  # 768 images


@pytest.fixture
def on(monkeypatch):
    """Puts a device with so much memory, and so many workers, in the place of this machine."""

    def place(memory: int | None, workers: int = 1, cpu: bool = False) -> None:
        monkeypatch.setattr(device_limits, "on_cpu", lambda: cpu)
        monkeypatch.setattr(device_limits, "device_memory", lambda: memory)
        monkeypatch.setattr(device_limits.workers, "size", lambda: workers)

    return place


def test_a_preset_beyond_the_memory_is_refused_with_both_values_and_the_batch_that_fits(on):
    on(ASCEND_910B)
    with pytest.raises(InputError) as refused:
        check_device(PUBLISHED, D16)
    said = str(refused.value)
    assert "\n" not in said
    assert "batch is 768 in 1 part(s)" in said and "57.2 of 61.0 can be used" in said
    found = re.search(r"needs ([\d.]+) GiB .* most (\d+), or recompute, with which (\d+) ", said)
    needed, most, recomputed = map(float, found.groups())
    assert 350 < needed < 400 and 90 < most < 120 and 500 < recomputed < 600
    for images, recompute in ((int(most), False), (int(recomputed), True)):
        check_device(replace(PUBLISHED, batch=images, recompute=recompute), D16)
        with pytest.raises(InputError, match=f"at most {images}[ ,]"):
            check_device(replace(PUBLISHED, batch=images + 1, recompute=recompute), D16)


def test_recompute_is_named_where_it_helps_alone(on):
    on(ASCEND_910B)
    helped = "at most 104, or recompute, with which 112 images fit"
    for changes, expected in (({}, helped), ({"recompute": True, "batch": 768}, r"at most \d+ \(")):
        with pytest.raises(InputError, match=expected):
            check_device(replace(PUBLISHED, **({"batch": 112} | changes)), D16)
    on(24 * 2**30, cpu=True)
    with pytest.raises(InputError, match=r"at most \d+ \("):
        check_device(PUBLISHED, D16)


@pytest.mark.parametrize(
    ("changes", "workers"),
    [({"accumulation": 8}, 1), ({}, 8), ({"accumulation": 2}, 4), ({"batch": 96, "ema": 0.99}, 1)],
)
def test_a_batch_in_parts_that_fit_is_not_refused(on, changes, workers):
    on(ASCEND_910B, workers)
    check_device(replace(PUBLISHED, **changes), D16)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"batch": 112}, {"batch": 112, "recompute": True}),
        ({"batch": 64, "precision": replace(PUBLISHED.precision, dtype="float32")}, {"batch": 64}),
    ],
)
def test_recompute_and_half_precision_fit_more(on, worse, better):
    on(ASCEND_910B)
    check_device(replace(PUBLISHED, **better), D16)
    with pytest.raises(InputError, match=r"expected a batch of at most \d+, or recompute"):
        check_device(replace(PUBLISHED, **worse), D16)


def test_sharded_moments_fit_a_larger_model(on):
    on(ASCEND_910B, workers=8)
    d36, stage = TransformerConfig.preset("d36-s"), replace(published_stage("d36-s"), batch=16)
    with pytest.raises(InputError):
        check_device(stage, d36)
    check_device(replace(stage, shard_optimizer=True), d36)


def test_a_model_that_fits_with_no_batch_is_refused(on):
    on(32 * 2**30)
    with pytest.raises(InputError, match="expected a smaller model"):
        check_device(published_stage("d36-s"), TransformerConfig.preset("d36-s"))


def test_a_cpu_refuses_only_what_no_form_of_a_step_could_hold(on):
    on(24 * 2**30, cpu=True)
    check_device(replace(PUBLISHED, batch=96), D16)
    with pytest.raises(InputError, match=r"at most \d{3} "):
        check_device(PUBLISHED, D16)


@pytest.mark.parametrize("cpu", [False, True])
def test_nothing_is_refused_where_the_memory_is_not_known(on, cpu):
    on(None, cpu=cpu)
    check_device(PUBLISHED, D16)


def test_this_machine_says_how_much_memory_it_has():
    assert 2**29 < device_limits.device_memory() < 2**50


@pytest.mark.parametrize("starts", ["new", "from a transformer"])
def test_a_run_that_does_not_fit_ends_before_it_builds_a_model_or_writes_anything(
    on, tmp_path, monkeypatch, starts
):
    init = None
    if starts == "from a transformer":
        init = tmp_path / "init.safetensors"
        Transformer(tiny.transformer(vocab_size=128)).save(init)

    def unexpected(*_arguments, **_options):
        raise AssertionError("a model was built")

    monkeypatch.setattr(Transformer, "__init__", unexpected)
    on(2**16, cpu=True)
    with pytest.raises(InputError, match=r"batch is 64 in 1 part\(s\), each of which needs"):
        run_training(RunConfig(out=tmp_path / "out", init=init))
    assert not (tmp_path / "out").exists()
