"""What a journal says of failures and limits, checked against an account of its own while it is replayed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from flock_ray.core.breakers import Breaker
from flock_ray.core.ids import activation_id
from flock_ray.core.records import Admitted, Completed, LetterDiscarded, LetterRedriven, Record, Retried
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Lane, Slot
from flock_ray.core.wire import LimitSpec, RetrySpec, Run
from tests.simulation.fanned import FanAudit
from tests.simulation.spending import SpendingAudit
from tests.simulation.timed import TimedAudit


class FailureAudit(FanAudit, TimedAudit, SpendingAudit):
    """The half of `AuditCore` that keeps account of failures and limits while it is replayed."""

    def __init__(self, owned: Iterable[int]) -> None:
        super().__init__(owned)
        self.withdrawn: Counter[bytes] = Counter()
        """Activations that ended without a result: cancelled, or replaced by another one."""
        self.closed: Counter[bytes] = Counter()
        """How often each letter was redriven or discarded."""
        self.redriven: dict[bytes, str] = {}
        """Activations of redrives, with their workflow."""
        self.failures: Counter[bytes] = Counter()
        """By activation: attempts that counted and after which another one was to be made."""
        self._brought: dict[bytes, int] = {}
        """Attempts that had counted before a deploy moved an activation here from another shard."""
        self._let_through: dict[str, dict[bytes, tuple[int, str]]] = defaultdict(dict)
        """By agent: (slot, key) of the activations that count for its limits."""
        self._starts: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        """By agent and key (None: the whole agent)."""
        self._streak: Counter[str] = Counter()
        """Failures in a row, by agent, while its breaker is closed."""
        self._probes: dict[str, dict[bytes, None]] = defaultdict(dict)
        """Of half-open breakers: attempts let through that have not ended without an outcome."""

    def _withdraw(self, slot: Slot, activation: Activation, now_us: int) -> None:
        self.withdrawn[activation.id] += 1
        super()._withdraw(slot, activation, now_us)

    def _skip(self, slot: Slot, activation: Activation, now_us: int) -> None:
        self.withdrawn[activation.id] += 1
        others = [(a.agent, a.lane) for a in slot.open.values()]
        assert (activation.agent, activation.lane) in others, "an activation was skipped for no other one"
        super()._skip(slot, activation, now_us)

    def _on_run(self, slot: Slot, run: Run, now_us: int) -> None:
        before = self.failures[run.id] + self._brought.get(run.id, 0)
        assert run.failures >= before, "an activation that was moved has fewer failures than before"
        self._brought[run.id] = run.failures - self.failures[run.id]
        super()._on_run(slot, run, now_us)

    def replay(self, record: Record) -> None:
        if isinstance(record, Completed | Retried):
            self._check_attempts(record)
        if isinstance(record, LetterRedriven | LetterDiscarded):
            self._close_letter(record)
        if isinstance(record, Admitted):
            self._check_breaker_lets_through(record)
        super().replay(record)
        if isinstance(record, Admitted):
            self._check_limits(record)

    # -- retries --------------------------------------------------------------------------------

    def _check_attempts(self, record: Completed | Retried) -> None:
        """An activation is tried as often as its agent says, and the next attempt does not begin too early."""
        completion, ask = record.completion, record.completion.retry
        activation = self.slots[record.slot].open[completion.id]
        info = self.agents.get(activation.agent)
        spec: RetrySpec | None = None if info is None else info.retry
        if isinstance(record, Retried):
            assert ask is not None and spec is not None and completion.error is not None
            assert not activation.due_us, "an attempt failed while the next one was waited for"
            assert record.due_us >= record.at_us + ask.after_us
            self.failures[completion.id] += ask.counts
            tried = self.failures[completion.id] + self._brought.get(completion.id, 0)
            assert tried < spec.max_attempts, "an activation was tried too often"
        elif completion.error is not None and ask is not None and spec is not None and not spec.budget_ratio:
            tried = self.failures[completion.id] + self._brought.get(completion.id, 0) + 1
            assert tried == spec.max_attempts, f"given up after {tried} of {spec.max_attempts} attempts"

    # -- dead letters ---------------------------------------------------------------------------

    def _close_letter(self, record: LetterRedriven | LetterDiscarded) -> None:
        self.closed[record.letter] += 1
        assert self.closed[record.letter] == 1, "a letter was redriven or discarded twice"
        letter = self.slots[record.slot].letters[record.letter]
        if isinstance(record, LetterRedriven):
            key = activation_id(letter.agent, "redrive", (record.letter,), letter.redrives)
            self.redriven[key] = letter.envelope.correlation_id

    # -- limits ---------------------------------------------------------------------------------

    def _check_limits(self, record: Admitted) -> None:
        """Never more at once, nor more in any time, than the limits of the agent say."""
        limits, slot = self.limits_of(record.agent), self.slots[record.slot]
        assert limits is not None
        counted = self._let_through[record.agent]
        for key in record.ids:
            activation = slot.open[key]
            assert not activation.due_us, "an activation was let through that waits for its time"
            assert key not in counted, "an activation was let through twice"
            counted[key] = (slot.index, activation.lane)
            for rate in limits.rates:
                place = (record.agent, activation.lane if rate.keyed else None)
                starts = self._starts[place]
                starts.append(record.at_us)
                inside = sum(at_us > record.at_us - rate.per_us for at_us in starts[-rate.limit - 1 :])
                assert inside <= rate.limit, f"{inside} starts of {place} within {rate.per_us} us"
        assert len(counted) <= (limits.concurrency or len(counted)), (
            f"{len(counted)} of {record.agent} at once"
        )
        keys = Counter(lane for _, lane in counted.values())
        assert max(keys.values()) <= (limits.keyed_concurrency or len(counted)), (
            f"{record.agent} at once: {keys}"
        )

    def _leave(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        lane, limits = slot.lanes.get(activation.agent), self.limits_of(activation.agent)
        was_let_through = self._let_through[activation.agent].pop(activation.id, None) is not None
        before = None if lane is None else lane.breaker.state
        probe = activation.probe
        super()._leave(slot, activation, now_us, failed=failed)
        if was_let_through and lane is not None and limits is not None and limits.breaker is not None:
            self._check_outcome(activation, lane, limits, before, probe, failed)

    # -- breakers -------------------------------------------------------------------------------

    def _check_breaker_lets_through(self, record: Admitted) -> None:
        """Open, nothing; half-open, exactly so many."""
        limits, lane = self.limits_of(record.agent), self.slots[record.slot].lanes.get(record.agent)
        if limits is None or limits.breaker is None or lane is None or lane.breaker.state == "closed":
            return
        breaker, probes = lane.breaker, self._probes[record.agent]
        if breaker.state == "open":
            assert breaker.until_us and record.at_us >= breaker.until_us, "let through an open breaker"
            probes.clear()
        probes.update(dict.fromkeys(record.ids))
        assert len(probes) <= limits.breaker.half_open_attempts, "too many through a half-open breaker"

    def _check_outcome(
        self, activation: Activation, lane: Lane, limits: LimitSpec, before: str | None, probe: int,
        failed: bool | None,
    ) -> None:  # fmt: skip
        """So many failures in a row open it; one that is half-open opens with the first failure."""
        assert limits.breaker is not None
        agent, after = activation.agent, lane.breaker.state
        if before == "half_open" and probe == lane.breaker.round:
            if failed is None:
                self._probes[agent].pop(activation.id, None)
            assert (after == "open") == bool(failed), "the breaker took a probe for what it was not"
        elif before == "closed" and not probe and failed is not None:
            self._streak[agent] = self._streak[agent] + 1 if failed else 0
            tripped = self._streak[agent] >= limits.breaker.failure_threshold
            assert (after == "open") == tripped, f"{self._streak[agent]} failures in a row: {after}"
        if after != "closed" or before != "closed":
            self._streak[agent] = 0

    def _on_breaker_forced(self, record: Any) -> None:
        super()._on_breaker_forced(record)
        self._streak[record.agent] = 0
        self._probes[record.agent].clear()


def check_letters(cores: Sequence[FailureAudit], letters: Iterable[bytes]) -> None:
    """Every letter on the board is open, or was redriven or discarded once."""
    open_ = Counter(key for core in cores for slot in core.slots.values() for key in slot.letters)
    closed = sum((core.closed for core in cores), Counter[bytes]())
    assert open_ + closed == Counter(letters)


def check_lanes(core: ShardCore) -> None:
    """Nothing is open, so nothing counts as running."""
    for slot in core.slots.values():
        for agent, lane in slot.lanes.items():
            running = [lane.running, *(key.running for key in lane.keys.values())]
            assert not any(running), f"{agent} in slot {slot.index} is never let through again: {running}"


def limits_digest(slot: Slot) -> Any:
    """Return what is durable of a slot's limits; a window in which nothing started is as good as none."""
    return {
        agent: {
            "running": lane.running, "breaker": lane.breaker, "retries": lane.retries.steps,
            "windows": [w.steps for w in lane.windows if w.steps],
            "keys": [(key, s.running, [w.steps for w in s.windows if w.steps]) for key, s in lane.keys.items()],
        }
        for agent, lane in slot.lanes.items()
        if lane.running or lane.keys or any(w.steps for w in lane.windows) or lane.breaker != Breaker()
        or lane.retries.steps
    }  # fmt: skip
