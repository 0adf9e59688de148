"""The Lua scripts: each is one atomic step on the server, and checks who asks before it writes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files

__all__ = ["ACQUIRE", "APPEND", "BOARD", "CHANGE", "HEAD", "RELEASE", "SNAPSHOTS", "TRUNCATE", "Script"]


@dataclass(frozen=True)
class Script:
    """Text of a script and the name that Redis knows it by."""

    text: str
    sha: str


def _script(name: str, first_line: str = "") -> Script:
    text = first_line + files("flock_ray.adapters").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ACQUIRE = _script("acquire")
APPEND = _script("append")
BOARD = _script("board")
HEAD = _script("head")
SNAPSHOTS = _script("snapshots")
TRUNCATE = _script("truncate")
CHANGE = _script("change", "#!lua\n")
"""Guarded changes that may need memory: refused before the first write when it is full."""
RELEASE = _script("change", "#!lua flags=allow-oom\n")
"""Guarded changes that free memory: done also when it is full."""
