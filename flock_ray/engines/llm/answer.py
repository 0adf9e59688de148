"""From an answer to models: what was found where, what does not fit, and which part to ask for again.

Pure decisions. A draft holds the outputs as JSON, a list per slot, so that a repair can replace a part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from flock_ray.core.registry import to_json
from flock_ray.engines.llm.parsing import find_json
from flock_ray.engines.llm.schema import (
    AnswerShape,
    Schema,
    Slot,
    object_schema,
    prune_nulls,
    schema_of,
    with_defs,
)

__all__ = ["Checked", "Problem", "Target", "check", "merge", "read", "repair_schema", "repair_targets"]

MAX_PROBLEMS = 20
MAX_INPUT_CHARS = 120
MAX_NESTED_TEXT = 100_000
MAX_WRAPPED = 3
WRAPPERS = frozenset(
    (
        "answer",
        "artifact",
        "data",
        "item",
        "items",
        "output",
        "outputs",
        "payload",
        "response",
        "result",
        "results",
    )
)

Draft = dict[str, list[Any]]

_NOT_NAME = re.compile(r"[^a-z0-9]")


class Problem(NamedTuple):
    """Something in an answer that does not fit."""

    text: str
    """For people and errors: without the model's text."""
    got: str = ""
    """What the model wrote there, shortened; only the model is told."""
    key: str = ""
    """Its slot; empty: the answer as a whole."""
    position: int | None = None
    """Which output of the slot, from 0; None: the slot as a whole."""
    field: str | None = None
    """Which field; None: the output as a whole."""

    def to_model(self) -> str:
        """Say it to the model."""
        return f"{self.text} (you wrote {self.got})" if self.got else self.text


class Target(NamedTuple):
    """A part of an answer that is asked for again, under a name of its own."""

    name: str
    key: str
    position: int | None
    field: str | None


@dataclass
class Checked:
    """What an answer came to."""

    draft: Draft
    models: list[BaseModel] = field(default_factory=list)
    """In declared order; only complete when there are no problems."""
    problems: list[Problem] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    """What was left out without asking again, for the event log."""


def read(shape: AnswerShape, text: str) -> Checked:
    """Find the outputs in what a model wrote; of several JSON values the first that fits wins."""
    best: Checked | None = None
    for value in find_json(text):
        checked = check(shape, _draft(shape, value))
        if not checked.problems:
            return checked
        best = best or checked
    if best is not None:
        return best
    what = "is empty" if not text.strip() else "holds no JSON"
    return Checked({}, problems=[Problem(f"the answer {what}")])


def check(shape: AnswerShape, draft: Draft) -> Checked:
    """Validate a draft with the real classes, and with what `publishes(validate=...)` demands."""
    made = Checked(draft)
    for slot in shape.slots:
        items = draft.get(slot.key)
        if items is None:
            made.problems.append(Problem(f"{slot.key} is missing", key=slot.key))
            continue
        if len(items) > slot.high:
            made.dropped.append(f"{len(items) - slot.high} {slot.key} beyond {slot.high} were dropped")
            items = draft[slot.key] = items[: slot.high]
        if len(items) < slot.low:
            wanted = str(slot.low) if slot.low == slot.high else f"{slot.low} to {slot.high}"
            made.problems.append(Problem(f"{slot.key}: {len(items)} came, {wanted} are needed", key=slot.key))
            continue
        for index in range(len(items)):
            _check_item(shape, slot, items, index, made)
    del made.problems[MAX_PROBLEMS:]
    return made


def repair_targets(shape: AnswerShape, checked: Checked) -> list[Target]:
    """Return the parts to ask for again; empty when that is the whole answer."""
    targets: dict[Target, None] = {}
    for problem in checked.problems:
        if not problem.key or len(checked.problems) >= MAX_PROBLEMS:
            return []
        targets[_target(shape, problem)] = None
    wholes = {(target.key, target.position) for target in targets if target.field is None}
    slots = {target.key for target in targets if target.position is None}
    kept = [
        target
        for target in targets
        if (target.position is None or target.key not in slots)
        and (target.field is None or (target.key, target.position) not in wholes)
    ]
    return [] if _is_everything(shape, checked.draft, kept) else kept


