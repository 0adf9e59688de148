"""Limits that hold over the whole cluster: which activations of a limited agent may run now.

All activations of such an agent (or of one key of it) are open in one slot, its home. What the limits count is
part of that slot's durable state; who waits, and for what, follows from it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from heapq import heappop, heappush

from flock_ray.core.activations import ActivationDesk
from flock_ray.core.allowances import (
    Waiting,
    allowance,
    fit_windows,
    forget_idle,
    free_at_us,
    key_allowance,
    rates_of,
)
from flock_ray.core.breakers import Breaker
from flock_ray.core.records import Admitted, BreakerForced, Moved
from flock_ray.core.state import Activation, KeyState, Lane, Slot
from flock_ray.core.wire import LimitSpec, Run

MAX_STALE = 16


class LaneDesk(ActivationDesk):
    """Rates, concurrency, debouncing, singletons and circuit breakers of one shard's slots."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing waiting."""
        self._waiting: dict[str, dict[int, Waiting]] = {}
        """By agent and slot."""
        self._pressing: dict[str, None] = {}
        """Agents for which something may be let through now."""
        self._members: dict[tuple[int, str, str], dict[bytes, Activation]] = {}
        """(slot, agent, key): open activations of agents that look at others of their key."""
        self._free_at: dict[str, int] = {}
        """By agent: when its limits let more through by themselves."""
        self._misplaced: dict[bytes, Activation] = {}
        """What may run as soon as the slot lets it that keeps its agent's limits since a deploy."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Admitted] = self._on_admitted
        self._replays[Moved] = self._on_moved
        self._replays[BreakerForced] = self._on_breaker_forced

    def limits_of(self, agent: str) -> LimitSpec | None:
        """Return the limits of an agent; None when it has none."""
        info = self.agents.get(agent)
        return None if info is None else info.limits

    # -- coming in ------------------------------------------------------------------------------

    def _open_limited(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """Open an activation in the slot that keeps its agent's limits: here, or elsewhere."""
        limits = self.limits_of(activation.agent)
        if limits is not None and (home := limits.home(activation.agent, activation.lane)) != slot.index:
            self._send_run(slot, home, activation)
            return
        self._enter(slot, activation, limits, now_us)

    def _send_run(self, slot: Slot, home: int, a: Activation) -> None:
        charges = a.charges if a.charges is not None else ((slot.index, a.correlation_id, 1),)
        run = Run(a.id, a.agent, a.subscription, a.correlation_id, a.inputs, a.created_us, a.priority, a.groups,
                  charges, a.lane, a.redrives, a.crashes, a.failures, a.history, a.begun, a.gather,
                  a.decision)  # fmt: skip
        self._send(slot, home, "run", run=run)

    def _on_void(self, slot: Slot, run: Run, now_us: int) -> None:
        """Take notice of an activation that was on its way here when its workflow was cancelled."""
        activation = Activation(run.id, run.agent, run.subscription, slot.index, run.correlation_id, run.inputs,
                                run.created_us, charges=run.charges, redrives=run.redrives,
                                gather=run.gather)  # fmt: skip
        self._discharge(slot, activation, now_us)

    def _on_run(self, slot: Slot, run: Run, now_us: int) -> None:
        """Open an activation that another slot has sent; if limits live elsewhere by now, it goes on from here."""
        activation = Activation(run.id, run.agent, run.subscription, slot.index, run.correlation_id, run.inputs,
                                run.created_us, run.priority, run.groups, run.charges, run.crashes, run.lane,
                                failures=run.failures, history=run.history, redrives=run.redrives,
                                begun=run.begun, gather=run.gather, decision=run.decision)  # fmt: skip
        self._enter(slot, activation, self.limits_of(run.agent), now_us)

    def _enter(self, slot: Slot, activation: Activation, limits: LimitSpec | None, now_us: int) -> None:
        others: list[Activation] = []
        if limits is not None:
            slot.lanes.setdefault(activation.agent, Lane())
            others = list(self._members.get((slot.index, activation.agent, activation.lane), {}).values())
            if limits.singleton == "skip" and others and not (activation.redrives or activation.begun):
                self._skip(slot, activation, now_us)
                return
        slot.open[activation.id] = activation
        self.num_open += 1
        if self._deadlines:
            self._watch_run(activation)
        if limits is None:
            self.dispatch.push(activation)
            return
        if (
            activation.redrives
        ):  # somebody asked for this very run: it neither gives way to others nor ends them
            self._make_ready(slot, activation)
            return
        if activation.begun:  # before a deploy; it is not what the limits of that deploy let wait or give way
            self._join(slot, activation, limits)
            self._make_ready(slot, activation)
            return
        if limits.singleton == "replace":
            self._replace(slot, others, activation, now_us)
        elif limits.debounce_us:
            self._replace(slot, [a for a in others if a.due_us and not a.begun], activation, now_us)
        self._join(slot, activation, limits)
        if limits.debounce_us:
            self._wait_until(slot, activation, now_us + limits.debounce_us)
        else:
            self._make_ready(slot, activation)

    def _skip(self, slot: Slot, activation: Activation, now_us: int) -> None:
        if self.changes is not None:
            self.changes.end(activation, now_us, "cancelled")
        self._discharge(slot, activation, now_us)
        self._say(activation, "activation.skipped", now_us, f"another run of {_named(activation)} is open")

    def _replace(self, slot: Slot, old: list[Activation], new: Activation, now_us: int) -> None:
        for activation in old:
            self._withdraw(slot, activation, now_us)
            self._say(
                activation,
                "activation.replaced",
                now_us,
                f"a newer one of {_named(new)} came: {new.id.hex()}",
            )

    def _join(self, slot: Slot, activation: Activation, limits: LimitSpec) -> None:
        if limits.singleton or limits.debounce_us:
            slot.lanes.setdefault(activation.agent, Lane())  # `_end` asks `_leave` only where there is one
            place = (slot.index, activation.agent, activation.lane)
            self._members.setdefault(place, {})[activation.id] = activation

    def _limits_installed(self) -> None:
        """Find the members of every key anew, by the limits of a new table: what replay finds depends on it alone."""
        self._members.clear()
        for slot in self.slots.values():
            self._adopt_members(slot)

    def _adopt_members(self, slot: Slot) -> None:
        """Count the open activations of a slot whose limits look at others of their key."""
        for activation in slot.open.values():
            if (limits := self.limits_of(activation.agent)) is not None and not activation.redrives:
                self._join(slot, activation, limits)

    def adopt(self, slot: Slot) -> None:
        """Count what a slot restored from its snapshot holds."""
        super().adopt(slot)
        self._adopt_members(slot)

    # -- waiting --------------------------------------------------------------------------------

    def _wait_until(self, slot: Slot, activation: Activation, due_us: int) -> None:
        activation.due_us = due_us
        self._add_timer(slot, due_us, "due", activation.id, b"")

    def _on_due(self, slot: Slot, activation_id: bytes, now_us: int) -> None:
        """End the wait of an activation; a timer of a former wait does nothing."""
        activation = slot.open.get(activation_id)
        if activation is not None and activation.due_us and activation.due_us <= now_us:
            activation.due_us = 0
            self._make_ready(slot, activation)

    def _make_ready(self, slot: Slot, activation: Activation) -> None:
        """Let an activation run as soon as there is a worker for it, once its agent's limits have let it through."""
        limits = self.limits_of(activation.agent)
        if activation.admitted or limits is None or activation.offset:
            # A fan-out that goes on stays where it keeps its chunks, and does not begin anew for limits.
            self.dispatch.push(activation)
            return
        if limits.home(activation.agent, activation.lane) != slot.index:
            self._misplaced[activation.id] = activation  # since a deploy
            return
        slots = self._waiting.setdefault(activation.agent, {})
        waiting = slots.get(slot.index)
        if waiting is None:
            waiting = slots[slot.index] = Waiting(partial(self.dispatch.prices, activation.agent))
        waiting.push(activation)
        self._pressing[activation.agent] = None

    def reset_dispatch(self, first_attempt: int) -> None:
        """Make everything open ready, for nobody in particular; attempts are numbered above `first_attempt`."""
        self._waiting.clear()
        self._free_at.clear()
        self._misplaced.clear()
        super().reset_dispatch(first_attempt)

    def permits_changed(self) -> None:
        """Say that workers may have room now for what they had not before."""
        self._pressing.update(dict.fromkeys(self._waiting))

    def limits_changed(self) -> None:
        """Sort what waits anew, after a deploy: an agent may have other limits now, or none."""
        before, self._waiting = self._waiting, {}
        for slots in before.values():
            for index, waiting in slots.items():
                for queue in waiting.keys.values():
                    while queue.count:
                        activation = queue.pop()
                        if self._waits(index, activation):
                            self._make_ready(self.slots[index], activation)
        self._hold_ready()

    def _hold_ready(self) -> None:
        """Let what is ready ask the limits of its agent, if they have not let it through: it was ready before them."""
        for agent in [agent for agent in self.dispatch.ready if self.limits_of(agent) is not None]:
            for activation in self.dispatch.withdraw(agent, lambda a: not a.admitted):
                self._make_ready(self.slots[activation.slot], activation)

    def _again(self, activation: Activation) -> None:
        """Make an activation ready whose attempt came to nothing; call when no worker has it."""
        if activation.admitted or activation.offset or self.limits_of(activation.agent) is None:
            self.dispatch.push(activation, front=True)
        elif self._waits(activation.slot, activation):
            self._make_ready(self.slots[activation.slot], activation)

    def settle_local_forwards(self, now_us: int) -> None:
        """Apply what slots of this shard owe each other."""
        raise NotImplementedError  # ShardCore's

    def _move_home(self, now_us: int) -> None:
        """Send what limits of a new table have to let through to the slots that keep them."""
        misplaced, self._misplaced = self._misplaced, {}
        by_slot: dict[int, list[bytes]] = {}
        for activation in misplaced.values():
            if self._waits(activation.slot, activation):
                by_slot.setdefault(activation.slot, []).append(activation.id)
        for index, ids in by_slot.items():
            record = Moved(now_us, index, tuple(ids))
            self._log(record)
            self._on_moved(record)
        self.settle_local_forwards(now_us)

    def _on_moved(self, record: Moved) -> None:
        slot = self.slots[record.slot]
        for activation in [slot.open.pop(one) for one in record.ids]:
            self.num_open -= 1
            self._part(slot, activation)
            limits = self.limits_of(activation.agent)
            home = slot.index if limits is None else limits.home(activation.agent, activation.lane)
            self._send_run(slot, home, activation)

    def next_admission_us(self) -> int | None:
        """Return when limits let more through by themselves; None when only something else can."""
        return min(self._free_at.values()) if self._free_at else None

    def wanted(self, now_us: int) -> dict[str, int]:
        """Count by agent what waits for a worker and nothing else: what is ready, and what limits would let through."""
        counts = {agent: queue.count for agent, queue in self.dispatch.ready.items() if queue.count}
        for agent, slots in self._waiting.items():
            limits = self.limits_of(agent)
            if limits is None:
                continue
            for index, waiting in slots.items():
                lane = self.slots[index].lanes.get(agent) or Lane()
                while waiting.timed and waiting.timed[0][0] <= now_us:
                    waiting.unblock(heappop(waiting.timed)[1])
                # What is stale is only about known: a worker too many throws it out, none would be for ever.
                left = max(min(1, waiting.count), waiting.count - waiting.stale)
                allowed = min(left, allowance(lane, limits, now_us))
                if limits.keyed_concurrency:
                    allowed = min(allowed, len(waiting.turn) * limits.keyed_concurrency)
                if allowed > 0:
                    counts[agent] = counts.get(agent, 0) + allowed
        return counts

    def held_back(self) -> dict[str, int]:
        """Count by agent what its limits have not let through; what was cancelled may still be among them."""
        left = {agent: [w.count - w.stale for w in slots.values()] for agent, slots in self._waiting.items()}
        return {agent: sum(max(0, count) for count in counts) for agent, counts in left.items()}

    def oldest_wanted_us(self, agent: str) -> int:
        """Return when about the oldest of what `wanted` counts for an agent was created; 0 for none."""
        queues = [w.keys[w.turn[0]] for w in self._waiting.get(agent, {}).values() if w.turn]
        if (ready := self.dispatch.ready.get(agent)) is not None:
            queues.append(ready)
        return min((oldest for queue in queues if (oldest := queue.oldest_us())), default=0)

    # -- letting through ------------------------------------------------------------------------

    def admit(self, now_us: int) -> None:
        """Let through what limits and free permits allow; call in every micro-batch before it is appended."""
        if self._misplaced:
            self._move_home(now_us)
        for agent in [agent for agent, due_us in self._free_at.items() if due_us <= now_us]:
            del self._free_at[agent]
            self._pressing[agent] = None
        if not self._pressing:
            return
        pressing, self._pressing = self._pressing, {}
        for agent in pressing:
            slots = self._waiting.get(agent)
            limits = self.limits_of(agent)
            if not slots or limits is None:
                continue
            room = self.dispatch.room(agent)
            for index in list(slots):
                if room > 0:
                    room -= self._admit_from(self.slots[index], agent, limits, slots[index], room, now_us)
                if not slots[index].count:
                    del slots[index]
                elif len(slots) > 1:
                    slots[index] = slots.pop(index)  # who was served goes to the end
            if not slots:
                del self._waiting[agent]

    def _admit_from(
        self, slot: Slot, agent: str, limits: LimitSpec, waiting: Waiting, room: int, now_us: int
    ) -> int:
        lane = slot.lanes.get(agent) or Lane()  # what is kept of it is the record's to change
        while waiting.timed and waiting.timed[0][0] <= now_us:
            waiting.unblock(heappop(waiting.timed)[1])
        allowed = min(room, allowance(lane, limits, now_us))
        chosen, blocked = self._choose(slot, lane, limits, waiting, allowed, now_us)
        if chosen:
            record = Admitted(now_us, slot.index, agent, tuple(a.id for a in chosen))
            self._log(record)
            self._on_admitted(record)
            for activation in chosen:
                self.dispatch.push(activation)
            lane = slot.lanes[agent]
        for key in blocked:
            if (state := lane.keys.get(key)) is not None:
                free_us = free_at_us(state.windows, limits, now_us, keyed=True)
                if free_us > now_us:
                    heappush(waiting.timed, (free_us, key))
        if waiting.count and len(chosen) < room:
            self._hold_back(agent, lane, limits, waiting, now_us)
        return len(chosen)

    def _choose(
        self, slot: Slot, lane: Lane, limits: LimitSpec, waiting: Waiting, allowed: int, now_us: int
    ) -> tuple[list[Activation], list[str]]:
        """Return what may start now, in order, and the keys that have more than their limits let through."""
        chosen: list[Activation] = []
        blocked: list[str] = []
        per_key: dict[str, int] = {}
        while len(chosen) < allowed and waiting.turn:
            key = waiting.turn.popleft()
            queue = waiting.keys[key]
            if not queue.count:
                del waiting.keys[key]
                continue
            if key_allowance(lane.keys.get(key), limits, now_us) <= per_key.get(key, 0):
                waiting.blocked.add(key)
                blocked.append(key)
                continue
            activation = queue.pop()
            waiting.count -= 1
            waiting.turn.append(key)
            if not self._waits(slot.index, activation):
                queue.refund()
                waiting.stale = max(0, waiting.stale - 1)
                continue
            chosen.append(activation)
            per_key[key] = per_key.get(key, 0) + 1
        return chosen, blocked

    def _waits(self, slot: int, activation: Activation) -> bool:
        """Say whether what a queue held still waits: it may have been cancelled, or been queued twice."""
        return self.slots[slot].open.get(activation.id) is activation and not (
            activation.admitted or activation.due_us
        )

    def _hold_back(self, agent: str, lane: Lane, limits: LimitSpec, waiting: Waiting, now_us: int) -> None:
        """Say that limits, not workers, hold something back, and find when that changes by itself."""
        times = [free_at_us(lane.windows, limits, now_us, keyed=False), lane.breaker.free_us()]
        if waiting.timed:
            times.append(waiting.timed[0][0])
        if times := [time for time in times if time > now_us]:
            self._free_at[agent] = min([*times, known] if (known := self._free_at.get(agent)) else times)
        if not waiting.told:
            waiting.told = True
            reason = (
                "its circuit breaker is open" if lane.breaker.state != "closed" else "its limits are reached"
            )
            self.events.note(
                now_us, "limit.waiting", agent=agent, detail=f"{waiting.count} runs wait: {reason}"
            )

    def _on_admitted(self, record: Admitted) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        limits = self.limits_of(record.agent)
        lane = slot.lanes.setdefault(record.agent, Lane())
        if limits is not None:
            fit_windows(lane.windows, limits, keyed=False)
        for activation in [slot.open[one] for one in record.ids]:
            activation.admitted = True
            lane.running += 1
            key = lane.keys.pop(activation.lane, None) or KeyState()
            lane.keys[activation.lane] = key
            key.running += 1
            if limits is None:
                continue
            fit_windows(key.windows, limits, keyed=True)
            for rate, window in [
                *rates_of(limits, lane.windows, False),
                *rates_of(limits, key.windows, True),
            ]:
                window.take(rate, now_us)
            if limits.breaker is not None:
                before = lane.breaker.state
                activation.probe = lane.breaker.admit(limits.breaker, now_us)
                if lane.breaker.state != before:
                    self._say_breaker(
                        record.agent, lane, now_us, f"{limits.breaker.half_open_attempts} may try"
                    )
        if limits is not None:
            forget_idle(lane, limits, now_us)

    # -- going out ------------------------------------------------------------------------------

    def _leave(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        """Give back what the limits counted for an attempt that ended; also when the agent has none any more."""
        if activation.id not in slot.open:
            self._part(slot, activation)
            self._forget_waiting(slot, activation)
        lane = slot.lanes.get(activation.agent)
        if lane is None or not activation.admitted:
            return
        limits, probe = self.limits_of(activation.agent), activation.probe
        activation.admitted, activation.probe = False, 0
        lane.running -= 1
        key = lane.keys.get(activation.lane)
        if key is not None:
            key.running -= 1
        if limits is not None and limits.breaker is not None:
            reason = lane.breaker.reason(limits.breaker, failed=failed)
            if lane.breaker.ended(limits.breaker, now_us, probe=probe, failed=failed):
                self._say_breaker(activation.agent, lane, now_us, reason)
        elif lane.breaker.state != "closed":
            lane.breaker = Breaker()  # of a former deploy: it would wait for ever for how its attempts end
        if limits is not None:
            forget_idle(lane, limits, now_us)
        elif not lane.running:
            del slot.lanes[activation.agent]
        slots = self._waiting.get(activation.agent)
        if slots is not None:
            self._pressing[activation.agent] = None
            if (waiting := slots.get(slot.index)) is not None:
                waiting.unblock(activation.lane)

    def _part(self, slot: Slot, activation: Activation) -> None:
        """Count an activation no more among the others of its key."""
        place = (slot.index, activation.agent, activation.lane)
        members = self._members.get(place)
        if members is not None and members.pop(activation.id, None) is not None and not members:
            del self._members[place]

    def _forget_waiting(self, slot: Slot, activation: Activation) -> None:
        """Notice that an activation ended before it was let through; the queue has it still."""
        waiting = self._waiting.get(activation.agent, {}).get(slot.index)
        if waiting is None or activation.admitted or activation.due_us:
            return
        waiting.stale += 1
        if waiting.stale > MAX_STALE and 2 * waiting.stale > waiting.count:
            waiting.throw_out(partial(self._waits, slot.index))

    def force_breaker(self, agent: str, *, open_: bool, by: str, now_us: int) -> bool:
        """Open or close a circuit breaker by hand; False when it is not kept on this shard, or there is none."""
        limits = self.limits_of(agent)
        if limits is None or limits.breaker is None or (home := limits.home(agent, "")) not in self.slots:
            return False
        record = BreakerForced(now_us, home, agent, open_, by)
        self._log(record)
        self._on_breaker_forced(record)
        self._decide(now_us, "breaker.opened" if open_ else "breaker.closed", agent, by)
        return True

    def _on_breaker_forced(self, record: BreakerForced) -> None:
        lane = self.slots[record.slot].lanes.setdefault(record.agent, Lane())
        if lane.breaker.force(record.open, record.at_us):
            self._say_breaker(record.agent, lane, record.at_us, f"by hand: {record.by}".rstrip(": "))
        self._pressing[record.agent] = None

    # -- events ---------------------------------------------------------------------------------

    def _say_breaker(self, agent: str, lane: Lane, now_us: int, detail: str) -> None:
        kind = {"closed": "breaker.closed", "open": "breaker.opened", "half_open": "breaker.half_open"}
        self.events.note(now_us, kind[lane.breaker.state], agent=agent, detail=detail)

    def _say(self, activation: Activation, kind: str, now_us: int, detail: str) -> None:
        self.events.note(now_us, kind, agent=activation.agent, activation_id=activation.id, detail=detail,
                         correlation_id=activation.correlation_id,
                         artifact_ids=tuple(e.id for e in activation.inputs))  # fmt: skip


def _named(activation: Activation) -> str:
    return f"key {activation.lane!r}" if activation.lane else f"agent {activation.agent!r}"
