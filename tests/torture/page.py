"""The page is killed while a visitor asks it; each picture that arrives is whole and right."""

import hashlib
import http.client
import io
import random
import threading
import time
from pathlib import Path

import numpy as np
from http_page import Client
from PIL import Image
from torture.kills import LONGEST, Command, Kill, LostError, Usual
from torture.works import MOST_KILLS, Survived, Work, free_port, last_lines, said

SEEDS = range(4)
_PAUSE = 0.05  # seconds between two questions that nobody answers
ENDS = {"SIGKILL": (-9,), "SIGTERM": (0, 130, -15)}  # exit codes; 0 where it has begun to serve


class Visitor(threading.Thread):
    """Asks a page for one picture after another. wrong: what it got that it should not."""

    def __init__(self, port: int, expected: dict[str, str], rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.wrong: str | None = None
        self._client, self._expected, self._rng = Client(port), expected, rng
        self._leaves = threading.Event()

    def run(self) -> None:
        while not self._leaves.is_set() and not self.wrong:
            seed = self._rng.choice(SEEDS)
            try:
                found = picture(self._client, seed)
            except Exception as error:
                self.wrong = f"seed {seed} gets half a picture: {error!r}"
                break
            if found is None:
                self._leaves.wait(_PAUSE)
            elif found != self._expected[str(seed)]:
                self.wrong = f"seed {seed} gets another picture"

    def leave(self) -> None:
        self._leaves.set()
        self.join()


def picture(client: Client, seed: int) -> str | None:
    """The SHA-256 of a picture's pixels; None if the page gives an error, or no answer."""
    try:
        event, answer = client.call("generate", seed=seed)
        if event != "complete":
            return None
        status, _, data = client.get(client.path_of(answer[0][0]["image"]))
    except (OSError, http.client.HTTPException, ValueError, IndexError, AssertionError):
        return None
    if status != 200:
        return None
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


class Page(Work):
    """The page. It goes on for ever, so its end is what it answers, and that it leaves nothing."""

    def undisturbed(self, inputs: Path, place: Path) -> tuple[Usual, dict[str, str]]:
        """What its start and an answer to each seed take, and the answers; it leaves nothing."""
        port = free_port()
        with self.command(inputs, place, "--port", str(port)) as command:
            answers = {str(seed): _patiently(Client(port), seed, command) for seed in SEEDS}
            taken = command.taken
            command.process.terminate()
            if code := command.end():
                raise LostError(f"ends with {code} after SIGTERM: {last_lines(place)}")
        if left := [path.name for path in (place / self.temporary).glob("var-serve-*")]:
            raise LostError(f"leaves {left}")
        if "Traceback" in (text := said(place)):
            raise LostError(f"logs an error: {text[text.index('Traceback') :][-2000:]}")
        return taken, answers

    def survive(
        self, seed: int, inputs: Path, place: Path, usual: Usual, end: dict[str, str]
    ) -> Survived:
        """Kills it again and again; then it must answer as usual, and leave nothing."""
        rng = random.Random(f"{self.name} {seed}")
        case = Survived(self.name, seed)
        try:
            for _ in range(rng.randint(1, MOST_KILLS)):
                kill, port = Kill.draw(rng), free_port()
                visitor = Visitor(port, end, rng)
                with self.command(inputs, place, "--port", str(port)) as command:
                    visitor.start()
                    try:
                        command.wait_for(kill, usual)
                        command.kill(kill)
                        code = command.end(kill)
                    finally:
                        visitor.leave()
                if code not in ENDS[kill.number.name]:
                    raise LostError(f"ends with {code} after {kill}: {last_lines(place)}")
                if visitor.wrong:
                    raise LostError(f"{visitor.wrong} around {kill}")
                case.kills[kill.number.name, kill.moment] += 1
            _, answers = self.undisturbed(inputs, place)
            if answers != end:
                raise LostError("answers otherwise after it was killed")
        except LostError as lost:
            case.failure = str(lost)
        return case


def _patiently(client: Client, seed: int, command: Command) -> str:
    """The picture of a page that may have to start first."""
    deadline = time.monotonic() + LONGEST
    while (found := picture(client, seed)) is None:
        if time.monotonic() > deadline or command.process.poll() is not None:
            raise LostError(f"gives no answer to seed {seed}")
        time.sleep(_PAUSE)
    return found


def _serve(inputs: Path) -> str:
    pair = f"--tokenizer {inputs}/tokenizer.safetensors --model {inputs}/transformer.safetensors"
    return f"-m var_transformer.serve {pair}"


PAGE = Page("page", _serve, temporary="work")  # so that its pictures count as changes
