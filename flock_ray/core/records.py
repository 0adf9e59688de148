"""Records of the journal: every command that a slot accepted, with the time at which it did.

A record holds every decision that was taken outside the shard (matches, attempts' results), and
what the shard makes of it is a pure function of its state: replaying the records of a slot gives
the same state, whatever host runs it. A field is only ever added at the end, with a default.

The journal keeps records in frames, one per micro-batch, without the payloads of artifacts that live
on this shard: those are in the artifacts' own rows, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from flock_ray.core.approval_orders import ApprovalOrder
from flock_ray.core.budgets import Amount, Charge, Limit, Refusal, Terms
from flock_ray.core.claims import is_claim
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.rows import SHARD, WorkflowRow
from flock_ray.core.schedules import ScheduleInfo
from flock_ray.core.wire import Completion, Envelope, Forward, Posting, TableSpec
from flock_ray.errors import StoreCorruptError

FRAME_FORMAT = 1
"""Raised when an old program could misread new frames: it refuses them then."""

CLAIMS_FORMAT = 2
"""Of frames in which payloads are claimed: a program that does not know claims would take them for payloads."""


class Published(msgspec.Struct, array_like=True, tag="P", frozen=True):
    """An artifact from outside was accepted."""

    at_us: int
    posting: Posting

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.posting.envelope.slot


class Completed(msgspec.Struct, array_like=True, tag="C", frozen=True):
    """The first result of an activation was committed."""

    at_us: int
    completion: Completion
    worker: str = ""
    """Who ran it, of a failure."""

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.completion.slot


class Ticked(msgspec.Struct, array_like=True, tag="T", frozen=True):
    """Timers of the slot that were due at this time have fired."""

    at_us: int
    slot: int


class ForwardedIn(msgspec.Struct, array_like=True, tag="I", frozen=True):
    """Something from another slot's outbox was applied."""

    at_us: int
    forward: Forward

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.forward.target


class ForwardAcked(msgspec.Struct, array_like=True, tag="A", frozen=True):
    """The receiver has an outbox entry: forget it."""

    slot: int
    target: int
    seq: int


class Lost(msgspec.Struct, array_like=True, tag="L", frozen=True):
    """A worker died while it had these activations."""

    at_us: int
    slot: int
    blamed: tuple[bytes, ...]
    worker: str


class Flushed(msgspec.Struct, array_like=True, tag="F", frozen=True):
    """Somebody asked for partial batches to run now."""

    at_us: int
    slot: int


class WorkflowFlushed(msgspec.Struct, array_like=True, tag="B", frozen=True):
    """Somebody asked for the partial batches of one workflow to run now."""

    at_us: int
    slot: int
    workflow: str


class Cancelled(msgspec.Struct, array_like=True, tag="X", frozen=True):
    """A workflow was cancelled."""

    at_us: int
    slot: int
    workflow: str


class Installed(msgspec.Struct, array_like=True, tag="S", frozen=True):
    """A version of the subscription table took effect on the whole shard."""

    at_us: int
    table: TableSpec
    slot: int = SHARD


class Rehydrated(msgspec.Struct, array_like=True, tag="W", frozen=True):
    """A settled workflow that had left memory was brought back, because something new came for it."""

    at_us: int
    row: WorkflowRow

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.row.slot


class Retried(msgspec.Struct, array_like=True, tag="R", frozen=True):
    """An attempt failed, and the activation will be tried again."""

    at_us: int
    completion: Completion
    """Without outputs."""
    due_us: int
    worker: str

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.completion.slot


class Streamed(msgspec.Struct, array_like=True, tag="FO", frozen=True):
    """A fan-out has published a part of its chunks, and goes on."""

    at_us: int
    completion: Completion
    due_us: int = 0
    """It makes a pause until then; 0: it goes on at once."""

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.completion.slot


class Admitted(msgspec.Struct, array_like=True, tag="D", frozen=True):
    """Activations of an agent with limits were let through, in this order."""

    at_us: int
    slot: int
    agent: str
    ids: tuple[bytes, ...]


class Moved(msgspec.Struct, array_like=True, tag="MV", frozen=True):
    """Activations that waited here go to the slot that keeps the limits of their agent since a deploy."""

    at_us: int
    slot: int
    ids: tuple[bytes, ...]


