"""The application's side of the board: starting, reading, ending and finding workflows, each safe to repeat."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from flock_ray import searching
from flock_ray.application.errors import WorkflowIdConflict
from flock_ray.application.records import (
    BY,
    Conversation,
    ConversationMessage,
    ConversationTurn,
    WorkflowEnded,
    WorkflowStarted,
    digest_of,
    id_of,
    key_of,
    session_log,
)
from flock_ray.artifact import Artifact
from flock_ray.core.ids import shard_of, slot_of
from flock_ray.core.rows import ERASED, ArtifactQuery
from flock_ray.core.visibility import PrivateVisibility, decode_visibility, encode_visibility, narrow
from flock_ray.core.wire import Envelope
from flock_ray.errors import ArtifactSchemaError, FlockError

if TYPE_CHECKING:
    from flock_ray.application.types import WorkflowContext, WorkflowEvent
    from flock_ray.board import Board
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.core.status import WorkflowPart
    from flock_ray.flock import Flock

NOBODY = PrivateVisibility()
"""Visibility of the application's records: no agent sees them."""

PAGE = 500
"""Artifacts read at once."""

MAX_HISTORY_BYTES = 256 * 1024
"""Most bytes of a conversation that are given to the next workflow; its oldest turns are left out first."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_envelopes = msgspec.msgpack.Decoder(list[Envelope]).decode


def moment(at_us: int) -> datetime:
    """Return microseconds since the Unix epoch as an aware datetime."""
    return _EPOCH + timedelta(microseconds=at_us)


def microseconds(at: datetime) -> int:
    """Return an aware datetime as microseconds since the Unix epoch."""
    return (at - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is kept of an application's workflows on an open board."""

    flock: Flock
    board: Board
    application: str
    history_turns: int

    @property
    def registry(self) -> TypeRegistry:
        """The artifact types of the flock."""
        return self.flock._registry

    def now_us(self) -> int:
        """Return the wall time, in microseconds since the Unix epoch."""
        return self.board.clock.now_us()

    def home(self, workflow_id: str) -> Any:
        """Return the link to the shard of a workflow."""
        return self.board.shard(shard_of(slot_of(workflow_id), self.board.num_shards))

    # -- starting ------------------------------------------------------------------------------

    def header(
        self, value: BaseModel, context: WorkflowContext, started_us: int, deadline_us: int, token: str
    ) -> WorkflowStarted:
        """Make the record that a workflow starts."""
        return WorkflowStarted(
            application=self.application,
            workflow_id=context.workflow_id,
            principal_id=context.principal_id,
            session_id=context.session_id,
            attributes=dict(context.attributes),
            digest=digest_of(value, self.registry),
            started_at=moment(started_us),
            deadline=moment(deadline_us),
            token=token,
        )

    async def begin(
        self, header: WorkflowStarted, value: BaseModel, history: Conversation | None
    ) -> WorkflowStarted:
        """Publish a workflow's record and input, in one transaction; returns the record that the board has.

        What is there already stays: then the record is the one of whoever was first.

        Raises:
            WorkflowIdConflict: The record of this id can't be read any more: it was erased.
            FlockError: What publishing raises; safe to repeat.
        """
        name = header.workflow_id
        objects: list[BaseModel] = [header]
        options = [self._own("start", name, name)]
        if history is not None:
            objects.append(history)
            shown = narrow(*(_visibility(turn) for turn in history.turns))
            options.append({**self._own("history", name, name), "visibility": shown})
        objects.append(value)
        options.append({"correlation_id": name, "idempotency_key": key_of("input", name)})
        artifacts = await self._publish(objects, options)
        return self._started(artifacts[0])

    def _own(self, what: str, name: str, correlation_id: str) -> dict[str, Any]:
        return {
            "correlation_id": correlation_id, "idempotency_key": key_of(what, name),
            "visibility": NOBODY, "produced_by": BY,
        }  # fmt: skip

    async def _publish(
        self, objects: Sequence[BaseModel], options: Sequence[dict[str, Any]]
    ) -> list[Artifact]:
        board = await self.flock._ready_board()  # with agents that were declared since
        postings = await self.flock._publisher(board).postings(objects, options)
        return await self.flock._put(board, postings)

    def _started(self, artifact: Artifact) -> WorkflowStarted:
        try:
            return artifact.view_as(WorkflowStarted)
        except FlockError:
            raise WorkflowIdConflict(
                "The data of this workflow id was erased. Take a new id to run its input again."
            ) from None

    async def find(self, workflow_id: str) -> WorkflowStarted | None:
        """Return the record of a workflow; None when the board has none (any more).

        Raises:
            WorkflowIdConflict: It was erased.
        """
        found = await self._get(workflow_id, [id_of("start", workflow_id)])
        return self._started(Artifact.from_envelope(found[0])) if found else None

    async def same_input(self, header: WorkflowStarted, value: BaseModel) -> bool:
        """Say whether a workflow was started with this input."""
        if header.digest == digest_of(value, self.registry):
            return True
        # The same model may be written in two ways: the order of a set, a field that is new since.
        found = await self._get(header.workflow_id, [id_of("input", header.workflow_id)])
        if not found or found[0].payload == ERASED or found[0].type != self.registry.name_for(type(value)):
            return False
        return bool(self.board.edge.decode(found[0]) == value)

    # -- following -----------------------------------------------------------------------------

    async def read(self, workflow_id: str, after: int) -> tuple[list[Envelope], int]:
        """Return the workflow's artifacts behind a position, at most a page, and where the next page begins."""
        home = self.home(workflow_id)
        # An event may tell of an artifact that is not stored yet, and only what is stored can be read.
        await self.board._call(home.wait_quiet(workflow_id, 0))
        blob, position, _ = await self.board._call(home.read(after, None, workflow_id, PAGE, 0))
        found = await self.board.whole(_envelopes(blob))
        # Without artifacts the position is the head, which may have passed one while the store was read.
        return found, position if found else after

    async def artifacts(self, workflow_id: str, ids: Sequence[bytes]) -> list[Artifact]:
        """Return artifacts of a workflow in the order of their ids, without those that are gone or erased."""
        found = {e.id: e for e in await self._get(workflow_id, list(ids)) if e.payload != ERASED}
        return [Artifact.from_envelope(found[key]) for key in ids if key in found]

    async def _get(self, workflow_id: str, ids: list[bytes]) -> list[Envelope]:
        if not ids:
            return []
        blob = await self.board._call(self.home(workflow_id).get(ids))
        return await self.board.whole(_envelopes(blob))

    async def flush(self, workflow_id: str) -> int:
        """Run the partial batches that hold inputs of this workflow alone; returns how many."""
        return await self.flock.flush_batches(workflow_id)

    async def status(self, workflow_id: str) -> WorkflowPart | None:
        """Return what all shards together know of a workflow."""
        return await self.board.status(workflow_id)

    async def quiet(self, workflow_id: str) -> None:
        """Wait until nothing of a workflow is open."""
        await self.board.wait_idle(timeout_s=None, workflow=workflow_id)

    # -- ending --------------------------------------------------------------------------------

    async def end(self, workflow_id: str, record: WorkflowEnded) -> WorkflowEnded:
        """Record how a workflow ended; returns what the board has, which is another one if somebody was faster."""
        [kept] = await self._publish([record], [self._own("end", workflow_id, workflow_id)])
        return kept.view_as(WorkflowEnded)

    def ended(self, workflow_id: str, envelope: Envelope) -> WorkflowEnded | None:
        """Return the record of a workflow's end, if this artifact is it."""
        if envelope.produced_by != BY or envelope.id != id_of("end", workflow_id):
            return None
        return None if envelope.payload == ERASED else Artifact.from_envelope(envelope).view_as(WorkflowEnded)

    # -- conversations -------------------------------------------------------------------------

    async def add_turn(self, context: WorkflowContext, outputs: Sequence[WorkflowEvent]) -> None:
        """Add a workflow that succeeded to the log of its session."""
        found = await self.artifacts(context.workflow_id, [id_of("input", context.workflow_id)])
        if context.session_id is None or not found:
            return
        log = session_log(self.application, context.principal_id, context.session_id)
        shown = encode_visibility(narrow(*(event.artifact.visibility for event in outputs)))
        turn = ConversationTurn(
            number=await searching.count(self.board, self._turns(log)),
            workflow_id=context.workflow_id,
            at=moment(self.now_us()),
            input=_message(found[0]),
            outputs=[_message(event.artifact) for event in outputs],
            visibility=None if shown is None else json.loads(shown),
        )
        await self._publish([turn], [self._own("turn", context.workflow_id, log)])

    def _turns(self, log: str) -> ArtifactQuery:
        return ArtifactQuery((self.registry.name_for(ConversationTurn),), correlation_id=log)

    async def history(self, context: WorkflowContext) -> Conversation:
        """Return the newest turns of a session, the oldest first."""
        session = context.session_id or ""
        query = self._turns(session_log(self.application, context.principal_id, session))
        total = await searching.count(self.board, query)
        # Their times only tell which are about the newest: clocks go back. Their numbers tell the order.
        near = 2 * self.history_turns
        found = await searching.select(self.board, query, limit=near, offset=max(0, total - near))
        kept = [
            (Artifact.from_envelope(e).view_as(ConversationTurn), e) for e in found if e.payload != ERASED
        ]
        kept.sort(key=lambda entry: entry[0].number)
        turns: list[ConversationTurn] = []
        size = 0
        for turn, envelope in reversed(kept[-self.history_turns :]):
            size += len(envelope.payload)
            if size > MAX_HISTORY_BYTES:
                break
            turns.append(turn)
        return Conversation(session_id=session, turns=turns[::-1], omitted=total - len(turns))

    # -- coming back ---------------------------------------------------------------------------

    async def started(self, since_us: int) -> AsyncIterator[tuple[WorkflowStarted, WorkflowEnded | None]]:
        """Yield the records of this application's workflows that were started since then, with those of their ends.

        Those whose input never came are left out, as they have not begun: whoever started them has to come again.
        """
        query = ArtifactQuery((self.registry.name_for(WorkflowStarted),), start_us=since_us)
        async for page in searching.walk(self.board, query):
            wanted = [id_of(what, e.correlation_id) for e in page for what in ("input", "end")]
            parts = await self.board.each("get", wanted)
            found = {e.id: e for e in await self.board.whole([e for part in parts for e in _envelopes(part)])}
            for envelope in page:
                name = envelope.correlation_id
                end = found.get(id_of("end", name))
                if envelope.id != id_of("start", name) or id_of("input", name) not in found:
                    continue
                with contextlib.suppress(ArtifactSchemaError):  # erased, or of a newer version
                    header = Artifact.from_envelope(envelope).view_as(WorkflowStarted)
                    if header.application == self.application:
                        yield (
                            header,
                            None if end is None else Artifact.from_envelope(end).view_as(WorkflowEnded),
                        )


def _message(artifact: Artifact) -> ConversationMessage:
    return ConversationMessage(type=artifact.type, payload=artifact.payload)


def _visibility(turn: ConversationTurn) -> Any:
    return decode_visibility(None if turn.visibility is None else json.dumps(turn.visibility).encode())
