"""The PyTorch reference without MindSpore, for the peers' processes.

``var_convert.reference`` shares the configuration classes of the packages, and their import would
bring MindSpore, which is not in the peers' environments: its 350 MiB would count as the peer's.
Nothing of it is called there, so importing this module puts classes without content in its place.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Absent(type):
    """A class whose attributes and calls all give the class itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *_: object, **__: object) -> Any:
        return cls


class _Nothing(metaclass=_Absent):
    pass


class _EmptyModule(ModuleType):
    __file__ = __file__
    __version__ = "2.10.0"  # one that the packages take

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _EmptyMindSpore(MetaPathFinder, Loader):
    """Finds an empty module for ``mindspore`` and for every module below it."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.split(".")[0] == "mindspore" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(path) for path in ROOT.glob("packages/*/src")]
sys.meta_path.insert(0, _EmptyMindSpore())

from var_convert import convert
from var_convert.reference import TorchTokenizer, TorchTransformer, torch_generate
from var_tokenizer import TokenizerConfig
from var_transformer import TransformerConfig

del sys.meta_path[0]
for name in [name for name in sys.modules if name.split(".")[0] == "mindspore"]:
    del sys.modules[name]

__all__ = [
    "TokenizerConfig",
    "TorchTokenizer",
    "TorchTransformer",
    "TransformerConfig",
    "convert",
    "torch_generate",
]
