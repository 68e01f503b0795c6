"""What is killed: commands on tiny data, each with the one end that it may come to."""

import hashlib
import json
import random
import shutil
import socket
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tiny
from image_tree import write_image_tree
from PIL import Image
from safetensors import safe_open
from torture.kills import Command, Kill, LostError, Usual
from var_tokenizer import Tokenizer
from var_transformer import Transformer

OUT = "out"  # of every command, in the folder where it runs
MOST_KILLS = 8  # of one case, some of which come too late; then it may end
INTERRUPTED = 130
KILLED = {"SIGKILL": (-9,), "SIGTERM": (INTERRUPTED, -15)}  # -15 before it has a handler
QUIET = {"GLOG_v": "3", "OMP_NUM_THREADS": "1"}
PASSING = ("seconds", "images_per_second", "peak_memory")  # fields that differ from run to run


@dataclass
class Survived:
    """A case that ended. kills: how many, by (signal, moment). failure: what was lost, if any."""

    case: str
    seed: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    failure: str | None = None


@dataclass(frozen=True)
class Work:
    """A kind of work. words: its command line, without Python, for the folder of the inputs."""

    name: str
    words: Callable[[Path], str]
    several: bool = False
    """Whether two workers do it."""
    temporary: str = "temporary"
    """The folder for temporary files, in the place of a case."""

    def command(self, inputs: Path, place: Path, *more: str) -> Command:
        """Starts it in ``place``/work, and goes on with what is there. more: words."""
        words = [sys.executable, *self.words(inputs).split(), *more]
        if self.several:
            launcher = [sys.executable, "-m", "var_train.launch", "--worker_num=2", "--restarts=0"]
            words = [*launcher, f"--log_dir={place / 'logs'}", "python", *words[1:]]
        folder = place / "work"
        for needed in (folder, place / self.temporary, place / "cache"):
            needed.mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(place / self.temporary), "XDG_CACHE_HOME": str(place / "cache")}
        return Command(words, folder, place / "log.txt", self.several, **own, **QUIET)

    def undisturbed(self, inputs: Path, place: Path) -> tuple[Usual, dict[str, str]]:
        """What it takes, and its end."""
        with self.command(inputs, place) as command:
            if code := command.end():
                raise LostError(f"ends with {code} without being killed: {last_lines(place)}")
            return command.taken, contents(place / "work")

    def survive(
        self, seed: int, inputs: Path, place: Path, usual: Usual, end: dict[str, str]
    ) -> Survived:
        """Kills it again and again; each end that it comes to must be the usual one."""
        rng = random.Random(f"{self.name} {seed}")
        case = Survived(self.name, seed)
        kills = [Kill.draw(rng) for _ in range(rng.randint(1, MOST_KILLS))]
        ended = False
        try:
            while kills or not ended:
                kill = kills.pop(0) if kills else None
                if ended:  # before it could be killed: it begins anew
                    shutil.rmtree(place / "work")
                ended = self._ends(inputs, place, kill, usual)
                if ended:
                    compare(contents(place / "work"), end)
                else:
                    case.kills[kill.number.name, kill.moment] += 1
                    check_whole(place / "work")
        except LostError as lost:
            case.failure = str(lost)
        return case

    def _ends(self, inputs: Path, place: Path, kill: Kill | None, usual: Usual) -> bool:
        """Runs the command; whether it came to its end, and was not killed."""
        with self.command(inputs, place) as command:
            if kill is not None and command.wait_for(kill, usual):
                command.kill(kill)
            code = command.end(kill)
        text = said(place)
        died = kill is not None and code in KILLED[kill.number.name]
        if kill is not None and self.several:  # the launcher tells of what a worker died
            by_it = f"was killed by {kill.number.name}" in text[text.rindex("INFO: started") :]
            died = code == INTERRUPTED or (code == 1 and by_it)
        if code and not died:
            raise LostError(f"ends with {code} after {kill}: {last_lines(place)}")
        if not self.several and "Traceback" in text:
            raise LostError(f"logs an error: {text[text.index('Traceback') :][-2000:]}")
        return code == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def said(place: Path) -> str:
    """What the commands of a case logged; workers of several have logs of their own."""
    return (place / "log.txt").read_text(errors="replace")


def last_lines(place: Path) -> str:
    return "\n".join(said(place).splitlines()[-5:])


