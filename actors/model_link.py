"""The worker's `Model`: hands calls to gateways in batches, and gives those of a dead gateway to the next one.

`complete` is called on the loops of user code; everything else here runs on the control loop of the worker.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flock_ray.actors.model_messages import Ask, AskBatch, Told, decode_reply, decode_told, encode, error_of
from flock_ray.core.gateway_scaling import home_of, pick
from flock_ray.errors import ModelError
from flock_ray.gateway.budgets import within_budget
from flock_ray.gateway.fallbacks import with_fallbacks
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.model import ModelReply, ModelRequest
from flock_ray.ports import PeerGoneError

__all__ = ["ModelLink"]

logger = logging.getLogger(__name__)

COLLECT_S = 10.0
MAX_LOST = 3
"""A call whose gateway has died so often is given up: it may be the cause."""
MAX_BATCH_BYTES = 4 * 1024 * 1024
RETRY_S = (0.2, 1.0, 3.0)


@dataclass(slots=True, eq=False)
class _Open:
    """A call that has not ended."""

    id: int
    model: str
    request: bytes
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[ModelReply]
    """Of the caller's loop."""
    on_text: Callable[[str], None] | None
    hurried: bool
    lost: int = 0
    told_text: bool = False
    cancelled: bool = False
    line: _Line | None = None


@dataclass(slots=True, eq=False)
class _Line:
    """One gateway as this worker sees it."""

    index: int
    link: Any
    session: str
    calls: dict[int, _Open] = field(default_factory=dict)
    asks: deque[_Open] = field(default_factory=deque)
    cancels: list[int] = field(default_factory=list)
    sender: asyncio.Task[None] | None = None
    collector: asyncio.Task[None] | None = None
    open_calls: int = 0
    failures: int = 0


