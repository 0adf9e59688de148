from __future__ import annotations

from functools import lru_cache

import pytest

from tests.simulation.mutants import FIRST, MUTANTS
from tests.simulation.scenario import run

pytestmark = pytest.mark.timeout(300)

SEEDS = range(40)


def fails(seed: int) -> bool:
    """Run a seed; whatever goes wrong counts."""
    try:
        run(seed)
    except Exception:
        return True
    return False


@lru_cache
def passes_without_mutant(seed: int) -> bool:
    return not fails(seed)


def caught_by(name: str) -> int | None:
    """Return a seed that finds a mutant; after a change of the product it may be another one."""
    seeds: list[int] = [FIRST[name], *SEEDS]
    for seed in seeds:
        with MUTANTS[name]():
            found = fails(seed)
        if found:
            return seed
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_simulator_catches_mutant(name: str) -> None:
    seed = caught_by(name)
    assert seed is not None, f"no seed of {SEEDS} finds {name}: the simulator has become too kind"
    assert passes_without_mutant(seed)
