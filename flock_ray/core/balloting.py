"""What an agent declares of an aggregate, and what one artifact contributes to it. Holds code: not for shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from flock_ray.core.ballots import EXTREMES, UNIT, VOTES, AggregateRule, Ballot, decode_ballot, encode_ballot
from flock_ray.core.ids import derive_id
from flock_ray.core.strategies import AggregationStrategy, Window
from flock_ray.core.wire import Envelope, Refusal
from flock_ray.errors import safe_error_text

__all__ = ["AggregateSpec", "Value", "Weights", "ballot_of", "canonical", "group_key"]

Value = str | Callable[[Any], Any]
"""The name of a field, or a function of the model."""
Weights = str | Callable[[Any], float] | Mapping[str, float]
"""A field or function that gives the weight of a vote, or weights by the agent that published it."""

MAX_BALLOT_BYTES = 4_096
"""Of all choices of one ballot: they travel with the match and are journaled with it."""
MAX_WEIGHT = 1e9
MAX_KEY_BYTES = 64
"""A longer group key is replaced by its hash."""

_US = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BallotError(ValueError):
    """What a model has where its vote, weight, score or time should be is none."""


@dataclass(frozen=True, slots=True)
class AggregateSpec:
    """One `.aggregates()` of an agent."""

    into: type[BaseModel]
    strategy: AggregationStrategy
    count: int = 0
    """Inputs that complete it; 0: it has no such number."""
    timeout_us: int = 0
    field: Value | None = None
    score: Value | None = None
    by: Value | None = None
    min_count: int = 1
    weights: Weights | None = None
    on_timeout: Literal["partial", "fail", "discard"] = "partial"
    tie: Literal["first", "abstain"] | Callable[[Any], Any] = "first"
    build: Callable[[Any], Any] | None = None
    mapping: tuple[tuple[str, Value], ...] = ()
    """Fields of the result with where they come from."""
    early: bool = True
    correct: bool = False
    repeat: bool = False
    window: Window | None = None
    event_time: Value | None = None
    """None: when the artifact was published."""
    lateness_us: int = 0

    def rule(self) -> AggregateRule:
        """Return what shards must know."""
        heaviest = 0
        if isinstance(self.weights, Mapping):
            heaviest = max((round(weight * UNIT) for weight in self.weights.values()), default=0)
        return AggregateRule(
            self.strategy.name, self.strategy.number, self.count, self.timeout_us, self.min_count, self.on_timeout,
            "ask" if callable(self.tie) else self.tie, self.early, self.correct, self.repeat, heaviest,
            None if self.window is None else self.window.rule(self.lateness_us), self.by is not None,
        )  # fmt: skip

    def functions(self) -> list[Any]:
        """Return the user's functions, for the agent's fingerprint."""
        found = [self.field, self.score, self.by, self.weights, self.tie, self.build, self.event_time]
        found += [self.strategy.function, *(value for _, value in self.mapping)]
        return [function for function in found if callable(function)]

    def digest(self) -> bytes:
        """Describe everything of it but the user's functions, for the agent's fingerprint."""
        named = [v for v in (self.field, self.score, self.by, self.event_time) if isinstance(v, str)]
        weights = dict(self.weights) if isinstance(self.weights, Mapping) else str(type(self.weights))
        into = self.into.__qualname__
        return repr((into, self.rule(), named, weights, [(name, str(v)) for name, v in self.mapping
                                                         if isinstance(v, str)])).encode()  # fmt: skip


def canonical(value: Any) -> bytes:
    """Return a value as canonical JSON: equal values give equal bytes.

    Raises:
        BallotError: It has no JSON form, or is no number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise BallotError(f"{value} is no value to vote for")
    try:
        return msgspec.json.encode(to_jsonable_python(value), order="deterministic")
    except Exception as error:
        raise BallotError(f"a {type(value).__name__} has no JSON form") from error


