"""`flock.store` under upstream's names: the same answers from memory, from a store, and from several shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import flock_ray.searching
from flock_ray import (
    Artifact,
    ArtifactEnvelope,
    ConsumptionRecord,
    FilterConfig,
    Flock,
    PrivateVisibility,
    SQLitePersistence,
)
from flock_ray.actors import searching
from flock_ray.errors import ConfigurationError
from flock_ray.store import BlackboardStore, BoardStore, InMemoryBlackboardStore, SQLiteBlackboardStore
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment

Board = Callable[[], VirtualFlock]


def _memory(shards: int) -> Board:
    return lambda: VirtualFlock(shards=shards)


def _stored(shards: int) -> Board:
    return lambda: VirtualFlock(shards=shards, persistence=MemoryPersistence())


BOARDS = [
    pytest.param(_memory(1), id="memory"),
    pytest.param(_memory(3), id="memory, 3 shards"),
    pytest.param(_stored(1), id="stored"),
    pytest.param(_stored(3), id="stored, 3 shards"),
]
every_board = pytest.mark.parametrize("board", BOARDS)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a dozen artifacts are several pages and several chunks."""
    monkeypatch.setattr(flock_ray.searching, "PAGE", 3)
    monkeypatch.setattr(flock_ray.searching, "IDS", 2)
    monkeypatch.setattr(searching, "CHUNK", 4)


async def fill(flock: VirtualFlock) -> list[Artifact]:
    """Twelve orders and notes, one second apart but for pairs, in workflows of their own; some restricted or tagged."""
    published = []
    for n in range(12):
        model = Order(n=n) if n % 3 else Note(text=str(n))
        published.append(
            await flock.publish(
                model,
                correlation_id=f"w{n % 4}",
                tags={"even" if n % 2 == 0 else "odd", f"tag{n % 3}"},
                visibility=PrivateVisibility(agents=frozenset({"a"})) if n in (4, 5) else None,
            )
        )
        if n % 2:
            await asyncio.sleep(1)
    return published


def by_creation(artifacts: list[Artifact]) -> list[Artifact]:
    return sorted(artifacts, key=lambda a: (a.created_at, a.id.bytes))


