"""Files over HTTP: a visitor gets none that is not the page's own."""

import base64
import io
import itertools
import json
import os
import re
import socket
import stat
import threading
import urllib.parse
from contextlib import contextmanager

import numpy as np
import pytest
from http_page import API, PATIENCE, png
from PIL import Image

pytestmark = pytest.mark.slow


SECRET = (171, 205, 239)  # the colour of the private picture


@contextmanager
def listener():
    """A port on loopback, and what was received on it."""
    received, server = [], socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            received.append(connection.recv(100))
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1], received
    server.close()


@pytest.fixture
def private(tmp_path):
    """A picture that nobody but the server's user may read, and a pipe that nobody writes."""
    folder = tmp_path / "private"
    folder.mkdir(0o700)
    (folder / "scan.png").write_bytes(png((6, 6), SECRET))
    (folder / "scan.png").chmod(0o600)
    os.mkfifo(folder / "pipe")
    return folder


def shapes(page, private, port):
    """A picture that is not the client's, in every shape that a picture can have."""
    scan = private / "scan.png"
    link = page.own_folder / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(scan)
    below = page.own_folder / "below"
    below.unlink(missing_ok=True)
    below.symlink_to(private)
    up = "/".join([".."] * len(page.own_folder.parts))
    pixels = base64.b64encode(scan.read_bytes()).decode()
    names = [
        *(str(scan), f"{page.own_folder}/{up}{scan}", f"file://{scan}", os.path.relpath(scan)),
        *(str(link), str(below / "scan.png"), str(private / "pipe"), "/dev/ptmx", "/dev/stdin"),
        *(str(private), str(page.own_folder), "", "\0", f"{scan}\0.png", "~/scan.png"),
        *(f"http://127.0.0.1:{port}/scan.png", f"http://localhost:{port}/{scan}"),
        *(f"{API}/file={scan}", f"http://127.0.0.1:{page.port}{API}/file={scan}"),
    ]
    meta = {"meta": {"_type": "gradio.FileData"}}
    for name in names:
        file = {"path": name}
        yield from (name, file, file | meta, {"url": name} | meta, file | {"url": name})
    file = {"path": str(scan)}
    for each in (file, file | meta):
        yield from ([each], [{"image": each}], [{"image": each, "caption": None}], [[each, None]])
        for part in ("background", "composite"):
            yield {"background": None, "layers": [], "composite": None} | {part: each}
        yield {"background": each, "layers": [each], "composite": each}
        yield {"background": {"path": each}, "layers": [[each]]}
        yield {"value": each, "__type__": "update"}
    yield f"data:image/png;base64,{pixels}/{scan}"
    yield {"path": f"data:image/png;base64,{pixels}"} | meta
    yield json.loads('{"a":' * 60 + "1" + "}" * 60)


def test_no_endpoint_gives_a_file_that_a_client_names(page, private):
    config = json.loads(page.get("/config")[2])
    components = {each["id"]: each for each in config["components"]}
    answers = []

    def collect(path, body):
        status, _, answer = page.post(path, body)
        if status == 200 and b"event_id" in answer:
            job = json.loads(answer)["event_id"]
            where = f"queue/data?session_hash={body['session_hash']}" if "queue" in path else None
            where = where or f"call/{path.rsplit('/', 1)[1]}/{job}"
            answer += page.get(f"{API}/{where}", timeout=PATIENCE)[2]
        answers.append(answer.decode())

    with listener() as (port, received):
        for function in config["dependencies"]:
            inputs = function["inputs"]
            usual = [components[each]["props"].get("value") for each in inputs]
            for place, shape in itertools.product(range(len(inputs)), shapes(page, private, port)):
                data = [*usual[:place], shape, *usual[place + 1 :]]
                body = {"data": data, "fn_index": function["id"], "session_hash": "attacker"}
                collect(f"{API}/run/predict", body)
                collect(f"{API}/queue/join", body | {"trigger_id": inputs[place]})
                if name := function["api_name"]:
                    by_name = {"data": data, "session_hash": "attacker"}
                    collect(f"{API}/run/{name}", by_name)
                    collect(f"{API}/call/{name}", {"data": data})
        for shape in shapes(page, private, port):
            answers += [page.call("redraw", picture=shape, label=shape)[1]]
            answers += [page.call("redraw", picture={"background": shape, "layers": [shape]})[1]]
        assert received == []
    assert len(answers) > 2000
    served = set(re.findall(rf"{API}/file=[^\"\\]+", json.dumps(answers)))
    for path in served:
        status, _, data = page.get(urllib.parse.quote(path))
        if status == 200 and data.startswith(b"\x89PNG"):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert not (pixels == SECRET).all(-1).any()
    assert "Traceback" not in json.dumps(answers)
    assert page.call("generate", seed=1)[0] == "complete"  # nothing hangs