class LetterRedriven(msgspec.Struct, array_like=True, tag="V", frozen=True):
    """A dead letter's activation runs again, with these inputs."""

    at_us: int
    slot: int
    letter: bytes
    inputs: tuple[Envelope, ...]
    by: str = ""


class LetterEdited(msgspec.Struct, array_like=True, tag="E", frozen=True):
    """A redrive of a dead letter will use another artifact in place of one of its inputs."""

    at_us: int
    slot: int
    letter: bytes
    old: bytes
    new: bytes
    by: str = ""


class LetterDiscarded(msgspec.Struct, array_like=True, tag="K", frozen=True):
    """A dead letter was given up."""

    at_us: int
    slot: int
    letter: bytes
    by: str = ""
    reason: str = ""


class BreakerForced(msgspec.Struct, array_like=True, tag="O", frozen=True):
    """Somebody opened or closed the circuit breaker of an agent by hand."""

    at_us: int
    slot: int
    agent: str
    open: bool
    by: str = ""


class Paused(msgspec.Struct, array_like=True, tag="Z", frozen=True):
    """Somebody paused or resumed something on the whole shard."""

    at_us: int
    kind: str
    """`board`, `agent`, `workflow` or `type`."""
    name: str
    """Empty for the board."""
    on: bool
    by: str = ""
    slot: int = SHARD
    reason: str = ""


class Reserved(msgspec.Struct, array_like=True, tag="G", frozen=True):
    """An account has set aside the worst case of a call to a language model."""

    at_us: int
    slot: int
    key: bytes
    amount: Amount
    charge: Charge


class Settled(msgspec.Struct, array_like=True, tag="Y", frozen=True):
    """A call that an account had reserved for has ended."""

    at_us: int
    slot: int
    key: bytes
    account: str
    used: Amount | None
    """None: nobody knows, so its worst case is spent."""


class BudgetSet(msgspec.Struct, array_like=True, tag="N", frozen=True):
    """Somebody gave an account a limit of its own."""

    at_us: int
    slot: int
    account: str
    limit: Limit | None
    """None: what agents declare holds again."""
    terms: Terms | None
    by: str = ""


class ScheduleSet(msgspec.Struct, array_like=True, tag="H", frozen=True):
    """A schedule was declared, or declared in another way."""

    at_us: int
    slot: int
    info: ScheduleInfo
    anchor_us: int
    next_us: int
    """0: it is over."""


class ScheduleFired(msgspec.Struct, array_like=True, tag="J", frozen=True):
    """A schedule was due: its times that fired, oldest first, and when it is due next."""

    at_us: int
    slot: int
    name: str
    fires: tuple[int, ...]
    next_us: int
    skipped: int
    by_hand: bool = False
    backfill: tuple[int, int] = (0, 0)
    """The times are those of this range, its end excluded, which has passed; (0, 0): they are not."""


class SchedulePaused(msgspec.Struct, array_like=True, tag="Q", frozen=True):
    """Somebody paused or resumed a schedule."""

    at_us: int
    slot: int
    name: str
    on: bool
    by: str = ""


class ScheduleRemoved(msgspec.Struct, array_like=True, tag="U", frozen=True):
    """Somebody removed a schedule."""

    at_us: int
    slot: int
    name: str
    by: str = ""


class Offered(msgspec.Struct, array_like=True, tag="OF", frozen=True):
    """Candidates of a subscription were offered to it again; what comes of it is in a `Completed`."""

    at_us: int
    slot: int
    subscription: str
    inputs: tuple[Envelope, ...]
    gone: tuple[bytes, ...] = ()
    """Candidates that are not on the board any more."""


class Spent(msgspec.Struct, array_like=True, tag="SP", frozen=True):
    """Language models were called, and no result of a run says so."""

    at_us: int
    slot: int
    agent: str
    workflow: str
    """Empty: for none, or for several."""
    calls: tuple[ModelCall, ...]


class ApprovalDecided(msgspec.Struct, array_like=True, tag="AD", frozen=True):
    """Somebody decided about an approval."""

    at_us: int
    order: ApprovalOrder

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.order.slot


