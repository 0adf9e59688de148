"""Artifact types by stable name, and how old payloads are read.

What a class is registered as lives on the class itself, in its own `__dict__`: a subclass does
not inherit it, and a class that cloudpickle carries to a worker brings it (name, version,
upcasters) along, so that the worker's registry learns it from `ensure`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json
from pydantic_core import to_json as dump_json

from flock_ray.errors import (
    ArtifactSchemaError,
    ConfigurationError,
    TypeRegistrationError,
    UnknownTypeError,
    VersionConflictError,
)

__all__ = [
    "RegisteredType",
    "TypeRegistry",
    "flock_tool",
    "flock_type",
    "to_json",
    "tools",
    "type_registry",
    "upcaster",
]

ModelT = TypeVar("ModelT", bound=BaseModel)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

_MARK = "__flock_type__"
_YIELDING = "flock_ray.core.approval_types"  # a program may have classes of its own under these names
_MAX_NAME_LENGTH = 200
_MAX_SHOWN_PROBLEMS = 5


class RegisteredType(NamedTuple):
    """An artifact type as this process knows it."""

    name: str
    version: int
    cls: type[BaseModel]


@dataclass(slots=True)
class _Mark:
    """What a class carries about its registration."""

    name: str
    version: int
    upcasters: dict[int, Upcast] = field(default_factory=dict)
    """By the version they read; each gives the next version."""


class TypeRegistry:
    """The artifact types of one process, by name."""

    def __init__(self) -> None:
        """Make an empty registry."""
        self._types: dict[str, RegisteredType] = {}
        self._qualified: dict[str, str] = {}

    def __reduce__(self) -> str:
        """Pickle as a reference: a function that names the registry finds its process's own."""
        return "type_registry"

    def register(
        self, cls: type[BaseModel], *, name: str | None = None, version: int | None = None
    ) -> RegisteredType:
        """Register a class; doing it again with the same values changes nothing.

        A class defined again (a notebook cell run twice, a script that a worker loads as
        `__main__`) replaces its former self.

        Args:
            cls: A pydantic model.
            name: Stable name, at most 200 printable characters; None keeps the class's own, which
                by default is its qualified name without module and enclosing functions.
            version: Of its schema, from 1; None keeps the class's own, by default 1.

        Raises:
            TypeRegistrationError: Not a model, or another class has the name, or this class
                already has another name or version.
        """
        mark = self._marked(cls, name, version)
        known = self._types.get(mark.name)
        if known is not None and known.cls is not cls and not _same_definition(known.cls, cls):
            if cls.__module__ == _YIELDING:
                return RegisteredType(mark.name, mark.version, cls)
            raise TypeRegistrationError(
                f"Two classes want to be the artifact type {mark.name!r}: {_where(known.cls)} and "
                f'{_where(cls)}. Give one of them another name: @flock_type(name="...").'
            )
        entry = RegisteredType(mark.name, mark.version, cls)
        setattr(cls, _MARK, mark)
        self._types[mark.name] = entry
        self._qualified[_where(cls)] = mark.name
        return entry

    def ensure(self, cls: type[BaseModel]) -> RegisteredType:
        """Return the registration of a class, registering it under its own name if need be.

        Raises:
            TypeRegistrationError: As for `register`.
        """
        mark = _mark_of(cls)
        if mark is not None:
            known = self._types.get(mark.name)
            if known is not None and known.cls is cls:
                return known
        return self.register(cls)

    def get(self, name: str) -> RegisteredType:
        """Look a type up by its name, or by `module.Class` as upstream's data has it.

        Raises:
            UnknownTypeError: Nothing is registered under the name.
        """
        entry = self._types.get(name) or self._types.get(self._qualified.get(name, ""))
        if entry is None:
            raise UnknownTypeError(self._unknown(name), type_name=name)
        return entry

    def resolve(self, name: str) -> type[BaseModel]:
        """Return the class of a type; like `get`."""
        return self.get(name).cls

    def name_for(self, cls: type[BaseModel]) -> str:
        """Return the name of a registered class.

        Raises:
            UnknownTypeError: Neither decorated nor used in consumes() or publishes().
        """
        return self._mark_for(cls).name

    def version_for(self, cls: type[BaseModel]) -> int:
        """Return the schema version of a registered class; like `name_for`."""
        return self._mark_for(cls).version

    def __contains__(self, name: object) -> bool:
        """Tell whether a type of this name is registered."""
        return name in self._types

    def __iter__(self) -> Iterator[RegisteredType]:
        """Yield the registered types by name, in alphabetical order."""
        return iter([self._types[name] for name in sorted(self._types)])

    def add_upcaster(self, cls: type[BaseModel], function: Upcast, *, from_version: int) -> None:
        """Say how a payload of an old version becomes one of the next.

        Args:
            cls: The current class; registered if it was not.
            function: Takes the old payload as a dict and returns the new one; must not need I/O.
            from_version: The version it reads, from 1 to the class's version - 1.

        Raises:
            ConfigurationError: The version is out of range, or has another function already.
        """
        entry = self.ensure(cls)
        mark = cast(_Mark, _mark_of(cls))
        if not 1 <= from_version < entry.version:
            raise ConfigurationError(
                f"An upcaster of {entry.name!r} from version {from_version} makes no sense: the class is "
                f"version {entry.version}. Raise it: @flock_type(version={from_version + 1})."
            )
        known = mark.upcasters.get(from_version)
        if known is not None and known is not function and not _same_definition(known, function):
            raise ConfigurationError(
                f"{entry.name!r} has two upcasters from version {from_version}: {_where(known)} and "
                f"{_where(function)}. Remove one."
            )
        mark.upcasters[from_version] = function

    def upcasters_for(self, cls: type[BaseModel]) -> frozenset[int]:
        """Return the versions of a registered class that an upcaster reads; like `name_for`."""
        return frozenset(self._mark_for(cls).upcasters)

    def reads(self, name: str, version: int, *, cls: type[BaseModel] | None = None) -> bool:
        """Say whether payloads of a version are not newer than what this process knows of the type.

        Args:
            name: Of the type; one that is not registered is not said to be newer.
            version: Under which a payload was written.
            cls: The class that would read it; None is the registered one.
        """
        entry = self._types.get(name) if cls is None else self.ensure(cls)
        return entry is None or version <= entry.version

    def upcast(self, name: str, version: int, data: dict[str, Any]) -> dict[str, Any]:
        """Bring an old payload to the current version, one upcaster after the other.

        Raises:
            UnknownTypeError: Nothing is registered under the name.
            VersionConflictError: The version is newer than the class.
            ArtifactSchemaError: An upcaster is missing, or it raised.
        """
        return _upcast(self.get(name), version, data)

    def validate(
        self, name: str, version: int, payload: bytes, *, cls: type[BaseModel] | None = None
    ) -> BaseModel:
        """Turn a payload into a model.

        Args:
            name: Of the type.
            version: Under which the payload was written.
            payload: JSON; fields by name or by alias.
            cls: The class to use instead of the registered one, when a program holds an older
                definition of it; None uses the registered one.

        Raises:
            UnknownTypeError: Nothing is registered under the name.
            VersionConflictError: The version is newer than the class: this program is too old for it.
            ArtifactSchemaError: The payload does not fit, or an upcaster is missing or raised.
        """
        entry = self.get(name) if cls is None else self.ensure(cls)
        validator = entry.cls.__pydantic_validator__
        try:
            if version == entry.version:
                return cast(BaseModel, validator.validate_json(payload, by_alias=True, by_name=True))
            new = _upcast(entry, version, _load_object(entry, payload))
            # Through JSON mode, so that strings become datetimes also in strict models.
            return cast(BaseModel, validator.validate_json(dump_json(new), by_alias=True, by_name=True))
        except ValidationError as error:
            raise ArtifactSchemaError(
                f"The payload does not fit artifact type {entry.name!r}: {_problems(error)}. "
                "Correct the payload, or the class.",
                type_name=entry.name,
                version=version,
            ) from error

    @contextmanager
    def isolated(self) -> Iterator[TypeRegistry]:
        """Forget at the end of the block what was registered inside it: for tests."""
        types, qualified = dict(self._types), dict(self._qualified)
        try:
            yield self
        finally:
            self._types, self._qualified = types, qualified

    def _marked(self, cls: Any, name: str | None, version: int | None) -> _Mark:
        """Return the mark the class shall have, checked."""
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)) or cls is BaseModel:
            raise TypeRegistrationError(
                f"{cls!r} cannot be an artifact type: only subclasses of pydantic.BaseModel can. "
                "For a dataclass, change `@dataclass class X` into `class X(BaseModel)`."
            )
        mark = _mark_of(cls)
        if mark is None:
            mark = _Mark(_default_name(cls) if name is None else name, 1 if version is None else version)
        elif name not in (None, mark.name) or version not in (None, mark.version):
            raise TypeRegistrationError(
                f"{_where(cls)} is registered as {mark.name!r} version {mark.version} already, "
                f"so it cannot be {name or mark.name!r} version {version or mark.version}. "
                "Register it once."
            )
        _check_name(mark.name)
        number: Any = mark.version
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise TypeRegistrationError(
                f"The version of {mark.name!r} is {number!r}: use a whole number from 1."
            )
        return mark

    def _mark_for(self, cls: type[BaseModel]) -> _Mark:
        mark = _mark_of(cls)
        if mark is None:
            name = getattr(cls, "__qualname__", repr(cls))
            raise UnknownTypeError(
                f"{name} is not registered as an artifact type. Decorate it with @flock_type, or use "
                "it in consumes() or publishes().",
                type_name=name,
            )
        return mark

    def _unknown(self, name: str) -> str:
        import difflib

        guess = "".join(f" Did you mean {n!r}?" for n in difflib.get_close_matches(name, self._types, n=1))
        return (
            f"No artifact type {name!r} is registered in this process.{guess} "
            "Decorate its class with @flock_type and import the module that holds it."
        )


