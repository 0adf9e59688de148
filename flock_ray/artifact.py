"""The artifact as users see it: an envelope whose parts are decoded when they are asked for.

Made without Ray, and cheap enough to be made for every input of every run.
"""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from msgspec.structs import replace
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json
from pydantic_core import to_json as dump_json

from flock_ray.core.ids import slot_of
from flock_ray.core.registry import TypeRegistry, to_json, type_registry
from flock_ray.core.visibility import Visibility, decode_visibility, encode_visibility
from flock_ray.core.wire import Envelope
from flock_ray.errors import ArtifactSchemaError, ConfigurationError, UnknownTypeError

__all__ = ["Artifact"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNSEALED = b""


class Artifact:
    """An immutable typed fact on the blackboard, or one that an engine is about to publish.

    The dict that `payload` gives is this object's own working copy: `model()` and, before it is
    published, the board see changes of it. What is on the board never changes.
    """

    __slots__ = ("_header", "_model", "_payload")

    _header: Envelope
    """Everything but the content of artifacts that are not published: their payload is empty bytes."""
    _model: BaseModel | None
    _payload: Any

    def __init__(
        self,
        *,
        type: str,
        payload: Mapping[str, Any] | BaseModel,
        produced_by: str = "",
        id: uuid.UUID | str | None = None,
        correlation_id: str | None = None,
        partition_key: str | None = None,
        tags: Iterable[str] = (),
        visibility: Visibility | Mapping[str, Any] | None = None,
        created_at: datetime | str | None = None,
        version: int = 1,
        parents: Iterable[uuid.UUID | str] = (),
        activation_id: uuid.UUID | str | None = None,
    ) -> None:
        """Make an artifact that is not on the board yet.

        Values may also come in the form that `to_dict` gives them.

        Args:
            type: Registered name of its type.
            payload: Content by field name, or a model, which is then encoded when it is needed.
            produced_by: Name of the agent, or of whatever made it.
            id: None for a new random one.
            correlation_id: Its workflow; None lets the board choose when it is published.
            partition_key: Decides where it is stored; None leaves that to the correlation id.
            tags: Any strings.
            visibility: None is public.
            created_at: Aware; None is now.
            version: Schema version of the payload, from 1.
            parents: Ids of the artifacts that it was made from.
            activation_id: The run that made it; None when it comes from outside.

        Raises:
            ConfigurationError: `created_at` is naive, or `visibility` is none.
        """
        self._model = payload if isinstance(payload, BaseModel) else None
        self._payload = None if isinstance(payload, BaseModel) else dict(payload)
        self._header = Envelope(
            id=uuid.uuid4().bytes if id is None else _id_bytes(id),
            type=type,
            version=version,
            payload=_UNSEALED,
            correlation_id=correlation_id or "",
            slot=slot_of(partition_key if partition_key is not None else correlation_id or ""),
            produced_by=produced_by,
            created_us=_microseconds(created_at),
            tags=tuple(sorted(set(tags))),
            visibility=_visibility_bytes(visibility),
            partition_key=partition_key,
            parents=tuple(_id_bytes(parent) for parent in parents),
            activation_id=None if activation_id is None else _id_bytes(activation_id),
        )

    @classmethod
    def from_envelope(cls, envelope: Envelope) -> Artifact:
        """Wrap an artifact of the board; nothing is decoded before it is asked for."""
        artifact = cls.__new__(cls)
        artifact._header = envelope
        artifact._model = None
        artifact._payload = None
        return artifact

    @classmethod
    def from_model(cls, model: BaseModel, **fields: Any) -> Artifact:
        """Make an artifact of a model; `fields` as for the constructor.

        The model may be of a class that is not registered yet.
        """
        kind = model.__class__
        try:
            name, version = type_registry.name_for(kind), type_registry.version_for(kind)
        except UnknownTypeError:
            name, version = kind.__qualname__.rpartition("<locals>.")[2], 1
        return cls(type=name, version=version, payload=model, **fields)

    @property
    def envelope(self) -> Envelope:
        """Its form on the wire. Before it is published: encoded anew on every access.

        Raises:
            ArtifactSchemaError: A value of the payload has no JSON form.
        """
        if self._header.payload != _UNSEALED:
            return self._header
        return replace(self._header, payload=self._content())

    @property
    def id(self) -> uuid.UUID:
        """Its identity; two artifacts of the same id are equal."""
        return uuid.UUID(bytes=self._header.id)

    @property
    def type(self) -> str:
        """Registered name of its type."""
        return self._header.type

    @property
    def version(self) -> int:
        """Schema version of the payload, from 1."""
        return self._header.version

    @property
    def payload(self) -> dict[str, Any]:
        """Content in JSON terms: a datetime is a string. See the class about changing it."""
        if self._payload is None:
            self._payload = from_json(self._content())
        payload: dict[str, Any] = self._payload
        return payload

    @property
    def produced_by(self) -> str:
        """Name of the agent, or of whatever made it."""
        return self._header.produced_by

    @property
    def correlation_id(self) -> str | None:
        """Its workflow; None before the board has chosen one."""
        return self._header.correlation_id or None

    @property
    def partition_key(self) -> str | None:
        """The explicit key; None when the correlation id decides where it is stored."""
        return self._header.partition_key

    @property
    def tags(self) -> set[str]:
        """Its tags, as a set of the caller's own."""
        return set(self._header.tags)

    @property
    def visibility(self) -> Visibility:
        """Who may see it."""
        return decode_visibility(self._header.visibility)

    @property
    def is_public(self) -> bool:
        """Whether everybody may see it; cheaper than to look at `visibility`."""
        return self._header.visibility is None

    @property
    def created_at(self) -> datetime:
        """When it was made, in UTC."""
        return _EPOCH + timedelta(microseconds=self._header.created_us)

    @property
    def parents(self) -> tuple[uuid.UUID, ...]:
        """Ids of the artifacts that it was made from."""
        return tuple(uuid.UUID(bytes=parent) for parent in self._header.parents)

    @property
    def activation_id(self) -> uuid.UUID | None:
        """The run that made it; None when it comes from outside."""
        activation = self._header.activation_id
        return None if activation is None else uuid.UUID(bytes=activation)

    def model(
        self, registry: TypeRegistry = type_registry, *, cls: builtins.type[BaseModel] | None = None
    ) -> BaseModel:
        """Decode the payload as its registered class, bringing old versions up to date.

        Args:
            registry: Where the type is registered.
            cls: The definition of that class to use; None is the registry's.

        Raises:
            UnknownTypeError: The type is not registered in this process.
            ArtifactSchemaError: The payload does not fit it.
        """
        made = self._model
        if made is None:
            return registry.validate(self.type, self.version, self._content(), cls=cls)
        if self._payload is None and isinstance(made, cls or BaseModel):
            return made
        return registry.validate(self.type, self.version, self._content(), cls=cls or made.__class__)

    def view_as(self, cls: builtins.type[ModelT]) -> ModelT:
        """Decode the payload as any class, registered or not.

        Raises:
            ArtifactSchemaError: The payload does not fit the class.
        """
        if self._payload is None and isinstance(self._model, cls):
            return self._model
        try:
            return cls.model_validate_json(self._content(), by_alias=True, by_name=True)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            fields = ", ".join(".".join(map(str, item["loc"])) or "payload" for item in problems[:5])
            raise ArtifactSchemaError(
                f"A {self.type!r} artifact cannot be read as {cls.__qualname__}: {fields} do not fit. "
                f"Ask for the class of {self.type!r}.",
                type_name=self.type,
                version=self.version,
            ) from error

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Artifact:
        """Return an unpublished copy with some fields changed; it keeps its id unless `update` has one.

        Raises:
            TypeError: `update` names a field that artifacts do not have.
        """
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["payload"] = from_json(self._content())
        return Artifact(**{**fields, **(update or {})})

    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """Return all fields by name; in mode "json", with values that JSON has."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["visibility"] = self.visibility.model_dump(mode=mode)
        if mode == "python":
            return fields
        fields["id"] = str(self.id)
        fields["tags"] = sorted(self.tags)
        fields["created_at"] = self.created_at.isoformat()
        fields["parents"] = [str(parent) for parent in self.parents]
        fields["activation_id"] = None if self.activation_id is None else str(self.activation_id)
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in JSON terms; `Artifact(**that)` is the same artifact again."""
        return self.model_dump(mode="json")

    def __eq__(self, other: object) -> bool:
        """Compare ids: an artifact is immutable, so the same id is the same fact."""
        return self._header.id == other._header.id if isinstance(other, Artifact) else NotImplemented

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self._header.id)

    def __repr__(self) -> str:
        """Show type, id and producer, and nothing of the payload, which may be private."""
        return f"<Artifact {self.type} {self._header.id.hex()[:8]} by {self.produced_by or 'nobody'}>"

    def __reduce__(self) -> Any:
        """Pickle the envelope alone: a receiver may not have the class of the model."""
        return (Artifact.from_envelope, (self.envelope,))

    def _content(self) -> bytes:
        """Encode what this object says now: the working copy, else the model, else the board's bytes."""
        if self._payload is not None:
            return _dump(self.type, self._payload)
        return self._header.payload if self._model is None else to_json(self._model)