def run(board: Board, scenario: Callable[[VirtualFlock], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with board() as flock:
            return await scenario(flock)

    return run_virtual(main())


@every_board
def test_a_query_gives_pages_by_creation_and_id_and_the_whole_number(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        expected = by_creation(await fill(flock))
        for limit, offset in [(50, 0), (5, 0), (5, 5), (5, 10), (1, 11), (3, 12), (0, 0), (-1, 4), (50, -2)]:
            found, total = await flock.store.query_artifacts(limit=limit, offset=offset)
            start = max(offset, 0)
            assert found == expected[start : start + limit if limit > 0 else None], (limit, offset)
            assert total == 12
            assert [artifact.payload for artifact in found] == [
                a.payload for a in expected[start : start + limit if limit > 0 else None]
            ]

    run(board, scenario)


@every_board
def test_filters_combine_and_nothing_given_is_everything(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        all_of_it = by_creation(await fill(flock))
        times = [artifact.created_at for artifact in all_of_it]

        async def found(**conditions: Any) -> list[int]:
            artifacts, total = await flock.store.query_artifacts(FilterConfig(**conditions))
            assert total == len(artifacts)
            return sorted(all_of_it.index(artifact) for artifact in artifacts)

        def expected(test: Callable[[Artifact], bool]) -> list[int]:
            return [i for i, artifact in enumerate(all_of_it) if test(artifact)]

        assert await found() == list(range(12))
        assert await found(type_names=set(), tags=set()) == list(range(12))
        assert await found(type_names={"market.Order"}) == expected(lambda a: a.type == "market.Order")
        qualified = f"{Order.__module__}.Order"
        assert await found(type_names={qualified, "market.Note"}) == list(range(12))
        assert await found(type_names={"never.Heard"}) == []
        assert await found(produced_by={"external"}) == list(range(12))
        assert await found(produced_by={"nobody"}) == []
        assert await found(correlation_id="w1") == expected(lambda a: a.correlation_id == "w1")
        assert await found(tags={"even", "tag1"}) == expected(lambda a: {"even", "tag1"} <= a.tags)
        assert len(await found(visibility={"Private"})) == 2
        assert await found(start=times[6], end=times[8]) == expected(
            lambda a: times[6] <= a.created_at <= times[8]
        )
        mixed = await found(type_names={"market.Order"}, correlation_id="w1", tags={"odd"}, end=times[9])
        assert mixed == expected(
            lambda a: (
                a.type == "market.Order"
                and a.correlation_id == "w1"
                and "odd" in a.tags
                and a.created_at <= times[9]
            )
        )

    run(board, scenario)


@every_board
def test_a_summary_counts_by_every_property(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        artifacts = by_creation(await fill(flock))
        assert await flock.store.summarize_artifacts() == {
            "total": 12,
            "by_type": {"market.Note": 4, "market.Order": 8},
            "by_producer": {"external": 12},
            "by_visibility": {"Public": 10, "Private": 2},
            "tag_counts": {"even": 6, "odd": 6, "tag0": 4, "tag1": 4, "tag2": 4},
            "earliest_created_at": artifacts[0].created_at.isoformat(),
            "latest_created_at": artifacts[-1].created_at.isoformat(),
            "is_full_window": True,
        }
        none = await flock.store.summarize_artifacts(FilterConfig(start=datetime(2999, 1, 1, tzinfo=UTC)))
        assert none["total"] == 0 and none["by_type"] == {} and none["earliest_created_at"] is None
        assert none["is_full_window"] is False

    run(board, scenario)


def shop(flock: VirtualFlock, *, pairs: bool = True) -> None:
    def fail(order: Order) -> None:
        raise ValueError("no stock")

    flock.agent("packer").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))
    if pairs:
        match = flock.agent("match").consumes(Order, Payment).publishes(Note)
        match.runs(lambda o, p: Note(text=f"{o.n} paid"))
    flock.agent("checker").consumes(Order, where=lambda o: o.n == 2).runs(fail)


@every_board
def test_who_consumed_an_artifact_is_embedded_and_failures_do_not_count(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        shop(flock)
        order = await flock.publish(Order(n=1), correlation_id="w")
        failing = await flock.publish(Order(n=2), correlation_id="v")
        await asyncio.sleep(5)
        payment = await flock.publish(Payment(n=1), correlation_id="w")
        await flock.run_until_idle()

        found, total = await flock.store.fetch_graph_artifacts()
        by_id = {envelope.artifact.id: envelope for envelope in found}
        assert all(isinstance(envelope, ArtifactEnvelope) for envelope in found)
        assert total == len(found) == 7  # three inputs, two parcels, a note and a WorkflowError
        record = by_id[order.id].consumptions[0]
        assert isinstance(record, ConsumptionRecord)
        parcel = next(
            e.artifact
            for e in found
            if e.artifact.type == "market.Parcel" and e.artifact.parents == (order.id,)
        )
        assert (record.consumer, record.correlation_id, record.artifact_id) == ("packer", "w", order.id)
        assert parcel.activation_id is not None and record.run_id == parcel.activation_id.hex
        assert [c.consumer for c in by_id[order.id].consumptions] == ["packer", "match"]
        assert by_id[order.id].consumptions[1].consumed_at - record.consumed_at == timedelta(seconds=5)
        assert [c.consumer for c in by_id[payment.id].consumptions] == ["match"]
        assert [c.consumer for c in by_id[failing.id].consumptions] == ["packer"]
        assert by_id[parcel.id].consumptions == []
        history = await flock.store.agent_history_summary("packer")
        assert history == {
            "produced": {"total": 2, "by_type": {"market.Parcel": 2}},
            "consumed": {"total": 2, "by_type": {"market.Order": 2}},
        }
        of_w = await flock.store.agent_history_summary(
            "match", FilterConfig(correlation_id="w", produced_by={"external"})
        )
        assert of_w["produced"]["total"] == 0
        assert of_w["consumed"] == {"total": 2, "by_type": {"market.Order": 1, "market.Payment": 1}}

    run(board, scenario)


@every_board
def test_the_activations_of_a_workflow_say_what_ran_on_what_and_how_it_ended(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        shop(flock)
        order = await flock.publish(Order(n=2), correlation_id="w")
        await flock.publish(Order(n=3), correlation_id="other")
        await flock.run_until_idle()

        runs = {run.agent: run for run in await flock.store.activations("w")}
        assert runs.keys() == {"packer", "checker"}
        packed, failed = runs["packer"], runs["checker"]
        assert packed.status == "completed" and packed.inputs == (order.id,)
        [parcel] = [a for a in await flock.store.list(correlation_id="w") if a.type == "market.Parcel"]
        assert packed.outputs == (parcel.id,) and packed.id == parcel.activation_id
        assert (failed.status, failed.error_type, failed.error_message) == (
            "failed",
            "ValueError",
            "no stock",
        )
        assert len(await flock.store.activations("w", limit=1)) == 1
        assert await flock.store.activations("never") == []
        with pytest.raises(ConfigurationError, match="from 1 to 1000"):
            await flock.store.activations("w", limit=0)

    run(board, scenario)


@pytest.mark.parametrize("shards", [1, 3])
def test_what_has_left_memory_and_what_was_before_a_restart_is_answered_from_the_store(shards: int) -> None:
    keep = MemoryPersistence()

    async def before() -> list[Artifact]:
        async with VirtualFlock(shards=shards, persistence=keep) as flock:
            shop(flock, pairs=False)
            await fill(flock)
            await flock.run_until_idle()
            return by_creation(await flock.store.list())

    async def after(expected: list[Artifact]) -> None:
        async with VirtualFlock(persistence=keep) as flock:
            assert flock.local is not None
            for shard in flock.local.shards:
                assert shard is not None
                await shard.ready()
                for slot in shard.core.slots:
                    shard.core.drop_settled(slot)
                assert len(shard.core.index) == 0
            found, total = await flock.store.query_artifacts(limit=7, offset=3)
            assert (found, total) == (expected[3:10], len(expected))
            orders = await flock.store.get_by_type(Order)
            assert sorted(order.n for order in orders) == [1, 2, 4, 5, 7, 8, 10, 11]
            embedded, _ = await flock.store.fetch_graph_artifacts(FilterConfig(type_names={"market.Order"}))
            consumers = [c.consumer for envelope in embedded for c in envelope.consumptions]
            assert consumers == ["packer"] * 6  # two orders are private to another agent
            summary = await flock.store.summarize_artifacts(FilterConfig(correlation_id="w1"))
            assert summary["total"] == sum(a.correlation_id == "w1" for a in expected)
            assert [run.agent for run in await flock.store.activations("w2")].count("checker") == 1

    run_virtual(after(run_virtual(before())))


def test_a_reply_ends_before_it_is_too_large_and_the_rest_comes_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flock_ray.searching, "PAGE", 100)
    monkeypatch.setattr(searching, "MAX_PAGE_BYTES", 2500)
    sizes: list[int] = []
    fitting = searching._fitting

    def measured(envelopes: Any) -> Any:
        page = list(fitting(envelopes))
        sizes.append(sum(len(envelope.payload) for envelope in page))
        return iter(page)

    monkeypatch.setattr(searching, "_fitting", measured)

    async def scenario(flock: VirtualFlock) -> None:
        await flock.publish_many([Note(text="x" * 1000) for _ in range(9)])
        await flock.publish(Note(text="x" * 5000))
        for limit in (0, 10):
            found, _ = await flock.store.query_artifacts(limit=limit)
            assert len(found) == 10
        assert len(await flock.store.list()) == 10

    run(_memory(1), scenario)
    assert max(size for size in sizes if size < 5000) <= 2500 and max(sizes) < 6000


def test_artifacts_that_come_while_pages_are_read_do_not_repeat_or_hide_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        expected = by_creation(await fill(flock))
        search = flock_ray.searching._ask

        async def ask(board: Any, shard: int, method: str, *args: Any) -> Any:
            answer = await search(board, shard, method, *args)
            if method == "search":
                await flock.publish(Note(text="late"))
            return answer

        monkeypatch.setattr(flock_ray.searching, "_ask", ask)
        found, total = await flock.store.query_artifacts(limit=12)
        assert found == expected
        assert total > 12

    run(_memory(1), scenario)


def test_consumers_are_found_after_artifacts_were_evicted() -> None:
    async def main() -> None:
        async with VirtualFlock(max_artifacts=1000) as flock:
            flock.agent("packer").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))
            for start in range(0, 3000, 1000):
                await flock.publish_many([Order(n=n) for n in range(start, start + 1000)])
                await flock.run_until_idle()
                await flock.store.fetch_graph_artifacts(limit=1)
            order = await flock.publish(Order(n=9999))
            await flock.run_until_idle()
            found, _ = await flock.store.fetch_graph_artifacts(
                FilterConfig(correlation_id=order.correlation_id)
            )
            assert [c.consumer for e in found for c in e.consumptions] == ["packer"]

    run_virtual(main())


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (FilterConfig(start=datetime(2026, 1, 1)), "naive"),
        (FilterConfig(end=datetime(2026, 1, 1)), "naive"),
        (FilterConfig(type_names="market.Order"), "set of strings"),  # type: ignore[arg-type]  # what users do
    ],
)
def test_filters_that_make_no_sense_are_refused(filters: FilterConfig, message: str) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        with pytest.raises(ConfigurationError, match=message):
            await flock.store.query_artifacts(filters)

    run(_memory(1), scenario)


