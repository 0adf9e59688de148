"""What changed between two JSON schemas of an artifact type, and which of it breaks. Pure data in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = dict[str, Any]

_PROSE = {"title", "description", "examples", "example", "default", "deprecated", "$comment", "discriminator"}
_MAPS = {"properties", "$defs", "patternProperties", "dependentSchemas"}
"""Keywords whose value maps names, which may be any word, to schemas."""
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_CHILDREN = {"items", "additionalProperties", "contains", "propertyNames", "not"}
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_EXACT = ("format", "pattern", "multipleOf", "uniqueItems", "contentEncoding")


class Change(NamedTuple):
    """One difference."""

    breaks: bool
    """Old artifacts, or programs that read the old schema, are affected."""
    code: str
    message: str


def without_prose(schema: Mapping[str, Any]) -> Schema:
    """Return a schema without what says nothing about which payloads fit: titles, descriptions, defaults."""
    clean: Schema = {}
    for key, value in schema.items():
        if key in _PROSE:
            continue
        if key in _MAPS:
            clean[key] = {name: _clean(part) for name, part in value.items()}
        elif key in _LISTS:
            clean[key] = [_clean(part) for part in value]
        else:
            clean[key] = _clean(value) if key in _CHILDREN else value
    if "required" in clean:
        clean["required"] = sorted(clean["required"])
    return clean


def _clean(part: Any) -> Any:
    return without_prose(part) if isinstance(part, dict) else part


def field_names(schema: Schema) -> frozenset[str]:
    """Return the names of a type's fields."""
    return frozenset(_Side(schema).resolved(schema).get("properties", ()))


def schema_changes(old: Schema, new: Schema) -> list[Change]:
    """Return every difference that matters, in the order of the fields; none for schemas that mean the same."""
    return list(_Comparison(old, new).walk(old, new, ""))


