"""What every `Journal` and `Persistence` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import cloudpickle  # type: ignore[import-untyped]  # ships no types
import pytest

from flock_ray.core.rows import SHARD, ArtifactQuery, Decision, Loaded
from flock_ray.errors import ConfigurationError, StaleEpochError, StoreCorruptError
from flock_ray.ports import Persistence, ShardStore
from tests.unit.adapters.store_rows import activation, artifact, batch, key, snapshot, workflow

EVERYTHING = ArtifactQuery()
BOARD = "board"


class NewStore(Protocol):
    """Opens the stored board of the test: each call makes another store, with connections of its own."""

    def __call__(self, shard: int = 0, num_shards: int = 1) -> Awaitable[ShardStore]: ...


class StoreFixtures:
    """Where a contract gets its stores from: a subclass says which `persistence`."""

    @pytest.fixture
    def persistence(self) -> Persistence:
        """An empty place of this test's own."""
        raise NotImplementedError

    @pytest.fixture
    async def new_store(self, persistence: Persistence) -> AsyncIterator[NewStore]:
        opened: list[ShardStore] = []

        async def new_store(shard: int = 0, num_shards: int = 1) -> ShardStore:
            assert num_shards == await persistence.prepare(BOARD, num_shards)
            slots = [slot for slot in range(256) if slot % num_shards == shard]
            opened.append(persistence.store(BOARD, shard, slots))
            return opened[-1]

        yield new_store
        for store in opened:
            await store.close()


async def acquired(new_store: NewStore, shard: int = 0, num_shards: int = 1) -> ShardStore:
    """Open the board and become its writer."""
    store = await new_store(shard, num_shards)
    await store.acquire()
    return store


WRITES: dict[str, Callable[[ShardStore], Awaitable[object]]] = {
    "load": lambda store: store.load(),
    "append": lambda store: store.append(batch(2, [artifact("late")], first_seq=9)),
    "append an empty batch": lambda store: store.append(batch(2)),
    "append again": lambda store: store.append(batch(1)),
    "save snapshots": lambda store: store.save_snapshots([snapshot(0, 1, b"late")]),
    "save no snapshot": lambda store: store.save_snapshots([]),
    "truncate": lambda store: store.truncate(1),
    "remove workflows": lambda store: store.remove_workflows([(0, "wf-1")]),
    "erase": lambda store: store.erase([key("first")]),
}


