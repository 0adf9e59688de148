"""Ports: what the hosts need from the world outside. Adapters and test hosts implement them."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from flock_ray.core.definition import AgentDefinition
from flock_ray.core.notifications import Notification
from flock_ray.core.rows import (
    ActivationRow,
    ArtifactQuery,
    Loaded,
    SettledPlace,
    Snapshot,
    StoreBatch,
    Summary,
    WorkflowRow,
)
from flock_ray.core.wire import Envelope

__all__ = ["ArtifactIndex", "Clock", "DefinitionCodec", "Journal", "Meter", "Notifier", "PayloadStore",
           "PeerGoneError", "Peers", "Persistence", "PrincipalDirectory", "RouterLink", "ShardLink", "ShardStore",
           "Spawner", "WorkerLink"]  # fmt: skip


class PeerGoneError(Exception):
    """The process on the other end does not answer this call: it is dead, restarts, or is cut off."""

    def __init__(self, message: str = "", *, final: bool = False) -> None:
        """Say who, and whether it is known that it never comes back."""
        super().__init__(message)
        self.final = final


class PrincipalDirectory(Protocol):
    """Knows people and their roles."""

    def roles_of(self, person: str) -> Collection[str] | Awaitable[Collection[str] | None] | None:
        """Return the roles of a person, now or awaited; None for somebody who is not known, who may then do nothing."""
        ...


class Notifier(Protocol):
    """Tells people what they should hear of."""

    def notify(self, notices: Sequence[Notification], *, key: str) -> Awaitable[None]:
        """Tell of notices; what it raises is tried again later, with the same key: receivers may drop a repeat."""
        ...


class Clock(Protocol):
    """Wall time, for a shard's `now` and the creation time of artifacts."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch."""
        ...


class Meter(Protocol):
    """Takes numbers for dashboards: Ray's metrics, OpenTelemetry, or a list in a test. Never blocks."""

    def count(self, name: str, added: float, labels: Mapping[str, str], text: str) -> None:
        """Add to a counter; `text` says what it counts."""
        ...

    def gauge(self, name: str, value: float, labels: Mapping[str, str], text: str) -> None:
        """Say how much there is of something now."""
        ...


