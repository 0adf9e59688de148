"""Who may see an artifact: visibilities, their conjunction and their wire form.

A visibility never looks at a clock: times enter as values. Every kind answers one question,
"how long after its creation does this agent see the artifact?", and all else follows: from
that, access only grows with time, a conjunction takes the longest delay of its parts, and
nothing that is unknown (no clock, no creation time) ever widens access.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
)
from pydantic import field_validator as validator

from flock_ray.errors import ConfigurationError

__all__ = [
    "AfterVisibility",
    "AgentIdentity",
    "AllOfVisibility",
    "AnyVisibility",
    "LabelledVisibility",
    "PrivateVisibility",
    "PublicVisibility",
    "TenantVisibility",
    "Visibility",
    "decode_visibility",
    "earliest_visible",
    "earliest_visible_us",
    "encode_visibility",
    "narrow",
    "only_for",
]

Names = Annotated[AbstractSet[str], AfterValidator(frozenset)]
"""A set of names; any kind of set is taken, and kept frozen."""

_AT_ONCE = timedelta(0)
_MICROSECOND = timedelta(microseconds=1)


class AgentIdentity(BaseModel):
    """Who an agent, or a reader of the board, is."""

    model_config = ConfigDict(frozen=True)

    name: str
    labels: Names = frozenset()
    tenant_id: str | None = None
    """None: belongs to no tenant, so it sees no tenant's artifacts."""


class Visibility(BaseModel):
    """The base of the six kinds; `kind` tells them apart in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def allows(
        self,
        agent: AgentIdentity,
        *,
        now: datetime | None = None,
        created_at: datetime | None = None,
    ) -> bool:
        """Tell whether an agent may see the artifact.

        Args:
            agent: Who asks.
            now: The present, aware; None means unknown: a delay then counts as not over.
            created_at: When the artifact was made, aware; None means unknown, as above.

        Raises:
            ConfigurationError: A datetime is naive.
        """
        _refuse_naive(now, "now")
        _refuse_naive(created_at, "created_at")
        delay = self.visible_after(agent)
        if delay is None:
            return False
        if delay <= _AT_ONCE:
            return True
        return now is not None and created_at is not None and now - created_at >= delay

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return how long after its creation the agent sees the artifact; None is never."""
        raise NotImplementedError


class PublicVisibility(Visibility):
    """Everybody sees it."""

    kind: Literal["Public"] = "Public"

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return zero."""
        return _AT_ONCE


class PrivateVisibility(Visibility):
    """Only the agents of these names see it; with no names, nobody."""

    kind: Literal["Private"] = "Private"
    agents: Names = frozenset()

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return zero for the named agents."""
        return _AT_ONCE if agent.name in self.agents else None

    @field_serializer("agents", when_used="json")
    def _stable(self, names: AbstractSet[str]) -> list[str]:
        return sorted(names)


class LabelledVisibility(Visibility):
    """Agents that have all of these labels see it."""

    kind: Literal["Labelled"] = "Labelled"
    required_labels: Names

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return zero for agents that have every label."""
        return _AT_ONCE if self.required_labels <= agent.labels else None

    @field_serializer("required_labels", when_used="json")
    def _stable(self, labels: AbstractSet[str]) -> list[str]:
        return sorted(labels)


class TenantVisibility(Visibility):
    """Agents of this tenant see it."""

    kind: Literal["Tenant"] = "Tenant"
    tenant_id: str | None = None
    """None: every tenant."""

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return zero for agents of the tenant."""
        return _AT_ONCE if self.tenant_id in (None, agent.tenant_id) else None


