"""Erasing content: everywhere it is, whatever waits, and after a crash."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flock_ray import JoinSpec
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.core import wire
from flock_ray.core.recovery import snapshot_slot
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.core.rows import ERASED
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Gate, Item
from flock_ray.erasing import _logged, copies, put_tombstones
from flock_ray.errors import ArtifactSchemaError, ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.kept import Kept, kill, no_threads, seen_events
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen

__all__ = ["no_threads"]

SECRET = "Jane Roe, 1 Main Street"
WAIT = timedelta(days=365)


def in_memory(flock: VirtualFlock) -> bool:
    """Say whether any shard still holds the secret, in whatever it would journal or send."""
    assert flock.local is not None
    for shard in flock.local.shards:
        assert shard is not None
        core = shard.core
        held = [*core.index, *(e for _, e in copies(core, shard._forwards())), *_logged(core)]
        if any(SECRET.encode() in envelope.payload for envelope in held):
            return True
        if shard._keeper is None:
            continue
        if any(SECRET.encode() in snapshot_slot(core, index) for index in core.slots):
            return True
    return False


@pytest.mark.parametrize("kept", [None, Kept()], ids=["memory board", "kept"])
@pytest.mark.parametrize("how", ["id", "object", "workflow", "tags"])
def test_content_is_gone_and_everything_else_stays(kept: Kept | None, how: str) -> None:
    async def main() -> None:
        async with VirtualFlock(persistence=kept, namespace=f"board-{how}") as flock:
            flock.agent("copy").consumes(Order).publishes(Note).runs(lambda order: Note(text=SECRET))
            order = await flock.publish(
                Order(n=1, region=SECRET), correlation_id="w", tags={"tenant:7", "eu"}
            )
            await flock.publish(Note(text="other"), correlation_id="x", tags={"tenant:8", "eu"})
            await flock.run_until_idle()
            note = next(a for a in await flock.store.list_by_type("market.Note") if a.correlation_id == "w")
            ways: dict[str, dict[str, Any]] = {
                "id": {"artifacts": [str(order.id), note.id, uuid.uuid4()]},
                "object": {"artifacts": [order, note]},
                "workflow": {"correlation_id": "w"},
                "tags": {"tags": {"tenant:7", "eu"}},
            }
            if kept is not None:
                shard = flock.local.shards[0]  # type: ignore[union-attr]  # it is open
                assert shard is not None
                shard.core.drop_settled(order.envelope.slot)  # only the event log has it now
            assert await flock.erase(**ways[how], reason="request 17") == 2
            for artifact in (order, note):
                found = await flock.store.get(artifact.id)
                assert found is not None and repr(found.payload) == "None"
                assert (found.tags, found.parents, found.type) == (
                    artifact.tags,
                    artifact.parents,
                    artifact.type,
                )
                with pytest.raises(ArtifactSchemaError):
                    found.model()
            assert not in_memory(flock)
            assert (await flock.store.get_by_type(Note, correlation_id="x")) == [Note(text="other")]
            assert (await flock.workflow_status("w")).artifact_count == 2
            assert await seen_events(flock, "artifact.erased") == [("artifact.erased", "")]
            assert await flock.erase(**ways[how], reason="again") == 2
            if kept is not None:
                assert SECRET.encode() not in kept.bytes()
                decisions = [
                    d for d in kept.decisions if d.kind == "artifact.erased" and d.detail == "request 17"
                ]
                assert {str(order.id), str(note.id)} <= {d.subject for d in decisions}

    run_virtual(main())


def wait_everywhere(flock: VirtualFlock, seen: Seen) -> None:
    """Agents that hold an order in an AND gate, a join on another shard, a batch, a condition and a delay."""
    join = JoinSpec(by=lambda m: m.n, within=WAIT)
    flock.agent("and").consumes(Order, Payment).runs(seen.one)
    flock.agent("join").consumes(Order, Parcel, join=join).runs(seen.one)
    flock.agent("batch").consumes(Order, batch={"size": 50}).runs(lambda orders: seen.one(*orders))
    flock.agent("board").consumes(Order, Parcel, scope="board").runs(seen.one)


def test_every_place_of_a_shard_that_can_hold_an_artifact_is_looked_at() -> None:
    def copy(n: int) -> wire.Envelope:
        return wire.Envelope(bytes([n]) * 16, "t", 1, SECRET.encode(), "w", 0, "a", 1)

    core = ShardCore([0, 1], durable=True)
    slot, match = core.slots[0], wire.Match("s")
    spec = wire.SubscriptionSpec("s", "a", ("t",), "and")
    slot.open[b"a"] = Activation(b"a", "a", "s", 0, "w", (copy(1), copy(9)), 1)
    slot.gates["s"] = {
        b"k": Gate(spec, b"k", 1, held={"t": deque([Item(copy(2), 0)])}, batch=[[Item(copy(3), 0)]])
    }
    slot.held["s", "w"] = [(copy(4), match)]
    slot.outbox[1, 1] = wire.Forward(0, 1, 1, "publish", wire.Posting(copy(5)))
    core.slots[1].outbox[0, 1] = wire.Forward(1, 0, 1, "settle")
    sent = wire.Forward(0, 1, 2, "match", wire.Posting(copy(6)))
    core.index.add(copy(7))
    core.events.published(1, copy(8))
    core.events.completed(1, "a", "w", wire.Completion(b"a", 1, 0, (wire.Posting(copy(8)),)))

    slots, indexed = put_tombstones(core, {bytes([n]) * 16 for n in range(1, 9)}, [sent])

    found = [*core.index, *(e for _, e in copies(core, [sent])), *_logged(core)]
    assert sorted((envelope.id[0], envelope.payload) for envelope in found) == [
        *((n, ERASED) for n in range(1, 8)), (8, ERASED), (8, ERASED), (9, SECRET.encode())
    ]  # fmt: skip
    assert (slots, indexed) == ({0}, {bytes([7]) * 16})


def test_an_input_that_waits_anywhere_is_erased_on_every_shard_and_fails_validation() -> None:
    async def main() -> None:
        kept, seen = Kept(), Seen()
        async with VirtualFlock(persistence=kept, shards=4) as flock:
            wait_everywhere(flock, seen)
            for n in range(12):
                await flock.publish(Order(n=n, region=SECRET), correlation_id=f"w{n}", tags={"jane"})
            await flock.publish(Order(n=99, region=SECRET), correlation_id="later", tags={"jane"}, delay=WAIT)
            await flock.run_until_idle()
            assert kept.bytes().count(SECRET.encode()) > 13  # other shards' journals have it too
            assert await flock.erase(tags=["jane"], reason="gone") == 13
            assert SECRET.encode() not in kept.bytes()
            assert not in_memory(flock)
            await kill(flock)
        async with VirtualFlock(persistence=kept, shards=4) as again:
            wait_everywhere(again, seen)
            await again.publish(Payment(n=1), correlation_id="w1")
            await again.publish(Parcel(n=2), correlation_id="w2")
            await again.run_until_idle()
            errors = await again.store.list_by_type("WorkflowError")
            assert sorted(error.payload["failed_agent"] for error in errors) == ["and", "board", "join"]
            assert {error.payload["error_type"] for error in errors} == {"ArtifactSchemaError"}
            assert SECRET not in str([error.payload for error in errors])
            assert seen == []
            assert SECRET.encode() not in kept.bytes()

    run_virtual(main())


def test_a_crash_while_erasing_is_made_good_by_erasing_again() -> None:
    async def main(step: str) -> None:
        kept, seen = Kept(), Seen()
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            wait_everywhere(flock, seen)
            for n in range(8):
                await flock.publish(Order(n=n, region=SECRET), correlation_id=f"w{n}", tags={"jane"})
            await flock.run_until_idle()
            shard = flock.local.shards[1]  # type: ignore[union-attr]  # it is open
            assert shard is not None and shard._keeper is not None
            stuck: Any = shard._keeper if step == "cut" else shard._keeper.store
            setattr(stuck, step, lambda *_: asyncio.Event().wait())
            erasing = asyncio.ensure_future(flock.erase(tags={"jane"}, reason="gone"))
            await asyncio.sleep(1)
            assert not erasing.done()
            erasing.cancel()
            await kill(flock)
        async with VirtualFlock(persistence=kept, shards=2) as again:
            wait_everywhere(again, seen)
            await again.start()
            assert await again.erase(tags={"jane"}, reason="gone") == 8
            assert SECRET.encode() not in kept.bytes()
            assert not in_memory(again)

    for step in ("erase", "cut"):
        run_virtual(main(step))


def test_a_copy_that_arrives_after_it_was_erased_is_erased_on_arrival() -> None:
    async def main() -> None:
        kept, seen = Kept(), Seen()
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            wait_everywhere(flock, seen)
            await flock.start()
            late: list[tuple[int, bytes]] = []
            shards = flock.local.shards  # type: ignore[union-attr]  # it is open
            for index, shard in enumerate(shards):
                assert shard is not None

                async def lose(blob: bytes, index: int = index) -> bytes:
                    late.append((index, blob))
                    return wire.encode(wire.ForwardReply("stale_shard"))

                setattr(shard, "forward", lose)  # noqa: B010  # a slow network
            for n in range(8):
                await flock.publish(Order(n=n, region=SECRET), correlation_id=f"w{n}", tags={"jane"})
            await asyncio.sleep(0.01)
            before = list(late)
            assert any(SECRET.encode() in blob for _, blob in before)
            assert await flock.erase(tags={"jane"}, reason="gone") == 8
            for shard in shards:
                del shard.forward  # type: ignore[union-attr]  # as it was
            for index, blob in before:
                await shards[index].forward(blob)  # type: ignore[union-attr]  # it is open
            await flock.run_until_idle()
            assert not in_memory(flock)
            assert SECRET.encode() not in kept.bytes()

    run_virtual(main())


@pytest.mark.usefixtures("no_threads")
def test_content_is_erased_in_the_archive_too(tmp_path: Path) -> None:
    async def main() -> None:
        retention = Retention(timedelta(hours=1), RetentionPolicy.ARCHIVE_COMPLETED, archive=str(tmp_path))
        async with VirtualFlock(persistence=Kept(retention), shards=2) as flock:
            for n in range(6):
                await flock.publish(Order(n=n, region=SECRET), correlation_id=f"w{n}", tags={f"t{n % 2}"})
            await asyncio.sleep(7200)
            await flock.publish(Order(n=7, region=SECRET), correlation_id="w7", tags={"t0"})
            assert await flock.erase(tags={"t0"}, reason="gone") == 4
            rows = await flock.archive.query("SELECT correlation_id, payload FROM artifacts")
            assert sorted(row["correlation_id"] for row in rows if row["payload"] == "null") == [
                "w0",
                "w2",
                "w4",
            ]
            assert all(SECRET in row["payload"] for row in rows if row["payload"] != "null")
            assert await flock.erase(correlation_id="w1", reason="gone") == 1
            kept = await flock.archive.workflow("w3")
            assert await flock.erase(artifacts=kept, reason="gone") == 1
            assert [a.payload for a in await flock.archive.workflow("w3")] == [None]
            assert await flock.erase(correlation_id="unknown", reason="gone") == 0
            assert len(await flock.archive.query("SELECT id FROM artifacts")) == 6

    run_virtual(main())


@pytest.mark.usefixtures("no_threads")
def test_nothing_that_was_read_for_the_archive_before_an_erasure_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        retention = Retention(timedelta(hours=1), RetentionPolicy.ARCHIVE_COMPLETED, archive=str(tmp_path))
        async with VirtualFlock(persistence=Kept(retention)) as flock:
            await flock.publish(Order(n=1, region=SECRET), correlation_id="w")
            store = flock.local.shards[0]._keeper.store  # type: ignore[union-attr]  # it is open
            listed = store.activations
            erasures: list[asyncio.Future[int]] = []

            async def slow(workflow: str, limit: int) -> Any:
                if not erasures:
                    erasures.append(asyncio.ensure_future(flock.erase(correlation_id="w", reason="gone")))
                    await asyncio.sleep(60)
                return await listed(workflow, limit)

            monkeypatch.setattr(store, "activations", slow)
            await asyncio.sleep(7200)
            assert await erasures[0] == 1
            assert [a.payload for a in await flock.archive.workflow("w")] == [None]
            assert not any(SECRET.encode() in path.read_bytes() for path in written(tmp_path))

    run_virtual(main())


def written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tags": {"a"}, "correlation_id": "w"},
        {"tags": []},
        {"correlation_id": ""},
        {"tags": "tenant"},
        {"artifacts": "3f2b"},
        {"artifacts": ["no id"]},
        {"tags": {"a"}, "reason": " "},
    ],
)
def test_an_order_that_is_not_clear_is_refused_and_erases_nothing(arguments: dict[str, Any]) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            await flock.publish(Order(n=1))
            with pytest.raises(ConfigurationError):
                await flock.erase(**{"reason": "because", **arguments})
            assert await flock.store.get_by_type(Order) == [Order(n=1)]

    run_virtual(main())


def rows_with_secret(folder: Path) -> list[str]:
    """Return the tables of all SQLite files that hold the secret in a row."""
    found: list[str] = []
    for path in folder.rglob("*.db"):
        connection = sqlite3.connect(path)
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            found += [table for row in rows for value in row
                      if SECRET.encode() in (value if isinstance(value, bytes) else str(value).encode())]  # fmt: skip
        connection.close()
    return found


def test_with_sqlite_no_row_holds_the_content_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        seen = Seen()
        async with VirtualFlock(persistence=SQLitePersistence(tmp_path), shards=2) as flock:
            wait_everywhere(flock, seen)
            for n in range(8):
                await flock.publish(Order(n=n, region=SECRET), correlation_id=f"w{n}", tags={"jane"})
            await flock.run_until_idle()
            assert {"artifacts", "frames"} <= set(rows_with_secret(tmp_path))
            assert await flock.erase(tags={"jane"}, reason="gone") == 8
            assert not in_memory(flock)
            await kill(flock)
        async with VirtualFlock(persistence=SQLitePersistence(tmp_path), shards=2) as again:
            wait_everywhere(again, seen)
            await again.publish(Payment(n=1), correlation_id="w1")
            await again.run_until_idle(timeout=20)
            errors = await again.store.list_by_type("WorkflowError")
            assert [error.payload["failed_agent"] for error in errors] == ["and"]
            assert all(
                artifact.payload is None for artifact in await again.store.list_by_type("market.Order")
            )
        assert rows_with_secret(tmp_path) == []

    asyncio.run(main())
