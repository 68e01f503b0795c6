"""A plug-in of mypy, which knows the class of what an attribute is read of.

Appends a line for each read, ``FILE:LINE:CLASS:NAME``, to the file ``reads`` beside mypy's
configuration. ``f(**asdict(x))`` reads all fields of x: their name is then ``*``.
"""

import linecache
import re
from collections.abc import Callable
from pathlib import Path

from mypy.plugin import AttributeContext, FunctionContext, Plugin
from mypy.types import Instance, Type, get_proper_type


class FieldReads(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type]:
        def note(context: AttributeContext) -> Type:
            self._note(context, *fullname.split(".")[-2:])
            return context.default_attr_type

        return note

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        return self._note_asdict if fullname == "dataclasses.asdict" else None

    def _note_asdict(self, context: FunctionContext) -> Type:
        call, argument = context.context, get_proper_type(context.arg_types[0][0])
        before = linecache.getline(context.api.path, call.line)[: call.column]
        if re.search(r"(\(|, |^ *)\*\*$", before) and isinstance(argument, Instance):
            self._note(context, argument.type.name, "*")
        return context.default_return_type

    def _note(self, context: AttributeContext | FunctionContext, owner: str, name: str) -> None:
        with Path(self.options.config_file).with_name("reads").open("a") as file:
            file.write(f"{context.api.path}:{context.context.line}:{owner}:{name}\n")


def plugin(version: str) -> type[Plugin]:
    return FieldReads
