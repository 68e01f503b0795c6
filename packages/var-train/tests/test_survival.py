"""Runs of the command that are killed, and runs of several workers."""

import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from image_tree import pack_shards, write_image_tree
from safetensors.numpy import load_file
from var_tokenizer import Tokenizer
from var_train.data.resume_check import DataRecord
from var_transformer import Transformer

KILLS = int(os.environ.get("VAR_KILLS", "3"))  # the full proof takes 20
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 4))
SETTINGS = """
    --transformer.depth 1 --transformer.width 32 --transformer.heads 2
    --train-transformer.batch 8 --train-transformer.ema 0.9
    --sampling.per-class 1 --sampling.batch 2 --train-transformer.samples-per-class 0
"""
ENVIRONMENT = os.environ | {"GLOG_v": "3", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with images of two classes and a tokenizer for them."""
    root = tmp_path_factory.mktemp("work")
    write_image_tree(root / "images", (4, 4), train=20, val=4)
    Tokenizer(TOKENIZER, 0).save(root / "tokenizer.safetensors")
    return root


def command(work: Path, out: Path, epochs: int, *more: str) -> list[str]:
    """40 images in batches of 8: five steps an epoch."""
    arguments = ["--stage", "transformer", "--data", str(work / "images"), "--out", str(out)]
    arguments += ["--tokenizer-file", str(work / "tokenizer.safetensors"), *SETTINGS.split()]
    epochs_argument = ["--train-transformer.epochs", str(epochs)]
    return ["-m", "var_train.run", *arguments, *epochs_argument, *more]


def run(arguments: list[str]) -> None:
    words = [sys.executable, *arguments]
    result = subprocess.run(
        words, env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr


def run_by(count: int, arguments: list[str], out: Path) -> None:
    if count == 1:
        run(arguments)
    else:
        assert msrun(arguments, out, count).wait(900) == 0, Path(f"{out}.txt").read_text()


def msrun(arguments: list[str], out: Path, count: int = 2) -> subprocess.Popen:
    """Several workers on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("msrun")), f"--worker_num={count}"]
    launcher += [f"--local_worker_num={count}", f"--master_port={port}", "--join=True"]
    launcher += [f"--log_dir={out}.logs", "python", *arguments]
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    with Path(f"{out}.txt").open("w") as file:
        return subprocess.Popen(
            launcher, env=ENVIRONMENT | {"PATH": path}, stdout=file, stderr=subprocess.STDOUT
        )


