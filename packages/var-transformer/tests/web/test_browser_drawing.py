"""Drawing and editing in a real browser: pictures, messages, stopping and logging in."""

import time

import numpy as np
import pytest
from browser import Visitor, ask_for_three
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from var_tokenizer.common import to_pixels
from var_transformer import Sampler, edit
from var_transformer.web import handlers as handlers_module
from var_transformer.web import limits
from var_transformer.web.auth import Login

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings


def test_pictures_sharpen_scale_by_scale_and_are_those_of_generate(visitor, frames, gate):
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
        ("#class input", "<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>'; expected"),
    ],
)
def test_bad_input_is_a_message_of_text_in_the_page(
    visitor, no_model_runs, selector, text, message
):
    visitor.fill(selector, text or Keys.BACKSPACE)
    visitor.click("button#generate")
    assert message in visitor.message()
    assert not visitor.all(".toast-wrap img, [onerror]")


def test_an_empty_canvas_is_a_message_in_the_page(visitor, no_model_runs):
    visitor.click("button[role=tab]:nth-of-type(2)")
    visitor.click("button#redraw")
    assert "the canvas is empty" in visitor.message()


def test_a_generation_stops_when_its_visitor_leaves(driver, url, gate, frames, caplog):
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


def test_a_visitor_with_too_many_jobs_is_told_so_in_the_page(visitor, monkeypatch):
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


def test_a_failure_or_a_full_disk_costs_one_visitor(visitor, frames, monkeypatch, tokenizer):
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


def test_stop_ends_a_generation_and_works_only_during_one(visitor, gate, caplog):
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


def test_pictures_of_no_class_are_drawn(visitor):
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
