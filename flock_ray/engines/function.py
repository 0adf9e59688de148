"""The call plan of `.runs(fn)`: from the inputs of a run to one call, and from its value to models."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.core.binding import bind_arguments, wants_context
from flock_ray.engines.component import EvalResult
from flock_ray.engines.outputs import Returned, flatten_returned
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import Subscription
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.engines.context import Context

__all__ = ["FunctionCall", "is_async_callable", "refuse_awaitable"]


class FunctionCall:
    """How the function of one agent is called."""

    __slots__ = ("_agent", "_num_declared", "_offload", "_registry", "function", "is_async", "wants_context")

    def __init__(
        self,
        agent: str,
        function: Callable[..., Any],
        *,
        num_declared: int,
        registry: TypeRegistry,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Look at the function once.

        Args:
            agent: Name of the agent, for messages.
            function: What `.runs()` got.
            num_declared: How many outputs the agent declares.
            registry: Decodes what the function returns as artifacts.
            offload: Runs a blocking function off the event loop.
        """
        self._offload = offload
        self._agent = agent
        self._num_declared = num_declared
        self._registry = registry
        self.function = function
        self.is_async = is_async_callable(function)
        self.wants_context = wants_context(function)

    def arguments(
        self,
        subscription: Subscription,
        models: Sequence[BaseModel],
        groups: tuple[int, ...],
        context: Context | None,
    ) -> tuple[Any, ...]:
        """Return the positional arguments; the context goes first when the function wants it.

        Raises:
            ValueError: The inputs do not fit the subscription.
        """
        arguments = bind_arguments(subscription, models, groups)
        return (context, *arguments) if self.wants_context else arguments

    async def call(self, arguments: tuple[Any, ...]) -> Any:
        """Call the function from an event loop; one that is not async runs in a thread."""
        if not self.is_async:
            return await self._offload(partial(self._call_through, arguments))
        value = self.function(*arguments)
        if inspect.isasyncgen(value):
            return [item async for item in value]
        return await value

    def returned(self, value: object) -> Returned | None:
        """Turn what the function returned into models; None when it published nothing.

        Raises:
            OutputContractError: It returned something else.
        """
        if type(value) is EvalResult:
            return None if value.declined else Returned([a.model(self._registry) for a in value.artifacts])
        return flatten_returned(value, self._agent, self._num_declared)

    def _call_through(self, arguments: tuple[Any, ...]) -> Any:
        # A generator would otherwise do its work later, on the event loop.
        value = self.function(*arguments)
        return list(value) if isinstance(value, Iterator) else value


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Tell whether calling something gives a coroutine or an async generator."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    call = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


def refuse_awaitable(made: object, agent: str) -> None:
    """Refuse what the function of `.calls()` returned if it has to be awaited.

    Raises:
        ConfigurationError: It does, and the run does not await it.
    """
    if inspect.iscoroutine(made):
        made.close()  # or Python warns that it was never awaited
    if inspect.isawaitable(made):
        raise ConfigurationError(
            f"The function given to .calls() of agent {agent!r} returned something to await: "
            "declare it with `async def`."
        )
