"""The board's numbers in the metrics that Ray exports."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Callable
from typing import Any, cast

import pytest
import ray

from flock_ray import Flock
from tests.integration.models import Shout, Word

pytestmark = pytest.mark.timeout(240)


def fail(word: Word) -> Shout:
    raise ConnectionError("nobody there")


def exported() -> dict[str, dict[str, float]]:
    """Return what Ray exports of this kind: by name and labels, the value."""
    nodes: list[Any] = cast("Any", ray).nodes()
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
        for name, labels, value in re.findall(r"^ray_(flock_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            found.setdefault(name.removesuffix("_total"), {})[labels] = float(value)
    return found


async def test_ray_exports_what_a_board_counts(new_flock: Callable[..., Flock]) -> None:
    # Given a board on which three runs have become dead letters
    flock = new_flock(namespace="measured-board")
    flock.agent("fails").consumes(Word).publishes(Shout).runs(fail).retry(max_attempts=1, dead_letter="q")
    await flock.publish_many([Word(text=f"w{n}") for n in range(3)])
    await flock.run_until_idle(timeout=120)
    # When Ray has collected what the shards have told it
    while True:
        numbers = {
            name: sum(value for labels, value in values.items() if 'board="measured-board"' in labels)
            for name, values in (await asyncio.to_thread(exported)).items()
        }
        if numbers.get("flock_dead_letters") == numbers.get("flock_dead_letters_open") == 3:
            break
        await asyncio.sleep(1)
    # Then its numbers are those of the board
    assert numbers["flock_runs"] == 3
    own = {m.name: m.value for m in await flock.measurements()}
    assert own["flock_dead_letters_open"] == 3
