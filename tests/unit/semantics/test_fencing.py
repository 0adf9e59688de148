from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from flock_ray.actors.fencing import owner_name
from flock_ray.errors import BoardClosedError, StaleEpochError, StoreUnavailableError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.semantics.shop import Order


def shard_of(flock: VirtualFlock) -> Any:
    assert flock.local is not None
    return flock.local.shards[0]


@pytest.mark.parametrize(
    ("owner", "says"),
    [
        ("other-run elsewhere:17", r"started elsewhere \(elsewhere:17\)"),
        ("", "The board was started elsewhere, and"),
    ],
)
def test_a_board_that_was_started_elsewhere_says_where(owner: str, says: str) -> None:
    async def main() -> None:
        place = MemoryPersistence()
        flock = VirtualFlock(persistence=place, namespace="shop")
        await flock.publish(Order(n=1))
        shard = shard_of(flock)
        shard._run_id = "run-1"
        shard._keeper.store.disk.epoch, shard._keeper.store.disk.owner = 9, owner

        with mock.patch.object(shard, "outrun") as outrun:
            for _ in range(2):  # it stays like that
                with pytest.raises(StaleEpochError, match=says):
                    await flock.publish(Order(n=2))
        outrun.assert_not_called()

        # Its end says so too, and ends it
        with pytest.raises(StaleEpochError):
            await flock.shutdown()
        assert shard._closed
        with pytest.raises(BoardClosedError):
            await flock.publish(Order(n=3))

    run_virtual(main())


def test_a_shard_asks_to_be_started_again_when_a_late_process_of_its_own_board_has_its_slots() -> None:
    async def main() -> None:
        flock = VirtualFlock(persistence=MemoryPersistence(), namespace="shop")
        await flock.publish(Order(n=1))
        shard = shard_of(flock)
        shard._run_id = "run-1"
        shard._keeper.store.disk.epoch, shard._keeper.store.disk.owner = 9, owner_name("run-1")

        with mock.patch.object(shard, "outrun") as outrun:
            with pytest.raises(StoreUnavailableError, match="starts again") as told:
                await flock.publish(Order(n=2))
            outrun.assert_called_once()
        assert told.value.retryable
        await flock.shutdown(flush_batches=False)

    run_virtual(main())
