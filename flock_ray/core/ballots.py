"""What travels and is journaled of aggregates: rules, ballots and decisions. Imports nothing of the core.

User code runs at the edge, once: what it says of an artifact (its vote, weight, score, event time) becomes a
`Ballot` in the match. From there on a shard decides from journaled values alone.
"""

from __future__ import annotations

import msgspec

UNIT = 1_000_000
"""Weights and points are counted in millionths: sums of integers are exact, whatever their order."""

VOTES = ("majority", "weighted", "unanimous", "quorum")
"""Strategies that count the values of a field."""
EXTREMES = ("max_by", "min_by")
"""Strategies that choose one input by its score."""
COLLECTING = ("collect_all", "first_n", "merge")
"""Strategies that decide nothing: what came is the result."""

EARLY, COUNT, QUIET, TIMEOUT, WINDOW, CORRECTION = (
    "early", "count", "quiet", "timeout", "window", "correction",
)  # fmt: skip
"""Why an aggregate was decided."""


class Ballot(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What one artifact contributes to the decision of an aggregate."""

    choices: tuple[bytes, ...] = ()
    """Canonical JSON: of the value voted for, or of a ranking from the best on. Empty: it abstains, or there is nothing
    to vote about."""
    weight: int = UNIT
    score: float | None = None
    """For MAX_BY and MIN_BY; None: it abstains."""
    at_us: int = 0
    """Event time; 0 without a window."""

    def told(self, strategy: str) -> str:
        """Write it as a user would read it."""
        if strategy in COLLECTING:
            return "collected"
        if strategy in EXTREMES:
            return "abstains" if self.score is None else f"score {self.score:g}"
        votes = " > ".join(choice.decode(errors="replace") for choice in self.choices) or "abstains"
        return votes if self.weight == UNIT else f"{votes}, weight {self.weight / UNIT:g}"


class WindowRule(msgspec.Struct, array_like=True, frozen=True):
    """How event time is cut into windows."""

    kind: str
    """tumbling, sliding or session."""
    size_us: int
    """Length, or the gap that ends a session."""
    slide_us: int = 0
    """From the begin of one sliding window to the next; 0 otherwise."""
    lateness_us: int = 0
    """How far the watermark stays behind the newest event time."""


class AggregateRule(msgspec.Struct, array_like=True, frozen=True):
    """What a shard must know of an aggregate."""

    strategy: str
    number: int = 0
    """Of QUORUM and FIRST_N; 0 otherwise."""
    count: int = 0
    """Inputs that complete it; 0: it has no such number."""
    timeout_us: int = 0
    """Since its first input, with a window since its last one; 0: none."""
    min_count: int = 1
    """Inputs below which a timeout, or the end of all other work, is a failure."""
    on_timeout: str = "partial"
    """partial, fail or discard."""
    tie: str = "first"
    """first, abstain, or ask: a function on the worker decides."""
    early: bool = True
    """It is decided as soon as its outcome is certain, and what could still come is withdrawn."""
    correct: bool = False
    """What comes too late makes another decision."""
    repeat: bool = False
    """What comes after a decision begins a new round."""
    max_weight: int = 0
    """The heaviest that a ballot can be; 0: unknown."""
    window: WindowRule | None = None
    keyed: bool = False
    """Grouped by a key (`Match.key`)."""

    @property
    def waits_for_quiet(self) -> bool:
        """True when only the end of all other work of its workflow completes it."""
        return not (self.count or self.timeout_us)


class Decision(msgspec.Struct, array_like=True, frozen=True):
    """What an aggregate decided; goes with the activation to the worker that makes the result."""

    reason: str
    """early, count, quiet, timeout, window or correction."""
    outcome: str
    """decided, tied (a function breaks the tie) or none."""
    choices: tuple[bytes, ...] = ()
    """The winning value; of RANK all, the best first; of a tie those that tied."""
    places: tuple[int, ...] = ()
    """MAX_BY and MIN_BY: the input that won, by its place; of a tie those that tied."""
    tally: tuple[tuple[bytes, int], ...] = ()
    """By value in the order in which they came: votes, weights or points in millionths."""
    ballots: int = 0
    """Inputs that voted."""
    abstentions: int = 0
    missing: int = 0
    """Inputs that did not come (any more) of those it could wait for; 0 when it had no number."""
    from_us: int = 0
    """The window's begin."""
    until_us: int = 0
    """The window's end, not in it; 0: there was no window."""
    revision: int = 0
    """Corrections before it and itself."""


class Decided(msgspec.Struct, array_like=True):
    """What is remembered of a group that was decided, so that it is decided once."""

    at_us: int
    reason: str
    """As of `Decision`; `failed` or `discarded` when there was none."""
    choices: tuple[bytes, ...] = ()
    places: tuple[int, ...] = ()
    watermark_us: int = 0
    """Windows that end here or before are closed; 0 without a window."""
    revision: int = 0
    """Corrections so far."""
    late: int = 0
    """Inputs that came too late so far."""


ABSTAINS = Ballot()

_encode = msgspec.msgpack.Encoder().encode
_decode_ballot = msgspec.msgpack.Decoder(Ballot).decode
_decode_decision = msgspec.msgpack.Decoder(Decision).decode


def encode_ballot(ballot: Ballot) -> bytes:
    """Encode a ballot for its match; the one that says nothing is empty."""
    return b"" if ballot == ABSTAINS else _encode(ballot)


def decode_ballot(data: bytes) -> Ballot:
    """Decode the ballot of a match; one that can't be read says nothing."""
    if not data:
        return ABSTAINS
    try:
        return _decode_ballot(data)
    except msgspec.DecodeError:
        return ABSTAINS


def encode_decision(decision: Decision) -> bytes:
    """Encode a decision for its activation."""
    return _encode(decision)


def decode_decision(data: bytes) -> Decision | None:
    """Decode the decision of an activation; None when it has none."""
    return _decode_decision(data) if data else None
