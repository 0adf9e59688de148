from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.testing import VirtualFlock
from flock_ray.verifying import verify_board
from tests.fixtures.journal import BOARD, JOURNALS, Load, Match, Order, Payment, Shipment, declare


@pytest.mark.parametrize("release", sorted(path.name for path in JOURNALS.iterdir()))
async def test_a_board_that_an_old_release_wrote_goes_on(release: str, tmp_path: Path) -> None:
    # Given a board as a release left it
    shutil.copytree(JOURNALS / release, tmp_path / "boards")
    kept = SQLitePersistence(str(tmp_path / "boards"))
    assert (await verify_board(kept, BOARD)).violations == []
    flock = VirtualFlock(persistence=kept, namespace=BOARD)
    declare(flock)
    await flock.start()

    # Then what was settled is there, and a repeated publish finds its artifact
    assert [s.n for s in await flock.store.get_by_type(Shipment)] == [1]
    assert [m.n for m in await flock.store.get_by_type(Match)] == [1]
    assert (await flock.publish(Order(n=99), correlation_id="w3", idempotency_key="third")).payload == {
        "n": 3
    }

    # When the inputs arrive that gates, joins and batches wait for
    await flock.publish(Payment(n=2), correlation_id="w2")
    await flock.publish(Order(n=4), correlation_id="w4")
    await flock.run_until_idle()

    # Then they go on from where they were
    assert sorted(s.n for s in await flock.store.get_by_type(Shipment)) == [1, 2]
    assert sorted(m.n for m in await flock.store.get_by_type(Match)) == [1, 2]
    assert [load.size for load in await flock.store.get_by_type(Load)] == [4]
    assert (await flock.workflow_status("later")).state == "waiting"
    await flock.shutdown(flush_batches=False)
    assert (await verify_board(kept, BOARD)).violations == []