class JournalContract(StoreFixtures):
    async def test_new_shard_is_empty(self, new_store: NewStore) -> None:
        store = await acquired(new_store)

        assert Loaded([], [], 0, 0) == await store.load()

    async def test_each_writer_gets_a_higher_epoch(self, new_store: NewStore) -> None:
        first, second = await new_store(), await new_store()

        epochs = [await store.acquire() for store in (first, second, first, second)]

        assert epochs[0] > 0
        assert sorted(set(epochs)) == epochs

    async def test_the_newest_writer_is_told(self, new_store: NewStore) -> None:
        first, second = await new_store(), await new_store()
        assert "" == await first.owner()

        await first.acquire("run-1 on a")
        assert "run-1 on a" == await second.owner()
        await second.acquire("run 2 on ä:1")
        assert "run 2 on ä:1" == await first.owner()
        await first.acquire()
        assert "" == await first.owner() == await second.owner()

    @pytest.mark.parametrize("name", WRITES)
    async def test_fenced_writer_is_refused_and_changes_nothing(self, new_store: NewStore, name: str) -> None:
        old = await acquired(new_store)
        await old.append(batch(1, [artifact("first")], workflows=[workflow()]))
        await old.save_snapshots([snapshot(SHARD, 0)])
        new = await acquired(new_store)
        before = await new.load()

        with pytest.raises(StaleEpochError):
            await WRITES[name](old)

        assert before == await new.load()
        assert [(1, artifact("first"))] == await new.read(EVERYTHING, 0, 10)
        assert [workflow()] == await new.workflows(["wf-1"])

    @pytest.mark.parametrize("name", [name for name in WRITES if name != "load"])
    async def test_store_that_never_acquired_is_refused(self, new_store: NewStore, name: str) -> None:
        store = await new_store()

        with pytest.raises(StaleEpochError):
            await WRITES[name](store)

    async def test_fenced_writer_can_acquire_again(self, new_store: NewStore) -> None:
        first = await acquired(new_store)
        second = await acquired(new_store)
        await first.acquire()

        await first.append(batch(1))

        with pytest.raises(StaleEpochError):
            await second.append(batch(1))

    async def test_fenced_store_still_answers_questions(self, new_store: NewStore) -> None:
        old = await acquired(new_store)
        new = await acquired(new_store)
        await new.append(batch(1, [artifact("first")]))

        assert [(1, artifact("first"))] == await old.read(EVERYTHING, 0, 10)

    async def test_appended_batches_are_loaded_by_the_next_writer(self, new_store: NewStore) -> None:
        first = await acquired(new_store)
        await first.append(batch(1, [artifact("a"), artifact("b")]))
        await first.append(batch(2))
        await first.append(batch(3, [artifact("c")], first_seq=7, frame=bytes(range(256))))
        await first.close()

        second = await acquired(new_store)

        frames = [(1, b"frame-1"), (2, b"frame-2"), (3, bytes(range(256)))]
        assert Loaded([], frames, 3, 7) == await second.load()

    async def test_peek_reads_one_moment_beside_the_writer(self, new_store: NewStore) -> None:
        writer, other = await acquired(new_store), await new_store()
        await writer.append(batch(1, [artifact("a")]))
        await writer.append(batch(2))
        await writer.save_snapshots([snapshot(SHARD, 1)])

        assert await writer.load() == await other.peek()

        # Nobody was fenced, and whoever only looked writes nothing.
        await writer.append(batch(3))
        with pytest.raises(StaleEpochError):
            await other.append(batch(4))
        assert 3 == (await other.peek()).last_lsn

    async def test_each_writer_continues_where_the_last_one_stopped(self, new_store: NewStore) -> None:
        for lsn in range(1, 5):
            store = await acquired(new_store)
            await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))

        loaded = await store.load()

        assert [1, 2, 3, 4] == [lsn for lsn, _ in loaded.frames]
        assert (4, 4) == (loaded.last_lsn, loaded.last_seq)

    async def test_batch_appended_twice_is_there_once(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        one = batch(
            1,
            [artifact("a", tags=("t",))],
            activations=[activation("run", inputs=["a"])],
            workflows=[workflow()],
            decisions=[Decision(1, "workflow.cancelled", "wf-1")],
        )
        two = batch(2, [artifact("b")], first_seq=2)

        for again in (one, one, two, two, one):
            await store.append(again)

        assert Loaded([], [(1, b"frame-1"), (2, b"frame-2")], 2, 2) == await store.load()
        assert 2 == await store.count(EVERYTHING)
        assert [activation("run", inputs=["a"])] == await store.activations("wf-1", 10)

    async def test_last_batch_appended_again_after_truncation_is_left_as_it_is(
        self, new_store: NewStore
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a")]))
        await store.save_snapshots([snapshot(SHARD, 1)])
        await store.truncate(1)

        await store.append(batch(1, [artifact("a")]))

        assert Loaded([snapshot(SHARD, 1)], [], 1, 1) == await store.load()

    @pytest.mark.parametrize("lsn", [0, 1, 2, 4, 1_000_000])
    async def test_batch_out_of_order_is_refused(self, new_store: NewStore, lsn: int) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, frame=b"one"))
        await store.append(batch(2, frame=b"two"))

        with pytest.raises((StoreCorruptError, StaleEpochError)):
            await store.append(batch(lsn, [artifact("x")], first_seq=99, frame=b"foreign"))

        assert Loaded([], [(1, b"one"), (2, b"two")], 2, 0) == await store.load()
        assert 0 == await store.count(EVERYTHING)
        await store.append(batch(3))

    async def test_first_batch_of_a_new_shard_has_number_one(self, new_store: NewStore) -> None:
        store = await acquired(new_store)

        with pytest.raises((StoreCorruptError, StaleEpochError)):
            await store.append(batch(2))

    async def test_equal_batch_of_another_epoch_is_refused(self, new_store: NewStore) -> None:
        await (await acquired(new_store)).append(batch(1))
        new = await acquired(new_store)

        with pytest.raises((StoreCorruptError, StaleEpochError)):
            await new.append(batch(1))

    async def test_truncation_drops_frames_and_keeps_numbers_and_rows(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        for lsn in range(1, 6):
            await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))
        await store.save_snapshots([snapshot(SHARD, 3)])

        await store.truncate(3)
        await store.truncate(2)

        expected = Loaded([snapshot(SHARD, 3)], [(4, b"frame-4"), (5, b"frame-5")], 5, 5)
        assert expected == await store.load()
        assert 5 == await store.count(EVERYTHING)

    async def test_numbers_survive_truncation_of_everything(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a")], first_seq=41, workflows=[workflow()]))
        await store.append(batch(2))
        await store.save_snapshots([snapshot(SHARD, 2)])
        await store.truncate(10)
        await store.remove_workflows([(0, "wf-1")])

        reopened = await acquired(new_store)

        assert Loaded([snapshot(SHARD, 2)], [], 2, 41) == await reopened.load()
        await reopened.append(batch(3))
        assert [(3, b"frame-3")] == (await reopened.load()).frames

    async def test_load_refuses_a_journal_with_a_missing_batch(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        for lsn in range(1, 4):
            await store.append(batch(lsn))
        await store.save_snapshots([snapshot(SHARD, 1), snapshot(0, 3)])
        await store.truncate(2)

        with pytest.raises(StoreCorruptError, match="2"):
            await store.load()

        await store.truncate(3)
        with pytest.raises(StoreCorruptError):
            await store.load()
        await store.save_snapshots([snapshot(SHARD, 3)])
        assert 3 == (await store.load()).last_lsn

    async def test_snapshots_are_replaced_by_slot(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        await store.append(batch(1))
        big = bytes(range(256)) * 8192
        await store.save_snapshots([snapshot(SHARD, 0), snapshot(0, 0), snapshot(7, 0), snapshot(255, 1)])

        await store.save_snapshots([snapshot(SHARD, 1, big), snapshot(7, 0, b"same lsn"), snapshot(9, 1)])
        await store.save_snapshots([])

        loaded = await (await acquired(new_store)).load()
        kept = [snapshot(SHARD, 1, big), snapshot(0, 0), snapshot(7, 0, b"same lsn"), snapshot(9, 1)]
        assert [*kept, snapshot(255, 1)] == sorted(loaded.snapshots, key=lambda entry: entry.slot)

    async def test_snapshot_older_than_the_stored_one_is_ignored(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        for lsn in range(1, 4):
            await store.append(batch(lsn))
        await store.save_snapshots([snapshot(0, 2), snapshot(SHARD, 2)])

        await store.save_snapshots([snapshot(0, 1, b"late"), snapshot(1, 1), snapshot(SHARD, 3, b"new")])

        loaded = await store.load()
        kept = [snapshot(SHARD, 3, b"new"), snapshot(0, 2), snapshot(1, 1)]
        assert kept == sorted(loaded.snapshots, key=lambda entry: entry.slot)

    async def test_shards_of_a_board_neither_see_nor_fence_each_other(self, new_store: NewStore) -> None:
        first = await acquired(new_store, 0, 2)
        second = await acquired(new_store, 1, 2)
        await first.append(batch(1, [artifact("a")], workflows=[workflow()]))
        await first.save_snapshots([snapshot(0, 1)])
        await second.append(batch(1, [artifact("b", slot=1)], workflows=[workflow("other", slot=1)]))

        assert Loaded([], [(1, b"frame-1")], 1, 1) == await second.load()
        assert [(1, artifact("b", slot=1))] == await second.read(EVERYTHING, 0, 10)
        assert {} == await second.bodies([key("a")])
        assert [] == await second.workflows(["wf-1"])
        assert 0 == await second.erase([key("a")])
        await first.append(batch(2))

    async def test_boards_of_a_place_neither_see_nor_fence_each_other(
        self, persistence: Persistence, new_store: NewStore
    ) -> None:
        here = await acquired(new_store)
        names = ("board2", "Board", "board.", "other-board_2")
        for name in names:
            await persistence.prepare(name, 1)
            there = persistence.store(name, 0, range(256))
            try:
                await there.acquire()
                assert Loaded([], [], 0, 0) == await there.load()
                await there.append(batch(1, [artifact("there")]))
            finally:
                await there.close()

        assert Loaded([], [], 0, 0) == await here.load()
        assert 0 == await here.count(EVERYTHING)
        await here.append(batch(1))

    async def test_batch_of_thousands_is_one_batch(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        many = [artifact(n, created_us=n, tags=(f"t{n % 3}",)) for n in range(3000)]
        runs = [activation(("run", n), inputs=[n]) for n in range(3000)]

        await store.append(
            batch(1, many, activations=runs, workflows=[workflow(f"w{n}") for n in range(3000)])
        )

        assert 3000 == (await store.load()).last_seq
        assert 1000 == await store.count(ArtifactQuery(tags=("t1",)))
        assert runs == await store.activations("wf-1", 5000)
        assert 3000 == len(await store.get([entry.id for entry in many]))
        assert 3000 == len(await store.workflows([f"w{n}" for n in range(3000)]))
        assert runs == await store.consumptions([entry.id for entry in many])
        assert 3000 == await store.erase([entry.id for entry in many])

    async def test_questions_are_answered_while_batches_are_appended(self, new_store: NewStore) -> None:
        store = await acquired(new_store)

        async def append() -> None:
            for lsn in range(1, 21):
                await store.append(batch(lsn, [artifact((lsn, n)) for n in range(5)], first_seq=5 * lsn))

        async def ask() -> list[int]:
            return [await store.count(EVERYTHING) for _ in range(40)]

        _, *counts = await asyncio.gather(append(), ask(), ask())

        for seen in counts:
            assert seen is not None
            assert sorted(seen) == seen
            assert all(count % 5 == 0 for count in seen)

    async def test_what_was_appended_is_seen_at_once(self, new_store: NewStore) -> None:
        store = await acquired(new_store)
        for lsn in range(1, 20):
            await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))
            assert lsn == await store.count(EVERYTHING)

    async def test_closing_twice_is_harmless(self, new_store: NewStore) -> None:
        used, unused = await acquired(new_store), await new_store()

        for store in (used, unused):
            await store.close()
            await store.close()


class PersistenceContract(StoreFixtures):
    @pytest.mark.parametrize("num_shards", [None, 1, 3])
    async def test_new_board_gets_the_shards_asked_for(
        self, persistence: Persistence, num_shards: int | None
    ) -> None:
        assert (num_shards or 1) == await persistence.prepare("new", num_shards)
        assert (num_shards or 1) == await persistence.prepare("new", None)
        assert (num_shards or 1) == await persistence.prepare("new", num_shards)

    async def test_board_is_found_once_it_is_prepared_and_not_made_by_looking(
        self, persistence: Persistence
    ) -> None:
        assert None is await persistence.find("board")
        await persistence.prepare("other", 1)
        assert None is await persistence.find("board")

        assert 3 == await persistence.prepare("board", 3)

        assert 3 == await persistence.find("board")
        assert 1 == await persistence.find("other")

    async def test_other_number_of_shards_is_refused(self, persistence: Persistence) -> None:
        await persistence.prepare("board", 2)

        with pytest.raises(ConfigurationError) as caught:
            await persistence.prepare("board", 3)

        assert "2" in str(caught.value) and "3" in str(caught.value)
        assert 2 == await persistence.prepare("board", None)

    async def test_board_is_prepared_by_many_at_once(self, persistence: Persistence) -> None:
        assert [2] * 8 == await asyncio.gather(*(persistence.prepare("board", 2) for _ in range(8)))

    async def test_board_is_prepared_while_its_shards_run(
        self, persistence: Persistence, new_store: NewStore
    ) -> None:
        store = await acquired(new_store)
        await store.append(batch(1, [artifact("a")]))

        assert 1 == await persistence.prepare(BOARD, None)

        await store.append(batch(2))
        assert Loaded([], [(1, b"frame-1"), (2, b"frame-2")], 2, 1) == await store.load()

    @pytest.mark.parametrize(
        "name", [".", "..", "-rf", "...", "A" * 100, "CON", "a.db", "a-wal", "board-0", "-"]
    )
    async def test_any_board_name_works(self, persistence: Persistence, name: str) -> None:
        await persistence.prepare(name, 1)
        store = persistence.store(name, 0, range(256))
        try:
            await store.acquire()
            await store.append(batch(1, [artifact("a")]))
            assert [(1, artifact("a"))] == await store.read(EVERYTHING, 0, 10)
        finally:
            await store.close()

    async def test_copy_from_a_pickle_opens_the_same_board(self, persistence: Persistence) -> None:
        await persistence.prepare("board", 1)
        copy: Persistence = cloudpickle.loads(cloudpickle.dumps(persistence))
        first, second = (place.store("board", 0, range(256)) for place in (persistence, copy))
        try:
            await first.acquire()
            await first.append(batch(1, [artifact("a")]))
            assert [(1, artifact("a"))] == await second.read(EVERYTHING, 0, 10)
        finally:
            await first.close()
            await second.close()

        assert (persistence.mode, repr(persistence)) == (copy.mode, repr(copy))
        assert isinstance(copy, Persistence)
        assert first.mode == persistence.mode

    async def test_warnings_are_sentences(self, persistence: Persistence) -> None:
        await persistence.prepare("board", 1)

        assert all(text.endswith(".") for text in persistence.warnings())
