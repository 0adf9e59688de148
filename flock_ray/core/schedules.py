"""Schedules: what is declared, what a board remembers of it, and what is due. Pure functions of state and time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from flock_ray.core.ids import derive_id, slot_of
from flock_ray.core.triggers import Interval, Once, Sliding, Trigger, latest_until, next_after

__all__ = ["Misfire", "Plan", "Schedule", "ScheduleInfo", "due_of", "first_time", "home_of_schedule", "plan"]

Misfire = Literal["skip", "fire_once", "catch_up"]

GRACE_US = 60_000_000
"""So late may a fire be and still be on time: a shard that is killed just then is back in less."""

LAST_US = 253_370_764_800_000_000
"""The year 9999, which no calendar here goes beyond."""

MAX_RANGES = 1_000
"""Ranges that a schedule remembers as backfilled; the oldest are forgotten."""

MAX_CAUGHT_UP = 1_000
"""Missed times that are made up for at once; the newest ones."""


class ScheduleInfo(msgspec.Struct, array_like=True, frozen=True):
    """What is declared of a schedule."""

    name: str
    trigger: Trigger
    agent: str
    subscription: str
    """Id of the agent's subscription to its ticks."""
    misfire: str = "skip"
    """A `Misfire`."""
    jitter_us: int = 0
    """Fires are late by up to so much, each always by the same."""
    max_repeats: int = 0
    """0: no limit."""
    start_us: int = 0
    """Not before; 0: no limit."""
    end_us: int = 0
    """Not after; 0: no limit."""
    after_us: int = 0
    """From the declaration to the first time, at least."""
    described: bytes = b"{}"
    """JSON for `TimerTick.schedule_spec`."""


class Schedule(msgspec.Struct, array_like=True):
    """What the home slot of a schedule remembers of it."""

    info: ScheduleInfo
    created_us: int
    anchor_us: int
    """From when an interval counts."""
    next_us: int
    """The next time; 0: there is none any more."""
    iteration: int = 0
    """Fires so far; those by hand don't count."""
    last_us: int = 0
    """The time of the last fire; 0: there was none."""
    missed: int = 0
    by_hand: int = 0
    paused: bool = False
    paused_by: str = ""
    backfilled: list[tuple[int, int]] = []
    """Ranges of time, ends excluded, whose times have been fired by hand: ascending, with gaps between them."""
    fills: int = 0
    """Times that ranges were fired by hand: their ticks are named by it, too."""

    @property
    def due_us(self) -> int:
        """When it fires next, if nobody pauses it; 0: never again."""
        return due_of(self.info, self.next_us) if self.next_us else 0


class ScheduleRow(msgspec.Struct, array_like=True):
    """A schedule as a shard shows it."""

    slot: int
    schedule: Schedule
    listens: bool
    """The agent has the subscription that the ticks are for."""


class Plan(NamedTuple):
    """What becomes of a schedule that is due."""

    fires: tuple[int, ...]
    skipped: int
    """Times that were missed and are not made up for; MAX_CAUGHT_UP may stand for more."""
    next_us: int
    """0: there is no further time."""


def home_of_schedule(name: str) -> int:
    """Return the slot that keeps a schedule."""
    return slot_of(f"schedule:{name}")


def due_of(info: ScheduleInfo, time_us: int) -> int:
    """Return when the fire of a time is due: the jitter on top, the same whoever asks."""
    if isinstance(info.trigger, Sliding):
        return _jittered(info, time_us) + info.trigger.lag_us
    return _jittered(info, time_us)


def _jittered(info: ScheduleInfo, time_us: int) -> int:
    if not info.jitter_us:
        return time_us
    drawn = derive_id(b"jitter", info.name.encode(), b"%d" % time_us)
    return time_us + int.from_bytes(drawn[:8], "big") % (info.jitter_us + 1)


def first_time(info: ScheduleInfo, known: Schedule | None, now_us: int) -> tuple[int, int]:
    """Return the anchor and the first time of a schedule that is new, or declared in another way than before."""
    begin = max(info.start_us, now_us + (info.after_us if known is None else 0))
    anchor = info.start_us or (known.last_us if known is not None else 0) or begin
    if known is not None and info.max_repeats and known.iteration >= info.max_repeats:
        return anchor, 0
    if isinstance(info.trigger, Once):
        # One that is over by now is missed, and `misfire` says what that means; one that has fired is over.
        at_us = info.trigger.at_us
        fired = known is not None and known.last_us == at_us
        return anchor, 0 if fired else _within(info, at_us if at_us >= info.start_us else None)
    found = next_after(info.trigger, begin - 1, anchor)
    if known is not None and found is not None and found <= known.last_us:
        found = next_after(info.trigger, known.last_us, anchor)
    return anchor, _within(info, found)


