"""How both models of the reference load the weights of a file."""

import os
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import Self  # torch brings it

from var_convert.opened_model import OpenedModel, open_model, tell_assumptions
from var_convert.published_names import Config


class Reference(nn.Module):
    """A model that files of every format load into; random weights until then."""

    kind: ClassVar[str]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The model of a .pth, .safetensors or .ckpt, as float32.

        Raises InputError for a file that does not hold exactly one model of this kind.
        """
        model = open_model(Path(path), only=cls.kind)
        tell_assumptions(model)
        return cls.of(model)

    @classmethod
    def of(cls, model: OpenedModel) -> Self:
        """An opened model of this kind, as float32."""
        with torch.device("meta"):  # no random weights that would be overwritten at once
            module = cls(model.config)
        state = model.as_dtype("F32").published()
        copies = {name: torch.tensor(entry.array()) for name, entry in state.items()}
        module.load_state_dict(copies, strict=True, assign=True)
        return module
