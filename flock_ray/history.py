"""What publishers were told, as a file: one JSON object per line, for `flock verify --history`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact

__all__ = ["History"]


class History:
    """Notes acknowledged artifacts. No payloads, and no fsync: it outlives this process, not the machine."""

    def __init__(self, path: str | Path, board: str) -> None:
        """Append to a file, which several processes may share."""
        self._path = Path(path)
        self._board = board

    def accepted(self, artifacts: Sequence[Artifact]) -> None:
        """Note that the board has acknowledged these artifacts."""
        at = datetime.now(UTC).isoformat()
        lines = [
            json.dumps({"op": "accepted", "board": self._board, "at": at, "id": a.id.hex, "type": a.type})
            for a in artifacts
        ]
        if lines:
            with self._path.open("a") as file:
                file.write("\n".join(lines) + "\n")
