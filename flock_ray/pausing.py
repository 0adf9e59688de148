"""Holding work back on purpose: pause, resume, halt, and cancelling workflows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.asking import workflow_id
from flock_ray.core.pauses import MAX_PAUSES, Kind, Pause
from flock_ray.core.registry import TypeRegistry
from flock_ray.errors import BackpressureError, CapacityError, ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.board import Board

__all__ = ["BoardPausing", "PausedView"]

TIMEOUT_S = 30.0
"""How long shards that are away are waited for, in seconds."""

MAX_TEXT = 1000
"""Characters of `by` and `reason`."""

_pauses = msgspec.msgpack.Decoder(list[Pause]).decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PausedView:
    """Something that is paused."""

    kind: str
    """board, agent, workflow or type."""
    name: str
    """Empty for the board."""
    since: datetime
    by: str
    reason: str
    everywhere: bool
    """All shards have it; False: somebody is about to pause or resume it, or has given up halfway. Do it again."""

    def __str__(self) -> str:
        """Return it in one line."""
        what = f"{self.kind} {self.name}".strip()
        by = f" by {self.by}" if self.by else ""
        why = f": {self.reason}" if self.reason else ""
        partly = "" if self.everywhere else " (not on all shards)"
        return f"{what}, since {self.since:%Y-%m-%d %H:%M:%S}{by}{why}{partly}"


class BoardPausing:
    """The pausing half of `Flock`."""

    _registry: TypeRegistry

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    async def pause(
        self,
        *,
        agent: AgentBuilder | str | None = None,
        workflow: Artifact | str | None = None,
        type: type[BaseModel] | str | None = None,
        by: str = "",
        reason: str = "",
        timeout: float = TIMEOUT_S,
    ) -> None:
        """Hand no more work of an agent, of a workflow, or on artifacts of a type to workers. Give one of the three.

        What runs ends. Publishing goes on, inputs are matched and wait, times pass; all of it runs after `resume`.
        It is durable and safe to repeat. It holds for agents that are declared later, too.

        Args:
            agent: A builder, or its name.
            workflow: A correlation id, or an artifact of the workflow.
            type: An artifact type: runs that have such an input wait.
            by: Who pauses it, for `paused()` and the audit log.
            reason: Why.
            timeout: Seconds to wait for shards that are away.

        Raises:
            ConfigurationError: Not exactly one thing is named, or no agent has that name.
            CapacityError: 10,000 things are paused already.
            StoreUnavailableError: Not every shard has answered; retryable.
        """
        kind, name = self._place(agent, workflow, type)
        await pause_on(await self._ready_board(), kind, name, by=by, reason=reason, timeout=timeout)

    async def resume(
        self,
        *,
        agent: AgentBuilder | str | None = None,
        workflow: Artifact | str | None = None,
        type: type[BaseModel] | str | None = None,
        by: str = "",
        timeout: float = TIMEOUT_S,
    ) -> None:
        """Let run what was paused; without an agent, workflow or type: a board that was halted.

        Each pause is lifted by itself: after a halt, an agent that was paused before stays so.

        Args:
            agent: A builder, or its name.
            workflow: A correlation id, or an artifact of the workflow.
            type: An artifact type.
            by: Who resumes it, for the audit log.
            timeout: Seconds to wait for shards that are away.

        Raises:
            ConfigurationError: More than one thing is named.
            StoreUnavailableError: Not every shard has answered; retryable.
        """
        kind: Kind = "board"
        name = ""
        if not (agent is None and workflow is None and type is None):
            kind, name = self._place(agent, workflow, type)
        await resume_on(await self._ready_board(), kind, name, by=by, timeout=timeout)

    async def halt(self, *, by: str = "", reason: str = "", timeout: float = TIMEOUT_S) -> None:
        """Stop everything: nothing is handed out on the whole board, and what runs is cancelled.

        What is cancelled counts neither as a failure nor as a crash: it runs again after `resume()`. A sync function
        can't be stopped: what it returns is ignored. Publishing goes on until the board is full, and `invoke` is
        refused.

        Args:
            by: Who halts it, for `paused()` and the audit log.
            reason: Why.
            timeout: Seconds to wait for shards that are away.

        Raises:
            StoreUnavailableError: Not every shard has answered: those that have are halted. Retryable.
        """
        await pause_on(await self._ready_board(), "board", "", by=by, reason=reason, timeout=timeout)

    async def paused(self) -> list[PausedView]:
        """Return everything that is paused, oldest first; a halted board is of kind `board`.

        Raises:
            StoreUnavailableError: A shard does not answer; retryable.
        """
        return await paused_on(await self._ready_board())

    async def cancel(self, workflow: Artifact | str | None) -> int:
        """Cancel a workflow: what is open is stopped, what arrives later is not matched.

        Async functions and calls to language models are stopped; sync functions run on and what they return is
        ignored. Retries, gates, delays and limits that it waits for are given up, too.

        Args:
            workflow: A correlation id, or an artifact of the workflow.

        Returns:
            How many activations were open.

        Raises:
            StoreUnavailableError: A shard does not answer; some of it may be cancelled. Retryable.
        """
        return await cancel_workflow(await self._ready_board(), workflow_id(workflow))

    def _place(
        self,
        agent: AgentBuilder | str | None,
        workflow: Artifact | str | None,
        type_: type[BaseModel] | str | None,
    ) -> tuple[Kind, str]:
        if (agent is not None) + (workflow is not None) + (type_ is not None) != 1:
            raise ConfigurationError(
                "Name one thing: agent=, workflow= or type=. halt() stops the whole board, resume() lets it go on."
            )
        if agent is not None:
            return "agent", agent if isinstance(agent, str) else agent.name
        if workflow is not None:
            return "workflow", workflow_id(workflow)
        if isinstance(type_, str):
            return "type", self._registry.get(type_).name
        assert type_ is not None
        return "type", self._registry.ensure(type_).name


async def pause_on(
    board: Board, kind: Kind, name: str, *, by: str = "", reason: str = "", timeout: float = TIMEOUT_S
) -> None:
    """Pause something of a board; see `BoardPausing.pause` and `halt`."""
    if kind == "agent" and name not in board.edge.table.definitions:
        known = (await board.ask_shard(0, "table"))[1]  # another driver may have deployed it
        if known and name not in known:
            there = ", ".join(sorted(known))
            raise ConfigurationError(
                f"There is no agent {name!r} on this board to pause; there are: {there}."
            )
    await _tell(board, kind, name, True, _text("by", by), _text("reason", reason), timeout)


async def resume_on(board: Board, kind: Kind, name: str, *, by: str = "", timeout: float = TIMEOUT_S) -> None:
    """Resume something of a board; see `BoardPausing.resume`."""
    await _tell(board, kind, name, False, _text("by", by), "", timeout)


async def paused_on(board: Board) -> list[PausedView]:
    """Return everything that is paused on a board, oldest first."""
    parts = [_pauses(blob) for blob in await board.each("pauses")]
    found: dict[tuple[str, str], list[Pause]] = {}
    for pause in [pause for part in parts for pause in part]:
        found.setdefault((pause.kind, pause.name), []).append(pause)
    views = []
    for same in found.values():
        first = min(same, key=lambda pause: pause.at_us)
        since = _EPOCH + timedelta(microseconds=first.at_us)
        views.append(
            PausedView(first.kind, first.name, since, first.by, first.reason, len(same) == len(parts))
        )
    return sorted(views, key=lambda view: view.since)


async def refuse_if_paused(board: Board, agent: str) -> None:
    """Raise when an agent, or the board, is paused: for what does not go over the board.

    Raises:
        BackpressureError: It is; retryable.
    """
    for pause in _pauses(await board.ask_shard(0, "pauses")):
        if (pause.kind, pause.name) in (("board", ""), ("agent", agent)):
            what = "The board is halted" if pause.kind == "board" else f"Agent {agent!r} is paused"
            raise BackpressureError(
                f"{what}{_because(pause)}. Try again once it is resumed.", retry_after_s=1.0
            )


def _because(pause: Pause) -> str:
    return (f" by {pause.by}" if pause.by else "") + (f" ({pause.reason})" if pause.reason else "")


async def _tell(
    board: Board, kind: Kind, name: str, on: bool, by: str, reason: str, timeout_s: float
) -> None:
    """Pause or resume something on every shard; those that are away are asked again until the time is over."""
    if not timeout_s > 0:
        raise ConfigurationError(f"timeout={timeout_s!r}: give a number of seconds above 0.")
    missing: set[int] = set(range(board.num_shards))
    answers: list[str] = []

    async def tell(shard: int) -> None:
        while True:
            try:
                answers.append(await board.ask_shard(shard, "pause", kind, name, on, by, reason))
                missing.discard(shard)
                return
            except StoreUnavailableError:
                await asyncio.sleep(0.1)

    await _within(timeout_s, [tell(shard) for shard in range(board.num_shards)])
    if missing:
        raise StoreUnavailableError(
            f"{len(missing)} of {board.num_shards} shards did not answer within {timeout_s:g} s: what they hold is "
            f"not {'paused' if on else 'resumed'}. Do it again: those that have it don't mind."
        )
    if "full" in answers:
        raise CapacityError(f"{MAX_PAUSES:,} things are paused on this board already. Resume some of them.")


async def _within(timeout_s: float, work: list[Awaitable[None]]) -> None:
    """Do things at the same time until all are done, one has failed or the time is over."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


QUIET_S = 0.5
"""How long a workflow that is cancelled is given to come to rest before it is cancelled again."""

MAX_ROUNDS = 4
"""After so many it is left alone: what still holds it up is a run on inputs of several workflows, which goes on."""


async def cancel_workflow(board: Board, workflow: str) -> int:
    """Cancel a workflow on every shard; returns how many activations were open.

    What travels between shards while they are asked one after the other is caught by another round: once all
    shards know, nothing new leaves, and a workflow that is idle has nothing on its way.
    """
    cancelled: int = sum(await board.each("cancel", workflow))
    for _ in range(MAX_ROUNDS):
        quiet = await board.wait_idle(timeout_s=QUIET_S, workflow=workflow)
        found = sum(await board.each("cancel", workflow))
        cancelled += found
        if quiet and not found:
            break
    return cancelled


def _text(field: str, text: object) -> str:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ConfigurationError(f"{field}= is a text of at most {MAX_TEXT:,} characters.")
    return text
