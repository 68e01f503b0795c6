"""``evaluate samples`` from files to figures, with a network of a few random projections."""

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from var_tokenizer.common import InputError
from var_train import evaluate
from var_train.commands import judgement
from var_train.judging.figures import Gaussian, frechet_distance
from var_train.judging.measuring import figure_names, halves, kept_images, measure_set
from var_train.judging.networks import Features
from var_train.judging.npz_files import NpzFile
from var_train.judging.sets import NpzImages
from var_train.judging.statistics import load_statistics, save_statistics


@dataclass(frozen=True)
class Projections:
    """A stand-in for a network: features, classes and spatial features of 8x8 pixels."""

    name: str = "FD-Projections"
    identity: str = "0123456789abcdef"
    classes: int = 3
    spatial: bool = True

    def features(self, images_byxc: np.ndarray) -> Features:
        flat_bp = images_byxc[:, :8, :8].reshape(len(images_byxc), -1) / 255
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((flat_bp.shape[1], 12))
        pooled_bf = np.maximum(flat_bp @ weights, 0).astype(np.float32)
        return Features(
            pooled_bf,
            pooled_bf[:, : self.classes] * 3 if self.classes else None,
            flat_bp[:, ::24].astype(np.float32) if self.spatial else None,
        )


def smooth(seed: int, count: int) -> np.ndarray:
    """Images uint8 (count, 8, 8, 3)."""
    noise = np.random.default_rng(seed).standard_normal((count, 8, 8, 3))
    smoothed = ndimage.gaussian_filter(noise, (0, 1, 1, 0))
    return np.clip(128 + 200 * smoothed, 0, 255).astype(np.uint8)


def npz(path: Path, pixels: np.ndarray, **arrays: np.ndarray) -> Path:
    np.savez(path, arr_0=pixels, **arrays)
    return path


@pytest.fixture
def judge(monkeypatch, tmp_path, caplog, capsys):
    """Runs the command: its exit code, what it printed and logged, and its JSON."""

    def run(samples: Path, reference: Path, *words: str, network: Projections = Projections()):
        caplog.clear()
        caplog.set_level(logging.INFO)
        out = tmp_path / "out"
        monkeypatch.setattr(judgement, "load_network", lambda path: network)
        files = ("--samples", str(samples), "--reference", str(reference), "--out", str(out))
        monkeypatch.setattr(sys, "argv", ["evaluate", "samples", *files, *words])
        code = 0
        try:
            evaluate.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr().out + "\n".join(r.getMessage() for r in caplog.records)
        path = out / "samples.json"
        report = json.loads(path.read_text()) if path.exists() else None
        return code, said, report

    return run


def test_the_command_writes_figures_a_floor_and_a_sheet(judge, tmp_path):
    labels = np.arange(60) % 3
    samples = npz(tmp_path / "s.npz", smooth(0, 60), arr_1=labels)
    reference = npz(tmp_path / "r.npz", smooth(1, 80))
    code, said, report = judge(samples, reference, "--batch", "7")
    assert code == 0 and report["network"] == "FD-Projections"
    assert (report["samples"], report["reference"]) == (60, 80)
    expected = {
        *("FD-Projections", "sFD-Projections", "IS-Projections", "IS-Projections deviation"),
        *("precision", "recall", "density", "coverage", "class accuracy"),
        *("nearest distance", "nearest distance, median", "nearest distance, least"),
    }
    assert set(report["figures"]) == expected
    assert set(report["floor"]) == expected - {"class accuracy"}
    assert set(report["left_out"]) == {"KD-Projections", "KD-Projections deviation"}
    assert "KD-Projections is left out: 60 samples; expected at least 1000" in said
    features = [Projections().features(smooth(n, k)) for n, k in ((0, 60), (1, 80))]
    for name, field in (("FD-Projections", "pooled_bf"), ("sFD-Projections", "spatial_bf")):
        distance = frechet_distance(*(Gaussian.of(getattr(f, field)) for f in features))
        assert report["figures"][name] == pytest.approx(distance, rel=1e-9)
    correct = features[0].logits_bk.argmax(1) == labels
    assert report["figures"]["class accuracy"] == pytest.approx(correct.mean())
    assert "FD-Projections" in said and "real halves" in said
    with Image.open(tmp_path / "out" / "samples.png") as sheet:
        assert sheet.width > 8 * 64 and sheet.height > 6 * 64


