"""Two shards' cores with fan-outs and fan-ins, driven by hand, with what a worker would make of every task."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import msgspec

from flock_ray.core.fan_in_desk import partial_key
from flock_ray.core.ids import output_id, slot_of
from flock_ray.core.records import Record
from flock_ray.core.recovery import Recovery
from flock_ray.core.rows import Loaded
from flock_ray.core.scatter import FanInRule, Gather, Part, Split, carried, chunk_key, key_of
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import MATCH_AGENT, Slot
from flock_ray.core.wire import (
    AgentInfo,
    Completion,
    DeadLetterSpec,
    Envelope,
    ErrorInfo,
    LimitSpec,
    Match,
    Posting,
    RetryAsk,
    RetrySpec,
    SubscriptionSpec,
    TableSpec,
    Task,
)
from tests.unit.core.failing_board import FailingBoard, Shard

RULES = {
    "merge": FanInRule("merge", ("split",)),
    "partial": FanInRule("collect", ("split",), on_failure="partial"),
    "most": FanInRule("merge", ("split",), min_fraction=0.6),
    "wait": FanInRule("merge", ("split",), on_failure="wait"),
    "tree": FanInRule("reduce", ("split",), on_failure="partial", width=2),
    "tree-wait": FanInRule("reduce", ("split",), on_failure="wait", width=3),
    "first": FanInRule("first_success", ("split",)),
    "hasty": FanInRule("merge", ("split",), on_failure="partial", timeout_us=2_000),
}
INNER = FanInRule("merge", ("inner",), on_failure="partial")
PART_SIZE = 4


class ScatterBoard(FailingBoard):
    """`split` makes Chunks of Data; `map` (or `inner`, `leaf`, `close`) makes a Done of each; fan-ins merge these."""

    def __init__(self, rules: dict[str, FanInRule], *, num_shards: int = 2, limited: bool = False) -> None:
        self.rules = rules
        self.limited = limited
        self.sizes: dict[str, int] = {}
        """Chunks of a workflow's data."""
        self.results: dict[tuple[str, str], list[Any]] = defaultdict(list)
        """By fan-in and workflow."""
        self.errors: dict[str, list[Envelope]] = defaultdict(list)
        self.delivered: dict[str, set[int]] = defaultdict(set)
        """By workflow: outer chunks of which a Done was committed."""
        self.cancelled: set[str] = set()
        self.redriven_in: set[str] = set()
        self.bodies: dict[bytes, bytes] = {}
        """What the store has of payloads."""
        super().__init__({}, num_shards)

    def install(self) -> None:
        self.version += 1
        limits = LimitSpec(concurrency=3) if self.limited else None
        names = ("split", "map", "inner", "leaf", "close", *self.rules)
        infos = tuple(
            AgentInfo(
                name, max_crashes=1000, retry=RetrySpec(3), dead_letter=DeadLetterSpec("q") if name == "map" else None,
                limits=limits if name in ("split", "map") else None,
            )
            for name in names
        )  # fmt: skip
        plain = {"split": "Data", "map": "Chunk", "inner": "Nested", "leaf": "Leaf"}
        subs = [SubscriptionSpec(f"{name}/T", name, (kind,), "single") for name, kind in plain.items()]
        subs.append(SubscriptionSpec("close/T", "close", ("LeafDone",), "fan_in", fan_in=INNER))
        subs += [
            SubscriptionSpec(f"{name}/T", name, ("Done",), "fan_in", fan_in=rule)
            for name, rule in self.rules.items()
        ]
        self.names = [*names, MATCH_AGENT]
        self.limits = dict.fromkeys(self.names)
        table = TableSpec(self.version, infos, tuple(subs))
        for shard in self.shards:
            shard.core.install(table, self.now)
            self.commit(shard)
        self.grant()

    # -- the driver -----------------------------------------------------------------------------

    def begin(self, workflow: str, size: int) -> None:
        """Publish data that splits into so many chunks."""
        self.sizes[workflow] = size
        key = b"data" + workflow.encode().ljust(12)
        envelope = Envelope(key, "Data", 1, b"{}", workflow, slot_of(workflow), "external", self.now)
        shard = self.shard_of(envelope.slot)
        self.look_up()
        shard.core.publish(Posting(envelope, self.match("Data")), self.now)
        self.commit(shard)

    def match(self, kind: str) -> tuple[Match, ...]:
        fan_ins = tuple(Match(f"{name}/T") for name in self.rules)
        to = {
            "Data": "split",
            "Chunk": "map",
            "Nested": "inner",
            "Leaf": "leaf",
            "LeafDone": "close",
        }
        return fan_ins if kind == "Done" else (Match(f"{to[kind]}/T"),) if kind in to else ()

    # -- a worker -------------------------------------------------------------------------------

    def finish(self, place: tuple[int, bytes], how: str = "ok", rng: random.Random | None = None) -> None:
        """End an attempt as a worker would: ok, nothing, retry or fail; each completion comes twice."""
        self.look_up()
        task, shard = self.running.pop(place), self.shards[place[0]]
        if how in ("ok", "nothing"):
            outputs, split = self.made(task) if how == "ok" else ((), self.no_split(task))
            completion = Completion(task.id, task.attempt, task.slot, outputs, run_us=1, split=split)
        else:
            ask = RetryAsk(100) if how == "retry" else None
            completion = Completion(
                task.id, task.attempt, task.slot, error=ErrorInfo("BoomError", "boom"), run_us=1, retry=ask
            )
        shard.core.complete(completion, self.now)
        self.commit(shard)
        shard.core.complete(completion, self.now)
        self.commit(shard)

    @staticmethod
    def no_split(task: Task) -> Split | None:
        return Split(task.offset) if task.agent in ("split", "inner") else None

    def made(self, task: Task) -> tuple[tuple[Posting, ...], Split | None]:
        agent = task.agent
        if agent == MATCH_AGENT:
            return tuple(Posting(e, self.match(e.type)) for e in task.inputs), None
        if agent == "split":
            size = self.sizes[task.correlation_id]
            # Every third chunk is split once more.
            kinds = ["Nested" if index % 3 == 2 else "Chunk" for index in range(size)]
            return self.chunks(task, kinds)
        if agent == "inner":
            return self.chunks(task, ["Leaf"] * (task.inputs[0].scatter[-1].index % 4))
        if task.gather is not None:
            return (self.merged(task, task.gather),), None
        kind = {"map": "Done", "leaf": "LeafDone"}[agent]
        return (self.output(task, 0, kind, [self.index_of(task)]),), None

    @staticmethod
    def index_of(task: Task) -> int:
        return task.inputs[0].scatter[-1].index

    def chunks(self, task: Task, kinds: list[str]) -> tuple[tuple[Posting, ...], Split]:
        first = task.offset
        shared, key, _ = carried(task.inputs, None)
        last = min(first + PART_SIZE, len(kinds))
        postings = []
        for index in range(first, last):
            stack = (*shared, Part(task.id, index, task.slot, task.agent, key, index % 4 == 1))
            postings.append(self.output(task, index, kinds[index], [index], stack))
        return tuple(postings), Split(first, last < len(kinds))

    def merged(self, task: Task, gather: Gather) -> Posting:
        values = [] if gather.empty else [v for e in task.inputs for v in json.loads(e.payload)]
        if task.agent == "close":
            return self.output(task, 0, "Done", [gather.outer[-1].index])
        if gather.final:
            return self.output(task, 0, f"Result-{task.agent}", values)
        key = chunk_key(gather.home)
        envelope = Envelope(
            output_id(task.id, 0), "FanInPartial", 1, json.dumps(values).encode(), task.correlation_id, gather.home,
            task.agent, self.now, partition_key=key, activation_id=task.id,
        )  # fmt: skip
        return Posting(envelope, (Match(task.subscription, partial_key(gather)),))

    def output(
        self, task: Task, position: int, kind: str, value: list[int], stack: tuple[Part, ...] | None = None
    ) -> Posting:
        if stack is None:
            stack, key, _ = carried(task.inputs, task.gather)
        else:
            key = key_of(stack)
        slot = slot_of(key if key is not None else task.correlation_id)
        envelope = Envelope(
            output_id(task.id, position), kind, 1, json.dumps(value).encode(), task.correlation_id, slot, task.agent,
            self.now, (), None, key, tuple(e.id for e in task.inputs), task.id, 0, (), stack,
        )  # fmt: skip
        return Posting(envelope, self.match(kind))

    # -- what happened --------------------------------------------------------------------------

    def note(self, shard: Shard, records: list[Record]) -> None:
        super().note(shard, records)
        changes = shard.core.changes
        assert changes is not None
        for _, envelope in changes.artifacts:
            self.bodies[envelope.id] = envelope.payload
            workflow = envelope.correlation_id
            if envelope.type.startswith("Result-"):
                found = json.loads(envelope.payload)
                self.results[envelope.type.removeprefix("Result-"), workflow].append(found)
            elif envelope.type == "WorkflowError":
                self.errors[workflow].append(envelope)
            elif envelope.type == "Done":
                self.delivered[workflow].add(envelope.scatter[-1].index)

    def rebuilt(self, shard: Shard) -> ShardCore:
        core = ShardCore(list(shard.core.slots), durable=True)
        loaded = Loaded(list(shard.snapshots.values()), shard.frames, shard.lsn, shard.core.index.head)
        shard.epoch += 1
        recovery = Recovery(loaded)
        recovery.rebuild(core, shard.epoch)
        recovery.fill(self.bodies)
        return core

    def check_rebuilt(self, shard: Shard) -> None:
        """What recovery makes is what ran, scatters included."""
        super().check_rebuilt(shard)
        rebuilt = self.rebuilt(shard)
        for index, slot in shard.core.slots.items():
            assert scatters_of(slot) == scatters_of(rebuilt.slots[index])

    def run_all(self, choose: Any = None) -> None:
        """Work until nothing is left to do."""
        for _ in range(5_000):
            if self.running:
                place = sorted(self.running)[0]
                self.finish(place, "ok" if choose is None else choose(self.running[place]))
            elif self.open():
                self.wait(400)
            else:
                return
        raise AssertionError(f"never at rest: {self.open()}")

    def check_rest(self) -> None:
        """Nothing is left behind of what has ended."""
        for shard in self.shards:
            for slot in shard.core.slots.values():
                assert not slot.parts, f"slot {slot.index} counts {slot.parts}"
                assert not slot.stopped
                assert not slot.outbox
                for workflow in slot.workflows.values():
                    assert not workflow.open, (slot.index, workflow)
                for scatter in slot.scatters.values():
                    assert scatter.done_us or scatter.waiting, scatter
            assert shard.core.num_active == 0


def scatters_of(slot: Slot) -> dict[str, Any]:
    """What is durable of a slot's fan-outs and fan-ins, without those that are over."""
    return {
        "scatters": {key: msgspec.to_builtins(s) for key, s in slot.scatters.items() if not s.done_us},
        "fan_ins": {
            (gate.scatter, name): (
                msgspec.to_builtins(gate.delivered), gate.deadline_us, gate.expired, gate.resolved,
                {index: [e.id for e in found] for index, found in gate.items.items()},
                {place: None if e is None else e.id for place, e in gate.partials.items()},
            )
            for gates in slot.fan_ins.values() for name, gate in gates.items()
        },
        "parts": slot.parts, "stopped": list(slot.stopped),
    }  # fmt: skip