@pytest.mark.parametrize(
    "route", [f"{API}/file=", "/static/", "/assets/", f"{API}/file/", "/svelte/"]
)
def test_no_route_serves_a_file_outside_the_pages_folder(page, private, route):
    scan = private / "scan.png"
    link = page.own_folder / "another.png"
    link.symlink_to(scan)
    up = "../" * 20
    names = [scan, link, f"{up}{scan}", f"{page.own_folder}/{up}{scan}", f"//{scan}"]
    names += [
        f"file://{scan}",
        "/etc/passwd",
        "/dev/stdin",
        private / "pipe",
        page.own_folder,
        "/proc/self/environ",
    ]
    for name, quote in itertools.product(map(str, names), (str, urllib.parse.quote, quote_all)):
        status, _, body = page.get(route + quote(name), timeout=5)
        assert status in (403, 404, 400), (route, name)
        assert scan.read_bytes() not in body and b"root:" not in body
    link.unlink()


def quote_all(name):
    return "".join(f"%{byte:02x}" for byte in name.encode())


def test_the_server_asks_no_other_host(page):
    with listener() as (port, received):
        for url in (f"http://127.0.0.1:{port}/x.png", f"http://localhost.localdomain:{port}/x.png"):
            for path in (f"{API}/file={url}", f"{API}/proxy={url}", f"/proxy={url}"):
                assert page.get(path)[0] in (403, 404)
            status, _ = page.call("redraw", picture={"background": {"path": url, "url": url}})
            assert status == 403
        assert received == []


def test_pipes_in_place_of_pictures_do_not_hang_the_server(page, private):
    for _ in range(45):
        path = {"path": str(private / "pipe")}
        status, _, _ = page.post(
            f"{API}/run/predict", {"data": [[{"image": path}], 0], "fn_index": 10}
        )
        assert status in (400, 403, 404)
        assert page.call("redraw", picture={"background": path})[0] == 403
    assert page.call("generate", seed=2)[0] == "complete"


def test_routes_that_the_page_does_not_use_do_not_exist(page):
    for path in (
        *("/docs", "/openapi.json", "/redoc", "/monitoring", "/monitoring/summary", "/pwa_icon"),
        *(f"{API}/runs", f"{API}/vibe-code", f"{API}/dev/reload", f"{API}/token", "/logout"),
        *(f"{API}/deep_link?session_hash=x", f"{API}/custom_component/x/client/y/z", "/svelte/x"),
    ):
        assert page.get(path)[0] == 404, path
    for path in ("component_server", "process_recording", "vibe-edit", "reset", "stream/x/close"):
        assert page.post(f"{API}/{path}", {"data": []})[0] == 404, path
    assert page.post("/login", {})[0] == 404


def test_the_pages_folder_is_private_and_its_own(page):
    assert stat.S_IMODE(page.own_folder.stat().st_mode) == 0o700
    assert page.own_folder.stat().st_uid == os.getuid()
    page.call("generate", seed=3)
    assert list(page.own_folder.rglob("*.png"))
    others = [path.name for path in (page.folder / "temporary").iterdir()]
    assert sorted(others) == sorted(["gradio", page.own_folder.name])
