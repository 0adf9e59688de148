"""Does a plain Python engine fit what its agent consumes and publishes?

Read from the type hints, when the program declares the agent. What has no hint, or a hint
that can't be resolved, is not checked: only a hint that is certainly wrong is an error.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.core.binding import counts_of, resolved_hints, wants_context
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import OutputGroup, Subscription

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NEVER_AN_OUTPUT = (bool, bytes, complex, dict, float, frozenset, int, set, str)
_UNIONS = (typing.Union, types.UnionType)


def expected_arguments(subscription: Subscription) -> tuple[Any, ...]:
    """Return the type of each argument that `bind_arguments` gives, as type expressions."""
    counts = counts_of(subscription)
    each = tuple(declared if count == 1 else list[declared] for declared, count in counts.items())  # type: ignore[valid-type]  # built at run time
    if subscription.kind in ("batch", "fan_in", "aggregate"):
        return (list[functools.reduce(operator.or_, counts)],)  # type: ignore[misc]  # built at run time
    if subscription.kind == "join_batch":
        return (list[tuple[each]],)  # type: ignore[valid-type]  # built at run time
    return each


def check_function(agent: str, fn: Callable[..., Any]) -> None:
    """Refuse functions that no subscription could call.

    Raises:
        ConfigurationError: The function has no parameter for its input.
    """
    parameters = _parameters(fn)
    if parameters is not None and not parameters:
        raise ConfigurationError(
            f"agent {agent!r}: {_name(fn)} has no parameter for its input; "
            f"declare one per consumed type: def {_name(fn)}(order: Order)"
        )


def check_arguments(agent: str, fn: Callable[..., Any], subscription: Subscription) -> None:
    """Check that a function can be called with the inputs of a subscription.

    Raises:
        ConfigurationError: It takes another number of arguments, or a parameter's hint does not
            accept what it will be given.
    """
    parameters = _parameters(fn)
    if parameters is None:
        return
    expected = expected_arguments(subscription)
    _check_arity(agent, fn, parameters, expected)
    hints = resolved_hints(fn)
    for parameter, want in zip(_spread(parameters, len(expected)), expected, strict=False):
        if parameter.name in hints and not _accepts(hints[parameter.name], want):
            raise ConfigurationError(
                f"agent {agent!r}: parameter {parameter.name!r} of {_name(fn)} is annotated "
                f"{_show(hints[parameter.name])}, but {_consumes(subscription)} gives it {_show(want)}; "
                f"annotate it {parameter.name}: {_show(want)}, or change consumes()"
            )


def check_returns(agent: str, fn: Callable[..., Any], groups: Sequence[OutputGroup]) -> None:
    """Check that everything a function says it returns is declared by publishes().

    Raises:
        ConfigurationError: The return hint has a type that is not published, is None although
            something is published, or is a tuple in another order than declared.
    """
    hint = resolved_hints(fn).get("return", Any)
    declared = [output.type for group in groups for output in group.outputs]
    published = f"publishes({', '.join(_show(t) for t in declared)})" if declared else "it publishes nothing"
    if hint is type(None) and declared:
        raise ConfigurationError(
            f"agent {agent!r}: {_name(fn)} returns None, but the agent declares {published}; "
            f"annotate it `-> {_show(declared[0])} | None`, or remove publishes()"
        )
    about = f"agent {agent!r}: the return of {_name(fn)} is annotated {_show(hint)}"
    for leaf in _leaves(hint):
        if not issubclass(leaf, BaseModel):
            if leaf in _NEVER_AN_OUTPUT:
                raise ConfigurationError(
                    f"{about}, but an agent returns models of the types it declares ({published}), "
                    "a list or tuple of them, or None; wrap the value in a model"
                )
        elif not _is_own_result(leaf) and not any(_fits(m, leaf) or _fits(leaf, m) for m in declared):
            raise ConfigurationError(
                f"{about}, but {_show(leaf)} is not declared ({published}); "
                f"add .publishes({_show(leaf)}) before .runs(), or change the annotation"
            )
    _check_tuple_order(agent, fn, hint, declared)


def may_return_nothing(fn: Callable[..., Any]) -> bool:
    """Tell whether the return hint of a function admits None."""
    hint = resolved_hints(fn).get("return")
    return hint is type(None) or (typing.get_origin(hint) in _UNIONS and type(None) in typing.get_args(hint))


def _check_arity(
    agent: str, fn: Callable[..., Any], parameters: list[inspect.Parameter], expected: tuple[Any, ...]
) -> None:
    empty = inspect.Parameter.empty
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    required = sum(p.default is empty for p in positional)
    starred = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    unfilled = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is empty]
    if unfilled:
        raise ConfigurationError(
            f"agent {agent!r}: nothing fills the keyword-only parameter {unfilled[0]!r} of {_name(fn)}; "
            "give it a default, or bind it with functools.partial"
        )
    if required <= len(expected) and (starred or len(expected) <= len(positional)):
        return
    gets = ", ".join(_show(want) for want in expected)
    raise ConfigurationError(
        f"agent {agent!r}: {_name(fn)} takes {len(positional)} argument(s) "
        f"({', '.join(p.name for p in positional)}), but it will be called with {len(expected)}: ({gets}); "
        "change its parameters or consumes()"
    )


def _check_tuple_order(
    agent: str, fn: Callable[..., Any], hint: Any, declared: list[type[BaseModel]]
) -> None:
    if typing.get_origin(hint) is not tuple or Ellipsis in typing.get_args(hint):
        return
    positions: list[int] = []
    for element in typing.get_args(hint):
        models = [leaf for leaf in _leaves(element) if leaf in declared]
        if len(models) != 1:
            return
        positions.append(declared.index(models[0]))
    if positions != sorted(positions):
        wanted = ", ".join(_show(declared[position]) for position in sorted(positions))
        raise ConfigurationError(
            f"agent {agent!r}: {_name(fn)} returns {_show(hint)}, but a tuple has the order of publishes(): "
            f"tuple[{wanted}]; change one of the two"
        )


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters after the context; None when Python can't tell (some built-ins)."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return None
    after_context = parameters[1:] if wants_context(fn) else parameters
    inputs = [p for p in after_context if p.kind in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL)]
    return after_context if inputs else []


def _spread(parameters: list[inspect.Parameter], count: int) -> list[inspect.Parameter]:
    """Return the parameter that receives each of `count` positional arguments."""
    spread = [p for p in parameters if p.kind in _POSITIONAL]
    starred = [p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return spread + starred * max(0, count - len(spread))


def _accepts(hint: Any, want: Any) -> bool:
    """Tell whether a value of type `want` may be passed where `hint` stands; True when in doubt."""
    hint = _unwrapped(hint)
    if hint is Any:
        return True
    if typing.get_origin(want) in _UNIONS:
        return all(_accepts(hint, member) for member in typing.get_args(want))
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return any(_accepts(member, want) for member in typing.get_args(hint))
    container = typing.get_origin(want)
    actual = container or want
    if isinstance(hint, type) and origin is None:
        return getattr(hint, "_is_protocol", False) or _fits(actual, hint)
    if not isinstance(origin, type):
        return origin is None  # Any, TypeVar and what is not known here; but no Literal
    if not issubclass(actual, origin):
        return False
    return container is None or _elements_accept(origin, typing.get_args(hint), want)


def accepts(hint: Any, want: Any) -> bool:
    """Tell whether a value of one type may stand where a type hint asks for another; True when in doubt."""
    return _accepts(hint, want)


def shown(hint: Any) -> str:
    """Write a type as a user would."""
    return _show(hint)


def _fits(cls: type, base: type) -> bool:
    """Tell whether a class, or the other definition of it in a rerun notebook cell, is a `base`."""
    return issubclass(cls, base) or any(
        (parent.__qualname__, parent.__module__) == (base.__qualname__, base.__module__)
        for parent in cls.__mro__
    )


def _is_own_result(leaf: type) -> bool:
    """Tell whether a return type is ours (EvalResult): it may hold outputs of any type."""
    return leaf.__module__.partition(".")[0] == "flock_ray"


def _elements_accept(origin: type, given: tuple[Any, ...], want: Any) -> bool:
    members = typing.get_args(want)
    if not given:
        return True
    if origin is not tuple:
        return all(_accepts(given[0], member) for member in members)
    if len(given) == 2 and given[1] is Ellipsis:
        return all(_accepts(given[0], member) for member in members)
    return len(given) == len(members) and all(map(_accepts, given, members))


def _leaves(hint: Any) -> Iterator[type]:
    """Yield the classes that stand in a return hint, but not None, object or containers."""
    hint = _unwrapped(hint)
    if typing.get_origin(hint) is not None:
        for argument in typing.get_args(hint):
            yield from _leaves(argument)
    elif isinstance(hint, type) and hint not in (object, type(None), list, tuple):
        yield hint


def classes_of(hint: Any) -> list[type]:
    """Return the classes that stand in a return hint, but not None, object or containers."""
    return list(_leaves(hint))


def _unwrapped(hint: Any) -> Any:
    """Remove Annotated, NewType and type aliases."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":  # Python 3.12 and later
            hint = hint.__value__
        else:
            return hint


def _show(hint: Any) -> str:
    """Write a type as a user would."""
    if hint is type(None):
        return "None"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " | ".join(_show(argument) for argument in arguments)
    if origin is not None and arguments:
        name = getattr(origin, "__name__", str(origin))
        return f"{name}[{', '.join(_show(a) for a in arguments)}]"
    return "..." if hint is Ellipsis else str(getattr(hint, "__name__", hint))


def _name(fn: Callable[..., Any]) -> str:
    inner: Any = fn
    while hasattr(inner, "func") and callable(inner.func):
        inner = inner.func
    return str(getattr(inner, "__name__", type(inner).__name__))


def _consumes(subscription: Subscription) -> str:
    options = {
        "single": "",
        "and": "",
        "join": ", join=...",
        "batch": ", batch=...",
        "join_batch": ", join=..., batch=...",
    }
    if subscription.kind == "aggregate":
        return f"aggregates({subscription.types[0].__name__})"
    return f"consumes({', '.join(t.__name__ for t in subscription.types)}{options[subscription.kind]})"
