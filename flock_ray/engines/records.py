"""Collects what the calls to models in one attempt were and cost; it is journaled with the attempt.

`AgentRunner` collects around every attempt (`OpenRuns`) and puts the calls into the completion, also into that
of a failed attempt. Engines, components and tools do nothing for it: the
`Model` in `Services` is a `RecordingModel`, which tells the collector of the running attempt of every call.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import msgspec

from flock_ray.core.model_calls import MAX_CALLS, ModelCall, merged
from flock_ray.core.secrets import SECRETS
from flock_ray.errors import BudgetExceededError
from flock_ray.model import Caller, Model, ModelReply, ModelRequest

if TYPE_CHECKING:
    from flock_ray.core.wire import Completion, Task
    from flock_ray.engines.paying import Paying, Purse

__all__ = [
    "Capture",
    "OpenRuns",
    "RecordingModel",
    "RunRecords",
    "answered_call",
    "collecting",
    "current_records",
    "failed_call",
    "redacted",
]

Capture = Literal["none", "full"]

MAX_CAPTURED_CHARS = 65_536
"""Longest prompt or answer that is kept of one call with `capture="full"`."""

MAX_CAPTURED_OF_RUN = 1_048_576
"""Most characters of prompts and answers that one attempt keeps."""

MAX_GIVEN_UP = 100
"""Cancelled attempts whose calls are kept for the completion that their timeout makes."""


class RunRecords:
    """The calls of one attempt; may be used by several threads. Bounded: see `MAX_CALLS`."""

    __slots__ = ("_calls", "_lock", "_rest", "_text", "caller", "purse")

    def __init__(self, purse: Purse | None = None, caller: Caller | None = None) -> None:
        """Start with none.

        Args:
            purse: Pays for them; None: nobody in particular.
            caller: The attempt; None: there is none.
        """
        self.purse = purse
        self.caller = caller
        self._calls: list[ModelCall] = []
        self._rest: list[ModelCall] = []
        self._text = 0
        self._lock = threading.Lock()

    def model_call(self, call: ModelCall) -> None:
        """Add a call. One that a `RecordingModel` has carried out is added already."""
        with self._lock:
            size = len(call.prompt) + len(call.answer)
            if size and self._text + size > MAX_CAPTURED_OF_RUN:
                call = msgspec.structs.replace(call, prompt="", answer="")
            elif size:
                self._text += size
            if len(self._calls) < MAX_CALLS:
                self._calls.append(call)
            else:
                self._rest = merged([*self._rest, call])

    def calls(self) -> tuple[ModelCall, ...]:
        """Return everything so far, in order of completion; what was added up comes last."""
        with self._lock:
            return (*self._calls, *self._rest)


_current: ContextVar[RunRecords | None] = ContextVar("flock_ray_run_records", default=None)


def current_records() -> RunRecords:
    """Return the collector of the running attempt; outside of one, a collector that nobody reads."""
    return _current.get() or RunRecords()


@contextlib.contextmanager
def collecting(records: RunRecords | None = None) -> Iterator[RunRecords]:
    """Collect the calls that are made in the block, in tasks and threads that it starts with its context.

    Args:
        records: Where to; None: a new collector.
    """
    records = records if records is not None else RunRecords()
    token = _current.set(records)
    try:
        yield records
    finally:
        _current.reset(token)


class OpenRuns:
    """The collectors of the attempts that a runner has begun."""

    __slots__ = ("_ended", "_open", "_paying")

    def __init__(self, paying: Paying | None = None) -> None:
        """Start with none; `paying` knows who pays for them, None: nobody in particular."""
        self._paying = paying
        self._open: dict[tuple[bytes, int], RunRecords] = {}
        self._ended: dict[tuple[bytes, int], None] = {}
        """Of those, the ones that were cancelled, and of which nobody has asked yet."""

    async def run(self, task: Task, running: Awaitable[Completion]) -> Completion:
        """Await an attempt and put its calls into what comes of it."""
        key = (task.id, task.attempt)
        paying = self._paying
        caller = Caller(
            workflow=task.correlation_id, agent=task.agent, activation=task.id.hex(), attempt=task.attempt
        )
        purse = None if paying is None else paying.purse(task)
        with collecting(RunRecords(purse, caller)) as records:
            self._open[key] = records
            try:
                completion = _with_calls(await running, records)
            except BaseException:
                # It was cancelled, mostly by its timeout: `given_up` comes next, or never.
                while len(self._ended) >= MAX_GIVEN_UP:
                    oldest = next(iter(self._ended))
                    del self._ended[oldest]
                    self._open.pop(oldest, None)
                self._ended[key] = None
                raise
            if self._open.get(key) is records:
                del self._open[key]
            if paying is not None and records.purse is not None:
                completion = paying.settled(completion, records.purse)
            return completion

    def given_up(self, task: Task, completion: Completion) -> Completion:
        """Put the calls so far into the completion of an attempt that is given up from outside."""
        key = (task.id, task.attempt)
        records = self._open.get(key)
        if self._ended.pop(key, False) is None:
            del self._open[key]
        return completion if records is None else _with_calls(completion, records)


def _with_calls(completion: Completion, records: RunRecords) -> Completion:
    calls = records.calls()
    return msgspec.structs.replace(completion, calls=calls) if calls else completion


def redacted(text: str, patterns: Sequence[str] = ()) -> str:
    """Return a text without what looks like a secret, and without what more patterns find; bounded."""
    text = text[: MAX_CAPTURED_CHARS * 2]
    for pattern in (*SECRETS, *patterns):
        text = re.sub(pattern, _kept, text)
    return text if len(text) <= MAX_CAPTURED_CHARS else text[:MAX_CAPTURED_CHARS] + " [cut]"


def _kept(found: re.Match[str]) -> str:
    return (found.groupdict().get("keep") or "") + "[redacted]"


def answered_call(request: ModelRequest, reply: ModelReply, started_us: int) -> ModelCall:
    """Return the record of a call that was answered; without its texts."""
    model = reply.model or request.model
    first = reply.first_token_s
    return ModelCall(
        model=model,
        asked="" if model == request.model else request.model,
        source=reply.source,
        input_tokens=reply.usage.input_tokens,
        output_tokens=reply.usage.output_tokens,
        cached_tokens=reply.usage.cached_tokens,
        cost_usd=reply.usage.cost_usd,
        latency_us=int(reply.latency_s * 1e6),
        first_token_us=0 if first is None else int(first * 1e6),
        finish_reason=reply.finish_reason,
        request_hash=reply.request_hash,
        tries=reply.tries,
        started_us=started_us,
        tenant=request.caller.tenant,
    )


def failed_call(request: ModelRequest, error: BaseException, started_us: int, now_us: int) -> ModelCall:
    """Return the record of a call that ended with an error; without its texts."""
    return ModelCall(
        model=request.model,
        latency_us=max(0, now_us - started_us),
        tries=int(getattr(error, "tries", 1)),
        request_hash=str(getattr(error, "request_hash", "")),
        started_us=started_us,
        error_type=type(error).__name__,
        tenant=request.caller.tenant,
    )


class RecordingModel:
    """A model that tells the running attempt of every call, answered or failed."""

    def __init__(
        self,
        model: Model,
        *,
        now_us: Callable[[], int],
        capture: Capture = "none",
        redact: Sequence[str] = (),
    ) -> None:
        """Wrap a model.

        Args:
            model: Answers.
            now_us: Wall clock, in microseconds since the Unix epoch.
            capture: Whether prompts and answers are kept as text, too.
            redact: Regular expressions of what is taken out of them, besides what looks like a secret.
        """
        self.model = model
        self._now_us = now_us
        self._capture = capture
        self._redact = tuple(redact)

    def captured(self, text: str) -> str | None:
        """Return a text as it may be kept, redacted and bounded; None: texts are not kept."""
        return redacted(text, self._redact) if self._capture == "full" else None

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer as the model does; raises what it raises."""
        started = self._now_us()
        records = current_records()
        if records.caller is not None:
            # The attempt as the shard counts it: by this a gateway is asked about attempts that were lost.
            attempt = records.caller
            caller = msgspec.structs.replace(
                request.caller, activation=attempt.activation, attempt=attempt.attempt,
                agent=request.caller.agent or attempt.agent, workflow=request.caller.workflow or attempt.workflow,
            )  # fmt: skip
            request = msgspec.structs.replace(request, caller=caller)
        if records.purse is not None:
            request = records.purse.paid(request)
        try:
            reply = await self.model.complete(request, on_text)
        except BaseException as error:
            if records.purse is not None:
                records.purse.refused(error)
            if not isinstance(error, BudgetExceededError) or getattr(error, "tries", False):
                records.model_call(self._failed(request, error, started))
            raise
        records.model_call(self._answered(request, reply, started))
        return reply

    def _answered(self, request: ModelRequest, reply: ModelReply, started_us: int) -> ModelCall:
        call = answered_call(request, reply, started_us)
        if self._capture != "full":
            return call
        answer = redacted(reply.text, self._redact)
        return msgspec.structs.replace(call, prompt=self._prompt(request), answer=answer)

    def _failed(self, request: ModelRequest, error: BaseException, started_us: int) -> ModelCall:
        call = failed_call(request, error, started_us, self._now_us())
        return (
            msgspec.structs.replace(call, prompt=self._prompt(request)) if self._capture == "full" else call
        )

    def _prompt(self, request: ModelRequest) -> str:
        if self._capture != "full":
            return ""
        return redacted(msgspec.json.encode(request.embed or request.messages).decode(), self._redact)