type_registry = TypeRegistry()
"""The artifact types of this process."""

tools: dict[str, Callable[..., Any]] = {}
"""Functions that models may call, by name."""


@overload
def flock_type(cls: type[ModelT], /) -> type[ModelT]: ...
@overload
def flock_type(
    *, name: str | None = None, version: int | None = None
) -> Callable[[type[ModelT]], type[ModelT]]: ...
def flock_type(
    cls: type[ModelT] | None = None, /, *, name: str | None = None, version: int | None = None
) -> type[ModelT] | Callable[[type[ModelT]], type[ModelT]]:
    """Make a pydantic model an artifact type: `@flock_type` or `@flock_type(name=, version=)`.

    Args:
        cls: The class, when used without parentheses.
        name: Stable name; None is the class's qualified name without its module.
        version: Of the schema, from 1; raise it with an `@upcaster` when old payloads no longer fit.

    Raises:
        TypeRegistrationError: Not a model, or another class has the name.
    """

    def decorate(target: type[ModelT]) -> type[ModelT]:
        type_registry.register(target, name=name, version=version)
        return target

    return decorate if cls is None else decorate(cls)


def upcaster(cls: type[BaseModel], *, from_version: int) -> Callable[[Upcast], Upcast]:
    """Decorate a function that turns an old payload of a type into one of the next version.

    Raises:
        ConfigurationError: `from_version` is not between 1 and the class's version - 1.
    """

    def decorate(function: Upcast) -> Upcast:
        type_registry.add_upcaster(cls, function, from_version=from_version)
        return function

    return decorate


