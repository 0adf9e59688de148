"""How the result of an aggregate is made: where each of its fields comes from, checked when it is declared."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from pydantic import BaseModel, TypeAdapter
from pydantic_core import ValidationError

from flock_ray.core.balloting import AggregateSpec, ballot_of
from flock_ray.core.ballots import EXTREMES, UNIT, VOTES, Decision
from flock_ray.core.signature import accepts, shown
from flock_ray.core.tallies import Tally
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, OutputContractError

__all__ = ["Aggregated", "ResultPlan", "aggregated"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What an aggregate has collected and decided: for `build=`, `mapping=`, `tie=`, and as `ctx.aggregated`."""

    inputs: list[Any] = field(default_factory=list)
    """The models, in the order in which they came; empty in `ctx.aggregated`, whose function gets them anyway."""
    value: Any = None
    """What was voted for; of RANK what is ranked first; None when there is no outcome."""
    ranking: list[Any] = field(default_factory=list)
    """Of RANK: all candidates, the best first."""
    winner: Any = None
    """Of MAX_BY and MIN_BY: the input that won; None in `ctx.aggregated`, and when there is none."""
    tied: list[Any] = field(default_factory=list)
    """The values, or inputs, that a `tie=` function has to choose from; empty otherwise. In `ctx.aggregated` the
    function of the run has to choose: `value` is None."""
    tally: dict[Any, float] = field(default_factory=dict)
    """Votes, weights or points by value, in the order in which they came. What is no key of a dict is JSON text."""
    ballots: int = 0
    """Inputs that voted."""
    abstentions: int = 0
    missing: int = 0
    """Of `trigger_on_count`, those that had not come when it was decided."""
    reason: str = ""
    """Why then: early, count, quiet, timeout, window, or correction."""
    window_start: datetime | None = None
    """Aware, UTC; None: there is no window."""
    window_end: datetime | None = None
    """Not in it."""
    revision: int = 0
    """0 for a decision, then counting its corrections."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one field of the result comes from."""

    kind: str
    """value, ranking, each, inputs, winner, same, about or mapped."""
    name: str = ""
    """Of the input's field, or of the field of `Aggregated`."""
    function: Callable[[Any], Any] | None = None


_ABOUT: dict[str, Any] = {
    "tally": dict, "ballots": int, "abstentions": int, "missing": int, "reason": str,
    "window_start": datetime, "window_end": datetime, "revision": int,
}  # fmt: skip
"""Fields of `Aggregated` that a result takes under the same name."""


