"""Parse Python without ever raising, and ask simple things of the tree.

Nothing here recurses: real trees hold generated expressions thousands of terms deep.
"""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath

from examples.review.types import SourceFile

Function = ast.FunctionDef | ast.AsyncFunctionDef
MAX_SNIPPET = 110

# `warnings.catch_warnings` swaps process-wide state, and agents of one worker are threads.
_parsing = threading.Lock()


def parse_python(source: SourceFile) -> ast.Module | str:
    """Parse a Python file, or say in a few words why it is not analysed."""
    if not source.is_read:
        return source.note
    if source.language != "Python":
        return f"not analysed: {source.language} is only counted"
    try:
        with _parsing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source.text)
    except SyntaxError as error:
        return f"does not parse: line {error.lineno or 1}: {printable(error.msg)}"
    except ValueError as error:
        return f"does not parse: {printable(str(error))}"
    except (RecursionError, MemoryError):
        return "does not parse: nested too deeply for Python's parser"


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Walk the body of a function without entering functions and classes inside it."""
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef):
            stack.extend(ast.iter_child_nodes(node))


def child_statements(node: ast.AST) -> list[ast.stmt]:
    """List the statements directly inside a node, also those in its handlers and cases."""
    found: list[ast.stmt] = []
    for name in ("body", "orelse", "finalbody"):
        part = getattr(node, name, None)
        if isinstance(part, list):
            found += part
    for branch in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        found += branch.body
    return found


def walk_statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Walk all statements, and none of the many expressions in them."""
    stack = child_statements(tree)
    while stack:
        node = stack.pop()
        yield node
        stack += child_statements(node)


def dotted_name(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """Resolve `sp.run` to `subprocess.run` by the imports of the file; None if no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    parts.append(aliases.get(node.id, node.id))
    return ".".join(reversed(parts))


def import_aliases(tree: ast.Module) -> dict[str, str]:
    """Map every imported local name to the dotted name that it stands for."""
    aliases: dict[str, str] = {}
    for node in walk_statements(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                top = item.name.partition(".")[0]
                aliases[item.asname or top] = item.name if item.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for item in node.names:
                aliases[item.asname or item.name] = f"{node.module}.{item.name}"
    return aliases


def is_test_path(path: str) -> bool:
    """Whether a path looks like test code, by the habits of pytest and unittest."""
    name = PurePosixPath(path)
    return (
        bool({"test", "tests", "testing"} & set(name.parts[:-1]))
        or name.name.startswith("test_")
        or name.stem.endswith("_test")
        or name.name == "conftest.py"
    )


def printable(text: str) -> str:
    """Make one safe line of a text: no control characters, no terminal escapes."""
    return "".join(char if char.isprintable() else " " for char in text)


def snippet(lines: list[str], line: int) -> str:
    """Quote one line, cut to a length that fits a table."""
    quoted = printable(lines[line - 1]).strip() if 0 < line <= len(lines) else ""
    return quoted if len(quoted) <= MAX_SNIPPET else quoted[: MAX_SNIPPET - 1] + "…"
