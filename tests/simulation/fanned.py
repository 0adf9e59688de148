"""Fan-outs and fan-ins on a simulated board, and what must be true of every scatter at its end."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, flock_type
from flock_ray.core.fan_in_desk import PARTIAL
from flock_ray.core.scatter import Gather, Part
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Slot
from flock_ray.core.wire import Envelope
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.engines.fan import runners

if TYPE_CHECKING:
    from tests.simulation.audit import Audit
    from tests.simulation.simulator import SimFlock
    from tests.simulation.world import World


@flock_type(name="SimBundle")
class Bundle(BaseModel):
    """What is cut; the same input is cut in the same way every time."""

    uid: int
    key: int = 0

    @property
    def size(self) -> int:
        return self.uid % 14


@flock_type(name="SimSlice")
class Slice(BaseModel):
    index: int


@flock_type(name="SimThickSlice")
class ThickSlice(BaseModel):
    """A chunk that is cut once more."""

    index: int


@flock_type(name="SimCrumb")
class Crumb(BaseModel):
    index: int


@flock_type(name="SimEaten")
class Eaten(BaseModel):
    uid: int


@flock_type(name="SimPiece")
class Piece(BaseModel):
    uid: int


@flock_type(name="SimWhole")
class Whole(BaseModel):
    count: int


@flock_type(name="SimHeap")
class Heap(BaseModel):
    count: int


FANNED = ("fan-sum", "fan-tree", "fan-strict", "fan-patient")


def has_fans(world: World) -> bool:
    """Every third board has fan-outs: they are much of the work of a run."""
    return world.seed % 3 == 2


def declare_fanned(flock: SimFlock, world: World) -> None:
    """Put a fan-out on the board, one within it, and a fan-in of every kind. Pieces come in any number, or none."""
    rng = random.Random(world.seed)
    runners.MAX_PART_CHUNKS = rng.choice((2, 5, 2_000))
    failing = rng.choice((0.0, 0.1))

    def cut(bundle: Bundle) -> Iterator[Slice]:
        return (Slice(index=index) for index in range(bundle.size))

    def cut_more(piece: ThickSlice) -> Iterator[Crumb]:
        return (Crumb(index=index) for index in range(piece.index % 4))

    def thicken(piece: Slice) -> ThickSlice | None:
        return ThickSlice(index=piece.index) if piece.index % 3 == 2 else None

    def work(piece: Slice) -> list[Piece] | None:
        if rng.random() < failing:
            raise ValueError("bad luck")
        count = 0 if piece.index % 3 == 2 else rng.choice((0, 1, 1, 1, 1, 2))
        return [Piece(uid=rng.getrandbits(30)) for _ in range(count)] or None

    def eat(crumb: Crumb) -> Eaten:
        if rng.random() < failing:
            raise ValueError("bad luck")
        return Eaten(uid=rng.getrandbits(30))

    def whole(parts: list[Any]) -> Whole:
        return Whole(count=len(parts))

    add: Callable[[str], Any] = flock.agent
    add("fan-cut").consumes(Bundle).fan_out(Slice, strategy=FanOutStrategy.CUSTOM, split=cut).max_crashes(100)
    add("fan-thicken").consumes(Slice).publishes(ThickSlice).runs(thicken).max_crashes(100)
    add("fan-cut-more").consumes(ThickSlice).fan_out(
        Crumb, strategy=FanOutStrategy.CUSTOM, split=cut_more
    ).max_crashes(100)
    add("fan-work").consumes(Slice).publishes(Piece, fan_out=(1, 3)).runs(work).retry(
        max_attempts=1, dead_letter=DeadLetterQueue("sim")
    ).concurrency(rng.choice((2, 50)))
    add("fan-eat").consumes(Crumb).publishes(Eaten).runs(eat)
    add("fan-close").fan_in(
        Eaten, into=Piece, merge_fn=lambda parts: Piece(uid=len(parts)), on_failure="partial"
    ).max_crashes(100)
    add("fan-sum").fan_in(Piece, into=Whole, merge_fn=whole, on_failure="partial").max_crashes(100)
    add("fan-strict").fan_in(
        Piece, into=Whole, strategy=FanInStrategy.MERGE, merge_fn=whole, min_fraction=0.5
    ).max_crashes(100)
    add("fan-patient").fan_in(Piece, into=Whole, merge_fn=whole, on_failure="wait").max_crashes(100)
    add("fan-tree").fan_in(
        Piece, into=Heap, strategy=FanInStrategy.REDUCE, on_failure="partial", width=2,
        merge_fn=lambda parts: Heap(count=len(parts)), combine=lambda heaps: Heap(count=sum(h.count for h in heaps)),
    ).max_crashes(100)  # fmt: skip


def scatters_digest(slot: Slot) -> Any:
    """What is durable of a slot's fan-outs and fan-ins; those that are over may have left memory."""
    return {
        "scatters": {s.id: msgspec.to_builtins(s) for s in slot.scatters.values() if not s.done_us},
        "fan-ins": {
            (gate.scatter, name): (
                gate.spec, gate.deadline_us, msgspec.to_builtins(gate.delivered), gate.items, gate.partials,
                gate.resolved, gate.expired,
            )
            for gates in slot.fan_ins.values() for name, gate in gates.items()
        },
        "parts": slot.parts, "stopped": list(slot.stopped),
    }  # fmt: skip


