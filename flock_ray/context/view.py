"""The board as one run may see it: what providers read from."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit
from flock_ray.context.reader import MAX_READ_BYTES, age
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.rows import ERASED, ArtifactQuery
from flock_ray.core.visibility import AgentIdentity, decode_visibility, earliest_visible_us
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, UnknownTypeError
from flock_ray.filters import FilterConfig

if TYPE_CHECKING:
    from flock_ray.engines.services import ArtifactReader

__all__ = ["MAX_ARTIFACTS", "ContextView", "is_visible"]

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_ARTIFACTS = 1000
"""Most artifacts that one read returns, and most of one context."""
MAX_SCANNED = 10_000
"""Artifacts that one read looks at; the rest of them are not visible to the agent, or left out by type."""
PAGE = 200


def is_visible(envelope: Envelope, agent: AgentIdentity, now_us: int) -> bool:
    """Tell whether an agent may see an artifact now; one whose visibility can't be read is hidden."""
    if envelope.visibility is None:
        return True
    try:
        visibility = decode_visibility(envelope.visibility)
    except ConfigurationError:
        return False
    since_us = earliest_visible_us(visibility, agent, envelope.created_us)
    return since_us is not None and since_us <= now_us


class ContextView:
    """Reads the board for one run. It only ever returns what the agent may see, and never the run's own inputs.

    Every read takes the newest that fit, at most 1000 artifacts and 16 MiB, and returns them oldest first. Nothing
    is cached: the second of two reads may see more. All methods raise StoreUnavailableError, retryable, while a
    shard does not answer.
    """

    def __init__(
        self,
        reader: ArtifactReader | None,
        identities: tuple[AgentIdentity, ...],
        *,
        now_us: int,
        registry: TypeRegistry,
        exclude: Collection[bytes] = (),
        ledger: dict[bytes, Envelope] | None = None,
    ) -> None:
        """Look at a board.

        Args:
            reader: Reads it; None: there is no board, so every read raises.
            identities: Who looks: what is seen, all of them may see.
            now_us: The present, for visibilities that begin later.
            registry: Names types.
            exclude: Ids that are left out of every read.
            ledger: Takes what was read, by id; None: a new one.
        """
        self._reader = reader
        self._identities = identities
        self._now_us = now_us
        self._registry = registry
        self._exclude = frozenset(exclude)
        self.ledger: dict[bytes, Envelope] = {} if ledger is None else ledger
        """What was read for this run, as it is stored."""
        self.cut: list[str] = []
        """Which reads ended at a limit of ours."""

    def narrowed(self, identity: AgentIdentity) -> ContextView:
        """Return a view that shows what also somebody else may see."""
        view = ContextView(
            self._reader, (*self._identities, identity), now_us=self._now_us, registry=self._registry,
            exclude=self._exclude, ledger=self.ledger,
        )  # fmt: skip
        view.cut = self.cut
        return view

    async def newest(
        self, filters: FilterConfig | None = None, *, limit: int = 50, exclude_types: Iterable[str] = ()
    ) -> builtins.list[Artifact]:
        """Return the newest artifacts that a filter selects, oldest first.

        Args:
            filters: None is no condition.
            limit: At most so many, from 1; never more than 1000.
            exclude_types: Names of types that are left out.

        Raises:
            ConfigurationError: The filter or the limit makes no sense.
        """
        query = ArtifactQuery() if filters is None else filters.query(self._type_key)
        left_out = {self._type_key(name) for name in exclude_types}
        found = await self._read(query, checked_limit(limit, "limit="), lambda e: e.type not in left_out)
        return [Artifact.from_envelope(envelope) for envelope in found]

    async def query_artifacts(
        self, filters: FilterConfig | None = None, *, limit: int = 50, offset: int = 0
    ) -> tuple[builtins.list[Artifact], int]:
        """Return a page of artifacts, oldest first, and how many there are up to its end.

        Pages count from the newest: the first one has the newest artifacts. `flock.store` counts from the oldest.

        Args:
            filters: None is no condition.
            limit: How many; 0 or less is all, which is 1000 at most.
            offset: How many of the newest to leave out.
        """
        wanted = MAX_ARTIFACTS if limit <= 0 else limit
        found = await self.newest(filters, limit=min(wanted + max(0, offset), MAX_ARTIFACTS))
        end = max(0, len(found) - max(0, offset))
        return found[max(0, end - wanted) : end], len(found)

    async def list(self) -> builtins.list[Artifact]:
        """Return the newest artifacts of the whole board."""
        return await self.newest(limit=MAX_ARTIFACTS)

    async def list_by_type(self, type_name: str) -> builtins.list[Artifact]:
        """Return the newest artifacts of a type."""
        return await self.newest(FilterConfig(type_names={type_name}), limit=MAX_ARTIFACTS)

    async def get_by_type(
        self, artifact_type: type[ModelT], *, correlation_id: str | None = None
    ) -> builtins.list[ModelT]:
        """Return the newest artifacts of a type as models.

        Args:
            artifact_type: A registered class.
            correlation_id: Only those of a workflow; None: of all.

        Raises:
            UnknownTypeError: The class is not registered.
        """
        name = self._registry.name_for(artifact_type)
        filters = FilterConfig(type_names={name}, correlation_id=correlation_id)
        found = await self.newest(filters, limit=MAX_ARTIFACTS)
        return [cast(ModelT, a.model(self._registry, cls=artifact_type)) for a in found]

    async def get(self, artifact_id: uuid.UUID | str) -> Artifact | None:
        """Return an artifact; None when there is none that the agent may see."""
        key = (artifact_id if isinstance(artifact_id, uuid.UUID) else uuid.UUID(artifact_id)).bytes
        found = [e for e in await self._board().get([key]) if self._shows(e)]
        self.ledger.update((e.id, e) for e in found)
        return Artifact.from_envelope(found[0]) if found else None

    # -- inside --------------------------------------------------------------------------------

    def _board(self) -> ArtifactReader:
        if self._reader is None:
            raise ConfigurationError(
                "There is no board to read a context from: this runner was made without a reader. "
                "Run the agent on a Flock or a VirtualFlock."
            )
        return self._reader

    def _shows(self, envelope: Envelope) -> bool:
        return (
            envelope.id not in self._exclude
            and envelope.payload != ERASED
            and all(is_visible(envelope, identity, self._now_us) for identity in self._identities)
        )

    async def _read(
        self, query: ArtifactQuery, limit: int, wanted: Callable[[Envelope], bool]
    ) -> builtins.list[Envelope]:
        reader, limit = self._board(), min(limit, MAX_ARTIFACTS)
        newest: builtins.list[Envelope] = []
        before: tuple[int, bytes] | None = None
        scanned, left = 0, MAX_READ_BYTES
        size = min(limit + len(self._exclude), MAX_ARTIFACTS)
        while len(newest) < limit:
            page = await reader.newest(query, size, before=before)
            scanned += len(page)
            for envelope in reversed(page):
                if len(newest) == limit or not (self._shows(envelope) and wanted(envelope)):
                    continue
                left -= len(envelope.payload)
                if left < 0 and newest:
                    break
                newest.append(envelope)
            if len(newest) == limit:
                break
            if left < 0 or scanned >= MAX_SCANNED:
                self.cut.append(f"a read ended with {len(newest)} artifacts after it had looked at {scanned}")
                break
            if not page or (len(page) < size and sum(len(e.payload) for e in page) < MAX_READ_BYTES // 2):
                break  # there are no more: a reply that is full of bytes may be short
            before, size = age(page[0]), PAGE
        self.ledger.update((e.id, e) for e in newest)
        return newest[::-1]

    def _type_key(self, name: str) -> str:
        try:
            return self._registry.get(name).name
        except UnknownTypeError:
            return name