@pytest.mark.parametrize("batch", [1, 60, 200])
def test_figures_do_not_depend_on_the_batch(batch, judge, tmp_path):
    samples, reference = (npz(tmp_path / f"{n}.npz", smooth(n, 60)) for n in (0, 1))
    first = judge(samples, reference, "--batch", "7")[2]["figures"]
    again = judge(samples, reference, "--batch", str(batch))[2]["figures"]
    assert again == pytest.approx(first, rel=1e-6)


def test_a_folder_gives_the_figures_of_an_npz_file(judge, tmp_path):
    reference = npz(tmp_path / "r.npz", smooth(1, 40))
    (tmp_path / "images").mkdir()
    for n, pixels_yxc in enumerate(smooth(0, 30)):
        Image.fromarray(pixels_yxc).save(tmp_path / "images" / f"{n:03}.png")
    of_folder = judge(tmp_path / "images", reference)[2]
    of_file = judge(npz(tmp_path / "s.npz", smooth(0, 30)), reference)[2]
    assert of_folder["figures"] == pytest.approx(of_file["figures"], rel=1e-12)
    assert "holds no labels" in of_folder["left_out"]["class accuracy"]


def test_saved_statistics_give_the_figures_of_the_images(judge, monkeypatch, tmp_path):
    monkeypatch.setattr("var_train.judging.figures.SUBSETS", 2)
    monkeypatch.setattr("var_train.judging.measuring.SUBSETS", 2)
    samples, reference = (npz(tmp_path / f"{n}.npz", smooth(n, 1000)) for n in (0, 1))
    before = judge(samples, reference, "--save-statistics")[2]
    saved = tmp_path / "out" / "reference-statistics.npz"
    after = judge(samples, saved)[2]
    assert after["figures"] == pytest.approx(before["figures"], rel=1e-6)
    before["floor"].pop("sFD-Projections")  # spatial features are not kept
    assert after["floor"] == pytest.approx(before["floor"], rel=1e-6)
    both = judge(tmp_path / "out" / "samples-statistics.npz", saved)[2]
    assert both["figures"] == pytest.approx(before["figures"], rel=1e-6)
    with np.load(saved) as arrays:
        assert {"mu", "sigma", "mu_s", "sigma_s", "features"} < set(arrays)


def test_statistics_of_another_network_are_refused_by_name(judge, tmp_path):
    samples = npz(tmp_path / "s.npz", smooth(0, 20))
    judge(samples, samples, "--save-statistics")
    saved = tmp_path / "out" / "reference-statistics.npz"
    for other in (Projections(name="FD-Other"), Projections(identity="fedcba")):
        code, said, _ = judge(samples, saved, network=other)
        assert code == 2 and "reference-statistics.npz: statistics by the network of" in said
        assert "FD-Projections (0123456789ab)" in said and other.identity[:12] in said


def openai(path: Path, features: Features, **arrays: np.ndarray) -> Path:
    np.savez(
        path,
        mu=features.pooled_bf.mean(0),
        sigma=np.cov(features.pooled_bf, rowvar=False),
        mu_s=features.spatial_bf.mean(0),
        sigma_s=np.cov(features.spatial_bf, rowvar=False),
        **arrays,
    )
    return path