def test_the_store_does_not_write_and_says_what_to_call() -> None:
    async def scenario(flock: VirtualFlock) -> None:
        artifact = await flock.publish(Note(text="x"))
        with pytest.raises(ConfigurationError, match=r"flock\.publish"):
            await flock.store.publish(artifact)
        await flock.store.record_consumptions([ConsumptionRecord(artifact.id, "me")])
        found, _ = await flock.store.fetch_graph_artifacts()
        assert found[0].consumptions == []

    run(_memory(1), scenario)


# -- upstream's store objects ----------------------------------------------------------------------


def test_an_in_memory_store_is_a_memory_board_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLOCK_PERSISTENCE", f"sqlite:///{tmp_path}/boards")
    assert Flock().persistence is not None
    assert Flock(store=InMemoryBlackboardStore()).persistence is None


def test_a_sqlite_store_keeps_its_boards_in_a_folder_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "board.db"

    async def main() -> int:
        store = SQLiteBlackboardStore(str(path))
        await store.ensure_schema()
        flock = VirtualFlock(store=store)
        async with flock:
            await flock.publish(Note(text="kept"))
        await store.close()
        async with VirtualFlock(store=SQLiteBlackboardStore(path)) as again:
            return await again.store.count(Note)

    assert asyncio.run(main()) == 1
    assert path.is_dir()
    assert isinstance(SQLiteBlackboardStore(path), SQLitePersistence)


