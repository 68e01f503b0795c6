"""The web page as a visitor meets it, in a real headless Chromium."""
# ruff: noqa: E402 what the imports below the skips need may be missing

import atexit
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
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
from var_tokenizer.common import InputError, to_pixels
from var_transformer import Sampler, edit, generate

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (BROWSER and DRIVER) and not os.environ.get("REQUIRE_CHROMIUM"):
    pytest.skip("needs chromium and chromedriver on the PATH", allow_module_level=True)
if not os.environ.get("REQUIRE_CHROMIUM"):
    pytest.importorskip("gradio", reason="needs the extra [web]")
    pytest.importorskip("selenium")
    pytest.importorskip("axe_selenium_python")

import axe_selenium_python
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from var_transformer.web.files import private_folder

_resources = contextlib.ExitStack()
FOLDER = _resources.enter_context(private_folder())  # before Gradio is imported
atexit.register(_resources.close)

from var_transformer.serve import ServeConfig, run
from var_transformer.web import handlers as handlers_module
from var_transformer.web import limits
from var_transformer.web.auth import Login
from var_transformer.web.page import make_page
from var_transformer.web.server import Server
from var_transformer.web.sessions import Sessions
from var_transformer.web.streaming import Streamer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of Gradio's own code
]

NAMES = ["cat", "dog, hound", "eel", "fox", "gnu " * 30]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1200,1500"
)
PATIENCE = 60  # seconds, on a busy machine

connections = []  # what this process connects to
sys.addaudithook(lambda event, args: event == "socket.connect" and connections.append(args[1]))


