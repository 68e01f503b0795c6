"""``--loop.judge``: what validations judge by, and what is refused before training."""

import json
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, to_pixels
from var_train.commands.pipeline import run_training
from var_train.commands.run_config import RunConfig, TransformerSizeConfig
from var_train.data.image_sources import ImageSet
from var_train.judging import validations
from var_train.judging.figures import Gaussian, frechet_distance
from var_train.judging.networks import Features
from var_train.judging.validations import JudgeConfig, ValidationJudge
from var_train.parallel import workers
from var_train.reports.images import SamplingConfig
from var_train.training.loop import LoopConfig
from var_train.training.tokenizer_stage import TokenizerStageConfig
from var_train.training.transformer_stage import TransformerStageConfig
from var_transformer import Transformer, generate

TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 4))
MODEL = tiny.transformer(depth=1, num_classes=3, scales=(1, 2, 4))
SAMPLING = SamplingConfig(batch=4)
CLASSES = np.arange(3, dtype=np.int32)


@dataclass(frozen=True)
class Projections:
    """A stand-in for a network: features and three classes of 4x4 pixels."""

    name: str = "FD-Projections"
    identity: str = "0123"

    def features(self, images_byxc: np.ndarray) -> Features:
        flat_bp = images_byxc[:, :4, :4].reshape(len(images_byxc), -1) / 255
        weights = np.random.default_rng(0).standard_normal((flat_bp.shape[1], 5))
        pooled_bf = (flat_bp @ weights).astype(np.float32)
        return Features(pooled_bf, pooled_bf[:, :3], None)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(validations, "load_network", lambda path: Projections())


def held_out(count: int = 30) -> ImageSet:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(pixels, (np.arange(count) % 3).astype(np.int32), ("a", "b", "c"))


def pair() -> tuple[Transformer, Tokenizer]:
    return Transformer(MODEL, 0), Tokenizer(TOKENIZER, 0)


def test_figures_are_those_of_what_generate_draws_and_of_the_held_out_images():
    found = ValidationJudge(JudgeConfig(samples=14), held_out()).judge(
        *pair(), SAMPLING, 5, CLASSES
    )
    labels_n = np.arange(14) % 3
    drawn = generate(*pair(), labels_n, seed=5)
    features = Projections().features(to_pixels(drawn.images))
    real = Projections().features(held_out().images_nyxc)
    expected = frechet_distance(Gaussian.of(features.pooled_bf), Gaussian.of(real.pooled_bf))
    assert found["FD-Projections"] == pytest.approx(expected, rel=1e-2)  # of rounded pixels
    correct = features.logits_bk.argmax(1) == labels_n
    assert found["class_accuracy"] == pytest.approx(correct.mean(), abs=1 / 14)
    assert {"precision", "recall", "density", "coverage", "nearest_distance_median"} <= {*found}
    assert not any(" " in name for name in found)


def test_the_same_model_is_judged_alike_again():
    judge = ValidationJudge(JudgeConfig(samples=14), held_out())
    assert judge.judge(*pair(), SAMPLING, 5, CLASSES) == judge.judge(*pair(), SAMPLING, 5, CLASSES)


def test_the_shares_of_several_workers_are_the_samples_of_one(monkeypatch):
    judge = ValidationJudge(JudgeConfig(samples=14), held_out())
    alone = judge.judge(*pair(), SAMPLING, 5, CLASSES)
    shares: dict[int, list[np.ndarray]] = {}
    monkeypatch.setattr(workers, "size", lambda: 3)

    def keep(array: np.ndarray) -> np.ndarray:
        shares.setdefault(workers.rank(), []).append(array)
        raise InterruptedError

    for rank in range(3):  # one after another: each ends where it would wait for the others
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(workers, "gather", keep)
        with pytest.raises(InterruptedError):
            judge.judge(*pair(), SAMPLING, 5, CLASSES)
    assert {len(parts[0]) for parts in shares.values()} == {5}
    gathered = np.stack([shares[rank][0] for rank in range(3)])
    monkeypatch.setattr(workers, "rank", lambda: 0)

    def all_of(array: np.ndarray) -> np.ndarray:
        if array.shape == gathered.shape[1:]:
            return gathered
        logits = gathered[:, :, :3]  # the stand-in's first features
        return logits if array.shape == logits.shape[1:] else array[None]

    monkeypatch.setattr(workers, "gather", all_of)
    assert judge.judge(*pair(), SAMPLING, 5, CLASSES) == pytest.approx(alone, rel=1e-2)


def test_a_reference_is_a_folder_an_npz_or_statistics(tmp_path):
    np.savez(tmp_path / "real.npz", arr_0=held_out().images_nyxc)
    by_file = ValidationJudge(JudgeConfig(14, tmp_path / "real.npz"), None)
    by_images = ValidationJudge(JudgeConfig(14), held_out())
    found = by_file.judge(*pair(), SAMPLING, 5, CLASSES)
    assert found == pytest.approx(by_images.judge(*pair(), SAMPLING, 5, CLASSES))


