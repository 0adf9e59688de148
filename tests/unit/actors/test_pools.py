from __future__ import annotations

from typing import Any, cast

from flock_ray.actors.pools import Pool, PoolKeeper, RouterSettings
from flock_ray.core.wire import PoolInfo


async def test_a_pool_that_has_failed_for_hours_still_tries_again() -> None:
    nothing = cast("Any", None)
    keeper = PoolKeeper(
        1,
        peers=nothing,
        spawner=nothing,
        monotonic=lambda: 100.0,
        settings=RouterSettings(max_backoff_s=30.0),
    )
    pool = Pool(PoolInfo())
    waits = []
    for _ in range(3_000):
        keeper._note_failure(pool, OSError("no room"))
        waits.append(pool.retry_at - 100.0)
    assert waits[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(waits[6:]) == {30.0}
    assert pool.error == "OSError: no room"
