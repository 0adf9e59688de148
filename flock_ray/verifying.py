"""`flock verify`: the guarantees, checked over a stored board and what its publishers were told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flock_ray.core.ids import owned_slots
from flock_ray.core.retention import RetentionPolicy
from flock_ray.core.rows import ArtifactQuery
from flock_ray.core.verify import Verifier, Violation
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.ports import Persistence, ShardStore

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify_board` found."""

    artifacts: int
    activations: int
    acknowledged: int
    """Publishes in the history; 0 without one."""
    violations: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing contradicts the guarantees."""
        return not self.violations


async def verify_board(persistence: Persistence, board: str, *, history: str | Path | None = None) -> Verdict:
    """Read a stored board and check the guarantees over it; changes nothing, and takes no shard's right to write.

    While the board runs, the newest work may look unfinished: verify a board that is idle.

    Args:
        persistence: Where the board is kept.
        board: Its name (the namespace).
        history: A file that `Flock(history=...)` wrote; None: only what is stored is checked.

    Raises:
        ConfigurationError: There is no such board, or the history can't be read.
        StoreCorruptError: A checksum does not fit; says where.
        StoreUnavailableError: The store does not answer; retryable.
    """
    num_shards = await persistence.find(board)
    if num_shards is None:
        raise ConfigurationError(f"There is no board {board!r} here. Name it with --board.")
    retention = getattr(persistence, "retention", None)
    verifier = Verifier(
        num_shards, complete=retention is None or retention.policy == RetentionPolicy.KEEP_ALL
    )
    stores = [persistence.store(board, i, owned_slots(i, num_shards)) for i in range(num_shards)]
    try:
        for shard, store in enumerate(stores):
            await _read_shard(verifier, shard, store, stores)
    finally:
        for store in stores:
            await store.close()
    acknowledged = list(read_history(history, board)) if history is not None else []
    verifier.acknowledged(acknowledged)
    return Verdict(verifier.num_artifacts, verifier.num_activations, len(acknowledged), verifier.finish())


async def _read_shard(verifier: Verifier, shard: int, store: ShardStore, stores: list[ShardStore]) -> None:
    workflows: dict[str, None] = {}
    after = 0
    while page := await store.read(ArtifactQuery(), after, PAGE):
        after = page[-1][0]
        verifier.artifacts(shard, page)
        workflows.update(dict.fromkeys(envelope.correlation_id for _, envelope in page))
        for other in stores:  # a gate that consumed them may be anywhere
            verifier.activations(await other.consumptions([envelope.id for _, envelope in page]))
    names = list(workflows)
    for start in range(0, len(names), PAGE):
        verifier.workflows(await store.workflows(names[start : start + PAGE]))


def read_history(path: str | Path, board: str) -> Iterable[bytes]:
    """Return the ids of the artifacts that publishers of a board were told are accepted.

    Raises:
        ConfigurationError: A line is no history; a last line that is cut off is ignored.
    """
    lines = Path(path).read_text().split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            if entry["board"] == board and entry["op"] == "accepted":
                yield bytes.fromhex(entry["id"])
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"Line {number} of {path} is no history of a board.") from None
