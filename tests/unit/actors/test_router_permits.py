from __future__ import annotations

import asyncio
from typing import Any, cast

from flock_ray.actors.pools import RouterSettings, WorkerEntry
from flock_ray.actors.router import Router
from flock_ray.core import wire
from flock_ray.core.state import MATCH_AGENT


async def asked(router: Router, grant_seq: int) -> wire.GrantBatch:
    report = wire.ShardReport(0, 0, 0, [], grant_seq=grant_seq)
    return wire.decode_grants(await router.exchange(wire.encode(report)))


def add_worker(router: Router, name: str) -> None:
    entry = WorkerEntry(name, cast("Any", None))
    entry.state = "ready"
    router._workers[name] = entry
    router._regrant()


async def test_permits_are_sent_whole_once_and_then_only_renewed_until_something_changes() -> None:
    router = Router(
        1, peers=cast("Any", None), spawner=cast("Any", None), monotonic=asyncio.get_running_loop().time,
        settings=RouterSettings(renew_every_s=0.0),
    )  # fmt: skip
    router._recovered.set()
    add_worker(router, "shared:1")
    first = await asked(router, 0)
    assert first.grants == [wire.Grant(("shared:1",), first.grants[0].agents)]
    assert [allowance.agent for allowance in first.grants[0].agents] == [MATCH_AGENT]
    second = await asked(router, first.seq)
    assert (second.grants, second.renews) == ([], first.seq)
    third = await asked(router, second.seq)
    assert (third.grants, third.renews) == ([], second.seq)
    assert (await asked(router, second.seq)).grants, "the shard has not got the last one: it gets all"
    last = await asked(router, 0)
    assert last.grants, "it has dropped something, or is a new process"
    add_worker(router, "shared:2")
    assert (await asked(router, last.seq)).grants[0].workers == ("shared:1", "shared:2")
