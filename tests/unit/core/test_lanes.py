"""Limits on two shards, whatever happens: crashes, lost workers, cancels, retries, and breakers forced by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flock_ray.core.ids import slot_of
from flock_ray.core.records import Admitted
from flock_ray.core.wire import (
    AgentInfo,
    BreakerSpec,
    Completion,
    Envelope,
    ErrorInfo,
    GrantBatch,
    LimitSpec,
    Match,
    Posting,
    Rate,
    RetryAsk,
    RetrySpec,
    SubscriptionSpec,
    TableSpec,
    Task,
)
from tests.unit.core.journaled import Journaled
from tests.unit.core.permits import permit

pytestmark = pytest.mark.timeout(240)  # a busy machine takes its time; it is 4 s of work

AGENT = "one"
SUBSCRIPTION = SubscriptionSpec("one/A", AGENT, ("A",), "single")
NUM_SHARDS = 2
BREAKER = BreakerSpec(failure_threshold=1, recovery_us=150, half_open_attempts=2)
SPECS = [
    LimitSpec(concurrency=2),
    LimitSpec(concurrency=3, keyed_concurrency=1, keyed=True),
    LimitSpec(keyed_concurrency=2, keyed=True),
    LimitSpec((Rate(2, 300), Rate(5, 2_000))),
    LimitSpec((Rate(1, 200, True), Rate(3, 300)), concurrency=2, keyed=True),
    LimitSpec((Rate(2, 500, True),), keyed=True),
    LimitSpec(breaker=BREAKER),
    LimitSpec((Rate(3, 300),), concurrency=2, breaker=BREAKER),
    LimitSpec(singleton="skip", keyed=True),
    LimitSpec(singleton="replace"),
    LimitSpec(debounce_us=200, keyed=True),
    LimitSpec(keyed_concurrency=1, debounce_us=100, breaker=BREAKER, keyed=True),
]


class Host(Journaled):
    """A shard that hands out to two workers."""

    def __init__(self, index: int, table: TableSpec) -> None:
        super().__init__(index, NUM_SHARDS)
        self.grants = 0
        self.admitted: list[tuple[int, bytes]] = []
        self.core.install(table, 0)

    def grant(self, now_us: int, workers: int = 2) -> None:
        self.grants += 1
        grants = [permit(AGENT, f"w{n}", 8, 8) for n in range(workers)]
        self.core.dispatch.grant(GrantBatch(self.grants, 1e6, grants), now_us)
        self.core.permits_changed()

    def turn(self, now_us: int) -> list[Task]:
        """Do a micro-batch: what is due, then the append, then what is handed out."""
        core = self.core
        due = core.next_timer_us()
        if due is not None and due <= now_us:
            core.tick(now_us)
        core.settle_local_forwards(now_us)
        core.admit(now_us)
        self.commit(now_us)
        return [task for tasks in core.dispatch.take(now_us, 1).values() for task in tasks]

    def commit(self, now_us: int) -> None:
        """Append, and note what was let through."""
        for record in self.append(now_us)[0]:
            if isinstance(record, Admitted):
                self.admitted += [(record.at_us, key) for key in record.ids]

    def crash(self, now_us: int) -> None:
        before = self.durable()
        self.core = self.rebuilt()
        assert before == self.durable()
        self.grants = 0
        self.grant(now_us)

    def durable(self) -> Any:
        """Return what must be the same after a crash."""
        slots = self.core.slots.values()
        lanes = {slot.index: msgspec.msgpack.encode(slot.lanes) for slot in slots if slot.lanes}
        opened = {
            a.id: (a.lane, a.admitted, a.probe, a.due_us, a.failures, a.crashes)
            for slot in slots
            for a in slot.open.values()
        }
        members = {place: set(found) for place, found in self.core._members.items()}
        return lanes, opened, members


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1_000
        self.published = 0
        self.lane_of: dict[bytes, str] = {}
        """By activation."""
        self.out: list[tuple[int, Task]] = []

    @initialize(spec=st.sampled_from(SPECS))
    def begin(self, spec: LimitSpec) -> None:
        self.spec = spec
        info = AgentInfo(AGENT, max_crashes=100, retry=RetrySpec(3), limits=spec)
        table = TableSpec(1, (info,), (SUBSCRIPTION,))
        self.hosts = [Host(index, table) for index in range(NUM_SHARDS)]
        for host in self.hosts:
            host.grant(self.now_us)
        self.run()

    def run(self) -> None:
        """Let everything happen that happens by itself at this time."""
        for _ in range(50):
            moved = False
            for host in self.hosts:
                for task in host.turn(self.now_us):
                    self.out.append((host.index, task))
                    moved = True
                sent, host.core.remote_forwards = host.core.remote_forwards, []
                for forward in sent:
                    moved = True
                    other = self.hosts[forward.target % NUM_SHARDS]
                    if other.core.forward_in(forward, self.now_us):
                        other.commit(self.now_us)
                        host.core.forward_acked(forward.source, forward.target, forward.seq)
            if not moved:
                return
        raise AssertionError("it never came to rest")

    @rule(workflow=st.integers(0, 5), key=st.sampled_from("ab"), count=st.integers(1, 3))
    def publish(self, workflow: int, key: str, count: int) -> None:
        for _ in range(count):
            self.published += 1
            name = f"v{workflow}"
            envelope = Envelope(
                f"{self.published}".encode().ljust(16), "A", 1, b"{}", name, slot_of(name), "external", self.now_us
            )  # fmt: skip
            match = Match(SUBSCRIPTION.id, lane=key if self.spec.keyed else "")
            self.hosts[envelope.slot % NUM_SHARDS].core.publish(Posting(envelope, (match,)), self.now_us)
        self.run()

    @rule(gap_us=st.integers(1, 400))
    def wait(self, gap_us: int) -> None:
        self.now_us += gap_us
        self.run()

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), how=st.sampled_from(["done", "done", "failed", "again", "uncounted"]))
    def complete(self, which: int, how: str) -> None:
        shard, task = self.out.pop(which % len(self.out))
        error = None if how == "done" else ErrorInfo("RuntimeError", "no")
        retry = RetryAsk(100) if how == "again" else None
        completion = Completion(
            task.id, task.attempt, task.slot, error=error, retry=retry, trips=how != "uncounted"
        )
        self.hosts[shard].core.complete(completion, self.now_us)
        self.run()

    @rule(shard=st.integers(0, 1), worker=st.sampled_from(["w0", "w1"]))
    def lose_worker(self, shard: int, worker: str) -> None:
        host = self.hosts[shard]
        held = set(host.core.dispatch.leases.get(worker, {}))
        host.core.worker_lost(worker, self.now_us)
        self.out = [(s, t) for s, t in self.out if s != shard or t.id not in held]
        host.grant(self.now_us)
        self.run()

    @rule(workflow=st.integers(0, 5))
    def cancel(self, workflow: int) -> None:
        for host in self.hosts:
            host.core.cancel(f"v{workflow}", self.now_us)
        self.run()

    @rule(shard=st.integers(0, 1))
    def crash(self, shard: int) -> None:
        self.hosts[shard].crash(self.now_us)
        self.run()

    @rule(shard=st.integers(0, 1))
    def snapshot(self, shard: int) -> None:
        self.hosts[shard].rotate()

    @precondition(lambda self: self.spec.breaker is not None)
    @rule(open_=st.booleans())
    def force(self, open_: bool) -> None:
        found = [h.core.force_breaker(AGENT, open_=open_, by="", now_us=self.now_us) for h in self.hosts]
        assert 1 == sum(found)
        self.run()

    # -- what always holds ----------------------------------------------------------------------

    def opened(self) -> list[Any]:
        return [a for host in self.hosts for slot in host.core.slots.values() for a in slot.open.values()]

    @invariant()
    def lanes_count_what_is_let_through(self) -> None:
        for host in self.hosts:
            for slot in host.core.slots.values():
                through = [a for a in slot.open.values() if a.admitted]
                for a in through:
                    self.lane_of[a.id] = a.lane
                lane = slot.lanes.get(AGENT)
                if lane is None:
                    assert not through
                    continue
                assert len(through) == lane.running
                running = {key: state.running for key, state in lane.keys.items() if state.running}
                assert Counter(a.lane for a in through) == running

    @invariant()
    def concurrency_is_never_exceeded(self) -> None:
        through = [a for a in self.opened() if a.admitted]
        if self.spec.concurrency:
            assert len(through) <= self.spec.concurrency
        if self.spec.keyed_concurrency:
            most = max(Counter(a.lane for a in through).values(), default=0)
            assert most <= self.spec.keyed_concurrency
        if self.spec.singleton == "skip":
            assert max(Counter(a.lane for a in self.opened()).values(), default=0) <= 1

    @invariant()
    def only_what_is_let_through_is_handed_out(self) -> None:
        assert all(a.admitted and not a.due_us for a in self.opened() if a.worker is not None)

    @invariant()
    def no_window_has_more_starts_than_its_rate(self) -> None:
        starts = [entry for host in self.hosts for entry in host.admitted]
        for rate in self.spec.rates:
            for key in {self.lane_of.get(i, "") for _, i in starts} if rate.keyed else {""}:
                times = [at for at, i in starts if not rate.keyed or self.lane_of.get(i, "") == key]
                assert all(sum(t <= at < t + rate.per_us for at in times) <= rate.limit for t in times)

    @invariant()
    def a_half_open_breaker_lets_exactly_so_many_try(self) -> None:
        for host in self.hosts:
            for slot in host.core.slots.values():
                lane = slot.lanes.get(AGENT)
                if lane is None or lane.breaker.state != "half_open":
                    continue
                trying = [a for a in slot.open.values() if a.probe == lane.breaker.round]
                assert (
                    len(trying) + lane.breaker.succeeded == lane.breaker.probes <= BREAKER.half_open_attempts
                )

    def teardown(self) -> None:
        """Whatever happened: once all goes well, everything runs, and nothing is counted any more."""
        if not hasattr(self, "hosts"):
            return
        if self.spec.breaker is not None:
            for host in self.hosts:
                host.core.force_breaker(AGENT, open_=False, by="", now_us=self.now_us)
        for _ in range(400):
            self.run()
            while self.out:
                shard, task = self.out.pop()
                self.hosts[shard].core.complete(Completion(task.id, task.attempt, task.slot), self.now_us)
            times = [due for host in self.hosts if (due := host.core.next_timer_us()) is not None]
            self.now_us = max(self.now_us + 1, min(times, default=0))
        assert [] == self.opened()
        assert not any(host.core.num_open or host.core.num_outbox for host in self.hosts)
        assert not any(host.core._waiting or host.core._members for host in self.hosts)
        self.lanes_count_what_is_let_through()


Cluster.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCluster = Cluster.TestCase
