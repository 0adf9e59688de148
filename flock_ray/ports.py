"""Ports: what the hosts need from the world outside. Adapters and test hosts implement them."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from flock_ray.core.definition import AgentDefinition
from flock_ray.core.records import Record

__all__ = ["Clock", "DefinitionCodec", "Journal", "PeerGoneError", "Peers", "RouterLink", "ShardLink", "Spawner",
           "WorkerLink"]  # fmt: skip


class PeerGoneError(Exception):
    """The process on the other end does not answer this call: it is dead, restarts, or is cut off."""

    def __init__(self, message: str = "", *, final: bool = False) -> None:
        """Say who, and whether it is known that it never comes back."""
        super().__init__(message)
        self.final = final


class Clock(Protocol):
    """Wall time, for a shard's `now` and the creation time of artifacts."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch."""
        ...


class Journal(Protocol):
    """The ordered, append-only record of a shard's decisions."""

    mode: str
    """Name of the durability: `memory` keeps nothing beyond the process."""

    async def append(self, records: Sequence[Record]) -> None:
        """Make records durable, all or none, in order.

        Raises:
            StoreUnavailableError: Nothing is known to be written; retryable with the same records.
            StaleEpochError: Another shard owns the slots now; final.
        """
        ...


class DefinitionCodec(Protocol):
    """Carries agent definitions, user code included, to workers and edges."""

    def dump(self, definition: AgentDefinition) -> bytes:
        """Encode one agent.

        Raises:
            AgentNotPicklableError: Something it refers to can't leave this process.
        """
        ...

    def load(self, data: bytes) -> AgentDefinition:
        """Decode one agent."""
        ...


class ShardLink(Protocol):
    """A shard as others see it. Every call raises PeerGoneError when the shard is dead."""

    def publish(self, blob: bytes) -> Awaitable[bytes]:
        """Send a PublishBatch; answers with a PublishReply once it is durable."""
        ...

    def complete(self, blob: bytes) -> Awaitable[bytes]:
        """Send a CompleteBatch; answers with a CompleteReply once it is durable."""
        ...

    def forward(self, blob: bytes) -> Awaitable[bytes]:
        """Send a ForwardBatch; answers with a ForwardReply once it is durable."""
        ...

    def install(self, table: bytes, agents: dict[str, bytes]) -> Awaitable[int]:
        """Bring a version of the subscription table; answers with the version in force."""
        ...

    def table(self) -> Awaitable[tuple[int, dict[str, bytes]]]:
        """Ask for the version in force and the agents' definitions."""
        ...

    def report(self) -> Awaitable[bytes]:
        """Ask for a ShardReport."""
        ...


class WorkerLink(Protocol):
    """A worker as shards and router see it."""

    def run(self, blob: bytes) -> Awaitable[bool]:
        """Hand over a RunBatch; True when it is queued there, False when the worker takes no more."""
        ...

    def cancel(self, ids: list[bytes]) -> Awaitable[None]:
        """Stop activations; no completion will come for them."""
        ...

    def check(self, agents: dict[str, bytes]) -> Awaitable[None]:
        """Have agents' packages loaded once, to see whether they can be."""
        ...

    def install(self, version: int, agents: dict[str, bytes]) -> Awaitable[int]:
        """Bring the agents' packages; the worker runs those of its pool."""
        ...

    def watch(self, wait_s: float) -> Awaitable[bytes]:
        """Answer with a WorkerLoad after a while: the heartbeat."""
        ...

    def drain(self, timeout_s: float) -> Awaitable[bool]:
        """Finish everything and answer; True when nothing is left."""
        ...


class RouterLink(Protocol):
    """The router as shards and drivers see it."""

    def exchange(self, blob: bytes) -> Awaitable[bytes]:
        """Send a ShardReport and wait for permits: a GrantBatch, after a change or the renewal time."""
        ...

    def demand(self, blob: bytes) -> Awaitable[None]:
        """Send a ShardReport because demand changed."""
        ...

    def deploy(self, packages: list[bytes], replace: bool) -> Awaitable[tuple[int, dict[str, bytes]]]:
        """Add or change agents (AgentPackages); answers with the version in force and every agent of the board."""
        ...

    def attach(self, worker: str, version: int) -> Awaitable[None]:
        """Register a worker; a long call whose failure tells the worker that the router is gone."""
        ...


class Peers(Protocol):
    """Finds the others of a board."""

    def shard(self, index: int) -> ShardLink:
        """Return a shard."""
        ...

    def worker(self, worker: str) -> WorkerLink:
        """Return a worker by its id."""
        ...

    def router(self) -> RouterLink:
        """Return the router."""
        ...


class Spawner(Protocol):
    """Starts and ends worker processes."""

    async def start(
        self, worker: str, *, num_cpus: float, num_gpus: float, resources: dict[str, float]
    ) -> WorkerLink:
        """Start a worker process; returns when it answers.

        Raises:
            PoolSaturatedError: The cluster has no room for it (yet); retryable.
        """
        ...

    async def stop(self, worker: str) -> None:
        """End a worker process at once."""
        ...
