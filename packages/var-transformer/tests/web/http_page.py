"""A page that was started as its user starts it, and its visitors' requests."""

import http.client
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from picture_files import saved
from PIL import Image

if not os.environ.get("REQUIRE_CHROMIUM"):
    pytest.importorskip("gradio", reason="needs the extra [web]")

PATIENCE = 90  # seconds, on a busy machine
API = "/gradio_api"


class Client:
    """A visitor's requests. secret: what the header Authorization says."""

    def __init__(self, port, secret=None):
        self.port, self.secret = port, secret

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

    def path_of(self, file):
        return "/" + file["url"].split("/", 3)[3]

    def pixels(self, file):
        """The picture that an answer names."""
        status, _, data = self.get(self.path_of(file))
        assert status == 200
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Page(Client):
    """A page that was started as a user starts it."""

    def __init__(self, folder, port, *arguments, secret=None):
        super().__init__(port, secret)
        self.folder = folder
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

    def idle_memory(self):
        """MB before an attack; forgets the peak."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory("VmRSS")

    def processor_seconds(self):
        """Seconds of the processor that it took so far, whatever else the machine does."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def png(size=(6, 6), colour=(10, 200, 30)):
    return saved(Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour))


def asked(session, images=1, seed=0):
    """The body of a call of ``generate``."""
    return {"data": ["0", images, seed, 1.5, 0, 0, 1, False], "session_hash": session}


def function(page, name):
    """The number of a function of the page."""
    dependencies = json.loads(page.get("/config")[2])["dependencies"]
    return next(each["id"] for each in dependencies if each["api_name"] == name)
