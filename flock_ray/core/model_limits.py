"""How many calls to a model may start now, and whose: rates, concurrency, what providers tell, fairness.

Pure: times come in as seconds of any clock that never goes back, decisions go out. One `ModelLimiter`
decides for all calls that share a limit.

Rates hold in every window of a minute, not only on average: starts of the last 60 s are remembered (in
steps of 0.1 s, each kept until its whole step is older than the window).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

__all__ = ["WINDOW_S", "FairQueue", "ModelLimiter", "Observed", "Rates", "Ticket"]

WINDOW_S = 60.0
STEP_S = 0.1
MAX_BACKOFF_S = 60.0
TOLERATED = 0.1
"""Share of a round that a provider may refuse before fewer run at the same time: some refuse a few at random."""
GROWTH = 0.1
"""By how much of itself a learned ceiling rises per round of calls that were answered."""
MAX_BLOCK_S = 3600.0
"""However long a provider asks us to wait, it is asked again after an hour."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits of one model or provider; None: none."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the headers of a response say about one kind of limit (requests or tokens); None: nothing."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    """Seconds until all of it is available again."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A call that waits for its turn, or runs."""

    tenant: str
    agent: str
    tokens: int
    """How many tokens it will use, as far as anybody can tell."""
    step: _Step | None = None
    """Where it was counted; None: it has not started."""
    number: int = 0
    """Which start it was, from 1; 0: it has not started."""


@dataclass(slots=True)
class _Step:
    ends: float
    requests: int = 0
    tokens: int = 0


