"""The queue and the sessions over HTTP: turns, limits, and the end of the server."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from http_page import API, PATIENCE, asked, function, png

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_ends_with_jobs_leaves_nothing_and_logs_no_error(start, number):
    page = start("--max-images", "64")
    page.file(png())
    sessions = ["one", "two", "three"]
    for session in sessions:
        assert page.post(f"{API}/call/generate", asked(session, images=64))[0] == 200
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


def test_a_visitors_jobs_are_bounded_and_the_others_get_their_turn(page):
    body = asked("greedy", images=8) | {"fn_index": function(page, "generate")}
    answers = [page.post(f"{API}/queue/join", body) for _ in range(45)]
    taken = [status for status, _, _ in answers if status == 200]
    refused = [json.loads(answer)["detail"] for status, _, answer in answers if status == 429]
    assert len(taken) + len(refused) == 45 and 1 <= len(taken) <= 8
    assert "Wait until one has ended" in refused[-1]
    assert page.call("generate", seed=4)[0] == "complete"
    page.wait_for_log("nobody waits for it")


def test_visitors_of_one_address_leave_room_for_others(page):
    statuses = []
    for n in range(45):
        body = asked(f"many{n}")
        statuses.append(page.post(f"{API}/call/generate", body, address="127.0.0.8")[0])
    assert statuses.count(429) > 0
    assert page.call("generate", seed=5)[0] == "complete"


def test_twenty_visitors_are_served_in_order_with_flat_memory(page):
    def crowd():
        order = []

        def visit(seed):
            event, answer = page.call("generate", seed=seed)
            order.append((event, answer[1].partition(",")[2]))

        with ThreadPoolExecutor(20) as visitors:
            list(visitors.map(visit, range(20)))
        assert {event for event, _ in order} == {"complete"}
        return sorted(order)

    first = crowd()
    before = page.memory("VmRSS")
    for _ in range(2):
        assert [event for event, _ in crowd()] == [event for event, _ in first]
    assert page.memory("VmRSS") - before < 60


def test_a_session_has_its_own_pictures(page):
    body = asked("mine", seed=8)
    event, answer = page.result(*(page.post(f"{API}/call/generate", body)[::2]), "call/generate/")
    assert event == "complete"
    ask = {"data": [], "fn_index": function(page, "to_canvas")}
    status, _, mine = page.post(f"{API}/run/predict", ask | {"session_hash": "mine"})
    assert status == 200
    shown = page.pixels(json.loads(mine)["data"][0]["background"])
    drawn = page.pixels(answer[0][0]["image"])
    np.testing.assert_array_equal(shown[:: shown.shape[0] // 6, :: shown.shape[1] // 6], drawn)
    for session in ({"session_hash": "other"}, {}):
        status, _, answer = page.post(f"{API}/run/predict", ask | session)
        assert status == 500 and b"there is no picture yet" in answer


def test_streams_of_unknown_jobs_are_not_found(page):
    for path in ("queue/data", "queue/data?session_hash=nobody", "call/generate/abc", "call/x/y"):
        assert page.get(f"{API}/{path}")[0] in (400, 404)


def test_a_stream_with_two_session_names_is_that_of_the_first(page):
    generate = asked("two-names") | {"fn_index": function(page, "generate")}
    assert page.post(f"{API}/queue/join", generate)[0] == 200
    query = "session_hash=two-names&session_hash=nobody"
    status, _, events = page.get(f"{API}/queue/data?{query}", timeout=PATIENCE)
    assert status == 200 and b"process_completed" in events


def test_sessions_without_a_job_displace_nobodys_pictures(page):
    generate = asked("painter") | {"fn_index": function(page, "generate")}
    assert page.post(f"{API}/queue/join", generate)[0] == 200
    page.get(f"{API}/queue/data?session_hash=painter", timeout=PATIENCE)
    chosen = {"fn_index": function(page, "chosen_index"), "data": [], "event_data": {"index": 0}}
    for n in range(120):
        assert page.post(f"{API}/run/predict", chosen | {"session_hash": f"forged{n}"})[0] == 200
    ask = {"fn_index": function(page, "to_canvas"), "data": [], "session_hash": "painter"}
    assert page.post(f"{API}/run/predict", ask)[0] == 200


def test_a_choice_in_the_gallery_must_be_an_index(page):
    chosen = function(page, "chosen_index")
    for event in (None, {}, {"index": "0"}, {"index": -1}, {"index": {"path": "/etc/passwd"}}, []):
        body = {"data": [], "fn_index": chosen, "event_data": event, "session_hash": "chooser"}
        status, _, answer = page.post(f"{API}/run/predict", body)
        assert status == 400 and b"index" in answer
    body |= {"event_data": {"index": 10**9, "value": {"path": "/etc/passwd"}}}
    assert page.post(f"{API}/run/predict", body)[0] == 200
