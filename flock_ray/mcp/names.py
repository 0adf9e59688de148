"""Names of tools as models accept them: at most 64 letters, digits, `_` and `-`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

__all__ = ["MAX_NAME", "tool_names"]

MAX_NAME = 64
"""The shortest limit among the providers (OpenAI)."""

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")


def tool_names(server: str, tools: Iterable[str]) -> dict[str, str]:
    """Return the name under which a model sees each tool of a server: `{server}__{tool}`.

    Characters that models refuse become `_`. A name that is too long, or is taken by another tool of the
    server, ends in a hash. The result depends on which tools there are, not on their order.

    Args:
        server: Its name in the flock: no `__` in it and no `_` at its end, so that no two servers meet.
        tools: Names that the server uses.
    """
    full = {tool: f"{server}__{tool}" for tool in tools}
    clean = {tool: _FORBIDDEN.sub("_", name) for tool, name in full.items()}
    taken = Counter(clean.values())
    names: dict[str, str] = {}
    for tool, name in clean.items():
        is_own = name == full[tool] or taken[name] == 1
        names[tool] = name if is_own and len(name) <= MAX_NAME else _hashed(name, full[tool])
    return names


def _hashed(name: str, full: str) -> str:
    mark = blake2b(full.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    return f"{name[: MAX_NAME - len(mark) - 1]}_{mark}"
