"""`python -m var_transformer.serve` as its user meets it."""

import os
import signal
import subprocess
import urllib.request

import pytest
from command_line import start, words
from var_tokenizer.common import InputError
from var_transformer.serve import ServeConfig, run

if not os.environ.get("REQUIRE_CHROMIUM"):
    pytest.importorskip("gradio", reason="needs the extra [web]")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings


@pytest.fixture
def files(pair):
    return {"tokenizer": pair / "t.safetensors", "model": pair / "m.safetensors"}


def test_serve_listens_on_127_0_0_1_by_default(files, monkeypatch):
    served = []
    run_server = "var_transformer.web.server.Server.run"
    monkeypatch.setattr(run_server, lambda server: served.append(server))
    run(ServeConfig(**files, port=7911))
    assert served[0].url == "http://127.0.0.1:7911/"
    with pytest.raises(InputError, match=r"port is 7911: .*in use"):
        run(ServeConfig(**files, port=7911))


def test_serve_compiles_for_the_first_visitor_and_for_the_next_process(pair, tmp_path):
    compiled = []
    for _ in range(2):
        command = words(pair, None, port=7912)
        with start("serve", *command, stderr=subprocess.PIPE, cache=tmp_path) as server:
            for line in server.stderr:
                if "the graphs are compiled" in line:
                    break
            urllib.request.urlopen("http://127.0.0.1:7912").close()
            compiled.append(
                {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/[!.]*/**/*.mindir")}
            )
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
    assert compiled[0] and compiled[0] == compiled[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "port is 0; expected an integer from 1 to 65535"),
        ({"max_images": 0}, "max_images is 0; expected an integer from 1 to 64"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0; expected a number above 0"),
        ({"allowed_host": ("http://lab",)}, "allowed_host is 'http://lab'; expected a name such"),
        ({"auth": "ann"}, "auth is 'ann'; expected USER:FILE"),
        ({"auth": "ann:absent"}, "absent: not a readable text file"),
        ({"auth": "ann:/etc/passwd"}, "/etc/passwd: others can read this password"),
        ({"auth": "ann:/dev/null"}, "/dev/null: others can read this password"),
        ({"class_names": "absent.txt"}, "absent.txt: not a readable text file"),
    ],
)
def test_an_unusable_setting_is_an_error_before_anything_is_served(files, changes, message):
    with pytest.raises(InputError, match=message):
        run(ServeConfig(**files | changes))