def steps(out: Path, stage: str = "transformer") -> list[dict]:
    """The lines of a stage's steps."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == stage]


def test_two_workers_draw_the_loss_curve_of_one(work, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(work, one, 10))
    run_by(2, command(work, two, 10), two)
    ours, theirs = steps(two), steps(one)
    assert [line["step"] for line in ours] == list(range(50))  # one worker alone writes
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# A third of a sum is rounded, a half is not, and the ratio of two gradients grows such errors.
HALVES = {"loss": 1e-6, "reconstruction": 1e-6, "discriminator": 1e-6, "adaptive_weight": 1e-5}
THIRDS = {"reconstruction": 1e-4, "discriminator": 1e-4}


@pytest.mark.parametrize(("count", "close"), [(2, HALVES), (3, THIRDS)])  # 3 take 2, 3, 3 of 8
def test_workers_train_an_adversarial_tokenizer_as_one_does(work, tmp_path, count, close):
    curves = []
    for workers in (count, 1):
        out = tmp_path / str(workers)
        words = ["-m", "var_train.run", "--stage", "tokenizer", *tiny.ADVERSARIAL.split()]
        words += ["--train-tokenizer.epochs", "2"]
        run_by(workers, [*words, "--data", str(work / "images"), "--out", str(out)], out)
        curves.append(steps(out, "tokenizer"))
    assert len(curves[0]) == len(curves[1]) == 10
    judged = [(a, b) for a, b in zip(*curves, strict=True) if "adaptive_weight" in b]
    assert len(judged) == 6 and all(theirs["adaptive_weight"] > 0 for _, theirs in judged)
    first, expected = judged[0]
    assert first["adaptive_weight"] == pytest.approx(expected["adaptive_weight"], rel=1e-4)
    for ours, theirs in zip(*curves, strict=True):
        assert ours["revived"] == theirs["revived"]
        for name in close.keys() & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=close[name]), (name, ours["step"])


def test_sharded_moments_give_the_same_checkpoints(work, tmp_path):
    every, shard = ("--loop.checkpoint-every", "3"), "--train-transformer.shard-optimizer"
    plain, sharded, resumed = (tmp_path / name for name in ("plain", "sharded", "resumed"))
    run_by(2, command(work, plain, 2, *every), plain)
    run_by(2, command(work, sharded, 2, *every, shard), sharded)
    shutil.copytree(plain, resumed)
    last = "checkpoints/transformer/step-000000010.safetensors"
    (resumed / last).unlink()
    run_by(2, command(work, resumed, 2, *every, shard), resumed)
    expected = load_file(plain / last)
    for out in (sharded, resumed):
        found = load_file(out / last)
        assert found.keys() == expected.keys()
        assert all((found[name] == array).all() for name, array in expected.items())


ADAPTER = ("--train-transformer.lora.rank", "2", "--train-transformer.accumulation", "2")
CONTRAST = ("--train-transformer.objective", "cca", "--train-transformer.cca.beta", "0.5")


@pytest.mark.parametrize("more", [(), CONTRAST], ids=["likelihood", "cca"])
def test_two_workers_train_an_adapter_as_one_does(work, tmp_path, more):
    init = tmp_path / "init.safetensors"
    size = tiny.transformer(depth=1, num_classes=2, scales=TOKENIZER.scales)
    Transformer(size, 0, gate_gain=1.0).save(init)
    one, two, sharded = (tmp_path / name for name in ("one", "two", "sharded"))
    words = ("--init", str(init), *ADAPTER, *more)
    run(command(work, one, 2, *words))
    run_by(2, command(work, two, 2, *words), two)
    run_by(2, command(work, sharded, 2, *words, "--train-transformer.shard-optimizer"), sharded)
    ours, theirs = ([line["loss"] for line in steps(out)] for out in (two, one))
    assert len(ours) == 10 and ours == pytest.approx(theirs, rel=1e-4)
    last = "checkpoints/transformer/step-000000010.safetensors"
    expected, found = load_file(two / last), load_file(sharded / last)
    assert any("lora_A" in name for name in expected) and found.keys() == expected.keys()
    assert all((found[name] == array).all() for name, array in expected.items())


def test_two_workers_note_the_contents_of_all_images_that_they_read(work, tmp_path):
    out = tmp_path / "out"
    run_by(2, command(work, out, 1, "--random-crops"), out)
    record = DataRecord.read_file(out / "checkpoints" / "transformer")
    assert record.counts == (40, 8) and not record.read and record.hashes_n.all()


def digits(out: Path, stage: str) -> list[str]:
    """Batches that neither three nor four workers divide: 29 steps, then 12."""
    settings = """
        --train-tokenizer.batch 50 --train-tokenizer.epochs 1 --train-transformer.batch 250
        --train-transformer.epochs 2 --train-transformer.shard-optimizer
        --train-transformer.samples-per-class 0 --loop.checkpoint-every 3 --loop.keep 20
        --sampling.per-class 1
    """
    return ["-m", "var_train.run", "--out", str(out), "--stage", stage, *settings.split()]


@pytest.fixture(scope="module")
def by_four(tmp_path_factory) -> Path:
    """The digits, trained by four workers without a break."""
    out = tmp_path_factory.mktemp("digits") / "out"
    run_by(4, digits(out, "all"), out)
    return out


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
@pytest.mark.parametrize("count", [4, 3, 1])
def test_a_run_of_four_workers_goes_on_with_any_number(by_four, tmp_path, count, stage):
    out = tmp_path / "out"
    shutil.copytree(by_four, out)
    saves = out / "checkpoints" / stage
    for path in saves.glob("step-*"):  # as if it had been killed before step 7
        if path.name > "step-000000006.safetensors":
            path.unlink()
    if stage == "tokenizer":
        shutil.rmtree(out / "checkpoints" / "transformer")
    assert newest(saves) == 6
    run_by(count, digits(out, stage), out)
    ours, theirs = ([line["loss"] for line in steps(o, stage)] for o in (out, by_four))
    assert len(ours) == len(theirs) == {"tokenizer": 29, "transformer": 12}[stage]
    assert ours == pytest.approx(theirs, rel=1e-7 if count == 4 else 1e-4)
    if count == 4:
        ours, theirs = (load_file(o / f"{stage}.safetensors") for o in (out, by_four))
        assert all((ours[name] == array).all() for name, array in theirs.items())


def test_two_workers_train_a_model_as_deep_as_the_deepest_preset(work, tmp_path):
    depth = [*("--transformer.depth", "36"), *("--transformer.width", "72")]
    more = [*depth, "--transformer.heads", "36", "--train-transformer.shard-optimizer"]
    out = tmp_path / "deep"
    run_by(2, command(work, out, 1, *more), out)
    losses = [line["loss"] for line in steps(out)]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_weights(work, tmp_path):
    every = ("--loop.checkpoint-every", "1", "--loop.validations", "4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    epochs = 4 * KILLS + 4
    run(command(work, whole, epochs, *every))
    total, rng, kills = 5 * epochs, random.Random(0), 0
    saves = killed / "checkpoints" / "transformer"
    while kills < KILLS:
        begin = newest(saves)
        process = subprocess.Popen(
            [sys.executable, *command(work, killed, epochs, *every)],
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
        )
        goal = begin + rng.randint(1, max(1, (total - begin) // (KILLS - kills) - 1))
        while newest(saves) < goal:
            assert process.poll() is None
            time.sleep(0.001)
        if kills % 2:  # in the middle of a save; else wherever it is by then
            while not any(saves.glob(".step-*")) and process.poll() is None:
                pass
        else:
            time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
    run(command(work, killed, epochs, *every))
    ours, theirs = (load_file(p / "transformer.safetensors") for p in (killed, whole))
    assert all((ours[name] == array).all() for name, array in theirs.items())
    losses = [[line["loss"] for line in steps(out)] for out in (killed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == total


def newest(saves: Path) -> int:
    return max((int(p.stem.split("-")[1]) for p in saves.glob("step-*")), default=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_exits_with_130(work, tmp_path, number):
    out, said, chain = tmp_path / "out", tmp_path / "stderr.txt", tmp_path / "chain"
    words = shlex.join([sys.executable, *command(work, out, 400)])
    # the process group as a terminal's Ctrl-C sees it: a shell with `train && upload`
    with said.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"{words} && touch {chain}; echo $? >&2"], env=ENVIRONMENT, stderr=file
        )
    while not (out / "metrics.jsonl").exists() or len(steps(out)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(child_of(process.pid), number)
    process.wait()
    saved = newest(out / "checkpoints" / "transformer")
    assert saved == len(steps(out)) >= 3
    text = said.read_text()
    expected = f"terminated; saved after step {saved} of 2000; the same command continues there"
    assert expected in text and text.endswith("\n130\n") and not chain.exists()
    assert all(len(line.split(": ", 1)) == 2 for line in text.splitlines()[:-1])  # whole lines
    assert "resumed after step" not in text


def child_of(parent: int) -> int:
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def test_one_interrupted_worker_stops_all_and_their_work_is_saved(work, tmp_path):
    out = tmp_path / "out"
    process = msrun(command(work, out, 4000), out)
    log = Path(f"{out}.logs") / "worker_0.log"
    while not log.exists() or "of 20000 steps, loss" not in log.read_text():
        assert process.poll() is None, Path(f"{out}.txt").read_text()
        time.sleep(0.1)
    worker = json.loads((out / "workers" / "1.json").read_text())["process"]
    os.kill(worker, signal.SIGINT)
    assert process.wait() != 0
    assert newest(out / "checkpoints" / "transformer") == len(steps(out)) >= 3
    logs = [(Path(f"{out}.logs") / f"worker_{n}.log").read_text() for n in (0, 1)]
    assert all("the same command continues there" in text for text in logs)
    assert "died" not in "".join(logs)


@pytest.mark.parametrize("accumulation", ["1", "2"])
def test_a_shard_that_disappears_is_named_by_all_workers_after_they_have_saved(
    work, tmp_path, accumulation
):
    shards, out = pack_shards(work / "images", tmp_path / "shards", 4), tmp_path / "out"
    words = ["--data", str(shards), "--random-crops", "--loop.checkpoint-every", "100000"]
    words += ["--train-transformer.accumulation", accumulation]
    process = msrun(command(work, out, 4000, *words), out)
    while not (out / "metrics.jsonl").exists() or len(steps(out)) < 3:
        assert process.poll() is None, Path(f"{out}.txt").read_text()
        time.sleep(0.1)
    (shards / "train-0004.tar").unlink()
    assert process.wait(300) != 0
    assert newest(out / "checkpoints" / "transformer") == len(steps(out)) >= 3
    for n in (0, 1):
        said = (Path(f"{out}.logs") / f"worker_{n}.log").read_text()
        assert "train-0004.tar: " in said and f"saved after step {len(steps(out))} of 20000" in said


def test_a_dead_worker_stops_the_others_within_a_minute(work, tmp_path):
    out = tmp_path / "out"
    process = msrun(command(work, out, 4000), out)
    try:
        while not (out / "metrics.jsonl").exists() or len(steps(out)) < 3:
            assert process.poll() is None, Path(f"{out}.txt").read_text()
            time.sleep(0.1)
        dead = json.loads((out / "workers" / "1.json").read_text())["process"]
        os.kill(dead, signal.SIGKILL)
        assert process.wait(60) != 0
    finally:
        process.kill()
    said = (Path(f"{out}.logs") / "worker_0.log").read_text()
    assert f"worker 1 (process {dead} on" in said and "its last log line: " in said


def launched(arguments: list[str], out: Path) -> subprocess.Popen:
    """Two workers under the launcher."""
    words = ["-m", "var_train.launch", "--worker_num=2", f"--log_dir={out}.logs"]
    with Path(f"{out}.txt").open("w") as file:
        return subprocess.Popen(
            [sys.executable, *words, "python", *arguments],
            env=ENVIRONMENT,
            stderr=file,
            start_new_session=True,
        )


def test_a_run_whose_worker_is_killed_ends_in_the_same_weights(work, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    every = ("--loop.checkpoint-every", "10", "--train-transformer.shard-optimizer")
    run_by(2, command(work, whole, 40, *every), whole)
    process = launched(command(work, killed, 40, *every), killed)
    while newest(killed / "checkpoints" / "transformer") < 10:  # then 190 steps are left
        assert process.poll() is None, Path(f"{killed}.txt").read_text()
        time.sleep(0.01)
    dead = json.loads((killed / "workers" / "1.json").read_text())["process"]
    os.kill(dead, signal.SIGKILL)
    said = Path(f"{killed}.txt")
    assert process.wait(900) == 0, said.read_text()
    assert f"ERROR: worker 1 (process {dead}) was killed by SIGKILL" in said.read_text()
    assert "WARNING: all workers start again" in said.read_text()
    ours, theirs = (load_file(out / "transformer.safetensors") for out in (killed, whole))
    assert all((ours[name] == array).all() for name, array in theirs.items())
    losses = [[line["loss"] for line in steps(out)] for out in (killed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 200


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_worker_of_the_launcher_ends_without_what_may_crash_at_exit(tmp_path, code):
    """MindSpore's threads for the network did, once in some 400 runs."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, sys\n"
        "from var_train.parallel import workers\n"
        "with workers.leaving():\n"
        "    workers.start()\n"
        "    atexit.register(open, f'{sys.argv[1]}.{workers.rank()}', 'w')\n"
        "    workers.wait_for_all()\n"
        "    if code := int(sys.argv[2]):\n"
        "        sys.exit(code)\n"
    )
    words = [str(script), str(tmp_path / "at-exit"), str(code)]
    process = launched(words, tmp_path / "out")
    assert process.wait(600) == code, (tmp_path / "out.txt").read_text()
    assert not [*tmp_path.glob("at-exit.*")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_launcher_leaves_no_process(work, tmp_path, number):
    out = tmp_path / "out"
    process = launched(command(work, out, 4000), out)
    while not (out / "metrics.jsonl").exists() or len(steps(out)) < 3:
        assert process.poll() is None, Path(f"{out}.txt").read_text()
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 3  # two workers and the scheduler
    # Ctrl-C and SLURM reach the scheduler, too
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
    code = process.wait(300)
    if number == signal.SIGKILL:
        deadline = time.monotonic() + 60
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        assert code == 130
        assert newest(out / "checkpoints" / "transformer") == len(steps(out)) >= 3
        said = Path(f"{out}.txt").read_text()
        assert "INFO: started 2 worker(s)" in said and "INFO: worker 0: 40 training and" in said
        assert "the same command continues there" in said
    assert not any(map(is_alive, children))


def is_alive(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
