"""Between a shard and its store: recovery, one append per micro-batch, and snapshots in small steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from flock_ray.core import wire
from flock_ray.core.claims import is_claim
from flock_ray.core.ids import slot_of
from flock_ray.core.index import CountQuery
from flock_ray.core.records import Record, Rehydrated, encode_frame
from flock_ray.core.recovery import Recovery, snapshot_shard, snapshot_slot
from flock_ray.core.rows import SHARD, ArtifactQuery, Snapshot, WorkflowRow
from flock_ray.core.shard import ShardCore
from flock_ray.errors import StaleEpochError, StoreError, StoreUnavailableError
from flock_ray.ports import ShardStore

logger = logging.getLogger(__name__)

RECENT_IDS = 100_000
"""Artifact ids a shard remembers at least, so that a call that is repeated after a failure finds its artifacts."""

STEP_BYTES = 256 * 1024
"""Snapshots made between two micro-batches, at least."""

STEPS_PER_BYTE = 4
"""Bytes of snapshots per byte that the journal grows meanwhile: so a rotation ends long before the next is due."""

MAX_BACKOFF_S = 2.0

SNAPSHOT_RETRY_S = 1.0
"""Pause after snapshots could not be saved."""

Watch = Callable[[Sequence[WorkflowRow], Collection[tuple[int, str]]], None]
"""Told of every batch: the rows that it writes, and (slot, id) of the workflows that it brings back."""


class RecentIds:
    """The newest ids, at least `RECENT_IDS` and at most twice as many.

    Two generations: a dict that loses its oldest key for each new one gets slower with every one of them.
    """

    __slots__ = ("_limit", "_new", "_old")

    def __init__(self, ids: Iterable[bytes] = (), *, limit: int = RECENT_IDS) -> None:
        """Remember ids, the oldest first."""
        self._limit = limit
        self._old: set[bytes] = set()
        self._new: set[bytes] = set(ids)

    def __contains__(self, key: bytes) -> bool:
        """Say whether an id is remembered."""
        return key in self._new or key in self._old

    def add(self, ids: Iterable[bytes]) -> None:
        """Remember more; forgets the older generation when the newer one is full."""
        self._new.update(ids)
        if len(self._new) >= self._limit:
            self._old, self._new = self._new, set()


class Keeper:
    """Keeps what one shard decides."""

    def __init__(
        self,
        core: ShardCore,
        store: ShardStore,
        *,
        snapshot_bytes: int,
        on_down: Callable[[], None] = lambda: None,
        body_of: Callable[[wire.Envelope], bytes | None] = lambda _: None,
        owner: str = "",
    ) -> None:
        """Keep a core in a store.

        Args:
            core: Empty; `recover` fills it.
            store: Where.
            snapshot_bytes: Bytes of frames after which the slots are snapshotted again; more when the
                snapshots themselves are larger.
            on_down: Called when the store has stopped to answer.
            body_of: Finds the payload of an artifact that claims it and is about to be stored.
            owner: What the store keeps of who writes now.
        """
        self._body_of = body_of
        self._owner = owner
        self._on_down = on_down
        self._core = core
        self.store = store
        self._lsn = 0
        self._begun = 0
        """Number of the newest batch that was given to the store, which may not have it yet."""
        self.watch: Watch | None = None
        self._recent = RecentIds()
        self._rotation = Rotation(core, store, snapshot_bytes)
        self.down_since: float | None = None
        """Loop time since which the store does not answer; None while it does."""
        self.epoch = 0
        self.replayed = 0

        self.head = 0
        """Position of the newest artifact that is durable."""
        self._appending = False

    @property
    def pending(self) -> bool:
        """Whether something is applied that is not durable yet."""
        return self._appending or bool(self._core.records)

    # -- recovery ------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Become the writer and rebuild the core; waits for a store that is away.

        Raises:
            StoreCorruptError: What is stored can't be read; nothing was changed.
            StaleEpochError: Another shard was faster.
        """
        core, recovery = self._core, await self.patiently(self._load)
        self.replayed = recovery.rebuild(core, self.epoch)
        if missing := recovery.missing():
            near = sorted(core.index.ids.values())
            recovery.fill(await self.patiently(lambda: self.store.bodies(missing, near)), core.inline_limit)
        self.head = self._core.index.head
        self._rotation.begin_from(self._lsn, recovery.touched)

    async def _load(self) -> Recovery:
        if not self.epoch:  # once: a successor may have come while this one could not load
            self.epoch = await self.store.acquire(self._owner)
        loaded = await self.store.load()
        recovery = Recovery(loaded)
        self._recent = RecentIds(await self.store.recent_ids(RECENT_IDS))
        self._lsn = self._begun = loaded.last_lsn
        return recovery

    async def patiently(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Do something with the store, again and again until it answers."""
        delay_s = 0.05
        while True:
            try:
                result = await work()
                self.down_since = None
                return result
            except StoreUnavailableError as error:
                if self.down_since is None:
                    self.down_since = asyncio.get_running_loop().time()
                    logger.warning("the store does not answer; work goes on when it does: %s", error)
                    self._on_down()
                await asyncio.sleep(delay_s)
                delay_s = min(MAX_BACKOFF_S, delay_s * 2)

    # -- before a batch ------------------------------------------------------------------------

    async def look_up(
        self,
        published: Collection[wire.Posting],
        made: Iterable[wire.Posting],
        workflows: Collection[str],
        now_us: int,
    ) -> None:
        """Fetch what a batch may refer to and memory no longer has: artifacts and settled workflows.

        Args:
            published: From outside: the store may have these artifacts already.
            made: By agents: new, but maybe of workflows that have left memory.
            workflows: Other workflows that the batch is about.
            now_us: Time of the batch.
        """
        core = self._core
        core.stored = {}
        if not core.index.floor:
            return  # nothing ever left memory
        names = set(workflows)
        for posting in made:
            self._miss_workflow(posting.envelope, names)
        ids: set[bytes] = set()
        for posting in published:
            key = posting.envelope.id
            if key not in core.index.ids and (not posting.fresh & wire.FRESH_ID or key in self._recent):
                ids.add(key)
            if not posting.fresh & wire.FRESH_WORKFLOW:
                self._miss_workflow(posting.envelope, names)
        found, rows = await self.patiently(lambda: self._fetch(ids, names))
        if ids:
            core.stored = {envelope.id: envelope for _, envelope in found}
            for posting in published:
                key = posting.envelope.id
                if key in self._recent and key not in core.index.ids:
                    # Removed since: what it was is gone, so a repeated call is taken at its word.
                    core.stored.setdefault(key, posting.envelope)
        for row in rows:
            if row.settled and row.slot in core.slots:
                core.rehydrate(row, now_us)

    async def _fetch(
        self, ids: Collection[bytes], names: Collection[str]
    ) -> tuple[list[tuple[int, wire.Envelope]], list[WorkflowRow]]:
        """Ask for artifacts and workflows, for both at once: a publisher waits for it."""
        if ids and names:
            return await asyncio.gather(self.store.get(ids), self.store.workflows(names))
        found = await self.store.get(ids) if ids else []
        return found, await self.store.workflows(names) if names else []

    def _miss_workflow(self, envelope: wire.Envelope, names: set[str]) -> None:
        places = {envelope.slot}
        if envelope.partition_key is not None:  # gates of the workflow are where its name says
            places.add(slot_of(envelope.correlation_id))
        for slot in (self._core.slots.get(place) for place in places):
            if slot is not None and envelope.correlation_id not in slot.workflows:
                names.add(envelope.correlation_id)

    async def start_count(self, query: CountQuery) -> None:
        """Count once in the store; from then on the index keeps the count up to date."""
        producers = () if query.produced_by is None else (query.produced_by,)
        stored = ArtifactQuery((query.type,), producers, query.correlation_id, query.tags)
        count = await self.patiently(lambda: self.store.count(stored))
        self._core.index.start_count(query, count)

    # -- the batch -----------------------------------------------------------------------------

    async def append(self, now_us: int, *, always: bool = False) -> int:
        """Make what the core has recorded durable; returns how many records. Waits for a store that is away.

        Args:
            now_us: Time of the batch.
            always: Append a batch even when there is no record for it: for decisions alone.

        Raises:
            StaleEpochError: Another shard owns the slots now.
        """
        core, changes = self._core, self._core.changes
        if changes is None or not (core.records or always):
            return 0
        records, core.records = core.records, []
        frame = encode_frame(now_us, changes.heads, records, lambda envelope: envelope.slot in core.slots)
        changes.artifacts = [(seq, self._to_store(envelope)) for seq, envelope in changes.artifacts]
        batch = changes.batch(self._lsn + 1, now_us, frame)
        self._begun = batch.lsn
        if self.watch is not None:
            self.watch(batch.workflows, _brought_back(records))
        self._appending = True
        await self.patiently(lambda: self.store.append(batch))
        self._appending = False
        self._lsn = batch.lsn
        self.head = core.index.head
        self._recent.add([envelope.id for _, envelope in batch.artifacts])
        self._rotation.note(len(frame), {record.slot for record in records})
        return len(records)

    def _to_store(self, envelope: wire.Envelope) -> wire.Envelope:
        """Return an artifact as its row has it: with its payload, and not what is about to be claimed in memory."""
        payload = envelope.payload
        if is_claim(payload):
            body = self._body_of(envelope)
            if body is None:  # nothing is written: what memory has made of it must not be true
                raise StoreError(f"The payload of artifact {envelope.id.hex()} is not at hand.")
            return msgspec.structs.replace(envelope, payload=body)
        return envelope if len(payload) <= self._core.inline_limit else msgspec.structs.replace(envelope)

    # -- after a batch -------------------------------------------------------------------------

    def step(self, spawn: Callable[[Coroutine[Any, Any, None]], Any], wake: Callable[[], None]) -> None:
        """Make room, and go on with snapshots; call between micro-batches, when everything applied is durable."""
        self._core.evict()
        work = self._rotation.step(self._lsn)
        if work is not None:
            spawn(self._save(work, wake))

    async def _save(self, work: Callable[[], Coroutine[Any, Any, None]], wake: Callable[[], None]) -> None:
        try:
            await work()
        except StaleEpochError as error:
            self.fail(error)  # the next append says so too
        except StoreError as error:
            logger.warning("snapshots are put off: %s", error)
            await asyncio.sleep(SNAPSHOT_RETRY_S)
            self._rotation.give_up()
        wake()

    async def cut(self, slots: Collection[int], wake: Callable[[], None]) -> None:
        """Wait until the journal holds no frame of now or before, and the snapshots are newer than now.

        Args:
            slots: Snapshot these too, whether something changed there or not.
            wake: Gets the shard to call `step`.
        """
        done = self._rotation.want(self._begun, slots)
        wake()
        await done

    def fail(self, error: Exception) -> None:
        """Tell everybody who waits in `cut` that it will not happen."""
        self._rotation.fail(error)

    async def close(self) -> None:
        """Let go of the store."""
        await self.store.close()


def _brought_back(records: Iterable[Record]) -> set[tuple[int, str]]:
    return {(record.slot, record.row.id) for record in records if isinstance(record, Rehydrated)}


class Rotation:
    """Snapshots every slot that changed, a few between two micro-batches, and drops the frames that they replace."""

    def __init__(self, core: ShardCore, store: ShardStore, min_bytes: int) -> None:
        """Start without a rotation."""
        self._core = core
        self._store = store
        self._min_bytes = min_bytes
        self._limit = min_bytes
        self._bytes = 0
        self._dirty: set[int] = set()
        self._todo: list[int] = []
        self._began: tuple[int, bytes] | None = None
        """(lsn, shard state) at the beginning of the rotation under way."""
        self._size = 0
        self._grown = 0
        """Bytes of frames since the last step."""
        self._saving = False
        self._wanted: list[tuple[int, asyncio.Future[None]]] = []

    def want(self, lsn: int, slots: Collection[int]) -> asyncio.Future[None]:
        """Ask for a rotation that begins at a batch or later; the future ends with it."""
        self._dirty |= set(slots)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((lsn, done))
        return done

    def fail(self, error: Exception) -> None:
        """End every wait for a rotation with an error."""
        wanted, self._wanted = self._wanted, []
        for _, done in wanted:
            if not done.done():
                done.set_exception(error)

    def begin_from(self, lsn: int, touched: set[int]) -> None:
        """Start after a recovery: what the journal changed since the snapshots is due, so that it can be cut."""
        self._dirty = set(touched)
        self._bytes = self._limit if lsn else 0

    def note(self, size: int, slots: set[int]) -> None:
        """Note a frame and the slots that it changed."""
        self._bytes += size
        self._grown += size
        self._dirty |= slots

    def give_up(self) -> None:
        """Forget the rotation under way; the slots stay due."""
        self._dirty |= set(self._todo)
        self._began, self._todo, self._saving = None, [], False
        self._bytes = 0

    def step(self, lsn: int) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Take the next snapshots; returns what saves them, or None when nothing is due."""
        if self._saving:
            return None
        if self._began is None:
            if self._bytes < self._limit and not any(lsn >= wanted for wanted, _ in self._wanted):
                return None
            self._began = (lsn, snapshot_shard(self._core))
            self._todo = sorted(self._dirty - {SHARD})
            self._dirty, self._bytes, self._size, self._grown = set(), 0, 0, 0
        if self._todo:
            work = partial(self._save, self._take(lsn))
        else:
            began, data = self._began
            self._began = None
            self._limit = max(self._min_bytes, self._size)
            work = partial(self._finish, began, data)
        self._saving = True
        return work

    def _take(self, lsn: int) -> list[Snapshot]:
        taken: list[Snapshot] = []
        size = 0
        enough, self._grown = max(STEP_BYTES, STEPS_PER_BYTE * self._grown), 0
        while self._todo and size < enough:
            index = self._todo.pop()
            taken.append(Snapshot(index, lsn, snapshot_slot(self._core, index)))
            size += len(taken[-1].data)
        self._size += size
        return taken

    async def _save(self, snapshots: Sequence[Snapshot]) -> None:
        try:
            await self._store.save_snapshots(snapshots)
        except StoreError:
            self._dirty |= {snapshot.slot for snapshot in snapshots}
            raise
        self._saving = False

    async def _finish(self, lsn: int, data: bytes) -> None:
        await self._store.save_snapshots([Snapshot(SHARD, lsn, data)])
        await self._store.truncate(lsn)
        self._saving = False
        for _, done in [entry for entry in self._wanted if entry[0] <= lsn]:
            if not done.done():
                done.set_result(None)
        self._wanted = [entry for entry in self._wanted if entry[0] > lsn]
