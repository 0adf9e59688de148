"""A process that was thought dead takes its shard's slots, when another one is that shard: it starts again."""

from __future__ import annotations

from unittest import mock

import pytest

from tests.simulation.scenario import scenario
from tests.simulation.simulator import SimShard, run_seeded
from tests.simulation.world import World

pytestmark = pytest.mark.timeout(300)

SEEDS = (1, 2, 5, 9)


def run(seed: int) -> World:
    """Run a seed in which the first that take slots take them a second time, within three seconds."""
    world = World(seed)
    world.faults.late_acquires = 6
    run_seeded(world, scenario)
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shard_that_a_late_predecessor_has_fenced_starts_again(seed: int) -> None:
    world = run(seed)
    assert sum(len(lives) for lives in world.lives.values()) > len(world.lives)


def run_all() -> None:
    for seed in SEEDS:
        run(seed)


def test_the_simulator_sees_a_fenced_shard_that_stays() -> None:
    staying = mock.patch.object(SimShard, "outrun", return_value=None)
    with staying, pytest.raises(Exception, match="starts again"):
        run_all()
