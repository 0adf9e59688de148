"""What travels between edges, shards and workers, and what the journal keeps.

Array-like msgspec structs: a field is only ever added at the end, with a default, so that
an old journal and a rolling deploy still decode. Payloads are opaque JSON bytes everywhere
but at the edge. Times are integer microseconds since the Unix epoch (suffix `_us`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from flock_ray.core.approval_terms import ApprovalAsk
from flock_ray.core.ballots import AggregateRule
from flock_ray.core.limit_specs import BreakerSpec as BreakerSpec
from flock_ray.core.limit_specs import DeadLetterSpec as DeadLetterSpec
from flock_ray.core.limit_specs import LimitSpec as LimitSpec
from flock_ray.core.limit_specs import Rate as Rate
from flock_ray.core.limit_specs import RetrySpec as RetrySpec
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.reports import AgentDemand as AgentDemand
from flock_ray.core.reports import ShardReport as ShardReport
from flock_ray.core.reports import WorkerLoad as WorkerLoad
from flock_ray.core.scatter import FanInRule, Gather, Part, Split

PUBLISHED, DUPLICATE, CONFLICT, WRONG_SLOT = 0, 1, 2, 3
"""Outcome of one posting in a `PublishReply`."""

FRESH_ID, FRESH_WORKFLOW = 1, 2


class Envelope(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """An artifact on the wire: an immutable typed fact and what is known about it."""

    id: bytes
    type: str
    version: int
    payload: bytes
    correlation_id: str
    slot: int
    produced_by: str
    created_us: int
    tags: tuple[str, ...] = ()
    visibility: bytes | None = None
    """Encoded visibility; None is Public."""
    partition_key: str | None = None
    """Explicit key; None means the correlation id decides the slot."""
    parents: tuple[bytes, ...] = ()
    activation_id: bytes | None = None
    """The activation that produced it; None for artifacts from outside."""
    priority: int = 0
    via: tuple[str, ...] = ()
    """Agents among its ancestors: what the loop guard counts by."""
    scatter: tuple[Part, ...] = ()
    """Its places in fan-outs that are not closed, the innermost one last."""


class Match(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The edge's decision that an artifact satisfies a subscription."""

    subscription: str
    key: bytes = b""
    """Canonical join key; empty when the subscription has no join."""
    due_us: int = 0
    """Not delivered before this time (delay, After visibility); 0 is at once."""
    lane: str = ""
    """Key of the agent's limits for this artifact; empty when they have no key."""
    ballot: bytes = b""  # for an aggregate: what the artifact contributes, `core.ballots.Ballot`