def plan(schedule: Schedule, now_us: int) -> Plan | None:
    """Decide what a schedule does now; None: it is not due."""
    info, anchor, next_us = schedule.info, schedule.anchor_us, schedule.next_us
    following = _following(schedule, next_us)
    if 0 < schedule.due_us <= now_us and (not following or due_of(info, following) > now_us):
        return _planned(schedule, [next_us], 1, following, now_us)
    newest = latest_until(info.trigger, min(now_us, info.end_us or now_us), anchor)
    while newest is not None and newest >= next_us and due_of(info, newest) > now_us:
        newest = latest_until(info.trigger, newest - 1, anchor)
    if not next_us or newest is None or newest < next_us:
        # The rules of a zone have changed: what was to be due now is not any more.
        return (
            Plan((), 0, _within(info, next_after(info.trigger, now_us, anchor)))
            if 0 < next_us <= now_us
            else None
        )
    times, total = _missed(schedule, newest)
    return _planned(schedule, times, total, _following(schedule, newest), now_us)


def _planned(schedule: Schedule, times: list[int], total: int, following: int, now_us: int) -> Plan:
    info, newest = schedule.info, times[-1]
    if info.misfire == "catch_up":
        fires = times
    else:
        on_time = now_us - due_of(info, newest) <= GRACE_US
        fires = [newest] if on_time or info.misfire == "fire_once" else []
    if info.max_repeats:
        fires = fires[: info.max_repeats - schedule.iteration]
    over = info.max_repeats and schedule.iteration + len(fires) >= info.max_repeats
    return Plan(tuple(fires), max(0, total - len(fires)), 0 if over else following)


def _following(schedule: Schedule, time_us: int) -> int:
    return _within(schedule.info, next_after(schedule.info.trigger, time_us, schedule.anchor_us))


def _missed(schedule: Schedule, newest: int) -> tuple[list[int], int]:
    """Return the newest times from the next one on, in order and not too many, and how many there are at least."""
    trigger, anchor = schedule.info.trigger, schedule.anchor_us
    times, at = [schedule.next_us], schedule.next_us
    while at < newest and len(times) < MAX_CAUGHT_UP:
        following = next_after(trigger, at, anchor)
        if following is None:
            break
        at = following
        times.append(at)
    if at >= newest:
        return times, len(times)
    total = (
        (newest - schedule.next_us) // trigger.us + 1
        if isinstance(trigger, Interval | Sliding)
        else 2 * MAX_CAUGHT_UP
    )
    latest: list[int] = []
    back: int | None = newest
    while back is not None and len(latest) < MAX_CAUGHT_UP:
        latest.append(back)
        back = latest_until(trigger, back - 1, anchor)
    return latest[::-1], total


def _within(info: ScheduleInfo, time_us: int | None) -> int:
    """Return a time; 0 when there is none, or it is past the schedule's end."""
    if time_us is None or time_us > LAST_US or (info.end_us and time_us > info.end_us):
        return 0
    return time_us


def times_to_fill(schedule: Schedule, start_us: int, end_us: int) -> list[int] | None:
    """Return the times of a range, its end excluded, that were not backfilled before; None: there are too many."""
    trigger, found = schedule.info.trigger, list[int]()
    anchor = schedule.anchor_us
    if isinstance(trigger, Interval):
        anchor -= (
            max(0, anchor - start_us) // trigger.us + 1
        ) * trigger.us  # it may be from before the first time
    at_us = next_after(trigger, start_us - 1, anchor)
    looked = 0
    while at_us is not None and at_us < end_us:
        looked += 1
        if looked > MAX_CAUGHT_UP:
            return None
        if not any(begin <= at_us < end for begin, end in schedule.backfilled):
            found.append(at_us)
        at_us = next_after(trigger, at_us, anchor)
    return found


def with_range(ranges: list[tuple[int, int]], start_us: int, end_us: int) -> list[tuple[int, int]]:
    """Return ranges with one more, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted([*ranges, (start_us, end_us)]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged[-MAX_RANGES:]
