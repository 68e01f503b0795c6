"""Files of the hub, from a small server on the loopback interface that can misbehave."""

import hashlib
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
from var_convert import convert, hub, inspect, verify
from var_convert.cli import main
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError

ADDRESS, COMMIT = "hf://lab/var/weights/vae.safetensors", "c0ffee" * 6 + "c0de"


class Hub(ThreadingHTTPServer):
    """Serves one file as the hub does.

    breaks: after how many bytes each connection ends, until none is left. The other fields are
    what the server says of the file, true or not.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content, self.size, self.commit = content, len(content), COMMIT
        self.digest = hashlib.sha256(content).hexdigest()
        self.breaks: list[int] = []
        self.status, self.gets = 200, list[str | None]()
        self.ranges = True
        self.files: dict[str, bytes] = {}  # others

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def _held(self) -> bytes:
        return self.server.files.get(self.path.rpartition("/")[2], self.server.content)

    def do_HEAD(self):
        self._begin(self.server.status, 0)

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.gets.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        part = self._held()[begin:]
        status = 206 if begin else 200
        self._begin(server.status if server.status != 200 else status, len(part), begin)
        if server.status == 200:
            limit = server.breaks.pop(0) if server.breaks else len(part)
            self.wfile.write(part[:limit])
        self.close_connection = True

    def _begin(self, status: int, length: int, begin: int = 0) -> None:
        server, other = self.server, self.server.files.get(self.path.rpartition("/")[2])
        assert self.path.startswith("/lab/var/resolve/")
        digest = server.digest if other is None else hashlib.sha256(other).hexdigest()
        self.send_response(status)
        self.send_header("X-Repo-Commit", server.commit)
        self.send_header("ETag", '"0"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(server.size if other is None else len(other)))
        self.send_header("Content-Length", str(length if status < 400 else 0))
        if status == 206:
            self.send_header(
                "Content-Range", f"bytes {begin}-{begin + length - 1}/{begin + length}"
            )
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("hub") / "vae.safetensors"
    Tokenizer(tiny.tokenizer(), 0).save(path)
    return path.read_bytes()


@pytest.fixture
def server(content, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    found = Hub(content)
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # tests of the web page may set it
    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    yield found
    found.shutdown()
    found.server_close()


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*/blobs/*"))


def test_a_file_of_the_hub_is_converted_through_the_mirror_and_kept(server, content, tmp_path):
    target = tmp_path / "native.safetensors"
    assert main([ADDRESS, str(target)]) == 0
    (tmp_path / "here.safetensors").write_bytes(content)
    assert inspect(target).checksum == inspect(tmp_path / "here.safetensors").checksum
    assert inspect(ADDRESS).checksum == inspect(target).checksum
    assert verify(ADDRESS, target).agrees()
    assert server.gets == [None]  # once


def test_an_index_brings_its_shards(server, tmp_path, monkeypatch):
    monkeypatch.setattr("var_convert.formats.folders.SHARD_BYTES", 5000)
    (tmp_path / "vae.safetensors").write_bytes(server.content)
    index = tmp_path / "there" / "vae.safetensors.index.json"
    convert(tmp_path / "vae.safetensors", index)
    server.files = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    assert len(server.files) > 2
    found = inspect(f"{ADDRESS}.index.json")
    assert found.checksum == inspect(tmp_path / "vae.safetensors").checksum


def test_other_programs_find_the_file_in_the_librarys_cache(server, tmp_path):
    hub.local_file(ADDRESS)
    library = sys.modules["huggingface_hub"]
    found = library.hf_hub_download(
        "lab/var", "weights/vae.safetensors", revision=COMMIT, local_files_only=True
    )
    assert Path(found).read_bytes() == server.content


def test_a_download_that_breaks_off_continues_where_it_was(server, tmp_path, caplog):
    server.breaks = [1000, 0, 500]
    seen = []
    path = hub.local_file(ADDRESS, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == server.content
    assert server.gets == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]
    assert seen == sorted(seen) and seen[-1] == (server.size, server.size)
    assert f"broke off after 1000 of {server.size} bytes" in caplog.text


def test_a_command_continues_what_an_earlier_one_left(server, tmp_path, caplog):
    server.breaks = [1000, *[0] * 20]
    with pytest.raises(InputError, match=r"broke off after 1000 of .*; the same command goes on"):
        convert(ADDRESS, tmp_path / "x.safetensors")
    assert len(server.gets) == 1 + 5 and not (tmp_path / "x.safetensors").exists()
    server.breaks, server.gets[:] = [], []
    caplog.set_level(logging.INFO)
    assert hub.local_file(ADDRESS).read_bytes() == server.content
    assert server.gets == ["bytes=1000-"] and "goes on after" in caplog.text


def test_a_server_that_ignores_ranges_sends_all_again(server):
    server.breaks, server.ranges = [1000, 2000], False
    assert hub.local_file(ADDRESS).read_bytes() == server.content
    assert len(server.gets) == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "no such model or file"), (401, "wants a token"), (403, "wants a token")],
)
def test_a_refusal_is_told_in_one_line(server, refused, status, message):
    server.status = status
    said = refused(ADDRESS, "x.safetensors")
    assert message in said and str(status) in said and server.address in said


@pytest.mark.parametrize(("by", "message"), [(-1, "sends more than"), (1, "broke off after")])
def test_a_length_that_is_not_true_is_refused(server, tmp_path, by, message):
    server.size += by
    with pytest.raises(InputError, match=message):
        convert(ADDRESS, tmp_path / "x.safetensors")
    assert {path.suffix for path in blobs(tmp_path)} == {".incomplete"}


def test_a_length_beyond_the_disk_is_refused_before_anything_comes(server, tmp_path):
    server.size = 10**18
    with pytest.raises(InputError, match=r"needs 1000000000\.00 GB"):
        convert(ADDRESS, tmp_path / "x.safetensors")
    assert not server.gets


def test_other_bytes_than_the_digest_says_are_removed(server, tmp_path):
    server.content = server.content[:-1] + b"\0"
    with pytest.raises(InputError, match=f"expected {server.digest}, as the server says"):
        convert(ADDRESS, tmp_path / "x.safetensors")
    assert blobs(tmp_path) == []


def test_a_file_that_git_keeps_is_checked_by_gits_digest(server):
    head = f"blob {len(server.content)}\0".encode()
    server.digest = hashlib.sha1(head + server.content).hexdigest()
    assert hub.local_file(ADDRESS).read_bytes() == server.content


def test_a_cached_file_that_changed_is_removed_and_told(server, tmp_path):
    hub.local_file(ADDRESS)
    (blob,) = blobs(tmp_path)
    blob.write_bytes(b"\0" * server.size)
    with pytest.raises(InputError, match=r"its digest is .*; it was removed"):
        hub.local_file(ADDRESS)
    assert hub.local_file(ADDRESS).read_bytes() == server.content


@pytest.mark.parametrize(
    ("field", "value"), [("digest", "../../../x"), ("digest", ""), ("commit", "../" * 20)]
)
def test_what_the_server_says_never_becomes_a_path(server, tmp_path, field, value):
    setattr(server, field, value)
    with pytest.raises(InputError, match=f"gives the {field}"):
        convert(ADDRESS, tmp_path / "x.safetensors")
    assert not server.gets and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["hf://lab/var", "hf://lab", "hf://lab/var/../x.pth", "hf://lab/va r/x", "hf:///a/b"]
)
def test_an_address_that_names_no_file_is_refused(refused, address):
    assert "expected hf://OWNER/NAME/FILE" in refused(address, "x.safetensors")


def test_nothing_is_written_to_the_hub(refused, tmp_path):
    assert "nothing is written to the hub" in refused("x.pth", "hf://lab/var/x.pth")


def test_a_server_that_does_not_answer_is_named(server, refused, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in refused(ADDRESS, "x.safetensors")


def test_without_the_library_the_extra_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'var-convert[hub]'" in refused(ADDRESS, "x.safetensors")
