"""Conditions as data: `Until` for waits of the host, `When` for activations of a subscription.

A condition is a tree of leaves under `And`, `Or` and `Not`. Whoever holds the facts evaluates
it: the host through the `Facts` protocol, a shard through the plain form of `compile_when`,
which holds no user code. Predicates of fields run at the edge, where the models are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeAlias

from pydantic import BaseModel

from flock_ray.core.registry import type_registry
from flock_ray.core.when_tree import (
    FlagPredicate,
    Predicate,
    WhenSpec,
    WhenTree,
    compare_count,
    decode_when,
    encode_when,
    eval_when,
    field_holds,
    watched_types,
)
from flock_ray.errors import ConfigurationError

__all__ = [
    "And",
    "AnyField",
    "Condition",
    "Count",
    "Custom",
    "Facts",
    "FlagPredicate",
    "Idle",
    "NoPendingWork",
    "Not",
    "Or",
    "Until",
    "When",
    "WhenCount",
    "WhenField",
    "WhenSpec",
    "WhenTree",
    "WorkflowErrors",
    "as_condition",
    "bind_correlation",
    "compile_when",
    "decode_when",
    "encode_when",
    "eval_when",
    "evaluate",
    "leaves",
    "watched_types",
]

Op = Literal[">=", "<=", "=="]
ArtifactType: TypeAlias = type[BaseModel] | str
"""A model, or the name of a registered type."""

MAX_DEPTH: Final = 100
"""Deepest nesting of an activation; evaluation recurses."""


class Condition:
    """The base of every condition; combine with `&`, `|` and `~`."""

    __slots__ = ()

    def __and__(self, other: object) -> Condition:
        """Hold when both hold."""
        return And((*_parts(And, self), *_parts(And, as_condition(other))))

    def __rand__(self, other: object) -> Condition:
        """Hold when both hold."""
        return And((as_condition(other), *_parts(And, self)))

    def __or__(self, other: object) -> Condition:
        """Hold when either holds."""
        return Or((*_parts(Or, self), *_parts(Or, as_condition(other))))

    def __ror__(self, other: object) -> Condition:
        """Hold when either holds."""
        return Or((as_condition(other), *_parts(Or, self)))

    def __invert__(self) -> Condition:
        """Hold when this does not."""
        return Not(self)

    def __bool__(self) -> bool:
        """Refuse: `a and b` would silently be `b`."""
        raise ConfigurationError(
            "A condition has no truth value of its own: combine conditions with & | ~ instead of "
            "and/or/not, and compare with `is None`."
        )


@dataclass(frozen=True, slots=True)
class And(Condition):
    """Holds when every part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or(Condition):
    """Holds when any part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """Holds when its part does not."""

    part: Condition


@dataclass(frozen=True, slots=True)
class Idle(Condition):
    """Nothing runs and nothing is ready to run, on the whole board."""


@dataclass(frozen=True, slots=True)
class NoPendingWork(Condition):
    """As `Idle`, and nothing waits for a retry, a delay or a timer either."""


@dataclass(frozen=True, slots=True)
class Count(Condition):
    """Compares the number of artifacts of one type on the board."""

    type_name: str
    op: Op
    n: int
    correlation_id: str | None = None
    """None: of every workflow."""
    tags: frozenset[str] = frozenset()
    """All of these must be on the artifact."""
    produced_by: str | None = None
    """None: by anybody."""


@dataclass(frozen=True, slots=True)
class AnyField(Condition):
    """Some artifact of the type has a field whose value satisfies a predicate."""

    type_name: str
    field: str
    predicate: Predicate
    correlation_id: str | None = None
    """None: of every workflow."""

    def holds(self, model: object) -> bool:
        """Tell whether one model of the type satisfies the predicate; see `field_holds`."""
        return field_holds(model, self.field, self.predicate)


@dataclass(frozen=True, slots=True)
class WorkflowErrors(Condition):
    """Some WorkflowError was published."""

    correlation_id: str | None = None
    """None: in any workflow."""


@dataclass(frozen=True, slots=True)
class Custom(Condition):
    """A user's object with `async evaluate(flock) -> bool`; only a host can evaluate it."""

    target: Any


@dataclass(frozen=True, slots=True)
class WhenCount(Condition):
    """Compares the number of artifacts of one type in the workflow of the arriving artifact."""

    type_name: str
    op: Op
    n: int


@dataclass(frozen=True, slots=True)
class WhenField(Condition):
    """Some artifact of the type in the same workflow has a field that satisfies a predicate."""

    type_name: str
    field: str
    predicate: Predicate


class Facts(Protocol):
    """What a host knows, asked leaf by leaf."""

    def count(self, leaf: Count, /) -> int:
        """Return how many artifacts the leaf is about."""
        ...

    def idle(self) -> bool:
        """Tell whether the board is idle."""
        ...

    def flag(self, leaf: Condition, /) -> bool:
        """Tell whether any other leaf holds: NoPendingWork, AnyField, WorkflowErrors, Custom."""
        ...


