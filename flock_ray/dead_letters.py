"""Dead letters: queues for runs that failed for good, and what operators do with what is in them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.core.ids import derive_id
from flock_ray.core.letter_index import LetterOrder, LetterRow
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.system_types import DeadLetter, DeadLetterAction
from flock_ray.core.wire import DeadLetterSpec, Envelope
from flock_ray.editing import edited_payload
from flock_ray.errors import ArtifactNotFoundError, ConfigurationError
from flock_ray.letters.calls import LetterBoard
from flock_ray.letters.views import (
    MAX_PAGE,
    DeadLetterDetails,
    DeadLetterPage,
    OpenLetter,
    artifact_of,
    checked_text,
    conditions_of,
    cursor_of,
    letter_id,
    letter_not_open,
    place_of,
    query_of,
    unknown_letter,
)
from flock_ray.publishing import EXTERNAL
from flock_ray.webhooks import Webhook

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.letters.redriving import RedriveReport

__all__ = ["DeadLetterDetails", "DeadLetterPage", "DeadLetterQueue", "DeadLetters", "OpenLetter"]

DEFAULT_QUEUE = "dead_letters"
MAX_BY_CHARS = 200
MAX_REASON_CHARS = 2_000

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """Where runs of an agent go that failed for good: `.retry(dead_letter=DeadLetterQueue("failed_orders"))`."""

    destination: str = DEFAULT_QUEUE
    """Name of the queue: letters, digits, `_`, `.` and `-`. Several agents may share one."""
    include_trace: bool = False
    """Whether the tracebacks of the attempts are kept. They may quote data of the inputs."""
    alert_webhook: str | Webhook | None = None
    """Gets a message about new letters, up to 50 in one; an address, or a `Webhook` with its settings."""
    alert: Callable[[Any], Any] | Webhook | None = None
    """A function of a `LetterAlert`, sync or async, that runs on a worker; or a webhook. At least once each."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One makes no sense, or the webhook's address may not be called.
        """
        at = "DeadLetterQueue:"
        name: object = self.destination
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{at} destination={name!r} is no name: take up to 100 letters, digits, '_', '.' and '-'."
            )
        if not isinstance(self.include_trace, bool):
            raise ConfigurationError(f"{at} include_trace={self.include_trace!r}: give True or False.")
        if isinstance(self.alert_webhook, str):
            object.__setattr__(self, "alert_webhook", Webhook(self.alert_webhook))
        elif self.alert_webhook is not None and not isinstance(self.alert_webhook, Webhook):
            raise ConfigurationError(f"{at} alert_webhook= takes an https:// address or a Webhook.")
        if self.alert is not None and not isinstance(self.alert, Webhook) and not callable(self.alert):
            raise ConfigurationError(f"{at} alert= takes a function of a LetterAlert, or a Webhook.")

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.destination

    def spec(self) -> DeadLetterSpec:
        """Return what shards must know of it."""
        return DeadLetterSpec(self.destination, self.include_trace)

    @property
    def webhooks(self) -> tuple[Webhook, ...]:
        """The webhooks that hear of new letters."""
        return tuple(hook for hook in (self.alert_webhook, self.alert) if isinstance(hook, Webhook))

    @property
    def callback(self) -> Callable[[Any], Any] | None:
        """The function that hears of new letters; None: there is none."""
        return None if isinstance(self.alert, Webhook) else self.alert

    def without_alerts(self) -> DeadLetterQueue:
        """Return what the agent itself needs of it: no addresses, secrets or functions."""
        return DeadLetterQueue(self.destination, self.include_trace)


class DeadLetters:
    """The dead letters of a board: `flock.dead_letters`. Who has it is an operator: it sees all of them."""

    def __init__(self, ready: Callable[[], Awaitable[Board]], registry: TypeRegistry) -> None:
        """Use the board that `ready` opens."""
        self._ready = ready
        self._registry = registry

    # -- looking -------------------------------------------------------------------------------

    async def list(
        self,
        *,
        queue: str | None = None,
        agent: str | None = None,
        error_type: str | None = None,
        workflow: Artifact | str | None = None,
        since: datetime | timedelta | None = None,
        before: datetime | timedelta | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> DeadLetterPage:
        """Return open letters, oldest first; shards answer from memory.

        Args:
            queue: Of this queue only.
            agent: Of this agent only.
            error_type: Only those whose last attempt ended with an error of this class.
            workflow: Of this workflow only: a correlation id, or an artifact.
            since: Only those that failed at this time, or so long ago, or later.
            before: Only those that failed before this time, or longer ago.
            limit: Letters of a page, from 1 to 1000.
            cursor: `DeadLetterPage.cursor` of the page before; None: the first page.

        Raises:
            ConfigurationError: A filter, the limit or the cursor makes no sense.
            StoreUnavailableError: A shard does not answer; retryable.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise ConfigurationError(
                f"dead_letters.list(limit={limit!r}): give a number from 1 to {MAX_PAGE}."
            )
        board = await self._board()
        query = query_of(
            board.now_us(), queue=queue, agent=agent, error_type=error_type, workflow=workflow, since=since,
            before=before, limit=limit, after=place_of(cursor),
        )  # fmt: skip
        rows = await board.page(query)
        full = len(rows) == limit
        return DeadLetterPage(
            tuple(OpenLetter.of(row) for row in rows), cursor_of(rows[-1].place) if full else None
        )

    async def count(self, **selector: Any) -> int:
        """Count open letters; filters as for `list`."""
        board = await self._board()
        return await board.count(query_of(board.now_us(), **selector))

    async def get(self, letter: Artifact | uuid.UUID | str) -> DeadLetterDetails:
        """Return everything about a letter, also about one that was redriven or discarded.

        Raises:
            ArtifactNotFoundError: There is no such letter.
        """
        board, key = await self._board(), letter_id(letter)
        [found] = await board.fetch([key])
        if found is None or found.type != "DeadLetter":
            raise unknown_letter(key)
        row = await board.find(key)
        content = self._registry.validate(found.type, found.version, found.payload, cls=DeadLetter)
        assert isinstance(content, DeadLetter)
        inputs = await board.fetch([uuid.UUID(entry.id).bytes for entry in content.inputs])
        edited = {} if row is None else dict(row.letter.replaced)
        replaced = dict(zip(edited, await board.fetch(list(edited.values())), strict=True))
        conditions = conditions_of(content)
        if not content.conditions:
            for envelope in inputs:
                if envelope is not None and (
                    checks := await board.conditions(content.subscription, envelope)
                ):
                    conditions[uuid.UUID(bytes=envelope.id)] = tuple(checks)
        return DeadLetterDetails(
            uuid.UUID(bytes=key), content, Artifact.from_envelope(found), row is not None,
            tuple(artifact_of(envelope) for envelope in inputs),
            {uuid.UUID(bytes=old): artifact_of(new) for old, new in replaced.items()},
            await self._history(board, found), conditions, "failure" if content.conditions else "now",
        )  # fmt: skip

    async def _history(self, board: LetterBoard, letter: Envelope) -> tuple[DeadLetterAction, ...]:
        actions = await board.actions(letter.correlation_id, letter.id)
        read = self._registry.validate
        models = [read(e.type, e.version, e.payload, cls=DeadLetterAction) for e in actions]
        return tuple(model for model in models if isinstance(model, DeadLetterAction))

    # -- doing ---------------------------------------------------------------------------------

    async def edit(
        self,
        letter: Artifact | uuid.UUID | str,
        model: BaseModel | Mapping[str, Any],
        *,
        input: Artifact | uuid.UUID | str | None = None,
        by: str = "",
    ) -> Artifact:
        """Have a redrive use another payload in place of that of an input. The input itself never changes.

        The edited one is an artifact of its own: of the input's workflow, as visible, with the input as its parent.
        No agent is matched with it. Doing the same edit again changes nothing.

        Args:
            letter: An open letter, or its id.
            model: The new payload: an instance of the input's type, or a mapping that fits it.
            input: Which input; None: the only one of the model's type.
            by: Who does it, for the history.

        Returns:
            The edited artifact.

        Raises:
            ArtifactSchemaError: The payload does not fit the type of the input.
            ArtifactNotFoundError: The letter is not open, or the input is gone.
            ConfigurationError: It is not clear which input is meant.
        """
        by = checked_text("by", by, MAX_BY_CHARS)
        board, key = await self._board(), letter_id(letter)
        row = await self._open(board, key)
        envelopes = await board.fetch(list(row.letter.inputs))
        original = self._chosen(row, envelopes, model, input)
        new = self._edited(board, key, original, model)
        order = LetterOrder("edit", row.slot, key, old=original.id, new=new, by=by)
        answer = await board.edit(order)
        if answer != "ok":
            raise letter_not_open(key)
        return Artifact.from_envelope(new)

    async def redrive(self, letter: Artifact | uuid.UUID | str, *, by: str = "") -> bool:
        """Run the agent again on a letter's inputs, edited ones in place of those that they replace.

        A letter is redriven once, however many ask for it. If the run fails again, that is a new letter.

        Args:
            letter: A letter, or its id.
            by: Who does it, for the history.

        Returns:
            True; False when the letter is not open any more.

        Raises:
            ArtifactNotFoundError: There is no such letter, or an input of it is gone.
            ConfigurationError: Its workflow was cancelled.
            BackpressureError: The board stayed full; retryable.
            StoreUnavailableError: A shard went away, and maybe did it before: ask again; retryable.
        """
        by = checked_text("by", by, MAX_BY_CHARS)
        board, key = await self._board(), letter_id(letter)
        row = await board.find(key)
        while row is not None:
            answer = await board.redrive_one(row, by)
            if answer == "cancelled":
                raise ConfigurationError(
                    f"Workflow {row.letter.envelope.correlation_id!r} was cancelled: its dead letters can only be "
                    "discarded. Publish the input in a new workflow."
                )
            if answer != "mismatch":
                return answer == "ok"
            row = await board.find(key)  # somebody has edited it meanwhile
        await self._known(board, key)
        return False

    async def redrive_all(
        self,
        *,
        queue: str | None = None,
        agent: str | None = None,
        error_type: str | None = None,
        workflow: Artifact | str | None = None,
        since: datetime | timedelta | None = None,
        before: datetime | timedelta | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        by: str = "",
    ) -> RedriveReport:
        """Redrive every letter that is open now and that the filters select, oldest first, each exactly once.

        Letters of runs that fail again meanwhile are not redriven again by this call. After a crash of this program
        call it again: what was redriven is not open any more. Cancelling it stops between two batches.

        Args:
            queue: As for `list`, like the other filters.
            agent: See `list`.
            error_type: See `list`.
            workflow: See `list`.
            since: See `list`.
            before: See `list`.
            rate: Letters per second over the whole board; None: as fast as the board takes them.
            dry_run: Only count what would be redriven.
            by: Who does it, for the history.

        Raises:
            ConfigurationError: A filter or the rate makes no sense.
            BackpressureError: The board stayed full; retryable.
            StoreUnavailableError: A shard stayed away; retryable.
        """
        from flock_ray.letters.redriving import check_rate, redrive_all

        check_rate(rate)
        board = await self._board()
        query = query_of(
            board.now_us(), queue=queue, agent=agent, error_type=error_type, workflow=workflow, since=since,
            before=before,
        )  # fmt: skip
        return await redrive_all(
            board, query, rate=rate, dry_run=dry_run, by=checked_text("by", by, MAX_BY_CHARS)
        )

    async def discard(self, letter: Artifact | uuid.UUID | str, *, by: str = "", reason: str = "") -> bool:
        """Give a letter up: it is not open any more. It stays on the board, with who gave it up and why.

        Returns:
            True; False when the letter is not open any more.

        Raises:
            ArtifactNotFoundError: There is no such letter.
        """
        by, reason = checked_text("by", by, MAX_BY_CHARS), checked_text("reason", reason, MAX_REASON_CHARS)
        board, key = await self._board(), letter_id(letter)
        row = await board.find(key)
        if row is not None:
            order = LetterOrder("discard", row.slot, key, by=by, reason=reason)
            [answer] = await board.order([order])
            return answer == "ok"
        await self._known(board, key)
        return False

    # -- inside --------------------------------------------------------------------------------

    async def _board(self) -> LetterBoard:
        return LetterBoard(await self._ready())

    @staticmethod
    async def _known(board: LetterBoard, key: bytes) -> None:
        [found] = await board.fetch([key])
        if found is None or found.type != "DeadLetter":
            raise unknown_letter(key)

    async def _open(self, board: LetterBoard, key: bytes) -> LetterRow:
        row = await board.find(key)
        if row is None:
            await self._known(board, key)
            raise letter_not_open(key)
        return row

    def _chosen(
        self,
        row: LetterRow,
        envelopes: Sequence[Envelope | None],
        model: BaseModel | Mapping[str, Any],
        wanted: Artifact | uuid.UUID | str | None,
    ) -> Envelope:
        """Return the input that an edit is for."""
        letter = row.letter
        if wanted is not None:
            key = letter_id(wanted)
            back = {new: old for old, new in letter.replaced.items()}
            places = [i for i, old in enumerate(letter.inputs) if old == back.get(key, key)]
        elif isinstance(model, BaseModel) and len(letter.inputs) > 1:
            name = self._registry.name_for(type(model))
            places = [i for i, e in enumerate(envelopes) if e is not None and e.type == name]
        else:
            places = list(range(len(letter.inputs)))
        if len(places) != 1:
            inputs = ", ".join(str(uuid.UUID(bytes=key)) for key in letter.inputs)
            raise ConfigurationError(f"edit(): which input? Give input= one of these: {inputs}.")
        chosen = envelopes[places[0]]
        if chosen is None:
            raise ArtifactNotFoundError(
                f"Input {uuid.UUID(bytes=letter.inputs[places[0]])} of the dead letter is gone: discard the letter."
            )
        return chosen

    def _edited(
        self, board: LetterBoard, letter: bytes, original: Envelope, model: BaseModel | Mapping[str, Any]
    ) -> Envelope:
        """Return the edited artifact, checked against the type of the input."""
        version, payload = edited_payload(self._registry, original.type, model, board.max_payload_bytes)
        key = derive_id(b"letter-edit", letter, original.id, payload)
        return Envelope(
            key, original.type, version, payload, original.correlation_id, original.slot, EXTERNAL, board.now_us(),
            original.tags, original.visibility, original.partition_key, (original.id,), None, original.priority,
            original.via,
        )  # fmt: skip
