"""Who may start what: ready queues, permits held, attempts handed out. Volatile; rebuilt from open activations.

Permits are counted where they are used: handing out an attempt takes one, its completion, its
failure or the death of its holder returns it, and a grant that is not renewed runs out by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from zlib import crc32

from flock_ray.core.state import Activation
from flock_ray.core.wire import GrantBatch, Task

SOLO_AFTER_CRASHES = 2
"""An activation that was on this many workers when they died runs alone from then on."""


class ReadyQueue:
    """Activations of one agent that wait for a permit: highest priority first, then oldest."""

    __slots__ = ("_levels", "_order", "count")

    def __init__(self) -> None:
        """Start empty."""
        self._levels: dict[int, deque[Activation]] = {}
        self._order: list[int] = []
        self.count = 0

    def push(self, activation: Activation, *, front: bool = False) -> None:
        """Add one; `front` for work that is handed out again."""
        level = self._levels.get(activation.priority)
        if level is None:
            level = self._levels[activation.priority] = deque()
            self._order = sorted(self._levels, reverse=True)
        if front:
            level.appendleft(activation)
        else:
            level.append(activation)
        self.count += 1

    def pop(self) -> Activation:
        """Take the next one; IndexError when empty."""
        for priority in self._order:
            level = self._levels[priority]
            if level:
                self.count -= 1
                return level.popleft()
        raise IndexError("pop from an empty ready queue")

    def oldest_us(self) -> int | None:
        """Return when the oldest waiting activation was created; None when empty."""
        heads = [level[0].created_us for level in self._levels.values() if level]
        return min(heads) if heads else None


READ_AHEAD_US = 50_000
"""Work a worker may have queued per unit of concurrency: enough to hide the round trip, little enough
that a slow activation holds up few others."""


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


class Holding:
    """Permits of one agent on one worker, and how many are in use."""

    __slots__ = ("concurrency", "credit", "used")

    def __init__(self) -> None:
        """Start with none in use."""
        self.credit = 0
        self.concurrency = 1
        self.used = 0

    def room(self, mean_run_us: float) -> int:
        """Return how many more attempts may go there now, given the mean run time (0: unknown)."""
        window = self.concurrency
        if mean_run_us:
            window = int(window * max(1.0, READ_AHEAD_US / mean_run_us))
        return min(self.credit, window) - self.used


class Dispatcher:
    """Decides which ready activation goes to which worker."""

    __slots__ = (
        "_agents", "_expires_us", "_hot", "_is_open", "_run_times", "_salt", "_solo", "first_attempt", "grant_seq",
        "leases", "ready",
    )  # fmt: skip

    def __init__(self, is_open: Callable[[Activation], bool], *, salt: int = 0) -> None:
        """Start without permits.

        Args:
            salt: Different for every shard: among equally free workers, shards then choose different ones.
            is_open: Says whether an activation in a ready queue still has to run (not cancelled).
        """
        self._is_open = is_open
        self._salt = salt
        self.first_attempt = 0
        """Attempts are numbered above this: a new epoch's above those of the former one."""
        self.ready: dict[str, ReadyQueue] = {}
        self.leases: dict[str, dict[bytes, Activation]] = {}
        """What each worker holds."""
        self._agents: dict[str, dict[str, Holding]] = {}
        self._hot: set[str] = set()
        self._run_times: dict[str, RunTime] = {}
        self._solo: set[str] = set()
        self.grant_seq = 0
        """Number of the newest batch of permits; 0 before the first."""
        self._expires_us = 0

    def push(self, activation: Activation, *, front: bool = False) -> None:
        """Make an activation ready to run."""
        queue = self.ready.get(activation.agent)
        if queue is None:
            queue = self.ready[activation.agent] = ReadyQueue()
        queue.push(activation, front=front)
        self._hot.add(activation.agent)

    def grant(self, batch: GrantBatch, now_us: int) -> bool:
        """Replace all permits by a newer batch; an older one that arrives late is ignored (False)."""
        if batch.seq <= self.grant_seq:
            return False
        self.grant_seq = batch.seq
        self._expires_us = now_us + int(batch.ttl_s * 1_000_000)
        old = self._agents
        self._agents = {}
        for grant in batch.grants:
            holding = old.get(grant.agent, {}).get(grant.worker)
            if holding is None:
                holding = Holding()
                for activation in self.leases.get(grant.worker, {}).values():
                    if activation.agent == grant.agent:
                        activation.holding = holding
                        holding.used += 1
            holding.credit, holding.concurrency = grant.credit, grant.concurrency
            self._agents.setdefault(grant.agent, {})[grant.worker] = holding
        self._hot.update(agent for agent, queue in self.ready.items() if queue.count)
        return True

    def forget_grants(self) -> None:
        """Start counting grant batches anew: the router that numbered them is a new one."""
        self.grant_seq = 0

    def permits_expired(self, now_us: int) -> bool:
        """Say whether the permits held are past their time to live."""
        return bool(self._agents) and now_us > self._expires_us

    def take(self, now_us: int, table_version: int) -> dict[str, list[Task]]:
        """Hand out as many ready activations as permits allow, grouped by worker."""
        out: dict[str, list[Task]] = {}
        if not self._hot or now_us > self._expires_us:
            return out
        for agent in sorted(self._hot, key=self._urgency):
            queue = self.ready[agent]
            holdings = self._agents.get(agent)
            if holdings:
                known = self._run_times.get(agent)
                self._serve(queue, holdings, known.mean_us if known is not None else 0.0, out)
            self._hot.discard(agent)
        return out

    def _urgency(self, agent: str) -> tuple[int, str]:
        queue = self.ready[agent]
        top = next((p for p in queue._order if queue._levels[p]), 0)
        return (-top, agent)

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
        while share > 0 and queue.count:
            activation = queue.pop()
            if not self._is_open(activation):
                continue
            if activation.crashes >= SOLO_AFTER_CRASHES:
                if worker in self._solo:
                    queue.push(activation, front=True)
                    return
                self._solo.add(worker)
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
                )
            )

    def release(self, activation: Activation, run_us: int = 0) -> None:
        """Return the permit of an attempt that ended.

        Args:
            activation: Whose attempt.
            run_us: How long it ran; 0 when that is not known.
        """
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

    def revoke(self, worker: str) -> list[Activation]:
        """Forget a worker that is gone; returns what it held, oldest first, without making it ready."""
        for holdings in self._agents.values():
            holdings.pop(worker, None)
        self._solo.discard(worker)
        held = self.leases.pop(worker, {})
        for activation in held.values():
            activation.worker = None
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
        counts = {a: sum(h.used for h in holdings.values()) for a, holdings in self._agents.items()}
        return {agent: count for agent, count in counts.items() if count > 0}

    def workers(self) -> set[str]:
        """Every worker that holds permits or leases of this shard."""
        return {w for holdings in self._agents.values() for w in holdings} | set(self.leases)
