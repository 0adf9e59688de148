"""Whose work comes next when several tenants wait: shares of an agent's time, by weight. Volatile.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): what a tenant has had is counted in virtual time, and of
those that wait, whoever has had least comes next. A tenant that comes back enters where the others are: it has
neither saved anything up nor does it pay for a time when nobody else wanted the agent.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice

from flock_ray.core.model_calls import ModelCall
from flock_ray.core.state import Activation
from flock_ray.core.tenants import tenant_of, tenant_tag
from flock_ray.errors import ConfigurationError

TOKEN_US = 10_000
"""Run time that one token of a language model stands for: they write about a hundred a second."""

MAX_IDLE = 10_000
"""Tenants with nothing waiting whose last runs are remembered, per agent and priority."""

MAX_MEANS = 10_000
"""Tenants whose mean cost is remembered, per agent."""

MAX_WEIGHTS = 1_000
"""Tenants whose share is not 1."""

LOOKED_AT = 1_000
"""Tenants that are looked at for the oldest activation."""


def tenant_of_run(activation: Activation) -> str:
    """Return whose an activation is: its first input's tenant, "" when that has none."""
    inputs = activation.inputs
    return tenant_of(inputs[0].tags) if inputs and inputs[0].tags else ""


def cost_of(run_us: int, calls: Iterable[ModelCall]) -> int:
    """Return what a run has cost, as run time: its own, or that of its tokens when this is more."""
    tokens = sum(call.input_tokens + call.output_tokens for call in calls)
    return max(run_us, tokens * TOKEN_US)


def checked_weights(weights: object) -> tuple[tuple[str, float], ...]:
    """Return the shares of tenants, sorted by name; a share of 1 is left out.

    Raises:
        ConfigurationError: One is not a number from 0.001 to 1000, or there are more than 1,000.
    """
    if weights is None:
        return ()
    if not isinstance(weights, Mapping) or len(weights) > MAX_WEIGHTS:
        raise ConfigurationError(
            f'tenant_weights= is a dict of at most {MAX_WEIGHTS:,} tenants, such as {{"acme": 2.0}}.'
        )
    for tenant, weight in weights.items():
        tenant_tag(tenant)
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not good or not 0.001 <= weight <= 1000:
            raise ConfigurationError(
                f"tenant_weights={{{tenant!r}: {weight!r}}}: give a number from 0.001 to 1000. Those who are not "
                "named have 1."
            )
    return tuple(sorted((tenant, float(weight)) for tenant, weight in weights.items() if weight != 1))


class Prices:
    """What the tenants of one agent are entitled to, and what their runs cost lately."""

    __slots__ = ("_count", "_mean", "_means", "weights")

    def __init__(self) -> None:
        """Start knowing nothing."""
        self.weights: Mapping[str, float] = {}
        """Tenants that get another share than 1."""
        self._means: OrderedDict[str, float] = OrderedDict()
        self._mean = 1.0
        self._count = 0

    def estimate(self, tenant: str) -> float:
        """Return what a run of a tenant costs in all likelihood, in microseconds; the mean of all if it is new."""
        return self._means.get(tenant, self._mean)

    def note(self, tenant: str, cost_us: int) -> None:
        """Count the cost of a run."""
        if self._count < 20:
            self._count += 1
        self._mean += (cost_us - self._mean) / self._count
        before = self._means.pop(tenant, None)
        self._means[tenant] = float(cost_us) if before is None else before + (cost_us - before) / 8
        if len(self._means) > MAX_MEANS:
            self._means.popitem(last=False)


class Flow:
    """One tenant at one level."""

    __slots__ = ("entry", "start", "tenant", "waiting", "weight")

    def __init__(self, tenant: str, start: float) -> None:
        """Enter at a virtual time."""
        self.tenant = tenant
        self.start = start
        """Virtual time at which its next run begins."""
        self.weight = 1.0
        self.waiting: deque[Activation] | None = None
        """None while nothing waits."""
        self.entry = 0
        """Number of its entry in the heap; others of it are out of date."""


