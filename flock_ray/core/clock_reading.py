"""Whether a predicate reads the clock, as far as its code shows: what is true then may become true by waiting alone."""

from __future__ import annotations

import builtins
import dis
import inspect
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["clock_read_by"]

NAMES = frozenset({"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime"})
"""What functions that tell the time are called."""

DEPTH = 3
"""How far functions that a predicate calls are followed."""

_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_UNKNOWN = object()


def clock_read_by(predicate: Callable[..., Any]) -> str | None:
    """Return what a predicate calls to read the clock, such as `datetime.now`; None: nothing that is known to.

    Only Python code is looked into, that of functions it calls by name included; a field of a model that has such a
    name is no clock.
    """
    return next(_clocks(predicate, DEPTH), None)


def _clocks(given: object, depth: int) -> Iterator[str]:
    while isinstance(given, partial):
        given = given.func
    if not isinstance(given, (FunctionType, MethodType)) and callable(given):
        given = getattr(type(given), "__call__", None)  # noqa: B004  # not whether there is one: which one
    function = given.__func__ if isinstance(given, MethodType) else given
    if not isinstance(function, FunctionType):
        return
    known = _names_of(function)
    for code in _codes(function.__code__):
        for chain in _chains(code):
            found = _resolve(chain, known)
            if _is_clock(found, chain):
                yield ".".join(chain)
            elif depth > 1 and isinstance(found, FunctionType) and found is not function:
                yield from _clocks(found, depth - 1)


def _names_of(function: FunctionType) -> dict[str, Any]:
    try:
        nonlocals = inspect.getclosurevars(function).nonlocals
    except (ValueError, TypeError):  # a cell that is still empty
        nonlocals = {}
    return {**vars(builtins), **function.__globals__, **nonlocals}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Iterate over a function's code and what is nested in it: comprehensions, lambdas."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Iterate over names that are not local, with the attributes that are read of each: `("datetime", "now")`."""
    chain: list[str] = []
    for step in dis.get_instructions(code):
        if step.opname in _ATTRIBUTES and chain:
            chain.append(str(step.argval))
            continue
        if chain:
            yield tuple(chain)
        chain = [str(step.argval)] if step.opname in _GLOBALS else []
    if chain:
        yield tuple(chain)


def _resolve(chain: tuple[str, ...], known: dict[str, Any]) -> Any:
    found = known.get(chain[0], _UNKNOWN)
    for name in chain[1:]:
        if found is _UNKNOWN or not isinstance(found, (ModuleType, type)):
            return _UNKNOWN
        found = (
            inspect.getattr_static(found, name, _UNKNOWN)
            if isinstance(found, type)
            else getattr(found, name, _UNKNOWN)
        )
    return found


def _is_clock(found: Any, chain: tuple[str, ...]) -> bool:
    if chain[-1] not in NAMES:
        return False
    if found is _UNKNOWN:
        return chain != ("time",)
    return not isinstance(found, (ModuleType, type, date, datetime)) and callable(
        getattr(found, "__func__", found)
    )