@overload
def flock_tool(function: FunctionT, /) -> FunctionT: ...
@overload
def flock_tool(
    *, name: str | None = None, timeout: timedelta | None = None
) -> Callable[[FunctionT], FunctionT]: ...
def flock_tool(
    function: FunctionT | None = None, /, *, name: str | None = None, timeout: timedelta | None = None
) -> FunctionT | Callable[[FunctionT], FunctionT]:
    """Register a function that models may call; `timeout` limits one call of it, None is a minute.

    Raises:
        ConfigurationError: Another function has the name.
    """

    def decorate(target: FunctionT) -> FunctionT:
        key = name or target.__name__
        known = tools.get(key)
        if known is not None and known is not target and not _same_definition(known, target):
            raise ConfigurationError(
                f"Two functions want to be the tool {key!r}: {_where(known)} and {_where(target)}. "
                'Give one of them another name: @flock_tool(name="...").'
            )
        tools[key] = target
        if name is not None or timeout is not None:
            # Functions have no such attribute for type checkers; it travels with the function to the workers.
            target.__flock_tool__ = (name, timeout and timeout.total_seconds())  # type: ignore[attr-defined]
        return target

    return decorate if function is None else decorate(function)


def to_json(model: BaseModel) -> bytes:
    """Encode a model as a payload that `TypeRegistry.validate` reads back.

    Fields go by name, not by alias; computed fields are left out. Note pydantic's defaults:
    infinities and NaN become null unless the model sets `ser_json_inf_nan`.

    Raises:
        ArtifactSchemaError: A value has no JSON form.
    """
    try:
        return model.__pydantic_serializer__.to_json(model, by_alias=False, round_trip=True)
    except PydanticSerializationError as error:
        name = type(model).__qualname__
        raise ArtifactSchemaError(
            f"A {name} cannot be written as JSON: {error}. Add a field_serializer to the class "
            '(for bytes: ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")).',
            type_name=name,
        ) from error


