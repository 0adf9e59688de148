"""What shards and workers tell the router. As in `core.wire`, a field is only ever added at the end, with a default."""

from __future__ import annotations

import msgspec


class AgentDemand(msgspec.Struct, array_like=True, frozen=True):
    """How much work of one agent a shard has."""

    agent: str
    ready: int
    running: int
    oldest_us: int = 0
    """Creation of the oldest ready activation; 0 when there is none."""


class ShardReport(msgspec.Struct, array_like=True):
    """What a shard tells the router."""

    shard: int
    table_version: int
    now_us: int
    demand: list[AgentDemand]
    workers: tuple[str, ...] = ()
    """Workers it knows: how a new router finds them."""
    grant_seq: int = 0
    """Number of the permits it holds; 0 when it has none, or not all of a batch any more."""
    has_agents: bool = True
    """It has the packages of its table's agents; not so after a recovery: the journal keeps no code."""


class WorkerLoad(msgspec.Struct, array_like=True):
    """What a worker tells the router with every heartbeat."""

    worker: str
    queued: int = 0
    running: dict[str, int] = {}
    mean_run_us: dict[str, int] = {}
    stuck_threads: int = 0
    user_loop_blocked_s: float = 0.0
    rss_bytes: int = 0
