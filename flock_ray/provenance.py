"""How an artifact came to be: which calls to models, repairs and tools the run that made it consisted of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core.events import Event

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.core.wire import Envelope

__all__ = ["how_made"]

KINDS = ("model", "tool", "guard", "best_of", "output", "context", "mcp", "hook", "engine")
"""What a run notes of itself, by the part of the kind before the dot."""
PAGE = 500
MAX_LINES = 200


async def how_made(board: Board, envelope: Envelope) -> tuple[str, ...]:
    """Say what led to an artifact, a line each, in order; empty for what no agent made.

    The event log keeps only the newest events: of old artifacts it may not know any more.
    """
    if not envelope.activation_id:
        return ()
    events: list[Event] = []
    for shard in range(board.num_shards):
        events += await _events_of(board, shard, envelope)
    lines = [_line(event) for event in events]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"{len(lines) - MAX_LINES} more"]
    if not lines and _is_made_by_model(board, envelope.produced_by):
        return ("how it was made is not in the event log any more",)
    return tuple(lines)


async def _events_of(board: Board, shard: int, envelope: Envelope) -> list[Event]:
    found: list[Event] = []
    after = 0
    while True:
        blob, position = await board.ask_shard(
            shard, "event_list", after, list(KINDS), envelope.correlation_id, PAGE, 0
        )
        found += [
            event
            for event in msgspec.msgpack.decode(blob, type=list[Event])
            if event.activation_id == envelope.activation_id
        ]
        if position <= after:
            return found
        after = position


def _is_made_by_model(board: Board, agent: str) -> bool:
    definition = board.edge.table.definitions.get(agent)
    return definition is not None and definition.function is None


def _line(event: Event) -> str:
    say = _SAID.get(event.kind)
    if say is not None:
        try:
            return say(json.loads(event.detail))
        except (ValueError, KeyError, TypeError):
            # Cut to what a note may have: shown as it is.
            return f"{event.kind}: {event.detail}"
    return f"{event.kind}: {event.detail}"


def _called(detail: dict[str, Any]) -> str:
    asked = f" (asked was {detail['asked']})" if detail.get("asked") else ""
    source = "" if detail["source"] == "provider" else f", from the {detail['source']}"
    return (
        f"model {detail['model']}{asked}: prompt {detail['prompt'] or 'unknown'}, {detail['in']} tokens in, "
        f"{detail['out']} out, {detail['ms']} ms, {detail['finish']}{source}"
    )


def _repaired(detail: dict[str, Any]) -> str:
    parts = (
        f"; asked again for {', '.join(detail['parts'])}" if detail.get("parts") else "; asked again for all"
    )
    return f"repair {detail['repair']}: {'; '.join(detail['problems'])}{parts}"


def _tool(detail: dict[str, Any]) -> str:
    ended = "ok" if detail["ok"] else f"failed: {detail.get('error', '')}"
    return f"tool {detail['tool']}: {detail['ms']} ms, {ended}"


_SAID: dict[str, Callable[[dict[str, Any]], str]] = {
    "model.called": _called,
    "model.repair": _repaired,
    "tool.called": _tool,
}
