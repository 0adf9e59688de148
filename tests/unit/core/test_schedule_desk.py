"""Schedules in two shards that are killed, snapshotted and rebuilt: every time fires once."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from flock_ray.core.records import Completed, ScheduleFired
from flock_ray.core.schedules import (
    GRACE_US,
    LAST_US,
    MAX_CAUGHT_UP,
    Misfire,
    Schedule,
    ScheduleInfo,
    due_of,
    first_time,
    home_of_schedule,
    plan,
)
from flock_ray.core.triggers import Cron, Daily, Interval, Once
from tests.unit.core.failing_board import FailingBoard
from tests.unit.core.journaled import Journaled

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


def info(name: str = "s", every: int = 10 * SECOND, misfire: Misfire = "skip", **more: Any) -> ScheduleInfo:
    return ScheduleInfo(name, Interval(every), "plain", "plain/T", misfire, **more)


class ScheduleBoard(FailingBoard):
    """A board whose shards fire schedules."""

    def __init__(self) -> None:
        super().__init__({"plain": None})

    def home(self, name: str) -> Journaled:
        return self.shard_of(home_of_schedule(name))

    def declare(self, declared: ScheduleInfo) -> str:
        shard = self.home(declared.name)
        answer = shard.core.set_schedule(declared, self.now)
        self.step(shard)
        return answer

    def step(self, shard: Journaled) -> None:
        shard.core.fire_due(self.now)
        self.commit(shard)

    def wait(self, us: int) -> None:
        super().wait(us)
        for shard in self.shards:
            self.step(shard)

    def crash(self, shard: Journaled) -> None:
        """Kill a shard when it has fired and not yet written that down."""
        shard.core.fire_due(self.now)
        self.restart(shard)

    def schedule(self, name: str = "s") -> Schedule:
        return self.home(name).core.slots[home_of_schedule(name)].schedules[name]

    def fired(self, name: str = "s") -> list[int]:
        return [t for r in self.log if isinstance(r, ScheduleFired) and r.name == name for t in r.fires]

    def finish(self) -> Counter[str]:
        """Run everything that is open; returns what was run, by activation."""
        while self.running:
            self.end(next(iter(self.running)), "ok")
        return Counter(r.completion.id.hex() for r in self.log if isinstance(r, Completed))

    def events(self, kind: str) -> list[str]:
        found = []
        for shard in self.shards:
            events, _ = shard.core.events.read(0, 1000, kinds=frozenset({kind}))
            found += [event.detail for event in events]
        return found

    def check_schedules(self) -> None:
        for shard in self.shards:
            self.check_rebuilt(shard)
            rebuilt = shard.rebuilt()
            for index, slot in shard.core.slots.items():
                assert msgspec.to_builtins(slot.schedules) == msgspec.to_builtins(
                    rebuilt.slots[index].schedules
                )
            due = next_true(shard)
            assert due is None or (rebuilt.next_fire_us() or due + 1) <= due


def next_true(shard: Journaled) -> int | None:
    due = [
        schedule.due_us
        for slot in shard.core.slots.values()
        for schedule in slot.schedules.values()
        if schedule.due_us and not schedule.paused
    ]
    return min(due, default=None)


@pytest.mark.parametrize("seed", range(12))
def test_every_time_fires_once_whatever_dies(seed: int) -> None:
    rng = random.Random(seed)
    board = ScheduleBoard()
    declared = [
        info("a", 7 * SECOND, "catch_up"),
        info("b", 10 * SECOND, "catch_up", jitter_us=4 * SECOND),
        ScheduleInfo("c", Cron("*/2 * * * *", "Europe/Berlin"), "plain", "plain/T", "catch_up"),
        info("d", 5 * SECOND, "fire_once", max_repeats=9),
        info("e", 3 * SECOND, "skip"),
    ]
    began = board.now
    for one in declared:
        board.declare(one)
    for _ in range(60):
        shard = rng.choice(board.shards)
        action = rng.choice(["wait", "wait", "wait", "crash", "crash", "snapshot", "rotate", "end", "again"])
        if action == "wait":
            board.wait(rng.choice([0, 1, SECOND, 5 * SECOND, 30 * SECOND, 200 * SECOND]))
        elif action == "crash":
            board.now += rng.choice([0, SECOND, 20 * SECOND, 100 * SECOND])
            board.crash(shard)
        elif action == "snapshot":
            board.snapshot(shard, rng)
        elif action == "rotate":
            shard.rotate()
        elif action == "end" and board.running:
            board.end(rng.choice(list(board.running)), "ok")
        else:
            board.declare(rng.choice(declared))
    board.wait(0)
    board.check_schedules()

    assert board.fired("a") == list(range(began, board.now + 1, 7 * SECOND))
    assert board.fired("b") == [
        t for t in range(began, board.now + 1, 10 * SECOND) if due_of(declared[1], t) <= board.now
    ]
    assert board.fired("c") == list(range(120 * SECOND, board.now + 1, 120 * SECOND))
    assert len(board.fired("d")) <= 9
    for name in "de":
        assert sorted(set(board.fired(name))) == board.fired(name)
    ran = board.finish()
    assert set(ran.values()) == {1}
    assert len(ran) == sum(len(board.fired(name)) for name in "abcde")


def test_what_was_missed_is_skipped_fired_once_or_caught_up() -> None:
    found = {}
    rules: list[Misfire] = ["skip", "fire_once", "catch_up"]
    for misfire in rules:
        board = ScheduleBoard()
        board.declare(info(every=HOUR, misfire=misfire))
        shard = board.home("s")
        board.now += 5 * HOUR + 2 * GRACE_US
        board.restart(shard)
        board.step(shard)
        found[misfire] = [t // HOUR for t in board.fired()]
        assert board.schedule().next_us == 6 * HOUR + SECOND
        assert len(board.events("schedule.missed")) == (misfire != "catch_up")

    assert found == {"skip": [0], "fire_once": [0, 5], "catch_up": [0, 1, 2, 3, 4, 5]}


def test_a_fire_that_is_a_little_late_is_not_missed() -> None:
    board = ScheduleBoard()
    board.declare(info(every=HOUR))

    board.wait(HOUR + GRACE_US)

    assert len(board.fired()) == 2
    assert board.schedule().missed == 0


def test_catching_up_has_a_limit() -> None:
    board = ScheduleBoard()
    board.declare(info(every=SECOND, misfire="catch_up"))

    board.wait(10_000 * SECOND)

    assert len(board.fired()) == 1 + MAX_CAUGHT_UP
    assert board.fired()[-1] == board.now
    assert board.schedule().missed == 9_000


def test_a_second_for_a_hundred_years_is_planned_at_once() -> None:
    schedule = Schedule(info(every=1, misfire="catch_up"), 0, 1, 1)

    found = plan(schedule, 100 * 365 * DAY)

    assert found is not None
    assert (len(found.fires), found.fires[-1]) == (MAX_CAUGHT_UP, 100 * 365 * DAY)
    assert found.next_us == 100 * 365 * DAY + 1


def test_a_cron_that_was_away_for_a_year_is_planned_by_its_newest_times() -> None:
    declared = ScheduleInfo("s", Cron("* * * * *"), "plain", "plain/T", "catch_up")
    found = plan(Schedule(declared, 0, 0, 60 * SECOND), 365 * DAY)

    assert found is not None
    assert found.fires == tuple(range(365 * DAY - 999 * 60 * SECOND, 365 * DAY + 1, 60 * SECOND))


def test_jitter_is_the_same_for_the_same_time_and_within_its_limit() -> None:
    declared = info(jitter_us=5 * SECOND)
    late = [due_of(declared, t * 10 * SECOND) - t * 10 * SECOND for t in range(1000)]

    assert late == [due_of(declared, t * 10 * SECOND) - t * 10 * SECOND for t in range(1000)]
    assert 0 <= min(late) < SECOND < 4 * SECOND < max(late) <= 5 * SECOND
    assert late != [
        due_of(info("other", jitter_us=5 * SECOND), t * 10 * SECOND) - t * 10 * SECOND for t in range(1000)
    ]


def test_the_same_declaration_changes_nothing_and_another_keeps_the_count() -> None:
    board = ScheduleBoard()
    board.declare(info())
    for _ in range(2):
        board.wait(10 * SECOND)
    records = len(board.log)

    board.declare(info())
    assert len(board.log) == records
    board.declare(info(every=60 * SECOND))

    schedule = board.schedule()
    assert schedule.iteration == 3  # after 0, 10 and 20 s
    assert schedule.next_us == schedule.last_us + 60 * SECOND


def test_more_repeats_let_a_schedule_that_is_over_go_on() -> None:
    board = ScheduleBoard()
    board.declare(info(max_repeats=2))
    board.wait(60 * SECOND)
    board.wait(60 * SECOND)
    assert board.schedule().next_us == 0
    assert board.events("schedule.ended") == ["s: it fired 2 times"]
    board.declare(info(max_repeats=2))
    assert board.schedule().next_us == 0

    board.declare(info(max_repeats=3))
    board.wait(10 * SECOND)

    assert board.schedule().iteration == 3
    assert board.schedule().next_us == 0


def test_start_and_end_limit_a_schedule() -> None:
    board = ScheduleBoard()
    start = board.now + 100 * SECOND
    board.declare(info(start_us=start, end_us=start + 25 * SECOND, misfire="catch_up"))
    board.wait(99 * SECOND)
    assert board.fired() == []

    board.wait(500 * SECOND)

    assert board.fired() == [start, start + 10 * SECOND, start + 20 * SECOND]
    assert board.schedule().next_us == 0


def test_once_fires_once_and_one_that_has_passed_is_missed() -> None:
    board = ScheduleBoard()
    board.now = 10 * HOUR
    for name, misfire in (("s", "skip"), ("t", "fire_once")):
        board.declare(ScheduleInfo(name, Once(9 * HOUR), "plain", "plain/T", misfire))
    board.wait(HOUR)

    assert (board.fired("s"), board.fired("t")) == ([], [9 * HOUR])
    again = ScheduleInfo("t", Once(9 * HOUR), "plain", "plain/T", "fire_once", jitter_us=1)
    assert first_time(again, board.schedule("t"), board.now)[1] == 0


def test_a_daily_time_that_is_declared_at_noon_is_due_tomorrow() -> None:
    declared = ScheduleInfo("s", Daily(9 * HOUR), "plain", "plain/T")

    assert first_time(declared, None, 12 * HOUR) == (12 * HOUR, DAY + 9 * HOUR)
    assert first_time(declared, None, 9 * HOUR)[1] == 9 * HOUR


def test_a_paused_schedule_waits_and_what_it_missed_is_up_to_its_rule() -> None:
    board = ScheduleBoard()
    board.declare(info(misfire="fire_once", every=HOUR))
    core = board.home("s").core
    assert core.pause_schedule("s", on=True, by="me", now_us=board.now) == "ok"
    board.commit(board.home("s"))
    assert core.pause_schedule("nobody", on=True, by="", now_us=board.now) == "gone"
    board.wait(5 * HOUR)
    assert len(board.fired()) == 1
    board.check_schedules()

    core.pause_schedule("s", on=False, by="me", now_us=board.now)
    board.wait(SECOND)

    assert board.fired()[1:] == [SECOND + 5 * HOUR]
    assert board.events("schedule.paused") == ["s: by me"]


def test_a_halted_board_fires_nothing_and_does_not_wake_up_for_it() -> None:
    board = ScheduleBoard()
    board.declare(info())
    shard = board.home("s")
    shard.core.pause("board", "", on=True, by="", reason="", now_us=board.now)
    board.wait(15 * SECOND)
    assert len(board.fired()) == 1
    assert shard.core.next_timer_us() is None

    shard.core.pause("board", "", on=False, by="", reason="", now_us=board.now)
    board.step(shard)

    assert len(board.fired()) == 2


def test_firing_by_hand_comes_on_top() -> None:
    board = ScheduleBoard()
    board.declare(info(max_repeats=2))
    shard = board.home("s")
    for _ in range(2):
        assert shard.core.trigger_schedule("s", by="me", now_us=board.now) == "ok"
    board.commit(shard)
    board.wait(30 * SECOND)

    schedule = board.schedule()
    assert (schedule.iteration, schedule.by_hand) == (2, 2)
    assert len(board.finish()) == 4
    board.check_schedules()


def test_without_its_agent_a_schedule_misses_its_times() -> None:
    board = ScheduleBoard()
    board.declare(info())
    board.limits.clear()
    board.limits["other"] = None
    board.install()

    board.wait(10 * SECOND)

    assert len(board.fired()) == 1
    assert board.schedule().missed == 1
    assert board.home("s").core.trigger_schedule("s", by="", now_us=board.now) == "deaf"
    assert not next(iter(board.home("s").core.schedule_rows())).listens


def test_what_is_due_after_the_end_of_the_calendar_is_never_due() -> None:
    board = ScheduleBoard()
    board.declare(info("late", 100 * 365 * DAY, start_us=LAST_US - 1))
    board.declare(ScheduleInfo("later", Once(LAST_US + DAY), "plain", "plain/T"))
    board.now = LAST_US
    board.wait(0)

    assert board.fired("late") == [LAST_US - 1]
    assert board.schedule("late").next_us == board.schedule("later").next_us == 0


def test_a_removed_schedule_is_gone_also_after_a_restart() -> None:
    board = ScheduleBoard()
    board.declare(info())
    shard = board.home("s")
    assert shard.core.remove_schedule("s", by="me", now_us=board.now) == "ok"
    board.commit(shard)
    board.restart(shard)

    board.wait(100 * SECOND)

    assert len(board.fired()) == 1
    assert shard.core.remove_schedule("s", by="me", now_us=board.now) == "gone"


def test_a_zone_that_a_machine_lacks_pauses_the_schedule_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    board = ScheduleBoard()
    board.declare(ScheduleInfo("c", Cron("* * * * *", "Europe/Berlin"), "plain", "plain/T"))
    board.declare(info())

    def lacking(key: str) -> Any:
        raise KeyError(key)

    monkeypatch.setattr("flock_ray.core.triggers._zone", lacking)
    board.wait(60 * SECOND)

    assert board.schedule("c").paused_by == "board"
    assert len(board.fired("s")) == 2
    assert "no time zone" in board.events("schedule.failed")[0]


def test_pausing_and_resuming_for_ever_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.core.schedule_desk.MAX_ENTRIES", 20)
    board = ScheduleBoard()
    board.declare(info())
    core = board.home("s").core
    for turn in range(200):
        core.pause_schedule("s", on=turn % 2 == 0, by="", now_us=board.now)
        assert len(core._fires) <= 20
    board.wait(10 * SECOND)

    assert len(board.fired()) == 2


def test_schedules_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.core.schedule_desk.MAX_SCHEDULES", 0)

    assert ScheduleBoard().declare(info()) == "full"
