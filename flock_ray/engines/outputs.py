"""The contract of outputs: does what an agent returned fit what its `publishes()` declare?

Pure decisions over models; nothing here publishes or encodes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from flock_ray.core.definition import OutputSpec
from flock_ray.core.registry import to_json
from flock_ray.core.visibility import Visibility, narrow
from flock_ray.errors import OutputContractError

__all__ = [
    "Note",
    "Output",
    "OutputContract",
    "Returned",
    "bounded_notes",
    "flatten_returned",
    "resolve_visibility",
]

MAX_NOTES = 128
"""Most notes of one run that are kept."""
MAX_NOTE_CHARS = 1000

Note = tuple[str, str]
"""(kind, detail) for the event log."""

Pair = tuple[OutputSpec, BaseModel]


class Output(NamedTuple):
    """A model that will be published."""

    position: int
    """Among all outputs of the run, from 0, counted before `where` drops any: ids come from it."""
    spec: OutputSpec
    model: BaseModel


class Returned(NamedTuple):
    """What an engine returned, flattened."""

    models: Sequence[BaseModel]
    skipped: frozenset[int] = frozenset()
    """Indexes of declared outputs that stay away on purpose: `None` in their place of a tuple."""


class OutputContract:
    """The declared outputs that one call of an engine has to fill."""

    __slots__ = ("_agent", "_by_type", "_elsewhere", "_plain", "_single", "specs")

    def __init__(self, agent: str, specs: Iterable[OutputSpec], *, elsewhere: Iterable[type] = ()) -> None:
        """Prepare the contract.

        Args:
            agent: Name of the agent, for messages.
            specs: Declared outputs in order; a type may come more than once.
            elsewhere: Types that other calls for this agent fill: left out here, with a note.
        """
        self.specs = tuple(specs)
        self._agent = agent
        self._by_type: dict[type[BaseModel], list[int]] = {}
        for index, spec in enumerate(self.specs):
            self._by_type.setdefault(spec.type, []).append(index)
        self._elsewhere = frozenset(elsewhere) - frozenset(self._by_type)
        only = self.specs[0] if len(self.specs) == 1 else None
        self._single = only if only is not None and _bounds(only) == (1, 1) else None
        self._plain = not any(spec.where or spec.validate for spec in self.specs)

    def fill(
        self, models: Sequence[BaseModel], *, skipped: Collection[int] = (), first: int = 0
    ) -> tuple[list[Output], list[Note]]:
        """Give every model its declared output.

        Args:
            models: What was returned, in order.
            skipped: Indexes of declared outputs that need not be filled.
            first: Position of the first output of this call.

        Returns:
            Outputs in declared order, before `where`, and what the event log should know.

        Raises:
            OutputContractError: A type is not declared, or the number does not fit. Not retryable
                in itself, though a model may answer better another time.
        """
        if self._single is not None and len(models) == 1 and type(models[0]) is self._single.type:
            return [Output(first, self._single, models[0])], []
        notes: list[Note] = []
        found = self._sorted_by_type(models, notes)
        shares: list[list[BaseModel]] = [[] for _ in self.specs]
        for declared, indexes in self._by_type.items():
            active = [index for index in indexes if index not in skipped]
            self._share(found[declared], active, shares, notes, declared)
        pairs = [(spec, model) for spec, share in zip(self.specs, shares, strict=True) for model in share]
        return [Output(position, *pair) for position, pair in enumerate(pairs, first)], notes

    def accept(self, outputs: list[Output]) -> tuple[list[Output], list[Note]]:
        """Drop what `where` refuses, then check what `validate` demands of the rest.

        Raises:
            OutputContractError: A validation failed; the message is the declared one.
        """
        if self._plain:
            return outputs, []
        kept: list[Output] = []
        for output in outputs:
            spec, model = output.spec, output.model
            if spec.where is not None and not spec.where(model):
                continue
            for check, message in spec.validate:
                if not check(model):
                    raise OutputContractError(message or self._refused(spec), agent=self._agent)
            kept.append(output)
        dropped = len(outputs) - len(kept)
        return kept, [("output.filtered", f"where= dropped {dropped} of {len(outputs)}")] if dropped else []

    def _sorted_by_type(
        self, models: Sequence[BaseModel], notes: list[Note]
    ) -> dict[type[BaseModel], list[BaseModel]]:
        found: dict[type[BaseModel], list[BaseModel]] = {declared: [] for declared in self._by_type}
        for model in models:
            declared = _declared_type(model, found)
            if declared is not None:
                found[declared].append(_as_declared(model, declared))
            elif _declared_type(model, self._elsewhere) is not None:
                notes.append(("output.ignored", f"{_name(type(model))} belongs to another output group"))
            else:
                raise self._error(
                    f"returned a {_name(type(model))}, which it does not declare. {self._expectation(models)}"
                )
        return found

    def _share(
        self,
        models: list[BaseModel],
        active: list[int],
        shares: list[list[BaseModel]],
        notes: list[Note],
        declared: type[BaseModel],
    ) -> None:
        """Fill the outputs of one type in order: each its minimum, then ranges up to their maximum."""
        bounds = [_bounds(self.specs[index]) for index in active]
        surplus = len(models) - sum(low for low, _ in bounds)
        if surplus < 0:
            raise self._error(f"returned too few {_name(declared)}. {self._expectation(models)}")
        start = 0
        for index, (low, high) in zip(active, bounds, strict=True):
            extra = min(surplus, high - low)
            shares[index] = models[start : start + low + extra]
            start += low + extra
            surplus -= extra
        if surplus == 0:
            return
        if not any(self.specs[index].fan_out for index in active):
            raise self._error(f"returned too many {_name(declared)}. {self._expectation(models)}")
        notes.append(
            ("output.capped", f"{surplus} {_name(declared)} beyond the maximum of fan_out were dropped")
        )

    def _error(self, what: str) -> OutputContractError:
        return OutputContractError(f"Agent {self._agent!r} {what}", agent=self._agent)

    def _refused(self, spec: OutputSpec) -> str:
        return f"A {_name(spec.type)} of agent {self._agent!r} failed its validate=. Correct what it returns."

    def _expectation(self, got: Sequence[BaseModel]) -> str:
        """Say what was expected and got, and what to do."""
        counts: dict[str, int] = {}
        for model in got:
            counts[_name(type(model))] = counts.get(_name(type(model)), 0) + 1
        came = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        if not self.specs:
            return f"It declares no outputs, got {came}. Add .publishes(...) or return None."
        wanted = ", ".join(_wanted(spec) for spec in self.specs)
        advice = "Change publishes() (fan_out= for several of a type)"
        advice += ", or put None in the place of what stays away." if len(self.specs) > 1 else "."
        return f"Expected {wanted}; got {came}. {advice}"


def flatten_returned(value: object, agent: str, num_declared: int) -> Returned | None:
    """Turn the return value of a function into models.

    Args:
        value: A model, a list or iterator of models, a tuple of models, lists and None in declared
            order, or None.
        agent: Name of the agent, for messages.
        num_declared: How many outputs it declares.

    Returns:
        The models, or None when the function published nothing.

    Raises:
        OutputContractError: Something else was returned; the message says what to return instead.
    """
    if value is None:
        return None
    if isinstance(value, BaseModel):
        return Returned((value,))
    if isinstance(value, tuple):
        return _flatten_tuple(value, agent, num_declared)
    if isinstance(value, (list, Iterator)):
        return Returned([_checked(item, agent) for item in value])
    raise _not_a_model(value, agent)


def resolve_visibility(
    spec: OutputSpec, model: BaseModel, input_visibilities: Sequence[Visibility | None]
) -> Visibility:
    """Decide who may see an output.

    Args:
        spec: Its declaration.
        model: The output.
        input_visibilities: Of the inputs; None is public.

    Returns:
        The declared visibility, as it is or called with the model; without one, public when all
        inputs are, else no wider than any of them.

    Raises:
        OutputContractError: The declared function did not return a visibility.
    """
    declared = spec.visibility
    if declared is None:
        return narrow(*input_visibilities)
    if isinstance(declared, Visibility):
        return declared
    # Typed as a visibility, but it is user code: what it returns has to be looked at.
    made: object = declared(model)
    if isinstance(made, Visibility):
        return made
    raise OutputContractError(
        f"The function given as visibility= of {_name(spec.type)} returned a {type(made).__name__}: "
        "return a visibility in every case, for example PublicVisibility()."
    )


def bounded_notes(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Cut notes to what the event log takes of one run, saying how many are left out."""
    if not notes:
        return ()
    if len(notes) > MAX_NOTES:
        # What a guard has found must not be crowded out by the lines of an engine.
        notes = sorted(notes, key=lambda note: not note[0].startswith("guard."))
    kept = tuple((kind, detail[:MAX_NOTE_CHARS]) for kind, detail in notes[:MAX_NOTES])
    left_out = len(notes) - len(kept)
    return (*kept, ("notes.cut", f"{left_out} more notes")) if left_out else kept


