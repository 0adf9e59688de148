"""Two shards' cores with aggregates of every kind, driven by hand and rebuilt from frames."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from flock_ray.core.ballots import (
    UNIT,
    AggregateRule,
    Ballot,
    Decision,
    WindowRule,
    decode_decision,
    encode_ballot,
)
from flock_ray.core.ids import output_id, slot_of
from flock_ray.core.state import Slot
from flock_ray.core.wire import (
    AgentInfo,
    Allowance,
    Completion,
    DeadLetterSpec,
    Envelope,
    ErrorInfo,
    Grant,
    GrantBatch,
    LimitSpec,
    Match,
    Posting,
    SubscriptionSpec,
    TableSpec,
    Task,
)
from tests.unit.core.failing_board import FailingBoard, Shard

RULES: dict[str, tuple[AggregateRule, str]] = {
    "early": (AggregateRule("majority", count=3), "workflow"),
    "full": (AggregateRule("majority", count=3, early=False), "workflow"),
    "quiet": (AggregateRule("majority", early=False), "workflow"),
    "quorum": (AggregateRule("quorum", 2), "workflow"),
    "timed": (AggregateRule("collect_all", timeout_us=500, min_count=2, early=False), "workflow"),
    "dropped": (AggregateRule("collect_all", count=4, timeout_us=700, on_timeout="discard", early=False), "workflow"),
    "failing": (AggregateRule("max_by", timeout_us=600, on_timeout="fail", early=False), "workflow"),
    "keyed": (AggregateRule("first_n", 2, timeout_us=2000, keyed=True), "board"),
    "rounds": (AggregateRule("collect_all", count=2, early=False, repeat=True), "workflow"),
    "corrected": (AggregateRule("majority", count=2, early=False, correct=True), "workflow"),
    "tumbling": (
        AggregateRule("collect_all", timeout_us=900, early=False, window=WindowRule("tumbling", 10)), "board",
    ),
    "sliding": (
        AggregateRule("collect_all", timeout_us=900, early=False, keyed=True, window=WindowRule("sliding", 10, 4, 3)),
        "board",
    ),
    "session": (AggregateRule("collect_all", early=False, window=WindowRule("session", 5, 0, 2)), "workflow"),
    "second": (AggregateRule("collect_all", early=False), "workflow"),
}  # fmt: skip
"""By agent: what it aggregates, and where. `second` collects what `quiet` publishes, all others votes."""

VOTERS = ("voter", "slow-voter")
"""Agents that make a vote of a question; the second has a limit, so its runs live in another slot."""


def sub_id(agent: str) -> str:
    return f"{agent}/sub"


class VotingBoard(FailingBoard):
    """Questions come in, voters vote, and aggregates decide."""

    def __init__(
        self, rules: dict[str, tuple[AggregateRule, str]] | None = None, num_shards: int = 2
    ) -> None:
        self.rules = RULES if rules is None else rules
        self.decided: dict[bytes, tuple[Task, Decision]] = {}
        """By activation, what aggregates have decided."""
        self.consumed: Counter[tuple[str, bytes]] = Counter()
        """(agent, artifact) of decisions."""
        self.votes: dict[bytes, tuple[bytes, str]] = {}
        """By vote: its value and workflow."""
        super().__init__({}, num_shards)

    def install(self) -> None:
        self.version += 1
        limited = LimitSpec(concurrency=2)
        infos = [AgentInfo(v, outputs=("Vote",), limits=limited if v != "voter" else None) for v in VOTERS]
        infos += [
            AgentInfo(name, outputs=("Middle",) if name == "quiet" else (), dead_letter=DeadLetterSpec("dead")
                      if name == "failing" else None)
            for name in self.rules
        ]  # fmt: skip
        specs = [SubscriptionSpec(sub_id(v), v, ("Ask",), "single") for v in VOTERS]
        specs += [
            SubscriptionSpec(
                sub_id(name),
                name,
                ("Middle" if name == "second" else "Vote",),
                "aggregate",
                scope,
                aggregate=rule,
            )
            for name, (rule, scope) in self.rules.items()
        ]
        table = TableSpec(self.version, tuple(infos), tuple(specs))
        for shard in self.shards:
            shard.core.install(table, self.now)
            self.commit(shard)
        self.grant()

    def grant(self, concurrency: int = 50) -> None:
        self.grants += 1
        for shard in self.shards:
            names = (*VOTERS, *self.rules)
            grants = [Grant(("worker",), tuple(Allowance(name, concurrency, concurrency) for name in names))]
            shard.core.dispatch.grant(GrantBatch(self.grants, 1e6, grants), self.now)
            shard.core.permits_changed()
            self.commit(shard)

    def commit(self, shard: Shard) -> None:
        super().commit(shard)
        for task in self.running.values():
            if task.agent in self.rules and task.id not in self.decided:
                decision = decode_decision(task.decision)
                if decision is None:
                    continue  # a redrive decides where it runs
                self.decided[task.id] = task, decision
                self.consumed.update((task.agent, envelope.id) for envelope in task.inputs)

    def ask(self, workflow: str, partition: str | None = None) -> None:
        envelope = self._envelope(b"ask-%012d" % self.published.total(), "Ask", workflow, partition)
        self.published["Ask"] += 1
        self._publish(Posting(envelope, tuple(Match(sub_id(voter)) for voter in VOTERS)))

    def vote(
        self, workflow: str, value: bytes | None, key: bytes = b"", partition: str | None = None
    ) -> None:
        """A vote from outside."""
        envelope = self._envelope(b"out-%012d" % self.published.total(), "Vote", workflow, partition)
        self.published["Vote"] += 1
        self._publish(self.vote_posting(envelope, value, key))

    def vote_posting(self, envelope: Envelope, value: bytes | None, key: bytes = b"") -> Posting:
        self.votes[envelope.id] = (value or b"", envelope.correlation_id)
        choices = () if value is None else (value,)
        ballot = Ballot(choices, UNIT, float(len(choices)), self.now % 97 + int(value or b"0"))
        return Posting(envelope, tuple(
            Match(sub_id(name), key if rule.keyed else b"", ballot=encode_ballot(ballot))
            for name, (rule, _) in self.rules.items() if name != "second"
        ))  # fmt: skip

    def _envelope(self, key: bytes, type_name: str, workflow: str, partition: str | None) -> Envelope:
        return Envelope(
            key, type_name, 1, b"{}", workflow, slot_of(partition or workflow), "external", self.now,
            partition_key=partition,
        )  # fmt: skip

    def _publish(self, posting: Posting) -> None:
        shard = self.shard_of(posting.envelope.slot)
        self.look_up()
        shard.core.publish(posting, self.now)
        self.commit(shard)

    def finish(
        self, place: tuple[int, bytes], value: bytes | None, key: bytes = b"", *, ok: bool = True
    ) -> None:
        """End a run: of a voter with a vote, of an aggregate with its result."""
        self.look_up()
        task, shard = self.running.pop(place), self.shards[place[0]]
        outputs: tuple[Posting, ...] = ()
        source = task.inputs[0]
        workflow = task.correlation_id
        if ok and task.agent in VOTERS:
            outputs = (
                self.vote_posting(self._output(task, "Vote", workflow, source.partition_key), value, key),
            )
        elif ok and task.agent == "quiet":
            envelope = self._output(task, "Middle", workflow, source.partition_key)
            outputs = (Posting(envelope, (Match(sub_id("second")),) if "second" in self.rules else ()),)
        error = None if ok else ErrorInfo("BoomError", "boom")
        completion = Completion(task.id, task.attempt, task.slot, outputs, error, run_us=1)
        for _ in range(2):  # a worker repeats what was not answered
            shard.core.complete(completion, self.now)
            self.commit(shard)

    def _output(self, task: Task, type_name: str, workflow: str, partition: str | None) -> Envelope:
        return Envelope(
            output_id(task.id, 0), type_name, 1, b"{}", workflow, slot_of(partition or workflow), task.agent,
            self.now, partition_key=partition, activation_id=task.id,
        )  # fmt: skip

    def decisions(self, agent: str) -> list[Decision]:
        return [decision for task, decision in self.decided.values() if task.agent == agent]

    def check_rebuilt(self, shard: Shard) -> None:
        super().check_rebuilt(shard)
        rebuilt = self.rebuilt(shard)
        for index, slot in shard.core.slots.items():
            assert seen(slot) == seen(rebuilt.slots[index])


def seen(slot: Slot) -> dict[str, Any]:
    """Return what is durable of the aggregates of a slot."""
    return {
        "gates": {
            (sub, key): (
                gate.deadline_us, gate.timer_us, gate.watermark_us, sorted(gate.quiet.items()),
                [(i.envelope.id, i.home, i.announced, i.ballot) for i in gate.items()],
            )
            for sub, keys in slot.gates.items() for key, gate in keys.items()
        },
        "decided": msgspec.to_builtins({sub: list(groups.items()) for sub, groups in slot.decided.items()}),
        "kept": {place: [(i.envelope.id, i.ballot) for i in items] for place, items in slot.kept.items()},
        "workflows": {
            w.id: (w.lent, sorted((k, msgspec.to_builtins(d)) for k, d in (w.decided or {}).items()))
            for w in slot.workflows.values() if not w.settled
        },
    }  # fmt: skip
