"""Direct runs: one agent on given inputs, whatever its subscriptions say."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import msgspec

from flock_ray.board import Board
from flock_ray.core import wire
from flock_ray.core.definition import DIRECT, AgentDefinition, Subscription
from flock_ray.core.registry import TypeRegistry
from flock_ray.errors import (
    AgentCrashedError,
    AgentError,
    BackpressureError,
    ConfigurationError,
    safe_error_text,
)
from flock_ray.pausing import refuse_if_paused
from flock_ray.ports import PeerGoneError
from flock_ray.publishing import Publisher

MAX_WORKERS = 10
"""Workers that are asked in turn, when they do not have the agent (any more) by the time the run gets there."""

NEXT_WORKER_S = 0.2


async def invoke(
    board: Board, publisher: Publisher, registry: TypeRegistry, agent: str, obj: object
) -> list[wire.Posting]:
    """Run an agent on a worker of its pool and return its outputs, unpublished.

    Raises:
        AgentError: The agent failed; `error_type` is what it raised.
        AgentCrashedError: The worker died meanwhile.
        BackpressureError: The agent or the board is paused, or no worker has the agent just now; retryable.
    """
    definition = board.edge.table.definitions.get(agent)
    if definition is None:
        raise ConfigurationError(f"invoke({agent!r}): no such agent is on this board.")
    if definition.fan_out is not None or definition.fan_in is not None:
        raise ConfigurationError(
            f"invoke({agent!r}): a fan-out or fan-in is more than one run: publish its input and wait for the workflow."
        )
    await refuse_if_paused(board, agent)
    [posting] = await publisher.postings([obj], [{"produced_by": DIRECT}])
    envelope = posting.envelope
    subscription = next(
        (s.id for s in definition.subscriptions if envelope.type in {registry.name_for(c) for c in s.types}),
        None,
    )
    if subscription is None:
        raise ConfigurationError(f"invoke({agent!r}): the agent does not consume {envelope.type}.")
    task = wire.Task(
        uuid.uuid4().bytes, 1, agent, subscription, envelope.slot, envelope.correlation_id, (envelope,)
    )
    for _ in range(MAX_WORKERS):
        completion = await _run_on(await board.ask_router("worker_for", agent), board, task)
        if completion.error is None:
            return list(completion.outputs)
        if completion.error.type != wire.NOT_RUN:
            raise AgentError(f"agent {agent!r} failed: {completion.error.type}: {completion.error.message}")
        await asyncio.sleep(NEXT_WORKER_S)
    raise BackpressureError(
        f"No worker took agent {agent!r}: it was just deployed, or moved to another pool. Ask again.",
        retry_after_s=1.0,
    )


async def _run_on(worker: str, board: Board, task: wire.Task) -> wire.Completion:
    try:
        blob = await board.worker(worker).invoke(wire.encode(task))
    except asyncio.CancelledError:
        with contextlib.suppress(PeerGoneError):  # a caller who waits no longer wants it to end
            await board.worker(worker).cancel([task.id])
        raise
    except PeerGoneError as error:
        raise AgentCrashedError(
            f"The worker died while agent {task.agent!r} ran; nothing was published."
        ) from error
    return msgspec.msgpack.decode(blob, type=wire.Completion)


def directed(posting: wire.Posting, definition: AgentDefinition, registry: TypeRegistry) -> wire.Posting:
    """Make sure that an agent gets an artifact once, also where its subscriptions would not match it.

    Raises:
        ConfigurationError: The agent does not consume the type at all.
    """
    mine = {sub.id for sub in definition.subscriptions}
    if any(match.subscription in mine for match in posting.matches):
        return posting
    for sub in definition.subscriptions:
        if posting.envelope.type in {registry.name_for(cls) for cls in sub.types} and sub.join is None:
            match = wire.Match(sub.id, lane=_lane(posting.envelope, definition, sub, registry))
            candidates = tuple(name for name in posting.candidates if name not in mine)
            return msgspec.structs.replace(posting, matches=(*posting.matches, match), candidates=candidates)
    raise ConfigurationError(f"agent {definition.name!r} does not consume {posting.envelope.type}.")


def _lane(
    envelope: wire.Envelope, definition: AgentDefinition, sub: Subscription, registry: TypeRegistry
) -> str:
    """Return the key of an agent's limits for an artifact that its subscription would not match."""
    if definition.limits is None or definition.limits.key is None:
        return ""
    cls = next(cls for cls in sub.types if registry.name_for(cls) == envelope.type)
    model = registry.validate(envelope.type, envelope.version, envelope.payload, cls=cls)
    try:
        lane: str = definition.limits.lane(model)
    except Exception as error:
        kind, text = safe_error_text(error)
        raise ConfigurationError(
            f"agent {definition.name!r}: the key function of its limits failed on this {envelope.type} ({kind}: "
            f"{text}). Let it return text, a number or a list of these for every input."
        ) from error
    return lane
