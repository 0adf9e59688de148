"""The durable state of one slot, as plain records. Changed only by `core.shard` and `core.gates`.

Everything here can be rebuilt by replaying the slot's journal; what can't (permits, leases,
ready queues) lives in `core.dispatch`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from flock_ray.core.approvals import Case, ShadowCount
from flock_ray.core.ballots import Decided
from flock_ray.core.breakers import Breaker
from flock_ray.core.budgets import Ledger
from flock_ray.core.ids import NUM_SLOTS
from flock_ray.core.letter_box import LetterBox
from flock_ray.core.rates import RateWindow
from flock_ray.core.retries import RetryWindow
from flock_ray.core.scatter import Gather
from flock_ray.core.scatter_state import FanIn, Scatter
from flock_ray.core.schedules import Schedule
from flock_ray.core.usage import Key, UsageRow
from flock_ray.core.wire import Attempt, Envelope, Forward, Match, SubscriptionSpec

MATCH_AGENT = "flock:match"
"""Internal agent whose activation matches an artifact that a shard itself had to publish."""

RELEASE = "/release/"
"""What the subscription of such an activation begins with, as no other does, when it makes an approved artifact of its
request; the rest is the hash of what was approved, in hexadecimal."""


class Workflow(msgspec.Struct):
    """All artifacts of one correlation id that live in one slot, and what still happens to them."""

    id: str
    slot: int
    created_us: int
    updated_us: int
    open: int = 0
    """Activations, and inputs lent to gates elsewhere that run or travel. Active while above 0."""
    waiting: int = 0
    """Inputs that wait in a gate, here or elsewhere, for something else to arrive."""
    delayed: int = 0
    """Matches that wait for a time."""
    errors: int = 0
    """Its WorkflowErrors, and its dead letters that nobody has redriven."""
    cancelled: bool = False
    seqs: list[int] = []
    """Positions of its artifacts in the shard's feed, ascending."""
    counts: dict[str, int] = {}
    """Artifacts by type."""
    iterations: dict[str, int] | None = None
    """Activations by agent along loops; None until there is one."""
    flags: set[tuple[str, int]] | None = None
    """(subscription id, flag) of `When` field predicates seen true."""
    usage: list[UsageRow] | None = None
    """Calls to language models by agent and model; None until there is one."""
    scatters: list[bytes] | None = None
    """Fan-outs of it whose home is this slot; None until there is one."""
    deadline_us: int = 0
    """By when it must be settled; 0: whenever, or it has been, or it is known to be late."""
    decided: dict[tuple[str, bytes], Decided] | None = None
    """By subscription and gate key: its aggregates that were decided; None until there is one."""
    lent: bool = False
    """An aggregate in another slot has got inputs from here, and waits to hear that nothing more is coming."""

    @property
    def settled(self) -> bool:
        """True when nothing runs, waits or is due: it can be evicted."""
        return not (self.open or self.waiting or self.delayed)


class Item(msgspec.Struct):
    """One input that a gate holds."""

    envelope: Envelope
    home: int
    """Slot of its workflow's record, which is told when the input moves on."""
    announced: bool = True
    """The home slot counts it as waiting (not as open)."""
    lane: str = ""
    """`Match.lane`."""
    ballot: bytes = b""
    """`Match.ballot`."""


class Gate(msgspec.Struct):
    """State that waits for more than one artifact: one group of one subscription."""

    spec: SubscriptionSpec
    key: bytes
    opened_us: int
    opened_at: int = 0
    """Value of the subscription's arrival counter when the group opened (count windows)."""
    deadline_us: int = 0
    """When the window ends or the batch is flushed; 0 is never."""
    held: dict[str, deque[Item]] = {}
    """Inputs by type, in arrival order (AND, join)."""
    batch: list[list[Item]] = []
    """Complete groups in arrival order (batch: groups of one)."""
    round: int = 0
    timer_us: int = 0
    """Deadline that a timer was set for; 0 is none."""
    quiet: dict[int, int] = {}
    """Of an aggregate, by other slot that gave it inputs: 0: its part of the workflow has come to rest since. Otherwise
    it has not, and rests again only after it has applied what this slot sent it under the number."""
    watermark_us: int = 0
    """Of an aggregate with windows: those that end here or before are closed."""
    count: Any = None
    """Of an aggregate: its `Tally` or `Panes`, derived from what it holds. None until it is needed; not journaled."""

    def newest(self) -> list[Item]:
        """The last input of every queue: the one just put in is among them, if it is still here."""
        last = [queue[-1] for queue in self.held.values() if queue]
        return last + self.batch[-1] if self.batch else last

    def items(self) -> list[Item]:
        """Every input in the gate."""
        flat = [item for queue in self.held.values() for item in queue]
        flat.extend(item for group in self.batch for item in group)
        return flat

    @property
    def empty(self) -> bool:
        """True when the gate holds nothing and can be forgotten."""
        return not self.batch and not any(self.held.values())


