"""`flock schedules`, on a virtual board in place of one on Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from flock_ray import CronTrigger, TimerTick
from flock_ray.board import Board
from flock_ray.cli import main
from flock_ray.commands import joining
from flock_ray.testing import MemoryPersistence, VirtualFlock


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `flock schedules` find one board, that lives on over several commands."""
    kept = MemoryPersistence()
    made: list[VirtualFlock] = []

    def clean(tick: TimerTick) -> None:
        return None

    @asynccontextmanager
    async def joined(namespace: str, *, code: bool = False) -> AsyncIterator[Board]:
        assert namespace == "shop"
        flock = VirtualFlock(persistence=kept)
        cleaner = flock.agent("cleaner").runs(clean).schedule(every=timedelta(days=1), max_repeats=1)
        if not made:
            flock.schedule(cleaner, trigger=CronTrigger("0 3 1 1 *"), name="yearly")
        made.append(flock)
        await flock.start()
        await flock.run_until_idle()
        yield await flock._ready_board()
        await flock.shutdown()

    monkeypatch.setattr(joining, "joined_board", joined)


def test_schedules_are_listed_paused_resumed_triggered_and_removed(board: None, capsys: Any) -> None:
    for command in (["list"], ["pause"], ["trigger"], ["resume"], ["remove"], ["list"]):
        name = [] if command == ["list"] else ["yearly", "--by", "ann"]
        assert main(["schedules", *command, "shop", *name]) == 0

    lines = capsys.readouterr().out.splitlines()

    assert lines[0].startswith(
        "cleaner: interval_s=86400.0 max_repeats=1, agent cleaner, 1 fires, 0 missed, over"
    )
    assert lines[1].startswith("yearly: cron=0 3 1 1 * tz=UTC, agent cleaner, 0 fires, 0 missed, next ")
    assert lines[1].endswith("-01-01T03:00:00Z")
    assert lines[2] == "2 schedules"
    assert lines[3].endswith("0 missed, paused by ann")
    assert lines[4] == lines[3]  # a fire by hand does not count
    assert lines[5] == lines[1]
    assert lines[6] == "yearly: removed"
    assert lines[-1] == "1 schedules"


def test_a_schedule_that_is_not_there_is_an_error(board: None, capsys: Any) -> None:
    assert main(["schedules", "pause", "shop", "nobody"]) == 2

    assert "no schedule 'nobody' on this board; there are: cleaner, yearly" in capsys.readouterr().err


def test_a_schedule_is_fired_for_a_past_range(board: None, capsys: Any) -> None:
    span = ["--from", "2020-01-01", "--to", "2022-06-01T00:00:00+02:00"]
    for _ in range(2):
        assert main(["schedules", "backfill", "shop", "yearly", *span, "--by", "ann"]) == 0
    assert main(["schedules", "backfill", "shop", "yearly", "--from", "soon", "--to", "later"]) == 2

    out, err = capsys.readouterr()

    assert out.splitlines() == ["yearly: 3 fires", "yearly: 0 fires"]
    assert "'soon' is no time" in err
