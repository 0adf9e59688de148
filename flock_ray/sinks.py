"""Sinks: whoever shows or passes on what runs stream. One sink is one attempt of one run."""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flock_ray.core.texts import RESTARTED
from flock_ray.token_streams import StreamPiece

__all__ = ["SinkFactory", "SinkRouter", "StreamRun", "StreamSink"]

logger = logging.getLogger(__name__)

MAX_RUNS = 1000
"""Runs that speak at the same time; the one that has been silent for longest loses its sink."""


@dataclass(frozen=True, slots=True)
class StreamRun:
    """Who speaks."""

    agent: str
    correlation_id: str
    activation_id: uuid.UUID
    attempt: int


@runtime_checkable
class StreamSink(Protocol):
    """Takes what one attempt of a run streams. One that raises gets nothing more; the others go on.

    A sink may also have `async def on_failed(self, error: str)`: the attempt ended without a result.
    """

    async def on_status(self, text: str) -> None:
        """Take what the run does now."""
        ...

    async def on_token(self, text: str, signature_field: str | None) -> None:
        """Take a piece of the answer.

        Args:
            text: The piece.
            signature_field: Always None here: the field of a structured answer is in its JSON.
        """
        ...

    async def on_final(self, result: Any, tokens_emitted: int) -> None:
        """Take the end.

        Args:
            result: The answer as text.
            tokens_emitted: How many pieces came before: several tokens of the model are often one.
        """
        ...

    async def flush(self) -> None:
        """Finish what is under way; nothing comes after it."""
        ...


SinkFactory = Callable[[StreamRun], StreamSink]


class _Open:
    """A sink and what went to it."""

    __slots__ = ("num_tokens", "run", "said", "said_chars", "sink")

    def __init__(self, run: StreamRun, sink: StreamSink | None) -> None:
        self.run = run
        self.sink = sink
        """None: it has raised."""
        self.said: list[str] = []
        self.said_chars = 0
        self.num_tokens = 0


MAX_SAID = 1024 * 1024
"""Characters that are kept of an answer for `on_final`; of a longer one the result is the text of its last piece."""


class SinkRouter:
    """Gives the pieces of a stream to sinks, a new one for each attempt of each run."""

    def __init__(self, make_sink: SinkFactory, *, max_runs: int = MAX_RUNS) -> None:
        """Start without sinks.

        Args:
            make_sink: Called with the run when it begins to speak.
            max_runs: Most sinks at the same time.
        """
        self._make_sink = make_sink
        self._max_runs = max_runs
        self._open: OrderedDict[uuid.UUID, _Open] = OrderedDict()
        self._attempts: OrderedDict[uuid.UUID, int] = OrderedDict()
        """The newest attempt of runs that spoke lately: older ones are heard no more."""

    async def put(self, piece: StreamPiece) -> None:
        """Pass one piece on."""
        if piece.activation_id is None:
            for held in list(self._open.values()):
                await self._call(held, "on_status", "some of the text is missing here")
            return
        speaking = await self._held(piece)
        if speaking is not None:
            await self._pass_on(speaking, piece)

    async def _pass_on(self, held: _Open, piece: StreamPiece) -> None:
        if piece.kind == "token":
            held.num_tokens += 1
            held.said_chars += len(piece.text)
            if held.said_chars <= MAX_SAID:
                held.said.append(piece.text)
            await self._call(held, "on_token", piece.text, None)
        elif piece.kind == "status":
            if piece.text == RESTARTED:
                held.said, held.said_chars = [], 0
            await self._call(held, "on_status", piece.text)
        elif piece.kind == "gap":
            await self._call(held, "on_status", f"{piece.missed} pieces of the text are missing here")
        else:
            await self._end(held, piece.kind, piece.text)

    async def _held(self, piece: StreamPiece) -> _Open | None:
        """Return the sink of a piece, a new one if need be; None when a later attempt speaks already."""
        key = piece.activation_id
        assert key is not None
        newest = self._attempts.get(key, 0)
        if piece.attempt < newest:
            return None
        held = self._open.get(key)
        if held is not None and held.run.attempt < piece.attempt:
            await self._end(held, "failed", f"attempt {piece.attempt} begins")
            held = None
        self._attempts[key] = piece.attempt
        self._attempts.move_to_end(key)
        while len(self._attempts) > 10 * self._max_runs:
            self._attempts.popitem(last=False)
        if held is None:
            run = StreamRun(piece.agent, piece.correlation_id, key, piece.attempt)
            held = self._open[key] = _Open(run, self._made(run))
        self._open.move_to_end(key)
        if len(self._open) > self._max_runs:
            _, silent = self._open.popitem(last=False)
            await self._call(silent, "flush")
        return held

    def _made(self, run: StreamRun) -> StreamSink | None:
        try:
            return self._make_sink(run)
        except Exception:  # user code: one sink that can't be made must not end the others' streams
            logger.exception("no sink for what agent %r streams", run.agent)
            return None

    async def _end(self, held: _Open, kind: str, text: str) -> None:
        self._open.pop(held.run.activation_id, None)
        if kind == "failed" and hasattr(held.sink, "on_failed"):
            await self._call(held, "on_failed", text)
        elif kind == "final":
            result = text or ("".join(held.said) if held.said_chars <= MAX_SAID else "")
            await self._call(held, "on_final", result, held.num_tokens)
        await self._call(held, "flush")

    async def _call(self, held: _Open, method: str, *args: Any) -> None:
        if held.sink is None:
            return
        try:
            await getattr(held.sink, method)(*args)
        except Exception:  # user code: as above
            logger.exception("a sink for what agent %r streams failed; it gets nothing more", held.run.agent)
            held.sink = None

    async def close(self) -> None:
        """Flush every sink; those whose run goes on are left where they are."""
        while self._open:
            _, held = self._open.popitem(last=False)
            await self._call(held, "flush")
