"""Schemas of artifact types: what is recorded when agents are deployed, and what a later version breaks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from pydantic import BaseModel

from flock_ray.core.definition import AgentDefinition
from flock_ray.core.flow import outputs_of
from flock_ray.core.registry import RegisteredType, TypeRegistry
from flock_ray.core.schema_changes import Schema, field_names, schema_changes, without_prose
from flock_ray.core.wire import TypeInfo

__all__ = [
    "TypeFinding",
    "check_types",
    "decode_types",
    "describe_type",
    "merge_types",
    "types_of",
    "upcasters_of",
]

MAX_SCHEMA_BYTES = 64 * 1024
"""A larger schema is recorded by its hash only."""

Level = Literal["error", "warning", "info"]

_RANK: dict[Level, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class TypeFinding:
    """Something about a type that a deploy of this program would change on a board."""

    level: Level
    """error: data, or programs on the board, would not be read any more; warning, info: good to know."""
    code: str
    """Stable name of the kind of finding."""
    type: str
    message: str
    fix: str
    """What to change, as a sentence without its full stop."""

    def __str__(self) -> str:
        """Write the finding on one line."""
        return f"{self.level} {self.code}: type {self.type!r}: {self.message}; {self.fix}."


def describe_type(entry: RegisteredType) -> TypeInfo:
    """Return what is recorded of a type: name, version, and its JSON schema without titles and descriptions."""
    schema = _schema(entry.cls)
    data = msgspec.json.encode(schema, order="deterministic")
    digest = blake2b(data, digest_size=16).hexdigest()
    return TypeInfo(entry.name, entry.version, digest, data if len(data) <= MAX_SCHEMA_BYTES else b"")


def _schema(cls: type[BaseModel]) -> Schema:
    try:
        return without_prose(cls.model_json_schema(by_alias=False))
    except Exception:
        # Types without a JSON schema (callables, plain Python classes): at least the fields are known.
        return {"x-fields": {name: repr(field.annotation) for name, field in cls.model_fields.items()}}


def types_of(definition: AgentDefinition, registry: TypeRegistry) -> tuple[TypeInfo, ...]:
    """Return the types that an agent consumes and publishes, by name."""
    classes = [cls for sub in definition.subscriptions for cls in sub.types]
    classes += [output.type for output in outputs_of(definition)]
    entries = {registry.ensure(cls) for cls in classes}
    return tuple(describe_type(entry) for entry in sorted(entries, key=lambda e: (e.name, e.version)))


def merge_types(new: Iterable[TypeInfo], known: Iterable[TypeInfo]) -> tuple[TypeInfo, ...]:
    """Return what is known after a deploy, by name and version: nothing is forgotten, and the newest word counts."""
    merged = {(info.name, info.version): info for info in (*known, *new)}
    return tuple(merged[key] for key in sorted(merged))


def check_types(
    recorded: Sequence[TypeInfo],
    current: Sequence[TypeInfo],
    upcasters: Mapping[str, Collection[int]],
) -> list[TypeFinding]:
    """Compare the types of this program with those of a board.

    A change breaks when old artifacts would not be read by this program, or new ones not by the programs that
    the board has now. With a raised version and upcasters neither happens: old ones are brought up to date, and
    agents of the old version wait for the new code.

    Args:
        recorded: What the board has; several versions of a type are possible.
        current: What this program has, one version of each type.
        upcasters: By type: the versions that an upcaster reads.

    Returns:
        The findings: errors first, each level by type and code.
    """
    mine = {info.name: info for info in current}
    versions: dict[str, dict[int, TypeInfo]] = {}
    for info in recorded:
        versions.setdefault(info.name, {})[info.version] = info
    findings: list[TypeFinding] = []
    for name, known in versions.items():
        if name in mine:
            findings += _upcasting(mine[name], known, upcasters.get(name, ()))
            findings += _changed(known[max(known)], mine[name])
        else:
            unknown_here = [info for info in current if info.name not in versions]
            findings.append(_gone(known[max(known)], unknown_here))
    return sorted(findings, key=lambda f: (_RANK[f.level], f.type, f.code, f.message))


def _upcasting(
    info: TypeInfo, known: Mapping[int, TypeInfo], upcasters: Collection[int]
) -> Iterable[TypeFinding]:
    oldest, newest = min(known), max(known)
    if newest > info.version:
        yield TypeFinding(
            "error", "VersionLowered", info.name,
            f"the board has version {newest}, this program knows up to {info.version} and would not read it",
            f"deploy a program that knows version {newest}",
        )  # fmt: skip
    for step in range(oldest, info.version):
        if step not in upcasters:
            yield TypeFinding(
                "error", "MissingUpcaster", info.name,
                f"the board has version {oldest}, and nothing reads version {step}; this program is at {info.version}",
                f"add @upcaster(..., from_version={step})",
            )  # fmt: skip


def _changed(old: TypeInfo, new: TypeInfo) -> Iterable[TypeFinding]:
    """Find what changed although the version is the same."""
    if old.version != new.version or old.digest == new.digest:
        return
    if not (old.schema and new.schema):
        yield TypeFinding(
            "warning", "SchemaUnknown", new.name,
            f"version {new.version} is not what the board has, and the schema is too large to say more",
            "compare the classes by hand, and raise the version if old artifacts no longer fit",
        )  # fmt: skip
        return
    changes = schema_changes(msgspec.json.decode(old.schema), msgspec.json.decode(new.schema))
    breaking = [change for change in changes if change.breaks]
    fix = f"raise it to @flock_type(version={new.version + 1}), and add @upcaster(..., from_version={new.version})"
    for change in changes:
        if change.breaks:
            yield TypeFinding("error", change.code, new.name, change.message, fix)
        else:
            yield TypeFinding("info", change.code, new.name, change.message, "nothing to do for the data")
    yield TypeFinding(
        "error" if breaking else "warning", "VersionNotRaised", new.name,
        f"the schema is another one than the board's, and both are version {new.version}",
        fix if breaking else "old artifacts are still read; raise the version if the meaning changed",
    )  # fmt: skip


def _gone(old: TypeInfo, candidates: Iterable[TypeInfo]) -> TypeFinding:
    for new in candidates:
        if old.digest == new.digest or _alike(old, new):
            return TypeFinding(
                "error", "RenamedType", old.name,
                f"this program has no such type, but {new.name!r} with the same fields: it would not read the old ones",
                f'keep the name: @flock_type(name="{old.name}")',
            )  # fmt: skip
    return TypeFinding(
        "warning", "TypeGone", old.name,
        "the board's agents use it, and this program does not know it",
        "nothing to do when another program reads it; otherwise keep the class, or import its module",
    )  # fmt: skip


def _alike(old: TypeInfo, new: TypeInfo) -> bool:
    if not (old.schema and new.schema):
        return False
    fields = field_names(msgspec.json.decode(old.schema))
    return bool(fields) and fields == field_names(msgspec.json.decode(new.schema))


def decode_types(data: bytes) -> list[TypeInfo]:
    """Decode what a shard answers to `recorded_types`."""
    types: list[TypeInfo] = msgspec.msgpack.decode(data, type=list[TypeInfo])
    return types


def upcasters_of(registry: TypeRegistry) -> dict[str, Any]:
    """Return the versions that upcasters read, by type, of everything registered."""
    return {entry.name: registry.upcasters_for(entry.cls) for entry in registry}
