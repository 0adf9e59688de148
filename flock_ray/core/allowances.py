"""What waits for the limits of an agent, and how much they allow. Half of `core.lanes`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from flock_ray.core.dispatch import ReadyQueue
from flock_ray.core.fairness import Prices
from flock_ray.core.rates import RateWindow
from flock_ray.core.state import Activation, KeyState, Lane
from flock_ray.core.wire import LimitSpec, Rate

NO_LIMIT = 2**31


class Waiting:
    """Activations of one agent in one slot that its limits have not let through: keys take turns."""

    __slots__ = ("blocked", "count", "keys", "prices", "stale", "timed", "told", "turn")

    def __init__(self, prices: Callable[[], Prices]) -> None:
        """Start empty; `prices` finds shares and costs of the agent's tenants."""
        self.prices = prices
        self.keys: dict[str, ReadyQueue] = {}
        self.turn: deque[str] = deque()
        """Keys with something waiting, except blocked ones."""
        self.blocked: set[str] = set()
        """Keys whose own limits let nothing through."""
        self.timed: list[tuple[int, str]] = []
        """Heap of (time, key): when rates let more of a blocked key through."""
        self.count = 0
        self.stale = 0
        """Of these, activations that have ended since: they are skipped, and thrown out when they are the most."""
        self.told = False
        """An event has said that the limits hold something back."""

    def push(self, activation: Activation) -> None:
        """Add one."""
        queue = self.keys.get(activation.lane)
        if queue is None:
            queue = self.keys[activation.lane] = ReadyQueue(self.prices)
            self.turn.append(activation.lane)
        queue.push(activation)
        self.count += 1

    def throw_out(self, waits: Callable[[Activation], bool]) -> None:
        """Forget what does not wait any more."""
        for queue in self.keys.values():
            queue.keep(waits)
        self.count, self.stale = sum(queue.count for queue in self.keys.values()), 0

    def unblock(self, key: str) -> None:
        """Let a key take part again."""
        if key in self.blocked:
            self.blocked.discard(key)
            self.turn.append(key)


def rates_of(limits: LimitSpec, windows: list[RateWindow], keyed: bool) -> list[tuple[Rate, RateWindow]]:
    """Pair rates of one kind with their windows. One that is missing is empty, and not kept: see `fit_windows`."""
    rates = [rate for rate in limits.rates if rate.keyed is keyed]
    if len(windows) != len(rates):
        windows = list(windows)
        fit_windows(windows, limits, keyed=keyed)
    return list(zip(rates, windows, strict=True))


def fit_windows(windows: list[RateWindow], limits: LimitSpec, *, keyed: bool) -> None:
    """Have a window for each rate: a deploy may have brought more or fewer. For what records do, and nothing else."""
    wanted = sum(rate.keyed is keyed for rate in limits.rates)
    if len(windows) != wanted:
        # All have counted the same starts; the one with the longest memory knows what any of them has to know.
        known = min((w for w in windows if w.steps), key=lambda w: w.steps[0][0], default=RateWindow())
        windows[:] = [RateWindow(list(known.steps)) for _ in range(wanted)]


def allowance(lane: Lane, limits: LimitSpec, now_us: int) -> int:
    """Return how many more the limits of the whole agent let through now."""
    allowed = limits.concurrency - lane.running if limits.concurrency else NO_LIMIT
    for rate, window in rates_of(limits, lane.windows, False):
        allowed = min(allowed, window.allowance(rate, now_us))
    return allowed if limits.breaker is None else min(allowed, lane.breaker.allowance(limits.breaker, now_us))


def key_allowance(state: KeyState | None, limits: LimitSpec, now_us: int) -> int:
    """Return how many more of one key its limits let through now; None: nothing of it is counted."""
    running = 0 if state is None else state.running
    allowed = limits.keyed_concurrency - running if limits.keyed_concurrency else NO_LIMIT
    if state is None:
        return min([allowed, *(rate.limit for rate in limits.rates if rate.keyed)])
    for rate, window in rates_of(limits, state.windows, True):
        allowed = min(allowed, window.allowance(rate, now_us))
    return allowed


def free_at_us(windows: list[RateWindow], limits: LimitSpec, now_us: int, *, keyed: bool) -> int:
    """Return when all rates let one more start."""
    return max(
        (window.free_us(rate, now_us) for rate, window in rates_of(limits, windows, keyed)), default=now_us
    )


def forget_idle(lane: Lane, limits: LimitSpec, now_us: int) -> None:
    """Look at the two keys let through longest ago: more than come, so that a million customers do not stay."""
    for _ in range(min(2, len(lane.keys))):
        name = next(iter(lane.keys))
        state = lane.keys.pop(name)
        fit_windows(state.windows, limits, keyed=True)
        if state.running or not all(
            w.idle(rate, now_us) for rate, w in rates_of(limits, state.windows, True)
        ):
            lane.keys[name] = state