class AfterVisibility(Visibility):
    """Nobody sees it for a while; afterwards `then` decides.

    The delay counts from the artifact's creation, also inside another AfterVisibility.
    """

    kind: Literal["After"] = "After"
    ttl: timedelta = Field(ge=timedelta(0))
    then: AnyVisibility | None = None
    """None: everybody, once the delay is over."""

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return the longer of this delay and the one of `then`."""
        rest = _AT_ONCE if self.then is None else self.then.visible_after(agent)
        return None if rest is None else max(self.ttl, rest)


class AllOfVisibility(Visibility):
    """Agents that every part allows see it: what is made from several inputs."""

    kind: Literal["AllOf"] = "AllOf"
    parts: tuple[AnyVisibility, ...] = Field(min_length=1)
    """Flat, each part once; public parts are dropped unless nothing else is left."""

    @validator("parts")
    @classmethod
    def _flat(cls, parts: tuple[Visibility, ...]) -> tuple[Visibility, ...]:
        flat = tuple(dict.fromkeys(_flatten(parts)))
        return tuple(part for part in flat if not isinstance(part, PublicVisibility)) or flat

    def visible_after(self, agent: AgentIdentity) -> timedelta | None:
        """Return the longest delay of the parts; None when any part never allows the agent."""
        longest = _AT_ONCE
        for part in self.parts:
            delay = part.visible_after(agent)
            if delay is None:
                return None
            longest = max(longest, delay)
        return longest


AnyVisibility = Annotated[
    PublicVisibility
    | PrivateVisibility
    | LabelledVisibility
    | TenantVisibility
    | AfterVisibility
    | AllOfVisibility,
    Field(discriminator="kind"),
]
"""A visibility as a field of a pydantic model; in JSON told apart by `kind`."""

AfterVisibility.model_rebuild()
AllOfVisibility.model_rebuild()


def only_for(*agents: str) -> PrivateVisibility:
    """Make a visibility for these agents alone.

    Raises:
        ConfigurationError: No name was given, or an empty one.
    """
    if not agents or not all(agents):
        raise ConfigurationError('only_for() needs agent names: write only_for("auditor", "boss").')
    return PrivateVisibility(agents=frozenset(agents))


def narrow(*visibilities: Visibility | None) -> Visibility:
    """Combine the visibilities of several inputs into one that allows no more than any of them.

    Args:
        visibilities: What to combine; None counts as public.

    Returns:
        Public when all are public or there are none, the one that is left when they are equal,
        and otherwise their conjunction.
    """
    distinct = dict.fromkeys(part for part in visibilities if part is not None)
    if len(distinct) == 1:
        only = next(iter(distinct))
        if not isinstance(only, AllOfVisibility) or len(only.parts) > 1:
            return only
    flat = dict.fromkeys(_flatten(tuple(distinct)))
    parts = [part for part in flat if not isinstance(part, PublicVisibility)]
    if not parts:
        return _PUBLIC
    if len(parts) == 1:
        return parts[0]
    return AllOfVisibility.model_validate({"parts": tuple(parts)})


def earliest_visible(visibility: Visibility | None, agent: AgentIdentity, created_at: float) -> float | None:
    """Tell when an agent first sees an artifact.

    Args:
        visibility: Of the artifact; None is public.
        agent: Who waits.
        created_at: When the artifact was made, in seconds since the Unix epoch.

    Returns:
        Seconds since the Unix epoch; `created_at` itself for at once; None for never.
    """
    delay = _AT_ONCE if visibility is None else visibility.visible_after(agent)
    return None if delay is None else created_at + delay.total_seconds()


def earliest_visible_us(visibility: Visibility | None, agent: AgentIdentity, created_us: int) -> int | None:
    """Tell the same as `earliest_visible` in whole microseconds, exactly."""
    delay = _AT_ONCE if visibility is None else visibility.visible_after(agent)
    return None if delay is None else created_us + delay // _MICROSECOND


def encode_visibility(visibility: Visibility | None) -> bytes | None:
    """Encode for the wire: canonical JSON, and None for public, the most frequent by far.

    Raises:
        ConfigurationError: Not one of the kinds of this module.
    """
    if visibility is None or isinstance(visibility, PublicVisibility):
        return None
    if type(visibility) not in _KINDS:
        raise ConfigurationError(
            f"{type(visibility).__qualname__} is no visibility that other processes can read: "
            f"use {', '.join(kind.__name__ for kind in _KINDS)}, or a function that returns one of them."
        )
    return visibility.__pydantic_serializer__.to_json(visibility)


def decode_visibility(data: bytes | None) -> Visibility:
    """Decode what `encode_visibility` made; equal bytes may give the same object.

    Raises:
        ConfigurationError: The bytes hold no visibility. Nothing is guessed: the artifact stays hidden.
    """
    return _PUBLIC if data is None else _decode(data)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[AnyVisibility]:
    """Build the union's adapter on first use: it costs some milliseconds."""
    return TypeAdapter(AnyVisibility)


@lru_cache(maxsize=1024)
def _decode(data: bytes) -> Visibility:
    try:
        return _adapter().validate_json(data)
    except ValidationError as error:
        raise ConfigurationError(
            f"These {len(data)} bytes hold no visibility: were they written by a newer flock_ray? "
            "Upgrade this process."
        ) from error


_PUBLIC = PublicVisibility()

_KINDS: tuple[type[Visibility], ...] = (
    PublicVisibility,
    PrivateVisibility,
    LabelledVisibility,
    TenantVisibility,
    AfterVisibility,
    AllOfVisibility,
)


def _flatten(parts: tuple[Visibility, ...]) -> Iterator[Visibility]:
    """Yield the parts with every conjunction replaced by its own parts."""
    for part in parts:
        if isinstance(part, AllOfVisibility):
            yield from _flatten(part.parts)
        else:
            yield part


def _refuse_naive(moment: datetime | None, name: str) -> None:
    if moment is not None and moment.tzinfo is None:
        raise ConfigurationError(
            f"`{name}` is a naive datetime ({moment}): give it a time zone, as in datetime.now(UTC)."
        )
