"""Following what runs say while they go on: pieces in order, with a cursor to come back with."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.asking import workflow_id
from flock_ray.core.texts import EVENT_KINDS, FAMILY, GAP, Text, TextQuery
from flock_ray.errors import ConfigurationError
from flock_ray.streaming import Cursor, EventView, event_stream

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.artifact import Artifact
    from flock_ray.board import Board

__all__ = ["StreamPiece", "all_events", "ends_of_texts", "text_query", "text_stream"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_READ = 500
"""Pieces of one reading call."""

_decode = msgspec.msgpack.Decoder(list[Text]).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """A piece of what a run says, or a hole in it.

    The pieces of one attempt come in order; those of several runs come mixed.
    """

    kind: str
    """`token`: more of the answer. `status`: what the run does now; `restarted`: the answer begins anew. `final`: its
    last word, with the answer unless that is longer than a piece and the tokens have said it. `failed`: the attempt
    is over without one. `gap`: pieces are missing here."""
    text: str
    """Of `failed`: the error's type. At most 4096 characters; longer answers come in several pieces."""
    agent: str
    """Empty for a gap that may concern every run."""
    correlation_id: str
    activation_id: uuid.UUID | None
    """The run: the same in all its attempts. None for a gap that may concern every run."""
    attempt: int
    """From 1. When a higher one speaks, what a lower one said counts no more."""
    missed: int
    """Of a gap: how many pieces are missing; 0 when nobody knows."""
    at: datetime | None
    """When the shard got it; None for a gap."""
    shard: int
    seq: int


def text_query(workflow: Artifact | str | None, agent: AgentBuilder | str | None) -> TextQuery:
    """Return the query for a workflow and an agent; None: all."""
    name = agent if agent is None or isinstance(agent, str) else agent.name
    return TextQuery((), "" if workflow is None else workflow_id(workflow), name or "")


async def text_stream(
    board: Board, query: TextQuery, cursor: Cursor, *, wait_s: float | None = None
) -> AsyncGenerator[StreamPiece, None]:
    """Yield pieces behind a cursor, which moves along.

    Args:
        board: Whose.
        query: Which pieces; gaps always come.
        cursor: Where to begin; its `texts` are moved along.
        wait_s: End once every shard had nothing new for so long, in seconds; None: never.
    """
    blob = _encode(query)
    if wait_s is not None:
        async for piece in _what_is_there(board, blob, cursor, wait_s):
            yield piece
        return

    async def next_of(shard: int) -> tuple[int, list[Text], int]:
        return await _read(board, shard, blob, cursor, board.long_call_s)

    async for shard, texts, position in board.merge(next_of):
        for text in texts:
            for piece in _pieces(shard, text):
                cursor.texts[shard] = piece.seq
                yield piece
        cursor.texts[shard] = position


async def _what_is_there(
    board: Board, blob: bytes, cursor: Cursor, wait_s: float
) -> AsyncIterator[StreamPiece]:
    more = True
    while more:
        more = False
        calls = (_read(board, shard, blob, cursor, wait_s) for shard in range(board.num_shards))
        for shard, texts, position in await asyncio.gather(*calls):
            more = more or bool(texts)
            for text in texts:
                for piece in _pieces(shard, text):
                    cursor.texts[shard] = piece.seq
                    yield piece
            cursor.texts[shard] = position


async def _read(
    board: Board, shard: int, blob: bytes, cursor: Cursor, wait_s: float
) -> tuple[int, list[Text], int]:
    after = cursor.texts.get(shard, 0)
    found, position = await board.ask_shard(shard, "text_list", after, blob, _READ, wait_s)
    return shard, _decode(found), position


async def ends_of_texts(board: Board) -> Cursor:
    """Return a cursor behind everything that was said so far."""
    blob = _encode(TextQuery())
    calls = (board.ask_shard(shard, "text_list", -1, blob, 1, 0) for shard in range(board.num_shards))
    found = await asyncio.gather(*calls)
    return Cursor(texts={shard: position for shard, (_, position) in enumerate(found)})


def _pieces(shard: int, text: Text) -> list[StreamPiece]:
    """Return a piece as readers see it, and before it the hole if there is one."""
    run = uuid.UUID(bytes=text.activation_id) if text.activation_id else None
    if text.kind == GAP:
        return [StreamPiece(GAP, "", "", "", None, 0, text.missed, None, shard, text.seq)]
    whose = (text.agent, text.correlation_id, run, text.attempt)
    at = _EPOCH + timedelta(microseconds=text.at_us)
    piece = StreamPiece(text.kind, text.text, *whose, 0, at, shard, text.seq)
    if not text.missed:
        return [piece]
    # One position before its piece: who comes back between the two gets the piece.
    return [StreamPiece(GAP, "", *whose, text.missed, None, shard, text.seq - 1), piece]


# -- as events ---------------------------------------------------------------------------------


async def all_events(
    board: Board, kinds: Sequence[str], workflow: str | None, cursor: Cursor
) -> AsyncIterator[EventView]:
    """Yield events, and what runs say if one of the kinds asks for it: `stream`, `stream.token`, ..."""
    said = [kind for kind in kinds if kind.partition(".")[0] == FAMILY]
    others = [kind for kind in kinds if kind not in said]
    streams: list[AsyncIterator[EventView]] = []
    if others or not said:
        streams.append(event_stream(board, others, workflow, cursor))
    if said:
        wanted = () if FAMILY in said else tuple(kind.partition(".")[2] for kind in said)
        if unknown := sorted(set(said) - EVENT_KINDS - {FAMILY}):
            known = ", ".join(sorted(EVENT_KINDS))
            raise ConfigurationError(f"events({unknown[0]!r}): streams have the kinds {known}.")
        streams.append(_as_events(board, TextQuery(wanted, workflow or ""), cursor))
    if len(streams) == 1:
        async for event in streams[0]:
            yield event
        return
    async for event in _mixed(streams):
        yield event


async def _as_events(board: Board, query: TextQuery, cursor: Cursor) -> AsyncIterator[EventView]:
    async for piece in text_stream(board, query, cursor):
        kind, detail = f"{FAMILY}.{piece.kind}", piece.text
        if piece.kind == GAP:
            kind, count = GAP, f"{piece.missed} " if piece.missed else ""
            detail = f"{count}pieces of what runs streamed were dropped before they were read"
        yield EventView(
            kind, piece.at or _EPOCH, piece.agent, piece.correlation_id, piece.activation_id, (), detail,
            piece.shard, piece.seq, attempt=piece.attempt,
        )  # fmt: skip


async def _mixed(streams: Sequence[AsyncIterator[Any]]) -> AsyncIterator[Any]:
    """Yield what several endless streams yield, as it comes."""
    waiting = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                stream = waiting.pop(call)
                yield call.result()
                waiting[asyncio.ensure_future(anext(stream))] = stream
    finally:
        for call in waiting:
            call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting, return_exceptions=True)