def ballot_of(spec: AggregateSpec, model: BaseModel, envelope: Envelope) -> Ballot:
    """Return what an artifact contributes. Runs user code.

    Raises:
        Exception: What that raised, or a `BallotError`.
    """
    strategy = spec.strategy.name
    choices: tuple[bytes, ...] = ()
    weight, score, at_us = UNIT, None, 0
    if strategy in VOTES and spec.field is not None:
        value = value_of(spec.field, model)
        choices = () if value is None else (canonical(value),)
        if strategy == "weighted" and choices:
            weight = _weight(spec, model, envelope)
    elif strategy == "rank" and spec.field is not None:
        choices = _ranking(value_of(spec.field, model))
    elif strategy in EXTREMES and spec.score is not None:
        score = _score(value_of(spec.score, model))
    if sum(map(len, choices)) > MAX_BALLOT_BYTES:
        raise BallotError(
            f"a vote of over {MAX_BALLOT_BYTES} bytes; vote by a short name of what it is about"
        )
    if spec.window is not None:
        at_us = _event_time(spec, model, envelope)
    return Ballot(choices, weight, score, at_us)


def encoded_ballot(
    spec: AggregateSpec, subscription: str, model: Callable[[], Any], envelope: Envelope
) -> bytes | Refusal:
    """Return the ballot of an artifact as it travels, or why there is none."""
    try:
        return encode_ballot(ballot_of(spec, model(), envelope))
    except Exception as error:
        kind, text = safe_error_text(error)
        return Refusal(subscription, "ballot", f"{kind}: {text}")


def group_key(spec: AggregateSpec, subscription: str, model: Callable[[], Any]) -> bytes | Refusal:
    """Return the key of an artifact's group, or why there is none; empty when it is not grouped by one."""
    if spec.by is None:
        return b""
    try:
        data = canonical(value_of(spec.by, model()))
    except Exception as error:
        kind, text = safe_error_text(error)
        return Refusal(subscription, "group key", f"{kind}: {text}")
    return data if len(data) <= MAX_KEY_BYTES else derive_id(data)


def explained(
    spec: AggregateSpec, envelope: Envelope, model: Callable[[], Any]
) -> Iterator[tuple[str, bool, str, str | None]]:
    """Yield (condition, passed, value, error) of what an aggregate makes of an artifact, for `why`."""
    found = {"ballot": encoded_ballot(spec, "", model, envelope)}
    if spec.by is not None:
        found = {"group key": group_key(spec, "", model), **found}
    for name, value in found.items():
        if isinstance(value, Refusal):
            yield name, False, "raised", value.error
        elif name == "ballot":
            yield name, True, decode_ballot(value).told(spec.strategy.name), None
        else:
            yield name, True, repr(value), None


def value_of(value: Value, model: Any) -> Any:
    """Read a field, or call a function of the model."""
    return getattr(model, value) if isinstance(value, str) else value(model)


def _weight(spec: AggregateSpec, model: BaseModel, envelope: Envelope) -> int:
    weights = spec.weights
    if isinstance(weights, Mapping):
        if envelope.produced_by not in weights:
            raise BallotError(f"weights= has no weight for what {envelope.produced_by!r} publishes")
        weight: Any = weights[envelope.produced_by]
    else:
        weight = 1 if weights is None else value_of(weights, model)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
        raise BallotError(f"{weight!r} is no weight: use numbers from 0 to {MAX_WEIGHT:,.0f}")
    return round(weight * UNIT)


def _score(score: Any) -> float | None:
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BallotError(f"{score!r} is no score: use a number, or None to abstain")
    return number


def _ranking(value: Any) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise BallotError(f"a {type(value).__name__} is no ranking: use a list, the best first")
    choices = tuple(canonical(choice) for choice in value)
    if len(set(choices)) < len(choices):
        raise BallotError("a ranking names something twice")
    return choices


def _event_time(spec: AggregateSpec, model: BaseModel, envelope: Envelope) -> int:
    if spec.event_time is None:
        return envelope.created_us
    at = value_of(spec.event_time, model)
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise BallotError(f"{at!r} is no event time: use a datetime with a time zone")
    # As integers all the way: a float of seconds has lost the last microseconds by now.
    since = at.astimezone(UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * _US + since.microseconds
