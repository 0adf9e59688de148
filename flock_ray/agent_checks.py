"""The checks behind `AgentBuilder`: turn what a user wrote into values of the definition.

Every function takes `at`, the words that start its error message ("agent 'x': consumes()"),
and raises `ConfigurationError` with what to write instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import Any, cast

from pydantic import BaseModel

from flock_ray.core.conditions import Condition, as_condition, compile_when
from flock_ray.core.definition import AgentDefinition, OutputSpec, PoolSpec
from flock_ray.core.flow import OUTSIDE
from flock_ray.core.specs import BatchSpec, FanOutRange, FanOutSpec, JoinSpec, normalize_fan_out
from flock_ray.core.visibility import Visibility
from flock_ray.engines.wiring import is_for_model
from flock_ray.errors import ConfigurationError

MAX_REEVALUATE = timedelta(days=366)


def agent_name(name: object) -> str:
    """Return a name that ids can be built from."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"an agent needs a name, got {name!r}; write flock.agent('translator')")
    if "/" in name or not name.isprintable():
        raise ConfigurationError(
            f"the agent name {name!r} has a slash or a control character; use letters, digits, '_' and '-'"
        )
    if name == OUTSIDE:
        raise ConfigurationError(
            f"{OUTSIDE!r} is the producer of everything from outside the flock; choose another agent name"
        )
    return name


def model_types(types: tuple[object, ...], at: str) -> tuple[type[BaseModel], ...]:
    """Return at least one artifact type."""
    if not types:
        raise ConfigurationError(f"{at} needs at least one type; write consumes(Order) or publishes(Order)")
    checked: list[type[BaseModel]] = []
    for given in types:
        if not isinstance(given, type) or not issubclass(given, BaseModel) or given is BaseModel:
            raise ConfigurationError(
                f"{at} takes classes derived from pydantic.BaseModel, got {given!r}"
                + ("; pass its class" if isinstance(given, BaseModel) else "")
            )
        checked.append(given)
    return tuple(checked)