def test_openais_reference_batches_are_for_the_inception_alone(judge, tmp_path):
    samples, many = npz(tmp_path / "s.npz", smooth(0, 50)), smooth(1, 400)
    features = Projections().features(many)
    alone = openai(tmp_path / "alone.npz", features)
    code, said, _ = judge(samples, alone)
    assert code == 2 and "statistics by the network of FID" in said
    inception = Projections(name="FID", identity="abc")
    report = judge(samples, alone, network=inception)[2]
    assert set(report["figures"]) == {"FID", "sFID", "IS", "IS deviation"}
    assert "neither images nor their features" in report["left_out"]["precision"]
    with_images = openai(tmp_path / "both.npz", features, arr_0=many[:60])
    both = judge(samples, with_images, network=inception)[2]
    for name in ("FID", "sFID"):  # of the statistics; the images are some of theirs
        assert both["figures"][name] == pytest.approx(report["figures"][name], rel=1e-9)
    assert both["reference"] == 60 and "recall" in both["figures"]
    images_alone = judge(samples, with_images)[2]  # by another network
    expected = judge(samples, npz(tmp_path / "r.npz", many[:60]))[2]
    assert images_alone["figures"] == expected["figures"]


def test_statistics_of_another_number_of_features_are_refused(judge, tmp_path):
    samples, narrow = npz(tmp_path / "s.npz", smooth(0, 50)), Projections().features(smooth(1, 99))
    narrow = replace(narrow, pooled_bf=narrow.pooled_bf[:, :5])
    code, said, _ = judge(samples, openai(tmp_path / "r.npz", narrow), network=Projections("FID"))
    assert code == 2 and "mu has 5 features; expected 12" in said
    full = openai(tmp_path / "f.npz", Projections().features(smooth(1, 99)))
    code, said, _ = judge(full, tmp_path / "r.npz", network=Projections("FID"))
    assert code == 2 and "r.npz: mu has 5 features; expected 12" in said


