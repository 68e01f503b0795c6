"""The API over HTTP: its functions, and how wrong calls are answered."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from http_page import API, PATIENCE
from PIL import Image

pytestmark = pytest.mark.slow


def test_the_api_has_two_functions_whose_parameters_have_names(page):
    info = json.loads(page.get(f"{API}/info")[2])
    settings = ["label", "images", "seed", "cfg", "top_k", "top_p", "temperature", "more_smooth"]
    named = {
        name: [each["parameter_name"] for each in endpoint["parameters"]]
        for name, endpoint in info["named_endpoints"].items()
    }
    assert named == {"/generate": settings, "/redraw": ["picture", *settings]}
    assert info["unnamed_endpoints"] == {}
    assert json.loads(page.get(f"{API}/openapi.json")[2])["info"]["title"] == "VAR"
    html = page.get("/")[2].decode()
    assert "<title>VAR</title>" in html and "og:image" not in html


def test_the_examples_of_the_guide_run(page, tmp_path):
    guide = (Path(__file__).parents[4] / "docs" / "serving.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (shell,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    Image.new("RGB", (60, 40), (0, 90, 0)).save(tmp_path / "cat.png")
    Image.new("RGBA", (60, 40), (255, 0, 0, 255)).save(tmp_path / "mask.png")
    url = f"http://127.0.0.1:{page.port}"
    for command in ([sys.executable, "-c", python], ["bash", "-euc", shell]):
        command[-1] = command[-1].replace("http://127.0.0.1:7860", url)
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Class 3, seed 0" in done.stdout


def test_class_names_do_not_enter_file_names(page):
    for label, number in (("../../../eel", 2), ("<b>fox</b>", 3)):
        event, answer = page.call("generate", label=label)
        assert event == "complete"
        assert answer[2]["path"].endswith(f"/000000_{number}.png")
        assert answer[1].startswith(f"Class {number}, seed 0")


def test_a_class_name_that_is_not_unicode_is_shown_escaped(start, make_model, tmp_path):
    model = make_model()
    model.class_names = ("caf\udce9", "b", "c", "d", "e")
    model.save(tmp_path / "m.safetensors")
    page = start("--model", str(tmp_path / "m.safetensors"), "--class-names", "None")
    status, _, config = page.get("/config")
    assert status == 200 and rb"caf\\udce9" in config and page.get("/")[0] == 200
    assert page.call("generate", label=r"caf\udce9")[0] == "complete"


def test_the_place_of_a_model_that_was_written_to_is_for_the_log_alone(start, pair, tmp_path):
    model = Path(shutil.copy(pair / "m.safetensors", tmp_path))
    page = start("--model", str(model), "--low-memory")
    assert page.call("generate", label="0")[0] == "complete"
    os.utime(model, (0, 0))
    event, answer = page.call("generate", label="0")
    assert event == "error" and "Something failed on the server" in str(answer)
    assert model.name not in str(answer) and f"{model}: was written to" in page.log


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label": "<img src=x>"}, "class is '&lt;img src=x&gt;'; expected"),
        ({"label": "cow\x1b[31m"}, "class is 'cow\\x1b[31m'; expected"),
        ({"label": ["0"]}, "class is ['0']; expected 0 to 4, a name or 'none'"),
        ({"label": None}, "class is None; expected"),
        ({"label": True}, "class is True; expected"),
        ({"images": 1.7}, "images is 1.7; expected an integer from 1 to 8"),
        ({"images": 9}, "images is 9; expected an integer from 1 to 8"),
        ({"images": "2"}, "images is '2'; expected an integer from 1 to 8"),
        ({"images": 10**18}, "images is 1000000000000000000; expected an integer from 1 to 8"),
        ({"seed": None}, "seed is empty; expected a number"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"seed": {"a": 1}}, "seed is {'a': 1}; expected an integer of at least 0"),
        ({"seed": 1e300}, None),
        ({"cfg": "x" * 500}, "…; expected a number of at least 0"),
        ({"cfg": -1}, "cfg is -1; expected a number of at least 0"),
        ({"top_k": 0.5}, "top_k is 0.5; expected an integer of at least 0"),
        ({"top_k": 99}, "top_k is 99; expected 0 to 32, the vocabulary"),
        ({"top_p": 2}, "top_p is 2; expected a number from 0 to 1"),
        ({"top_p": False}, "top_p is False; expected a number from 0 to 1"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"more_smooth": 1}, "more_smooth is 1; expected True or False"),
    ],
)
def test_a_wrong_value_is_answered_with_a_sentence(page, parameters, message):
    event, answer = page.call("generate", **parameters)
    if message is None:
        assert event == "complete"
    else:
        assert event == "error" and message in answer["error"]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "the canvas is empty"),
        ({}, "the canvas is empty"),
        ("x", "the canvas is not an object"),
        ([1], "the canvas is not an object"),
        ({"background": "x"}, "not a file that was uploaded"),
        ({"background": 1, "layers": {"a": 1}}, "layers must be a list"),
    ],
)
def test_a_wrong_picture_is_answered_with_a_sentence(page, picture, message):
    event, answer = page.call("redraw", picture=picture)
    assert event == "error" and message in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"data": NaN}', b"[" * 50_000, b'{"data": {}}'),
        *({"data": []}, {"data": [1] * 50}, {"data": None, "fn_index": 0}, {"fn_index": True}),
        *({"data": [], "fn_index": number} for number in (10**30, "0", -1)),
        *({"data": [], "session_hash": "../x"}, {"data": [], "session_hash": ["a"]}),
        {"data": ["0", 1, 0, 1.5, 0, 0, 1, False], "session_hash": "x" * 65},
        b'{"data": [' + b'"' + b"x" * 100_000 + b'"]}',
        {"data": ["0", 10**400, 0, 1.5, 0, 0, 1, False], "session_hash": "a", "fn_index": 1},
        {"data": ["\ud800", 1, 0, 1.5, 0, 0, 1, False], "session_hash": "a", "fn_index": 1},
    ],
)
def test_a_malformed_call_is_refused_with_a_sentence(page, body):
    for path in ("run/predict", "call/generate", "queue/join", "call/nothing", "cancel"):
        status, _, answer = page.post(f"{API}/{path}", body)
        assert status in (400, 404, 413), (path, status, answer)
        assert json.loads(answer)["detail"].endswith(".")


def test_odd_queries_and_ranges_are_answered(page):
    for path in (
        "/?page=x",
        "/?deep_link=x",
        "/config?page=x&deep_link=../..",
        f"{API}/info?page=x",
    ):
        assert page.get(path)[0] == 200
    _, answer = page.call("generate", seed=9)
    file = page.path_of(answer[0][0]["image"])
    for span in ("bytes=1-2-3", "bytes=-", "bytes=9-1", "bytes=99999999999-", "x"):
        assert page.get(file, Range=span)[0] == 200
