"""Two shards' cores with agents that have limits, retries and dead letters, driven by hand and rebuilt from frames."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import msgspec

from flock_ray.core.ids import slot_of
from flock_ray.core.records import Admitted, Completed, LetterRedriven, Record, Retried
from flock_ray.core.rows import WorkflowRow
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Slot
from flock_ray.core.wire import (
    AgentInfo,
    BreakerSpec,
    Completion,
    DeadLetterSpec,
    Envelope,
    ErrorInfo,
    Forward,
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

LIMITS = {
    "plain": None,
    "rate": LimitSpec(rates=(Rate(3, 1000),)),
    "keyed": LimitSpec(rates=(Rate(2, 1000, True),), keyed_concurrency=1, keyed=True),
    "both": LimitSpec(rates=(Rate(5, 700), Rate(2, 1000, True)), concurrency=3, keyed=True),
    "breaker": LimitSpec(breaker=BreakerSpec(2, 500, 2)),
    "skip": LimitSpec(singleton="skip", keyed=True),
    "replace": LimitSpec(singleton="replace", keyed=True),
    "debounce": LimitSpec(debounce_us=300, keyed=True),
    "thrifty": LimitSpec(together=True),
}
MAX_ATTEMPTS = 3
THRIFTY = RetrySpec(MAX_ATTEMPTS, 0.2, 2_000, 1)
"""What the agent `thrifty` may spend on retries."""


def info(name: str, limits: LimitSpec | None) -> AgentInfo:
    """An agent that is tried three times and then buried."""
    retry = THRIFTY if name == "thrifty" else RetrySpec(MAX_ATTEMPTS)
    return AgentInfo(name, retry=retry, dead_letter=DeadLetterSpec(f"{name}-letters"), limits=limits)


def subscription(name: str) -> SubscriptionSpec:
    """Every agent consumes a type of its own."""
    return SubscriptionSpec(f"{name}/T", name, (name,), "single")


Shard = Journaled


class FailingBoard:
    """Does what a host does, one micro-batch after every command."""

    def __init__(self, agents: dict[str, LimitSpec | None] | None = None, num_shards: int = 2) -> None:
        self.slow = False
        """Whether what shards send each other waits for `deliver`."""
        self.delivering = False
        self.outgoing: dict[tuple[int, int, int], Forward] = {}
        self.limits = dict(LIMITS if agents is None else agents)
        self.shards = [Journaled(i, num_shards) for i in range(num_shards)]
        self.now = 1_000_000
        self.version = 0
        self.agents: dict[bytes, str] = {}
        """By activation that was ever handed out, its agent."""
        self.running: dict[tuple[int, bytes], Task] = {}
        """Attempts that a worker has, by shard and activation."""
        self.admitted: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.log: list[Record] = []
        self.published: Counter[str] = Counter()
        self.grants = 0
        self.rows: dict[tuple[int, str], WorkflowRow] = {}
        """What the store has of workflows."""
        self.install()

    def shard_of(self, slot: int) -> Journaled:
        return self.shards[slot % len(self.shards)]

    def install(self) -> None:
        self.version += 1
        infos = tuple(info(name, limits) for name, limits in self.limits.items())
        table = TableSpec(self.version, infos, tuple(subscription(name) for name in self.limits))
        for shard in self.shards:
            shard.core.install(table, self.now)
        for shard in self.shards:  # not before: a shard takes nothing from one that has a newer table
            self.commit(shard)
        self.grant()

    def grant(self, concurrency: int = 50) -> None:
        self.grants += 1
        for shard in self.shards:
            grants = [permit(name, "worker", concurrency, concurrency) for name in self.limits]
            shard.core.dispatch.grant(GrantBatch(self.grants, 1e6, grants), self.now)
            shard.core.permits_changed()
            self.commit(shard)

    def commit(self, shard: Journaled) -> None:
        """End a micro-batch: append, hand out, bring the other shards what is for them."""
        core = shard.core
        core.settle_local_forwards(self.now)
        core.admit(self.now)
        if core.records:
            self.note(shard, core.records)
        _, rows = shard.append(self.now)
        self.rows |= {(row.slot, row.id): row for row in rows}
        for tasks in core.dispatch.take(self.now, self.version).values():
            for task in tasks:
                assert (shard.index, task.id) not in self.running
                self.agents[task.id] = task.agent
                self.running[shard.index, task.id] = task
        for _, activation in core.cancels:
            self.running.pop((shard.index, activation), None)
        core.cancels.clear()
        forwards, core.remote_forwards = core.remote_forwards, []
        for forward in forwards:
            self.outgoing[forward.source, forward.target, forward.seq] = forward
        if not self.slow and not self.delivering:
            self.deliver()

    def deliver(self, acked: float = 1.0, rng: random.Random | None = None) -> None:
        """Bring shards what others have for them; some answers are lost, and what they were for is sent again."""
        self.delivering = True
        while self.outgoing:
            sending, self.outgoing = self.outgoing, {}
            kept = {}
            for key, forward in sorted(sending.items()):
                source, target = self.shard_of(forward.source), self.shard_of(forward.target)
                assert target.core.forward_in(forward, self.now)
                self.commit(target)
                if rng is not None and rng.random() > acked:
                    kept[key] = forward
                    continue
                source.core.forward_acked(forward.source, forward.target, forward.seq)
                self.commit(source)
            self.outgoing |= kept
            if kept:
                break
        self.delivering = False

    def note(self, shard: Journaled, records: list[Record]) -> None:
        self.log += records
        for record in records:
            if isinstance(record, Admitted):
                for activation in self.activations(shard, record.ids):
                    for key in {"", activation.lane}:
                        self.admitted[record.agent, key].append(self.now)

    def activations(self, shard: Journaled, ids: tuple[bytes, ...]) -> list[Activation]:
        return [a for slot in shard.core.slots.values() for a in slot.open.values() if a.id in ids]

    def open(self) -> list[Activation]:
        return [a for shard in self.shards for slot in shard.core.slots.values() for a in slot.open.values()]

    def look_up(self) -> None:
        """Bring back what has left memory, as a host does for what a command is about."""
        for row in self.rows.values():
            self.shard_of(row.slot).core.rehydrate(row, self.now)

    def publish(self, agent: str, key: str = "", workflow: str = "w") -> None:
        number = self.published.total()
        self.published[agent] += 1
        envelope = Envelope(
            b"%016d" % number, agent, 1, b"{}", workflow, slot_of(workflow), "external", self.now
        )
        shard = self.shard_of(envelope.slot)
        self.look_up()
        shard.core.publish(Posting(envelope, (Match(f"{agent}/T", lane=key),)), self.now)
        self.commit(shard)

    def end(self, place: tuple[int, bytes], how: str) -> None:
        """Report what became of an attempt: ok, retry, wait or fail."""
        self.look_up()
        task, shard = self.running.pop(place), self.shards[place[0]]
        error = None if how == "ok" else ErrorInfo("BoomError", "boom")
        ask = {"retry": RetryAsk(100), "wait": RetryAsk(50, counts=False)}.get(how)
        completion = Completion(task.id, task.attempt, task.slot, error=error, run_us=1, retry=ask)
        shard.core.complete(completion, self.now)
        self.commit(shard)
        shard.core.complete(completion, self.now)  # a worker repeats what was not answered
        self.commit(shard)

    def lose(self, shard: Journaled) -> None:
        """The worker of a shard dies, and comes back."""
        shard.core.worker_lost("worker", self.now)
        self.running = {place: task for place, task in self.running.items() if place[0] != shard.index}
        self.commit(shard)
        self.grant()

    def wait(self, us: int) -> None:
        self.now += us
        self.look_up()
        for shard in self.shards:
            shard.core.tick(self.now)
            self.commit(shard)

    def cancel(self, workflow: str) -> None:
        self.look_up()
        for _ in range(2):
            for shard in self.shards:
                shard.core.cancel(workflow, self.now)
                self.commit(shard)

    def letters(self) -> list[tuple[Journaled, int, bytes]]:
        return [(s, i, k) for s in self.shards for i, slot in s.core.slots.items() for k in slot.letters]

    def redrive(self, shard: Journaled, slot: int, letter: bytes) -> str:
        self.look_up()
        known = shard.core.slots[slot].letters.get(letter)
        inputs = () if known is None else tuple(
            Envelope(known.replaced.get(i, i), known.agent, 1, b"{}", known.envelope.correlation_id,
                     slot_of(known.envelope.correlation_id), "external", self.now) for i in known.inputs
        )  # fmt: skip
        answer = shard.core.redrive(slot, letter, inputs, "me", self.now)
        self.commit(shard)
        return answer

    def rotate(self, shard: Journaled) -> None:
        """Save everything, and cut the journal."""
        shard.rotate()

    def rebuilt(self, shard: Journaled) -> ShardCore:
        """Return what a recovery makes of snapshots and frames."""
        return shard.rebuilt()

    def snapshot(self, shard: Journaled, rng: random.Random) -> None:
        """Save some slots."""
        shard.snapshot(rng.sample(sorted(shard.core.slots), 40))

    def restart(self, shard: Journaled) -> None:
        """Kill a shard: its workers' attempts go on, and their results are late."""
        shard.core = self.rebuilt(shard)
        mine = shard.core.slots
        self.outgoing = {key: f for key, f in self.outgoing.items() if f.source not in mine}
        self.running = {place: task for place, task in self.running.items() if place[0] != shard.index}
        self.grant()
        self.commit(shard)

    def check_rebuilt(self, shard: Journaled) -> None:
        """What recovery makes is what ran."""
        rebuilt = self.rebuilt(shard)
        for index, slot in shard.core.slots.items():
            assert _seen(slot) == _seen(rebuilt.slots[index])

    def retried(self) -> Counter[tuple[bytes, int]]:
        """By activation and attempt: how often its failure was counted."""
        return Counter((r.completion.id, r.completion.attempt) for r in self.log if isinstance(r, Retried))

    def thrifty(self) -> tuple[list[int], list[int]]:
        """When runs of `thrifty` ended for the first time, and when they were to be tried again, over all shards."""
        firsts: list[int] = []
        retries: list[int] = []
        seen: set[bytes] = set()
        for record in self.log:
            counts = isinstance(record, Completed) or (
                isinstance(record, Retried) and record.completion.retry is not None and record.completion.retry.counts
            )  # fmt: skip
            if counts and isinstance(record, Completed | Retried):
                if self.agents.get(record.completion.id) != "thrifty":
                    continue
                if record.completion.id not in seen:
                    seen.add(record.completion.id)
                    firsts.append(record.at_us)
                if isinstance(record, Retried):
                    retries.append(record.at_us)
        return firsts, retries

    def redriven(self) -> Counter[bytes]:
        return Counter(r.letter for r in self.log if isinstance(r, LetterRedriven))


def _seen(slot: Slot) -> dict[str, Any]:
    """Return what is durable of a slot, without settled workflows and without what only a dispatcher knows."""
    hidden = {"inputs", "attempt", "worker", "holding"}
    opened = {
        a.id: {k: v for k, v in msgspec.structs.asdict(a).items() if k not in hidden}
        for a in slot.open.values()
    }
    workflows = {
        w.id: (w.open, w.waiting, w.delayed, w.cancelled) for w in slot.workflows.values() if not w.settled
    }
    return {
        "open": opened, "workflows": workflows, "timers": [(t[0], *t[2:]) for t in sorted(slot.timers)],
        "inbox": slot.inbox,
        "outbox": {key: (f.kind, f.run and f.run.id) for key, f in slot.outbox.items()}, "out_seq": slot.out_seq,
        "lanes": msgspec.to_builtins({name: lane for name, lane in slot.lanes.items() if lane.keys or lane.running
                                      or lane.retries.steps}),
        "letters": msgspec.to_builtins(list(slot.letters.values())),
    }  # fmt: skip