@dataclass(frozen=True, slots=True)
class _UntilCount:
    """`Until.artifact_count(...)`, still without its number."""

    type_name: str
    correlation_id: str | None
    tags: frozenset[str]
    produced_by: str | None

    def at_least(self, n: int) -> Count:
        """Hold from `n` artifacts on."""
        return self._leaf(">=", n)

    def at_most(self, n: int) -> Count:
        """Hold up to `n` artifacts."""
        return self._leaf("<=", n)

    def exactly(self, n: int) -> Count:
        """Hold at `n` artifacts."""
        return self._leaf("==", n)

    def _leaf(self, op: Op, n: int) -> Count:
        _check_n(n)
        return Count(self.type_name, op, n, self.correlation_id, self.tags, self.produced_by)


class Until:
    """Conditions for `flock.run_until(...)`: they look at the whole board."""

    @staticmethod
    def idle() -> Idle:
        """Hold when nothing runs and nothing is ready to run."""
        return Idle()

    @staticmethod
    def no_pending_work() -> NoPendingWork:
        """Hold when, besides, nothing waits for a retry, a delay or a timer."""
        return NoPendingWork()

    @staticmethod
    def artifact_count(
        model: ArtifactType,
        *,
        correlation_id: str | None = None,
        tags: Collection[str] = (),
        produced_by: str | None = None,
    ) -> _UntilCount:
        """Count artifacts; continue with `.at_least(n)`, `.at_most(n)` or `.exactly(n)`."""
        return _UntilCount(_type_name(model), correlation_id, _tags(tags), produced_by)

    @staticmethod
    def exists(
        model: ArtifactType, *, correlation_id: str | None = None, tags: Collection[str] = ()
    ) -> Count:
        """Hold when there is at least one."""
        return Count(_type_name(model), ">=", 1, correlation_id, _tags(tags))

    @staticmethod
    def none(model: ArtifactType, *, correlation_id: str | None = None) -> Count:
        """Hold while there is none."""
        return Count(_type_name(model), "==", 0, correlation_id)

    @staticmethod
    def any_field(
        model: ArtifactType, *, field: str, predicate: Predicate, correlation_id: str | None = None
    ) -> AnyField:
        """Hold when a field of any artifact, dotted for nested ones, satisfies the predicate.

        Raises:
            ConfigurationError: The model has no such field, or the predicate is not callable.
        """
        _check_field(model, field, predicate)
        return AnyField(_type_name(model), field, predicate, correlation_id)

    @staticmethod
    def workflow_error(correlation_id: str | None = None) -> WorkflowErrors:
        """Hold when an agent failed for good."""
        return WorkflowErrors(correlation_id)


@dataclass(frozen=True, slots=True)
class _WhenModel:
    """`When.correlation(Model)`, still without its condition."""

    model: ArtifactType

    def count_at_least(self, n: int) -> WhenCount:
        """Hold from `n` artifacts on."""
        return self._count(">=", n)

    def count_at_most(self, n: int) -> WhenCount:
        """Hold up to `n` artifacts."""
        return self._count("<=", n)

    def exactly(self, n: int) -> WhenCount:
        """Hold at `n` artifacts."""
        return self._count("==", n)

    def count_exactly(self, n: int) -> WhenCount:
        """Hold at `n` artifacts."""
        return self._count("==", n)

    def exists(self) -> WhenCount:
        """Hold when there is at least one."""
        return self._count(">=", 1)

    def any_field(self, *, field: str, predicate: Predicate) -> WhenField:
        """Hold when a field of any artifact, dotted for nested ones, satisfies the predicate.

        Raises:
            ConfigurationError: The model has no such field, or the predicate is not callable.
        """
        _check_field(self.model, field, predicate)
        return WhenField(_type_name(self.model), field, predicate)

    def _count(self, op: Op, n: int) -> WhenCount:
        _check_n(n)
        return WhenCount(_type_name(self.model), op, n)


class When:
    """Conditions for `consumes(activation=...)`: they look at the artifact's own workflow."""

    @staticmethod
    def correlation(model: ArtifactType) -> _WhenModel:
        """Start a condition on the artifacts of one type in the same workflow."""
        return _WhenModel(model)


def as_condition(value: object) -> Condition:
    """Return a condition as it is, and wrap an object with `async evaluate(flock)`.

    Raises:
        ConfigurationError: Neither.
    """
    if isinstance(value, Condition):
        return value
    if callable(getattr(value, "evaluate", None)):
        return Custom(value)
    raise ConfigurationError(
        f"{value!r} is no condition: use Until... or When..., finished with .at_least(n) or the like, "
        "or an object with `async evaluate(flock)`."
    )