def repair_schema(shape: AnswerShape, targets: Iterable[Target]) -> Schema:
    """Return the schema of an answer that has only these parts."""
    slots = {slot.key: slot for slot in shape.slots}
    properties: dict[str, Schema] = {}
    for target in targets:
        slot, item = slots[target.key], shape.items[target.key]
        if target.field is not None:
            properties[target.name] = schema_of(slot.spec.type, target.field, shape, target.key)
        elif target.position is None and slot.is_many:
            properties[target.name] = {
                "type": "array", "items": item, "minItems": slot.low, "maxItems": slot.high,
            }  # fmt: skip
        else:
            properties[target.name] = item
    return with_defs(object_schema(properties), shape.defs)


def merge(shape: AnswerShape, checked: Checked, targets: list[Target], text: str) -> Checked:
    """Put the parts that a model wrote anew into a draft; an answer that is whole again replaces it."""
    for value in find_json(text):
        if not isinstance(value, dict):
            continue
        names = {_plain(name): name for name in value}
        found = [(target, names[_plain(target.name)]) for target in targets if _plain(target.name) in names]
        if found:
            draft = {key: [_copied(item) for item in items] for key, items in checked.draft.items()}
            for target, name in found:
                _put(shape, draft, target, value[name])
            merged = check(shape, draft)
            if not merged.problems:
                return merged
            again = check(shape, _draft(shape, value))
            return again if not again.problems else merged
    again = read(shape, text)
    # Only what names a field is an answer: a class of defaults would take anything, and lose what was right.
    said = any(
        not slot.fields or (isinstance(item, dict) and _looks_like(slot, item))
        for slot in shape.slots
        for item in again.draft.get(slot.key, ())
    )
    return again if said else checked


def _target(shape: AnswerShape, problem: Problem) -> Target:
    parts = [problem.key] if shape.is_wrapped or problem.field is None else []
    slot = next(slot for slot in shape.slots if slot.key == problem.key)
    if problem.position is not None and slot.is_many:
        parts.append(str(problem.position + 1))
    if problem.field is not None:
        parts.append(problem.field)
    return Target("_".join(parts), problem.key, problem.position, problem.field)


def _is_everything(shape: AnswerShape, draft: Draft, targets: list[Target]) -> bool:
    """Tell whether nothing would be left of a draft but the targets."""
    left = {(slot.key, index) for slot in shape.slots for index in range(len(draft.get(slot.key, [])))}
    for target in targets:
        if target.position is None:
            left -= {place for place in left if place[0] == target.key}
        elif target.field is None:
            left.discard((target.key, target.position))
        else:
            slot = next(slot for slot in shape.slots if slot.key == target.key)
            here = {t.field for t in targets if (t.key, t.position) == (target.key, target.position)}
            item = draft[target.key][target.position]
            given = {slot.fields.get(name) for name in item} if isinstance(item, dict) else set()
            if here >= given - {None}:
                left.discard((target.key, target.position))
    return not left


def _put(shape: AnswerShape, draft: Draft, target: Target, value: Any) -> None:
    slot = next(slot for slot in shape.slots if slot.key == target.key)
    if target.position is None:
        draft[target.key] = _items(slot, value)
    elif target.field is None:
        draft[target.key][target.position] = value
    else:
        item = draft[target.key][target.position]
        if isinstance(item, dict):
            for name in [name for name, field in slot.fields.items() if field == target.field]:
                item.pop(name, None)
            item[target.field] = value


def _copied(item: Any) -> Any:
    return dict(item) if isinstance(item, dict) else item


# --- validation -----------------------------------------------------------------------------------


def _check_item(shape: AnswerShape, slot: Slot, items: list[Any], index: int, made: Checked) -> None:
    cls, place = slot.spec.type, f"{slot.key}[{index + 1}]" if slot.is_many else slot.key
    item = prune_nulls(_nested(items[index]), shape.items[slot.key], shape.defs)
    model, error = _validated(cls, item)
    if error is not None and isinstance(item, dict) and (extra := _extra(error)):
        # The class forbids what the model added; nothing is lost by leaving it out.
        item = {name: value for name, value in item.items() if name not in extra}
        model, error = _validated(cls, item)
    items[index] = item
    if error is not None:
        known = {*slot.fields, *(name for part in shape.defs.values() for name in part.get("properties", ()))}
        made.problems += [_problem(slot, index, place, detail, known) for detail in error]
        return
    if model is None:
        made.problems.append(Problem(f"{place} can't be read", key=slot.key, position=index))
        return
    if slot.spec.where is None or slot.spec.where(model):
        for accepts, message in slot.spec.validate:
            if not accepts(model):
                made.problems.append(Problem(f"{place}: {message}", key=slot.key, position=index))
    made.models.append(model)


