"""Hosts a `Gateway` for workers elsewhere: takes batches of calls, hands back what happened to them.

No Ray in here. A client asks with `submit`, or with the `collect` that fetches what happened, of which it keeps one
call open. No method waits for another process, a dead gateway is noticed at once, and a silent client loses its calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from flock_ray.actors.gateway_books import CallBook
from flock_ray.actors.model_messages import (
    Ask,
    Told,
    ToldBatch,
    decode_asks,
    decode_request,
    encode,
    failure_of,
)
from flock_ray.actors.spending import decode_attempts
from flock_ray.core.model_calls import ModelCall
from flock_ray.engines.records import answered_call, failed_call
from flock_ray.errors import BudgetExceededError, FlockError, RateLimitError
from flock_ray.gateway.gateway import Gateway
from flock_ray.model import ModelRequest

__all__ = ["GatewayHost"]

logger = logging.getLogger(__name__)

SILENT_S = 30.0
"""A client that does not collect for so long is gone: its calls are cancelled."""
MAX_GONE = 1_000
MAX_OPEN = 20_000
"""Calls of a gateway; more are refused and come again."""
COALESCE_S = 0.01
"""How long pieces of text wait for more of them; the end of a call does not wait."""
MAX_BATCH_BYTES = 8 * 1024 * 1024


class _Session:
    """One client, from its first batch to its last; a new session of it ends the one before."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.seen = now
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.told: dict[int, Told] = {}
        self.urgent = asyncio.Event()
        """Something has ended."""
        self.some = asyncio.Event()
        self.collecting = 0

    def tell(self, call: int) -> Told:
        told = self.told.get(call)
        if told is None:
            told = self.told[call] = Told(call, [])
        self.some.set()
        return told

    def piece(self, call: int, text: str) -> None:
        pieces = self.tell(call).pieces
        if not text:
            pieces[:] = [""]
        elif pieces and pieces[-1]:
            pieces[-1] += text
        else:
            pieces.append(text)

    def take(self) -> list[Told]:
        """Take what there is, up to the size of a batch."""
        taken, size = list[Told](), 0
        for call in list(self.told):
            told = self.told.pop(call)
            taken.append(told)
            size += sum(map(len, told.pieces)) + len(told.reply or b"")
            if size > MAX_BATCH_BYTES:
                break
        if not self.told:
            self.some.clear()
            self.urgent.clear()
        return taken

    def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.told.clear()
        self.urgent.set()
        self.some.set()