def test_a_file_of_flock_is_left_alone_and_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "board.db"
    path.write_bytes(b"SQLite format 3\x00 of upstream")

    with pytest.raises(ConfigurationError, match=r"is a file.*move it away") as caught:
        SQLiteBlackboardStore(path)

    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"SQLite format 3\x00 of upstream"
    with pytest.raises(ConfigurationError, match="InMemoryBlackboardStore"):
        SQLiteBlackboardStore(":memory:")


def test_calls_of_upstreams_store_objects_say_where_they_went(tmp_path: Path) -> None:
    store = SQLiteBlackboardStore(tmp_path / "boards")
    with pytest.raises(ConfigurationError, match=r"flock\.store\.get_by_type"):
        store.get_by_type(Note)
    with pytest.raises(ConfigurationError, match="retention"):
        store.delete_before(datetime.now(UTC))
    with pytest.raises(AttributeError):
        store.nonsense  # noqa: B018
    with pytest.raises(ConfigurationError, match="keeps no boards"):
        Flock(store=object())  # type: ignore[arg-type]  # what users do
    assert BlackboardStore is BoardStore


@every_board
def test_pages_behind_an_offset_among_artifacts_of_one_time_repeat_and_lose_none(board: Board) -> None:
    async def scenario(flock: VirtualFlock) -> None:
        for _ in range(4):
            await asyncio.gather(*(flock.publish(Order(n=n)) for n in range(20)))
            await asyncio.sleep(1)
        expected = by_creation(await flock.store.list())
        for offset in (1, 3, 8, 19, 20, 21, 33, 59, 79, 80, 500):
            found, _ = await flock.store.query_artifacts(limit=30, offset=offset)
            assert found == expected[offset : offset + 30], offset

    run(board, scenario)


def test_a_deep_offset_on_several_shards_takes_a_few_dozen_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = flock_ray.searching._ask

    async def counted(board: Any, shard: int, method: str, *args: Any) -> Any:
        asked.append(method)
        return await ask(board, shard, method, *args)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            for _ in range(20):
                await asyncio.gather(*(flock.publish(Order(n=n)) for n in range(100)))
            expected = by_creation(await flock.store.list())
            monkeypatch.setattr(flock_ray.searching, "_ask", counted)
            found, _ = await flock.store.query_artifacts(limit=5, offset=1_900)
            assert found == expected[1_900:1_905]

    run_virtual(main())
    assert asked.count("search") < 100
