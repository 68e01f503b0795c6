"""Which fields of configurations are read, found in the sources by the types of expressions.

A field that no line reads is an option that does nothing. Its name alone does not tell, since
other classes have fields of that name. So types are followed from the annotations of fields,
parameters and results: a container counts as what it holds, and an unknown call as what goes into
it. Reads in a class's own validation do not count; ``f(**asdict(x))`` reads all fields of x.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Types = frozenset[str]
NONE: Types = frozenset()


@dataclass
class Class:
    """What is known of a class. validates: its methods that only check it."""

    name: str
    bases: tuple[str, ...]
    is_configuration: bool
    fields: dict[str, Types] = field(default_factory=dict)
    attributes: dict[str, Types] = field(default_factory=lambda: defaultdict(frozenset))
    validates: frozenset[str] = frozenset()


class Sources:
    """The modules ``texts``; ``reads`` holds (class, field) for every field that is read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.trees = [ast.parse(text) for text in texts]
        self.classes: dict[str, Class] = {}
        self.returns: dict[str, Types] = defaultdict(frozenset)
        self.reads: set[tuple[str, str]] = set()
        definitions = []
        for tree in self.trees:
            of_command = any(getattr(node, "name", "") == "main" for node in tree.body)
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                bases = tuple(b.id for b in node.bases if isinstance(b, ast.Name))
                validated = any(getattr(m, "name", "") == "__post_init__" for m in node.body)
                configures = _is_dataclass(node) and (of_command or validated)
                self.classes[node.name] = Class(node.name, bases, configures)
                definitions.append(node)
        for node in definitions:
            self._declare(node)
        for node in (n for tree in self.trees for n in ast.walk(tree)):
            if isinstance(node, ast.FunctionDef):
                self.returns[node.name] |= self._annotated(node.returns)
        for _ in range(3):  # attributes of self are known only once their values are
            self.reads.clear()
            for tree in self.trees:
                _Reader(self, None, "", {}).visit_all(tree.body)

    def unread(self) -> set[tuple[str, str]]:
        """(class, field) of what nothing reads."""
        return self.fields() - self.reads

    def fields(self) -> set[tuple[str, str]]:
        """(class, field) of all configurations.

        Those are the dataclasses that validate what they are built from, and those of the modules
        with a command.
        """
        return {(c.name, f) for c in self.classes.values() if c.is_configuration for f in c.fields}

    def owner(self, name: str, attribute: str) -> Class | None:
        """The class that defines an attribute: ``name`` or the nearest of its bases."""
        found = self.classes.get(name)
        if found is None:
            return None
        if attribute in found.fields or attribute in found.attributes:
            return found
        return next((o for b in found.bases if (o := self.owner(b, attribute))), None)

    def _declare(self, node: ast.ClassDef) -> None:
        known = self.classes[node.name]
        methods = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                known.fields[item.target.id] = self._annotated(item.annotation)
        for name, method in methods.items():
            known.attributes[name] |= self._annotated(method.returns)
        calls = {name: _own_calls(method) for name, method in methods.items()}
        validates = {n for n in methods if n == "__post_init__" or n.strip("_").startswith("check")}
        for _ in methods:  # and what is called from there alone
            validates |= {
                name
                for name in methods
                if name.startswith("_")  # others may be called by other classes, too
                and (callers := {c for c in calls if name in calls[c]})
                and callers <= validates
            }
        known.validates = frozenset(validates)

    def _annotated(self, annotation: ast.expr | None) -> Types:
        """The classes that an annotation names."""
        if annotation is None:
            return NONE
        found = set()
        for node in ast.walk(annotation):
            if isinstance(node, ast.Constant):  # names in quotes
                found.update(re.findall(r"\w+", str(node.value)))
            elif isinstance(node, ast.Name | ast.Attribute):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
        return frozenset(found & self.classes.keys())


