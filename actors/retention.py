"""What leaves a shard for good: workflows whose time is over, and payloads that somebody has erased.

A workflow is removed in these steps, so that a crash between any two of them loses nothing and brings nothing
back: it is archived; the journal is cut, so that no frame speaks of it; between two micro-batches, and only if
nothing has touched it since, the audit log gets its decision and the store deletes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from flock_ray.archive import ArchiveChunk, write_chunk
from flock_ray.archive_files import id_text
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.core.rows import ArtifactQuery, Decision, SettledPlace, WorkflowRow
from flock_ray.erasing import Selected, copies, decode_order, decode_selection, encode, put_tombstones
from flock_ray.errors import StaleEpochError, StoreUnavailableError

if TYPE_CHECKING:
    from flock_ray.actors.keeping import Keeper
    from flock_ray.core.shard import ShardCore
    from flock_ray.core.wire import Forward
    from flock_ray.persistence import RetainedStore

logger = logging.getLogger(__name__)

Chore = Callable[[int], Coroutine[Any, Any, Any]]
"""Work between two micro-batches, given the time in microseconds."""

MIN_AGE_US = 60 * 1_000_000
"""No workflow goes sooner after its last change: a publish that is repeated must find what it did."""

GATHER_US = {
    RetentionPolicy.DELETE_COMPLETED: 10 * 1_000_000,
    RetentionPolicy.ARCHIVE_COMPLETED: 900 * 1_000_000,
}
"""How long the first workflow whose time is over waits for others: each round cuts the journal, and each
round of archiving writes files."""

ROUND = 2_000
"""Workflows of one round; more of them are gone through in several, one after the other."""

IDLE = 20
"""How much longer a shard rests than it took to go through all that is old enough: some are kept for their types."""

STEP = 32
"""Workflows removed between two micro-batches."""

CHUNK_BYTES = 16 * 1024 * 1024
"""Payloads that are in memory while they are archived."""

MAX_PAGE = 500
ERASED_IDS = 100_000
"""Erased artifacts that a shard remembers, in case that copies of them are still on their way to it."""

FAR_US = 2**62
FAR_SLOT = 2**30
RETRY_S = (5.0, 600.0)
"""First and longest pause after a round failed."""


@dataclass(slots=True)
class _Walk:
    """Going through all workflows that are old enough, a page at a time."""

    after: SettledPlace | None = None
    """Where the next page begins."""
    next_us: list[int] = field(default_factory=list)
    """Times at which something that stays can go."""
    looked_s: float = 0.0
    """Time that looking took, without what letting go did."""


class Retainer:
    """Lets the workflows of one shard go when their time is over."""

    def __init__(
        self,
        core: ShardCore,
        keeper: Keeper,
        *,
        retention: Retention,
        board: str,
        shard: int,
        now_us: Callable[[], int],
        chore: Callable[[Chore], Awaitable[Any]],
        wake: Callable[[], None],
    ) -> None:
        """Apply a retention to a shard.

        Args:
            core: The shard's state.
            keeper: Between it and its store.
            retention: What may go, and where to.
            board: Name of the board, for the archive.
            shard: Number of the shard.
            now_us: Tells the time.
            chore: Has something done between two micro-batches.
            wake: Gets the shard to look what is to do.
        """
        self._core = core
        self._keeper = keeper
        self._retention = retention
        self._board = board
        self._shard = shard
        self._now_us = now_us
        self._chore = chore
        self._wake = wake
        self._age_us = max(MIN_AGE_US, retention.shortest_us)
        self._gather_us = GATHER_US[retention.policy]
        self._walk = _Walk()
        self._touched: set[tuple[int, str]] | None = None
        """Workflows that something happened to since the round began; None between rounds."""
        self._settled = asyncio.Event()
        self._archiving = asyncio.Lock()
        keeper.watch = self._watch

    def _watch(self, rows: Sequence[WorkflowRow], brought_back: Collection[tuple[int, str]]) -> None:
        if any(row.settled for row in rows):
            self._settled.set()
        if self._touched is not None:
            self._touched.update((row.slot, row.id) for row in rows)
            self._touched.update(brought_back)

    async def run(self) -> None:
        """Work until the shard ends; sleeps while nothing can be due."""
        failures = 0
        while True:
            try:
                wait_s = await self._round()
                failures = 0
            except StaleEpochError:
                return  # the shard stops too
            except Exception as error:
                wait_s = min(RETRY_S[1], RETRY_S[0] * 2**failures)
                failures = min(failures + 1, 10)
                self._complain(error, wait_s)
            finally:
                self._touched = None
            await self._sleep(wait_s)

    def _complain(self, error: Exception, wait_s: float) -> None:
        if not isinstance(error, StoreUnavailableError):
            logger.error("shard %d: no workflow was removed: %s", self._shard, error, exc_info=error)
        detail = f"nothing was removed, next try in {wait_s:g} s: {type(error).__name__}: {error}"
        self._core.events.note(self._now_us(), "retention.failed", detail=detail)
        self._wake()

    async def _sleep(self, wait_s: float | None) -> None:
        """Wait so long, or for ever (None); less when a workflow settles whose time is over before."""
        loop, soonest_s = asyncio.get_running_loop(), (self._age_us + self._gather_us) / 1e6
        until = float("inf") if wait_s is None else loop.time() + wait_s
        if until - loop.time() > soonest_s:
            settled = asyncio.ensure_future(self._settled.wait())
            try:
                if (await asyncio.wait([settled], timeout=wait_s))[0]:
                    until = min(until, loop.time() + soonest_s)
            finally:
                settled.cancel()
        await asyncio.sleep(max(0.0, until - loop.time()))

    # -- a round -------------------------------------------------------------------------------

    async def _round(self) -> float | None:
        """Let go what can of the next page; returns seconds until the next one, None: not before something settles."""
        loop, walk = asyncio.get_running_loop(), self._walk
        began, now_us = loop.time(), self._now_us()
        self._walk = _Walk()  # what fails begins anew
        self._settled.clear()
        self._touched = set()
        if self._keeper.pending:  # what it has settled was told before, and the store does not have it yet
            walk.next_us.append(now_us + 1_000_000)
        before_us = now_us - self._age_us
        rows = await self._keeper.store.settled_before(before_us, ROUND, walk.after)
        mine = [row for row in rows if row.slot in self._core.slots]
        due = [row for row in mine if self._due_us(row) <= now_us]
        walk.looked_s += loop.time() - began
        gone = await self._let_go(due) if due else 0
        if gone < len(due):  # something came for them, or they are in memory until their slot is snapshotted
            walk.next_us.append(now_us + (1_000_000 if gone else round(RETRY_S[0] * 1e6)))
        if kept := [self._due_us(row) for row in mine if self._due_us(row) > now_us]:
            walk.next_us = [min([*walk.next_us, min(kept) + self._gather_us])]
        if len(rows) == ROUND:
            walk.after = rows[-1].place
            self._walk = walk
            return loop.time() - began  # not more than half of the time, however much there is to do
        newer = await self._keeper.store.settled_before(FAR_US, 1, (before_us - 1, FAR_SLOT, ""))
        walk.next_us += [row.updated_us + self._age_us + self._gather_us for row in newer]
        if not walk.next_us:
            return None
        return max(1.0, IDLE * walk.looked_s, (min(walk.next_us) - self._now_us()) / 1e6)

    def _due_us(self, row: WorkflowRow) -> int:
        return max(row.updated_us + MIN_AGE_US, self._retention.due_us(row.updated_us, row.counts))

    async def _let_go(self, rows: Sequence[WorkflowRow]) -> int:
        """Archive, cut the journal, and remove; returns how many workflows went."""
        counts: dict[tuple[int, str], int] = {}
        if self._retention.policy is RetentionPolicy.ARCHIVE_COMPLETED:
            counts = await self._archive(rows)
            rows = [row for row in rows if (row.slot, row.id) in counts]
        await self._keeper.cut((), self._wake)
        gone = 0
        for start in range(0, len(rows), STEP):
            gone += await self._chore(partial(self._remove, rows[start : start + STEP], counts))
        return gone

    async def _remove(
        self, rows: Sequence[WorkflowRow], archived: dict[tuple[int, str], int], now_us: int
    ) -> int:
        """Remove workflows, between two micro-batches: everything that was applied is in the store."""
        core, keeper, touched = self._core, self._keeper, self._touched
        if touched is None or core.changes is None:
            return 0
        rows = [row for row in rows if (row.slot, row.id) not in touched and self._is_out(row)]
        if not rows:
            return 0
        kind = "workflow.archived" if archived else "workflow.deleted"
        details = [f"{archived.get((row.slot, row.id), sum(row.counts.values()))} artifacts, slot {row.slot}"
                   for row in rows]  # fmt: skip
        core.changes.decisions += [
            Decision(now_us, kind, row.id, detail=detail) for row, detail in zip(rows, details, strict=True)
        ]
        await keeper.append(now_us, always=True)
        await keeper.patiently(lambda: keeper.store.remove_workflows([(row.slot, row.id) for row in rows]))
        for row, detail in zip(rows, details, strict=True):
            core.events.note(now_us, kind, correlation_id=row.id, detail=detail)
        self._recount({name for row in rows for name in row.counts})
        return len(rows)

    def _is_out(self, row: WorkflowRow) -> bool:
        """Say whether memory has nothing of a workflow, but for its count of loops, which stays there."""
        workflow = self._core.slots[row.slot].workflows.get(row.id)
        return workflow is None or (workflow.settled and not workflow.counts)

    def _recount(self, types: Collection[str]) -> None:
        """Forget counts that include what was removed: whoever asks next has them counted anew."""
        index = self._core.index
        for query in [q for name in types for q in index._counters.get(name, ())]:
            index.forget(query)

    # -- the archive ---------------------------------------------------------------------------

    async def _archive(self, rows: Sequence[WorkflowRow]) -> dict[tuple[int, str], int]:
        """Write workflows to the archive; returns how many artifacts each has."""
        counts: dict[tuple[int, str], int] = {}
        async with self._archiving:
            chunk = ArchiveChunk()
            for row in rows:
                if self._touched is not None and (row.slot, row.id) in self._touched:
                    continue
                counts[row.slot, row.id] = await self._gather(row, chunk)
                chunk = await self._flush(chunk)
            await self._flush(chunk, always=True)
        return counts

    async def _gather(self, flow: WorkflowRow, chunk: ArchiveChunk) -> int:
        """Read one workflow; a large one is written in several chunks."""
        store, query = self._keeper.store, ArtifactQuery(correlation_id=flow.id)
        after = count = 0
        page = 16
        while found := await store.read(query, after, page):
            mine = [(seq, envelope) for seq, envelope in found if envelope.slot == flow.slot]
            for seq, envelope in mine:
                chunk.add_artifact(flow, seq, envelope)
            count += len(mine)
            after = found[-1][0]
            if len(found) < page:
                break
            page = self._next_page(page, sum(len(envelope.payload) for _, envelope in found))
            if chunk.num_bytes >= CHUNK_BYTES:
                await self._write(chunk)
                chunk.rows, chunk.num_bytes = {}, 0
        for run in await store.activations(flow.id, 2**31 - 1):
            if run.slot == flow.slot:
                chunk.add_activation(flow, run)
        chunk.add_workflow(flow)
        return count

    @staticmethod
    def _next_page(page: int, num_bytes: int) -> int:
        return max(1, min(MAX_PAGE, 4 * page, page * CHUNK_BYTES // (4 * max(1, num_bytes))))

    async def _flush(self, chunk: ArchiveChunk, *, always: bool = False) -> ArchiveChunk:
        if chunk.rows and (always or chunk.num_bytes >= CHUNK_BYTES):
            await self._write(chunk)
            return ArchiveChunk()
        return chunk

    async def _write(self, chunk: ArchiveChunk) -> None:
        archive = self._retention.archive
        assert archive is not None
        await asyncio.to_thread(write_chunk, archive, self._board, self._shard, chunk, self._now_us())

    async def erased(self) -> None:
        """Wait until nothing that was read before now can still be written to the archive."""
        async with self._archiving:
            pass


class ShardRetention:
    """The part of `Shard` that lets things go: retention, and erasing on demand."""

    core: ShardCore
    index: int
    _keeper: Keeper | None
    _retainer: Retainer | None
    _wake: asyncio.Event
    _outgoing: dict[int, dict[tuple[int, int, int], Forward]]

    def __init__(self) -> None:
        """Start with nothing erased."""
        super().__init__()
        self._erased: dict[bytes, None] = {}
        self._erased_in: set[int] = set()
        """Slots whose stored snapshots may hold what was erased."""

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _let_go(self, ids: Iterable[bytes]) -> None:
        raise NotImplementedError  # ShardClaims'

    def forget_texts(self) -> None:
        """Forget what runs have said."""
        raise NotImplementedError  # ShardTexts'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    def _now_us(self) -> int:
        raise NotImplementedError  # Shard's

    @staticmethod
    def _give(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
        raise NotImplementedError  # Shard's

    def _make_retainer(self, retained: RetainedStore) -> Retainer | None:
        if self._keeper is None or retained.retention.policy is RetentionPolicy.KEEP_ALL:
            return None
        return Retainer(
            self.core, self._keeper, retention=retained.retention, board=retained.board, shard=self.index,
            now_us=self._now_us, chore=self._do_chore, wake=self._wake.set,
        )  # fmt: skip

    def _do_chore(self, chore: Chore) -> asyncio.Future[Any]:
        """Have something done between two micro-batches: everything applied is durable then."""
        return self._enqueue("chore", chore, 0)

    async def _do_chores(
        self, box: list[tuple[str, Any, int, asyncio.Future[Any]]], now_us: int
    ) -> list[tuple[str, Any, int, asyncio.Future[Any]]]:
        """Do the chores among the commands, and return the others."""
        for kind, subject, _, future in box:
            if kind != "chore" or future.done():
                continue
            try:
                outcome = await subject(now_us)
            except StaleEpochError:
                raise  # the shard stops, and tells everybody in the batch
            except Exception as error:
                outcome = error
            self._give([(future, outcome)])
        return [entry for entry in box if entry[0] != "chore"]

    def _forwards(self) -> Iterator[Forward]:
        """Iterate over what is on its way to other shards."""
        return chain.from_iterable(list(outgoing.values()) for outgoing in self._outgoing.values())

    async def find_erasable(self, blob: bytes, after: int) -> bytes:
        """Return which artifacts of a Selection are here: a Selected, a part at a time.

        Args:
            blob: The Selection.
            after: 0, then what the part before says.
        """
        await self._durable()
        chosen, core = decode_selection(blob), self.core
        held = (
            [] if after else sorted(chosen.among(envelope for _, envelope in copies(core, self._forwards())))
        )
        if self._keeper is None:
            return encode(Selected(sorted(chosen.among(core.index)), held))
        store = self._keeper.store
        if chosen.query == ArtifactQuery():
            part = chosen.ids[after : after + MAX_PAGE]
            more = after + MAX_PAGE if len(chosen.ids) > after + MAX_PAGE else None
            return encode(Selected([envelope.id for _, envelope in await store.get(part)], held, more))
        found = await store.read(chosen.query, after, MAX_PAGE)
        more = found[-1][0] if len(found) == MAX_PAGE else None
        return encode(Selected([envelope.id for _, envelope in found], held, more))

    async def erase(self, blob: bytes) -> None:
        """Carry out an EraseOrder, in memory and in the store; copies in the journal go with `seal_erased`."""
        await self._do_chore(partial(self._erase, blob))

    async def _erase(self, blob: bytes, now_us: int) -> None:
        order, core, keeper = decode_order(blob), self.core, self._keeper
        self.forget_texts()
        slots, _ = put_tombstones(core, set(order.ids), self._forwards())
        self._erased_in |= slots
        self._let_go(order.ids)
        self._erased.update(dict.fromkeys(order.ids))
        while len(self._erased) > ERASED_IDS:
            del self._erased[next(iter(self._erased))]
        if order.own:
            detail = f"{len(order.own)} artifacts: {order.reason}"
            core.events.note(
                now_us, "artifact.erased", artifact_ids=tuple(order.own[:MAX_PAGE]), detail=detail
            )
        if keeper is not None and core.changes is not None:
            core.changes.decisions += [
                Decision(now_us, "artifact.erased", id_text(key), detail=order.reason) for key in order.own
            ]
            # Always: the newest frame must be clean, stores keep it to know a batch that is repeated.
            await keeper.append(now_us, always=True)
            await keeper.patiently(lambda: keeper.store.erase(order.ids))

    async def seal_erased(self) -> None:
        """Wait until neither journal nor snapshots hold what was erased, and no archiving began before it."""
        keeper = self._keeper
        if keeper is None:
            return
        slots, self._erased_in = self._erased_in, set()
        try:
            await keeper.cut(slots, self._wake.set)
        except BaseException:
            self._erased_in |= slots
            raise
        if self._retainer is not None:
            await self._retainer.erased()