class GatewayHost:
    """Runs the calls of many clients through one gateway."""

    def __init__(
        self,
        make: Callable[[], Gateway],
        *,
        monotonic: Callable[[], float],
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Create a host.

        Args:
            make: Makes the gateway at the first call; what it raises is the answer to every call.
            monotonic: A clock in seconds that never goes back.
            now_us: Wall clock, in microseconds since the Unix epoch.
        """
        self._now_us = now_us
        self.book = CallBook()
        """What was asked, for `flock.usage()` of attempts without a result."""
        self._make = make
        self._gateway: Gateway | None = None
        self._broken: FlockError | None = None
        self._monotonic = monotonic
        self._sessions: dict[str, _Session] = {}
        self._gone: dict[str, None] = {}
        """Sessions that were ended with calls in them: they never come to life again."""
        self.open_calls = 0
        self.last_used = monotonic()

    async def warm_up(self) -> None:
        """Make the gateway, and import what its first call would import."""
        gateway = self._ready()
        if gateway is not None:
            await gateway.warm_up()

    async def submit(self, blob: bytes) -> int:
        """Begin and give up calls; returns how many are open here."""
        batch = decode_asks(blob)
        self.last_used = now = self._monotonic()
        if batch.session in self._gone:
            return self.open_calls  # its next `collect` says so
        session = self._session(batch.client, batch.session, now)
        for call in batch.cancels:
            # Out at once: one that has not taken its first step would never take itself out.
            task = session.tasks.pop(call, None)
            if task is not None:
                task.cancel()
            session.told.pop(call, None)
        for ask in batch.asks:
            if ask.id not in session.tasks:
                session.tasks[ask.id] = asyncio.ensure_future(self._run(session, ask))
        return self.open_calls

    async def collect(self, client: str, name: str, wait_s: float, blob: bytes = b"") -> bytes:
        """Return what happened to the calls of a session, after `wait_s` seconds at most.

        Args:
            client: Whose.
            name: Of the session.
            wait_s: How long to wait for the first news.
            blob: A batch of asks to submit before.
        """
        if blob:
            await self.submit(blob)
        if name in self._gone:
            return encode(ToldBatch([], self.open_calls, True))
        session = self._session(client, name, self._monotonic())
        session.collecting += 1
        try:
            if not session.some.is_set():
                await _wait(session.some, wait_s)
            if session.some.is_set() and not session.urgent.is_set():
                await _wait(session.urgent, COALESCE_S)
        finally:
            session.collecting -= 1
            session.seen = self._monotonic()
        return encode(ToldBatch(session.take(), self.open_calls))

    def sweep(self) -> None:
        """Cancel the calls of clients that are gone; to be called every few seconds."""
        now = self._monotonic()
        for client, session in list(self._sessions.items()):
            if not session.collecting and now - session.seen > SILENT_S:
                if session.tasks or session.told:
                    self._bury(session)
                del self._sessions[client]
        if self.open_calls:
            self.last_used = now

    def close(self) -> None:
        """Cancel everything."""
        for session in self._sessions.values():
            session.end()
        self._sessions.clear()

    def _session(self, client: str, name: str, now: float) -> _Session:
        session = self._sessions.get(client)
        if session is None or session.name != name:
            if session is not None:
                self._bury(session)
            session = self._sessions[client] = _Session(name, now)
        session.seen = now
        return session

    def _bury(self, session: _Session) -> None:
        session.end()
        self._gone[session.name] = None
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _ready(self) -> Gateway | None:
        if self._gateway is None and self._broken is None:
            try:
                self._gateway = self._make()
            except FlockError as error:
                self._broken = error
        return self._gateway

    async def calls_of(self, blob: bytes) -> bytes:
        """Take `LostAttempt`s, end what still runs for them, and answer with the `CallsOf` that they have asked."""
        return encode(await self.book.of(decode_attempts(blob)))

    async def _run(self, session: _Session, ask: Ask) -> None:
        self.open_calls += 1
        try:
            told = await self._answered(session, ask)
            known = session.tell(ask.id)
            known.reply, known.failure = told.reply, told.failure
            session.urgent.set()
        finally:
            self.open_calls -= 1
            session.tasks.pop(ask.id, None)

    async def _answered(self, session: _Session, ask: Ask) -> Told:
        try:
            request = decode_request(ask.request)
        except ValueError as error:  # of another version
            return Told(ask.id, failure=failure_of(error))
        task, started_us = asyncio.current_task(), self._now_us()
        caller, call = request.caller, None
        assert task is not None
        self.book.begin(caller, task)
        try:
            told, call = await self._asked(session, ask, request, started_us)
            return told
        except asyncio.CancelledError as error:
            call = failed_call(request, error, started_us, self._now_us())
            raise
        finally:
            self.book.end(caller, task)
            if call is not None:
                self.book.note(caller, call)

    async def _asked(
        self, session: _Session, ask: Ask, request: ModelRequest, started_us: int
    ) -> tuple[Told, ModelCall | None]:
        """Ask, and return what to tell and what to remember; None: nothing was asked."""
        try:
            gateway = self._ready()
            if gateway is None:
                raise self._broken or RuntimeError("no gateway")
            if self.open_calls > MAX_OPEN:
                raise RateLimitError(f"The model gateway has {MAX_OPEN} open calls. Wait.", retry_after_s=1.0)
            on_text = (lambda text: session.piece(ask.id, text)) if ask.streams else None
            reply = await gateway.complete_one(request, on_text, ask.hurried)
            return Told(ask.id, reply=encode(reply)), answered_call(request, reply, started_us)
        except FlockError as error:
            tried = not isinstance(error, BudgetExceededError) or getattr(error, "tries", False)
            call = failed_call(request, error, started_us, self._now_us()) if tried else None
            return Told(ask.id, failure=failure_of(error)), call
        except Exception as error:
            # Never the error's text: it may hold a prompt.
            logger.error("a model call failed in the gateway with a %s", type(error).__name__)
            call = failed_call(request, error, started_us, self._now_us())
            return Told(ask.id, failure=failure_of(error)), call


async def _wait(event: asyncio.Event, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        pass