class FairLevel:
    """What waits at one priority, by tenant."""

    __slots__ = ("_flows", "_heap", "_idle", "_now", "_number", "count")

    def __init__(self) -> None:
        """Start empty."""
        self._flows: dict[str, Flow] = {}
        """Of tenants with something waiting."""
        self._idle: OrderedDict[str, Flow] = OrderedDict()
        self._heap: list[tuple[float, int, Flow]] = []
        """(start, number, flow) of tenants with something waiting; a start may have become later meanwhile."""
        self._now = 0.0
        self._number = 0
        self.count = 0

    def __len__(self) -> int:
        """Return how many activations wait."""
        return self.count

    def __iter__(self) -> Iterator[Activation]:
        """Iterate over what waits, in no particular order between tenants."""
        for flow in self._flows.values():
            yield from flow.waiting or ()

    def push(self, activation: Activation, tenant: str, *, front: bool = False) -> None:
        """Add one, behind or before the others of its tenant."""
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._idle.pop(tenant, None) or Flow(tenant, self._now)
            flow.start = max(self._now, flow.start)  # nothing is saved up
            flow.waiting = deque()
            self._flows[tenant] = flow
            heappush(self._heap, self._entry(flow))
        assert flow.waiting is not None
        if front:
            flow.waiting.appendleft(activation)
        else:
            flow.waiting.append(activation)
        self.count += 1

    def _entry(self, flow: Flow) -> tuple[float, int, Flow]:
        self._number += 1
        flow.entry = self._number
        return flow.start, self._number, flow

    def pop(self, prices: Prices) -> tuple[Activation, Flow, float]:
        """Take the next one of the tenant that has had least; returns also whom it was charged, and how much.

        Raises:
            IndexError: Nothing waits.
        """
        flow = self._first()
        waiting = flow.waiting
        assert waiting is not None
        activation = waiting.popleft()
        self.count -= 1
        self._now = flow.start
        flow.weight = prices.weights.get(flow.tenant, 1.0)
        price = prices.estimate(flow.tenant)
        flow.start += price / flow.weight
        if waiting:
            heapreplace(self._heap, self._entry(flow))
        else:
            heappop(self._heap)
            del self._flows[flow.tenant]
            flow.waiting, flow.entry = None, 0
            self._remember(flow)
        return activation, flow, price

    def keep(self, wanted: Callable[[Activation], bool]) -> None:
        """Forget what is not wanted any more; a tenant of which nothing is left has had what it had."""
        for flow in list(self._flows.values()):
            flow.waiting = deque(a for a in flow.waiting or () if wanted(a))
            if not flow.waiting:
                del self._flows[flow.tenant]
                flow.waiting, flow.entry = None, 0
                self._remember(flow)
        self._heap = [entry for entry in self._heap if entry[1] == entry[2].entry]
        heapify(self._heap)
        self.count = sum(len(flow.waiting or ()) for flow in self._flows.values())

    def _first(self) -> Flow:
        """Return the tenant whose turn it is; its entry is the first one then."""
        heap = self._heap
        while True:
            start, number, flow = heap[0]
            if number != flow.entry:
                heappop(heap)
            elif start < flow.start:
                heapreplace(heap, self._entry(flow))
            else:
                return flow

    def settle(self, flow: Flow, paid: float, cost: float) -> None:
        """Correct what a tenant was charged for a run, once it is known what that has cost."""
        change = (cost - paid) / flow.weight
        if flow.waiting is None:
            flow.start += change
            return
        before, flow.start = flow.start, max(self._now, flow.start + change)
        if flow.start < before:
            heappush(self._heap, self._entry(flow))
            if len(self._heap) > 2 * len(self._flows) + 64:
                self._heap = [entry for entry in self._heap if entry[1] == entry[2].entry]
                heapify(self._heap)

    def _remember(self, flow: Flow) -> None:
        """Keep what a tenant has had while nothing of it waits; those whom that would not change are forgotten."""
        self._idle[flow.tenant] = flow
        for tenant, old in list(islice(self._idle.items(), 2)):
            if old is not flow and (len(self._idle) > MAX_IDLE or old.start <= self._now):
                del self._idle[tenant]

    def oldest_us(self) -> int | None:
        """Return when about the oldest was created; None when empty."""
        heads = [f.waiting[0].created_us for f in islice(self._flows.values(), LOOKED_AT) if f.waiting]
        return min(heads) if heads else None


Charge = tuple[FairLevel, Flow, float]
"""Where a run was charged, to whom, and how much."""
