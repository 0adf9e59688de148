"""Schedules of one shard: what fires when. Each schedule lives in one slot, so it fires once in the whole cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heappop, heappush

import msgspec

from flock_ray.core.activations import iso
from flock_ray.core.budget_desk import BudgetDesk
from flock_ray.core.ids import derive_id, slot_of, workflow_id_for
from flock_ray.core.records import ScheduleFired, SchedulePaused, ScheduleRemoved, ScheduleSet
from flock_ray.core.schedules import (
    MAX_CAUGHT_UP,
    Plan,
    Schedule,
    ScheduleInfo,
    ScheduleRow,
    first_time,
    home_of_schedule,
    plan,
    times_to_fill,
    with_range,
)
from flock_ray.core.state import Slot
from flock_ray.core.triggers import Sliding
from flock_ray.core.wire import Envelope, Match, Posting
from flock_ray.errors import ConfigurationError

__all__ = ["ScheduleDesk"]

MAX_SCHEDULES = 10_000
"""Per shard, those that are over included."""

MAX_ENTRIES = 4 * MAX_SCHEDULES
"""What waits for a time, with what is not true any more."""

OK, GONE, FULL, DEAF = "ok", "gone", "full", "deaf"
"""Answers: done (or so before); there is no such schedule here; there are too many; its agent does not listen."""

_BOARD = ("board", "")


class ScheduleDesk(BudgetDesk):
    """The schedules of one shard's slots."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with no schedules."""
        self._fires: list[tuple[int, int, str]] = []
        """Heap of (due, slot, schedule). An entry that is not true any more does nothing."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays |= {
            ScheduleSet: self._on_schedule_set,
            ScheduleFired: self._on_schedule_fired,
            SchedulePaused: self._on_schedule_paused,
            ScheduleRemoved: self._on_schedule_removed,
        }

    # -- commands -------------------------------------------------------------------------------

    def set_schedule(self, info: ScheduleInfo, now_us: int) -> str:
        """Take a declaration; one that is known as it is changes nothing. Returns OK, GONE or FULL.

        A schedule that is declared in another way keeps how often it has fired, and whether it is paused.

        Raises:
            ConfigurationError: This machine does not know its time zone.
        """
        index = home_of_schedule(info.name)
        slot = self.slots.get(index)
        if slot is None:
            return GONE
        known = slot.schedules.get(info.name)
        if known is None and sum(len(s.schedules) for s in self.slots.values()) >= MAX_SCHEDULES:
            return FULL
        if known is None or known.info != info:
            anchor_us, next_us = first_time(info, known, now_us)
            record = ScheduleSet(now_us, index, info, anchor_us, next_us)
            self._log(record)
            self._on_schedule_set(record)
        return OK

    def pause_schedule(self, name: str, *, on: bool, by: str, now_us: int) -> str:
        """Pause or resume a schedule; returns OK or GONE. What is missed meanwhile is up to its `misfire`."""
        index = home_of_schedule(name)
        known = self._schedule(name)
        if known is None:
            return GONE
        if known.paused != on:
            record = SchedulePaused(now_us, index, name, on, by)
            self._log(record)
            self._on_schedule_paused(record)
            self._decide(now_us, "schedule.paused" if on else "schedule.resumed", name, by)
        return OK

    def remove_schedule(self, name: str, *, by: str, now_us: int) -> str:
        """Forget a schedule; returns OK or GONE."""
        if self._schedule(name) is None:
            return GONE
        record = ScheduleRemoved(now_us, home_of_schedule(name), name, by)
        self._log(record)
        self._on_schedule_removed(record)
        self._decide(now_us, "schedule.removed", name, by)
        return OK

    def trigger_schedule(self, name: str, *, by: str, now_us: int) -> str:
        """Fire a schedule now, on top of what it does by itself; returns OK, GONE or DEAF."""
        known = self._schedule(name)
        if known is None:
            return GONE
        if known.info.subscription not in self.subscriptions:
            return DEAF
        record = ScheduleFired(now_us, home_of_schedule(name), name, (now_us,), known.next_us, 0, True)
        self._log(record)
        self._on_schedule_fired(record)
        self._decide(now_us, "schedule.triggered", name, by)
        return OK

    def backfill_schedule(self, name: str, start_us: int, end_us: int, by: str, now_us: int) -> str:
        """Fire the times of a range that has passed, its end excluded, each once however often it is asked for.

        Returns:
            GONE, DEAF, FULL (more times than can be fired at once), or how many fired now.
        """
        known = self._schedule(name)
        if known is None:
            return GONE
        if known.info.subscription not in self.subscriptions:
            return DEAF
        end_us = min(end_us, now_us)
        times = times_to_fill(known, start_us, end_us) if start_us < end_us else []
        if times is None:
            return FULL
        if times:
            index, span = home_of_schedule(name), (start_us, end_us)
            record = ScheduleFired(now_us, index, name, tuple(times), known.next_us, 0, True, span)
            self._log(record)
            self._on_schedule_fired(record)
            self._decide(now_us, "schedule.backfilled", name, by, f"{len(times)} times")
        return str(len(times))

    def fire_due(self, now_us: int) -> None:
        """Fire what is due; nothing while the board is halted. Call it in every micro-batch."""
        fires = self._fires
        if not fires or fires[0][0] > now_us or _BOARD in self.pauses.by_place:
            return
        while fires and fires[0][0] <= now_us:
            _, index, name = heappop(fires)
            schedule = self.slots[index].schedules.get(name)
            if schedule is None or schedule.paused or not 0 < schedule.due_us <= now_us:
                continue
            try:
                found = plan(schedule, now_us)
            except ConfigurationError as error:  # this machine lacks its time zone: others must not suffer
                self.events.note(
                    now_us, "schedule.failed", agent=schedule.info.agent, detail=f"{name}: {error}"
                )
                self.pause_schedule(name, on=True, by="board", now_us=now_us)
                continue
            if found is None:
                continue
            if schedule.info.subscription not in self.subscriptions:
                found = Plan((), found.skipped + len(found.fires), found.next_us)
            record = ScheduleFired(now_us, index, name, found.fires, found.next_us, found.skipped)
            self._log(record)
            self._on_schedule_fired(record)

    def next_fire_us(self) -> int | None:
        """Return when `fire_due` has something to do next; None: nothing, as far as time goes."""
        if not self._fires or _BOARD in self.pauses.by_place:
            return None
        return self._fires[0][0]

    def schedule_rows(self) -> Iterator[ScheduleRow]:
        """Iterate over all schedules of this shard."""
        for index, slot in self.slots.items():
            for schedule in slot.schedules.values():
                yield ScheduleRow(index, schedule, schedule.info.subscription in self.subscriptions)

    # -- what the records do --------------------------------------------------------------------

    def _on_schedule_set(self, record: ScheduleSet) -> None:
        slot, info, now_us = self.slots[record.slot], record.info, record.at_us
        known = slot.schedules.get(info.name)
        if known is None:
            schedule = slot.schedules[info.name] = Schedule(info, now_us, record.anchor_us, record.next_us)
        else:
            schedule = known
            if known.info.trigger != info.trigger:
                known.backfilled = []  # those were other times
            known.info, known.anchor_us, known.next_us = info, record.anchor_us, record.next_us
        self._await_fire(slot, schedule)
        when = f"the next time is {iso(schedule.next_us)}" if schedule.next_us else "it is over"
        what = "declared" if known is None else "declared anew"
        self.events.note(now_us, "schedule.set", agent=info.agent, detail=f"{info.name}: {what}; {when}")

    def _on_schedule_fired(self, record: ScheduleFired) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        schedule = slot.schedules[record.name]
        info, was_open = schedule.info, schedule.next_us > 0
        schedule.next_us = record.next_us
        schedule.missed += record.skipped
        if record.skipped:
            many = f"{MAX_CAUGHT_UP:,} or more" if record.skipped >= MAX_CAUGHT_UP else str(record.skipped)
            self.events.note(now_us, "schedule.missed", agent=info.agent, detail=f"{info.name}: {many} fires")
        filled = record.backfill != (0, 0)
        for fire_us in record.fires:
            kind = b"backfill" if filled else b"tick by hand" if record.by_hand else b"tick"
            self._publish_tick(slot, schedule, fire_us, now_us, kind)
            if not record.by_hand:
                schedule.iteration += 1
                schedule.last_us = fire_us
        if filled:
            schedule.backfilled = with_range(schedule.backfilled, *record.backfill)
            schedule.fills += 1
            begin, end = (iso(bound) for bound in record.backfill)
            self.events.note(
                now_us, "schedule.backfilled", agent=info.agent,
                detail=f"{info.name}: {len(record.fires)} fires from {begin} to {end}",
            )  # fmt: skip
        elif record.by_hand:
            schedule.by_hand += 1
        if record.by_hand:
            return  # what is due by itself stays as it is
        self._await_fire(slot, schedule)
        if was_open and not schedule.next_us:
            self.events.note(
                now_us,
                "schedule.ended",
                agent=info.agent,
                detail=f"{info.name}: it fired {schedule.iteration} times",
            )

    def _on_schedule_paused(self, record: SchedulePaused) -> None:
        slot = self.slots[record.slot]
        schedule = slot.schedules[record.name]
        schedule.paused, schedule.paused_by = record.on, record.by if record.on else ""
        self._await_fire(slot, schedule)
        self.events.note(
            record.at_us, "schedule.paused" if record.on else "schedule.resumed", agent=schedule.info.agent,
            detail=f"{record.name}: by {record.by or 'somebody'}",
        )  # fmt: skip

    def _on_schedule_removed(self, record: ScheduleRemoved) -> None:
        schedule = self.slots[record.slot].schedules.pop(record.name)
        self.events.note(
            record.at_us, "schedule.removed", agent=schedule.info.agent,
            detail=f"{record.name}: by {record.by or 'somebody'}",
        )  # fmt: skip

    def adopt(self, slot: Slot) -> None:
        """Count what a slot restored from its snapshot holds."""
        super().adopt(slot)
        for schedule in slot.schedules.values():
            self._await_fire(slot, schedule)

    def _schedule(self, name: str) -> Schedule | None:
        slot = self.slots.get(home_of_schedule(name))
        return None if slot is None else slot.schedules.get(name)

    def _await_fire(self, slot: Slot, schedule: Schedule) -> None:
        if schedule.next_us and not schedule.paused:
            heappush(self._fires, (schedule.due_us, slot.index, schedule.info.name))
            if len(self._fires) > MAX_ENTRIES:
                self._forget_stale()

    def _forget_stale(self) -> None:
        """Keep one entry per schedule that waits."""
        self._fires[:] = sorted(
            (schedule.due_us, slot.index, name)
            for slot in self.slots.values()
            for name, schedule in slot.schedules.items()
            if schedule.next_us and not schedule.paused
        )

    def _publish_tick(self, slot: Slot, schedule: Schedule, fire_us: int, now_us: int, kind: bytes) -> None:
        """Publish the tick of one time, for the schedule's agent alone."""
        info, by_hand = schedule.info, kind != b"tick"
        number = b"%d" % (schedule.by_hand if kind == b"tick by hand" else fire_us)
        if kind == b"backfill":
            number += b" %d" % schedule.fills
        artifact = derive_id(kind, info.name.encode(), b"%d" % schedule.created_us, number)
        workflow = workflow_id_for(artifact)
        payload = {
            "timer_name": info.name, "fire_time": iso(fire_us), "iteration": schedule.iteration,
            "schedule_spec": msgspec.Raw(info.described),
        }  # fmt: skip
        if isinstance(info.trigger, Sliding):
            payload |= {"window_start": iso(fire_us - info.trigger.window_us), "window_end": iso(fire_us)}
        envelope = Envelope(
            artifact, "TimerTick", 1, msgspec.json.encode(payload), workflow, slot_of(workflow),
            f"schedule:{info.name}", now_us,
        )  # fmt: skip
        self._publish_output(slot, Posting(envelope, (Match(info.subscription),)), now_us)
        self.events.note(
            now_us, "schedule.triggered" if by_hand else "schedule.fired", agent=info.agent, correlation_id=workflow,
            artifact_ids=(artifact,), detail=_said(info.name, kind, fire_us, schedule.iteration),
        )  # fmt: skip


def _said(name: str, kind: bytes, fire_us: int, iteration: int) -> str:
    if kind == b"backfill":
        return f"{name}: for {iso(fire_us)}"
    return name if kind == b"tick by hand" else f"{name}: number {iteration}"