def test_what_chose_the_best_model_names_all_that_the_figure_depends_on(tmp_path):
    def best_by(samples: int, images: int, sampling: SamplingConfig = SAMPLING) -> object:
        config = JudgeConfig(samples, chooses=True)
        return ValidationJudge(config, held_out(images)).best_by(sampling)

    def by_file(pixels_nyxc: np.ndarray) -> object:
        np.savez(tmp_path / "real.npz", arr_0=pixels_nyxc)
        config = JudgeConfig(14, tmp_path / "real.npz", chooses=True)
        return ValidationJudge(config, None).best_by(SAMPLING)

    first = best_by(14, 30)
    assert first["figure"] == "FD-Projections" and first == best_by(14, 30)
    assert first == json.loads(json.dumps(first))  # as a checkpoint has it
    assert best_by(15, 30) != first != best_by(14, 29)
    for changes in ({"cfg": 2.0}, {"top_k": 5}, {"top_p": 0.5}):
        assert best_by(14, 30, replace(SAMPLING, **changes)) != first
    assert best_by(14, 30, replace(SAMPLING, batch=3, per_class=7)) == first
    pixels_nyxc = held_out().images_nyxc
    assert by_file(pixels_nyxc) != by_file(255 - pixels_nyxc)
    assert ValidationJudge(JudgeConfig(14), held_out()).best_by(SAMPLING) is None


def test_the_classes_of_the_data_are_drawn_and_known_by_their_labels(monkeypatch):
    """An adapter's base may have more, and number them otherwise."""
    drawn, asked = [], np.array([2, 0], np.int32)
    draw_images, statistics_of = validations.draw_images, validations.statistics_of

    def draw(model, tokenizer, labels_n, *rest):
        drawn.append(labels_n)
        return draw_images(model, tokenizer, labels_n, *rest)

    def judged(features, name, labels_n):
        drawn.append(labels_n)
        return statistics_of(features, name, labels_n)

    monkeypatch.setattr(validations, "draw_images", draw)
    monkeypatch.setattr(validations, "statistics_of", judged)
    ValidationJudge(JudgeConfig(samples=5), held_out()).judge(*pair(), SAMPLING, 5, asked)
    assert [list(labels_n) for labels_n in drawn] == [[2, 0, 2, 0, 2], [0, 1, 0, 1, 0]]


def test_what_only_classifiers_read_is_not_kept(monkeypatch):
    alive: list[weakref.ref] = []
    features = Projections.features

    def described(self: Projections, images_byxc: np.ndarray) -> Features:
        assert sum(reference() is not None for reference in alive) < 2
        described_bd = np.zeros((len(images_byxc), 7))
        alive.append(weakref.ref(described_bd))
        return replace(features(self, images_byxc), described_bd=described_bd)

    monkeypatch.setattr(Projections, "features", described)
    judge = ValidationJudge(JudgeConfig(samples=20), held_out())
    judge.judge(*pair(), SAMPLING, 5, CLASSES)
    assert len(alive) > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples is 1"),
        ({"samples": -1}, "samples is -1"),
        ({"samples": 50_001}, "samples is 50001"),
        ({"chooses": True}, "samples is 0.* expected at least 2 samples, or 0 and no other"),
        ({"reference": Path("x")}, "samples is 0"),
        ({"network": Path("x")}, "samples is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JudgeConfig(**settings)


def run(folder: Path, judge: JudgeConfig, **changes: object) -> RunConfig:
    """Six steps, validated after three and six."""
    return replace(
        RunConfig(
            out=folder / "out",
            tokenizer=tiny.tokenizer(channel_multipliers=(1, 2, 2, 2), scales=(1, 2, 4)),
            transformer=TransformerSizeConfig(depth=1, width=32, heads=2),
            loop=LoopConfig(validations=2, judge=judge),
            train_tokenizer=TokenizerStageConfig(epochs=1, batch=40, validation_images=20),
            train_transformer=TransformerStageConfig(
                epochs=1, batch=240, validation_images=20, samples_per_class=0
            ),
            sampling=SamplingConfig(per_class=1, batch=10),
        ),
        **changes,
    )


@pytest.mark.parametrize(
    ("judge", "changes", "message"),
    [
        (JudgeConfig(20), {"stage": "tokenizer"}, "stage tokenizer; expected the stage all or"),
        (
            JudgeConfig(20),
            {"stage": "transformer", "tokens": Path("t")},
            "expected a loop.judge.reference",
        ),
        (JudgeConfig(20, Path("missing.npz")), {}, "missing.npz"),
    ],
)
def test_a_run_that_cannot_be_judged_is_refused_before_anything_is_written(
    tmp_path, judge, changes, message
):
    with pytest.raises(InputError, match=message):
        run_training(run(tmp_path, judge, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_each_validation_of_a_run_has_the_figures_and_a_resumed_run_has_the_same(tmp_path):
    def judged(folder: Path) -> list[tuple[int, float, float]]:
        lines = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
        found = [x for x in lines if x["stage"] == "validation" and x["of"] == "transformer"]
        return [(x["step"], x["FD-Projections"], x["coverage"]) for x in found]

    judge = JudgeConfig(20, chooses=True)
    figures = run_training(run(tmp_path / "whole", judge))
    whole = judged(tmp_path / "whole")
    assert [step for step, *_ in whole] == [2, 5]
    assert figures["FD-Projections"] == whole[-1][1]
    assert any((tmp_path / "whole" / "out" / "tensorboard" / "transformer").iterdir())

    with pytest.MonkeyPatch.context() as patch:
        judges, calls = ValidationJudge.judge, iter(range(2))

        def second_stops(self: ValidationJudge, *arguments: object) -> dict[str, float]:
            if next(calls) == 1:
                raise InterruptedError
            return judges(self, *arguments)

        patch.setattr(ValidationJudge, "judge", second_stops)
        with pytest.raises(InterruptedError):
            run_training(run(tmp_path / "resumed", judge))
    run_training(run(tmp_path / "resumed", judge))
    assert judged(tmp_path / "resumed") == whole
