"""Limits of one shard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """Limits of one shard."""

    max_artifacts: int | None = None
    """Artifacts kept in memory; None: no limit."""
    max_open: int = 200_000
    """Open activations past which publishers are told to wait."""
    max_inbox_bytes: int = 256 * 1024 * 1024
    """Bytes of commands waiting past which publishers are told to wait."""
    inline_payload_bytes: int = 100_000
    """Larger payloads do not stay in memory: they are held by a `PayloadStore`."""
    report_every_s: float = 0.02
    """Shortest time between two reports of demand to the router."""
    snapshot_bytes: int = 1024 * 1024
    """Bytes of journal after which slots are snapshotted and the journal is cut."""