def test_a_folder_that_cannot_be_written_to_is_found_before_the_network_looks(judge, tmp_path):
    (tmp_path / "out").touch()
    samples = npz(tmp_path / "s.npz", smooth(0, 30))
    network = Projections()
    object.__setattr__(network, "features", None)
    code, said, _ = judge(samples, samples, network=network)
    assert code == 2 and "cannot write here" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": np.full(4, np.nan)}, "mu holds NaN"),
        ({"sigma": np.zeros((4, 3))}, r"sigma is float64 \(4, 3\); expected floats \(4, 4\)"),
        ({"sigma": np.triu(np.ones((4, 4)))}, "sigma is not symmetric"),
        ({"sigma": -np.eye(4)}, "sigma has a variance of -1; expected none below 0"),
        ({"sigma": np.full((4, 4), 1e300)}, "sigma holds .* numbers above 1e[+]30"),
        ({"mu": np.full(4, 1e300)}, "mu holds .* numbers above 1e[+]15"),
        ({"mu": np.zeros((4, 4))}, r"mu has shape \(4, 4\); expected \(F,\)"),
        ({"about": np.zeros(3, np.uint8)}, "about is damaged"),
        ({"about": np.zeros(3)}, "about is damaged"),
        ({"features": np.zeros((3, 5), np.float32)}, "features have shape"),
    ],
)
def test_damaged_statistics_are_refused(change, message, tmp_path):
    arrays = {"mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "a.npz", **(arrays | change))
    with pytest.raises(InputError, match=message):
        load_statistics(NpzFile(tmp_path / "a.npz"), Projections("FID"))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_few_images_leave_figures_out_and_give_the_others(count, judge, tmp_path):
    few, many = npz(tmp_path / "f.npz", smooth(0, count)), npz(tmp_path / "m.npz", smooth(1, 50))
    code, said, report = judge(few, many)
    assert code == 0 and "IS-Projections is left out" in said
    figures, left_out = set(report["figures"]), set(report["left_out"])
    assert ("recall" in figures) == (count > 3) and ("FD-Projections" in figures) == (count > 1)
    assert {"precision", "density", "coverage", "nearest distance"} <= figures
    assert not figures & left_out
    assert figures | left_out == set(figure_names("FD-Projections").values())
    assert judge(many, few)[0] == 0  # the other way round


@pytest.mark.parametrize("network", [Projections(classes=0), Projections(spatial=False)])
def test_what_the_network_lacks_is_left_out(network, judge, tmp_path):
    samples, reference = (npz(tmp_path / f"{n}.npz", smooth(n, 30)) for n in (0, 1))
    report = judge(samples, reference, network=network)[2]
    missing = "sFD-Projections" if network.classes else "IS-Projections"
    assert missing in report["left_out"] and missing not in report["figures"]


@pytest.mark.parametrize("labels", [np.zeros(30, int), np.arange(30) % 2, np.arange(30) % 4])
def test_accuracy_is_left_out_unless_the_labels_are_the_networks_classes(labels, judge, tmp_path):
    samples = npz(tmp_path / "s.npz", smooth(0, 30), arr_1=labels)
    report = judge(samples, npz(tmp_path / "r.npz", smooth(1, 30)))[2]
    assert "class accuracy" not in report["figures"]
    assert "the network knows 3" in report["left_out"]["class accuracy"]


def test_a_file_of_something_else_is_named_with_what_it_holds(judge, tmp_path):
    samples = npz(tmp_path / "s.npz", smooth(0, 30))
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    code, said, report = judge(samples, tmp_path / "x.npz")
    assert code == 2 and "x.npz: has weights; expected arr_0" in said and report is None
    code, said, _ = judge(samples, tmp_path / "none")
    assert code == 2 and "none: cannot read this file" in said


def test_nan_features_are_refused_with_the_images(judge, tmp_path):
    class Broken(Projections):
        def features(self, images_byxc: np.ndarray) -> Features:
            return Features(np.full((len(images_byxc), 4), np.nan, np.float32), None, None)

    samples = npz(tmp_path / "s.npz", smooth(0, 30))
    code, said, _ = judge(samples, samples, network=Broken())
    assert code == 2 and "the network gives NaN or infinity for images 0 to" in said


def test_features_of_evenly_spaced_images_are_kept_of_many(monkeypatch, tmp_path):
    monkeypatch.setattr("var_train.judging.measuring.MOST_KEPT", 7)
    monkeypatch.setattr("var_train.judging.statistics.MOST_KEPT", 7)
    images = NpzImages(NpzFile(npz(tmp_path / "s.npz", smooth(0, 30))))
    found = measure_set(Projections(), images, 4)
    expected = Projections().features(smooth(0, 30)[kept_images(30)]).pooled_bf
    assert found.features_nf == pytest.approx(expected)
    assert frechet_distance(
        found.pooled, Gaussian.of(Projections().features(smooth(0, 30)).pooled_bf)
    ) == pytest.approx(0, abs=1e-9)
    save_statistics(tmp_path / "saved.npz", found, Projections())
    loaded = load_statistics(NpzFile(tmp_path / "saved.npz"), Projections())
    assert loaded.images == 30 and (loaded.features_nf == found.features_nf).all()


def test_halves_are_disjoint_and_equal_in_size():
    for count in (2, 9, 1000):
        assert abs(np.bincount(halves(count), minlength=2) - count / 2).max() <= 0.5


def corrupted(kind: str, strength: int, pixels_nyxc: np.ndarray) -> np.ndarray:
    if kind == "noise":
        noise = np.random.default_rng(0).standard_normal(pixels_nyxc.shape)
        return np.clip(pixels_nyxc + 15 * strength * noise, 0, 255).astype(np.uint8)
    if kind == "blur":
        return ndimage.gaussian_filter(pixels_nyxc, (0, 0.5 * strength, 0.5 * strength, 0))
    changed_nyxc = pixels_nyxc.copy()
    changed_nyxc[:, : 2 * strength, : 2 * strength] = 0
    return changed_nyxc


@pytest.mark.parametrize("kind", ["noise", "blur", "occlusion"])
def test_a_worse_set_has_a_larger_distance(kind, judge, tmp_path):
    reference = npz(tmp_path / "r.npz", smooth(1, 400))
    distances = []
    for strength in range(4):
        samples = npz(tmp_path / "s.npz", corrupted(kind, strength, smooth(0, 400)))
        distances.append(judge(samples, reference)[2]["figures"]["FD-Projections"])
    assert distances == sorted(distances)
