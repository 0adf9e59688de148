"""What a bench's own processes cost: CPU and memory by role, read from /proc.

Only descendants of the bench count: other Ray clusters on the machine have other ancestors.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command name (it may hold spaces); [] when gone."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def role_of(pid: int) -> str:
    """Name a process: an actor's class, `idle` for a Ray worker without an actor, or the program's name."""
    try:
        title = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").split(".")[0].split("(")[0].split()[0]
        return "idle" if name.startswith("IDLE") else name
    program = Path(title.split(" ", 1)[0]).name
    return program if program in ("raylet", "gcs_server") else "ray other"


def descendants(root: int) -> dict[int, str]:
    """Return pid -> role of every process below `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else []
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry))
    below: dict[int, str] = {}
    pending = [root]
    while pending:
        for child in children.get(pending.pop(), []):
            below[child] = role_of(child)
            pending.append(child)
    return below


def roles() -> dict[int, str]:
    """Return pid -> role of this process (`driver`) and all below it."""
    return {os.getpid(): "driver", **descendants(os.getpid())}


def count_actors(part: str) -> int:
    """Return how many live actor processes have `part` in their class name, in any case."""
    named = (role for role in descendants(os.getpid()).values() if role[:1].isupper())
    return sum(part.lower() in role.lower() for role in named)


def pss_bytes(pid: int) -> int:
    """Return a process's memory with shared pages divided among their users; 0 when it is gone."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def memory_by_role() -> dict[str, int]:
    """Return PSS bytes summed by role."""
    sums: dict[str, int] = {}
    for pid, role in roles().items():
        sums[role] = sums.get(role, 0) + pss_bytes(pid)
    return sums


class CpuMeter:
    """CPU seconds that each role has used since the meter was made."""

    def __init__(self) -> None:
        self._start = self._read()

    def _read(self) -> dict[tuple[int, str], float]:
        seconds = {}
        for pid, role in roles().items():
            fields = _stat(pid)
            if fields:
                seconds[pid, role] = (int(fields[11]) + int(fields[12])) * _TICK_S
        return seconds

    def microseconds_per(self, count: int) -> dict[str, float]:
        """Return microseconds of CPU per item by role, largest first; roles below 0.5 are left out."""
        sums: dict[str, float] = {}
        for (pid, role), seconds in self._read().items():
            sums[role] = sums.get(role, 0.0) + seconds - self._start.get((pid, role), 0.0)
        per_item = {role: round(seconds / count * 1e6, 2) for role, seconds in sums.items()}
        return {role: cost for role, cost in sorted(per_item.items(), key=lambda kv: -kv[1]) if cost >= 0.5}


class ActorWatch:
    """Notes the largest number of live actor processes of a kind while the `with` block runs."""

    def __init__(self, part: str, period_s: float = 0.2) -> None:
        self.peak = 0
        self._part = part
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, count_actors(self._part))
            if self._stop.wait(self._period_s):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
