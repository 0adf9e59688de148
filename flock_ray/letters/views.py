"""What one sees of dead letters, and what the arguments of calls about them mean."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.asking import workflow_id
from flock_ray.core.letter_index import START, LetterQuery, LetterRow, Place
from flock_ray.core.matching import Check
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.system_types import DeadLetter, DeadLetterAction
from flock_ray.core.wire import Envelope
from flock_ray.errors import ArtifactNotFoundError, ConfigurationError

__all__ = ["DeadLetterDetails", "DeadLetterPage", "OpenLetter"]

MAX_PAGE = 1_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class OpenLetter:
    """A dead letter that waits for somebody to redrive or discard it."""

    id: uuid.UUID
    queue: str
    agent: str
    error_type: str
    workflow: str
    failed_at: datetime
    inputs: tuple[uuid.UUID, ...]
    redrives: int
    """Dead letters of the same inputs before this one."""
    edits: int

    @classmethod
    def of(cls, row: LetterRow) -> OpenLetter:
        """Show a letter as a shard keeps it."""
        letter = row.letter
        return cls(
            uuid.UUID(bytes=letter.envelope.id), letter.queue, letter.agent, letter.error_type,
            letter.envelope.correlation_id, _EPOCH + timedelta(microseconds=letter.at_us),
            tuple(uuid.UUID(bytes=key) for key in letter.inputs), letter.redrives, letter.edits,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """Open dead letters, oldest first."""

    letters: tuple[OpenLetter, ...]
    cursor: str | None
    """Leads to the next page; None: this is the last one."""

    def __iter__(self) -> Iterator[OpenLetter]:
        """Iterate over the letters."""
        return iter(self.letters)

    def __len__(self) -> int:
        """Count the letters of this page."""
        return len(self.letters)


@dataclass(frozen=True, slots=True)
class DeadLetterDetails:
    """Everything about one dead letter, open or not."""

    id: uuid.UUID
    letter: DeadLetter
    """The error and all attempts."""
    artifact: Artifact
    open: bool
    inputs: tuple[Artifact | None, ...]
    """What the run got, in its order; None: that artifact is gone."""
    edited: Mapping[uuid.UUID, Artifact | None] = field(default_factory=dict)
    """By input, what a redrive uses in its place."""
    history: tuple[DeadLetterAction, ...] = ()
    """What was done with it, oldest first."""
    conditions: Mapping[uuid.UUID, tuple[Check, ...]] = field(default_factory=dict)
    """By input: each condition of the subscription, and its value."""
    conditions_at: Literal["failure", "now"] = "failure"
    """`failure`: as the worker of the last attempt evaluated them; `now`: that worker died, so these are the values
    that today's agent gives."""

    def models(self, registry: TypeRegistry | None = None) -> list[BaseModel | None]:
        """Decode the inputs; None where one is gone.

        Raises:
            UnknownTypeError: A type is not registered in this process.
        """
        given = () if registry is None else (registry,)
        return [None if artifact is None else artifact.model(*given) for artifact in self.inputs]


def query_of(
    now_us: int,
    *,
    queue: str | None = None,
    agent: str | None = None,
    error_type: str | None = None,
    workflow: Artifact | str | None = None,
    since: datetime | timedelta | None = None,
    before: datetime | timedelta | None = None,
    limit: int = MAX_PAGE,
    after: Place = START,
) -> LetterQuery:
    """Return what filters mean.

    Raises:
        ConfigurationError: One makes no sense.
    """
    names: tuple[tuple[str, object], ...] = (("queue", queue), ("agent", agent), ("error_type", error_type))
    for name, value in names:
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigurationError(f"dead_letters: {name}={value!r}: give a name.")
    return LetterQuery(
        queue, agent, error_type, None if workflow is None else workflow_id(workflow),
        _moment_us("since", since, now_us) if since is not None else 0,
        _moment_us("before", before, now_us) if before is not None else 0, after, limit,
    )  # fmt: skip


def letter_id(letter: Artifact | uuid.UUID | str) -> bytes:
    """Return the id of a letter or an input, however it is given.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(letter, Artifact):
        return letter.id.bytes
    try:
        return (letter if isinstance(letter, uuid.UUID) else uuid.UUID(str(letter))).bytes
    except ValueError:
        raise ConfigurationError(f"{letter!r} is no id of a dead letter: take one of list().") from None


def conditions_of(letter: DeadLetter) -> dict[uuid.UUID, tuple[Check, ...]]:
    """Return the conditions that a letter has kept, by input."""
    found: dict[uuid.UUID, tuple[Check, ...]] = {}
    for one in letter.conditions:
        check = Check(one.condition, one.passed, one.value, one.error or None)
        key = uuid.UUID(one.input)
        found[key] = (*found.get(key, ()), check)
    return found


def artifact_of(envelope: Envelope | None) -> Artifact | None:
    """Show an artifact; None for one that is gone."""
    return None if envelope is None else Artifact.from_envelope(envelope)


def _moment_us(name: str, moment: object, now_us: int) -> int:
    if isinstance(moment, timedelta):
        return max(1, now_us - moment // _MICROSECOND)
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return max(1, (moment - _EPOCH) // _MICROSECOND)
    raise ConfigurationError(f"dead_letters: {name}={moment!r}: give an aware datetime or a timedelta.")


def checked_text(name: str, value: object, limit: int) -> str:
    """Return a text that is short enough."""
    if isinstance(value, str) and len(value) <= limit:
        return value
    raise ConfigurationError(f"dead_letters: {name}= takes a text of at most {limit} characters.")


def cursor_of(place: Place) -> str:
    """Return the text that leads to what is behind a place."""
    return f"{place[0]:x}-{place[1].hex()}"


def place_of(cursor: object) -> Place:
    """Return the place that a cursor leads to."""
    if cursor is None:
        return START
    if not isinstance(cursor, str) or not re.fullmatch(r"[0-9a-f]{1,16}-[0-9a-f]{32}", cursor):
        raise ConfigurationError("dead_letters.list(cursor=...) takes the cursor of the page before.")
    time_us, _, key = cursor.partition("-")
    return int(time_us, 16), bytes.fromhex(key)


def unknown_letter(key: bytes) -> ArtifactNotFoundError:
    """Make the error for an id that is none of a letter."""
    return ArtifactNotFoundError(f"There is no dead letter {uuid.UUID(bytes=key)}: take an id of list().")


def letter_not_open(key: bytes) -> ArtifactNotFoundError:
    """Make the error for a letter that is not open any more."""
    return ArtifactNotFoundError(
        f"Dead letter {uuid.UUID(bytes=key)} is not open any more: it was redriven or discarded. See get()."
    )
