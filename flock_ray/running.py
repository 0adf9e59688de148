"""`Flock`'s methods that run an agent, or a chain of them, on given inputs and return what they made."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.agent import AgentBuilder
from flock_ray.artifact import Artifact
from flock_ray.errors import ConfigurationError, WaitTimeoutError

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.core.wire import Posting
    from flock_ray.opening import Opened
    from flock_ray.publishing import Publisher

__all__ = ["BoardRunning"]


class BoardRunning:
    """Runs agents directly: `invoke`, `arun`, `run`, and what `AgentBuilder.run()` and `then()` use."""

    _registry: TypeRegistry

    async def _ready(self) -> Opened:
        raise NotImplementedError  # Flock's

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    def _publisher(self, board: Board) -> Publisher:
        raise NotImplementedError  # Flock's

    async def _put(self, board: Board, postings: list[Posting]) -> list[Artifact]:
        raise NotImplementedError  # Flock's

    async def invoke(
        self,
        agent: AgentBuilder | str,
        obj: BaseModel,
        *,
        publish_outputs: bool = True,
        timeout: float | None = None,
    ) -> list[Artifact]:
        """Run one agent on one input, past subscriptions, predicates and visibility; returns its outputs.

        The input is not stored. At most once: when the worker dies, nothing is tried again.

        Args:
            agent: A builder, or its name.
            obj: The input.
            publish_outputs: Whether outputs go to the board.
            timeout: Seconds; None is no limit.

        Raises:
            AgentError: What the agent raised, as one of our errors.
            WaitTimeoutError: It took longer than `timeout`.
            BackpressureError: The agent or the board is paused.
        """
        from flock_ray.direct import invoke

        board = (await self._ready()).board
        name = agent if isinstance(agent, str) else agent.name
        call = invoke(board, self._publisher(board), self._registry, name, obj)
        try:
            postings = await asyncio.wait_for(call, timeout)
        except TimeoutError:
            raise WaitTimeoutError(f"Agent {name!r} did not finish within {timeout:g} s.") from None
        if publish_outputs:
            return await self._put(board, postings)
        return [Artifact.from_envelope(posting.envelope) for posting in postings]

    async def arun(self, agent: AgentBuilder, *inputs: BaseModel) -> list[Artifact]:
        """Publish inputs as one workflow, let this agent (and whoever else matches) run once on them, and wait.

        Returns:
            What the agent made of them.
        """
        workflow = str(uuid.uuid4())
        await self._run_directed(agent, inputs, workflow)
        return await self._made_by(agent, workflow)

    async def _run_directed(self, agent: AgentBuilder, inputs: Sequence[BaseModel], workflow: str) -> None:
        from flock_ray.direct import directed

        board = (await self._ready()).board
        options = [{"correlation_id": workflow}] * len(inputs)
        postings = await self._publisher(board).postings(inputs, options)
        await self._put(board, [directed(posting, agent.definition, self._registry) for posting in postings])
        await board.wait_idle(timeout_s=None, workflow=workflow)

    async def _made_by(self, agent: AgentBuilder, workflow: str) -> list[Artifact]:
        made = await (await self._ready_board()).read(workflow=workflow)
        return [Artifact.from_envelope(e) for e in made if e.produced_by == agent.name]

    direct_invoke = arun

    def run(self, agent: AgentBuilder, *inputs: BaseModel) -> list[Artifact]:
        """Do what `arun` does, from code without an event loop."""
        return asyncio.run(self.arun(agent, *inputs))

    async def _run_pipeline(self, stages: Sequence[tuple[AgentBuilder, tuple[Any, ...]]]) -> list[Artifact]:
        """Publish the first stage's inputs and return what the last stage made of them.

        The stages in between are matched on the board like everything else: nobody runs twice.
        """
        (first, inputs), *rest = stages
        if not inputs:
            raise ConfigurationError(f"Nothing to run: write {first.name}.run(input).then(...).execute().")
        for later, _ in rest:
            if all(subscription.mode == "direct" for subscription in later.definition.subscriptions):
                raise ConfigurationError(
                    f"then(): artifacts never reach agent {later.name!r}: it consumes by invocation only. "
                    'Drop mode="direct", or invoke it on what the stage before made.'
                )
        workflow = str(uuid.uuid4())
        await self._run_directed(first, inputs, workflow)
        last = rest[-1][0] if rest else first
        return await self._made_by(last, workflow)