class Refusal(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A match that user code made impossible: a predicate or key function raised."""

    subscription: str
    condition: str
    error: str


class Posting(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """An artifact with every decision that its edge took about it."""

    envelope: Envelope
    matches: tuple[Match, ...] = ()
    signals: tuple[tuple[str, int], ...] = ()
    """(subscription id, flag index) of `When` field predicates that this artifact satisfies."""
    refusals: tuple[Refusal, ...] = ()
    idempotent: bool = False
    """The id comes from an idempotency key: a second posting returns the first."""
    not_before_us: int = 0
    """Earliest delivery (`publish(delay=)`); 0 is at once. Kept for matching again."""
    fresh: int = 0
    """FRESH_ID and FRESH_WORKFLOW: what was drawn at random for it, so that no store can have it yet."""
    candidates: tuple[str, ...] = ()
    """Subscriptions with `reevaluate=` whose `where=` does not hold yet: it is offered to them again."""
    offered: str = ""
    """The subscription that it was offered to again: matching is about this one alone."""
    approval: ApprovalAsk | None = None
    """It is the request to approve another artifact: this one; None for all others."""
    deadline_us: int = 0
    """By when its workflow must be done; 0: whenever."""


class PublishBatch(msgspec.Struct, array_like=True):
    """Postings from one edge for one shard."""

    table_version: int
    postings: list[Posting]


Status = Literal["ok", "stale_table", "stale_shard", "busy", "unavailable", "closed"]


class PublishReply(msgspec.Struct, array_like=True):
    """What became of a batch; with any status but ok nothing of it was accepted."""

    status: Status
    outcomes: bytes = b""
    """One byte per posting: PUBLISHED, DUPLICATE, CONFLICT or WRONG_SLOT."""
    table_version: int = 0
    retry_after_s: float = 0.0


class ErrorInfo(msgspec.Struct, array_like=True, frozen=True):
    """A failure as data: safe to journal, never the exception object."""

    type: str
    message: str
    traceback: str = ""
    retryable: bool = False


class Task(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One attempt of one activation, as it is sent to a worker."""

    id: bytes
    attempt: int
    agent: str
    subscription: str
    slot: int
    correlation_id: str
    """Workflow of the outputs."""
    inputs: tuple[Envelope, ...]
    groups: tuple[int, ...] = ()
    """Sizes of the groups in `inputs` for a batch of joins; empty otherwise."""
    failures: int = 0
    """Attempts of this activation that failed and counted, before this one."""
    gather: Gather | None = None
    offset: int = 0
    """Outputs that former parts of a fan-out's run have published: it goes on behind them."""
    decision: bytes = b""  # of an aggregate: `core.ballots.Decision`


class RunBatch(msgspec.Struct, array_like=True):
    """Tasks from one shard for one worker."""

    shard: int
    tasks: list[Task]
    table_version: int = 0
    listened: bool = True
    """Whether somebody reads what runs of this shard stream, or did lately."""


class RetryAsk(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What the worker says of a failure that may pass by itself."""

    after_us: int
    """The next attempt begins no sooner than this after the failure was committed."""
    counts: bool = True
    """Whether the attempt counts towards `max_attempts`; False for one that only had to wait for something."""


NOT_RUN = "flock:not-run"
"""Error type of a completion that says: it never ran here, hand it to another worker. No exception of user code can
have this name, so that none runs for ever."""


class Attempt(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """An attempt that failed, as activations and dead letters remember it."""

    number: int
    """From 1, crashes included."""
    ended_us: int
    run_us: int
    worker: str
    error: ErrorInfo
    delay_us: int = 0
    """From its end to the earliest begin of the next; 0 when there was to be none."""
    models: tuple[str, ...] = ()
    """Language models that it called."""


class InputCheck(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a condition of a subscription made of an input, at the time of a failure."""

    input: int
    """Position of the input."""
    condition: str
    passed: bool
    value: str
    error: str = ""
    """What user code raised."""


class Completion(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What an attempt did: its outputs, already matched, or why it failed."""

    id: bytes
    attempt: int
    slot: int
    outputs: tuple[Posting, ...] = ()
    """On failure: the WorkflowError artifact."""
    error: ErrorInfo | None = None
    run_us: int = 0
    """Time in user code."""
    notes: tuple[tuple[str, str], ...] = ()
    """(kind, detail) for the event log."""
    calls: tuple[ModelCall, ...] = ()
    """Calls to language models, also those of a failed attempt."""
    retry: RetryAsk | None = None
    """Of a failure: it may be tried again; None: it may not."""
    trips: bool = True
    """Of a failure: the agent's circuit breaker counts it."""
    split: Split | None = None
    """Of a fan-out: its outputs are chunks; None for all other agents."""
    checks: tuple[InputCheck, ...] = ()
    """Of a failure that may become a dead letter: the conditions that its inputs had matched, with their values."""


class CompleteBatch(msgspec.Struct, array_like=True):
    """Completions from one worker for one shard."""

    worker: str
    table_version: int
    completions: list[Completion]


class CompleteReply(msgspec.Struct, array_like=True):
    """`ok`: all committed or known to be late. Otherwise nothing was applied; match again and resend."""

    status: Status
    table_version: int = 0
    retry_after_s: float = 0.0


class Allowance(msgspec.Struct, array_like=True, frozen=True):
    """How much of one agent a shard may have on a worker."""

    agent: str
    credit: int
    """Attempts outstanding there, at most."""
    concurrency: int = 1
    """How many of them run at the same time there; the rest is read ahead."""


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """Permits that each of these workers gives: those of a pool host the same agents."""

    workers: tuple[str, ...]
    agents: tuple[Allowance, ...]


class GrantBatch(msgspec.Struct, array_like=True):
    """All permits a shard holds until `ttl_s` from receipt; replaces what it held before."""

    seq: int
    ttl_s: float
    grants: list[Grant]
    lost: tuple[str, ...] = ()
    """Workers declared dead lately: what they held is handed out again."""
    renews: int = 0
    """Number of the batch that holds on, of which nothing has changed; 0: this one says all itself."""


class Run(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """An activation that another slot opens."""

    id: bytes
    agent: str
    subscription: str
    correlation_id: str
    inputs: tuple[Envelope, ...]
    created_us: int
    priority: int
    groups: tuple[int, ...]
    charges: tuple[tuple[int, str, int], ...]
    lane: str
    redrives: int = 0
    crashes: int = 0
    failures: int = 0
    history: tuple[Attempt, ...] = ()
    begun: bool = False
    gather: Gather | None = None
    decision: bytes = b""


class Forward(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Something one slot owes another: kept in the sender's outbox until acknowledged."""

    source: int
    target: int
    seq: int
    """Counts from 1 per (source, target)."""
    kind: str
    """`match` (feed a gate), `publish` (an output of another slot), `settle` (inputs released), `run` (an
    activation on its way to the slot that keeps its agent's limits), `void` (what it was is taken back), `gather` (feed
    a fan-in, or say what became of a chunk), `stop` (nobody wants a scatter's chunks any more), `quiet` (a workflow's
    part there has come to rest), `withdraw` (runs that only feed an aggregate that is decided)."""
    posting: Posting | None = None
    match: Match | None = None
    workflow: str = ""
    delta: tuple[int, int] = (0, 0)
    """For `settle`: change of the workflow's (open, waiting) counts because of its inputs elsewhere."""
    run: Run | None = None
    errors: int = 0
    """For `settle`: change of the workflow's count of errors; a dead letter that is redriven is none any more."""
    part: Part | None = None
    """`settle`: one thing less is open of this chunk. `gather`, `stop`: the chunk, or any chunk of the scatter."""
    fate: int = -1
    """`gather`: why nothing is open of the chunk any more (`scatter.DROPPED` and others); -1: something still is."""
    reopened: bool = False


class ForwardBatch(msgspec.Struct, array_like=True):
    """Forwards from one shard for another."""

    shard: int
    forwards: list[Forward]
    table_version: int = 0


class ForwardReply(msgspec.Struct, array_like=True):
    """Sequence numbers that are now durable at the receiver, as (source, target, seq)."""

    status: Status
    acks: list[tuple[int, int, int]] = []


class SubscriptionSpec(msgspec.Struct, array_like=True, frozen=True):
    """What a shard must know of a subscription: no user code."""

    id: str
    agent: str
    types: tuple[str, ...]
    """Declared order, repeated for counts."""
    kind: str
    """single, and, join, batch, join_batch, fan_in, aggregate."""
    scope: str = "workflow"
    within_us: int = 0
    within_count: int = 0
    batch_size: int = 0
    batch_timeout_us: int = 0
    priority: int = 0
    exclusive: bool = False
    when: bytes = b""
    """msgpack of the When tree (`core.conditions`); empty when the subscription has none."""
    reevaluate_us: int = 0
    """How often artifacts whose `where=` did not hold are offered again; 0: never."""
    fan_in: FanInRule | None = None
    aggregate: AggregateRule | None = None


class AgentInfo(msgspec.Struct, array_like=True, frozen=True):
    """What a shard must know of an agent."""

    name: str
    max_iterations: int = 1000
    max_crashes: int = 3
    max_concurrency: int = 1
    identity: bytes = b""
    retry: RetrySpec | None = None
    """None: a failure is final."""
    dead_letter: DeadLetterSpec | None = None
    """None: a failure becomes a WorkflowError."""
    limits: LimitSpec | None = None
    weights: tuple[tuple[str, float], ...] = ()
    """Tenants whose share of the agent's time is not 1."""
    deadline_us: int = 0
    """Within what time of its inputs being there a run must be done; 0: whenever."""
    outputs: tuple[str, ...] = ()  # types that it publishes


class TypeInfo(msgspec.Struct, array_like=True, frozen=True):
    """A version of an artifact type, as it was deployed: what `flock check --against` compares with."""

    name: str
    version: int
    digest: str
    """Hash of the schema; equal for equal schemas."""
    schema: bytes = b""
    """JSON schema without titles and descriptions; empty when it is too large."""


class TableSpec(msgspec.Struct, array_like=True, frozen=True):
    """A version of the subscription table as shards hold it."""

    version: int
    agents: tuple[AgentInfo, ...]
    subscriptions: tuple[SubscriptionSpec, ...]
    types: tuple[TypeInfo, ...] = ()
    """Types that the agents consume and publish; a shard keeps those of former tables, too."""


class PoolInfo(msgspec.Struct, array_like=True, frozen=True):
    """Processes of one agent's own, or (name `shared`) of all light agents."""

    name: str = "shared"
    min: int = 0
    max: int = 0
    """0: as many as the cluster has CPUs."""
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    idle_timeout_s: float = 60.0


class AgentPackage(msgspec.Struct, array_like=True, frozen=True):
    """An agent on its way to the board: what shards and router read, and the definition that they don't."""

    info: AgentInfo
    subscriptions: tuple[SubscriptionSpec, ...]
    pool: PoolInfo
    definition: bytes
    """Opaque here: only workers and edges load it."""
    fingerprint: str
    """Equal for equal code and declarations."""
    owner: str = ""
    types: tuple[TypeInfo, ...] = ()
    """Types that the agent consumes and publishes."""


encode = msgspec.msgpack.Encoder().encode
decode_publish = msgspec.msgpack.Decoder(PublishBatch).decode
decode_publish_reply = msgspec.msgpack.Decoder(PublishReply).decode
decode_run = msgspec.msgpack.Decoder(RunBatch).decode
decode_complete = msgspec.msgpack.Decoder(CompleteBatch).decode
decode_complete_reply = msgspec.msgpack.Decoder(CompleteReply).decode
decode_grants = msgspec.msgpack.Decoder(GrantBatch).decode
decode_forward = msgspec.msgpack.Decoder(ForwardBatch).decode
decode_forward_reply = msgspec.msgpack.Decoder(ForwardReply).decode
decode_table = msgspec.msgpack.Decoder(TableSpec).decode
decode_report = msgspec.msgpack.Decoder(ShardReport).decode
decode_load = msgspec.msgpack.Decoder(WorkerLoad).decode
decode_package = msgspec.msgpack.Decoder(AgentPackage).decode
