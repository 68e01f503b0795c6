"""The looks of the page in a real browser: sizes, themes, and what assistive software is told."""

import contextlib
import os
import time

import pytest
from browser import AXE, ask_for_three
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings


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
    with seen_as(visitor, size, theme):
        visitor.driver.execute_script(AXE)
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