class Journal(Protocol):
    """The ordered, append-only record of one shard's decisions, and the single right to write it.

    Every call raises StoreUnavailableError while the store can't be reached, and is safe to repeat then.
    """

    mode: str
    """Name of the durability: `memory`, `sqlite`, `redis` or `postgres`."""

    async def acquire(self, owner: str = "") -> int:
        """Become the writer of the shard's slots, and fence whoever was: returns the new epoch, above all former ones.

        Args:
            owner: Who it is, for `owner`.

        Raises:
            StoreCorruptError: What is stored is not a journal that this version can read.
        """
        ...

    async def owner(self) -> str:
        """Return what the newest writer has said of itself, whoever asks; empty when it has said nothing."""
        ...

    async def load(self) -> Loaded:
        """Return snapshots and the frames behind them.

        Raises:
            StaleEpochError: Another writer has acquired the slots since; final.
            StoreCorruptError: A checksum does not fit, or a batch is missing; says where. Nothing is changed.
        """
        ...

    async def peek(self) -> Loaded:
        """Return what `Journal.load` would, without becoming the writer: creates, changes and fences nothing.

        One consistent moment; a writer may be at work meanwhile, and `acquire` was not called.

        Raises:
            StoreUnavailableError: It does not answer now; retryable.
            StoreCorruptError: As for `load`.
        """
        ...

    async def append(self, batch: StoreBatch) -> None:
        """Make a batch durable, all or nothing; a batch that is there already (same epoch and lsn) is left as it is.

        Raises:
            StoreUnavailableError: It may be written or not; append the same batch again.
            StaleEpochError: Another writer has acquired the slots; final, nothing was written.
        """
        ...

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Replace the snapshots of these slots; one older than what is stored is ignored: it was late.

        Raises:
            StaleEpochError: Another writer has acquired the slots; nothing was written.
        """
        ...

    async def truncate(self, lsn: int) -> None:
        """Drop the frames up to and including `lsn`; rows stay.

        Raises:
            StaleEpochError: Another writer has acquired the slots; nothing was dropped.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files; safe to repeat."""
        ...


class ArtifactIndex(Protocol):
    """Questions about what a shard has made durable. Answered from indexes, never by reading everything."""

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        """Return payloads by artifact id; unknown ids are left out.

        Args:
            ids: Whose.
            near: Feed positions at which most of them are: a store that finds positions faster than ids
                looks there first.

        Raises:
            StoreCorruptError: A payload does not fit its checksum; names the artifact.
        """
        ...

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        """Return (feed position, artifact) of those that are known, in any order."""
        ...

    async def recent_ids(self, limit: int) -> list[bytes]:
        """Return the ids of the newest artifacts, the oldest of them first."""
        ...

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        """Return the first artifacts behind a feed position that the query selects, by position."""
        ...

    async def page(self, query: ArtifactQuery, limit: int, offset: int) -> list[tuple[int, Envelope]]:
        """Return artifacts that the query selects by (creation time, id); a limit of 0 is all of them."""
        ...

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts that the query selects by (creation time, id), the newest first.

        Args:
            query: Which ones.
            limit: At most so many, from 1.
            before: Only those whose (creation time, id) is below this; None: all. The last one of a page leads
                to the next page.
        """
        ...

    async def count(self, query: ArtifactQuery) -> int:
        """Return how many artifacts the query selects."""
        ...

    async def summarize(self, query: ArtifactQuery) -> Summary:
        """Count what the query selects by type, producer, visibility kind and tag."""
        ...

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        """Return what is known of workflows, one row per slot that has one."""
        ...

    async def activations(self, workflow: str, limit: int) -> list[ActivationRow]:
        """Return activations of a workflow that ended, the oldest first."""
        ...

    async def consumptions(self, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return the activations that had one of these artifacts among their inputs, the oldest first."""
        ...

    async def settled_before(
        self, before_us: int, limit: int, after: SettledPlace | None = None
    ) -> list[WorkflowRow]:
        """Return workflows that settled and were not touched since a time, the longest ago first.

        Args:
            before_us: Only those whose last change was before this time.
            limit: At most so many; fewer come only when there are no more.
            after: Only those behind this place, in an order that is the store's own among equal times; None: from
                the beginning. The `place` of a page's last row leads to the next page, also when that row is gone.
        """
        ...

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        """Delete workflows, given by (slot, id), with artifacts and activations; one that is not settled stays.

        Returns:
            How many artifacts went. The audit log keeps what it says.

        Raises:
            StaleEpochError: Another writer has acquired the slots; nothing was deleted.
        """
        ...

    async def erase(self, ids: Collection[bytes]) -> int:
        """Replace payloads by `core.rows.ERASED` for good; envelopes stay. Returns how many there were.

        Raises:
            StaleEpochError: Another writer has acquired the slots; nothing was erased.
        """
        ...


class ShardStore(Journal, ArtifactIndex, Protocol):
    """Where one shard keeps everything."""


@runtime_checkable
class Persistence(Protocol):
    """Where a board is kept: the object that users give to `Flock(persistence=...)`. Pickles; repr shows no secret."""

    @property
    def mode(self) -> str:
        """Name of the durability: `memory`, `sqlite`, `redis` or `postgres`."""
        ...

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Create what a new board needs, bring an old one up to this version, and return its number of shards.

        Safe to call from several processes at once, and while shards run.

        Args:
            board: Name of the board (its namespace).
            num_shards: What the user asked for; None: what the stored board has, 1 for a new one.

        Raises:
            ConfigurationError: It can't be reached with these settings, lacks rights, was written by a newer
                version, or has another number of shards. One sentence that says what to do.
            StoreUnavailableError: It does not answer now; retryable.
        """
        ...

    async def find(self, board: str) -> int | None:
        """Return the number of shards of a stored board; None when there is none. Creates and changes nothing.

        Raises:
            ConfigurationError: As for `prepare`.
            StoreUnavailableError: It does not answer now; retryable.
        """
        ...

    def store(self, board: str, shard: int, slots: Collection[int]) -> ShardStore:
        """Return the store of one shard; connects at the first call."""
        ...

    def warnings(self) -> list[str]:
        """Return sentences about what could be lost that `prepare` found out; empty when nothing."""
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


class PayloadStore(Protocol):
    """Large payloads outside the shards, as one process sees them.

    What is held lives as long as the process that holds it, and as its handle: there is no call that frees.
    Offers and handles travel in calls to other processes of the board; nothing else about them is known.
    """

    async def offer(self, payloads: Sequence[bytes]) -> Any:
        """Make payloads of this process readable by others, for as long as the answer is kept.

        Raises:
            BackpressureError: There is no room for them; retryable.
        """
        ...

    async def adopt(self, offer: Any, claims: Sequence[bytes]) -> list[Any]:
        """Hold what another process offers: it may die now. Returns a handle for each payload.

        Args:
            offer: Its answer to `offer`.
            claims: What the payloads have to be (`core.claims`), in the same order.

        Raises:
            PayloadLostError: It died, or a payload is not what its claim says.
            BackpressureError: There is no room for them; retryable.
        """
        ...

    async def keep(self, payloads: Sequence[bytes]) -> list[Any]:
        """Hold payloads of this process. Returns a handle for each.

        Raises:
            BackpressureError: There is no room for them; retryable.
        """
        ...

    async def open(self, handles: Sequence[Any], wait_s: float) -> list[bytes | None]:
        """Read what any process of the board holds; None for what is lost, or not here within the time."""
        ...


class ShardLink(Protocol):
    """A shard as others see it. Every call raises PeerGoneError when the shard is dead."""

    def publish(self, blob: bytes) -> Awaitable[bytes]:
        """Send a PublishBatch; answers with a PublishReply once it is durable."""
        ...

    def complete(self, blob: bytes) -> Awaitable[bytes]:
        """Send a CompleteBatch; answers with a CompleteReply once it is durable."""
        ...

    def publish_large(self, blob: bytes, keys: list[tuple[bytes, bytes]], offer: Any) -> Awaitable[bytes]:
        """Send a PublishBatch whose large payloads are claimed: (artifact, claim) of each, and who offers them."""
        ...

    def complete_large(self, blob: bytes, keys: list[tuple[bytes, bytes]], offer: Any) -> Awaitable[bytes]:
        """Send a CompleteBatch whose large payloads are claimed."""
        ...

    def payloads(self, keys: list[tuple[bytes, bytes]], lost: bool) -> Awaitable[list[Any]]:
        """Ask for the handles of claimed payloads, None where there is none; `lost`: what was answered before is."""
        ...

    def forward(self, blob: bytes) -> Awaitable[bytes]:
        """Send a ForwardBatch; answers with a ForwardReply once it is durable."""
        ...

    def install(self, table: bytes, agents: dict[str, bytes]) -> Awaitable[int]:
        """Bring a version of the subscription table; answers with the version in force."""
        ...

    def take_texts(self, blob: bytes) -> Awaitable[None]:
        """Take a TextBatch: what runs say while they go on."""
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

    def packages(self) -> Awaitable[tuple[int, dict[str, bytes]]]:
        """Ask for the version of the worker's table and its agents' packages."""
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

    def attend(self, known: str) -> Awaitable[str]:
        """Ask for the router's id; answers once it is another than the one that is known."""
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