class _Flow:
    """What one agent has waiting."""

    __slots__ = ("queue", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.queue: OrderedDict[Ticket, None] = OrderedDict()


class _Tenant:
    """The agents of one tenant, by who was served least."""

    __slots__ = ("flows", "heap", "now", "start", "waiting")

    def __init__(self, start: float) -> None:
        self.start = start
        self.waiting = 0
        self.now = 0.0
        self.flows: dict[str, _Flow] = {}
        self.heap: list[tuple[float, str]] = []


class FairQueue:
    """Start-time fair queueing between tenants, then between a tenant's agents; first come within an agent.

    Each takes its turn by how much was served to it while it waited; whoever is idle saves nothing up.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._tenants: dict[str, _Tenant] = {}
        self._heap: list[tuple[float, str]] = []
        self._now = 0.0
        self._num = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._num

    def push(self, ticket: Ticket) -> None:
        """Put a ticket behind those of its agent."""
        tenant = self._tenants.get(ticket.tenant)
        if tenant is None:
            tenant = self._tenants[ticket.tenant] = _Tenant(self._now)
        if not tenant.waiting:
            tenant.start = max(tenant.start, self._now)
            heappush(self._heap, (tenant.start, ticket.tenant))
        flow = tenant.flows.get(ticket.agent)
        if flow is None:
            flow = tenant.flows[ticket.agent] = _Flow(tenant.now)
        if not flow.queue:
            flow.start = max(flow.start, tenant.now)
            heappush(tenant.heap, (flow.start, ticket.agent))
        flow.queue[ticket] = None
        tenant.waiting += 1
        self._num += 1

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out of the queue; False: it does not wait."""
        tenant = self._tenants.get(ticket.tenant)
        flow = None if tenant is None else tenant.flows.get(ticket.agent)
        if tenant is None or flow is None or ticket not in flow.queue:
            return False
        del flow.queue[ticket]
        tenant.waiting -= 1
        self._num -= 1
        self._trim(tenant)
        return True

    def peek(self) -> Ticket | None:
        """Return whose turn it is; None: nobody waits."""
        found = self._first()
        return None if found is None else next(iter(found[1].queue))

    def pop(self, cost: float = 1.0) -> Ticket | None:
        """Take the ticket whose turn it is, and charge its agent and tenant.

        Args:
            cost: How much is served with it, above 0.
        """
        found = self._first()
        if found is None:
            return None
        tenant, flow = found
        ticket, _ = flow.queue.popitem(last=False)
        self._now = tenant.start
        tenant.now = flow.start
        tenant.start += cost
        flow.start += cost
        tenant.waiting -= 1
        self._num -= 1
        heappop(tenant.heap)
        heappop(self._heap)
        if flow.queue:
            heappush(tenant.heap, (flow.start, ticket.agent))
        if tenant.waiting:
            heappush(self._heap, (tenant.start, ticket.tenant))
        self._forget(tenant)
        return ticket

    def _first(self) -> tuple[_Tenant, _Flow] | None:
        while self._heap:
            start, name = self._heap[0]
            tenant = self._tenants.get(name)
            if tenant is None or not tenant.waiting or start != tenant.start:
                heappop(self._heap)  # it was emptied by `remove`, and maybe filled again
                continue
            while tenant.heap:
                began, agent = tenant.heap[0]
                flow = tenant.flows.get(agent)
                if flow is not None and flow.queue and began == flow.start:
                    return tenant, flow
                heappop(tenant.heap)
            raise AssertionError("a tenant waits without an agent that does")
        return None

    def _trim(self, tenant: _Tenant) -> None:
        """Take out of the heaps who waits no more, once they are most of it: calls that are given up leave them."""
        if len(self._heap) > 64 + 2 * len(self._tenants):
            self._heap = [(one.start, name) for name, one in self._tenants.items() if one.waiting]
            heapify(self._heap)
        if len(tenant.heap) > 64 + 2 * len(tenant.flows):
            tenant.heap = [(flow.start, name) for name, flow in tenant.flows.items() if flow.queue]
            heapify(tenant.heap)
        self._forget(tenant)

    def _forget(self, served: _Tenant) -> None:
        """Forget who is idle when there are many, so that names which come and go take no memory.

        What they were ahead of the others, one call mostly, is forgiven with it.
        """
        if not self._num:
            self._tenants.clear()
            self._heap.clear()
        elif len(self._tenants) > 64 + 2 * self._num:
            self._tenants = {name: tenant for name, tenant in self._tenants.items() if tenant.waiting}
        if len(served.flows) > 64 + 2 * served.waiting:
            served.flows = {name: flow for name, flow in served.flows.items() if flow.queue}


class _Told:
    """A budget as the provider told it: so much is left, and it comes back evenly until the reset."""

    __slots__ = ("at", "left", "limit", "rate")

    def __init__(self) -> None:
        self.limit: float | None = None
        self.left = 0.0
        self.at = 0.0
        self.rate = 0.0

    def observe(self, seen: Observed, started_since: float, now: float) -> None:
        if seen.remaining is None or seen.reset_s is None:
            return
        left = max(0.0, seen.remaining - started_since)
        reset = min(max(seen.reset_s, 0.0), MAX_BLOCK_S)
        full = float(seen.limit) if seen.limit is not None else max(left, 1.0)
        self.limit, self.left, self.at = full, left, now
        self.rate = max(full - seen.remaining, 1.0) / reset if reset > 0 else float("inf")

    def wait_s(self, need: float, now: float) -> float:
        """Return the seconds until so much is available; 0: it is, or nothing is known."""
        if self.limit is None or self.rate == float("inf"):
            return 0.0
        level = min(self.limit, self.left + (now - self.at) * self.rate)
        return max(0.0, (min(need, self.limit) - level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        if self.limit is None or self.rate == float("inf"):
            return
        level = min(self.limit, self.left + (now - self.at) * self.rate)
        self.left, self.at = max(0.0, level - amount), now


class ModelLimiter:
    """Lets calls start within the limits of one model, in fair turns."""

    def __init__(self, rates: Rates, *, max_waiting: int = 20_000) -> None:
        """Start with nothing running.

        Args:
            rates: The limits that were configured.
            max_waiting: Calls that may wait; past it `enqueue` refuses.
        """
        self.rates = rates
        self._max_waiting = max_waiting
        self._queue = FairQueue()
        self._steps: deque[_Step] = deque()
        self._requests = self._tokens = 0
        """Of all steps together: what was started in the last minute."""
        self.in_flight = 0
        self._blocked_until = float("-inf")
        self._strikes = 0
        self._struck_until = float("-inf")
        self._started = 0
        self._cut_at = 0
        """How many calls had started when the ceiling was last lowered."""
        self._round = 0
        """Calls of this round: as many as ran when the first of them came back."""
        self._answered = self._refused = 0
        """What came back of them so far."""
        self._ceiling: float | None = None
        """Concurrency that was learned from refusals; None: nothing was."""
        self._recovered = 0.0
        self._told_requests = _Told()
        self._told_tokens = _Told()

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or counts for a window."""
        return not (self.in_flight or len(self._queue) or self._steps)

    def enqueue(self, ticket: Ticket) -> bool:
        """Let a call wait for its turn; False: too many wait already."""
        if len(self._queue) >= self._max_waiting:
            return False
        self._queue.push(ticket)
        return True

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a call that waits; False: it runs or is not here."""
        return self._queue.remove(ticket)

    def admit(self, now: float) -> list[Ticket]:
        """Return the calls that start now, in the order of their turns; each ends with `finish`."""
        started: list[Ticket] = []
        while (ticket := self._queue.peek()) is not None:
            if self._full() or self._wait_s(ticket, now) > 0:
                break
            self._queue.pop(float(max(1, ticket.tokens)) if self.rates.tpm is not None else 1.0)
            self._start(ticket, now)
            started.append(ticket)
        return started

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until the next call may start; None: nobody waits, or only until another ends."""
        ticket = self._queue.peek()
        if ticket is None or self._full():
            return None
        return self._wait_s(ticket, now)

    def finish(self, ticket: Ticket, now: float, *, tokens: int | None = None) -> None:
        """Note that a call ended.

        Args:
            ticket: One that `admit` returned.
            now: The time.
            tokens: What it used; None: unknown, the estimate stands.
        """
        self.in_flight -= 1
        self._expire(now)
        step = ticket.step
        if step is not None and tokens is not None and step.ends + WINDOW_S > now:
            change = tokens - ticket.tokens
            step.tokens += change
            self._tokens += change
        ticket.step = None

    def succeeded(self, ticket: Ticket) -> None:
        """Note that the provider has answered: a learned ceiling rises, by a tenth or by one, per round of calls."""
        self._strikes = 0
        if self._ceiling is not None and ticket.number > self._cut_at:
            self._ceiling += max(1.0 / self._ceiling, GROWTH)
            if self._ceiling >= self._recovered:
                self._ceiling = None
        self._count(ticket, refused=False)

    def refused(self, ticket: Ticket, now: float, retry_after_s: float | None = None) -> float:
        """Note that the provider has refused a call (429): nobody starts for a while, and maybe fewer at once later.

        Fewer when more than a tenth of a round of calls was refused; the others are held back when the provider says
        how long, or when it was more than half of them. A few refusals among many answers are noise.

        Args:
            ticket: The call, which has not ended with `finish` yet.
            now: The time.
            retry_after_s: What the provider asks for; None: 1 s, then twice as long each time.

        Returns:
            Seconds until the call should be tried again.
        """
        if retry_after_s is None:
            wait = min(MAX_BACKOFF_S, 2.0 ** min(self._strikes, 6))
        else:
            wait = min(max(retry_after_s, 0.0), MAX_BLOCK_S)
        is_most = self._count(ticket, refused=True)
        if is_most and now >= self._struck_until:
            # Once per refusal period: many calls that ran together are refused together.
            self._strikes += 1
            self._struck_until = now + max(wait, 1.0)
        if retry_after_s is None and not is_most:
            return wait
        self._blocked_until = max(self._blocked_until, now + wait)
        return self._blocked_until - now

    def _count(self, ticket: Ticket, *, refused: bool) -> bool:
        """Count what came of a call of this round; returns whether most of the round was refused."""
        if ticket.number <= self._cut_at:
            return False  # it ran beside those for which the ceiling was lowered: old news
        if not self._answered and not self._refused:
            self._round = max(1, self.in_flight)
        if refused:
            self._refused += 1
        else:
            self._answered += 1
        share = self._refused / self._round
        if self._refused + self._answered >= self._round:
            if share > TOLERATED:
                self._cut(share)
            self._answered = self._refused = 0
        return share > 0.5

    def _cut(self, share: float) -> None:
        """Lower the ceiling by the share of a round that was refused, at most to a half."""
        lowered = max(1.0, self._round * (1.0 - min(share, 0.5)))
        if self._ceiling is None or lowered < self._ceiling:
            self._ceiling, self._recovered = lowered, 2.0 * self._round
        self._cut_at = self._started

    def observe(self, requests: Observed, tokens: Observed, now: float) -> None:
        """Take what the headers of an answer say is left.

        The provider may not have seen the other calls in flight when it counted: they are taken off.
        """
        others = max(0, self.in_flight - 1)
        self._told_requests.observe(requests, others, now)
        self._told_tokens.observe(tokens, 0, now)

    def _full(self) -> bool:
        limit = self.rates.concurrency
        if limit is not None and self.in_flight >= limit:
            return True
        return self._ceiling is not None and self.in_flight >= max(1, int(self._ceiling))

    def _wait_s(self, ticket: Ticket, now: float) -> float:
        self._expire(now)
        wait = max(
            self._blocked_until - now,
            self._told_requests.wait_s(1, now),
            self._told_tokens.wait_s(ticket.tokens, now),
        )
        rpm, tpm = self.rates.rpm, self.rates.tpm
        if rpm is not None and self._requests + 1 > rpm:
            wait = max(wait, self._window_wait(self._requests + 1 - rpm, now, of_tokens=False))
        if tpm is not None and self._tokens and self._tokens + ticket.tokens > tpm:
            # A call that is larger than the whole limit starts when nothing else counts.
            wait = max(wait, self._window_wait(self._tokens + ticket.tokens - tpm, now, of_tokens=True))
        return max(0.0, wait)

    def _window_wait(self, excess: int, now: float, *, of_tokens: bool) -> float:
        for step in self._steps:
            excess -= step.tokens if of_tokens else step.requests
            if excess <= 0:
                return max(step.ends + WINDOW_S - now, 1e-6)
        return 1e-6 if not self._steps else max(self._steps[-1].ends + WINDOW_S - now, 1e-6)

    def _start(self, ticket: Ticket, now: float) -> None:
        self.in_flight += 1
        self._started += 1
        ticket.number = self._started
        step = self._steps[-1] if self._steps else None
        if step is None or step.ends <= now:
            step = _Step(now + STEP_S)
            self._steps.append(step)
        step.requests += 1
        step.tokens += ticket.tokens
        self._requests += 1
        self._tokens += ticket.tokens
        self._told_requests.take(1, now)
        self._told_tokens.take(ticket.tokens, now)
        ticket.step = step

    def _expire(self, now: float) -> None:
        while self._steps and self._steps[0].ends + WINDOW_S <= now:
            step = self._steps.popleft()
            self._requests -= step.requests
            self._tokens -= step.tokens