def text(value: object, what: str, at: str) -> str:
    """Return text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{at} takes {what} as text, got {value!r}")
    return value


def activation(given: object, at: str) -> Condition | None:
    """Return a condition that a subscription can wait for."""
    if given is None:
        return None
    try:
        condition = as_condition(given)
        compile_when(condition)
    except ConfigurationError as error:
        raise ConfigurationError(f"{at} {error}") from None
    return condition


def names(given: object, parameter: str, at: str) -> frozenset[str]:
    """Return a set of names; None is none at all."""
    if given is None:
        return frozenset()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{at} {parameter} must be a list or set of names: {parameter}=[{given!r}]")
    checked = frozenset(given)
    if not checked or not all(isinstance(name, str) and name for name in checked):
        raise ConfigurationError(
            f"{at} {parameter} must hold names, got {given!r}; leave {parameter} out for no condition"
        )
    return checked


def predicates(given: object, at: str) -> tuple[Callable[[Any], bool], ...]:
    """Return the predicates of `where`: none, one, or a list of them."""
    if given is None:
        return ()
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for predicate in several:
        if not callable(predicate):
            raise ConfigurationError(
                f"{at} where must be a function of the model, or a list of them, got {predicate!r}; "
                "write where=lambda order: order.total > 100"
            )
    return tuple(several)


def reevaluation(given: object, where: object, mode: str, delivery: str, at: str) -> int:
    """Return how often a `where` is asked again, in microseconds; 0 for never."""
    if given is None:
        return 0
    if not isinstance(given, timedelta) or not timedelta(milliseconds=1) <= given <= MAX_REEVALUATE:
        raise ConfigurationError(
            f"{at} reevaluate must be a timedelta from a millisecond to a year, got {given!r}; "
            "write reevaluate=timedelta(hours=1)"
        )
    if not where:
        raise ConfigurationError(f"{at} reevaluate asks where= again: give where=, or leave reevaluate out")
    if mode == "direct":
        raise ConfigurationError(f'{at} mode="direct" takes nothing from the board; leave reevaluate out')
    if delivery == "exclusive":
        raise ConfigurationError(
            f'{at} with delivery="exclusive" it is decided once who gets an artifact; leave reevaluate out'
        )
    return given // timedelta(microseconds=1)


def choice(value: Any, allowed: tuple[str | None, ...], parameter: str, at: str) -> Any:
    """Return the value if it is one of the allowed ones."""
    if value not in allowed:
        listed = ", ".join(repr(option) for option in allowed)
        raise ConfigurationError(f"{at} {parameter} must be one of {listed}, got {value!r}")
    return value


def whole_number(value: object, parameter: str, at: str, *, low: int | None = 1) -> int:
    """Return an integer of at least `low`; None is no limit."""
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        limit = "" if low is None else f" of at least {low}"
        raise ConfigurationError(f"{at} {parameter} must be a whole number{limit}, got {value!r}")
    return value


def duration_s(value: object, parameter: str, at: str, *, zero: bool = False) -> float:
    """Return a timedelta in seconds; more than zero unless `zero` is allowed."""
    if not isinstance(value, timedelta):
        raise ConfigurationError(
            f"{at} {parameter} must be a timedelta, got {value!r}; write timedelta(seconds=30)"
        )
    if value < timedelta(0) or (value == timedelta(0) and not zero):
        raise ConfigurationError(f"{at} {parameter} must be longer than nothing, got {value}")
    return value.total_seconds()


def function(value: object, what: str, at: str) -> Any:
    """Return the value if it can be called."""
    if not callable(value):
        raise ConfigurationError(f"{at} needs {what}, got {value!r}")
    return value


def join_spec(
    given: JoinSpec | Mapping[str, Any] | None, types: Sequence[object], at: str
) -> JoinSpec | None:
    """Return the join of a subscription to these types, from a spec or its dict form."""
    if given is None:
        return None
    if len(types) < 2:
        raise ConfigurationError(
            f"{at} join matches several artifacts by a key; name all their types, as in "
            "consumes(Order, Payment, join=...)"
        )
    try:
        return JoinSpec.coerce(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{at} {error}") from None


def batch_spec(given: BatchSpec | Mapping[str, Any] | None, at: str) -> BatchSpec | None:
    """Return the batch of a subscription, from a spec or its dict form."""
    try:
        return None if given is None else BatchSpec.coerce(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{at} {error}") from None


def output_specs(
    types: tuple[type[BaseModel], ...],
    *,
    fan_out: FanOutSpec | None,
    where: object,
    validate: object,
    visibility: object,
    description: str | None,
    at: str,
) -> tuple[OutputSpec, ...]:
    """Return one spec per distinct type of a `publishes(...)`, in declared order."""
    counts: dict[type[BaseModel], int] = {}
    for declared in types:
        counts[declared] = counts.get(declared, 0) + 1
    exact, spread = _fan_out(fan_out, at)
    repeated = [declared.__name__ for declared, count in counts.items() if count > 1]
    if repeated and fan_out is not None:
        raise ConfigurationError(
            f"{at} says twice how many {repeated[0]} there are: name the type once, or leave fan_out out"
        )
    if where is not None:
        function(where, "where to be a function of one output model", at)
    return tuple(
        OutputSpec(
            type=declared,
            count=count if exact is None else exact,
            fan_out=spread,
            where=where,  # type: ignore[arg-type]  # callable, checked above
            validate=_validators(validate, declared, at),
            visibility=visibility_or_function(visibility, at),
            description=description,
        )
        for declared, count in counts.items()
    )


def engines(definition: AgentDefinition) -> None:
    """Let the engines of an agent check what they will be asked for, also the one it gets by default."""
    chosen: list[Any] = list(definition.engines)
    if is_for_model(definition):
        from flock_ray.engines.llm import LiteLLMEngine

        chosen = [LiteLLMEngine()]
    for engine in chosen:
        check = getattr(engine, "check_agent", None)
        if check is not None:
            check(definition)


def visibility_or_function(value: Any, at: str) -> Any:
    """Return a visibility, a function that gives one, or None."""
    if value is None or isinstance(value, Visibility) or (callable(value) and not isinstance(value, type)):
        return value
    raise ConfigurationError(
        f"{at} visibility must be a Visibility or a function of the model that returns one, got {value!r}"
        + (f"; write {value.__name__}(...)" if isinstance(value, type) else "")
    )


def pool_spec(
    *,
    min: int,
    max: int | None,
    num_cpus: float,
    num_gpus: float,
    resources: Mapping[str, float] | None,
    idle_timeout: timedelta,
    at: str,
) -> PoolSpec:
    """Return the checked pool of an agent."""
    whole_number(min, "min", at, low=0)
    if max is not None and whole_number(max, "max", at) < min:
        raise ConfigurationError(f"{at} max={max} is less than min={min}; raise max or leave it out")
    amounts: dict[str, object] = {"num_cpus": num_cpus, "num_gpus": num_gpus, **(resources or {})}
    for resource, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < 1e9:
            raise ConfigurationError(f"{at} {resource} must be a number from 0, got {amount!r}")
    for reserved in ("CPU", "GPU"):
        if reserved in amounts:
            raise ConfigurationError(f"{at} pass num_{reserved.lower()}s= instead of resources[{reserved!r}]")
    return PoolSpec(
        min=min,
        max=max,
        num_cpus=float(num_cpus),
        num_gpus=float(num_gpus),
        resources=tuple(sorted((key, float(value)) for key, value in (resources or {}).items())),
        idle_timeout_s=duration_s(idle_timeout, "idle_timeout", at, zero=True),
    )


_MARKS = ("join", "batch", "aggregate")


def subscription_id(
    agent: str, type_names: Sequence[str], options: Mapping[str, object], *, taken: set[str]
) -> str:
    """Name a subscription by its shape, the same in every deploy.

    Two of the same shape in one agent are told apart by their order among themselves.

    Args:
        agent: Name of the agent.
        type_names: Registered names, repeated for counts; their order does not matter, so that
            `consumes(A, B)` and `consumes(B, A)` keep each other's waiting inputs.
        options: What tells subscriptions apart, defaults left out: `join`, `batch` and `aggregate` are
            marks, the rest (JSON values) is hashed. An option added in a later release leaves old ids alone.
        taken: The ids that the agent has already.
    """
    marks = [mark for mark in _MARKS if options.get(mark)]
    rest = {key: value for key, value in options.items() if key not in _MARKS}
    if rest:
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        marks.append(blake2b(text.encode(), digest_size=4).hexdigest())
    shape = f"{agent}/" + "~".join(["+".join(sorted(type_names)), *marks])
    unique, number = shape, 1
    while unique in taken:
        number += 1
        unique = f"{shape}#{number}"
    return unique


def named_subscription_id(agent: str, name: object, *, taken: set[str], at: str) -> str:
    """Name a subscription as its user did; a name is used once per agent."""
    if not isinstance(name, str) or not name.strip() or "/" in name or not name.isprintable():
        raise ConfigurationError(f"{at} name must be text without '/', got {name!r}")
    unique = f"{agent}/{name}"
    if unique in taken:
        raise ConfigurationError(f"{at} another subscription is named {name!r}; choose another name")
    return unique


def _fan_out(given: FanOutSpec | None, at: str) -> tuple[int | None, FanOutRange | None]:
    """Return (exact count, range): one of them, or neither."""
    try:
        spread = normalize_fan_out(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{at} {error}") from None
    if isinstance(given, int):
        return given, None
    return None, spread


def _validators(
    given: Any, declared: type[BaseModel], at: str
) -> tuple[tuple[Callable[[Any], bool], str], ...]:
    if given is None:
        return ()
    if callable(given):
        label = getattr(given, "__name__", "<lambda>")
        predicate = cast("Callable[[Any], bool]", given)
        return ((predicate, f"{declared.__name__} failed validation ({label})"),)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigurationError(
            f"{at} validate must be a function of the model or a list of (function, message), got {given!r}"
        )
    for pair in given:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0]) and isinstance(pair[1], str)
        ):
            raise ConfigurationError(f"{at} validate must hold pairs (function, message), got {pair!r}")
    return tuple(given)