class _Side:
    """One of the two schemas, with its definitions."""

    def __init__(self, root: Schema) -> None:
        self._defs: dict[str, Schema] = root.get("$defs", {})

    def resolved(self, schema: Any) -> Schema:
        """Follow references; `true` is the schema of everything."""
        while isinstance(schema, dict):
            reference = schema.get("$ref")
            parts = schema.get("allOf", ())
            if reference is None and len(parts) != 1:
                return schema
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf", "$defs")}
            target = parts[0] if reference is None else self._defs.get(reference.rpartition("/")[2], {})
            schema = {**target, **rest}
        return {}

    def alternatives(self, schema: Schema) -> list[Schema]:
        """Return what a union takes, or the schema alone."""
        options = schema.get("anyOf") or schema.get("oneOf")
        if not options:
            kinds = schema.get("type")
            return [{**schema, "type": kind} for kind in kinds] if isinstance(kinds, list) else [schema]
        return [part for option in options for part in self.alternatives(self.resolved(option))]


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = _Side(old)
        self._new = _Side(new)
        self._open: set[tuple[str, str]] = set()
        """References under comparison: a type may contain itself."""

    def walk(self, old: Any, new: Any, path: str) -> Iterator[Change]:
        """Compare two schemas of the same place."""
        key = _reference(old), _reference(new)
        if key in self._open:
            return
        if all(key):
            self._open.add(key)
        yield from self._alternatives(self._old.resolved(old), self._new.resolved(new), path)
        self._open.discard(key)

    def _alternatives(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, after = self._old.alternatives(old), self._new.alternatives(new)
        if len(before) == len(after) == 1:
            yield from self._one(before[0], after[0], path)
            return
        for option in before:
            attempts = [list(self._one(option, choice, path)) for choice in after]
            if any(not any(change.breaks for change in attempt) for attempt in attempts):
                continue
            near = [
                attempt
                for choice, attempt in zip(after, attempts, strict=True)
                if _kind(choice) == _kind(option)
            ]
            if len(near) == 1:
                yield from near[0]
            else:
                yield Change(True, "NarrowedType", f"{_named(path)} does not take {_shown(option)} any more")

    def _one(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        old, new = self._old.resolved(old), self._new.resolved(new)
        values, left = _values(old), _values(new)
        if left is not None:
            yield from _value_changes(values, left, path)
            return
        if not _covers(old.get("type"), new.get("type"), values):
            yield Change(True, "NarrowedType", f"{_named(path)} was {_shown(old)} and is {_shown(new)} now")
            return
        yield from _limit_changes(old, new, path)
        if new.get("type") == "object":
            yield from self._object(old, new, path)
        if new.get("type") == "array":
            yield from self._array(old, new, path)

    def _object(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before: Schema = old.get("properties", {})
        after: Schema = new.get("properties", {})
        required, needed = set(old.get("required", ())), set(new.get("required", ()))
        closed = new.get("additionalProperties") is False
        for name in sorted(before.keys() - after.keys()):
            if name in required:
                yield Change(
                    True, "RemovedRequiredField", f"{_named(path, name)} is gone, and it was required"
                )
            else:
                what = "unknown fields are refused" if closed else "its values are left out"
                yield Change(closed, "RemovedField", f"{_named(path, name)} is gone: {what}")
        for name in sorted(needed - before.keys()):
            yield Change(True, "NewRequiredField", f"{_named(path, name)} is new and has no default")
        for name in sorted((after.keys() - before.keys()) - needed):
            yield Change(False, "NewField", f"{_named(path, name)} is new and has a default")
        for name in sorted(before.keys() & after.keys()):
            if name in needed - required:
                yield Change(True, "FieldNowRequired", f"{_named(path, name)} has no default any more")
            yield from self.walk(before[name], after[name], f"{path}.{name}" if path else name)
        values, now = old.get("additionalProperties"), new.get("additionalProperties")
        if not before and values is not False and closed:
            yield Change(True, "NarrowedType", f"{_named(path)} takes no other keys any more")
        elif isinstance(now, dict) and values is not False and (isinstance(values, dict) or not before):
            yield from self.walk(values if isinstance(values, dict) else {}, now, f"{path}[value]")

    def _array(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        if isinstance(new.get("items"), dict) and old.get("items") is not False:
            yield from self.walk(old.get("items", {}), new["items"], f"{path}[]")
        before, after = old.get("prefixItems", []), new.get("prefixItems", [])
        for place, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from self.walk(one, other, f"{path}[{place}]")


def _reference(schema: Any) -> str:
    return str(schema.get("$ref", "")) if isinstance(schema, dict) else ""


def _values(schema: Schema) -> list[Any] | None:
    """Return the only values that fit; None when they are not listed."""
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def _value_changes(old: list[Any] | None, new: list[Any], path: str) -> Iterator[Change]:
    if old is None:
        yield Change(True, "NarrowedType", f"{_named(path)} takes {_listed(new)} only")
        return
    removed = [value for value in old if value not in new]
    added = [value for value in new if value not in old]
    if removed:
        yield Change(True, "RemovedEnumValue", f"{_named(path)} does not take {_listed(removed)} any more")
    if added:
        yield Change(False, "NewEnumValue", f"{_named(path)} also takes {_listed(added)}")


def _covers(old: Any, new: Any, values: list[Any] | None) -> bool:
    """Tell whether a type takes everything that another one, or a list of values, has."""
    if new is None or old == new or (old == "integer" and new == "number"):
        return True
    return new == "string" and values is not None and all(isinstance(value, str) for value in values)


def _limit_changes(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    for word in (*_UPPER, *_LOWER, *_EXACT):
        before, after = old.get(word), new.get(word)
        if after is None or after == before:
            continue
        if word in _EXACT or before is None:
            narrower = after is not False
        else:
            narrower = after < before if word in _UPPER else after > before
        if narrower:
            was = "" if before is None else f", was {before}"
            yield Change(True, "NarrowedType", f"{_named(path)} has {word} {after}{was}")


def _kind(schema: Schema) -> Any:
    return schema.get("type"), "enum" in schema or "const" in schema


def _shown(schema: Schema) -> str:
    values = _values(schema)
    if values is not None:
        return _listed(values)
    kind = str(schema.get("type", "anything"))
    return f"{kind} ({schema['format']})" if "format" in schema else kind


def _listed(values: list[Any]) -> str:
    shown = ", ".join(repr(value) for value in values[:10])
    return shown if len(values) <= 10 else f"{shown} and {len(values) - 10} more"


def _named(path: str, name: str = "") -> str:
    place = ".".join(part for part in (path, name) if part)
    return f"field {place}" if place else "the payload"
