"""Who may start what: ready queues, permits held, attempts handed out. Volatile; rebuilt from open activations.

Permits are counted where they are used: handing out an attempt takes one, its completion, its
failure or the death of its holder returns it, and a grant that is not renewed runs out by itself.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from zlib import crc32

from flock_ray.core.fairness import Charge, FairLevel, Prices, cost_of, tenant_of_run
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.pauses import Pauses, Place, lay_aside
from flock_ray.core.permits import READ_AHEAD_US, Holding, Permits
from flock_ray.core.state import Activation
from flock_ray.core.tenants import tenant_of
from flock_ray.core.wire import GrantBatch, Task

SOLO_AFTER_CRASHES = 2
"""An activation that was on this many workers when they died runs alone from then on."""


MAX_EMPTY_LEVELS = 16
"""Priorities whose empty queues are kept for the next activation."""


class ReadyQueue:
    """Activations of one agent that wait for a permit: highest priority first, then fair to tenants, then oldest.

    As long as all are of one tenant (or of none), a level is a plain queue.
    """

    __slots__ = ("_levels", "_order", "_paid", "_prices", "_prices_of", "_tenant", "count", "fair")

    def __init__(self, prices: Callable[[], Prices] = Prices) -> None:
        """Start empty.

        Args:
            prices: Finds weights and costs of tenants; called when there is more than one.
        """
        self._levels: dict[int, deque[Activation] | FairLevel] = {}
        self._order: list[int] = []
        """Priorities, the highest one last."""
        self._tenant = ""
        self.fair = False
        """There is more than one tenant."""
        self._prices_of = prices
        self._prices: Prices | None = None
        self._paid: Charge | None = None
        self.count = 0

    def __iter__(self) -> Iterator[Activation]:
        """Iterate over what waits."""
        for level in self._levels.values():
            yield from level

    def push(self, activation: Activation, *, front: bool = False) -> None:
        """Add one; `front` for work that is handed out again."""
        inputs = activation.inputs
        tenant = tenant_of(inputs[0].tags) if inputs and inputs[0].tags else ""
        if tenant != self._tenant and not self.fair:
            self._meet(tenant)
        priority = activation.priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = FairLevel() if self.fair else deque()
            insort(self._order, priority)
        if isinstance(level, FairLevel):
            level.push(activation, tenant, front=front)
        elif front:
            level.appendleft(activation)
        else:
            level.append(activation)
        self.count += 1

    def _meet(self, tenant: str) -> None:
        """Take the first activation of another tenant than all before."""
        if not self.count:
            self._tenant = tenant
            return
        self.fair = True
        self._prices = self._prices_of()
        for priority, before in list(self._levels.items()):
            level = self._levels[priority] = FairLevel()
            for activation in before:
                level.push(activation, self._tenant)

    def pop(self) -> Activation:
        """Take the next one; IndexError when empty."""
        order, levels = self._order, self._levels
        for place in range(len(order) - 1, -1, -1):
            level = levels[order[place]]
            if level:
                self.count -= 1
                if isinstance(level, FairLevel):
                    assert self._prices is not None
                    activation, flow, price = level.pop(self._prices)
                    self._paid = level, flow, price
                    return activation
                return level.popleft()
            if len(order) > MAX_EMPTY_LEVELS:
                del levels[order.pop(place)]
        raise IndexError("pop from an empty ready queue")

    def paid(self) -> Charge | None:
        """Return whom the last `pop` has charged, and how much; None when there is one tenant only."""
        return self._paid if self.fair else None

    def refund(self) -> None:
        """Take back what the last `pop` has charged: what it gave does not run now."""
        if self.fair and self._paid is not None:
            level, flow, price = self._paid
            level.settle(flow, price, 0.0)
            self._paid = None

    def keep(self, wanted: Callable[[Activation], bool]) -> None:
        """Forget what is not wanted any more; nobody is charged for it, and the order stays."""
        for priority, level in self._levels.items():
            if isinstance(level, FairLevel):
                level.keep(wanted)
            else:
                self._levels[priority] = deque(a for a in level if wanted(a))
        self.count = sum(len(level) for level in self._levels.values())

    def be_plain(self) -> None:
        """Forget tenants; call when nothing waits and nothing runs."""
        if self.fair:
            self._levels, self._order = {}, []
            self.fair, self._paid, self._prices = False, None, None

    def top(self) -> int:
        """Return the highest priority of what waits; 0 when empty."""
        return next((p for p in reversed(self._order) if self._levels[p]), 0)

    def oldest_us(self) -> int | None:
        """Return when about the oldest waiting activation was created; None when empty."""
        heads = []
        for level in self._levels.values():
            if isinstance(level, FairLevel):
                head = level.oldest_us()
                if head is not None:
                    heads.append(head)
            elif level:
                heads.append(level[0].created_us)
        return min(heads) if heads else None


LONG_RUN_US = 4 * READ_AHEAD_US
"""Nothing is read ahead for runs this long, so it does not matter how much longer one took. Without
this limit one outlier would stop the reading ahead for a long time."""


class RunTime:
    """Moving mean of an agent's run times."""

    __slots__ = ("count", "mean_us")

    def __init__(self) -> None:
        """Start knowing nothing."""
        self.mean_us = 0.0
        self.count = 0

    def note(self, run_us: int) -> None:
        """Count one run: the first 20 as a plain mean, so that a slow first one is soon forgotten."""
        if self.count < 20:
            self.count += 1
        self.mean_us += (min(run_us, LONG_RUN_US) - self.mean_us) / self.count