class _Reader:
    """Goes through one body with the types of its names; notes the fields that are read."""

    def __init__(
        self, sources: Sources, owner: Class | None, method: str, names: dict[str, Types]
    ) -> None:
        self.sources, self.owner, self.method, self.names = sources, owner, method, names

    def visit_all(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef):
            known = self.sources.classes[node.name]
            for item in node.body:
                _Reader(self.sources, known, "", dict(self.names)).visit(item)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._enter(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, ast.AnnAssign):
            self.types(node.value) if node.value else None
            self._set(node.target, self.sources._annotated(node.annotation))
        elif isinstance(node, ast.For):
            self._set(node.target, self.types(node.iter))
            self.visit_all([*node.body, *node.orelse])
        elif isinstance(node, ast.With):
            for item in node.items:
                types = self.types(item.context_expr)
                if item.optional_vars is not None:
                    self._set(item.optional_vars, types)
            self.visit_all(node.body)
        elif isinstance(node, ast.expr):
            self.types(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.visit(child)

    def types(self, node: ast.expr) -> Types:
        """The classes that an expression may be of, or hold."""
        if isinstance(node, ast.Name):
            own = frozenset({node.id}) & self.sources.classes.keys()
            return self.names.get(node.id, NONE) | own
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            inner = _Reader(self.sources, self.owner, self.method, dict(self.names))
            for part in node.generators:
                inner._set(part.target, inner.types(part.iter))
                for test in part.ifs:
                    inner.types(test)
            if isinstance(node, ast.DictComp):
                return inner.types(node.key) | inner.types(node.value)
            return inner.types(node.elt)
        if isinstance(node, ast.Lambda):
            inner = _Reader(self.sources, self.owner, self.method, dict(self.names))
            inner.types(node.body)
            return NONE
        if isinstance(node, ast.NamedExpr):
            self._set(node.target, found := self.types(node.value))
            return found
        found = [self.types(child) for child in _expressions(node)]
        if isinstance(node, ast.Compare | ast.JoinedStr | ast.BinOp | ast.UnaryOp):
            return NONE
        return frozenset().union(*found)

    def _attribute(self, node: ast.Attribute) -> Types:
        found = NONE
        for name in self.types(node.value):
            owner = self.sources.owner(name, node.attr)
            if owner is None:
                continue
            if node.attr in owner.fields:
                inside = self.owner is not None and self.owner.name in (name, owner.name)
                if not (inside and self.method in self.owner.validates):
                    self.sources.reads.add((owner.name, node.attr))
                found |= owner.fields[node.attr]
            found |= owner.attributes.get(node.attr, NONE)
        return found

    def _call(self, node: ast.Call) -> Types:
        arguments = frozenset().union(
            *(self.types(a) for a in (*node.args, *(k.value for k in node.keywords)))
        )
        for keyword in node.keywords:
            if (
                keyword.arg is None
                and getattr(getattr(keyword.value, "func", 0), "id", "") == "asdict"
            ):
                for name in self.types(keyword.value) & self.sources.classes.keys():
                    self.sources.reads |= {(name, f) for f in self.sources.classes[name].fields}
        if isinstance(node.func, ast.Name):
            name = node.func.id
            if name == "cls" and self.owner is not None:
                return frozenset({self.owner.name})
            if name in self.sources.classes:
                return frozenset({name})
            if name in self.sources.returns:
                return self.sources.returns[name]
            return self.names.get(name, NONE) | arguments
        if isinstance(node.func, ast.Attribute):
            known = self.types(node.func)
            if self.types(node.func.value):
                return known
            if node.func.attr in self.sources.returns:
                return self.sources.returns[node.func.attr] | arguments
        return arguments

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        pairs = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if pairs and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._bind(one, other)
        else:
            self._set(target, self.types(value))

    def _set(self, target: ast.expr, types: Types) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = types
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._set(part, types)
        elif isinstance(target, ast.Starred):
            self._set(target.value, types)
        elif (
            isinstance(target, ast.Attribute) and self.owner is not None and _is_self(target.value)
        ):
            self.owner.attributes[target.attr] |= types

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        method = self.method or node.name if self.owner else ""
        names = dict(self.names)
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in every:
            names[argument.arg] = self.sources._annotated(argument.annotation)
        if self.owner is not None and not self.method and every and every[0].arg in ("self", "cls"):
            names[every[0].arg] = frozenset({self.owner.name})
        for default in (*arguments.defaults, *(d for d in arguments.kw_defaults if d)):
            self.types(default)
        _Reader(self.sources, self.owner, method, names).visit_all(node.body)


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(getattr(n, "id", getattr(n, "attr", "")) == "dataclass" for n in names)


def _own_calls(method: ast.FunctionDef) -> set[str]:
    """Names of the methods of ``self`` that a method mentions."""
    return {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute) and _is_self(n.value)}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        elif not isinstance(child, ast.expr_context | ast.operator | ast.cmpop):
            yield from _expressions(child)
