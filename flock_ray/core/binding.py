"""How the inputs of an activation become the arguments of a plain Python engine."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from flock_ray.core.definition import Subscription


def bind_arguments(
    subscription: Subscription, models: Sequence[BaseModel], groups: tuple[int, ...] = ()
) -> tuple[Any, ...]:
    """Arrange the inputs of one activation as the positional arguments of its function.

    | kind of subscription | arguments (after `ctx`, if the function wants it) |
    |---|---|
    | single | the model |
    | and, join | per distinct type in declared order: the model, or a list for a count above 1 |
    | batch | one list of models in arrival order, also when it mixes several types |
    | aggregate | one list of models in arrival order |
    | join_batch | one list of tuples, each arranged like a join |

    Args:
        subscription: The subscription that the activation fired for.
        models: Its inputs, decoded, in the order of `Task.inputs`.
        groups: `Task.groups`: sizes of the join groups in `models`. Only used for join_batch.

    Raises:
        ValueError: The inputs do not fit the subscription, for example after a deploy that
            changed it. Not retryable: the same inputs never fit.
    """
    kind = subscription.kind
    if kind in ("batch", "aggregate"):
        return (list(models),)
    if kind != "join_batch":
        return _by_type(subscription, models)
    if sum(groups) != len(models):
        raise ValueError(
            f"{subscription.id}: groups of {list(groups)} inputs were announced, but {len(models)} came"
        )
    rows: list[tuple[Any, ...]] = []
    start = 0
    for size in groups:
        rows.append(_by_type(subscription, models[start : start + size]))
        start += size
    return (rows,)


def counts_of(subscription: Subscription) -> dict[type[BaseModel], int]:
    """Return the distinct types of a subscription in declared order, with how often each is declared."""
    counts: dict[type[BaseModel], int] = {}
    for model_type in subscription.types:
        counts[model_type] = counts.get(model_type, 0) + 1
    return counts


def wants_context(fn: Callable[..., Any]) -> bool:
    """Tell whether a function's first parameter is the context.

    True when it is named `ctx`, or annotated with a class named `Context` (an artifact type of
    that name does not count). Keyword-only parameters are never the context.
    """
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters or parameters[0].kind not in _POSITIONAL:
        return False
    first = parameters[0]
    return first.name == "ctx" or _is_context(resolved_hints(fn).get(first.name, first.annotation))


def resolved_hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a function that can be resolved; never raises.

    One hint that can't be resolved (a class local to a function under
    `from __future__ import annotations`) does not hide the others.
    """
    owner = _annotated(fn)
    try:
        return typing.get_type_hints(owner)
    except Exception:  # any expression can stand in an annotation, and so can any error
        pass
    hints: dict[str, Any] = {}
    for name, value in getattr(owner, "__annotations__", {}).items():
        hint = _resolve(value, owner)
        if hint is not _UNRESOLVED:
            hints[name] = hint
    return hints


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNRESOLVED = object()


def _by_type(subscription: Subscription, models: Sequence[BaseModel]) -> tuple[Any, ...]:
    """Give each declared type its models, whatever order they came in."""
    counts = counts_of(subscription)
    found: dict[type[BaseModel], list[BaseModel]] = {declared: [] for declared in counts}
    for model in models:
        found[_declared_type(subscription, model, found)].append(model)
    for declared, count in counts.items():
        if len(found[declared]) != count:
            raise ValueError(
                f"{subscription.id}: expected {count} {declared.__qualname__}, got {len(found[declared])}"
            )
    return tuple(found[t][0] if count == 1 else found[t] for t, count in counts.items())


def _declared_type(
    subscription: Subscription, model: BaseModel, declared: dict[type[BaseModel], list[BaseModel]]
) -> type[BaseModel]:
    actual = type(model)
    if actual in declared:
        return actual
    # A class that was shipped by value can exist twice in one process: same name, other object.
    for candidate in declared:
        if candidate.__qualname__ == actual.__qualname__ and candidate.__module__ == actual.__module__:
            return candidate
    names = ", ".join(t.__qualname__ for t in declared)
    raise ValueError(f"{subscription.id}: got a {actual.__qualname__}, but it consumes {names}")


def _annotated(fn: Callable[..., Any]) -> Any:
    """Find the object that carries the annotations: behind partials, or the `__call__` of an instance."""
    inner: Any = fn
    while hasattr(inner, "func") and callable(inner.func):
        inner = inner.func
    inner = inspect.unwrap(inner)
    if inspect.isroutine(inner) or inspect.isclass(inner):
        return inner
    return type(inner).__call__


def _resolve(value: Any, owner: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return eval(value, getattr(owner, "__globals__", {}))
    except Exception:
        return _UNRESOLVED


def _is_context(hint: Any) -> bool:
    if isinstance(hint, str):
        return hint.strip("\"' ").rpartition(".")[2] == "Context"
    if not isinstance(hint, type) or issubclass(hint, BaseModel):
        return False
    return any(base.__name__ == "Context" for base in hint.__mro__)