class BudgetAsked(msgspec.Struct, array_like=True, tag="BA", frozen=True):
    """An account was used up, and people are asked for more."""

    at_us: int
    slot: int
    charge: Charge
    refusal: Refusal
    agent: str
    workflow: str


class Late(msgspec.Struct, array_like=True, tag="LA", frozen=True):
    """Runs and workflows are not done by when they had to be."""

    at_us: int
    slot: int
    runs: tuple[bytes, ...]
    workflows: tuple[str, ...]


class Hushed(msgspec.Struct, array_like=True, tag="AH", frozen=True):
    """A workflow has come to rest in this slot: aggregates that wait for that decide."""

    at_us: int
    slot: int
    workflow: str


Record = (
    Published
    | Completed
    | Ticked
    | ForwardedIn
    | ForwardAcked
    | Lost
    | Flushed
    | WorkflowFlushed
    | Cancelled
    | Installed
    | Rehydrated
    | Retried
    | Streamed
    | Admitted
    | Moved
    | LetterRedriven
    | LetterEdited
    | LetterDiscarded
    | BreakerForced
    | Paused
    | Reserved
    | Settled
    | BudgetSet
    | ScheduleSet
    | ScheduleFired
    | SchedulePaused
    | ScheduleRemoved
    | Offered
    | Spent
    | ApprovalDecided
    | BudgetAsked
    | Late
    | Hushed
)

encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(Record).decode


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """The records of one micro-batch, in order."""

    format: int
    at_us: int
    heads: list[int]
    """Position of the newest artifact before each record."""
    records: list[Record]


class _Format(msgspec.Struct, array_like=True, frozen=True):
    format: int


_set = msgspec.structs.force_setattr
_decode_format = msgspec.msgpack.Decoder(_Format).decode
_decode_frame = msgspec.msgpack.Decoder(Frame).decode


def encode_frame(
    at_us: int, heads: list[int], records: list[Record], is_stored: Callable[[Envelope], bool]
) -> bytes:
    """Encode records without the payloads that `is_stored` says are in rows of this store; claims stay.

    The payloads are taken out of the envelopes for the moment of encoding: copies without them would cost
    three times as much as all the rest. Nothing else may look at the envelopes meanwhile.
    """
    stripped: list[tuple[Envelope, bytes]] = []
    frame_format = FRAME_FORMAT
    for envelope in envelopes_of(records):
        if is_claim(envelope.payload):
            frame_format = CLAIMS_FORMAT
        elif is_stored(envelope):
            stripped.append((envelope, envelope.payload))
    try:
        for envelope, _ in stripped:
            _set(envelope, "payload", b"")
        return encode_record(Frame(frame_format, at_us, heads, records))
    finally:
        for envelope, payload in stripped:
            _set(envelope, "payload", payload)


def decode_frame(data: bytes) -> Frame:
    """Decode a frame; payloads that are stored elsewhere are empty.

    Raises:
        StoreCorruptError: It is no frame, or of a version that this program does not know.
    """
    try:
        found = _decode_format(data).format
        if found in (FRAME_FORMAT, CLAIMS_FORMAT):
            return _decode_frame(data)
    except msgspec.DecodeError as error:
        raise StoreCorruptError(f"A journal frame can't be read: {error}.") from error
    raise StoreCorruptError(
        f"The journal was written by a newer version of flock_ray (frame format {found}, this one knows "
        f"{CLAIMS_FORMAT}). Start it with that version or a later one."
    )


def envelopes_of(records: Iterable[Record]) -> Iterator[Envelope]:
    """Iterate over every artifact in records."""
    for record in records:
        if isinstance(record, Published):
            yield record.posting.envelope
        elif isinstance(record, Completed | Streamed):
            yield from (posting.envelope for posting in record.completion.outputs)
        elif isinstance(record, ForwardedIn):
            if record.forward.posting is not None:
                yield record.forward.posting.envelope
            if record.forward.run is not None:
                yield from record.forward.run.inputs
        elif isinstance(record, LetterRedriven | Offered):
            yield from record.inputs
        elif isinstance(record, ApprovalDecided) and record.order.edited is not None:
            yield record.order.edited.envelope