class Activation(msgspec.Struct):
    """One run of one agent on one set of inputs, from the decision until the commit."""

    id: bytes
    agent: str
    subscription: str
    slot: int
    correlation_id: str
    inputs: tuple[Envelope, ...]
    created_us: int
    priority: int = 0
    groups: tuple[int, ...] = ()
    charges: tuple[tuple[int, str, int], ...] | None = None
    """(home slot, workflow, inputs) that count this activation as open; None: its own workflow, once."""
    crashes: int = 0
    """Workers that died while they had it."""
    lane: str = ""
    """Key of its agent's limits."""
    admitted: bool = False
    """The limits of its agent have let it through; it counts for them until its attempt ends."""
    probe: int = 0
    """Round of the half-open circuit breaker that let it through (`Breaker.admit`); 0: it was closed."""
    due_us: int = 0
    """It waits until then (a retry, a debounce), and a timer says so; 0: it does not."""
    failures: int = 0
    """Attempts that failed and counted."""
    history: tuple[Attempt, ...] = ()
    """Attempts that failed: the first and the newest."""
    redrives: int = 0
    """Dead letters of the same inputs before it."""
    begun: bool = False
    """An attempt of it has ended: a newer input does not take its place any more."""
    gather: Gather | None = None
    """What a run of a fan-in is about."""
    offset: int = 0
    """Outputs that a fan-out has published in parts, while it goes on."""
    late: bool = False
    """It was not done by its deadline, and that has been said."""
    decision: bytes = b""
    """Of an aggregate (`core.ballots.Decision`); empty for all others."""
    attempt: int = 0
    """Number of the last attempt handed out; 0 before the first. Not journaled: attempts start anew
    after a recovery, fenced by the shard's epoch."""
    worker: str | None = None
    """Who holds the running attempt; None while it is ready."""
    holding: Any = None
    """The permit that the running attempt uses (`core.dispatch.Holding`)."""


class KeyState(msgspec.Struct, array_like=True):
    """What the limits of an agent count for one key."""

    running: int = 0
    windows: list[RateWindow] = []
    """One per keyed rate, in declared order."""


class Lane(msgspec.Struct, array_like=True):
    """What the limits of an agent count in their home slot."""

    running: int = 0
    """Activations that were let through and have not ended."""
    windows: list[RateWindow] = []
    """One per rate that is not keyed, in declared order."""
    breaker: Breaker = msgspec.field(default_factory=Breaker)
    keys: dict[str, KeyState] = {}
    """By key, the one let through last at the end; keys for which nothing is counted are forgotten."""
    retries: RetryWindow = msgspec.field(default_factory=RetryWindow)
    """First attempts and retries, of agents with a budget for these."""


class Letter(msgspec.Struct, array_like=True):
    """A dead letter that nobody has redriven or discarded yet."""

    envelope: Envelope
    """The DeadLetter artifact, without its payload."""
    queue: str
    agent: str
    subscription: str
    at_us: int
    inputs: tuple[bytes, ...]
    groups: tuple[int, ...]
    priority: int
    lane: str
    error_type: str
    redrives: int = 0
    """Dead letters of the same inputs before it."""
    replaced: dict[bytes, bytes] = {}
    """By input, the artifact that a redrive uses in its place."""
    edits: int = 0
    cancelled: bool = False
    """Its workflow was cancelled: it can only be discarded."""
    gather: Gather | None = None


class WaitingArtifact(msgspec.Struct, array_like=True):
    """A candidate: an artifact that a subscription did not take when it was published, and may take later."""

    workflow: str
    due_us: int
    """When it is offered next."""


class Waiting(msgspec.Struct, array_like=True):
    """The candidates of one subscription in one slot."""

    every_us: int
    entries: dict[bytes, WaitingArtifact] = {}
    """By artifact, those that are due first at the front."""
    offering: bytes = b""
    """Activation in which a worker looks at some of them; empty: none does."""
    rounds: int = 0
    """Such activations so far."""

    @property
    def first_us(self) -> int:
        """When the next one is due; call only if there is one."""
        return next(iter(self.entries.values())).due_us

    def next_round(self, slot: int, now_us: int) -> int:
        """Return when the round after a moment begins; all shards know, and not all slots begin at once."""
        phase = self.every_us * slot // NUM_SLOTS
        return (now_us - phase) // self.every_us * self.every_us + self.every_us + phase


