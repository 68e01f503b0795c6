"""Validates the calls of the page's functions, and rebuilds them before Gradio sees them."""

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction

from var_transformer.web import limits
from var_transformer.web.auth import RefusedError
from var_transformer.web.files import find_file

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE_KEYS = {"path", "url", "meta", "is_stream", "orig_name", "mime_type"}


class CallValidator:
    """Reads calls of a page's functions, and refuses malformed ones."""

    def __init__(self, page: gr.Blocks, folder: Path) -> None:
        self._page, self._folder = page, folder

    def read(self, body: bytes, name: str | None, named: bool) -> dict[str, Any]:
        """A call in Gradio's form, without anything that it should not hold.

        name: the function's, from the address; None if the body holds its number. named:
        whether the body holds parameters by name, not in a list.

        Raises RefusedError for a malformed call.
        """
        call = _parsed(body)
        if not isinstance(call, dict):
            raise RefusedError(400, "The body must be a JSON object.")
        function = self._function(None if named else call.get("fn_index"), name)
        if named:
            call = {"data": self._by_name(function, call)}
        session, trigger = call.get("session_hash"), call.get("trigger_id")
        return {
            "fn_index": function._id,
            "session_hash": None if session is None else check_session(session),
            "data": self._inputs(function, call.get("data")),
            "trigger_id": trigger if type(trigger) is int else None,
            "event_data": _event(function, call.get("event_data")),
        }

    def read_cancel(self, body: bytes) -> dict[str, Any]:
        """A request to cancel a job; raises RefusedError unless it is well formed."""
        call = _parsed(body)
        if not isinstance(call, dict) or type(call.get("fn_index")) is not int:
            raise RefusedError(400, "The body must hold session_hash, fn_index and event_id.")
        fields = {field: check_session(call.get(field)) for field in ("session_hash", "event_id")}
        return {"fn_index": call["fn_index"], **fields}

    def is_queued(self, call: dict[str, Any]) -> bool:
        """Whether a call must wait in the queue."""
        return self._page.fns[call["fn_index"]].queue

    def _function(self, number: object, name: str | None) -> BlockFunction:
        functions = self._page.fns
        if number is None and name is not None:
            for function in functions.values():
                if function.api_name == name and function.api_visibility == "public":
                    return function
        if type(number) is not int or number not in functions or functions[number].fn is None:
            raise RefusedError(404, "There is no such function on this page.")
        return functions[number]

    def _by_name(self, function: BlockFunction, call: dict[str, Any]) -> list[object]:
        endpoint = self._page.get_api_info()["named_endpoints"][f"/{function.api_name}"]
        parameters = {each["parameter_name"]: each for each in endpoint["parameters"]}
        if unknown := call.keys() - parameters.keys():
            wrong = "parameters that are not known" if len(unknown) > 1 else "an unknown parameter"
            raise RefusedError(400, f"There is {wrong}. Expected some of {', '.join(parameters)}.")
        for name, parameter in parameters.items():
            if name not in call and not parameter["parameter_has_default"]:
                raise RefusedError(400, f"{name} is missing.")
        return [call.get(name, each.get("parameter_default")) for name, each in parameters.items()]

    def _inputs(self, function: BlockFunction, data: object) -> list[object]:
        wanted = [block for block in function.inputs if not block.skip_api]
        if isinstance(data, list) and len(data) == len(wanted):
            given = iter(data)  # a client may not give the session's state
            data = [None if block.skip_api else next(given) for block in function.inputs]
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise RefusedError(400, f"data must be a list of {len(wanted)} values.")
        return [self._value(value) for value in data]

    def _value(self, value: object, depth: int = 0) -> object:
        """The value, with each file reduced to the path of an upload."""
        if depth > limits.MAX_DEPTH:
            raise RefusedError(400, "A value holds too many values within each other.")
        if isinstance(value, list):
            return [self._value(each, depth + 1) for each in value]
        if isinstance(value, int) and not -(2**63) <= value < 2**63:  # Gradio cannot write others
            raise RefusedError(400, "A number is too large.")
        if isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value):
            raise RefusedError(400, "A text is not Unicode.")
        if not isinstance(value, dict):
            return value
        if not _FILE_KEYS.isdisjoint(value):
            path = find_file(self._folder, value.get("path"))
            return {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        return {key: self._value(each, depth + 1) for key, each in value.items()}


def check_session(name: object) -> str:
    """The name of a session or job; raises RefusedError if it cannot be one."""
    if not isinstance(name, str) or not _SESSION.fullmatch(name):
        raise RefusedError(400, "A session must have a name of 1 to 64 letters and digits.")
    return name


def _event(function: BlockFunction, event: object) -> dict[str, int | None] | None:
    """What the visitor selected, for a function that asks for it."""
    if not function.collects_event_data:
        return None
    index = event.get("index") if isinstance(event, dict) else None
    if type(index) is not int or index < 0:
        raise RefusedError(400, "event_data must hold an index from 0.")
    return {"index": index, "value": None}


def _parsed(body: bytes) -> object:
    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError
        raise RefusedError(400, "The body is not JSON.") from error