def check_whole(folder: Path) -> None:
    """Raises LostError for a file that a killed command left half written, temporary ones aside."""
    for path in folder.rglob("[!.]*"):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "numpy"):
                    pass
            elif path.suffix in (".png", ".gif"):
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix in (".npz", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except Exception as error:
            raise LostError(f"leaves half of {path.relative_to(folder)}: {error!r}") from error


def contents(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file, without figures of time, and without what TensorBoard reads.

    A run that is told to end writes one checkpoint more, so only the newest counts.
    """
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(folder))
        if "/tensorboard/" in name:
            continue
        if path.name.startswith("step-"):
            name = f"{path.parent.relative_to(folder)}/newest"  # in the order of steps
        found[name] = hashlib.sha256(_lasting(path)).hexdigest()
    return found


def _lasting(path: Path) -> bytes:
    """The content of a file, without fields that differ from run to run."""
    if path.name == "report.json":
        return json.dumps(_without_passing(json.loads(path.read_text()))).encode()
    if path.name == "metrics.jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return json.dumps([_without_passing(line) for line in lines]).encode()
    return path.read_bytes()


def _without_passing(fields: dict[str, object]) -> dict[str, object]:
    return {n: v for n, v in fields.items() if not any(word in n for word in PASSING)}


def compare(found: dict[str, str], end: dict[str, str]) -> None:
    """Raises LostError that names the files in which two ends differ."""
    told = {
        "is missing": end.keys() - found.keys(),
        "is left over": found.keys() - end.keys(),
        "differs": {name for name in end.keys() & found.keys() if end[name] != found[name]},
    }
    lines = [f"{name} {how}" for how, names in told.items() for name in sorted(names)]
    if lines:
        raise LostError("the end is another: " + "; ".join(lines))


# ------------------------------------------------------------ the commands and their inputs
def make_inputs(root: Path) -> None:
    """The images and models that the commands read."""
    write_image_tree(root / "images", (4, 4), train=20, val=4)
    small = tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 4))
    Tokenizer(small, seed=0).save(root / "small.safetensors")
    Tokenizer(tiny.tokenizer(), seed=0).save(root / "tokenizer.safetensors")
    Transformer(tiny.transformer(), seed=0).save(root / "transformer.safetensors")
    large = tiny.transformer(depth=4, width=256, heads=4)  # 20 MB: a write takes some time
    Transformer(large, seed=0).save(root / "large.safetensors")


def _train_tokenizer(inputs: Path) -> str:
    return f"""
        -m var_train.run --stage tokenizer --data {inputs}/images --out {OUT}
        {tiny.ADVERSARIAL} --train-tokenizer.epochs 4
        --loop.checkpoint-every 2 --loop.validations 4
    """


def _train_transformer(inputs: Path) -> str:
    return f"""
        -m var_train.run --stage transformer --data {inputs}/images --out {OUT}
        --tokenizer-file {inputs}/small.safetensors
        --transformer.depth 1 --transformer.width 32 --transformer.heads 2
        --train-transformer.batch 8 --train-transformer.epochs 12 --train-transformer.ema 0.9
        --train-transformer.samples-per-class 1 --sampling.per-class 2 --sampling.batch 2
        --loop.checkpoint-every 2 --loop.validations 4
    """


def _train_transformer_sharded(inputs: Path) -> str:
    return f"{_train_transformer(inputs)} --train-transformer.shard-optimizer"


def _tokenize(inputs: Path) -> str:
    return f"""
        -m var_train.tokenize --tokenizer {inputs}/small.safetensors --data {inputs}/images
        --out {OUT} --shard 2 --batch 2 --crops 4
    """


def _sample(inputs: Path) -> str:
    return f"""
        -m var_transformer.sample --tokenizer {inputs}/tokenizer.safetensors
        --model {inputs}/transformer.safetensors --out {OUT} --classes all --per-class 60
        --batch 4 --npz --animate gif
    """


def _convert(target: str) -> Callable[[Path], str]:
    return lambda inputs: f"-m var_convert {inputs}/large.safetensors {OUT}/{target} --force"


WORKS = (
    Work("tokenize", _tokenize),
    Work("tokenize-by-two", _tokenize, several=True),
    Work("sample", _sample),
    Work("convert-to-pth", _convert("model.pth")),
    Work("convert-to-ckpt", _convert("model.ckpt")),
    Work("convert-to-folder", _convert("folder/")),
    Work("train-tokenizer", _train_tokenizer),
    Work("train-tokenizer-by-two", _train_tokenizer, several=True),
    Work("train-transformer", _train_transformer),
    Work("train-transformer-by-two", _train_transformer_sharded, several=True),
)
