"""What a worker offers to engines and runs, beside their inputs: models, tools of servers, the board's past.

User code never gets hold of it: an engine of ours is bound to it when the worker loads an agent, and
everything that a context provider may see has gone through the visibility of the agent before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.rows import ArtifactQuery
    from flock_ray.core.wire import Envelope, Task
    from flock_ray.model import Embedder, Model

__all__ = ["ArtifactReader", "NeedsServices", "Services", "TextSink", "ToolServers"]

_random = Random()
"""Not the module's own: user code may seed that, and then all workers would wait for the same time."""

TextSink = Callable[["Task", str, str], None]
"""Takes (task, kind, text) of what a run streams: kind is `token`, `status` or `final`. Never blocks."""


class ArtifactReader(Protocol):
    """Reads the board for context providers. Nothing here applies visibility: its caller must."""

    async def newest(
        self, query: ArtifactQuery, limit: int, *, before: tuple[int, bytes] | None = None
    ) -> list[Envelope]:
        """Return the newest artifacts that a query selects, oldest first; reads indexes, never the whole board.

        Args:
            query: Which ones.
            limit: At most so many, from 1.
            before: Only those with a (creation time in microseconds, id) below this; None: all.
        """
        ...

    async def get(self, ids: Collection[bytes]) -> list[Envelope]:
        """Return the artifacts of these ids that there are, in any order."""
        ...


class ToolServers(Protocol):
    """MCP servers of this worker: connections are shared by all runs."""

    async def tools(self, agent: AgentDefinition) -> list[Any]:
        """Return the tools (`engines.tools.Tool`) of the servers that an agent may use.

        A server that can't be reached is left out, and noted.
        """
        ...


@dataclass(slots=True)
class Services:
    """What is there; None: nothing of the kind."""

    model: Model | None = None
    default_model: str | None = None
    """Model of agents that name none: `Flock("...")`."""
    tool_servers: ToolServers | None = None
    reader: ArtifactReader | None = None
    embedder: Embedder | None = None
    stream: TextSink | None = None
    heartbeat: Callable[[Task], bool | None] | None = None
    """Tells the worker that a run goes on; from any thread. False: the run was given up."""
    draw: Callable[[], float] = _random.random
    """Gives random numbers from 0 to below 1, for what waits before it tries again."""
    inline: bool = False
    """Whether sync user code that engines call runs on the event loop itself: in tests, where time is virtual."""


@runtime_checkable
class NeedsServices(Protocol):
    """An engine, component or context provider that uses services."""

    def bind(self, services: Services) -> None:
        """Take the services of this worker; called once, after the agent was loaded here and before any run."""
        ...