class Slot:
    """Everything one slot owns."""

    __slots__ = (
        "approvals", "arrivals", "candidates", "decided", "delayed", "fan_ins", "gates", "held", "inbox", "index",
        "kept", "lanes", "ledger", "letters", "open", "out_seq", "outbox", "parts", "scatters", "schedules", "shadows",
        "stopped", "timers", "usage", "workflows",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        """Start an empty slot."""
        self.index = index
        self.workflows: dict[str, Workflow] = {}
        self.open: dict[bytes, Activation] = {}
        self.gates: dict[str, dict[bytes, Gate]] = {}
        """By subscription and key; within a subscription in the order in which they opened."""
        self.arrivals: dict[str, int] = {}
        """Matching artifacts seen per subscription with a count window."""
        self.held: dict[tuple[str, str], list[tuple[Envelope, Match]]] = {}
        """(subscription, workflow): inputs whose `activation=` condition does not hold yet."""
        self.delayed: dict[tuple[bytes, str], Match] = {}
        """(artifact, subscription): matches that wait for their time."""
        self.timers: list[tuple[int, int, str, bytes, bytes]] = []
        """Heap of (due, number, `match` | `gate` | `due` | `approval`, artifact id | gate key | activation id | case,
        subscription)."""
        self.outbox: dict[tuple[int, int], Forward] = {}
        """(target, seq): what other slots have not acknowledged; insertion order is sending order."""
        self.out_seq: dict[int, int] = {}
        self.inbox: dict[int, int] = {}
        """Source slot: last sequence number applied. Forwards are applied in order or not at all."""
        self.usage: dict[Key, UsageRow] = {}
        """Calls to language models by the hour; workflows that are gone are still in it."""
        self.lanes: dict[str, Lane] = {}
        """By agent, for those whose limits are kept here."""
        self.letters = LetterBox(Letter)
        """Open dead letters, oldest first."""
        self.ledger = Ledger()
        """Accounts of budgets that are kept here."""
        self.schedules: dict[str, Schedule] = {}
        """By name, those that are over included."""
        self.candidates: dict[str, Waiting] = {}
        """By subscription; one that has no candidates is not there."""
        self.scatters: dict[bytes, Scatter] = {}
        """Fan-outs whose home this is, by id; those that are over until their workflow leaves memory."""
        self.fan_ins: dict[bytes, dict[str, FanIn]] = {}
        """By scatter and subscription, those that are not over."""
        self.parts: dict[bytes, dict[int, list[int]]] = {}
        """By scatter and chunk, of chunks that live here: [what is open of it, why it may deliver nothing]."""
        self.stopped: dict[bytes, None] = {}
        """Scatters whose chunks nobody wants any more, as long as something is open of them here."""
        self.approvals: dict[bytes, Case] = {}
        """What waits for people, by the id of the artifact; oldest first."""
        self.shadows: dict[tuple[str, str], ShadowCount] = {}
        """By agent and type: what people would have said."""
        self.decided: dict[str, dict[bytes, Decided]] = {}
        """By subscription and gate key: groups of several workflows that were decided, the newest ones."""
        self.kept: dict[tuple[str, bytes], list[Item]] = {}
        """(subscription, gate key): inputs of decisions that may be corrected, until their workflow has settled."""

    def gate(self, subscription: str, key: bytes) -> Gate | None:
        """Return a gate; None when it holds nothing."""
        gates = self.gates.get(subscription)
        return None if gates is None else gates.get(key)

    def holds_inputs_of(self, workflow: str) -> bool:
        """Say whether a gate here holds an input of a workflow, of this slot or of another."""
        gates = (gate for keys in self.gates.values() for gate in keys.values())
        return any(item.envelope.correlation_id == workflow for gate in gates for item in gate.items())

    def batches_of(self, workflow: str) -> list[Gate]:
        """Return the partial batches whose inputs are all of one workflow."""
        return [
            gate
            for keys in self.gates.values()
            for gate in keys.values()
            if gate.batch
            and all(i.envelope.correlation_id == workflow for group in gate.batch for i in group)
        ]

    def drop_gate(self, gate: Gate) -> None:
        """Forget a gate that is closed, fired or empty."""
        gates = self.gates[gate.spec.id]
        del gates[gate.key]
        if not gates:
            del self.gates[gate.spec.id]