def _flatten_tuple(value: tuple[object, ...], agent: str, num_declared: int) -> Returned:
    models: list[BaseModel] = []
    skipped: set[int] = set()
    for index, item in enumerate(value):
        if item is None and len(value) == num_declared:
            skipped.add(index)
        elif isinstance(item, (list, Iterator)):
            models.extend(_checked(inner, agent) for inner in item)
        else:
            models.append(_checked(item, agent))
    return Returned(models, frozenset(skipped))


def _checked(item: object, agent: str) -> BaseModel:
    if isinstance(item, BaseModel):
        return item
    raise _not_a_model(item, agent)


def _not_a_model(value: object, agent: str) -> OutputContractError:
    kind = _name(type(value))
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # or Python warns that it was never awaited
        advice = "it was not awaited: declare the function with `async def`, or await inside it"
    elif dataclasses.is_dataclass(value):
        advice = f"a dataclass has no schema: return a pydantic model (`class {kind}(BaseModel)`)"
    elif value is None:
        advice = "None may stand alone or in a tuple that has one place per declared output: leave it out"
    else:
        advice = "return a pydantic model of a declared type, a list or tuple of them, or None"
    return OutputContractError(f"Agent {agent!r} returned a {kind}; {advice}.", agent=agent)


def _bounds(spec: OutputSpec) -> tuple[int, int]:
    return (spec.count, spec.count) if spec.fan_out is None else (spec.fan_out.min, spec.fan_out.max)


def _wanted(spec: OutputSpec) -> str:
    low, high = _bounds(spec)
    return f"{low if low == high else f'{low} to {high}'} {_name(spec.type)}"


def _name(cls: type) -> str:
    return cls.__qualname__.rpartition("<locals>.")[2]


def _declared_type(model: BaseModel, declared: Collection[type[BaseModel]]) -> type[BaseModel] | None:
    for cls in type(model).__mro__:
        if cls in declared:
            return cls
    # A class that was shipped by value can exist twice in one process: same name, other object.
    return next((candidate for candidate in declared if _is_twin(type(model), candidate)), None)


def _is_twin(cls: type, other: type) -> bool:
    return cls.__qualname__ == other.__qualname__ and cls.__module__ == other.__module__


def _as_declared(model: BaseModel, declared: type[BaseModel]) -> BaseModel:
    """Rebuild a subclass instance as what was declared: subscriptions name the declared type."""
    if type(model) is declared:
        return model
    if not isinstance(model, declared):
        return declared.model_validate_json(to_json(model), by_alias=True, by_name=True)
    values = {name: getattr(model, name) for name in declared.model_fields}
    return declared.model_construct(model.model_fields_set & values.keys(), **values)