def check_scatters_at_rest(core: ShardCore) -> Counter[tuple[int, str]]:
    """Nothing is counted as open any more; returns how many scatters wait, by slot and workflow."""
    waiting: Counter[tuple[int, str]] = Counter()
    for slot in core.slots.values():
        assert not slot.parts, f"slot {slot.index} counts chunks as open: {slot.parts}"
        assert not slot.stopped
        for scatter in slot.scatters.values():
            assert scatter.done_us or scatter.waiting, f"a scatter is open: {scatter}"
            waiting[slot.index, scatter.workflow] += scatter.waiting
    return waiting


class FanAudit(ShardCore):
    """The part of `AuditCore` that keeps account of fan-ins while it is replayed."""

    def __init__(self, owned: Any) -> None:
        super().__init__(list(owned))
        self.gathered: Counter[tuple[str, bytes]] = Counter()
        """(subscription, artifact): how often it came to the fan-in's home."""
        self.runs: list[tuple[Activation, Gather]] = []
        """Every run of a fan-in that was opened."""

    def _collect(self, slot: Slot, subscription: str, part: Part, envelope: Envelope, now_us: int) -> None:
        self.gathered[subscription, envelope.id] += 1
        super()._collect(slot, subscription, part, envelope, now_us)

    def _open_limited(self, slot: Slot, activation: Activation, now_us: int) -> None:
        if activation.gather is not None and not activation.redrives:
            self.runs.append((activation, activation.gather))
        super()._open_limited(slot, activation, now_us)


def check_fans(audit: Audit) -> None:
    """Every fan-in has merged, once and in order, exactly what its chunks delivered; or has said that it can't."""
    delivered: dict[bytes, dict[bytes, int]] = defaultdict(dict)
    workflows: dict[bytes, str] = {}
    made: Counter[bytes] = Counter()
    for envelope in audit.board.values():
        if envelope.scatter:
            innermost = envelope.scatter[-1]
            workflows[innermost.scatter] = envelope.correlation_id
            if envelope.type in ("SimPiece", "SimEaten"):
                delivered[innermost.scatter][envelope.id] = innermost.index
            if envelope.activation_id == innermost.scatter:
                made[innermost.scatter] += 1
    redriven = {workflow for core in audit.cores for workflow in core.redriven.values()}
    inputs: dict[tuple[str, bytes], list[Envelope]] = defaultdict(list)
    finals: Counter[tuple[str, bytes]] = Counter()
    for core in audit.cores:
        for activation, gather in core.runs:
            place = (activation.agent, gather.scatter)
            inputs[place] += [e for e in activation.inputs if e.type != PARTIAL and not gather.empty]
            finals[place] += gather.final
            indexes = [
                e.scatter[-1].index for e in activation.inputs if e.type != PARTIAL and not gather.empty
            ]
            assert indexes == sorted(indexes), "a fan-in got its chunks in another order"
    assert not finals or max(finals.values()) == 1, "a fan-in has two results"
    for place, found in inputs.items():
        ids = [e.id for e in found]
        assert len(ids) == len(set(ids)), f"a chunk was counted twice by {place[0]}"
    for scatter, pieces in delivered.items():
        workflow = workflows[scatter]
        if workflow in audit.cancelled:
            continue
        for agent in ("fan-close",) if _is_inner(audit, pieces) else FANNED:
            taken = {e.id for e in inputs[agent, scatter]}
            assert taken <= set(pieces)
            whole = finals[agent, scatter] == 1
            chunks = len(set(pieces.values()))
            late = workflow in redriven
            if agent in ("fan-sum", "fan-tree", "fan-close"):
                assert whole or late, f"{agent} has no result of {len(pieces)} pieces"
            elif agent == "fan-strict":
                assert late or whole == (chunks >= 0.5 * made[scatter])
            else:
                assert whole == (chunks == made[scatter])
            if whole and (not late or agent == "fan-patient"):
                assert taken == set(pieces), f"{agent} forgot {set(pieces) - taken}"
    for core in audit.cores:
        assert set(core.gathered.values()) <= {1}, "an artifact came to a fan-in twice"


def _is_inner(audit: Audit, pieces: dict[bytes, int]) -> bool:
    return any(audit.board[key].type == "SimEaten" for key in pieces)
