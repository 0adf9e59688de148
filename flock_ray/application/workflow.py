"""One workflow in this process: started, or found on the board, and followed to its end."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from flock_ray.application import ending
from flock_ray.application.errors import ApplicationNotRunning, WorkflowIdConflict
from flock_ray.application.follower import Follower, is_final
from flock_ray.application.ledger import Ledger, microseconds
from flock_ray.application.observation import Observation, Terms, Verdict
from flock_ray.application.records import WorkflowStarted
from flock_ray.application.sessions import Sessions
from flock_ray.application.types import (
    FailureCode,
    WorkflowContext,
    WorkflowEvent,
    WorkflowResult,
    WorkflowStatus,
)
from flock_ray.errors import FlockError, StoreUnavailableError

logger = logging.getLogger("flock_ray")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the workflows of an application share."""

    terms: Terms
    ledger: Ledger
    sessions: Sessions
    conversation: bool
    cancel_grace_s: float


class _Stopped(Exception):  # a signal, not an error
    """Cancelled or due before anything was published."""


class Workflow:
    """A workflow that this process follows, for any number of streams or for none."""

    def __init__(
        self,
        setting: Setting,
        context: WorkflowContext,
        *,
        value: BaseModel | None,
        started_us: int,
        deadline_us: int,
        header: WorkflowStarted | None = None,
        must_exist: bool = False,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            setting: Of its application.
            context: Who it is for.
            value: Its input; None: it is on the board already, as `header` says.
            started_us: Now.
            deadline_us: When it is cancelled; one that is on the board keeps its own.
            header: Its record, when that is known.
            must_exist: The id was used before: attach, and never start.
        """
        self.context = context
        self.attached = False
        """Somebody else, or this process before, has started it."""
        self.result: WorkflowResult | None = None
        self.error: FlockError | None = None
        """Why there is no result here."""
        self.streams = 0
        """Streams that are open on it."""
        self.over = asyncio.Event()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it is on the board, or waits for its session; the exception is why it was not admitted."""
        self._setting = setting
        self._ledger = setting.ledger
        self._value = value
        self._header = header
        self._started_us = started_us
        self._must_exist = must_exist
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._observed = Observation(setting.terms, context)
        self._follower = Follower(
            setting.ledger, self._observed, context.workflow_id, deadline_us, setting.cancel_grace_s
        )
        self._follower.on_outputs = self._announce

    # -- what others may do --------------------------------------------------------------------

    def start(self, done: Callable[[Workflow], None]) -> None:
        """Begin; `done` is called when it is over here."""
        self._task = asyncio.ensure_future(self._drive())
        # Not in `_drive`: a task that is cancelled before its first step never runs.
        self._task.add_done_callback(lambda _: self._finish(done))

    def wake(self) -> None:
        """Look again."""
        self._follower.wake()

    def cancel(self) -> None:
        """Ask for its cancellation."""
        self._follower.cancel()

    def abandon(self) -> None:
        """Follow it no longer; on the board it goes on."""
        if self._task is not None:
            self._task.cancel()

    @property
    def header(self) -> WorkflowStarted | None:
        """Its start record; None before it is known to be on the board."""
        return self._header

    @property
    def on_board(self) -> bool:
        """Whether the board has it."""
        return self._header is not None

    async def same(self, value: BaseModel, context: WorkflowContext) -> bool:
        """Say whether a call with this input is for this workflow."""
        if (context.principal_id, context.session_id) != (self.context.principal_id, self.context.session_id):
            return False
        if self._value is not None and self._value == value:
            return True
        return self._header is not None and await self._ledger.same_input(self._header, value)

    def output(self, index: int) -> WorkflowEvent | None:
        """Return the output of a sequence number; None when it is not there (yet)."""
        outputs = self._observed.outputs if self.result is None else self.result.outputs
        return outputs[index] if index < len(outputs) else None

    async def change(self) -> None:
        """Wait for an output or the end."""
        if not self.over.is_set():
            await self._changed.wait()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- life ----------------------------------------------------------------------------------

    def _finish(self, done: Callable[[Workflow], None]) -> None:
        if self.result is None and self.error is None:
            self.error = self._abandoned()
        self._say_begun()
        self.over.set()
        self._announce()
        done(self)

    def _abandoned(self) -> ApplicationNotRunning:
        return ApplicationNotRunning(
            f"The application has stopped to follow workflow {self.context.workflow_id!r}, which goes on if its "
            "board does: call again with the same workflow_id and input to attach."
        )

    async def _drive(self) -> None:
        name = self.context.workflow_id
        session = (self.context.principal_id, self.context.session_id)
        held = False
        try:
            if self._setting.conversation and self.context.session_id is not None:
                held = await self._queue(session)
            await self._begin()
            self.result = await self._to_its_end()
        except _Stopped:
            due = self._follower.left_s() <= 0 and not self._follower.cancelled
            status = WorkflowStatus.TIMED_OUT if due else WorkflowStatus.CANCELLED
            verdict = Verdict(status, None, self._observed.condition_met)
            self.result = ending.result_of(name, self._follower, verdict)
        except asyncio.CancelledError:
            self.error = self._abandoned()
        except FlockError as error:
            self.error = error
        except Exception as error:
            # Only the type: the message may quote data.
            logger.error("workflow %r: %s in the application", name, type(error).__name__)
            self.result = self._internal_error(type(error).__name__)
        finally:
            if held:
                self._setting.sessions.release(session)

    async def _to_its_end(self) -> WorkflowResult:
        ledger, name, follower = self._ledger, self.context.workflow_id, self._follower
        try:
            verdict = await follower.follow()
        except StoreUnavailableError as error:
            if not is_final(error):
                raise  # how it ends is not known here
            return self._internal_error(type(error).__name__)
        if verdict is not None:
            return await ending.close(
                ledger, self.context, follower, verdict, self._setting.cancel_grace_s,
                turn=self._setting.conversation,
            )  # fmt: skip
        result = await ending.recorded(ledger, name, follower)
        if follower.ended is not None and follower.ended.stop:
            # Whoever recorded the end may have died before it cancelled what was left.
            await ending.stop_what_is_left(ledger, name, self._setting.cancel_grace_s)
        return result

    def _internal_error(self, kind: str) -> WorkflowResult:
        """End without the board, which is gone or was not asked."""
        self._observed.fail(FailureCode.INTERNAL_ERROR, fatal=True)
        verdict = self._observed.verdict(cancelled=False, due=False, settled=True)
        assert verdict is not None
        verdict.diagnostics["unrecorded"] = kind
        return ending.result_of(self.context.workflow_id, self._follower, verdict)

    def _say_begun(self) -> None:
        if self.begun.done():
            return
        if isinstance(self.error, FlockError) and self._header is None:
            self.begun.set_exception(self.error)
            self.begun.exception()  # whoever waits raises it; nobody may wait
        else:
            self.begun.set_result(None)

    # -- starting ------------------------------------------------------------------------------

    async def _queue(self, session: tuple[str | None, str | None]) -> bool:
        """Wait for the session, meanwhile the caller has its stream; False when it goes on without it."""
        sessions = self._setting.sessions
        if sessions.busy(session):
            await self._find()
            self._say_begun()
            if self.on_board:  # it runs or is over: it waits for nobody, and its deadline holds
                return False
        if sessions.busy(session):
            await self._unless_stopped(sessions.acquire(session))
        else:
            await sessions.acquire(session)  # at once
        return True

    async def _find(self) -> None:
        """Attach if the workflow is on the board.

        Raises:
            WorkflowIdConflict: It is another one there, or should be there and is not.
        """
        if self._header is not None or self._value is None:
            return
        known = await self._ledger.find(self.context.workflow_id)
        if known is not None:
            await self._attach(known, self._value)
        elif self._must_exist:
            raise WorkflowIdConflict(
                f"Workflow id {self.context.workflow_id!r} was used, and its result is gone. Take a new one."
            )

    async def _begin(self) -> None:
        """Publish the input, unless it is on the board."""
        if self._must_exist:
            await self._find()
        if self._header is None and self._value is not None:
            ledger, deadline_us, token = self._ledger, self._follower.deadline_us, uuid.uuid4().hex
            header = ledger.header(self._value, self.context, self._started_us, deadline_us, token)
            history = None
            if self._setting.conversation:
                history = await self._unless_stopped(ledger.history(self.context))
            if self._follower.cancelled:
                raise _Stopped
            # Not given up half-way: it would be unknown whether the board has it.
            kept = await ledger.begin(header, self._value, history)
            if kept.token == token:
                self._header = kept
            else:
                await self._attach(kept, self._value)
        else:
            self.attached = True
        self._say_begun()

    async def _attach(self, kept: WorkflowStarted, value: BaseModel) -> None:
        """Attach to a workflow that is on the board.

        Raises:
            WorkflowIdConflict: It is another one; the same answer whosever it is, so that ids can't be probed.
        """
        mine = (self._ledger.application, self.context.principal_id, self.context.session_id)
        theirs = (kept.application, kept.principal_id, kept.session_id)
        if mine != theirs or not await self._ledger.same_input(kept, value):
            raise WorkflowIdConflict(
                f"Workflow id {self.context.workflow_id!r} is not available. Take a new one for each new input."
            )
        self._header, self.attached = kept, True
        self._follower.deadline_us = microseconds(kept.deadline)

    async def _unless_stopped(self, step: Coroutine[Any, Any, T]) -> T:
        """Do a step of the start; raises `_Stopped` when it is cancelled or due before."""
        task = asyncio.ensure_future(step)
        try:
            while not task.done():
                if self._follower.cancelled or self._follower.left_s() <= 0:
                    raise _Stopped
                await self._follower.woken({task})
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