def evaluate(condition: Condition, facts: Facts) -> bool:
    """Tell whether a condition holds; stops at the first part that decides.

    Raises:
        ConfigurationError: A `When` leaf: bind it to a workflow first (`bind_correlation`).
    """
    match condition:
        case And(parts):
            return all(evaluate(part, facts) for part in parts)
        case Or(parts):
            return any(evaluate(part, facts) for part in parts)
        case Not(part):
            return not evaluate(part, facts)
        case Idle():
            return facts.idle()
        case Count():
            return compare_count(facts.count(condition), condition.op, condition.n)
        case WhenCount() | WhenField():
            raise ConfigurationError(
                "A When condition is about one workflow, and this wait is about the board: use Until, "
                "or bind_correlation(condition, correlation_id)."
            )
        case _:
            return facts.flag(condition)


def leaves(condition: Condition) -> Iterator[Condition]:
    """Yield the leaves from left to right, repeated ones repeatedly."""
    match condition:
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part)
        case Not(part):
            yield from leaves(part)
        case _:
            yield condition


def bind_correlation(condition: Condition, correlation_id: str, *, strict: bool = False) -> Condition:
    """Make a condition look at one workflow.

    Leaves without a workflow get this one, `When` leaves included; leaves that name one keep it.

    Args:
        condition: Any condition.
        correlation_id: The workflow.
        strict: Refuse what then still looks beyond the workflow.

    Raises:
        ConfigurationError: Only when strict: a leaf names another workflow, looks at the whole
            board (idle, no_pending_work), or is a user's own object.
    """
    match condition:
        case And(parts):
            return And(tuple(bind_correlation(part, correlation_id, strict=strict) for part in parts))
        case Or(parts):
            return Or(tuple(bind_correlation(part, correlation_id, strict=strict) for part in parts))
        case Not(part):
            return Not(bind_correlation(part, correlation_id, strict=strict))
        case WhenCount(type_name, op, n):
            return Count(type_name, op, n, correlation_id)
        case WhenField(type_name, field, predicate):
            return AnyField(type_name, field, predicate, correlation_id)
        case Count() | AnyField() | WorkflowErrors():
            if condition.correlation_id is None:
                return replace(condition, correlation_id=correlation_id)
            if strict and condition.correlation_id != correlation_id:
                raise ConfigurationError(
                    f"{condition!r} looks at another workflow than {correlation_id!r}: leave its "
                    "correlation_id out."
                )
            return condition
        case _:
            if strict:
                raise ConfigurationError(
                    f"{condition!r} cannot be limited to workflow {correlation_id!r}: use counts, "
                    "fields or workflow_error instead."
                )
            return condition


def compile_when(condition: Condition) -> WhenSpec:
    """Split an activation condition into plain data and the predicates of its fields.

    Raises:
        ConfigurationError: A leaf is not from `When`, or the nesting is deeper than 100.
    """
    predicates: list[FlagPredicate] = []
    return WhenSpec(_tree(condition, predicates, 0), tuple(predicates))


def _tree(condition: Condition, predicates: list[FlagPredicate], depth: int) -> tuple[Any, ...]:
    if depth > MAX_DEPTH:
        raise ConfigurationError(
            f"The activation is nested deeper than {MAX_DEPTH}: split the subscription in two."
        )
    match condition:
        case And(parts):
            return ("and", *(_tree(part, predicates, depth + 1) for part in parts))
        case Or(parts):
            return ("or", *(_tree(part, predicates, depth + 1) for part in parts))
        case Not(part):
            return ("not", _tree(part, predicates, depth + 1))
        case WhenCount(type_name, op, n):
            return ("count", type_name, op, n)
        case WhenField(type_name, field, predicate):
            predicates.append(FlagPredicate(type_name, field, predicate))
            return ("flag", len(predicates) - 1, type_name)
        case _:
            raise ConfigurationError(
                f"{condition!r} cannot be an activation, which looks at the artifact's own workflow: "
                "use When.correlation(Model)..."
            )


def _parts(kind: type[And] | type[Or], condition: Condition) -> tuple[Condition, ...]:
    """Return the parts to join, so that a long chain of one operator stays flat."""
    return condition.parts if isinstance(condition, kind) else (condition,)


def _type_name(model: ArtifactType) -> str:
    return model if isinstance(model, str) else type_registry.ensure(model).name


def _tags(tags: Collection[str]) -> frozenset[str]:
    return frozenset({tags} if isinstance(tags, str) else tags)


def _check_n(n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ConfigurationError(f"A condition compares with {n!r}: give a whole number from 0.")


def _check_field(model: ArtifactType, field: str, predicate: object) -> None:
    if not callable(predicate):
        raise ConfigurationError(f"predicate={predicate!r} is not callable: give a function of one value.")
    first = field.split(".", 1)[0]
    if not all(field.split(".")):
        raise ConfigurationError(f"field={field!r} is no path: write a field's name, or outer.inner.")
    if not isinstance(model, str) and first not in model.model_fields and not hasattr(model, first):
        known = ", ".join(model.model_fields) or "none"
        raise ConfigurationError(
            f"{model.__qualname__} has no field {first!r}: use one of its own ({known})."
        )
