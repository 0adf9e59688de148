from __future__ import annotations

import asyncio

import pytest

from flock_ray.actors.keeping import STEP_BYTES, RecentIds, Rotation
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


def test_a_rotation_takes_larger_steps_the_faster_the_journal_grows() -> None:
    # With steps of one size, large micro-batches outran it: most of a recovery was replay.
    async def scenario() -> list[int]:
        persistence = MemoryPersistence()
        await persistence.prepare("board", 1)
        core, store = ShardCore(range(8), durable=True), persistence.store("board", 0, range(8))
        await store.acquire()
        spec = wire.SubscriptionSpec("gate", "agent", ("Waits", "Never"), "and")
        core.install(wire.TableSpec(1, (wire.AgentInfo("agent"),), (spec,)), 1)
        for n in range(16_000):
            core.publish(posting(n), n + 1)
        rotation, taken = Rotation(core, store, 1), []
        rotation.note(100_000_000, set(range(8)))  # what came before does not count
        for grown in (0, 0, 4 * STEP_BYTES):
            rotation.note(grown, set())
            work = rotation.step(0)
            assert work is not None
            await work()
            taken.append(len((await store.peek()).snapshots))
        return taken

    first, second, third = asyncio.run(scenario())

    assert 0 < first < second < 8
    assert third == 8
