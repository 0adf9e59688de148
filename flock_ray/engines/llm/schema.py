"""What is asked of a model: one JSON schema for all outputs of a group, as providers take it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.json_schema import models_json_schema

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import OutputGroup, OutputSpec

__all__ = ["MAX_SCHEMA_BYTES", "AnswerShape", "Slot", "answer_shape", "object_schema", "strict_schema"]

MAX_SCHEMA_BYTES = 100_000
"""Largest schema of one call; providers refuse larger ones, and no model follows them."""

Schema = dict[str, Any]

_REF = "#/$defs/"
_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_STRICT_KEYWORDS = frozenset(
    ("type", "properties", "required", "items", "enum", "const", "anyOf", "$ref", "description")
)
_IN_WORDS = (
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "default", "examples",
)  # fmt: skip
"""Constraints that not every provider takes in a strict schema: said in the description instead."""


@dataclass(frozen=True)
class Slot:
    """One declared output in an answer."""

    key: str
    """Its place in the answer: the name of its type."""
    spec: OutputSpec
    low: int
    high: int

    @property
    def is_many(self) -> bool:
        """Whether its place holds a list."""
        return self.high > 1

    @property
    def fields(self) -> dict[str, str]:
        """Names of the type's fields, by name and by alias."""
        found: dict[str, str] = {}
        for name, info in self.spec.type.model_fields.items():
            found[name] = name
            for alias in (info.alias, info.validation_alias):
                if isinstance(alias, str):
                    found[alias] = name
        return found


@dataclass(frozen=True)
class AnswerShape:
    """How an answer looks that holds all outputs of one group."""

    slots: tuple[Slot, ...]
    is_wrapped: bool
    """Whether outputs are under the names of their types; else the answer is the only output itself."""
    schema: Schema
    """With its `$defs`."""
    items: dict[str, Schema]
    """Schema of one output by the key of its slot; refers to `defs`."""
    defs: dict[str, Schema]

    @cached_property
    def strict(self) -> Schema | None:
        """The schema for a provider's strict mode; None when that can't say it."""
        return strict_schema(self.schema)


def answer_shape(agent: str, group: OutputGroup) -> AnswerShape:
    """Return the shape of an answer with everything that a group declares.

    Raises:
        ConfigurationError: No model could follow the schema: it refers to itself, is too large, or has
            no JSON form.
    """
    slots = _slots(group)
    items, defs = _schemas(agent, slots)
    _refuse_recursion(agent, defs)
    only = slots[0] if len(slots) == 1 and not slots[0].is_many else None
    root = None if only is None else _resolved(items[only.key], defs)
    if root is not None and root.get("type") == "object":
        schema = dict(root)
    else:
        schema = object_schema({slot.key: _slot_schema(slot, items[slot.key]) for slot in slots})
    full = with_defs(schema, defs)
    size = len(json.dumps(full).encode())
    if size > MAX_SCHEMA_BYTES:
        raise ConfigurationError(
            f"Agent {agent!r}: the schema of its outputs has {size:,} bytes, more than the {MAX_SCHEMA_BYTES:,} "
            "that a model can follow. Publish smaller types, or compute them with .runs(function)."
        )
    is_wrapped = root is None or root.get("type") != "object"
    return AnswerShape(slots, is_wrapped, full, items, defs)


def object_schema(properties: dict[str, Schema]) -> Schema:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def with_defs(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """Return a schema with those definitions that it refers to, directly or not."""
    needed: dict[str, Schema] = {}
    waiting = sorted(_references(schema))
    while waiting:
        name = waiting.pop()
        if name not in needed and name in defs:
            needed[name] = defs[name]
            waiting += sorted(_references(defs[name]))
    return {**schema, "$defs": dict(sorted(needed.items()))} if needed else schema


def strict_schema(schema: Schema) -> Schema | None:
    """Return a schema for a provider's strict mode; None when it can't say this.

    All properties become required; those with a default may be null instead. Constraints that not every
    provider takes go into descriptions.
    """
    try:
        made = _strict(schema)
        defs = {name: _strict(part) for name, part in schema.get("$defs", {}).items()}
    except _NotStrictError:
        return None
    return {**made, "$defs": defs} if defs else made


def prune_nulls(value: Any, schema: Schema, defs: dict[str, Schema]) -> Any:
    """Leave out nulls where a schema has a default and no null: strict mode has no other word for it."""
    schema = _resolved(schema, defs)
    if isinstance(value, list):
        return [prune_nulls(item, schema.get("items") or {}, defs) for item in value]
    if not isinstance(value, dict):
        return value
    for option in schema.get("anyOf") or schema.get("oneOf") or ():
        resolved = _resolved(option, defs)
        if value.keys() & resolved.get("properties", {}).keys():
            value = prune_nulls(value, resolved, defs)
    properties, required = schema.get("properties", {}), schema.get("required", ())
    kept: dict[str, Any] = {}
    for key, item in value.items():
        inner = properties.get(key)
        if inner is None:
            kept[key] = item
        elif item is not None or key in required or _takes_null(inner, defs):
            kept[key] = prune_nulls(item, inner, defs)
    return kept


def _slots(group: OutputGroup) -> tuple[Slot, ...]:
    made: list[Slot] = []
    for spec in group.outputs:
        low, high = (spec.count, spec.count) if spec.fan_out is None else (spec.fan_out.min, spec.fan_out.max)
        key = _NAME.sub("_", spec.type.__name__)
        taken = {slot.key for slot in made}
        made.append(Slot(key if key not in taken else f"{key}_{len(made) + 1}", spec, low, high))
    return tuple(made)


def _schemas(agent: str, slots: tuple[Slot, ...]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schema of each slot's type, and the definitions that they share."""
    classes = list(dict.fromkeys(slot.spec.type for slot in slots))
    try:
        refs, whole = models_json_schema([(cls, "validation") for cls in classes], by_alias=False)
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"Agent {agent!r}: its outputs have no JSON schema ({reason}), so no model can write them. Use "
            "types that JSON has, or compute them with .runs(function)."
        ) from error
    defs = {name: _untitled(schema) for name, schema in whole.get("$defs", {}).items()}
    return {slot.key: dict(refs[(slot.spec.type, "validation")]) for slot in slots}, defs


def _slot_schema(slot: Slot, item: Schema) -> Schema:
    if not slot.is_many:
        return item
    return {"type": "array", "items": item, "minItems": slot.low, "maxItems": slot.high}


def _resolved(schema: Schema, defs: dict[str, Schema]) -> Schema:
    reference = schema.get("$ref")
    return defs.get(reference.removeprefix(_REF), {}) if isinstance(reference, str) else schema


def _takes_null(schema: Schema, defs: dict[str, Schema]) -> bool:
    schema = _resolved(schema, defs)
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind):
        return True
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return any(_takes_null(option, defs) for option in options)
    return not {"type", "enum", "const"} & schema.keys()


