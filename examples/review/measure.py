"""Count what comes by on the blackboard, and how long each file took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from examples.review.syntax import printable

STAGES = {
    "SourceFile": "files read",
    "ComplexityReport": "complexity",
    "RiskReport": "risks",
    "DocsReport": "docstrings",
    "DuplicationReport": "duplication",
    "FileReview": "joined per file",
}
"""What is counted up to the number of files, in the order in which it happens."""


class Seen(Protocol):
    """The part of an artifact that is looked at."""

    @property
    def id(self) -> object:
        """What tells this artifact from all others."""
        ...

    @property
    def type(self) -> str:
        """The name of the artifact's type."""
        ...

    @property
    def payload(self) -> Mapping[str, Any]:
        """The model's fields as plain data."""
        ...

    @property
    def created_at(self) -> datetime:
        """When it was published, in UTC."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What the run was and how fast it went."""

    root: str
    listed: int
    """How many files were to be reviewed."""
    started_at: datetime
    setup_s: float
    """From the start of the script until the first request was on the board."""
    work_s: float
    """From there until the tree report was there."""
    counts: Mapping[str, int]
    latency_p50_s: float
    """From a file being read to its four reports being joined; includes queueing."""
    latency_p95_s: float
    left_out: tuple[str, ...] = ()
    """What was not even listed, in words."""

    @property
    def files(self) -> int:
        """How many files went all the way through."""
        return self.counts.get("FileReview", 0)

    @property
    def artifacts(self) -> int:
        """How many artifacts were on the board in all."""
        return sum(self.counts.values())

    @property
    def files_per_s(self) -> float:
        """Files reviewed per second of work."""
        return self.files / max(self.work_s, 1e-9)

    @property
    def artifacts_per_s(self) -> float:
        """Artifacts published per second of work."""
        return self.artifacts / max(self.work_s, 1e-9)


@dataclass
class Tracker:
    """What has been seen so far of one review of `total` files."""

    total: int
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _ids: set[object] = field(default_factory=set)
    _read_at: dict[str, datetime] = field(default_factory=dict)
    _joined_at: dict[str, datetime] = field(default_factory=dict)

    def observe(self, artifact: Seen) -> None:
        """Take note of one artifact; a second sight of the same one is nothing new."""
        if artifact.id in self._ids:
            return
        self._ids.add(artifact.id)
        kind = artifact.type.rpartition(".")[2]
        self.counts[kind] += 1
        if kind == "SourceFile":
            self._read_at[artifact.payload["path"]] = artifact.created_at
        elif kind == "FileReview":
            self._joined_at[artifact.payload["path"]] = artifact.created_at
        elif kind == "WorkflowError":
            self.errors.append(describe_error(artifact.payload))

    @property
    def is_complete(self) -> bool:
        """Whether the last artifact of the review has come."""
        return self.counts["TreeReport"] > 0

    def latencies_s(self) -> list[float]:
        """Seconds from read to joined of every file that got that far, ascending."""
        return sorted(
            max(0.0, (joined - self._read_at[path]).total_seconds())
            for path, joined in self._joined_at.items()
            if path in self._read_at
        )


def describe_error(payload: Mapping[str, Any]) -> str:
    """Put a WorkflowError in one line."""
    agent = payload.get("failed_agent", "an agent")
    kind = payload.get("error_type", "error")
    return printable(f"{agent}: {kind}: {payload.get('error_message', '')}").strip()


def percentile(ascending: list[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of all values don't exceed; 0 if none."""
    if not ascending:
        return 0.0
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
