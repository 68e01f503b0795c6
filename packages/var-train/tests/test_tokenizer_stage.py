"""Training a tokenizer: repeatable, resumable, and able to lower its losses."""

import dataclasses

import numpy as np
import pytest
import tiny
from mindspore import Tensor, ops
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError
from var_train.data.augmentation import Augmentation
from var_train.data.image_sources import ImageSet
from var_train.losses.discriminator import AdversaryConfig, PatchDiscriminator, hinge_loss
from var_train.losses.reconstruction_loss import ReconstructionLossConfig
from var_train.optimization.flat_weights import JoinedWeights
from var_train.reports.metrics_log import MetricsLog
from var_train.training import tokenizer_stage
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.codebook import CodebookConfig
from var_train.training.loop import LoopConfig, train_stage
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining

CONFIG = tiny.tokenizer(phi_count=2, scales=(1, 2, (4, 5)))


def pictures(count: int, seed: int) -> ImageSet:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((1, 4, 5, 1), np.uint8))
    return ImageSet(pixels, np.zeros(count, np.int32), ("coarse",))


TRAIN, VAL = pictures(32, 0), pictures(6, 1)


def training(stage: TokenizerStageConfig, config: TokenizerConfig = CONFIG) -> TokenizerTraining:
    return TokenizerTraining(Tokenizer(config, 0), TRAIN, VAL, stage, seed=0)


def run(stage: TokenizerTraining, begin: int, end: int) -> list[dict]:
    """The metrics of steps, without times."""
    metrics = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in m.items() if not k.startswith("seconds")} for m in metrics]


def assert_goes_on_alike(config: TokenizerStageConfig, stop: int) -> None:
    """A run of all steps, and one stopped after ``stop``, give the same metrics to the bit."""
    whole = training(config)
    expected = run(whole, 0, stop)
    arrays, state = whole.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    expected += run(whole, stop, whole.steps)
    resumed = training(config)
    resumed.restore(arrays, state)
    assert run(resumed, stop, resumed.steps) == expected[stop:]
    for (name, ours), theirs in zip(
        resumed.state()[0].items(), whole.state()[0].values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, name)


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_losses_and_weights_on_non_square_images():
    assert_goes_on_alike(TokenizerStageConfig(epochs=1, batch=4, flip=True, ema=0.9), stop=4)


@pytest.mark.slow
def test_all_remedies_and_losses_together_resume_and_repeat_exactly():
    config = TokenizerStageConfig(
        epochs=1,
        batch=4,
        ema=0.9,
        losses=ReconstructionLossConfig(structure=0.5),
        adversary=AdversaryConfig(weight=0.5, start=0.25, channels=32),
        codebook=CodebookConfig(start="kmeans", update="ema", revive_every=2, scale_dropout=0.5),
    )
    assert_goes_on_alike(config, stop=5)
    assert run(training(config), 0, 8) == run(training(config), 0, 8)


def assert_about_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_allclose(one[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_weights_joined_as_on_an_ascend_take_the_same_steps_and_resume_elsewhere(monkeypatch):
    codebook = CodebookConfig(start="kmeans", revive_every=1)  # it changes between two updates
    config = TokenizerStageConfig(epochs=1, batch=4, ema=0.9, codebook=codebook)
    separate = training(config)
    monkeypatch.setattr(tokenizer_stage, "joined_in_training", JoinedWeights)
    joined = training(config)
    assert_about_equal(run(joined, 0, 1)[0], run(separate, 0, 1)[0])
    arrays, state = separate.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    found = joined.state()[0]
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    joined.restore(arrays, state)
    for one, other in zip(run(joined, 1, 3), run(separate, 1, 3), strict=True):
        assert_about_equal(one, other)


def test_more_codes_than_a_batch_has_vectors_are_refused():
    with pytest.raises(InputError, match="vocab_size is 101; a batch of 4 images has 100 vectors"):
        training(TokenizerStageConfig(batch=4), dataclasses.replace(CONFIG, vocab_size=101))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="batch is 33; expected at most 32"):
        training(TokenizerStageConfig(batch=33))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    tokenizer = Tokenizer(CONFIG, 0)
    stage = TokenizerTraining(
        tokenizer, TRAIN, VAL, TokenizerStageConfig(epochs=1, batch=4), seed=0
    )
    healthy_step = stage.train_step

    def poisoned_step(step: int) -> dict:
        if step == 3:
            ops.assign(tokenizer.quant_conv.bias, Tensor(np.full(8, np.nan, np.float32)))
        return healthy_step(step)

    stage.train_step = poisoned_step
    often = LoopConfig(checkpoint_every=2, validations=1)
    with pytest.raises(InputError, match="tokenizer loss is nan at step 3"):
        train_stage(stage, tmp_path, MetricsLog(tmp_path), often, settings={})
    kept = CheckpointFolder(tmp_path / "checkpoints" / "tokenizer").newest()
    assert kept.step == 2
    assert all(np.isfinite(array).all() for array in kept.arrays.values())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [True, False])
def test_the_discriminator_sees_changed_images_only_where_augment_says_so(changes):
    adversary = AdversaryConfig(weight=1.0, start=0.0, channels=32, augment=changes)
    stage = training(TokenizerStageConfig(batch=8, adversary=adversary))
    seen, discriminator_step = [], stage._discriminator_step

    def recorded(images, output, features, scalars, *drawn):
        seen.extend((images, output, drawn))
        return discriminator_step(images, output, features, scalars, *drawn)

    stage._discriminator_step = recorded
    found = stage.train_step(0)["discriminator"]
    images, output, drawn = seen
    if changes:
        augment = Augmentation()
        images, output = augment(images, *drawn), augment(output, *drawn)
    judge = PatchDiscriminator(adversary, np.random.default_rng((0, 3)))  # as it was at first
    assert found == pytest.approx(float(hinge_loss(judge(images), judge(output))), rel=1e-4)


def test_an_overflowing_step_moves_no_weights_averages_or_codes():
    config = TokenizerStageConfig(
        batch=8, ema=0.9, codebook=CodebookConfig(update="ema", revive_every=1)
    )
    stage = training(config)
    stage.train_step(0)
    last = stage._tokenizer.last_layer
    ops.assign(last, last * 1e16)  # squared errors are still float32 numbers, gradients are not
    before = {name: array.copy() for name, array in stage.state()[0].items()}
    skipped = stage.train_step(1)
    assert np.isfinite(skipped["loss"])
    assert skipped["skipped_steps"] == 1 and "gradient_norm" not in skipped
    for name, array in stage.state()[0].items():
        np.testing.assert_array_equal(array, before[name], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downsampling", "scales", "size"),
    [
        (4, (1, (2, 3), (8, 12)), (32, 48)),
        (8, (1, 2, (3, 4), (6, 8)), (48, 64)),
        (16, (1, 4, 16, 32), (512, 512)),
    ],
)
def test_any_geometry_trains(downsampling, scales, size):
    config = tiny.tokenizer(channel_multipliers=(1,) * downsampling.bit_length(), scales=scales)
    assert (config.downsampling, config.image_size) == (downsampling, size)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(2, np.int32), ("noise",))
    stage = TokenizerStageConfig(epochs=2, batch=1, losses=ReconstructionLossConfig(structure=1.0))
    one = TokenizerTraining(Tokenizer(config, 0), images, images, stage, seed=0)
    losses = [one.train_step(step)["loss"] for step in range(one.steps)]
    assert losses[-1] < losses[0]
    assert np.isfinite(one.validate(one.steps - 1)["scale_psnr"]).all()
