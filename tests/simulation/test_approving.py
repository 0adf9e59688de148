"""Approvals on a cluster under faults."""

from __future__ import annotations

import os

import pytest

from tests.simulation.approving import run_approvals

pytestmark = pytest.mark.timeout(300)

ONLY = os.environ.get("FLOCK_SIM_SEED")
SEEDS = [int(ONLY)] if ONLY else range(int(os.environ.get("FLOCK_SIM_SEEDS", "25")))


@pytest.mark.parametrize("seed", SEEDS)
def test_people_decide_once_whatever_dies(seed: int) -> None:
    run_approvals(seed)
