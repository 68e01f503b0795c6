"""Ten thousand damaged files of every kind: each is refused or harmless, and none runs code."""

import argparse
import io
import json
import os
import pickle
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from var_convert import convert, inspect
from var_convert.formats import folders
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")

FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.Popen"),
    *("socket.connect", "ctypes.dlopen", "pty.spawn", "webbrowser.open"),
}
Mutate = Callable[[bytes], bytes]


class Payload:
    """Runs a command where a pickle of it is loaded without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def watched() -> Iterator[list[str]]:
    """The forbidden events since the list was emptied: Python tells of each before it happens."""
    seen: list[str] = []
    active = [True]

    forbidden = FORBIDDEN  # at the end of the process, names of the module are None

    def hook(event: str, _: object) -> None:
        if active[0] and event in forbidden:
            seen.append(event)

    sys.addaudithook(hook)  # stays until the process ends
    yield seen
    active[0] = False


@pytest.fixture(scope="module")
def sources(tmp_path_factory, random_model) -> dict[str, Path]:
    """A file or folder of each kind, with all that is let through, and payloads that are not."""
    folder = tmp_path_factory.mktemp("sources")
    model = random_model(tiny.transformer(depth=1, width=8, heads=1, vocab_size=4, num_classes=2))
    state = dict(model.state_dict())
    beside = {"args": argparse.Namespace(a=1), "best": np.float64(1), "curve": np.arange(3.0)}
    payload = Payload(f"touch {folder / 'touched'}")
    torch.save({"model": state, **beside}, folder / "new.pth")
    for name, held in (("old", {"ema": state, **beside}), ("bad", {"model": state, "a": payload})):
        torch.save(held, folder / f"{name}.pth", _use_new_zipfile_serialization=False)
    (folder / "pickle.pth").write_bytes(pickle.dumps({"model": payload, **beside}, protocol=2))
    torch.save(state, folder / "plain.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "SHARD_BYTES", 2000)
        for target in ("a.ckpt", "a.safetensors", "hub", "shards"):
            convert(folder / "plain.pth", folder / target)
    return {path.name: path for path in folder.iterdir()}


def mutate(drawn: random.Random, data: bytes) -> bytes:
    """A few bytes changed, removed, repeated or put in, near the ends more often than not."""
    damaged = bytearray(data)
    for _ in range(drawn.randint(1, 6)):
        near = min(len(damaged), 3000)
        places = (drawn.randrange(near), len(damaged) - 1 - drawn.randrange(near))
        place = drawn.choice((*places, drawn.randrange(len(damaged))))
        size = drawn.choice((1, 1, 2, 4, 8, 40))
        change = drawn.randrange(6)
        if change < 3:
            damaged[place] = drawn.choice((0, 1, 0x7F, 0x80, 0xFF, drawn.randrange(256)))
        elif change == 3:
            del damaged[place : place + size]
        elif change == 4:
            damaged[place:place] = damaged[place : place + size]
        else:
            words = (
                b"c__builtin__\neval\n",
                b"cposix\nsystem\n",
                b"R",
                b"\x81",
                b"\xff" * 8,
                b"[" * 40,
            )
            damaged[place:place] = drawn.choice(words)
        if len(damaged) < 2:
            break
    return bytes(damaged)


def mutated_pickle(data: bytes, change: Mutate) -> bytes:
    """A .pth whose pickle is changed and whose archive is whole: its checksums do not stop it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            whole = not member.filename.endswith("data.pkl")
            new.writestr(member.filename, content if whole else change(content))
    return target.getvalue()


def damaged_copy(source: Path, folder: Path, drawn: random.Random) -> Path:
    """A copy of a file or folder with one of its files damaged."""
    target = folder / source.name
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        files = sorted(target.iterdir())
        texts = [path for path in files if path.suffix == ".json"]
        victim = drawn.choice(texts if drawn.random() < 0.7 else files)
    else:
        victim = target
        shutil.copy(source, target)

    def change(data: bytes) -> bytes:
        return mutate(drawn, data)

    data = victim.read_bytes()
    inside = source.name in ("new.pth", "plain.pth") and drawn.random() < 0.7
    victim.write_bytes(mutated_pickle(data, change) if inside else change(data))
    return target


def check(sources: dict[str, Path], folder: Path, watched: list[str], count: int) -> None:
    drawn, names = random.Random(0), sorted(sources)
    outcomes = {"read": 0, "refused": 0}
    watched.clear()
    for i in range(count):
        path = damaged_copy(sources[names[i % len(names)]], folder, drawn)
        try:
            assert inspect(path).kind == "transformer"
            outcomes["read"] += 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 5000
            outcomes["refused"] += 1
    assert not watched
    assert not (sources["new.pth"].parent / "touched").exists()
    assert outcomes["refused"] > outcomes["read"] > 0  # it damages, and not everything


def test_damaged_files_are_refused_or_harmless(sources, tmp_path, watched):
    check(sources, tmp_path, watched, 100)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_harmless(sources, tmp_path, watched):
    check(sources, tmp_path, watched, 10_000)


def test_a_payload_would_have_run_and_would_have_been_seen(sources, tmp_path, watched):
    watched.clear()
    touched = tmp_path / "touched"
    data = pickle.dumps(Payload(f"touch {touched}"))
    pickle.loads(data)
    assert touched.exists() and watched == ["os.system"]


def test_shards_and_folders_are_among_the_damaged(sources):
    index = json.loads((sources["shards"] / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
