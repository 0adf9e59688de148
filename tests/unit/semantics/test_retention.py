"""Retention: which workflows leave, when, and what a crash in between does."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flock_ray import JoinSpec
from flock_ray.actors import retention
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.errors import ConfigurationError
from flock_ray.persistence import retained
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.kept import Kept, kill, no_threads, seen_events
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen

__all__ = ["no_threads"]

DELETE, ARCHIVE = RetentionPolicy.DELETE_COMPLETED, RetentionPolicy.ARCHIVE_COMPLETED
HOUR = timedelta(hours=1)
DAY_S = 86_400.0


def ship(flock: VirtualFlock) -> None:
    flock.agent("ship").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))


def archived(folder: Path) -> list[Path]:
    return list(folder.rglob("artifacts-*.parquet"))


def test_a_settled_workflow_goes_when_its_time_is_over_and_not_before() -> None:
    async def main() -> None:
        kept = Kept(Retention(HOUR, DELETE))
        async with VirtualFlock(persistence=kept) as flock:
            ship(flock)
            await flock.publish(Order(n=1), correlation_id="old")
            await flock.run_until_idle()
            await asyncio.sleep(1800)
            await flock.publish(Order(n=2), correlation_id="new")
            await asyncio.sleep(1790)
            assert kept.stored() == {"old", "new"}
            await asyncio.sleep(60)
            assert kept.stored() == {"new"}
            assert (await flock.workflow_status("old")).state == "not_found"
            assert await flock.store.count(Parcel) == 1
            assert [artifact.correlation_id for artifact in await flock.store.list()] == ["new", "new"]
            assert await seen_events(flock, "workflow.deleted") == [("workflow.deleted", "old")]
        assert kept.kinds()[-1] == ("workflow.deleted", "old")
        assert "2 artifacts" in kept.decisions[-1].detail

    run_virtual(main())


def test_without_a_ttl_a_workflow_goes_soon_after_it_settled() -> None:
    async def main() -> None:
        kept = Kept(Retention(policy=DELETE))
        async with VirtualFlock(persistence=kept) as flock:
            ship(flock)
            for n in range(100):
                await flock.publish(Order(n=n), correlation_id=f"w{n}")
            await asyncio.sleep(50)
            assert len(kept.stored()) == 100
            await asyncio.sleep(40)
            assert kept.stored() == set()
            assert (await flock.local.shards[0].stats())["workflows"] == 0  # type: ignore[union-attr]  # it is open

    run_virtual(main())


def test_a_workflow_that_waits_is_never_removed_however_old() -> None:
    async def main() -> Seen:
        kept, seen = Kept(Retention(HOUR, DELETE)), Seen()
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            join = JoinSpec(by=lambda m: m.n, within=timedelta(days=100))
            flock.agent("gate").consumes(Order, Payment, where=lambda m: m.n == 1).runs(seen.one)
            flock.agent("join").consumes(Parcel, Payment, where=lambda m: m.n == 7, join=join).runs(seen.one)

            async def slow(note: Note) -> None:
                await asyncio.sleep(30 * DAY_S)
                seen.append(note.text)

            flock.agent("slow").consumes(Note).runs(slow)
            await flock.publish(Order(n=1), correlation_id="gate")
            await flock.publish(Parcel(n=7), correlation_id="join")
            await flock.publish(Note(text="ran"), correlation_id="run")
            await flock.publish(Note(text="delayed"), correlation_id="delay", delay=timedelta(days=20))
            await asyncio.sleep(10 * DAY_S)
            assert kept.stored() == {"gate", "join", "run", "delay"}
            await flock.publish(Payment(n=1), correlation_id="gate")
            await flock.publish(Payment(n=7), correlation_id="other")
            await asyncio.sleep(DAY_S)
            assert kept.stored() == {"run", "delay"}
            await asyncio.sleep(60 * DAY_S)
            assert kept.stored() == set()
        return seen

    assert run_virtual(main()) == [
        (Order(n=1), Payment(n=1)), (Parcel(n=7), Payment(n=7)), "ran", "delayed"
    ]  # fmt: skip


def test_something_new_makes_a_workflow_young_again() -> None:
    async def main() -> None:
        kept = Kept(Retention(HOUR, DELETE))
        async with VirtualFlock(persistence=kept) as flock:
            for _ in range(10):
                await flock.publish(Order(n=1), correlation_id="w")
                await asyncio.sleep(3000)
            assert await flock.store.count(Order) == 10
            await asyncio.sleep(3000)
            assert kept.stored() == set()

    run_virtual(main())


def test_the_longest_time_among_its_types_counts() -> None:
    async def main() -> None:
        per_type = {"market.Parcel": timedelta(days=30), "market.Note": timedelta(minutes=10)}
        kept = Kept(Retention(HOUR, DELETE, per_type))
        async with VirtualFlock(persistence=kept) as flock:
            ship(flock)
            await flock.publish(Order(n=1), correlation_id="parcel")
            await flock.publish(Note(text="short"), correlation_id="note")
            await flock.publish(Payment(n=1), correlation_id="plain")
            await asyncio.sleep(1200)
            assert kept.stored() == {"parcel", "plain"}
            await asyncio.sleep(3600)
            assert kept.stored() == {"parcel"}
            await flock.publish(Payment(n=2), correlation_id="later")
            await asyncio.sleep(29 * DAY_S)
            assert kept.stored() == {"parcel"}
            await asyncio.sleep(DAY_S)
            assert kept.stored() == set()

    run_virtual(main())


def test_many_workflows_that_are_kept_for_their_type_do_not_hide_one_that_may_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "ROUND", 4)

    async def main() -> None:
        kept = Kept(Retention(HOUR, DELETE, {"market.Parcel": timedelta(days=30)}))
        async with VirtualFlock(persistence=kept) as flock:
            for n in range(50):
                await flock.publish(Parcel(n=n), correlation_id=f"p{n}")
            await flock.publish(Order(n=1), correlation_id="o")
            await asyncio.sleep(2 * 3600)
            assert len(kept.stored()) == 50
            assert "o" not in kept.stored()

    run_virtual(main())


def test_what_was_removed_does_not_come_back_with_a_recovery_and_can_begin_anew() -> None:
    async def main() -> None:
        kept, seen = Kept(Retention(HOUR, DELETE)), Seen()
        async with VirtualFlock(persistence=kept) as flock:
            flock.agent("a").consumes(Order).runs(seen.one)
            await flock.publish(Order(n=1), correlation_id="w")
            await flock.cancel("w")
            await asyncio.sleep(4000)
            assert kept.stored() == set()
            # A new workflow of the name: not cancelled, and counted from one.
            await flock.publish(Order(n=2), correlation_id="w")
            await flock.run_until_idle()
            await kill(flock)
        async with VirtualFlock(persistence=kept) as again:
            again.agent("a").consumes(Order).runs(seen.one)
            await again.publish(Order(n=3), correlation_id="w")
            await again.run_until_idle()
            status = await again.workflow_status("w")
            assert (status.state, status.artifact_count, status.counts) == (
                "completed",
                2,
                {"market.Order": 2},
            )
        assert [order.n for order in seen][-2:] == [2, 3]

    run_virtual(main())


def test_a_repeated_publish_of_something_removed_is_no_new_artifact() -> None:
    async def main() -> None:
        kept, seen = Kept(Retention(HOUR, DELETE)), Seen()
        async with VirtualFlock(persistence=kept) as flock:
            flock.agent("a").consumes(Order).runs(seen.one)
            first = await flock.publish(Order(n=1), idempotency_key="k")
            await asyncio.sleep(2 * 3600)
            assert kept.stored() == set()
            again = await flock.publish(Order(n=1), idempotency_key="k")
            await flock.run_until_idle()
            assert again.id == first.id
            assert (len(seen), kept.stored()) == (1, set())

    run_virtual(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_workflow_that_is_touched_while_its_removal_is_prepared_stays(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async def main() -> None:
        kept = Kept(Retention(HOUR, DELETE))
        async with VirtualFlock(persistence=kept) as flock:
            await flock.publish(Order(n=1), correlation_id="w")
            await flock.publish(Order(n=1), correlation_id="x")
            shard = flock.local.shards[0]  # type: ignore[union-attr]  # it is open
            assert shard is not None and shard._keeper is not None
            cut = shard._keeper.cut

            async def slow_cut(*args: Any) -> None:
                if when == "before":
                    await flock.publish(Order(n=2), correlation_id="w")
                await cut(*args)
                if when == "after":
                    await flock.publish(Order(n=2), correlation_id="w")

            monkeypatch.setattr(shard._keeper, "cut", slow_cut)
            await asyncio.sleep(3700)
            assert kept.stored() == {"w"}
            assert await flock.store.count(Order, correlation_id="w") == 2

    run_virtual(main())


def test_memory_and_disk_agree_after_a_crash_at_any_time() -> None:
    async def main(crash_s: float) -> None:
        kept, seen = Kept(Retention(timedelta(minutes=2), DELETE)), Seen()
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            ship(flock)
            for n in range(40):
                await flock.publish(Order(n=n), correlation_id=f"w{n % 8}", delay=timedelta(seconds=n))
            await asyncio.sleep(crash_s)
            await kill(flock)
        async with VirtualFlock(persistence=kept, shards=2) as again:
            again.agent("ship").consumes(Order).publishes(Parcel).runs(lambda order: Parcel(n=order.n))
            again.agent("seen").consumes(Parcel).runs(seen.by("seen"))
            await again.run_until_idle(include_timers=True)
            for artifact in await again.store.list():
                assert artifact.payload is not None
            await asyncio.sleep(300)
            assert kept.stored() == set()
            assert sum(len(disk.flows) for disk in kept.disks()) == 0

    for crash_s in (1.0, 45.0, 131.0, 150.0, 190.0):
        run_virtual(main(crash_s))


@pytest.mark.usefixtures("no_threads")
def test_an_archived_workflow_is_gone_from_the_board_and_found_in_the_archive(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Kept(Retention(HOUR, ARCHIVE, archive=str(tmp_path)))
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            ship(flock)
            for n in range(20):
                await flock.publish(Order(n=n), correlation_id=f"w{n}", tags={"eu"})
            await asyncio.sleep(2 * 3600)
            assert kept.stored() == set()
            found = await flock.archive.query(
                "SELECT type, count(*) AS n FROM artifacts GROUP BY type ORDER BY type"
            )
            assert found == [{"type": "market.Order", "n": 20}, {"type": "market.Parcel", "n": 20}]
            order, parcel = await flock.archive.workflow("w7")
            assert (order.model(), parcel.model()) == (Order(n=7), Parcel(n=7))
            assert parcel.parents == (order.id,) and parcel.tags == {"eu"}
            runs = await flock.archive.query("SELECT agent, status, len(inputs) AS i FROM activations WHERE agent = $a",
                                             {"a": "ship"})  # fmt: skip
            assert runs == [{"agent": "ship", "status": "completed", "i": 1}] * 20
            assert len(await seen_events(flock, "workflow.archived")) == 20
        assert kept.kinds().count(("workflow.archived", "w7")) == 1
        assert len(archived(tmp_path)) <= 2  # one a shard

    run_virtual(main())


@pytest.mark.usefixtures("no_threads")
def test_a_crash_between_archive_and_removal_archives_again_and_shows_it_once(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Kept(Retention(HOUR, ARCHIVE, archive=str(tmp_path)))
        kept.stuck = True
        async with VirtualFlock(persistence=kept) as flock:
            ship(flock)
            await flock.publish(Order(n=1), correlation_id="w")
            await asyncio.sleep(2 * 3600)
            assert kept.stored() == {"w"}
            assert len(await flock.archive.workflow("w")) == 2
            await kill(flock)
        kept.stuck = False
        async with VirtualFlock(persistence=kept) as again:
            await again.start()
            await asyncio.sleep(2 * 3600)
            assert kept.stored() == set()
            assert len(archived(tmp_path)) == 2
            for kind, count in (("artifacts", 2), ("activations", 1), ("workflows", 1)):
                assert await again.archive.query(f"SELECT count(*) AS n FROM {kind}") == [{"n": count}]
            assert len(await again.archive.workflow("w")) == 2

    run_virtual(main())


@pytest.mark.usefixtures("no_threads")
def test_an_archive_that_cannot_be_written_is_said_and_removes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        target = tmp_path / "archive"
        kept = Kept(Retention(HOUR, ARCHIVE, archive=str(target)))
        target.write_text("not a folder")
        async with VirtualFlock(persistence=kept) as flock:
            await flock.publish(Order(n=1), correlation_id="w")
            await asyncio.sleep(5400)
            assert kept.stored() == {"w"}
            assert ("retention.failed", "") in await seen_events(flock, "retention")
            target.unlink()
            await asyncio.sleep(3600)
            assert kept.stored() == set()
            assert len(await flock.archive.workflow("w")) == 1

    run_virtual(main())


@pytest.mark.parametrize("given", [Retention(), None])
def test_a_board_that_keeps_all_has_nobody_who_looks_for_old_workflows(given: Retention | None) -> None:
    async def main() -> None:
        kept = MemoryPersistence() if given is None else Kept(given)
        async with VirtualFlock(persistence=kept) as flock:
            await flock.publish(Order(n=1), correlation_id="w")
            shard = flock.local.shards[0]  # type: ignore[union-attr]  # it is open
            assert shard is not None and shard._retainer is None and flock.persistence is kept
            await asyncio.sleep(300 * DAY_S)
            assert await flock.store.count(Order) == 1

    run_virtual(main())


def test_every_database_takes_the_same_times_and_the_board_pickles_with_them(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "ttl": HOUR, "retention_policy": ARCHIVE, "per_type": {"t": 2 * HOUR}, "archive": str(tmp_path)
    }  # fmt: skip
    for persistence in (
        SQLitePersistence(tmp_path, **given),
        PostgresPersistence("postgresql://localhost/db", **given),
        RedisPersistence("redis://localhost", **given),
    ):
        wrapped = pickle.loads(pickle.dumps(retained(persistence)))
        assert wrapped.retention == Retention(HOUR, ARCHIVE, {"t": 2 * HOUR}, str(tmp_path))
        assert (repr(wrapped), wrapped.mode) == (repr(persistence), persistence.mode)
    with pytest.raises(ConfigurationError, match="KEEP_ALL"):
        SQLitePersistence(tmp_path, ttl=HOUR)


def test_archiving_without_a_place_goes_to_a_folder_here_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flock = VirtualFlock(
        persistence=RedisPersistence("redis://localhost", ttl=HOUR, retention_policy=ARCHIVE)
    )
    assert flock.persistence.retention.archive == str(Path("flock-archive").resolve())  # type: ignore[union-attr]  # it has one
    assert "give archive= a place that all of them share" in caplog.text


def test_asking_an_archive_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no archive"):
        VirtualFlock(persistence=MemoryPersistence()).archive  # noqa: B018  # asking is enough
    with pytest.raises(ConfigurationError, match="no archive"):
        VirtualFlock().archive  # noqa: B018


def test_with_real_files_of_sqlite_what_is_old_goes_and_the_rest_survives_a_reopening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MIN_AGE_US", 0)
    monkeypatch.setattr(retention, "GATHER_US", {DELETE: 0, ARCHIVE: 0})

    def board() -> VirtualFlock:
        archive = str(tmp_path / "archive")
        persistence = SQLitePersistence(tmp_path / "boards", retention_policy=ARCHIVE, archive=archive)
        flock = VirtualFlock(persistence=persistence, shards=2)
        flock.agent("gate").consumes(Order, Payment).publishes(Parcel).runs(lambda o, p: Parcel(n=o.n + p.n))
        return flock

    async def main() -> None:
        async with board() as flock:
            for n in range(30):
                await flock.publish(Order(n=n), correlation_id=f"w{n}")
            for n in range(0, 30, 2):
                await flock.publish(Payment(n=n), correlation_id=f"w{n}")
            for _ in range(200):
                if await flock.store.count(Order) == 15:
                    break
                await asyncio.sleep(0.1)
            await kill(flock)
        async with board() as again:
            left = {artifact.correlation_id for artifact in await again.store.list()}
            assert left == {f"w{n}" for n in range(1, 30, 2)}
            rows = await again.archive.query(
                "SELECT payload->>'$.n' AS n FROM artifacts WHERE type = 'market.Parcel'"
            )
            assert sorted(int(row["n"]) for row in rows) == [2 * n for n in range(0, 30, 2)]
            for n in range(1, 30, 2):
                await again.publish(Payment(n=n), correlation_id=f"w{n}")
            await again.run_until_idle(timeout=20)
            here = await again.store.count(
                Parcel
            )  # first: what is archived meanwhile counts twice, not never
            gone = await again.archive.query(
                "SELECT count(*) AS n FROM artifacts WHERE type = 'market.Parcel'"
            )
            assert here + gone[0]["n"] >= 30

    asyncio.run(main())
