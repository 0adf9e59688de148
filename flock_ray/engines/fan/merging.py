"""A fan-in as it is declared: from what the chunks delivered to one result."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from flock_ray.errors import ConfigurationError, OutputContractError

__all__ = ["FanIn", "FanInStrategy", "Gathered"]


class FanInStrategy(Enum):
    """How what the chunks delivered becomes one result."""

    MERGE = "merge"
    """`merge_fn(list)` once, with everything, in the order of the chunks."""
    COLLECT = "collect"
    """The list itself, in the only field of the result that takes it."""
    REDUCE = "reduce"
    """`merge_fn` on some at a time, and again on what came of it, in a tree over the workers: nobody holds everything.
    It has to be associative; the order of the chunks is kept."""
    FIRST_SUCCESS = "first_success"
    """The first that is delivered; the other chunks are withdrawn."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a `merge_fn` with a second parameter is told."""

    total: int
    """Chunks that there were."""
    missing: tuple[int, ...] = ()
    """Those that delivered nothing, by index."""
    partial: bool = False
    """What it returns is merged further, in a reduce."""


@dataclass(frozen=True, slots=True)
class FanIn:
    """One `.fan_in(...)`: the engine of its agent."""

    from_type: type[BaseModel]
    into: type[BaseModel]
    strategy: FanInStrategy
    merge_fn: Callable[..., Any] | None = None
    combine: Callable[..., Any] | None = None

    def __call__(self, inputs: list[Any]) -> Any:
        """Merge everything at once."""
        return self.merged(inputs, Gathered(len(inputs)))

    def merged(self, inputs: Sequence[BaseModel], about: Gathered, *, again: bool = False) -> Any:
        """Merge; a coroutine if the function is async.

        Args:
            inputs: What was delivered, or (again) what was merged of it.
            about: What there is to know.
            again: The inputs are results of former calls.
        """
        function = (self.combine or self.merge_fn) if again else self.merge_fn
        if function is not None:
            return function(list(inputs), about) if _wants_more(function) else function(list(inputs))
        if self.strategy is FanInStrategy.FIRST_SUCCESS:
            return inputs[0]
        return self.into(**{collecting_field(self): list(inputs)})

    def checked(self, made: Any, agent: str) -> BaseModel:
        """Return what was merged, if it is what was declared.

        Raises:
            OutputContractError: It is not.
        """
        if isinstance(made, self.into):
            return made
        if inspect.iscoroutine(made):
            made.close()
        raise OutputContractError(
            f"Agent {agent!r}: merge_fn returned a {type(made).__name__}; return a {self.into.__name__}.",
            agent=agent,
        )

    def functions(self) -> list[Callable[..., Any] | None]:
        """Return its user code, for the fingerprint of the agent."""
        return [self.merge_fn, self.combine]

    def digest(self) -> bytes:
        """Return the rest of it, for the same."""
        return repr((self.from_type.__qualname__, self.into.__qualname__, self.strategy.value)).encode()


def collecting_field(fan_in: FanIn) -> str:
    """Return the field of the result that takes what is collected.

    Raises:
        ConfigurationError: There is none, several, or another one is required.
    """
    into, from_type = fan_in.into, fan_in.from_type
    takers = [name for name, info in into.model_fields.items() if _takes(info.annotation, from_type)]
    others = [name for name, info in into.model_fields.items() if info.is_required() and name not in takers]
    if len(takers) == 1 and not others:
        return takers[0]
    why = (
        f"{into.__name__}.{others[0]} has no default" if others
        else f"{into.__name__} has {len(takers) or 'no'} fields of type list[{from_type.__name__}]"
    )  # fmt: skip
    raise ConfigurationError(
        f"{why}: give it one field list[{from_type.__name__}] and defaults for the rest, or say how it is made: "
        f"merge_fn=lambda chunks: {into.__name__}(...)"
    )


def _takes(annotation: Any, from_type: type[BaseModel]) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    return origin in (list, tuple, Sequence) and bool(arguments) and arguments[0] is from_type


def _wants_more(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 2
