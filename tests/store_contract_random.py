"""Random histories: a store must answer as `MemoryStore`, the model, does."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flock_ray.adapters.memory import MemoryDisk, MemoryStore
from flock_ray.core.rows import SHARD, ArtifactQuery, Loaded, WorkflowRow
from flock_ray.errors import StaleEpochError
from flock_ray.ports import Persistence, ShardStore
from tests.store_contract_journal import StoreFixtures
from tests.unit.adapters.store_rows import activation, artifact, batch, key, snapshot, visible, workflow

TYPES, PRODUCERS, TAGS = ("Order", "Note", "order"), ("clerk", "boss", ""), ("eu", "EU", "e%", "x")
KINDS, WORKFLOWS = ("Public", "Private", "Labelled"), ("wf", "wf-1", "WF")

STEPS = ("append", "append", "append", "again", "snapshot", "truncate", "remove", "erase", "reopen", "ask")

histories = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2**16)), min_size=1, max_size=25)
"""What happens, and the seed of its details."""


@dataclass
class Twins:
    """A store and its model, fed with the same."""

    open: Callable[[], ShardStore]
    store: ShardStore
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    rng: Random = field(default_factory=Random)
    names: int = 0
    covered: int = 0
    opened: list[ShardStore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = MemoryStore(self.disk)
        self.last = batch(0)
        self.opened.append(self.store)

    async def step(self, kind: str, seed: int) -> None:
        self.rng = Random(seed)
        await getattr(self, f"_{kind}")()

    def _some_ids(self) -> list[bytes]:
        return [key(self.rng.randrange(self.names + 2)) for _ in range(self.rng.randrange(5))]

    async def _append(self) -> None:
        rng, disk = self.rng, self.disk
        names = range(self.names, self.names + rng.randrange(6))
        self.names = names.stop
        artifacts = []
        for name in names:
            slot = rng.randrange(3)
            artifacts.append(
                artifact(
                    name,
                    type=rng.choice(TYPES),
                    produced_by=rng.choice(PRODUCERS),
                    workflow=WORKFLOWS[slot],
                    slot=slot,
                    created_us=rng.randrange(8),
                    tags=rng.sample(TAGS, rng.randrange(4)),
                    visibility=visible(rng.choice(KINDS)),
                    payload=b'"%d"' % name,
                )
            )
        self.last = batch(
            disk.last_lsn + 1,
            artifacts,
            first_seq=disk.last_seq + 1 + rng.randrange(3),
            activations=[
                activation(
                    ("run", name),
                    inputs=[rng.randrange(name + 1) for _ in range(rng.randrange(3))],
                    workflow=entry.correlation_id,
                    slot=entry.slot,
                    ended_us=disk.last_lsn,
                )
                for name, entry in zip(names, artifacts, strict=True)
            ],
            workflows=[
                workflow(WORKFLOWS[slot], slot=slot, open=rng.randrange(2), updated_us=rng.randrange(9))
                for slot in rng.sample(range(3), rng.randrange(4))
            ],
        )
        await self._again()

    async def _again(self) -> None:
        if self.last.lsn == self.disk.last_lsn + 1 or self.last.lsn == self.disk.last_lsn > 0:
            await self.model.append(self.last)
            await self.store.append(self.last)

    async def _snapshot(self) -> None:
        slots = self.rng.sample(range(4), self.rng.randrange(1, 4))
        data = self.rng.choice((b"one", b"two"))
        lsn = self.rng.randrange(self.disk.last_lsn + 1)
        snapshots = [snapshot(slot, lsn, data) for slot in slots]
        await self.model.save_snapshots(snapshots)
        await self.store.save_snapshots(snapshots)

    async def _truncate(self) -> None:
        lsn = self.rng.randrange(self.disk.last_lsn + 2)
        # A shard truncates what its snapshot covers, never more.
        self.covered = max(self.covered, min(lsn, self.disk.last_lsn))
        covering = [snapshot(SHARD, self.covered)]
        for store in (self.model, self.store):
            await store.save_snapshots(covering)
            await store.truncate(lsn)

    async def _remove(self) -> None:
        keys = [(self.rng.randrange(3), self.rng.choice(WORKFLOWS)) for _ in range(3)]
        assert await self.model.remove_workflows(keys) == await self.store.remove_workflows(keys)

    async def _erase(self) -> None:
        ids = self._some_ids()
        assert await self.model.erase(ids) == await self.store.erase(ids)

    async def _reopen(self) -> None:
        fenced, self.store = self.store, self.open()
        self.opened.append(self.store)
        await self.store.acquire()
        self.model = MemoryStore(self.disk)
        await self.model.acquire()
        self.last = batch(0)
        with pytest.raises(StaleEpochError):
            await fenced.append(batch(self.disk.last_lsn + 1))
        await fenced.close()

    async def _ask(self) -> None:
        rng, model, store = self.rng, self.model, self.store
        query = ArtifactQuery(
            types=tuple(rng.sample(TYPES, rng.choice((0, 0, 1, 2)))),
            produced_by=tuple(rng.sample(PRODUCERS, rng.choice((0, 0, 1, 2)))),
            correlation_id=rng.choice((None, None, *WORKFLOWS)),
            tags=tuple(rng.sample(TAGS, rng.choice((0, 0, 1, 2)))),
            visibility=tuple(rng.sample(KINDS, rng.choice((0, 0, 1, 2)))),
            start_us=rng.choice((None, None, rng.randrange(8))),
            end_us=rng.choice((None, None, rng.randrange(8))),
        )
        after, limit, offset = rng.randrange(20), rng.randrange(1, 6), rng.randrange(6)
        assert await model.read(query, after, limit) == await store.read(query, after, limit)
        assert await model.page(query, limit, offset) == await store.page(query, limit, offset)
        before = rng.choice((None, (rng.randrange(8), key(rng.randrange(20)))))
        assert await model.newest(query, limit, before) == await store.newest(query, limit, before)
        assert await model.count(query) == await store.count(query)
        assert await model.summarize(query) == await store.summarize(query)
        assert await model.recent_ids(limit) == await store.recent_ids(limit)

    async def compare(self) -> None:
        model, store = self.model, self.store
        ids = [key(name) for name in range(self.names)]
        assert in_order(await model.load()) == in_order(await store.load())
        assert await model.read(ArtifactQuery(), 0, 1000) == await store.read(ArtifactQuery(), 0, 1000)
        assert await model.bodies(ids) == await store.bodies(ids)
        assert sorted(await model.get(ids)) == sorted(await store.get(ids))
        assert await model.consumptions(ids) == await store.consumptions(ids)
        for name in WORKFLOWS:
            assert await model.activations(name, 7) == await store.activations(name, 7)
        flows = await store.workflows(WORKFLOWS)
        assert sorted(await model.workflows(WORKFLOWS), key=place) == sorted(flows, key=place)
        settled = await store.settled_before(7, 100)
        assert [row.updated_us for row in settled] == sorted(row.updated_us for row in settled)
        assert sorted(await model.settled_before(7, 100), key=place) == sorted(settled, key=place)


def in_order(loaded: Loaded) -> Loaded:
    loaded.snapshots.sort(key=lambda entry: entry.slot)
    return loaded


def place(row: WorkflowRow) -> tuple[int, str]:
    return row.slot, row.id


class RandomContract(StoreFixtures):
    _board_numbers = itertools.count()

    # The fixture is one place; each example takes a board of its own there. Each subclass is another store.
    @settings(
        max_examples=30,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    @given(history=histories)
    async def test_random_histories_end_as_in_the_model(
        self, persistence: Persistence, history: list[tuple[str, int]]
    ) -> None:
        board = f"random-{next(self._board_numbers)}-{secrets.token_hex(4)}"
        await persistence.prepare(board, 1)

        def open_store() -> ShardStore:
            return persistence.store(board, 0, range(256))

        twins = Twins(open_store, open_store())
        try:
            for kind, seed in [("reopen", 0), *history]:
                await twins.step(kind, seed)
            await twins.compare()
        finally:
            for store in twins.opened:
                await store.close()
