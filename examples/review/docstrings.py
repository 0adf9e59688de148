"""Public modules, classes, functions and methods without a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from examples.review.syntax import Function
from examples.review.types import MissingDoc

_EXEMPT_DECORATORS = frozenset({"overload", "override", "setter", "deleter"})


def public_names(tree: ast.Module, path: str) -> Iterator[tuple[MissingDoc, bool]]:
    """Yield every public name of a module and whether it has a docstring.

    Names that begin with an underscore are private, and so is all that is in them; so
    are functions within functions. Overloads, overrides and property setters say
    nothing of their own, and an empty module has nothing to say.
    """
    stem = PurePosixPath(path).stem
    if tree.body and (not stem.startswith("_") or stem in {"__init__", "__main__"}):
        has_doc = ast.get_docstring(tree, clean=False) is not None
        yield MissingDoc(kind="module", name=stem, line=1), has_doc
    pending: list[tuple[Iterable[ast.stmt], str]] = [(tree.body, "")]
    while pending:
        statements, prefix = pending.pop()
        for node in _definitions(statements):
            if node.name.startswith("_") or _is_exempt(node):
                continue
            has_doc = ast.get_docstring(node, clean=False) is not None
            name = prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield MissingDoc(kind="class", name=name, line=node.lineno), has_doc
                pending.append((node.body, f"{name}."))
            elif prefix:
                yield MissingDoc(kind="method", name=name, line=node.lineno), has_doc
            else:
                yield MissingDoc(kind="function", name=name, line=node.lineno), has_doc


def _definitions(statements: Iterable[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Definitions of one level, also those under `if` and `try`."""
    stack = list(statements)
    while stack:
        node = stack.pop()
        if isinstance(node, Function | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If):
            stack += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try | ast.TryStar):
            stack += [*node.body, *node.orelse, *node.finalbody]
            stack += [inner for handler in node.handlers for inner in handler.body]


def _is_exempt(node: Function | ast.ClassDef) -> bool:
    return any(_last_name(decorator) in _EXEMPT_DECORATORS for decorator in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