class ResultPlan:
    """Where the fields of a result come from. Compiled when the aggregate is declared."""

    def __init__(self, spec: AggregateSpec, source: type[BaseModel], at: str) -> None:
        """Find a source for every field that can have one.

        Args:
            spec: What is declared.
            source: Type of the inputs.
            at: The words that start its error messages.

        Raises:
            ConfigurationError: A field that is mapped does not exist, or can't hold what it is given.
        """
        self._spec = spec
        self._source = source
        self._at = at
        self.sources: dict[str, _Source] = {}
        """By field of the result."""
        self.open: list[str] = []
        """Fields that have to be given and have no source: only an engine can write them."""
        made_by = spec.build or spec.strategy.function
        if made_by is not None:
            return
        mapping = dict(spec.mapping)
        for name in mapping:
            if name not in spec.into.model_fields:
                raise ConfigurationError(
                    f"{at} mapping= names {name!r}, which is no field of {spec.into.__name__}; it has "
                    f"{', '.join(spec.into.model_fields)}"
                )
        for name, info in spec.into.model_fields.items():
            found = self._mapped(name, mapping[name]) if name in mapping else self._by_convention(name)
            if found is not None:
                self.sources[name] = found
            elif info.is_required():
                self.open.append(name)

    @property
    def is_complete(self) -> bool:
        """Whether no engine is needed."""
        return not self.open

    def explain(self) -> str:
        """Say what can't be taken from the inputs, and what to do."""
        into, source = self._spec.into.__name__, self._source.__name__
        return (
            f"{self._at} {', '.join(f'{into}.{name}' for name in self.open)} can't be taken from {source}: give "
            f"build= or mapping=, a default, .runs(fn), or a model (Flock(model=...)) whose answer fills it"
        )

    def _mapped(self, name: str, value: Any) -> _Source:
        if callable(value):
            return _Source("mapped", name, value)
        fields = self._source.model_fields
        if value not in fields:
            raise ConfigurationError(
                f"{self._at} mapping= takes {name!r} from {value!r}, which is no field of {self._source.__name__}; it "
                f"has {', '.join(fields)}"
            )
        found = self._from_field(name, value)
        if found is None:
            want = shown(self._spec.into.model_fields[name].annotation)
            raise ConfigurationError(
                f"{self._at} mapping= gives {self._spec.into.__name__}.{name} ({want}) the field {value!r} "
                f"({shown(fields[value].annotation)}): neither one nor a list of them fits; use a function"
            )
        return found

    def _by_convention(self, name: str) -> _Source | None:
        spec, hint = self._spec, self._spec.into.model_fields[name].annotation
        if isinstance(spec.field, str) and name == spec.field:
            return self._voted(name, hint)
        singular = [name, *(name.removesuffix(end) + rest for end, rest in _PLURALS if name.endswith(end))]
        for candidate in singular:
            if candidate in self._source.model_fields and (found := self._from_field(name, candidate)):
                return found
        if accepts(hint, list[self._source]) and hint is not Any:  # type: ignore[name-defined]  # known at run time
            return _Source("inputs")
        about = "tally" if name == f"{spec.field}_tally" else name
        kind = _ABOUT.get(about)
        if kind is not None and (accepts(hint, kind) or (kind is dict and _is_dict(hint))):
            return _Source("about", about)
        return None

    def _voted(self, name: str, hint: Any) -> _Source | None:
        if self._spec.strategy.name == "rank":
            return _Source("ranking" if _is_list(hint) else "value")
        if self._spec.strategy.name not in VOTES:
            return self._from_field(name, name)
        voted = self._source.model_fields[name].annotation
        if not any(accepts(hint, part) for part in _parts(voted)):
            raise ConfigurationError(
                f"{self._at} {self._spec.into.__name__}.{name} ({shown(hint)}) can't hold what is voted about: "
                f"{self._source.__name__}.{name} is {shown(voted)}; make the types equal, or give mapping="
            )
        return _Source("value")

    def _from_field(self, name: str, taken: str) -> _Source | None:
        """Find how a field of the inputs fits one of the result: all of them in a list, or one value."""
        hint, offered = (
            self._spec.into.model_fields[name].annotation,
            self._source.model_fields[taken].annotation,
        )
        if self._spec.strategy.name in EXTREMES and accepts(hint, offered):
            return _Source("winner", taken)
        if accepts(hint, list[offered]) and _is_list(hint):  # type: ignore[valid-type]  # known at run time
            return _Source("each", taken)
        return _Source("same", taken) if accepts(hint, offered) and name == taken else None

    # -- making it ------------------------------------------------------------------------------

    def values(self, found: Aggregated) -> dict[str, Any] | None:
        """Return the values of the fields that have a source; None: there is no outcome to put into one.

        Raises:
            OutputContractError: Inputs disagree about a field of which the result has one.
        """
        made: dict[str, Any] = {}
        for name, source in self.sources.items():
            value = self._value(name, source, found)
            if value is None and source.kind in ("value", "winner") and not self._takes_none(name):
                return None
            made[name] = value
        return made

    def build(self, found: Aggregated) -> BaseModel | None:
        """Make the result; None: there is no outcome, and no place for none.

        Raises:
            OutputContractError: What was collected does not fit the result.
        """
        spec = self._spec
        function = spec.build or spec.strategy.function
        if function is not None:
            made: Any = spec.build(found) if spec.build is not None else function(found.inputs)
            if made is not None and not isinstance(made, BaseModel):
                raise OutputContractError(
                    f"{self._at} build= returned a {type(made).__name__} instead of a {spec.into.__name__}."
                )
            return made
        values = self.values(found)
        if values is None:
            return None
        try:
            return spec.into.model_validate({**values})
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_input=False))
            raise OutputContractError(
                f"{self._at} what was collected does not fit {spec.into.__name__}: {wrong}. Give build= or mapping=."
            ) from None

    def _value(self, name: str, source: _Source, found: Aggregated) -> Any:
        if source.function is not None:
            return source.function(found)
        if source.kind == "value":
            return found.value
        if source.kind == "ranking":
            return found.ranking
        if source.kind == "inputs":
            return found.inputs
        if source.kind == "each":
            return [getattr(model, source.name) for model in found.inputs]
        if source.kind == "winner":
            return None if found.winner is None else getattr(found.winner, source.name)
        if source.kind == "same":
            return self._shared(name, source.name, found.inputs)
        value = getattr(found, source.name)
        if source.name == "tally" and typing.get_args(self._spec.into.model_fields[name].annotation)[:1] == (
            str,
        ):
            return {key if isinstance(key, str) else _text(key): votes for key, votes in value.items()}
        return value

    def _shared(self, name: str, taken: str, inputs: Sequence[Any]) -> Any:
        first = getattr(inputs[0], taken)
        if all(getattr(model, taken) == first for model in inputs):
            return first
        if self._takes_none(name):
            return None
        raise OutputContractError(
            f"{self._at} {self._spec.into.__name__}.{name} is one value, but the inputs have different ones: group "
            f"them with by={taken!r}, make it a list, or give mapping= or build=."
        )

    def _takes_none(self, name: str) -> bool:
        return accepts(self._spec.into.model_fields[name].annotation, type(None))


