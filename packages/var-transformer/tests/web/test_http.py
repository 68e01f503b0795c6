"""The web page attacked over HTTP, as a visitor could who knows its API; needs no browser."""

import base64
import http.client
import io
import itertools
import json
import os
import re
import secrets
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("REQUIRE_CHROMIUM"):
    pytest.importorskip("gradio", reason="needs the extra [web]")

pytestmark = pytest.mark.slow

PATIENCE = 90  # seconds, on a busy machine
NAMES = ["cat", "dog, hound", "../../../eel", "<b>fox</b>", "a very long name " * 8]
SECRET = (171, 205, 239)  # the colour of the private picture
API = "/gradio_api"


class Page:
    """A page that was started as a user starts it."""

    def __init__(self, folder, port, *arguments, secret=None):
        self.port, self.folder = port, folder
        self.secret = secret
        self._log = folder / "log"
        temporary = folder / "temporary"
        temporary.mkdir()
        (temporary / "gradio").touch()  # where Gradio's own folder would be: somebody else's
        command = [sys.executable, "-m", "var_transformer.serve", "--port", str(port), *arguments]
        environment = os.environ | {
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(folder.parent / "cache"),
            "GLOG_v": "3",
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.wait_for_log("the graphs are compiled")

    @property
    def log(self):
        return self._log.read_text()

    def wait_for_log(self, text):
        end = time.monotonic() + PATIENCE
        while text not in self.log:
            assert time.monotonic() < end and self.process.poll() is None, self.log
            time.sleep(0.05)

    @property
    def own_folder(self):
        return next((self.folder / "temporary").glob("var-serve-*"))

    def memory(self, field):
        """A figure of the process, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024

    def processor_seconds(self):
        """Seconds of the processor that it took so far, whatever else the machine does."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    # ------------------------------------------------------------ requests
    def ask(self, method, path, body=None, timeout=20, address="127.0.0.1", **headers):
        """(status, headers, body) of a request."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout, source_address=(address, 0)
        )
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.secret is not None:
            headers.setdefault("Authorization", self.secret)
        if isinstance(body, dict | list):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, response.headers, response.read()
        connection.close()
        return answer

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def upload(self, data, name="picture.png", **more):
        """(status, path or text) of a file that is uploaded."""
        boundary = secrets.token_hex(8)
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        body = (
            f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + f"\r\n--{boundary}--\r\n".encode()
        )
        form = f"multipart/form-data; boundary={boundary}"
        status, _, answer = self.post(f"{API}/upload", body, Content_Type=form, **more)
        return status, json.loads(answer)[0] if status == 200 else answer.decode()

    def file(self, data, name="picture.png", **more):
        """A file that is uploaded, as Gradio's clients name it."""
        status, path = self.upload(data, name, **more)
        assert status == 200, path
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def call(self, name, **parameters):
        """The last event of a call, and its data; or the status of its refusal and the answer."""
        status, _, answer = self.post(f"{API}/call/v2/{name}", parameters)
        return self.result(status, answer, f"call/{name}/")

    def result(self, status, answer, where):
        if status != 200:
            return status, answer.decode()
        job = json.loads(answer)["event_id"]
        status, _, answer = self.get(f"{API}/{where}{job}", timeout=PATIENCE)
        assert status == 200
        events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.decode())
        return events[-1][0], json.loads(events[-1][1])

    def pixels(self, file):
        """The picture that an answer names."""
        status, _, data = self.get("/" + file["url"].split("/", 3)[3])
        assert status == 200
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png(size=(6, 6), colour=(10, 200, 30)):
    data = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side):
    """A PNG of side x side pixels that are all black: 1 bit each, and nearly no bytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def files(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model.save(folder / "m.safetensors")
    tokenizer.save(folder / "t.safetensors")
    (folder / "names.txt").write_text("\n".join(NAMES))
    return [
        *("--tokenizer", str(folder / "t.safetensors")),
        *("--model", str(folder / "m.safetensors")),
        *("--class-names", str(folder / "names.txt")),
    ]


@pytest.fixture(scope="module")
def start(files, tmp_path_factory):
    folder, pages = tmp_path_factory.mktemp("pages"), []

    def started(*arguments, **more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / str(port)).mkdir()
        pages.append(Page(folder / str(port), port, *files, *arguments, **more))
        return pages[-1]

    yield started
    for page in pages:
        page.process.kill()
        page.process.wait()


@pytest.fixture(scope="module")
def page(start):
    return start()


@pytest.fixture(autouse=True)
def no_traceback(request):
    """None of what a visitor can send is an error that the server did not expect."""
    page = request.getfixturevalue("page") if "page" in request.fixturenames else None
    before = 0 if page is None else len(page.log)
    yield
    assert page is None or "Traceback" not in page.log[before:]


# ---------------------------------------------------------------- files of the server's user
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
def test_no_route_serves_a_file_outside_of_the_pages_folder(page, private, route):
    scan = private / "scan.png"
    link = page.own_folder / "another.png"
    link.symlink_to(scan)
    up = "../" * 20
    names = [
        scan,
        f"{up}{scan}",
        f"{page.own_folder}/{up}{scan}",
        link,
        f"//{scan}",
        f"file://{scan}",
    ]
    names += ["/etc/passwd", "/dev/stdin", private / "pipe", page.own_folder, "/proc/self/environ"]
    for name, quote in itertools.product(map(str, names), (str, urllib.parse.quote, quote_all)):
        status, _, body = page.get(route + quote(name), timeout=5)
        assert status in (403, 404, 400), (route, name)
        assert scan.read_bytes() not in body and b"root:" not in body
    link.unlink()


def quote_all(name):
    return "".join(f"%{byte:02x}" for byte in name.encode())


def test_nothing_is_asked_of_another_host(page):
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


def test_what_is_no_route_of_the_page_does_not_exist(page):
    for path in (
        *("/docs", "/openapi.json", "/redoc", "/monitoring", "/monitoring/summary", "/pwa_icon"),
        *(f"{API}/runs", f"{API}/vibe-code", f"{API}/dev/reload", f"{API}/token", "/logout"),
        *(f"{API}/deep_link?session_hash=x", f"{API}/custom_component/x/client/y/z", "/svelte/x"),
    ):
        assert page.get(path)[0] == 404, path
    for path in ("component_server", "process_recording", "vibe-edit", "reset", "stream/x/close"):
        assert page.post(f"{API}/{path}", {"data": []})[0] == 404, path
    assert page.post("/login", {})[0] == 404


# ---------------------------------------------------------------- bombs
def test_picture_bombs_are_refused_before_they_are_decoded(page):
    small = page.file(png())
    mark = page.file(png((6, 6), (255, 0, 0, 255)))
    assert page.call("redraw", picture={"background": small, "layers": [mark]})[0] == "complete"
    idle = page.memory("VmRSS")
    Path(f"/proc/{page.process.pid}/clear_refs").write_text("5")  # forgets the peak

    bomb = page.file(png_bomb(13_300), "bomb.png")
    largest = page.file(png_bomb(2896), "largest.png")
    jpeg = io.BytesIO()
    Image.new("L", (8, 8)).save(jpeg, "JPEG")
    sized = re.sub(
        rb"(\xff\xc0...)....",
        lambda m: m[1] + b"\xff\xff\xff\xff",
        jpeg.getvalue(),
        flags=re.DOTALL,
    )
    large_jpeg = page.file(sized, "large.jpg")
    many = {"background": largest, "layers": [largest] * 4}
    attacks = [
        ({"background": bomb}, "expected at most 8388608"),
        ({"background": bomb, "layers": [bomb] * 4, "composite": bomb}, "expected at most 8388608"),
        ({"background": large_jpeg}, "expected at most 8388608"),
        ({"background": small, "layers": [bomb]}, "expected at most 8388608"),
        ({"background": small, "layers": [mark] * 200}, "at most 4 pictures"),
        ({"background": small, "layers": [largest]}, "expected (6, 6), the picture's"),
        (many, None),  # as much as is allowed
    ]

    def attack(picture, message):
        event, answer = page.call("redraw", picture=picture)
        if message is None:
            assert event == "complete", answer
        else:
            assert event == "error" and message in answer["error"], answer

    for one in attacks:
        threads = [threading.Thread(target=attack, args=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert page.memory("VmHWM") - idle < 300


def tiff_of_claims(size, count):
    """A TIFF file of 6 x 6 pixels, with ``count`` entries that each claim ``size`` bytes of it."""
    file = io.BytesIO()
    Image.new("RGB", (6, 6)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    (begin,) = struct.unpack_from("<I", data, 4)
    (known,) = struct.unpack_from("<H", data, begin)
    entries = data[begin + 2 : begin + 2 + 12 * known]
    data[4:8] = struct.pack("<I", len(data))
    data += struct.pack("<H", known + count) + entries
    data += b"".join(struct.pack("<HHII", 40_000 + n, 7, size, 8) for n in range(count))
    return bytes(data.ljust(size + 8, b"\0"))


def test_what_a_file_says_beside_its_pixels_costs_neither_memory_nor_time(page):
    plain = png((6, 6), (255, 0, 0, 0))
    mark = page.file(plain)
    assert page.call("redraw", picture={"background": mark})[0] == "complete"
    idle = page.memory("VmRSS")
    Path(f"/proc/{page.process.pid}/clear_refs").write_text("5")  # forgets the peak

    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**23), 9))
    talkative = page.file(plain[:33] + text + plain[33:])
    file = io.BytesIO()
    Image.new("L", (6, 6)).save(file, "GIF")
    start = 13 + 3 * 256
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 2**15 + b"\0"
    comments = page.file(file.getvalue()[:start] + comment + file.getvalue()[start:])
    greedy = page.file(tiff_of_claims(2**23, 60))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    Image.new("RGBA", (6, 3), (255, 0, 0, 0)).save(turned, "PNG", exif=exif)
    turned = page.file(turned.getvalue())
    begun = page.processor_seconds()
    for background, layers in (
        (talkative, [talkative]),
        (comments, [comments]),
        (greedy, [greedy]),
        (turned, [turned]),
    ):
        picture = {"background": background, "layers": layers}
        event, answer = page.call("redraw", picture=picture)
        assert event == "complete", answer
    assert page.processor_seconds() - begun < 45  # two minutes where the comment is joined
    assert page.memory("VmHWM") - idle < 300


def test_an_upload_is_bounded_for_each_address_and_its_leavings_are_deleted(page):
    address, size = "127.0.0.7", 19 * 2**20
    assert page.upload(bytes(size + 2**21), address=address)[0] == 413
    taken = 0
    for _ in range(16):
        status, answer = page.upload(secrets.token_bytes(size), address=address)
        if status != 200:
            break
        taken += 1
    assert status == 429 and "Too much was uploaded" in answer and taken == 13
    assert page.upload(png((7, 7)))[0] == 200  # others may
    headers = {"Content_Type": "multipart/form-data; boundary=x", "Transfer_Encoding": "chunked"}
    assert page.post(f"{API}/upload", b"3\r\n--x\r\n0\r\n\r\n", **headers)[0] == 411
    for path in page.own_folder.glob("*/picture.png"):
        if path.stat().st_size > 2**20:
            path.unlink()  # as Gradio does after an hour
    assert page.upload(secrets.token_bytes(size), address=address)[0] == 200


def test_uploads_that_break_off_or_are_not_taken_leave_nothing(page):
    def held():
        return sum(path.stat().st_size for path in page.own_folder.rglob("*") if path.is_file())

    before = held()
    head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n'
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", page.port)) as broken:
            request = f"POST {API}/upload HTTP/1.1\r\nHost: localhost\r\n"
            request += f"Content-Length: 9000000\r\nContent-Type: {form['Content_Type']}\r\n\r\n"
            broken.sendall(request.encode() + head % b"files" + bytes(2**22))
            time.sleep(0.2)  # a part is read before the rest is found missing
    page.post(f"{API}/upload", head % b"files" + bytes(2**22), **form)  # has no end
    page.post(f"{API}/upload", head % b"other" + bytes(2**22) + b"\r\n--x--\r\n", **form)
    assert page.upload(png((9, 9)))[0] == 200
    assert held() - before < 2**20


# ---------------------------------------------------------------- other users of the machine
def test_the_pages_folder_is_private_and_is_its_own(page):
    assert stat.S_IMODE(page.own_folder.stat().st_mode) == 0o700
    assert page.own_folder.stat().st_uid == os.getuid()
    page.call("generate", seed=3)
    assert list(page.own_folder.rglob("*.png"))
    others = [path.name for path in (page.folder / "temporary").iterdir()]
    assert sorted(others) == sorted(["gradio", page.own_folder.name])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_is_ended_with_jobs_leaves_nothing_and_says_nothing_false(start, number):
    page = start("--max-images", "64")
    page.file(png())
    sessions = ["one", "two", "three"]
    for session in sessions:
        body = {"data": ["0", 64, 0, 1.5, 0, 0, 1, False], "session_hash": session}
        assert page.post(f"{API}/call/generate", body)[0] == 200
    listening = [
        threading.Thread(target=page.get, args=[f"{API}/{where}{session}"], daemon=True)
        for session in sessions
        for where in ("queue/data?session_hash=", "heartbeat/")
    ]
    for thread in listening:
        thread.start()
    time.sleep(1)
    assert page.end(number) == 0
    for thread in listening:
        thread.join(PATIENCE)
    assert [path.name for path in (page.folder / "temporary").iterdir()] == ["gradio"]
    for text in ("Traceback", "cannot schedule", "Error", "left", "ERROR"):
        assert text not in page.log


# ---------------------------------------------------------------- turns
def test_a_visitor_has_a_bound_and_the_others_their_turn(page):
    body = {"data": ["0", 8, 0, 1.5, 0, 0, 1, False], "fn_index": function(page, "generate")}
    answers = [page.post(f"{API}/queue/join", body | {"session_hash": "greedy"}) for _ in range(45)]
    taken = [status for status, _, _ in answers if status == 200]
    refused = [json.loads(answer)["detail"] for status, _, answer in answers if status == 429]
    assert len(taken) + len(refused) == 45 and 1 <= len(taken) <= 8
    assert "Wait until one has ended" in refused[-1]
    assert page.call("generate", seed=4)[0] == "complete"
    page.wait_for_log("nobody waits for it")


def test_visitors_of_one_address_leave_room_for_others(page):
    body = {"data": ["0", 1, 0, 1.5, 0, 0, 1, False]}
    statuses = []
    for n in range(45):
        path, visitor = f"{API}/call/generate", {"session_hash": f"many{n}"}
        statuses.append(page.post(path, body | visitor, address="127.0.0.8")[0])
    assert statuses.count(429) > 0
    assert page.call("generate", seed=5)[0] == "complete"


def function(page, name):
    """The number of a function of the page."""
    dependencies = json.loads(page.get("/config")[2])["dependencies"]
    return next(each["id"] for each in dependencies if each["api_name"] == name)


def test_twenty_visitors_are_served_in_order_with_flat_memory(page):
    def crowd():
        order = []

        def visit(seed):
            event, answer = page.call("generate", seed=seed)
            order.append((event, answer[1].partition(",")[2]))

        threads = [threading.Thread(target=visit, args=[seed]) for seed in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {event for event, _ in order} == {"complete"}
        return sorted(order)

    first = crowd()
    before = page.memory("VmRSS")
    for _ in range(2):
        assert [event for event, _ in crowd()] == [event for event, _ in first]
    assert page.memory("VmRSS") - before < 60


def test_a_session_has_its_own_pictures(page):
    names = {
        each["id"]: each["api_name"] for each in json.loads(page.get("/config")[2])["dependencies"]
    }
    (to_canvas,) = [n for n, name in names.items() if name == "to_canvas"]
    body = {"data": ["0", 1, 8, 1.5, 0, 0, 1, False], "session_hash": "mine"}
    event, answer = page.result(*(page.post(f"{API}/call/generate", body)[::2]), "call/generate/")
    assert event == "complete"
    ask = {"data": [], "fn_index": to_canvas}
    status, _, mine = page.post(f"{API}/run/predict", ask | {"session_hash": "mine"})
    assert status == 200
    shown = page.pixels(json.loads(mine)["data"][0]["background"])
    drawn = page.pixels(answer[0][0]["image"])
    np.testing.assert_array_equal(shown[:: shown.shape[0] // 6, :: shown.shape[1] // 6], drawn)
    for session in ({"session_hash": "other"}, {}):
        status, _, answer = page.post(f"{API}/run/predict", ask | session)
        assert status == 500 and b"there is no picture yet" in answer


# ---------------------------------------------------------------- other sites
FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "127.0.0.1.evil.example:7860"},
    {"Host": ""},
    {"Host": "evil.example@localhost"},
    {"Host": "localhost/evil.example"},
    {"Host": "localhost?evil.example"},
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "https://localhost.evil.example"},
    {"X_Forwarded_Host": "evil.example"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_other_sites_are_refused_everywhere(page, headers):
    for path in ("/", "/config", f"{API}/info", f"{API}/queue/data?session_hash=a", "/theme.css"):
        assert page.get(path, **headers)[0] == 403
    assert page.get(f"{API}/heartbeat/abc", timeout=5, **headers)[0] == 403
    assert page.upload(png(), **headers)[0] == 403
    for path in (
        f"{API}/call/generate",
        f"{API}/run/predict",
        f"{API}/queue/join",
        f"{API}/cancel",
    ):
        assert page.post(path, {"data": []}, **headers)[0] == 403
    status, answered, _ = page.ask(
        "OPTIONS", "/config", Access_Control_Request_Method="POST", **headers
    )
    assert status == 403 and "Access-Control-Allow-Origin" not in answered


def test_the_pages_own_origin_and_loopback_names_are_answered(page):
    for host in (f"127.0.0.1:{page.port}", "localhost", f"LOCALHOST:{page.port}", "[::1]:80"):
        assert page.get("/config", Host=host)[0] == 200
        assert page.get("/config", Host=host, Origin=f"http://{host}")[0] == 200


def test_every_answer_has_the_headers_that_browsers_need(page):
    _, answer = page.call("generate", seed=6)
    file = "/" + answer[0][0]["image"]["url"].split("/", 3)[3]
    for path in ("/", "/config", "/theme.css", file, "/nothing", f"{API}/info"):
        _, headers, _ = page.get(path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Server" not in headers
    policy = page.get("/")[1]["Content-Security-Policy"]
    scripts = re.search(r"script-src ([^;]+)", policy)[1]
    assert "unsafe-inline" not in scripts and "sha256-" in scripts and "http" not in policy


def test_a_websocket_is_refused(page):
    status, _, _ = page.get(
        "/queue/join",
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key=base64.b64encode(bytes(16)).decode(),
    )
    assert status in (403, 404)


@pytest.fixture(scope="module")
def open_page(start, tmp_path_factory):
    """A page that is opened to a network, for those who know a password."""
    file = tmp_path_factory.mktemp("auth") / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    secret = "Basic " + base64.b64encode(b"ann:correct horse").decode()
    arguments = ["--host", "0.0.0.0", "--allowed-host", "lab.example", "--auth", f"ann:{file}"]
    return start(*arguments, secret=secret)


def test_who_does_not_know_the_password_gets_nothing(open_page):
    for wrong in ("", "Basic x", "Basic " + base64.b64encode(b"ann:wrong").decode(), "Bearer x"):
        for path in ("/", "/config", f"{API}/startup-events", f"{API}/heartbeat/x", "/theme.css"):
            status, headers, _ = open_page.get(path, Authorization=wrong)
            assert status == 401 and headers["WWW-Authenticate"].startswith("Basic")
            if wrong:
                break  # each guess takes a second
    assert open_page.post(f"{API}/cancel", {}, Authorization="")[0] == 401
    assert open_page.upload(png(), Authorization="")[0] == 401
    assert open_page.get("/config")[0] == 200
    assert open_page.call("generate", seed=1)[0] == "complete"


def test_a_page_on_a_network_answers_to_its_names_only(open_page):
    assert open_page.get("/config", Host="lab.example:8000")[0] == 200
    assert open_page.get("/config", Host="lab.example", X_Forwarded_Proto="https")[0] == 200
    assert open_page.get("/config", Host="other.example")[0] == 403
    assert open_page.get("/config", Host="lab.example", Origin="http://other.example")[0] == 403
    secure = {"Origin": "https://lab.example", "X_Forwarded_Proto": "https"}
    assert open_page.get("/config", Host="lab.example", **secure)[0] == 200
    assert "asks for a password" not in open_page.log


def test_a_page_that_is_open_to_all_says_so(start):
    assert "everyone who can reach this machine" in start("--host", "0.0.0.0").log


# ---------------------------------------------------------------- what is wrong is said
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
def test_a_wrong_value_is_a_sentence(page, parameters, message):
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
def test_a_wrong_picture_is_a_sentence(page, picture, message):
    event, answer = page.call("redraw", picture=picture)
    assert event == "error" and message in answer["error"]


def test_a_file_that_is_no_picture_is_a_sentence(page):
    for data in (b"", b"GIF89a", b"<svg onload=alert(1)>", png()[:40], secrets.token_bytes(500)):
        event, answer = page.call("redraw", picture={"background": page.file(data, "x.svg")})
        assert event == "error" and "not a readable image" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"data": NaN}', b"[" * 50_000, b'{"data": {}}'),
        *({"data": []}, {"data": [1] * 50}, {"data": None, "fn_index": 0}, {"fn_index": True}),
        *(
            {"data": [], "fn_index": 10**30},
            {"data": [], "fn_index": "0"},
            {"data": [], "fn_index": -1},
        ),
        *({"data": [], "session_hash": "../x"}, {"data": [], "session_hash": ["a"]}),
        {"data": ["0", 1, 0, 1.5, 0, 0, 1, False], "session_hash": "x" * 65},
        b'{"data": [' + b'"' + b"x" * 100_000 + b'"]}',
        {"data": ["0", 10**400, 0, 1.5, 0, 0, 1, False], "session_hash": "a", "fn_index": 1},
        {"data": ["\ud800", 1, 0, 1.5, 0, 0, 1, False], "session_hash": "a", "fn_index": 1},
    ],
)
def test_a_call_that_is_not_well_formed_is_refused_with_a_sentence(page, body):
    for path in ("run/predict", "call/generate", "queue/join", "call/nothing", "cancel"):
        status, _, answer = page.post(f"{API}/{path}", body)
        assert status in (400, 404, 413), (path, status, answer)
        assert json.loads(answer)["detail"].endswith(".")


def test_an_upload_that_is_not_well_formed_costs_a_line_of_the_log(page):
    form = "multipart/form-data; boundary=x"
    name = b'--x\r\nContent-Disposition: form-data; name="files"'
    for kind, body in (
        (form, b""),
        (form, b"nonsense"),
        (form, name + b"\r\n\r\nno file\r\n--x--\r\n"),
        (form, name + b'; filename="a.png"\r\n\r\nbroken off'),
        (form, b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
        (form, name + b'; filename="../../../../tmp/a.png"\r\n\r\n1\r\n--x--\r\n'),
        ("multipart/form-data", b"x"),
        ("text/plain", b"x"),
        ("multipart/form-data; boundary=x; charset=nothing", name + b"\r\n\r\n1\r\n--x--\r\n"),
    ):
        for query in ("", "?upload_id=a"):
            page.post(f"{API}/upload{query}", body, Content_Type=kind)
    page.call("generate")
    below = [path for path in page.own_folder.rglob("*") if path.is_file()]
    assert not list((page.folder / "temporary").glob("*.png")) and below


def test_odd_questions_are_answered_without_a_traceback(page):
    for path in (
        "/?page=nothing",
        "/config?page=x&deep_link=../..",
        f"{API}/info?page=x",
        "/?deep_link=x",
    ):
        assert page.get(path)[0] == 200
    _, answer = page.call("generate", seed=9)
    file = "/" + answer[0][0]["image"]["url"].split("/", 3)[3]
    for span in ("bytes=1-2-3", "bytes=-", "bytes=9-1", "bytes=99999999999-", "x"):
        assert page.get(file, Range=span)[0] == 200


def test_streams_of_nobody_are_not_found(page):
    for path in ("queue/data", "queue/data?session_hash=nobody", "call/generate/abc", "call/x/y"):
        assert page.get(f"{API}/{path}")[0] in (400, 404)


def test_a_stream_that_is_asked_for_under_two_names_is_that_of_the_first(page):
    generate = {"fn_index": 1, "session_hash": "two-names", "data": ["3", 1, 0, 1, 0, 0, 1, False]}
    assert page.post(f"{API}/queue/join", generate)[0] == 200
    query = "session_hash=two-names&session_hash=nobody"
    status, _, events = page.get(f"{API}/queue/data?{query}", timeout=PATIENCE)
    assert status == 200 and b"process_completed" in events


def test_sessions_that_have_no_job_push_nobody_elses_pictures_out(page):
    generate = {"fn_index": 1, "session_hash": "painter", "data": ["3", 1, 0, 1, 0, 0, 1, False]}
    assert page.post(f"{API}/queue/join", generate)[0] == 200
    page.get(f"{API}/queue/data?session_hash=painter", timeout=PATIENCE)
    functions = json.loads(page.get("/config")[2])["dependencies"]
    numbers = {function["api_name"]: function["id"] for function in functions}
    for n in range(120):
        chosen = {"fn_index": numbers["chosen_index"], "data": [], "session_hash": f"forged{n}"}
        assert page.post(f"{API}/run/predict", chosen | {"event_data": {"index": 0}})[0] == 200
    ask = {"fn_index": numbers["to_canvas"], "data": [], "session_hash": "painter"}
    assert page.post(f"{API}/run/predict", ask)[0] == 200


def test_what_is_chosen_in_the_gallery_must_be_a_number(page):
    (chosen,) = [function(page, "chosen_index")]
    for event in (None, {}, {"index": "0"}, {"index": -1}, {"index": {"path": "/etc/passwd"}}, []):
        body = {"data": [], "fn_index": chosen, "event_data": event, "session_hash": "chooser"}
        status, _, answer = page.post(f"{API}/run/predict", body)
        assert status == 400 and b"index" in answer
    body |= {"event_data": {"index": 10**9, "value": {"path": "/etc/passwd"}}}
    assert page.post(f"{API}/run/predict", body)[0] == 200


# ---------------------------------------------------------------- the API
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


def test_a_class_name_that_is_no_unicode_is_shown_escaped(start, make_model, tmp_path):
    model = make_model()
    model.class_names = ("caf\udce9", "b", "c", "d", "e")
    model.save(tmp_path / "m.safetensors")
    page = start("--model", str(tmp_path / "m.safetensors"), "--class-names", "None")
    status, _, config = page.get("/config")
    assert status == 200 and rb"caf\\udce9" in config and page.get("/")[0] == 200
    assert page.call("generate", label=r"caf\udce9")[0] == "complete"


def test_class_names_do_not_enter_file_names(page):
    for label, number in (("../../../eel", 2), ("<b>fox</b>", 3)):
        event, answer = page.call("generate", label=label)
        assert event == "complete"
        assert answer[2]["path"].endswith(f"/000000_{number}.png")
        assert answer[1].startswith(f"Class {number}, seed 0")


def test_the_guides_examples_run(page, tmp_path):
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
