"""Find the seeds that catch each mutant fastest: `python -m tests.simulation.seeds [mutant...]` prints FIRST."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Sequence

from tests.simulation.mutants import FIRST, MUTANTS, RUN_OF
from tests.simulation.scenario import run

SEEDS = range(40)
FAST_S = 0.6
"""Seconds of CPU time after which a seed is good enough."""
PATIENCE = 8
"""Seeds that are tried after one that was found."""


def cost_s(seed: int, name: str = "") -> float | None:
    """Return the CPU time in which a seed fails; None when it does not."""
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            RUN_OF.get(name, run)(seed)
    except Exception:
        return time.process_time() - began
    return None


def fastest(name: str) -> int | None:
    """Return a seed that finds a mutant fast; None when none does."""
    best: tuple[float, int] | None = None
    tried = 0
    for seed in dict.fromkeys([FIRST.get(name, 0), *SEEDS]):
        with MUTANTS[name]():
            cost = cost_s(seed, name)
        if cost is not None and (best is None or cost < best[0]):
            best, tried = (cost, seed), 0
        tried += 1
        if best is not None and (best[0] < FAST_S or tried > PATIENCE):
            break
    return None if best is None else best[1]


def main(names: Sequence[str]) -> None:
    logging.disable(logging.CRITICAL)
    for name in names or MUTANTS:
        print(f'    "{name}": {fastest(name)},', flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