def _mapped(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """Change the schemas directly inside a schema; names of properties are no keywords."""
    made: Schema = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs", "patternProperties") and isinstance(value, dict):
            made[keyword] = {name: change(part) for name, part in value.items()}
        elif keyword in ("items", "additionalProperties", "not") and isinstance(value, dict):
            made[keyword] = change(value)
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            made[keyword] = [change(part) for part in value]
        else:
            made[keyword] = value
    return made


def _untitled(schema: Schema) -> Schema:
    """Drop titles, which only repeat names."""
    kept = {keyword: value for keyword, value in schema.items() if keyword != "title"}
    return _mapped(kept, _untitled)


def _references(schema: Any) -> set[str]:
    found: set[str] = set()

    def look(part: Schema) -> Schema:
        reference = part.get("$ref")
        if isinstance(reference, str):
            found.add(reference.removeprefix(_REF))
        return _mapped(part, look)

    look(schema)
    return found


def _refuse_recursion(agent: str, defs: dict[str, Schema]) -> None:
    edges = {name: sorted(_references(schema)) for name, schema in defs.items()}
    done: set[str] = set()
    for start in sorted(edges):
        path: list[str] = []
        stack: list[tuple[str, Iterable[str]]] = [(start, iter(edges[start]))] if start not in done else []
        path.extend(name for name, _ in stack)
        while stack:
            name, rest = stack[-1]
            following = next(iter(rest), None)
            if following is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif following in path:
                way = " -> ".join([*path[path.index(following) :], following])
                raise ConfigurationError(
                    f"Agent {agent!r}: the schema of its outputs is recursive ({way}), which models can't follow "
                    "reliably. Publish a flat list whose items name their parent, or use .runs(function)."
                )
            elif following not in done and following in edges:
                stack.append((following, iter(edges[following])))
                path.append(following)


class _NotStrictError(Exception):
    """Strict mode has no word for a part of the schema."""


def _strict(schema: Schema) -> Schema:
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    if schema.get("allOf") and len(schema["allOf"]) == 1:
        return _strict(schema["allOf"][0])
    if any(
        word in schema for word in ("allOf", "not", "patternProperties", "prefixItems", "if", "propertyNames")
    ):
        raise _NotStrictError
    if not {"type", "enum", "const", "anyOf", "oneOf"} & schema.keys():
        raise _NotStrictError
    kept = {word: value for word, value in schema.items() if word in _STRICT_KEYWORDS}
    if "oneOf" in schema:
        kept["anyOf"] = schema["oneOf"]
    if kept.get("anyOf"):
        kept["anyOf"] = [_strict(option) for option in kept["anyOf"]]
    if schema.get("type") == "array":
        kept["items"] = _strict(schema.get("items") or {})
    if schema.get("type") == "object":
        kept = _strict_object(schema, kept)
    return _said(kept, schema)


def _strict_object(schema: Schema, kept: Schema) -> Schema:
    properties = schema.get("properties")
    if not properties or schema.get("additionalProperties"):
        raise _NotStrictError
    required = schema.get("required", ())
    made: dict[str, Schema] = {}
    for name, part in properties.items():
        strict = _strict(part)
        optional = name not in required and not _is_nullable(strict)
        made[name] = {"anyOf": [strict, {"type": "null"}]} if optional else strict
    return {**kept, "properties": made, "required": list(properties), "additionalProperties": False}


def _is_nullable(strict: Schema) -> bool:
    return (
        any(option.get("type") == "null" for option in strict.get("anyOf", ()))
        or strict.get("type") == "null"
    )


def _said(kept: Schema, schema: Schema) -> Schema:
    """Put constraints that are left out into the description."""
    words = [f"{word} {json.dumps(schema[word])}" for word in _IN_WORDS if schema.get(word) is not None]
    if not words:
        return kept
    text = "; ".join(words)
    before = schema.get("description")
    return {**kept, "description": f"{before} ({text})" if before else text}


def schema_of(cls: type[BaseModel], name: str, shape: AnswerShape, key: str) -> Schema:
    """Return the schema of one field of a slot's type; empty when it is not known."""
    found = _resolved(shape.items[key], shape.defs).get("properties", {}).get(name, {})
    return dict(found)