_FIELDS = (
    "id",
    "type",
    "payload",
    "produced_by",
    "correlation_id",
    "partition_key",
    "tags",
    "visibility",
    "created_at",
    "version",
    "parents",
    "activation_id",
)


def _dump(type_name: str, payload: Any) -> bytes:
    try:
        return dump_json(payload, inf_nan_mode="null")
    except PydanticSerializationError as error:
        raise ArtifactSchemaError(
            f"A payload of {type_name!r} cannot be written as JSON: {error}. Use values that JSON has.",
            type_name=type_name,
        ) from error


def _id_bytes(value: uuid.UUID | str) -> bytes:
    return (value if isinstance(value, uuid.UUID) else uuid.UUID(value)).bytes


def _microseconds(moment: datetime | str | None) -> int:
    if moment is None:
        moment = datetime.now(UTC)
    elif isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        raise ConfigurationError(
            f"`created_at` is a naive datetime ({moment}): give it a time zone, as in datetime.now(UTC)."
        )
    return (moment - _EPOCH) // _MICROSECOND


def _visibility_bytes(visibility: Visibility | Mapping[str, Any] | None) -> bytes | None:
    if visibility is None or isinstance(visibility, Visibility):
        return encode_visibility(visibility)
    return encode_visibility(decode_visibility(dump_json(dict(visibility))))
