"""The PyTorch reference without MindSpore, for the peers' processes.

``var_convert.reference`` shares the configuration classes of the packages, and their import would
bring MindSpore, which is not in the peers' environments: its 350 MiB would count as the peer's.
Nothing of it is called there, so importing this module puts classes without content in its place.
"""

import sys
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

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


ABSENT = ("mindspore", "mindspore.ops", "mindspore.graph", "mindspore.train")
sys.modules.update({name: _EmptyModule(name) for name in ABSENT})
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(path) for path in ROOT.glob("packages/*/src")]

from var_convert import convert
from var_convert.reference import TorchTokenizer, TorchTransformer, torch_generate
from var_tokenizer import TokenizerConfig
from var_transformer import TransformerConfig

for name in ABSENT:
    del sys.modules[name]

__all__ = [
    "TokenizerConfig",
    "TorchTokenizer",
    "TorchTransformer",
    "TransformerConfig",
    "convert",
    "torch_generate",
]