class Dispatcher:
    """Decides which ready activation goes to which worker."""

    __slots__ = (
        "_aside", "_charges", "_hot", "_is_open", "_permits", "_prices", "_run_times", "_salt", "_solo",
        "first_attempt", "leases", "pauses", "ready", "weights_of",
    )  # fmt: skip

    def __init__(
        self,
        is_open: Callable[[Activation], bool],
        *,
        salt: int = 0,
        pauses: Pauses | None = None,
        weights_of: Callable[[str], Mapping[str, float]] | None = None,
    ) -> None:
        """Start without permits.

        Args:
            salt: Different for every shard: among equally free workers, shards then choose different ones.
            is_open: Says whether an activation in a ready queue still has to run (not cancelled).
            pauses: What is not handed out; None: nothing is paused.
            weights_of: Finds the shares of an agent's tenants, for those whose share is not 1; None: all are equal.
        """
        self._is_open = is_open
        self.pauses = pauses or Pauses()
        self.weights_of = weights_of
        self._aside: dict[Place, list[Activation]] = {}
        """What was about to run and is paused, by what pauses it."""
        self._prices: dict[str, Prices] = {}
        """By agent, for those with more than one tenant."""
        self._charges: dict[str, dict[bytes, Charge]] = {}
        """By agent: whom attempts that run were charged, and how much."""
        self._salt = salt
        self.first_attempt = 0
        """Attempts are numbered above this: a new epoch's above those of the former one."""
        self.ready: dict[str, ReadyQueue] = {}
        self.leases: dict[str, dict[bytes, Activation]] = {}
        """What each worker holds."""
        self._permits = Permits()
        self._hot: set[str] = set()
        self._run_times: dict[str, RunTime] = {}
        self._solo: set[str] = set()

    def push(self, activation: Activation, *, front: bool = False) -> None:
        """Make an activation ready to run."""
        queue = self.ready.get(activation.agent)
        if queue is None:
            queue = self.ready[activation.agent] = ReadyQueue(partial(self.prices, activation.agent))
        elif queue.fair and not queue.count and not self._charges.get(activation.agent):
            queue.be_plain()
        queue.push(activation, front=front)
        self._hot.add(activation.agent)

    def withdraw(self, agent: str, goes: Callable[[Activation], bool]) -> list[Activation]:
        """Take out of an agent's ready queue what has to wait for something else first; returns it."""
        queue = self.ready.get(agent)
        gone = [] if queue is None else [a for a in queue if goes(a)]
        if queue is not None and gone:
            queue.keep(lambda activation: not goes(activation))
        return [a for a in gone if self._is_open(a)]

    def prices(self, agent: str) -> Prices:
        """Return what the tenants of an agent are entitled to and what their runs cost; kept from now on."""
        known = self._prices.get(agent)
        if known is None:
            known = self._prices[agent] = Prices()
        if self.weights_of is not None:
            known.weights = self.weights_of(agent)
        return known

    def weights_changed(self) -> None:
        """Take the shares of tenants from a new table."""
        for agent in self._prices:
            self.prices(agent)

    def resumed(self, kind: str, name: str) -> None:
        """Make ready what is not paused any more; call after the pause was lifted."""
        if kind == "board":
            self._hot.update(agent for agent, queue in self.ready.items() if queue.count)
        elif kind == "agent":
            if name in self.ready:
                self._hot.add(name)
        else:
            for activation in reversed(self._aside.pop((kind, name), ())):
                self.push(activation, front=True)  # one that was cancelled meanwhile is not handed out

    def recall(self) -> list[tuple[str, bytes]]:
        """Make ready again whatever runs; returns which worker has to stop what."""
        recalled = [(w, a) for w, held in self.leases.items() for a in held.values()]
        for _, activation in reversed(recalled):
            self.release(activation)
            self.push(activation, front=True)
        return [(worker, activation.id) for worker, activation in recalled]

    @property
    def grant_seq(self) -> int:
        """Number of the newest batch of permits, if all of it is still held; else, and before the first, 0."""
        return self._permits.seq if self._permits.whole else 0

    def grant(self, batch: GrantBatch, now_us: int) -> bool:
        """Take a batch of permits in place of all held; one that comes late is ignored (False)."""
        if not self._permits.take(batch, now_us, self.leases):
            return False
        self._hot.update(agent for agent, queue in self.ready.items() if queue.count)
        return True

    def room(self, agent: str) -> int:
        """Return how many more activations of an agent could begin at once, beside those that are ready."""
        if self.pauses.board or agent in self.pauses.agents:
            return 0
        free = sum(max(0, h.concurrency - h.used) for h in self._permits.by_agent.get(agent, {}).values())
        queue = self.ready.get(agent)
        return free if queue is None else max(0, free - queue.count)

    def forget_grants(self) -> None:
        """Start counting grant batches anew: the router that numbered them is a new one."""
        self._permits.seq = 0

    def permits_expired(self, now_us: int) -> bool:
        """Say whether the permits held are past their time to live."""
        return self._permits.expired(now_us)

    def take(self, now_us: int, table_version: int) -> dict[str, list[Task]]:
        """Hand out as many ready activations as permits allow, grouped by worker."""
        out: dict[str, list[Task]] = {}
        if not self._hot or now_us > self._permits.expires_us or self.pauses.board:
            return out
        paused = self.pauses.agents
        for agent in sorted(self._hot, key=self._urgency):
            if paused and agent in paused:
                self._hot.discard(agent)
                continue
            queue = self.ready[agent]
            holdings = self._permits.by_agent.get(agent)
            if holdings:
                known = self._run_times.get(agent)
                self._serve(queue, holdings, known.mean_us if known is not None else 0.0, out)
            self._hot.discard(agent)
        return out

    def _urgency(self, agent: str) -> tuple[int, str]:
        return (-self.ready[agent].top(), agent)

    def _serve(
        self, queue: ReadyQueue, holdings: dict[str, Holding], mean_us: float, out: dict[str, list[Task]]
    ) -> None:
        free = [(room, worker, h) for worker, h in holdings.items() if (room := h.room(mean_us)) > 0]
        if not free:
            return
        if len(free) > 1:
            free.sort(key=lambda entry: (-entry[0], crc32(entry[1].encode(), self._salt)))
        total = sum(entry[0] for entry in free)
        for room, worker, holding in free:
            if not queue.count:
                break
            # An even share of what is ready, so that a short queue spreads over all replicas.
            share = min(room, max(1, -(-queue.count * room // total)))
            total -= room
            self._hand_out(queue, share, worker, holding, out.setdefault(worker, []))

    def _hand_out(
        self, queue: ReadyQueue, share: int, worker: str, holding: Holding, tasks: list[Task]
    ) -> None:
        leases = self.leases.setdefault(worker, {})
        sets_aside = self.pauses.sets_aside
        while share > 0 and queue.count:
            activation = queue.pop()
            if not self._is_open(activation) or (sets_aside and self._set_aside(activation)):
                queue.refund()
                continue
            if activation.crashes >= SOLO_AFTER_CRASHES:
                if worker in self._solo:
                    queue.refund()
                    queue.push(activation, front=True)
                    return
                self._solo.add(worker)
            if (paid := queue.paid()) is not None:
                self._charges.setdefault(activation.agent, {})[activation.id] = paid
            activation.attempt = max(activation.attempt, self.first_attempt) + 1
            activation.worker = worker
            activation.holding = holding
            leases[activation.id] = activation
            holding.used += 1
            share -= 1
            tasks.append(
                Task(
                    activation.id,
                    activation.attempt,
                    activation.agent,
                    activation.subscription,
                    activation.slot,
                    activation.correlation_id,
                    activation.inputs,
                    activation.groups,
                    activation.failures,
                    activation.gather,
                    activation.offset,
                    activation.decision,
                )
            )

    def _set_aside(self, activation: Activation) -> bool:
        """Keep an activation that is paused, until it is resumed; False when it may run.

        One that the limits of its agent have let through runs: it would hold up others of the agent.
        """
        place = None if activation.admitted else self.pauses.covering(activation)
        if place is None:
            return False
        lay_aside(self._aside, place, activation, self._is_open)
        return True

    def release(self, activation: Activation, run_us: int = 0, calls: Iterable[ModelCall] = ()) -> None:
        """Return the permit of an attempt that ended.

        Args:
            activation: Whose attempt.
            run_us: How long it ran; 0 when that is not known.
            calls: What it asked of language models.
        """
        if self._prices:
            self._settle(activation, run_us, calls)
        if run_us:
            known = self._run_times.get(activation.agent)
            if known is None:
                known = self._run_times[activation.agent] = RunTime()
            known.note(run_us)
        worker = activation.worker
        if worker is None:
            return
        activation.worker = None
        leases = self.leases.get(worker)
        if leases is None or leases.pop(activation.id, None) is None:
            return
        if activation.crashes >= SOLO_AFTER_CRASHES:
            # Suspects of other agents may wait for this worker.
            self._solo.discard(worker)
            self._hot.update(agent for agent, queue in self.ready.items() if queue.count)
        activation.holding.used -= 1
        queue = self.ready.get(activation.agent)
        if queue is not None and queue.count:
            self._hot.add(activation.agent)

    def _settle(self, activation: Activation, run_us: int, calls: Iterable[ModelCall]) -> None:
        """Charge a tenant what a run has really cost; when that is not known, it was the estimate."""
        charges = self._charges.get(activation.agent)
        charge = charges.pop(activation.id, None) if charges else None
        prices = self._prices.get(activation.agent)
        if run_us and prices is not None:
            cost_us = cost_of(run_us, calls)
            prices.note(tenant_of_run(activation), cost_us)
            if charge is not None:
                level, flow, paid = charge
                level.settle(flow, paid, cost_us)

    def revoke(self, worker: str) -> list[Activation]:
        """Forget a worker that is gone; returns what it held, oldest first, without making it ready."""
        self._permits.drop(worker)
        self._solo.discard(worker)
        held = self.leases.pop(worker, {})
        for activation in held.values():
            activation.worker = None
            if self._prices:
                self._settle(activation, 0, ())
        return list(held.values())

    def blamed(self, held: Iterable[Activation]) -> list[Activation]:
        """Say which of a dead worker's activations get a crash counted.

        A worker that ran a suspect beside others points at the suspect; otherwise nobody can
        tell, and all of them do.
        """
        held = list(held)
        suspects = [a for a in held if a.crashes >= SOLO_AFTER_CRASHES]
        return suspects or held

    def running(self) -> dict[str, int]:
        """Return how many attempts of each agent are handed out."""
        counts = {a: sum(h.used for h in holdings.values()) for a, holdings in self._permits.by_agent.items()}
        return {agent: count for agent, count in counts.items() if count > 0}

    def workers(self) -> set[str]:
        """Every worker that holds permits or leases of this shard."""
        return {w for holdings in self._permits.by_agent.values() for w in holdings} | set(self.leases)
