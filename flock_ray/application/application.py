"""`FlockApplication`: many durable workflows of one kind on one board."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError

from flock_ray.application import ending
from flock_ray.application.admission import AdmissionController, CountingAdmission
from flock_ray.application.contract import WorkflowFactory, built, terms_of
from flock_ray.application.errors import (
    ApplicationNotRunning,
    CapacityExceeded,
    ContractError,
    InvalidWorkflowInput,
    SessionRequired,
    WorkflowIdConflict,
)
from flock_ray.application.feed import Feed
from flock_ray.application.follower import is_final
from flock_ray.application.ledger import Ledger, microseconds
from flock_ray.application.records import RESERVED, WorkflowStarted
from flock_ray.application.sessions import Sessions
from flock_ray.application.stream import WorkflowStream
from flock_ray.application.types import (
    AccessPolicy,
    CompletionPolicy,
    HistoryMode,
    OutputContract,
    WorkflowContext,
    WorkflowResult,
)
from flock_ray.application.workflow import Setting, Workflow
from flock_ray.errors import FlockError, StoreUnavailableError
from flock_ray.flock import Flock

__all__ = ["FlockApplication"]

logger = logging.getLogger("flock_ray")

FOLLOW_AGAIN_S = 5.0
"""Pause before a workflow that the board could not be asked about is followed again."""

MAX_CHECKED_ENDS = 1000
"""The newest ends that are looked at again at the start: a crash may have come before their cancellation."""

MAX_ATTRIBUTES_BYTES = 16 * 1024
"""Most bytes of a context's attributes, which are stored with the workflow."""


