"""Hard-coded secrets: well-known token formats, and names that promise a secret."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator

from examples.review.syntax import printable

_SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|pwd|passphrase|secret|secret_?key|api_?key|access_?key|private_?key"
    r"|auth_?token|access_?token|token)$"
)
_PASSWORD_NAME = re.compile(r"(password|passwd|pwd|passphrase)$")
_PLACEHOLDER = re.compile(
    r"changeme|change[-_]me|example|placeholder|dummy|your[-_]|redacted|xxx|\*\*\*|\.\.\.|^<.*>$|[{$%]"
    r"|^https?:|^(.)\1*$",
    re.IGNORECASE,
)
_KNOWN_FORMATS = {
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "API key in OpenAI's format": re.compile(r"\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}"),
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}"),
}
_MIN_LENGTH = 8
_MIN_ENTROPY = 2.5
"""Bits per character: words that stand for themselves are mostly below, keys above."""


def find_secrets(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line of each suspected secret of one node, and what it looks like.

    The secret itself is never yielded: a report that quotes it would be a leak.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for label, pattern in _KNOWN_FORMATS.items():
            if pattern.search(node.value):
                yield node.lineno, f"a string in the format of a {label}"
    for name, value in _named_values(node):
        literal = value.value if isinstance(value, ast.Constant) else None
        if isinstance(literal, str) and _looks_secret(name, literal):
            yield value.lineno, f"{printable(name)!r} is set to a literal"


def _named_values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield names with the expressions they are given."""
    if isinstance(node, ast.Assign):
        yield from ((_name_of(target), node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value:
        yield _name_of(node.target), node.value
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        keys = [str(key.value) if isinstance(key, ast.Constant) else "" for key in node.keys]
        yield from zip(keys, node.values, strict=True)
    elif isinstance(node, ast.arguments):
        yield from _defaults(node)


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    for argument, default in zip(positional[first:], arguments.defaults, strict=True):
        yield argument.arg, default
    for argument, maybe in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if maybe is not None:
            yield argument.arg, maybe


def _name_of(target: ast.expr) -> str:
    if isinstance(target, ast.Attribute):
        return target.attr
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        return str(target.slice.value)
    return target.id if isinstance(target, ast.Name) else ""


def _looks_secret(name: str, value: str) -> bool:
    name = name.lower().replace("-", "_")
    if not _SECRET_NAME.search(name):
        return False
    if len(value) < _MIN_LENGTH or any(char.isspace() for char in value) or _PLACEHOLDER.search(value):
        return False
    if not any(char.isdigit() for char in value) and not _PASSWORD_NAME.search(name):
        return False
    return value.lower() != name and _entropy(value) >= _MIN_ENTROPY


def _entropy(value: str) -> float:
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
