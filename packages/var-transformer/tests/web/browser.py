"""A headless Chromium, and what a visitor does with it on the page."""
# ruff: noqa: E402 what the imports below the skips need may be missing

import atexit
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not os.environ.get("REQUIRE_CHROMIUM"):
    if not (BROWSER and DRIVER):
        pytest.skip("needs chromium and chromedriver on the PATH", allow_module_level=True)
    pytest.importorskip("gradio", reason="needs the extra [web]")
    pytest.importorskip("selenium")
    pytest.importorskip("axe_selenium_python")

import axe_selenium_python
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from var_transformer.web.files import private_folder

_resources = contextlib.ExitStack()
FOLDER = _resources.enter_context(private_folder())  # before Gradio is imported
atexit.register(_resources.close)

from var_transformer.web.page import Handlers, make_page
from var_transformer.web.server import Server
from var_transformer.web.sessions import Sessions
from var_transformer.web.streaming import Streamer

NAMES = ["cat", "dog, hound", "eel", "fox", "gnu " * 30]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1200,1500"
)
AXE = next(Path(axe_selenium_python.__file__).parent.rglob("axe.min.js")).read_text()
PATIENCE = 60  # seconds, on a busy machine

connections = []  # what this process connects to
sys.addaudithook(lambda event, args: event == "socket.connect" and connections.append(args[1]))


@contextlib.contextmanager
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory() as folder:
        for flag in (*FLAGS.split(), f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        downloads = {"behavior": "allow", "downloadPath": f"{folder}/downloads"}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
        try:
            yield browser
        finally:
            browser.quit()


@contextlib.contextmanager
def servers(model, tokenizer):
    """Starts pages in this process; ends them with the block."""
    started = []

    def start(max_seconds, login=None):
        streamer, sessions = Streamer(len(tokenizer.schedule), max_seconds), Sessions()
        page = make_page(Handlers(model, tokenizer, NAMES, 3, streamer, sessions, FOLDER))
        server = Server(page, streamer, sessions, FOLDER, "127.0.0.1", 0, login=login)
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        return server.url

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


class Visitor:
    """A browser window with the page."""

    def __init__(self, driver, url):
        self.driver = driver
        self.folder = Path(driver.capabilities["chrome"]["userDataDir"]).parent / "downloads"
        driver.get(url)
        self.wait(lambda: self.all("button#generate"))

    def wait(self, condition):
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < end, self.driver.find_element(By.TAG_NAME, "body").text
            time.sleep(0.05)
        return value

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def click(self, selector):
        self.one(selector).click()

    def fill(self, selector, text):
        field = self.one(selector)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(text), Keys.ENTER)

    @property
    def status(self):
        return self.driver.execute_script("return document.querySelector('#status').innerText")

    def wait_for_end(self):
        self.wait(lambda: self.status.startswith("Class"))

    def shown(self):
        """The pictures on the page as uint8 (N, H, W, 3)."""
        sources = self.driver.execute_script(
            "return [...document.querySelectorAll('#pictures img')].map(image => image.src)"
        )
        return [np.asarray(Image.open(fetch(source)).convert("RGB")) for source in sources]

    def downloaded(self):
        """What the download button gives, uint8 (N, H, W, 3)."""
        self.wait(lambda: self.one("#download").is_enabled())
        self.click("#download")
        path = self.wait(lambda: next(self.folder.glob("[!.]*.*[!d]"), None))
        data = io.BytesIO(path.read_bytes())
        path.unlink()
        if not zipfile.is_zipfile(data):
            return [np.asarray(Image.open(data))]
        with zipfile.ZipFile(data) as archive:
            return [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]

    def message(self):
        """The text of the message that the page shows; closes it."""
        text = self.wait(lambda: self.one(".toast-message-text").text)  # it slides in
        self.click(".toast-close")
        self.wait(lambda: not self.all(".toast-body"))
        return text


def fetch(url):
    with urllib.request.urlopen(url) as response:
        return io.BytesIO(response.read())


class Gate:
    """Holds every scale of a generation until the test lets it pass."""

    def __init__(self):
        self.reached = 0
        self._passes = threading.Semaphore(0)

    def arrive(self):
        self.reached += 1
        assert self._passes.acquire(timeout=PATIENCE)

    def let_pass(self, scales=1):
        self._passes.release(scales)


def ask_for_three(visitor):
    """Class "hound", seed 7, guidance 2, three pictures: shapes that other tests compiled."""
    visitor.fill("#class input", "hound")
    visitor.fill("#seed input", 7)
    visitor.fill("#guidance input[type=number]", 2)
    visitor.fill("#count input[type=number]", 3)
    visitor.click("button#generate")


def hosts_asked(driver):
    """The hosts that the browser and this process have connected to since they started."""
    hosts = {address[0] for address in connections if isinstance(address, tuple)} - {"::1"}
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urllib.parse.urlsplit(message["params"]["request"]["url"])
            hosts |= {url.hostname} if url.scheme in ("http", "https", "ws") else set()
    return hosts


def stopped_by_the_policy(driver):
    """What the browser said of the Content Security Policy, of all that it said."""
    said = [entry["message"] for entry in driver.get_log("browser")]
    assert said
    stopped = ("Content Security Policy", "Content-Security-Policy", "unsafe-eval", "Refused to")
    return [each for each in said if any(text in each for text in stopped)]