def _mark_of(cls: type[Any]) -> _Mark | None:
    """Return the class's own mark, never its parent's."""
    return cast("_Mark | None", getattr(cls, "__dict__", {}).get(_MARK))


def _default_name(cls: type[Any]) -> str:
    return cls.__qualname__.rpartition("<locals>.")[2]


def _check_name(name: Any) -> None:
    if not (isinstance(name, str) and name.strip() == name != "" and name.isprintable()):
        raise TypeRegistrationError(
            f"{name!r} is no name for an artifact type: use printable characters, without space around."
        )
    if len(name) > _MAX_NAME_LENGTH:
        raise TypeRegistrationError(
            f"The artifact type name {name[:40]!r}... has {len(name)} characters: "
            f'use @flock_type(name="...") with at most {_MAX_NAME_LENGTH}.'
        )


def _where(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _same_definition(old: Any, new: Any) -> bool:
    """Tell whether two classes or functions come from the same lines, run twice."""
    if old.__module__ == _YIELDING:
        return True
    if old.__qualname__ != new.__qualname__:
        return False
    if old.__module__ == new.__module__:
        return True
    # A script is `__main__` when it runs and a module when it is imported: one file, two names.
    files = [getattr(sys.modules.get(thing.__module__), "__file__", None) for thing in (old, new)]
    return files[0] is not None and files[0] == files[1]


def _upcast(entry: RegisteredType, version: int, data: dict[str, Any]) -> dict[str, Any]:
    mark = cast(_Mark, _mark_of(entry.cls))
    if version > entry.version:
        raise VersionConflictError(
            f"An artifact of type {entry.name!r} has version {version}; this process knows up to "
            f"{entry.version}. Upgrade this process."
        )
    if version < 1:
        raise ArtifactSchemaError(
            f"An artifact of type {entry.name!r} has version {version}; versions count from 1. Correct its producer.",
            type_name=entry.name,
            version=version,
        )
    for step in range(version, entry.version):
        function = mark.upcasters.get(step)
        if function is None:
            raise ArtifactSchemaError(
                f"Nothing reads version {step} of artifact type {entry.name!r}, now version "
                f"{entry.version}. Add @upcaster({entry.cls.__name__}, from_version={step}).",
                type_name=entry.name,
                version=version,
            )
        data = _apply(entry, function, step, data)
    return data


def _apply(entry: RegisteredType, function: Upcast, step: int, data: dict[str, Any]) -> dict[str, Any]:
    cause: Exception | None = None
    try:
        result: Any = function(data)
        outcome = f"returned a {type(result).__name__} instead of a dict"
    except Exception as error:
        result, cause, outcome = None, error, f"raised {type(error).__name__}"
    if not isinstance(result, dict):
        raise ArtifactSchemaError(
            f"The upcaster of {entry.name!r} from version {step} {outcome}. Correct {_where(function)}.",
            type_name=entry.name,
            version=step,
        ) from cause
    return cast("dict[str, Any]", result)


def _load_object(entry: RegisteredType, payload: bytes) -> dict[str, Any]:
    try:
        data = from_json(payload)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ArtifactSchemaError(
            f"An old payload of artifact type {entry.name!r} is no JSON object, so it cannot be upcast. "
            "Publish it again under the current version.",
            type_name=entry.name,
        )
    return cast("dict[str, Any]", data)


def _problems(error: ValidationError) -> str:
    """Say what is wrong without showing the values: payloads may be private."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(part) for part in item['loc']) or 'payload'}: {item['msg']}"
        for item in found[:_MAX_SHOWN_PROBLEMS]
    ]
    return "; ".join(shown) + (f"; and {len(found) - len(shown)} more" if len(found) > len(shown) else "")
