"""What one can wait for and ask a board: the reading half of `Flock`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.asking import Why, WorkflowStatus, explain, workflow_id, workflow_status
from flock_ray.breakers import Limiting
from flock_ray.core.registry import TypeRegistry
from flock_ray.erasing import erase, selection
from flock_ray.errors import ConfigurationError, WaitTimeoutError
from flock_ray.letters.opening import DeadLettering
from flock_ray.pausing import BoardPausing
from flock_ray.streaming import Cursor, EventView, Gap, artifact_stream
from flock_ray.token_streams import StreamPiece, all_events, ends_of_texts, text_query, text_stream
from flock_ray.usage import ModelUsage, read_usage
from flock_ray.waiting import seconds, wait_until

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.archive import Archive
    from flock_ray.board import Board
    from flock_ray.core.conditions import Condition
    from flock_ray.ports import Persistence
    from flock_ray.sinks import SinkFactory
    from flock_ray.terminal import Terminal

__all__ = ["BoardReading"]


class BoardReading(BoardPausing, Limiting, DeadLettering):
    """Waits, streams and questions; every wait is a long call that the shards answer."""

    _registry: TypeRegistry
    _board_name: str
    no_output: bool
    persistence: Persistence | None

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    # -- waiting -------------------------------------------------------------------------------

    async def run_until_idle(
        self,
        *,
        timeout: float | timedelta | None = None,
        include_timers: bool = False,
        wait_for_input: bool = False,
    ) -> None:
        """Wait until nothing runs, is ready or travels between shards.

        Inputs that wait in a gate or for a time don't hold it up; the board goes on without anybody waiting.

        Args:
            timeout: Seconds; None is no limit.
            include_timers: Also wait for everything that waits for a time.
            wait_for_input: Accepted for compatibility.

        Raises:
            WaitTimeoutError: The board was still busy; nothing is cancelled.
        """
        board = await self._ready_board()
        if not await board.wait_idle(timeout_s=seconds(timeout), timers=include_timers):
            raise WaitTimeoutError(
                f"The board was still busy after {seconds(timeout):g} s. Its work goes on."
            )
        await self._fell_idle()

    async def _fell_idle(self) -> None:
        """Take notice that the board is idle; `Flock` tells its components."""

    async def run_until(
        self, condition: Condition | Any, *, timeout: float | timedelta | None = None
    ) -> bool:
        """Wait for a condition (`Until`).

        Returns:
            True when it holds; False at the timeout, or without one when the board is idle and it does not hold.
        """
        return await wait_until(self, await self._ready_board(), condition, seconds(timeout), self._registry)

    async def wait(
        self, workflow: Artifact | str | None, *, timeout: float | timedelta | None = None
    ) -> WorkflowStatus:
        """Wait until nothing of a workflow runs any more, and return its status.

        Args:
            workflow: A correlation id, or an artifact of the workflow.
            timeout: Seconds; None is no limit.

        Raises:
            WaitTimeoutError: It was still active.
        """
        correlation_id = workflow_id(workflow)
        board = await self._ready_board()
        if not await board.wait_idle(timeout_s=seconds(timeout), workflow=correlation_id):
            raise WaitTimeoutError(
                f"Workflow {correlation_id!r} was still active after {seconds(timeout):g} s."
            )
        return await self.workflow_status(correlation_id)

    async def flush_batches(self, workflow: Artifact | str | None = None) -> int:
        """Run partial batches now; returns how many.

        Args:
            workflow: A correlation id, or an artifact of the workflow: only batches whose inputs are all of it;
                None: every batch.
        """
        only = () if workflow is None else (workflow_id(workflow),)
        return sum(await (await self._ready_board()).each("flush_batches", *only))

    # -- what has left, and what must go -------------------------------------------------------

    @property
    def archive(self) -> Archive:
        """Workflows that retention has archived; read without opening the board.

        Raises:
            ConfigurationError: The persistence has no `archive=`.
        """
        found = self._archive()
        if found is None:
            raise ConfigurationError("This board has no archive: give its persistence archive=.")
        return found

    def _archive(self) -> Archive | None:
        from flock_ray.archive import Archive

        retention = getattr(self.persistence, "retention", None)
        place = None if retention is None else retention.archive
        return None if place is None else Archive(place, self._board_name)

    async def erase(
        self,
        *,
        artifacts: Iterable[Artifact | uuid.UUID | str] | None = None,
        correlation_id: str | None = None,
        tags: Iterable[str] | None = None,
        reason: str,
    ) -> int:
        """Erase what artifacts say, for good: in memory, store, journal and archive. Give one way to select.

        A tombstone (`null`) takes the place of the payload; ids, lineage, tags and the audit log stay. An agent
        whose input was erased while it waited gets an ArtifactSchemaError. What runs now ends with what it has:
        cancel the workflow first. After an error call it again: it is safe to repeat.

        Args:
            artifacts: These, or their ids; what agents made of them is not among them.
            correlation_id: All of a workflow.
            tags: All that have every one of these tags, which pass on to what agents make.
            reason: Goes to the audit log with each id; must not say what is erased.

        Returns:
            How many artifacts of that kind there are, on the board and in the archive: erased now or before.

        Raises:
            ConfigurationError: Not exactly one way to select, or no reason.
            StoreUnavailableError: Store or shard does not answer; some may be erased. Retryable.
            StoreError: The archive can't be read or written.
        """
        chosen = selection(artifacts, correlation_id, tags, reason)
        return await erase(await self._ready_board(), self._archive(), chosen, reason)

    # -- reading and asking --------------------------------------------------------------------

    async def stream(
        self, what: type[BaseModel] | str | None = None, *, after: Cursor | None = None
    ) -> AsyncIterator[Artifact | Gap]:
        """Yield artifacts of a type or a workflow as they arrive, for ever.

        A kept cursor goes on behind the last artifact handed over; a `Gap` stands where retention was faster.

        Args:
            what: A type, a correlation id, or None for everything.
            after: Where an earlier stream was (`artifact.cursor` is not kept: keep the stream's `Cursor`);
                None starts with the oldest artifact kept.
        """
        board = await self._ready_board()
        async for item in artifact_stream(
            board, self._registry, what, after if after is not None else Cursor()
        ):
            yield item

    async def events(
        self, *kinds: str, correlation_id: str | None = None, after: Cursor | None = None
    ) -> AsyncIterator[EventView]:
        """Yield what happens on the board, for ever: refusals, expiries, failures, lost workers and the rest.

        A reader that is slower than the log gets an event of kind `gap`. What runs stream (`stream.token`, ...) comes
        only when `kinds` asks for it; `stream_tokens` is the same in a form that is easier to use.

        Args:
            kinds: Only these (`activation.failed`) or their families (`activation`); none for all but `stream`.
            correlation_id: Only this workflow; None for all.
            after: Where an earlier reader was; None starts with the oldest event kept.
        """
        board = await self._ready_board()
        async for event in all_events(board, kinds, correlation_id, after if after is not None else Cursor()):
            yield event

    async def stream_tokens(
        self,
        workflow: Artifact | str | None = None,
        *,
        agent: AgentBuilder | str | None = None,
        after: Cursor | None = None,
        only_new: bool = False,
    ) -> AsyncIterator[StreamPiece]:
        """Yield what runs say while they go on, for ever; the pieces of one attempt come in order.

        Soft state: each shard keeps the newest 8 MiB in memory, and a kept cursor goes on behind the last piece
        handed over. What is missing, since reader or shard was too slow or a shard came back, is a `gap`.

        Args:
            workflow: A correlation id, or an artifact of the workflow; None for all.
            agent: A builder, or its name; None for all.
            after: Where an earlier reader was; None starts with the oldest piece kept.
            only_new: Start with what is said from now on; `after` is set to now.
        """
        board = await self._ready_board()
        cursor = after if after is not None else Cursor()
        if only_new:
            cursor.texts.update((await ends_of_texts(board)).texts)
        async for piece in text_stream(board, text_query(workflow, agent), cursor):
            yield piece

    async def stream_into(
        self,
        make_sink: SinkFactory,
        workflow: Artifact | str | None = None,
        *,
        agent: AgentBuilder | str | None = None,
        after: Cursor | None = None,
    ) -> None:
        """Give what runs say to sinks, until cancelled.

        Args:
            make_sink: Makes a `StreamSink` for each attempt of each run.
            workflow: A correlation id, or an artifact of the workflow; None for all.
            agent: A builder, or its name; None for all.
            after: Where an earlier reader was; None starts with the oldest piece kept.
        """
        from flock_ray.following import feed

        cursor = after if after is not None else Cursor()
        await feed(await self._ready_board(), text_query(workflow, agent), make_sink, cursor)

    @asynccontextmanager
    async def print_stream(
        self,
        workflow: Artifact | str | None = None,
        *,
        agent: AgentBuilder | str | None = None,
        terminal: Terminal | None = None,
    ) -> AsyncIterator[None]:
        """Show on the terminal what runs say during a block: all agents at once, plain lines if it is no terminal.

        With `Flock(no_output=True)` nothing is shown.

        Args:
            workflow: A correlation id, or an artifact of the workflow; None for all.
            agent: A builder, or its name; None for all.
            terminal: Where to; None: standard output.
        """
        from flock_ray.following import printed
        from flock_ray.terminal import Terminal

        if self.no_output:
            yield
            return
        async with printed(await self._ready_board(), text_query(workflow, agent), terminal or Terminal()):
            yield

    async def workflow_status(self, workflow: Artifact | str | None) -> WorkflowStatus:
        """Return what a workflow, named by correlation id or by one of its artifacts, does and waits for."""
        return await workflow_status(await self._ready_board(), workflow_id(workflow))

    async def get_correlation_status(self, correlation_id: str) -> dict[str, Any]:
        """Return upstream's form of `workflow_status`."""
        return (await self.workflow_status(correlation_id)).to_dict()

    async def why(self, subject: Artifact | uuid.UUID | AgentBuilder | str) -> Why:
        """Explain where an artifact went, or what an agent waits for: each subscription, each condition."""
        return await explain(await self._ready_board(), subject)

    async def usage(
        self,
        *,
        workflow: Artifact | str | None = None,
        agent: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
        since: datetime | timedelta | None = None,
        by_day: bool = False,
    ) -> list[ModelUsage]:
        """Return calls, tokens and cost of language models, by agent, model and source.

        Failed calls count, too; so do those of failed attempts. An attempt that ends with the death of its worker
        is not seen, nor one that comes too late.

        Args:
            workflow: Of this workflow only; None: of all, also of workflows that are gone.
            agent: Of this agent only.
            model: To this model only.
            tenant: Of this tenant only: that of the run's inputs, else of its agent.
            since: From this time (or so long ago) on, to the full hour; not with `workflow`.
            by_day: A row for each UTC day; not with `workflow`.

        Raises:
            ConfigurationError: `workflow` is given with `since` or `by_day`.
        """
        only = None if workflow is None else workflow_id(workflow)
        board = await self._ready_board()
        return await read_usage(
            board, workflow=only, agent=agent, model=model, tenant=tenant, since=since, by_day=by_day
        )

    async def pools(self) -> dict[str, dict[str, Any]]:
        """Return workers and demand by pool; the pool of light agents is `shared`."""
        pools: dict[str, dict[str, Any]] = await (await self._ready_board()).ask_router("pools")
        return pools