def aggregated(
    spec: AggregateSpec,
    source: type[BaseModel],
    decision: Decision | None,
    models: Sequence[Any] = (),
    envelopes: Sequence[Envelope] = (),
) -> Aggregated:
    """Return what an aggregate decided as users see it. With inputs, breaks a tie with the user's function.

    Args:
        spec: What is declared.
        source: Type of the inputs.
        decision: What the board decided; None (a direct invocation, a redrive): it is decided here.
        models: The inputs; empty: only what needs none of them.
        envelopes: Of the inputs; used without a decision.
    """
    if decision is None:
        pairs = zip(models, envelopes, strict=True)
        decision = Tally(spec.rule(), (ballot_of(spec, m, e) for m, e in pairs)).decide("direct")
    read = _reader(spec, source)
    values = [read(choice) for choice in decision.choices]
    winners = [models[place] for place in decision.places if place < len(models)]
    tied = (winners or values) if decision.outcome == "tied" else []
    tally = {_key(read(choice)): _number(total) for choice, total in decision.tally}
    found = Aggregated(
        list(models), None, values if spec.strategy.name == "rank" else [], None, tied, tally, decision.ballots,
        decision.abstentions, decision.missing, decision.reason, _time(decision.from_us, decision),
        _time(decision.until_us, decision), decision.revision,
    )  # fmt: skip
    if decision.outcome == "none":
        return found
    chosen = (winners or values or [None])[0]
    if tied:
        chosen = spec.tie(found) if models and callable(spec.tie) else None
    return _with_outcome(found, spec, chosen)


def _with_outcome(found: Aggregated, spec: AggregateSpec, chosen: Any) -> Aggregated:
    from dataclasses import replace

    if spec.strategy.name in EXTREMES:
        return replace(found, winner=chosen)
    if spec.strategy.name == "rank" and found.tied:
        points = found.tally
        rest = sorted((c for c in points if c != chosen), key=lambda c: -points[c])
        return replace(found, value=chosen, ranking=[chosen, *rest])
    return replace(found, value=chosen)


def _reader(spec: AggregateSpec, source: type[BaseModel]) -> Callable[[bytes], Any]:
    """Return what turns a choice back into what the field of the inputs has: an enum, say."""
    if not isinstance(spec.field, str):
        return msgspec.json.decode
    hint: Any = source.model_fields[spec.field].annotation
    if spec.strategy.name == "rank":
        hint = next(iter(typing.get_args(hint)), Any)
    adapter = TypeAdapter(hint)

    def read(choice: bytes) -> Any:
        try:
            return adapter.validate_json(choice)
        except ValidationError:
            return msgspec.json.decode(choice)

    return read


_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))


def _parts(hint: Any) -> list[Any]:
    """Return the members of a union but None: a vote is never None."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts if parts and typing.get_origin(hint) not in (list, dict, tuple, set) else [hint]


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (list, tuple, set, frozenset):
        return True
    return any(_is_list(part) for part in typing.get_args(hint)) if origin is not dict else False


def _is_dict(hint: Any) -> bool:
    return (typing.get_origin(hint) or hint) is dict


def _key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return _text(value)
    return value


def _text(value: Any) -> str:
    from flock_ray.core.balloting import canonical

    return canonical(value).decode()


def _number(millionths: int) -> float:
    whole, rest = divmod(millionths, UNIT)
    return whole if not rest else millionths / UNIT


def _time(at_us: int, decision: Decision) -> datetime | None:
    return _EPOCH + timedelta(microseconds=at_us) if decision.until_us else None
