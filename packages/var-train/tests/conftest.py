"""Imports MindSpore first: before 2.10 it cannot be imported after what loads protobuf."""

import mindspore as mindspore
import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory):
    """What commands keep for the next one goes into a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
