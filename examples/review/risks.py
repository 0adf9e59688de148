"""Risky calls and habits, found in the syntax tree rather than in the text.

Names are resolved through the imports of the file, so `from os import system as s; s(x)`
is found and `model.eval()` is not. What is found is a place to look at, not a verdict:
the tree does not tell where data comes from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from examples.review.credentials import find_secrets
from examples.review.syntax import (
    Function,
    dotted_name,
    import_aliases,
    is_test_path,
    snippet,
    walk_statements,
)
from examples.review.types import Finding, Severity

_SHELLS = (
    "asyncio.create_subprocess_shell",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
)
_PICKLES = ("cloudpickle", "dill", "marshal", "pickle")
_UNPICKLERS = (
    *(
        f"{module}.{name}"
        for module in ("cloudpickle", "dill", "marshal", "pickle")
        for name in ("load", "loads")
    ),
    "pickle.Unpickler",
    "shelve.open",
)
_CALLS: dict[str, tuple[str, Severity, str]] = {
    **dict.fromkeys(_SHELLS, ("shell", "high", "runs text in a shell; pass a list of arguments instead")),
    **dict.fromkeys(_UNPICKLERS, ("unpickling", "medium", "runs code from the data it reads")),
    "yaml.unsafe_load": ("yaml-load", "high", "builds any object a document names; use safe_load"),
    "yaml.unsafe_load_all": ("yaml-load", "high", "builds any object a document names; use safe_load_all"),
    "tempfile.mktemp": ("mktemp", "medium", "another process can take the name first; use mkstemp"),
    "ssl._create_unverified_context": ("no-tls-check", "high", "accepts any certificate"),
}
_SUBPROCESS = frozenset(
    f"subprocess.{name}" for name in ("Popen", "call", "check_call", "check_output", "run")
)
_SAFE_LOADERS = frozenset({"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"})
_HTTP_METHODS = frozenset({"delete", "get", "head", "options", "patch", "post", "put", "request", "stream"})
_EXECUTE = frozenset({"execute", "executemany", "executescript", "fetch", "fetchrow", "fetchval"})
_SQL = re.compile(
    r"^\s*(select|insert|update|delete|replace|create|drop|alter|truncate|with)\b", re.IGNORECASE
)
_ACKNOWLEDGED = re.compile(
    r"#\s*(nosec\b|noqa\s*(?!:)|noqa:[\w\s,]*\b(S\d+|E722|BLE001|PGH\d+)\b)", re.IGNORECASE
)
_SOFTER: dict[Severity, Severity] = {"high": "medium", "medium": "low", "low": "low"}
_UNQUOTED = {"secret": "(not shown)", "bare-except": ""}
"""Findings whose line is not quoted: it would leak, or say nothing new."""

_Hit = tuple[int, str, Severity, str]


def find_risks(text: str, tree: ast.Module, path: str) -> tuple[list[Finding], int]:
    """Find what is risky in one file.

    In test code everything counts one step less, and asserts are what tests are made of.

    Returns:
        The findings in line order, and the number of those left out because their line
        carries `# nosec` or a matching `# noqa`.
    """
    lines = text.split("\n")
    in_tests = is_test_path(path)
    findings: list[Finding] = []
    acknowledged = 0
    for line, rule, severity, message in sorted(set(_hits(tree, in_tests=in_tests))):
        if 0 < line <= len(lines) and _ACKNOWLEDGED.search(lines[line - 1]):
            acknowledged += 1
            continue
        findings.append(
            Finding(
                rule=rule,
                severity=_SOFTER[severity] if in_tests else severity,
                line=line,
                message=message,
                snippet=_UNQUOTED[rule] if rule in _UNQUOTED else snippet(lines, line),
            )
        )
    return findings, acknowledged


def _hits(tree: ast.Module, *, in_tests: bool) -> Iterator[_Hit]:
    aliases = import_aliases(tree)
    defined = {node.name for node in walk_statements(tree) if isinstance(node, Function | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted_name(node.func, aliases) or ""
            if name not in defined:
                yield from _call(node, name)
            yield from _keywords(node, name)
            yield from _sql(node)
        else:
            yield from _habits(node, in_tests=in_tests)
        for line, what in find_secrets(node):
            yield line, "secret", "high", f"{what}; read it from the environment"


def _habits(node: ast.AST, *, in_tests: bool) -> Iterator[_Hit]:
    if isinstance(node, ast.ExceptHandler) and node.type is None and not _reraises(node):
        yield node.lineno, "bare-except", "medium", "catches even Ctrl-C and exit; name the exceptions"
    elif isinstance(node, ast.Assert) and not in_tests:
        yield node.lineno, "assert", "low", "a check that `python -O` removes; raise an error"


def _call(node: ast.Call, name: str) -> Iterator[_Hit]:
    constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if name in {"eval", "exec", "builtins.eval", "builtins.exec"}:
        rule = name.removeprefix("builtins.")
        yield node.lineno, rule, "low" if constant else "high", f"{rule} runs text as code"
    elif name in _CALLS:
        rule, severity, message = _CALLS[name]
        if constant and rule == "shell":
            severity = "low"
        yield node.lineno, rule, severity, f"{name} {message}"
    elif name in {"yaml.load", "yaml.load_all"} and not _has_safe_loader(node):
        message = f"{name} without SafeLoader builds any object a document names"
        yield node.lineno, "yaml-load", "high", message


def _keywords(node: ast.Call, name: str) -> Iterator[_Hit]:
    flags = {
        keyword.arg: bool(keyword.value.value)
        for keyword in node.keywords
        if keyword.arg and isinstance(keyword.value, ast.Constant)
    }
    if name in _SUBPROCESS and flags.get("shell"):
        constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
        severity: Severity = "low" if constant else "high"
        yield node.lineno, "shell", severity, f"{name} with shell=True runs text in a shell"
    is_http = name.startswith(("requests.", "httpx.", "aiohttp.")) or (
        isinstance(node.func, ast.Attribute) and node.func.attr in _HTTP_METHODS
    )
    if is_http and flags.get("verify") is False:
        yield node.lineno, "no-tls-check", "high", "verify=False accepts any certificate"


def _has_safe_loader(node: ast.Call) -> bool:
    loaders = node.args[1:2] + [keyword.value for keyword in node.keywords if keyword.arg == "Loader"]
    return any((dotted_name(loader, {}) or "").rpartition(".")[2] in _SAFE_LOADERS for loader in loaders)


def _sql(node: ast.Call) -> Iterator[_Hit]:
    """SQL text that is put together in the call that executes it.

    Where all that is filled in are constants by name (`{TABLE}`), it is a milder case:
    table names can't be parameters.
    """
    if not (isinstance(node.func, ast.Attribute) and node.func.attr in _EXECUTE and node.args):
        return
    text, values = _assembled(node.args[0])
    if values and _SQL.match(text):
        constants = all((dotted_name(value, {}) or "x").rpartition(".")[2].isupper() for value in values)
        severity: Severity = "low" if constants else "high"
        yield node.lineno, "sql-text", severity, "SQL is built from values; pass them as parameters"


def _assembled(node: ast.expr) -> tuple[str, list[ast.expr]]:
    """Return the text that an expression starts with and the values put into it."""
    if isinstance(node, ast.JoinedStr):
        first = node.values[0] if node.values else None
        return _literal(first), [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    if isinstance(node, ast.BinOp):
        return _chained(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _literal(node.func.value), [*node.args, *(keyword.value for keyword in node.keywords)]
    return "", []


def _chained(node: ast.expr) -> tuple[str, list[ast.expr]]:
    """Take `"text" + a + b` or `"text" % a` apart."""
    values: list[ast.expr] = []
    while isinstance(node, ast.BinOp):
        values.append(node.right)
        node = node.left
    return _literal(node), [value for value in values if not isinstance(value, ast.Constant)]


def _literal(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _reraises(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