def _validated(cls: type[BaseModel], item: Any) -> tuple[BaseModel | None, list[Any] | None]:
    try:
        # In bytes, not as objects: dates, sets and bytes come as JSON has them.
        data = json.dumps(item, ensure_ascii=False).encode("utf-8", "replace")
        model = cls.model_validate_json(data, by_alias=True, by_name=True)
        # Not all that validates can be read back: an infinity is written as null.
        cls.model_validate_json(to_json(model), by_alias=True, by_name=True)
        return model, None
    except ValidationError as error:
        return None, list(error.errors(include_url=False, include_context=False))
    except (ValueError, RecursionError):
        return None, [{"loc": (), "msg": "is nested too deeply", "input": "", "type": "nested"}]


def _extra(details: list[Any]) -> set[str]:
    return {
        detail["loc"][0]
        for detail in details
        if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1
    }


def _problem(slot: Slot, index: int, place: str, detail: Mapping[str, Any], known: set[str]) -> Problem:
    location = detail["loc"]
    name = slot.fields.get(str(location[0])) if location else None
    # Keys of mappings are the model's own text: only the model is told.
    shown = [str(part) if isinstance(part, int) or part in known else "*" for part in location]
    got = "" if detail["type"] == "missing" else _shortened(detail.get("input"))
    if "*" in shown:
        got = f"{got} at {_shortened(list(location))}".strip()
    what = "the tag is none of those expected" if detail["type"] == "union_tag_invalid" else detail["msg"]
    return Problem(f"{'.'.join([place, *shown])}: {what}", got, slot.key, index, name)


def _shortened(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= MAX_INPUT_CHARS else text[:MAX_INPUT_CHARS] + "..."


# --- finding the outputs in any of the forms that models give them ----------------------------------


def _draft(shape: AnswerShape, value: Any) -> Draft:
    value = _nested(value)
    if len(shape.slots) == 1:
        slot = shape.slots[0]
        return {slot.key: _items(slot, value)}
    if isinstance(value, list):
        value = {
            name: item
            for part in value
            if isinstance(part, dict) and len(part) == 1
            for name, item in part.items()
        }
    if not isinstance(value, dict):
        return {}
    value = _unwrapped(value, {_plain(slot.key) for slot in shape.slots})
    by_name = {_plain(name): item for name, item in value.items()}
    draft: Draft = {}
    for slot in shape.slots:
        for name in (_plain(slot.key), _plain(slot.key) + "s"):
            if name in by_name:
                draft[slot.key] = _items(slot, by_name[name])
                break
    return draft


def _items(slot: Slot, value: Any) -> list[Any]:
    """Return the outputs of one slot: from a list, a single one, or either under a key."""
    value = _nested(value)
    for _ in range(MAX_WRAPPED):
        if isinstance(value, dict) and not _looks_like(slot, value):
            value = _nested(_inside(slot, value))
    if isinstance(value, list) and not _is_list_type(slot, value):
        return [
            _inside(slot, item) if isinstance(item, dict) and not _looks_like(slot, item) else item
            for item in value
        ]
    if value is None:
        return []
    return [value]


def _inside(slot: Slot, value: dict[str, Any]) -> Any:
    """Return what is under the name of the slot, or under the only or a usual key."""
    for name, item in value.items():
        if _plain(name) in (_plain(slot.key), _plain(slot.key) + "s"):
            return item
    if len(value) == 1:
        name, item = next(iter(value.items()))
        if isinstance(item, (dict, list)) or _plain(name) in WRAPPERS:
            return item
    return value


def _unwrapped(value: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    names = {_plain(name) for name in value}
    if len(value) == 1 and not names & wanted:
        inner = _nested(next(iter(value.values())))
        return inner if isinstance(inner, dict) else value
    return value


def _looks_like(slot: Slot, value: dict[str, Any]) -> bool:
    return bool(value.keys() & slot.fields.keys())


def _is_list_type(slot: Slot, value: list[Any]) -> bool:
    """Tell whether a list is one output: its class is a RootModel of a list."""
    root = getattr(slot.spec.type, "__pydantic_root_model__", False)
    return bool(root) and not slot.is_many and not (len(value) == 1 and isinstance(value[0], list))


def _nested(value: Any) -> Any:
    """Read JSON that was put into a string."""
    if isinstance(value, str) and len(value) <= MAX_NESTED_TEXT and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
    return value


def _plain(name: Any) -> str:
    return _NOT_NAME.sub("", str(name).lower())