class FlockApplication:
    """Runs typed workflows on one flock: each has an input, a deadline, outputs as they come, and one result.

    A workflow is a correlation id on the board, so it survives what the board survives. Whoever calls with
    the id and input of a workflow that exists attaches to it: nothing runs twice.
    """

    def __init__(
        self,
        factory: WorkflowFactory | Flock,
        *,
        input_type: type[BaseModel] | None = None,
        output_types: tuple[type[BaseModel], ...] = (),
        required_output_types: tuple[type[BaseModel], ...] = (),
        access_policy: AccessPolicy | None = None,
        contract: OutputContract | None = None,
        completion: CompletionPolicy | None = None,
        history: HistoryMode = "stateless",
        max_outputs: int = 1000,
        default_timeout: float = 600.0,
        max_timeout: float = 3600.0,
        cancel_grace: float = 5.0,
        admission: AdmissionController | None = None,
        max_active_workflows: int | None = None,
        id_retention: timedelta = timedelta(minutes=15),
        max_retained_ids: int = 10_000,
        clock: Callable[[], float] | None = None,
        name: str = "default",
        history_turns: int = 20,
        recovery_window: timedelta = timedelta(days=1),
    ) -> None:
        """Declare an application; nothing is built or opened before `start`.

        Args:
            factory: Builds the flock; called once, without arguments, may be async. Its batches and joins take
                inputs of one workflow unless they say `scope="board"`. Or the flock itself, which then is not shut
                down with the application, and whose batches and joins have to say their scope.
            input_type: What a workflow takes.
            output_types: What its caller may get.
            required_output_types: What a workflow that succeeds has made at least one of.
            access_policy: What of it this caller may see; None: as `OutputContract` says.
            contract: Instead of the four above.
            completion: When a workflow is over; None: when nothing of it runs, or an agent fails.
            history: "conversation" asks for a `session_id`, runs the workflows of a session one at a time, and gives
                each a `Conversation` of the earlier ones.
            max_outputs: Outputs of a workflow past which it fails, from 1.
            default_timeout: Seconds until a workflow is cancelled.
            max_timeout: Longest timeout that a call may ask for, in seconds.
            cancel_grace: How long the end of a workflow waits for its cancellation, in seconds.
            admission: Decides whether another workflow may start.
            max_active_workflows: Short for `CountingAdmission(n)`; None is no limit.
            id_retention: How long an id stays taken, at the least; then it does as long as the board keeps its
                artifacts.
            max_retained_ids: Most ids that are remembered for it.
            clock: Monotonic seconds for `id_retention`; None is the event loop's.
            name: Tells applications on one board apart.
            history_turns: Most turns of a session that a workflow gets.
            recovery_window: At `start`, workflows this old are taken up again; older ones when somebody attaches.

        Raises:
            ContractError: A parameter makes no sense.
        """
        if contract is None:
            if input_type is None:
                raise ContractError(
                    "Which input does it take? Give input_type= and output_types=, or contract=."
                )
            contract = OutputContract(input_type, output_types, required_output_types, access_policy)
        elif input_type or output_types or required_output_types or access_policy:
            raise ContractError("Give contract=, or input_type= and the like, not both.")
        if history not in ("stateless", "conversation"):
            raise ContractError(f'history={history!r}: give "stateless" or "conversation".')
        if max_outputs < 1 or history_turns < 1 or max_retained_ids < 0 or cancel_grace < 0:
            raise ContractError("max_outputs and history_turns are at least 1, other limits at least 0.")
        if not 0 < default_timeout <= max_timeout < float("inf"):
            raise ContractError("Timeouts: 0 < default_timeout <= max_timeout, in seconds.")
        if id_retention < timedelta(0) or recovery_window < timedelta(0) or not name:
            raise ContractError(
                "id_retention and recovery_window can't be negative, and name can't be empty."
            )
        if admission is not None and max_active_workflows is not None:
            raise ContractError("Give admission= or max_active_workflows=, not both.")
        self.contract = contract
        self.completion = completion or CompletionPolicy()
        self.history: HistoryMode = history
        self.max_outputs = max_outputs
        self.default_timeout = default_timeout
        self.max_timeout = max_timeout
        self.cancel_grace = cancel_grace
        self.admission: AdmissionController = admission or CountingAdmission(max_active_workflows)
        self.name = name
        self.flock: Flock | None = factory if isinstance(factory, Flock) else None
        """The flock, once it is built."""
        self._factory = factory
        self._id_retention_s = id_retention.total_seconds()
        self._max_retained_ids = max_retained_ids
        self._clock = clock
        self._history_turns = history_turns
        self._recovery_window = recovery_window
        self._state: Literal["new", "running", "draining", "closed"] = "new"
        self._starting = asyncio.Lock()
        self._setting: Setting | None = None
        self._feed: Feed | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._active: dict[str, Workflow] = {}
        self._retained: OrderedDict[str, float] = OrderedDict()
        self._typical_s = 1.0

    # -- life ----------------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """Whether workflows are admitted; for readiness probes."""
        return self._state == "running"

    @property
    def active_workflows(self) -> int:
        """How many workflows this process follows."""
        return len(self._active)

    async def start(self) -> None:
        """Build the flock, check the contract, open the board and take up what was left; safe to repeat.

        Raises:
            ContractError: The factory or the contract can't work.
            ApplicationNotRunning: It was shut down.
        """
        async with self._starting:
            if self._state == "running":
                return
            if self._state != "new":
                raise ApplicationNotRunning()
            flock = await built(self._factory)
            try:
                terms = terms_of(flock, self.contract, self.completion, self.max_outputs)
                await flock.start()
                board = await flock._ready_board()
                ledger = Ledger(flock, board, self.name, self._history_turns)
                self._setting = Setting(
                    terms, ledger, Sessions(), self.history == "conversation", self.cancel_grace
                )
                self.flock, self._feed = flock, Feed(board, self._active)
                await self._feed.start()
                self._recovery = asyncio.ensure_future(self._take_up(self._setting))
                if self.history == "conversation":
                    # A new turn must find the turn before it under way.
                    await self._recovery
            except BaseException:
                await self._close_flock(flock)
                raise
            if self._state == "new":
                self._state = "running"

    def begin_drain(self) -> None:
        """Admit no more workflows; active ones go on."""
        if self._state in ("new", "running"):
            self._state = "draining"

    async def shutdown(self, grace: float | None = None, *, cancel: bool | None = None) -> None:
        """Admit no more, give active workflows time to end, and stop; safe to repeat.

        Args:
            grace: Seconds to wait for active workflows; None is none.
            cancel: Cancel those that still run. None: only when their board ends with this application; on a
                board that stays they go on, or are taken up again by the next application.
        """
        self.begin_drain()
        if grace and self._active:
            overs = [asyncio.ensure_future(w.over.wait()) for w in self._active.values()]
            await asyncio.wait(overs, timeout=grace)
            for over in overs:
                over.cancel()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        leave = self._board_stays() if cancel is None else not cancel
        active = list(self._active.values())
        for workflow in active:
            workflow.abandon() if leave else workflow.cancel()
        await asyncio.gather(*(workflow.over.wait() for workflow in active))
        if self._feed is not None:
            await self._feed.stop()
        if self.flock is not None and self._state != "closed":
            await self._close_flock(self.flock)
        self._state = "closed"

    def _board_stays(self) -> bool:
        flock = self.flock
        if flock is None:
            return False
        return (
            flock.persistence is not None
            or flock._settings.detached
            or (flock._opened is not None and not flock._opened.owns)
        )

    async def _close_flock(self, flock: Flock) -> None:
        if flock is not self._factory:
            # Partial batches of workflows that go on wait for them.
            await flock.shutdown(flush_batches=False)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Shut down, with `cancel_grace` for active workflows."""
        await self.shutdown(grace=self.cancel_grace)

    # -- workflows -----------------------------------------------------------------------------

    def stream(
        self,
        value: BaseModel | Mapping[str, Any],
        *,
        context: WorkflowContext,
        timeout: float | None = None,
        after: int | None = None,
    ) -> WorkflowStream:
        """Start a workflow, or attach to the one of this id and input: `async with app.stream(...) as workflow`.

        Args:
            value: The input, or a mapping of its fields.
            context: Its id and whose it is; the same id with another input, principal or session is refused.
            timeout: Seconds until it is cancelled, at most `max_timeout`; None is `default_timeout`. One that
                exists keeps its deadline.
            after: Sequence number of the last output that the caller has; None: from the first.
        """

        async def admit() -> Workflow:
            return await self._admit(value, context, timeout)

        return WorkflowStream(admit, context.workflow_id, after)

    async def run(
        self,
        value: BaseModel | Mapping[str, Any],
        *,
        context: WorkflowContext,
        timeout: float | None = None,
    ) -> WorkflowResult:
        """Run a workflow, or attach to it, and return how it ended; parameters and errors as for `stream`."""
        async with self.stream(value, context=context, timeout=timeout) as workflow:
            return await workflow.result()

    async def _admit(
        self, value: BaseModel | Mapping[str, Any], context: WorkflowContext, timeout: float | None
    ) -> Workflow:
        given = self._coerced(value)
        timeout_s = self.default_timeout if timeout is None else timeout
        if not 0 < timeout_s <= self.max_timeout:
            raise InvalidWorkflowInput(
                f"timeout={timeout_s:g}: give more than 0 and at most {self.max_timeout:g} s."
            )
        _check_context(context)
        if self._state == "new":
            await self.start()
        if self._state != "running" or self._setting is None:
            raise ApplicationNotRunning()
        if self.history == "conversation" and context.session_id is None:
            raise SessionRequired()
        known = self._active.get(context.workflow_id)
        if known is not None:
            known.streams += 1  # whoever holds it may leave meanwhile
            try:
                if not await known.same(given, context):
                    raise WorkflowIdConflict(
                        f"Workflow id {context.workflow_id!r} is not available. Take a new one for each new input."
                    )
                await asyncio.shield(known.begun)
            finally:
                known.streams -= 1  # its stream counts itself, before anything else runs
            return known
        self._forget_old_ids()
        if not self.admission.try_acquire():
            raise CapacityExceeded(retry_after_s=self._retry_after_s())
        now_us = self._setting.ledger.now_us()
        workflow = Workflow(
            self._setting,
            context,
            value=given,
            started_us=now_us,
            deadline_us=now_us + round(timeout_s * 1e6),
            must_exist=context.workflow_id in self._retained,
        )
        began_s = self._now_s()
        self._active[context.workflow_id] = workflow
        workflow.start(lambda ended: self._over(ended, began_s))
        try:
            await asyncio.shield(workflow.begun)
        except asyncio.CancelledError:
            if not workflow.streams:
                workflow.cancel()  # nobody will ever hold it
            raise
        return workflow

    def _coerced(self, value: BaseModel | Mapping[str, Any]) -> BaseModel:
        model = self.contract.input_type
        if isinstance(value, model):
            return value
        if not isinstance(value, (BaseModel, Mapping)):
            raise InvalidWorkflowInput(f"Give a {model.__name__}, or a mapping of its fields.")
        fields = value.model_dump() if isinstance(value, BaseModel) else dict(value)
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            # Only where, never what: the message may go to a caller and to logs.
            wrong = [
                "/".join(map(str, e["loc"])) or "the input" for e in error.errors(include_input=False)[:5]
            ]
            raise InvalidWorkflowInput(
                f"The input is no {model.__name__}: {', '.join(wrong)} don't fit. Compare it with the JSON schema."
            ) from None

    def _over(self, workflow: Workflow, began_s: float | None) -> None:
        """Called by a workflow that is over here; `began_s` is None when it took no place."""
        name = workflow.context.workflow_id
        if self._active.get(name) is workflow:
            del self._active[name]
        if began_s is not None:
            self.admission.release()
            self._typical_s += (self._now_s() - began_s - self._typical_s) / 8
        if workflow.result is not None and workflow.on_board:
            self._retained[name] = self._now_s()
            self._retained.move_to_end(name)
            while len(self._retained) > self._max_retained_ids:
                self._retained.popitem(last=False)
        error, header = workflow.error, workflow.header
        if isinstance(error, StoreUnavailableError) and not is_final(error) and header is not None:
            asyncio.get_running_loop().call_later(FOLLOW_AGAIN_S, self._follow_again, header)

    def _follow_again(self, header: WorkflowStarted) -> None:
        """Go on with a workflow that the board could not be asked about: its deadline has to hold when it is back."""
        if self._state == "running" and self._setting is not None:
            self._follow(self._setting, header)

    def _forget_old_ids(self) -> None:
        until = self._now_s() - self._id_retention_s
        while self._retained and next(iter(self._retained.values())) <= until:
            self._retained.popitem(last=False)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def _retry_after_s(self) -> float:
        """Guess when a place is free: workflows take about as long as the last ones did."""
        return min(60.0, max(0.1, self._typical_s / max(1, len(self._active))))

    # -- coming back ---------------------------------------------------------------------------

    async def _take_up(self, setting: Setting) -> None:
        """Follow what an application before this one has left, so that its deadlines hold."""
        ledger = setting.ledger
        since_us = ledger.now_us() - self._recovery_window // timedelta(microseconds=1)
        ended: list[tuple[datetime, str]] = []
        try:
            async for header, end in ledger.started(since_us):
                if end is None:
                    self._follow(setting, header)
                elif end.stop:
                    heapq.heappush(ended, (end.at, header.workflow_id))
                    if len(ended) > MAX_CHECKED_ENDS:
                        heapq.heappop(ended)
            for _, name in ended:
                await ending.stop_what_is_left(ledger, name, self.cancel_grace)
        except FlockError as error:
            logger.warning("workflows that were left can't be looked for: %s", error)

    def _follow(self, setting: Setting, header: WorkflowStarted) -> None:
        if header.workflow_id in self._active:
            return
        workflow = Workflow(
            setting,
            header.context(),
            value=None,
            started_us=microseconds(header.started_at),
            deadline_us=microseconds(header.deadline),
            header=header,
        )
        self._active[header.workflow_id] = workflow
        workflow.start(lambda over: self._over(over, None))


def _check_context(context: WorkflowContext) -> None:
    if context.workflow_id.startswith(RESERVED):
        raise InvalidWorkflowInput(f"Workflow ids don't begin with {RESERVED!r}: take another one.")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in context.attributes.items())
    if size > MAX_ATTRIBUTES_BYTES:
        raise InvalidWorkflowInput(
            f"attributes have {size} bytes, the limit is {MAX_ATTRIBUTES_BYTES}. Pass on a reference instead."
        )
