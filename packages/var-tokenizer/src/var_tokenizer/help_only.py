"""``--help`` without MindSpore, whose import takes seconds: a stand-in that nothing computes with.

Nearly every module imports MindSpore at its top, and a command's settings lie among what they set.
Printing them needs the classes of settings alone. So where the command line asks for help, which
ends the process, ``mindspore`` is a module whose every name is a ``_StandIn``: it can be a
decorator, a base class or a part of a type, which is all that modules do with it when imported.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from types import ModuleType

_PYTHONS = ("python", "python3")  # after them, var_train.launch has the words of another command


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether a command with these arguments ends with its help, or with what is wrong in them."""
    own = takewhile(lambda word: word not in _PYTHONS, words)
    return not {"-h", "--help", "--help-all"}.isdisjoint(own)


def leave_out_mindspore() -> None:
    """Lets later imports of MindSpore find the stand-in; without effect if it is not installed."""
    with suppress(PackageNotFoundError):
        sys.meta_path.insert(0, _Finder(version("mindspore")))


class _StandIn:
    """What a module finds under any name of MindSpore."""

    def __getattr__(self, name: str) -> "_StandIn":
        if name.startswith("__"):  # Python asks for these to find out what an object can do
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> "_StandIn":
        return self

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()

    def __or__(self, other: object) -> "_StandIn":
        return self

    __ror__ = __getitem__ = __or__


class _Module(ModuleType):
    """MindSpore, or any module inside of it."""

    def __init__(self, name: str, release: str) -> None:
        super().__init__(name)
        self.__file__, self.__version__ = "", release

    def __getattr__(self, name: str) -> _StandIn:
        return getattr(_StandIn(), name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, release: str) -> None:
        self._release = release

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        is_mindspore = name.partition(".")[0] == "mindspore"
        return ModuleSpec(name, self, is_package=True) if is_mindspore else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name, self._release)

    def exec_module(self, module: ModuleType) -> None:
        pass
