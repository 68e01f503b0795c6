"""A page in a process of its own, shared by all tests over HTTP, and the browser of the others."""

import socket

import numpy as np
import pytest
from command_line import words
from var_tokenizer.common import to_pixels
from var_transformer import generate

NAMES = ["cat", "dog, hound", "../../../eel", "<b>fox</b>", "a very long name " * 8]


@pytest.fixture(scope="session")
def start(pair, tmp_path_factory):
    """Starts pages with other options."""
    from http_page import Page  # skips where the extra [web] is missing

    folder, pages = tmp_path_factory.mktemp("pages"), []
    (folder / "names.txt").write_text("\n".join(NAMES))
    options = words(pair, None, **{"class-names": folder / "names.txt"})

    def started(*more_options, **more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / str(port)).mkdir()
        pages.append(Page(folder / str(port), port, *options, *more_options, **more))
        return pages[-1]

    yield started
    for page in pages:
        page.process.kill()
        page.process.wait()


@pytest.fixture(scope="session")
def page(start):
    return start()


@pytest.fixture(autouse=True)
def no_traceback(request):
    """Nothing that a visitor can send is an error that the server did not expect."""
    page = request.getfixturevalue("page") if "page" in request.fixturenames else None
    before = 0 if page is None else len(page.log)
    yield
    assert page is None or "Traceback" not in page.log[before:]


@pytest.fixture(scope="module")
def driver():
    """A browser window; in none of its tests may a page ask another host or break its policy."""
    from browser import chromium, hosts_asked, stopped_by_the_policy

    with chromium() as driver:
        yield driver
        assert hosts_asked(driver) == {"127.0.0.1"}  # fonts, analytics, version checks
        assert stopped_by_the_policy(driver) == []  # an editor without its scripts


@pytest.fixture(scope="module")
def serve(model, tokenizer):
    """Starts pages in this process."""
    from browser import servers

    with servers(model, tokenizer) as serve:
        yield serve


@pytest.fixture(scope="module")
def url(serve):
    return serve(max_seconds=1000)


@pytest.fixture
def visitor(driver, url):
    from browser import Visitor

    return Visitor(driver, url)


@pytest.fixture
def gate(tokenizer, monkeypatch):
    """Holds every scale of a generation until the test lets it pass."""
    from browser import Gate

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
