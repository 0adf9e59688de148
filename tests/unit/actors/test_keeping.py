from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from flock_ray.actors.keeping import STEP_BYTES, Keeper, RecentIds
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.core import wire
from flock_ray.core.ids import derive_id
from flock_ray.core.records import Published, encode_frame
from flock_ray.core.shard import ShardCore


def posting(n: int, size: int = 300) -> wire.Posting:
    """Return an artifact that waits in a gate for one that never comes."""
    body = b'{"text": "' + b"x" * size + b'"}'
    key = derive_id(b"test", str(n).encode())
    envelope = wire.Envelope(key, "Waits", 1, body, f"wf-{n}", n % 8, "external", n)
    return wire.Posting(envelope, (wire.Match("gate"),))


def test_recent_ids_keeps_at_least_its_limit_and_at_most_twice_as_many() -> None:
    recent = RecentIds(limit=10)
    for n in range(95):
        recent.add([b"%d" % n])
        known = [m for m in range(n + 1) if b"%d" % m in recent]
        assert known == list(range(known[0], n + 1))
        assert min(10, n + 1) <= len(known) < 20


def test_encode_frame_gives_the_payloads_back() -> None:
    record = Published(1, posting(1))
    kept = record.posting.envelope.payload

    frame = encode_frame(1, [0], [record], lambda _: True)

    assert kept not in frame
    assert record.posting.envelope.payload == kept


def test_encode_frame_gives_the_payloads_back_when_a_record_can_not_be_encoded() -> None:
    record, broken = Published(1, posting(1)), Published(1, wire.Posting(object()))  # type: ignore[arg-type]
    kept = record.posting.envelope.payload

    with pytest.raises((TypeError, AttributeError)):
        encode_frame(1, [0, 1], [record, broken], lambda _: True)

    assert record.posting.envelope.payload == kept


def test_a_rotation_ends_before_the_journal_has_grown_by_as_much_again() -> None:
    # With steps of one size, large micro-batches outran them: most of a recovery was replay.
    async def scenario() -> tuple[int, int]:
        persistence = MemoryPersistence()
        await persistence.prepare("board", 1)
        core = ShardCore(range(8), durable=True)
        store = persistence.store("board", 0, range(8))
        keeper = Keeper(core, store, snapshot_bytes=2 * STEP_BYTES)
        await keeper.recover()
        spec = wire.SubscriptionSpec("gate", "agent", ("Waits", "Never"), "and")
        core.install(wire.TableSpec(1, (wire.AgentInfo("agent"),), (spec,)), 1)
        works: list[Coroutine[Any, Any, None]] = []
        for start in range(0, 40_000, 2_000):
            for n in range(start, start + 2_000):
                core.publish(posting(n), n + 1)
            await keeper.append(start + 1)
            keeper.step(works.append, lambda: None)
            while works:
                await works.pop()
        loaded = await store.peek()
        return sum(len(frame) for _, frame in loaded.frames), sum(len(s.data) for s in loaded.snapshots)

    frames, snapshots = asyncio.run(scenario())

    assert snapshots > 3_000_000
    assert frames < snapshots
