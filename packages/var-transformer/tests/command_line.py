"""Runs the package's commands, in this process or in one of their own."""

import importlib
import os
import subprocess
import sys

import pytest


def words(pair, out, **options):
    """The command line with a pair of models, a folder for the output, if any, and options."""
    given = {name: pair / f"{name[0]}.safetensors" for name in ("tokenizer", "model")}
    given |= ({} if out is None else {"out": out}) | options
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def call(command, *words):
    """The exit code of a command that runs in this process."""
    module = f"{command}.__main__" if command in ("edit", "cost") else command
    main = importlib.import_module(f"var_transformer.{module}").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return end.code
    return 0


def start(command, *words, stderr=subprocess.DEVNULL, cache=None, **more):
    """A command that runs in a process of its own, with its graphs below the folder ``cache``."""
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    arguments = [sys.executable, "-m", f"var_transformer.{command}", *map(str, words)]
    return subprocess.Popen(arguments, env=environment, stderr=stderr, text=True, **more)
