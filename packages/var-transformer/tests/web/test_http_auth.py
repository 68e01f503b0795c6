"""Who may use the page over HTTP: other sites, host names and the password."""

import base64
import re

import pytest
from http_page import API, png

pytestmark = pytest.mark.slow


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
    for path in ("call/generate", "run/predict", "queue/join", "cancel"):
        assert page.post(f"{API}/{path}", {"data": []}, **headers)[0] == 403
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
    file = page.path_of(answer[0][0]["image"])
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


def test_visitors_without_the_password_get_nothing(open_page):
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


def test_a_page_on_a_network_answers_to_its_names_alone(open_page):
    assert open_page.get("/config", Host="lab.example:8000")[0] == 200
    assert open_page.get("/config", Host="lab.example", X_Forwarded_Proto="https")[0] == 200
    assert open_page.get("/config", Host="other.example")[0] == 403
    assert open_page.get("/config", Host="lab.example", Origin="http://other.example")[0] == 403
    secure = {"Origin": "https://lab.example", "X_Forwarded_Proto": "https"}
    assert open_page.get("/config", Host="lab.example", **secure)[0] == 200
    assert "asks for a password" not in open_page.log


def test_a_page_that_is_open_to_all_logs_a_warning(start):
    assert "everyone who can reach this machine" in start("--host", "0.0.0.0").log