class ModelLink:
    """Answers requests through the gateways of a board. Safe to call from any event loop."""

    def __init__(
        self,
        client: str,
        plan: GatewayPlan,
        connect: Callable[[int], Any],
        *,
        monotonic: Callable[[], float],
    ) -> None:
        """Create a link; nothing is started.

        Args:
            client: Names this process to the gateways.
            plan: Which models have limits, and how many gateways there may be.
            connect: Starts or finds the gateway of a number; returns a link with `submit` and `collect`.
            monotonic: A clock in seconds that never goes back.
        """
        self._client = client
        self._plan = plan
        self._connect = connect
        self._monotonic = monotonic
        self._ids = itertools.count(1)
        self._lines: dict[int, _Line] = {}
        self._control: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[tuple[_Open, bool]] = deque()
        self._woken = False

    def begin(self) -> None:
        """Take the running loop as the control loop; once, before the first call."""
        self._control = asyncio.get_running_loop()

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer a request; see `Model`."""
        if request.caller.charges:
            return await within_budget(self._complete, request, on_text)
        return await self._complete(request, on_text)

    async def _complete(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
        fallbacks = tuple(self._plan.settings(request.model).fallbacks)
        return await with_fallbacks(self._one, request, on_text, fallbacks, self._monotonic)

    async def _one(
        self, request: ModelRequest, on_text: Callable[[str], None] | None, hurried: bool
    ) -> ModelReply:
        loop = asyncio.get_running_loop()
        plain = msgspec.structs.replace(request, fallbacks=[]) if request.fallbacks else request
        call = _Open(
            next(self._ids), request.model, encode(plain), loop, loop.create_future(), on_text, hurried
        )
        self._hand_over(call, False)
        try:
            return await call.future
        except BaseException:  # cancelled, or whoever listens to the text raised: nobody waits any more
            call.cancelled = True
            self._hand_over(call, True)
            raise

    def _hand_over(self, call: _Open, cancel: bool) -> None:
        """Give a call to the control loop, or take it back; wakes the loop once for many."""
        if self._control is None:
            raise ModelError("This worker has not started yet. The call may be tried again.")
        self._inbox.append((call, cancel))
        if not self._woken:
            self._woken = True
            self._control.call_soon_threadsafe(self._take_over)

    # -- on the control loop ---------------------------------------------------------------------

    def _take_over(self) -> None:
        self._woken = False
        while self._inbox:
            call, cancel = self._inbox.popleft()
            if cancel:
                self._give_up(call)
            elif not call.cancelled:
                self._assign(call)

    def _assign(self, call: _Open) -> None:
        line = self._line(self._choose(call.model))
        call.line = line
        line.calls[call.id] = call
        line.asks.append(call)
        line.open_calls += 1
        self._stir(line)

    def _choose(self, model: str) -> int:
        if self._plan.cassette is not None:
            return 0  # it plays in order, and writes: one process
        key = self._plan.home_key(model)
        if key is not None:
            return home_of(key, self._plan.num_gateways)
        in_use = [
            max(line.open_calls, len(line.calls)) if (line := self._lines.get(index)) is not None else 0
            for index in range(max(self._lines, default=-1) + 1)
        ]
        return pick(in_use, self._plan.num_gateways)

    def _line(self, index: int) -> _Line:
        line = self._lines.get(index)
        if line is None:
            line = self._lines[index] = _Line(index, None, uuid.uuid4().hex)
        return line

    def _give_up(self, call: _Open) -> None:
        line = call.line
        if line is None or line.calls.pop(call.id, None) is None:
            return
        if call in line.asks:
            line.asks.remove(call)
            return
        line.cancels.append(call.id)
        self._stir(line)

    def _stir(self, line: _Line) -> None:
        if line.collector is None and line.calls:
            line.collector = asyncio.ensure_future(self._collect(line))
        elif line.sender is None and (line.asks or line.cancels) and line.link is not None:
            # The collector waits at the gateway; before there is a link, it takes along what is asked meanwhile.
            line.sender = asyncio.ensure_future(self._send(line))

    def _batch(self, line: _Line) -> bytes:
        """Return the next batch of what is asked and given up; empty when there is nothing."""
        if not line.asks and not line.cancels:
            return b""
        cancels, line.cancels = line.cancels, []
        batch, size = AskBatch(self._client, line.session, [], cancels), 0
        while line.asks and size < MAX_BATCH_BYTES:
            call = line.asks.popleft()
            if call.id not in line.calls:
                continue  # answered or given up meanwhile: it must not be paid twice
            batch.asks.append(Ask(call.id, call.request, call.on_text is not None, call.hurried))
            size += len(call.request)
        return encode(batch)

    async def _send(self, line: _Line) -> None:
        session = line.session
        try:
            await asyncio.sleep(0)  # what else this turn of the loop brings goes along
            while line.asks or line.cancels:
                link = await self._link(line)
                session = line.session
                blob = self._batch(line)
                if blob:
                    line.open_calls = await link.submit(blob)
        except Exception as error:  # whatever it was: what is open is asked again, after a pause
            self._failed(line, session, error)
        finally:
            line.sender = None
            self._stir(line)

    async def _collect(self, line: _Line) -> None:
        session = line.session
        try:
            await asyncio.sleep(0)  # what else this turn of the loop brings goes along
            while line.calls and line.session == session:
                link = await self._link(line)
                if line.session != session:
                    break
                # One message asks and waits for the answers: a lone call costs one trip.
                blob = self._batch(line) if line.sender is None else b""
                waiting = link.collect(self._client, session, COLLECT_S, blob)
                if line.asks or line.cancels:
                    self._stir(line)
                batch = decode_told(await waiting)
                if batch.gone:
                    self._lost(line, session)
                    break
                line.open_calls = batch.open_calls
                line.failures = 0
                self._deliver(line, batch.told)
        except Exception as error:  # whatever it was: what is open is asked again, after a pause
            self._failed(line, session, error)
        finally:
            line.collector = None
            self._stir(line)

    async def _link(self, line: _Line) -> Any:
        if line.link is None:
            if line.failures:
                await asyncio.sleep(RETRY_S[min(line.failures, len(RETRY_S)) - 1])
            line.link = await self._connect(line.index)
        return line.link

    def _failed(self, line: _Line, session: str, error: Exception) -> None:
        if not isinstance(error, PeerGoneError):
            logger.warning("a model gateway can't be used: %s", type(error).__name__)
        self._lost(line, session)

    def _lost(self, line: _Line, session: str) -> None:
        """Begin anew with a gateway that died: its open calls are tried again."""
        if line.session != session:
            return
        line.session = uuid.uuid4().hex
        line.link = None
        line.failures += 1
        line.cancels.clear()
        line.asks.clear()
        line.open_calls = 0
        for call in list(line.calls.values()):
            call.lost += 1
            if call.lost > MAX_LOST:
                del line.calls[call.id]
                error = ModelError(
                    f"The model gateway was lost {call.lost} times during this call to {call.model}. It may be tried "
                    "again; look for too much memory in the process `GatewayActor`."
                )
                self._hand_back(call, [], None, error)
                continue
            if call.told_text:
                call.told_text = False
                self._hand_back(call, [""], None, None)
            line.asks.append(call)

    def _deliver(self, line: _Line, batch: list[Told]) -> None:
        for told in batch:
            call = line.calls.get(told.id)
            if call is None:
                continue  # it was given up
            call.told_text = call.told_text or bool(told.pieces)
            reply = None if told.reply is None else decode_reply(told.reply)
            error = None if told.failure is None else error_of(told.failure)
            if reply is not None or error is not None:
                del line.calls[told.id]
                if reply is not None and call.lost:
                    reply = msgspec.structs.replace(reply, tries=reply.tries + call.lost)
            self._hand_back(call, told.pieces, reply, error)

    def _hand_back(
        self, call: _Open, pieces: list[str], reply: ModelReply | None, error: BaseException | None
    ) -> None:
        try:
            call.loop.call_soon_threadsafe(_tell, call, pieces, reply, error)
        except RuntimeError:
            return  # the caller's loop is closed: nobody waits


def _tell(call: _Open, pieces: list[str], reply: ModelReply | None, error: BaseException | None) -> None:
    """Tell a caller, on its own loop."""
    if call.future.done():
        return
    try:
        if call.on_text is not None:
            for piece in pieces:
                call.on_text(piece)
    except Exception as broken:
        call.future.set_exception(broken)
        return
    if error is not None:
        call.future.set_exception(error)
    elif reply is not None:
        call.future.set_result(reply)