class Visitor:
    """A browser window with the page."""

    def __init__(self, driver, url):
        self.driver, self.folder = (
            driver,
            Path(driver.capabilities["chrome"]["userDataDir"]).parent / "downloads",
        )
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


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory() as folder:
        for flag in (*FLAGS.split(), f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        downloads = {"behavior": "allow", "downloadPath": f"{folder}/downloads"}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
        yield browser
        browser.quit()


@pytest.fixture(scope="module")
def serve(model, tokenizer):
    servers = []

    def start(max_seconds, login=None):
        streamer, sessions = Streamer(len(tokenizer.schedule), max_seconds), Sessions()
        page = make_page(model, tokenizer, NAMES, 3, streamer, sessions, FOLDER)
        server = Server(page, streamer, sessions, FOLDER, "127.0.0.1", 0, login=login)
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        return server.url

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(serve):
    return serve(max_seconds=1000)


@pytest.fixture
def visitor(driver, url):
    return Visitor(driver, url)


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


@pytest.fixture
def gate(tokenizer, monkeypatch):
    gate, decode = Gate(), tokenizer.decode_latent

    def held(latent):
        gate.arrive()
        return decode(latent)

    monkeypatch.setattr(tokenizer, "decode_latent", held)
    yield gate
    gate.let_pass(100)


@pytest.fixture(scope="module")
def frames(model, tokenizer):
    """What ``ask_for_three`` asks for: pixels (3, H, W, 3) after each scale."""
    seen = []
    labels, show = np.full(3, 1), lambda _k, images: seen.append(to_pixels(images))
    generate(model, tokenizer, labels, cfg=2.0, seed=7, on_scale=show)
    return seen


def ask_for_three(visitor):
    """Class "hound", seed 7, guidance 2, three pictures: shapes that other tests compiled."""
    visitor.fill("#class input", "hound")
    visitor.fill("#seed input", 7)
    visitor.fill("#guidance input[type=number]", 2)
    visitor.fill("#count input[type=number]", 3)
    visitor.click("button#generate")


def test_pictures_of_a_class_sharpen_scale_by_scale_and_are_those_of_generate(
    visitor, frames, gate
):
    ask_for_three(visitor)
    for k in (0, 1):
        gate.let_pass()
        visitor.wait(lambda k=k: visitor.status == f"Scale {k + 2} of 3 …")
        visitor.wait(lambda k=k: np.array_equal(visitor.shown(), frames[k]))
    gate.let_pass()
    visitor.wait_for_end()
    np.testing.assert_array_equal(visitor.shown(), frames[2])
    np.testing.assert_array_equal(visitor.downloaded(), frames[2])


def test_a_picture_is_edited_with_a_brush(visitor, model, tokenizer, monkeypatch):
    calls = []

    def noted(*arguments, **more):
        calls.append(arguments)
        return edit(*arguments, **more)

    monkeypatch.setattr(handlers_module, "edit", noted)
    ask_for_three(visitor)
    visitor.wait_for_end()
    before = visitor.downloaded()
    visitor.all("#pictures button img")[1].click()
    visitor.click("#to-canvas")
    canvas = visitor.one("#canvas canvas")
    visitor.click("#canvas button[title=Brush]")
    time.sleep(1)  # the canvas takes the picture in
    stroke = ActionChains(visitor.driver).move_to_element_with_offset(canvas, -40, -30)
    stroke.click_and_hold().move_by_offset(20, 0).move_by_offset(20, 0).release().perform()
    time.sleep(1)  # the stroke reaches the server
    visitor.click("button#redraw")
    visitor.wait(lambda: calls and visitor.status.startswith("Class"))

    _, _, image, mask, labels, sampler, seed = calls[0]
    np.testing.assert_array_equal(np.rint((image + 1) * 127.5), before[1].transpose(2, 0, 1))
    assert mask.any() and not mask.all() and mask[2, 2] and not mask[-1].any()
    assert (labels.tolist(), sampler, seed) == ([1, 1, 1], Sampler(cfg=2.0), 7)
    expected = edit(model, tokenizer, image, mask, labels, sampler, seed)
    np.testing.assert_array_equal(visitor.downloaded(), to_pixels(expected.images))


@pytest.mark.parametrize(
    ("selector", "text", "message"),
    [
        ("#class input", "cow", "class is 'cow'; expected 0 to 4"),
        ("#seed input", "-1", "seed is -1; expected an integer of at least 0"),
        ("#seed input", "", "seed is empty; expected a number"),
    ],
)
def test_bad_input_is_a_message_in_the_page(visitor, no_model_runs, selector, text, message):
    visitor.fill(selector, text or Keys.BACKSPACE)
    visitor.click("button#generate")
    assert message in visitor.message()


def test_an_empty_canvas_is_a_message_in_the_page(visitor, no_model_runs):
    visitor.click("button[role=tab]:nth-of-type(2)")
    visitor.click("button#redraw")
    assert "the canvas is empty" in visitor.message()


def test_a_generation_whose_visitor_leaves_stops_before_its_next_scale(
    driver, url, gate, frames, caplog
):
    caplog.set_level("INFO", "var_transformer")
    visitor = Visitor(driver, url)
    ask_for_three(visitor)
    visitor.wait(lambda: gate.reached == 1)
    driver.get("about:blank")
    time.sleep(2)  # the server sees that nobody listens
    gate.let_pass()
    visitor.wait(lambda: "stopped after scale 1 of 3: the visitor left" in caplog.text)
    assert gate.reached == 1
    gate.let_pass(3)
    again = Visitor(driver, url)  # the models are free for others
    ask_for_three(again)
    again.wait_for_end()
    np.testing.assert_array_equal(again.shown(), frames[2])


def test_a_generation_stops_between_scales_when_its_time_is_over(driver, serve, gate, frames):
    visitor = Visitor(driver, serve(max_seconds=0.2))
    ask_for_three(visitor)
    visitor.wait(lambda: gate.reached == 1)
    time.sleep(0.3)
    gate.let_pass(3)
    visitor.wait_for_end()
    expected = "stopped after scale 1 of 3: a generation may take 0.2 s"
    assert expected in visitor.status and expected in visitor.message()
    assert gate.reached == 1
    np.testing.assert_array_equal(visitor.downloaded(), frames[0])  # what there is can be kept


def test_no_other_host_is_asked_for_anything(driver):
    """Of all the tests above: fonts, analytics and version checks would show here."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            hosts.add(urllib.parse.urlsplit(message["params"]["request"]["url"]))
    assert {url.hostname for url in hosts if url.scheme in ("http", "https", "ws")} == {"127.0.0.1"}
    assert {address[0] for address in connections if isinstance(address, tuple)} <= {
        "127.0.0.1",
        "::1",
    }


@pytest.fixture
def config(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    return {"tokenizer": tmp_path / "t.safetensors", "model": tmp_path / "m.safetensors"}


def test_the_command_serves_on_127_0_0_1_unless_told_otherwise(config, monkeypatch):
    served = []
    monkeypatch.setattr(Server, "run", lambda server: served.append(server))
    run(ServeConfig(**config, port=7911))
    assert served[0].url == "http://127.0.0.1:7911/"
    with pytest.raises(InputError, match=r"port is 7911: .*in use"):
        run(ServeConfig(**config, port=7911))


def test_the_command_compiles_for_the_first_visitor_and_for_the_next_process(config, tmp_path):
    files = [f"--{name}={path}" for name, path in config.items()]
    command = [sys.executable, "-m", "var_transformer.serve", *files, "--port", "7912"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "200"}
    compiled = []
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as server:
            for line in server.stderr:
                if b"the graphs are compiled" in line:
                    break
            fetch("http://127.0.0.1:7912")
            compiled.append(
                {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/[!.]*/**/*.mindir")}
            )
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0
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
def test_an_unusable_setting_is_an_error_before_anything_is_served(config, changes, message):
    with pytest.raises(InputError, match=message):
        run(ServeConfig(**config | changes))


# ---------------------------------------------------------------- what goes wrong
def test_a_message_is_text_and_no_html(visitor, no_model_runs):
    visitor.fill("#class input", "<img src=x onerror=alert(1)>")
    visitor.click("button#generate")
    assert "class is '<img src=x onerror=alert(1)>'; expected" in visitor.message()
    assert not visitor.all(".toast-wrap img, [onerror]")


def test_who_has_jobs_enough_is_told_so_in_the_page(visitor, monkeypatch):
    monkeypatch.setattr(limits, "MAX_JOBS_OF_SESSION", 0)
    visitor.click("button#generate")
    assert "jobs in the queue. Wait until one has ended" in visitor.message()


def test_bad_input_keeps_the_pictures(visitor):
    ask_for_three(visitor)
    visitor.wait_for_end()
    before = visitor.shown()
    visitor.fill("#seed input", "-1")
    visitor.click("button#generate")
    assert "seed is -1" in visitor.message()
    np.testing.assert_array_equal(visitor.shown(), before)
    assert visitor.one("#pictures button img").is_displayed()


def test_a_failure_of_the_model_or_a_full_disk_costs_one_visitor(
    visitor, frames, monkeypatch, tokenizer
):
    def fails(*_arguments):
        raise OSError(28, "No space left on device")

    for target, name in ((handlers_module, "_save"), (tokenizer, "decode_latent")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fails)
            ask_for_three(visitor)
            message = visitor.message()
            assert "Something failed on the server" in message and "space" not in message
        ask_for_three(visitor)
        visitor.wait_for_end()
        np.testing.assert_array_equal(visitor.shown(), frames[2])


def test_stop_ends_a_generation_and_can_be_pressed_only_while_there_is_one(visitor, gate, caplog):
    caplog.set_level("INFO", "var_transformer")
    assert not visitor.one("#stop").is_enabled()
    ask_for_three(visitor)
    visitor.wait(lambda: gate.reached == 1 and visitor.one("#stop").is_enabled())
    visitor.click("#stop")
    visitor.wait(lambda: visitor.status == "Stopped.")
    visitor.wait(lambda: not visitor.one("#stop").is_enabled())
    gate.let_pass()
    visitor.wait(lambda: ": the visitor stopped it" in caplog.text or gate.let_pass())
    assert "stopped after scale" in caplog.text
    gate.let_pass(100)
    for _ in range(3):  # the queue forgets a job after its visitor has the results
        visitor.click("button#generate")
        visitor.wait(lambda: visitor.one("#stop").is_enabled())
        visitor.wait_for_end()
        visitor.wait(lambda: not visitor.one("#stop").is_enabled())
    assert "left" not in caplog.text


def test_pictures_of_no_class_can_be_asked_for(visitor):
    visitor.fill("#class input", "none")
    visitor.click("button#generate")
    visitor.wait(lambda: visitor.status.startswith("No class, seed 0"))


def test_a_browser_that_knows_the_password_draws(driver, serve, frames):
    url = serve(1000, Login("ann", "correct horse"))
    driver.get(url.replace("//", "//ann:correct%20horse@"))
    visitor = Visitor(driver, url)
    ask_for_three(visitor)
    visitor.wait_for_end()
    widths = "return [...document.querySelectorAll('#pictures img')].map(i => i.naturalWidth)"
    visitor.wait(lambda: driver.execute_script(widths) == [frames[2].shape[2]] * 3)


# ---------------------------------------------------------------- looks
SIZES = {"desktop": (1400, 1000), "phone": (390, 844)}


@contextlib.contextmanager
def seen_as(visitor, size, theme):
    """The page in a window of that size, and with a theme."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    theme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
    visitor.driver.refresh()
    visitor.wait(lambda: visitor.all("button#generate"))
    yield
    visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def show(visitor, name):
    """Keeps a picture of the page where SCREENSHOTS names a folder: to be looked at."""
    if folder := os.environ.get("SCREENSHOTS"):
        visitor.driver.save_screenshot(f"{folder}/{name}.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious(visitor, size, theme):
    axe = next(Path(axe_selenium_python.__file__).parent.rglob("axe.min.js")).read_text()
    with seen_as(visitor, size, theme):
        visitor.driver.execute_script(axe)
        for tab in (1, 2):
            visitor.click(f"button[role=tab]:nth-of-type({tab})")
            if tab == 1:
                ask_for_three(visitor)
                visitor.wait_for_end()
            time.sleep(1)  # colours change slowly
            visitor.driver.execute_script("scrollTo(0, 0)")
            show(visitor, f"{size}-{theme}-{tab}")
            run_axe = "axe.run().then(arguments[arguments.length - 1])"
            report = visitor.driver.execute_async_script(run_axe)
            assert report["passes"]
            serious = [
                (found["id"], [n["html"][:200] + n["failureSummary"] for n in found["nodes"]])
                for found in report["violations"]
                if found["impact"] in ("serious", "critical")
            ]
            assert serious == []


def test_pictures_have_a_description_and_the_status_is_announced(visitor):
    ask_for_three(visitor)
    visitor.wait_for_end()
    images = visitor.all("#pictures button img")
    described = [image.get_attribute("alt") for image in images]
    assert described == [f"Picture {n} of 3: class 1" for n in (1, 2, 3)]
    status = visitor.one("#status")
    assert (
        status.get_attribute("aria-live") == "polite" and status.get_attribute("role") == "status"
    )
    others = "button:not([role=tab], [aria-hidden=true] *, .visually-hidden *)"
    tabs = [each.text for each in visitor.all("button[role=tab]")]
    texts = [each.text for each in visitor.all(others) if each.is_displayed()]
    assert not set(tabs) & set(texts)  # nothing is called like something else


def test_the_keyboard_alone_draws_a_picture(visitor):
    def focused():
        return visitor.driver.switch_to.active_element

    keys = ActionChains(visitor.driver)
    for _ in range(30):
        keys.send_keys(Keys.TAB).perform()
        if focused().get_attribute("id") == "generate":
            break
    focused().send_keys(Keys.ENTER)
    visitor.wait_for_end()
    assert len(visitor.shown()) > 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_result_is_in_sight_on_a_phone(visitor, theme):
    with seen_as(visitor, "phone", theme):
        visitor.click("button#generate")
        visitor.wait_for_end()
        picture = visitor.one("#pictures img").rect
        assert picture["y"] + picture["height"] < SIZES["phone"][1]
        scroll = "return document.documentElement.scrollWidth"
        assert visitor.driver.execute_script(scroll) <= SIZES["phone"][0]
        visitor.driver.execute_script("scrollTo(0, 0)")
        show(visitor, f"phone-{theme}-result")


def test_a_long_class_name_ends_before_the_arrow(visitor):
    visitor.fill("#class input", "4")
    field = visitor.one("#class input")
    visitor.driver.execute_script("arguments[0].blur()", field)
    arrow = visitor.one("#class .icon-wrap, #class svg").rect
    padding = float(field.value_of_css_property("padding-right").removesuffix("px"))
    assert field.rect["x"] + field.rect["width"] - padding <= arrow["x"]
    assert field.value_of_css_property("text-overflow") == "ellipsis"


def test_the_content_security_policy_stops_nothing_of_the_page(driver, visitor):
    """Of all the tests above, too: an editor without its scripts would show here."""
    said = [entry["message"] for entry in driver.get_log("browser")]
    assert said
    stopped = ("Content Security Policy", "Content-Security-Policy", "unsafe-eval", "Refused to")
    assert [each for each in said if any(text in each for text in stopped)] == []
