from __future__ import annotations

import gc
from functools import lru_cache

import pytest

from tests.simulation.mutants import FIRST, MUTANTS, RUN_OF
from tests.simulation.scenario import run

pytestmark = [
    pytest.mark.timeout(300),
    # A run that a mutant ends in the middle leaves calls that nobody awaits any more.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

SEEDS = range(40)


def fails(seed: int, name: str) -> bool:
    """Run a seed of the scenario that has to find a mutant; whatever goes wrong counts."""
    try:
        RUN_OF.get(name, run)(seed)
    except Exception:
        return True
    return False


@lru_cache
def passes_without_mutant(seed: int, name: str) -> bool:
    return not fails(seed, name)


def caught_by(name: str) -> int | None:
    """Return a seed that finds a mutant; after a change of the product it may be another one."""
    seeds: list[int] = [FIRST[name], *SEEDS]
    for seed in seeds:
        with MUTANTS[name]():
            found = fails(seed, name)
        if found:
            return seed
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_simulator_catches_mutant(name: str) -> None:
    seed = caught_by(name)
    assert seed is not None, f"no seed of {SEEDS} finds {name}: the simulator has become too kind"
    assert passes_without_mutant(seed, name if name in RUN_OF else "")
    gc.collect()  # what the mutant left behind is found here, not in the next test
