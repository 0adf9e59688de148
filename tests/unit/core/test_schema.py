from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from flock_ray.adapters.memory import MemoryStore
from flock_ray.core.definition import AgentDefinition, OutputGroup, OutputSpec, Subscription
from flock_ray.core.ids import owned_slots
from flock_ray.core.recorded import recorded_types
from flock_ray.core.records import Installed, encode_frame
from flock_ray.core.recovery import snapshot_shard
from flock_ray.core.registry import RegisteredType, TypeRegistry
from flock_ray.core.rows import SHARD, Loaded, Snapshot, StoreBatch
from flock_ray.core.schema import TypeFinding, check_types, describe_type, merge_types, types_of
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import TableSpec, TypeInfo
from flock_ray.errors import StoreCorruptError


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Red(Enum):
    RED = "red"


class Street(BaseModel):
    name: str
    number: int


class StreetWithZip(BaseModel):
    name: str
    number: int
    zip: str


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


def info(fields: dict[str, Any], *, name: str = "X", version: int = 1, **config: Any) -> TypeInfo:
    """A type of these fields: an annotation is a required field, (annotation, default) an optional one."""
    namespace: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    for field, declared in fields.items():
        annotation, *default = declared if isinstance(declared, tuple) else (declared,)
        namespace["__annotations__"][field] = annotation
        if default:
            namespace[field] = default[0]
    if config:
        namespace["model_config"] = config
    cls = type(name.rpartition(".")[2], (BaseModel,), namespace)
    return describe_type(RegisteredType(name, version, cls))


def codes(found: list[TypeFinding], level: str | None = None) -> list[str]:
    return [finding.code for finding in found if level in (None, finding.level)]


def compare(old: dict[str, Any], new: dict[str, Any], **config: Any) -> list[TypeFinding]:
    return check_types([info(old)], [info(new, **config)], {})


BREAKING: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"a": int, "b": str}, {"a": int}, "RemovedRequiredField", "field b"),
    ({"a": int}, {"a": int, "b": str}, "NewRequiredField", "field b"),
    ({"a": int, "b": (str, "")}, {"a": int, "b": str}, "FieldNowRequired", "field b"),
    ({"a": float}, {"a": int}, "NarrowedType", "was number and is integer"),
    ({"a": str}, {"a": int}, "NarrowedType", "was string and is integer"),
    ({"a": int | None}, {"a": int}, "NarrowedType", "null"),
    ({"a": int | str}, {"a": int}, "NarrowedType", "string"),
    ({"a": Any}, {"a": int}, "NarrowedType", "anything"),
    ({"a": str}, {"a": datetime}, "NarrowedType", "format date-time"),
    ({"a": str}, {"a": (str, Field(max_length=5))}, "NarrowedType", "maxLength 5"),
    ({"a": (int, Field(ge=0))}, {"a": (int, Field(ge=10))}, "NarrowedType", "minimum 10, was 0"),
    ({"a": (str, Field(pattern="a"))}, {"a": (str, Field(pattern="b"))}, "NarrowedType", "pattern"),
    ({"a": str}, {"a": Literal["x", "y"]}, "NarrowedType", "takes 'x', 'y' only"),
    ({"a": Color}, {"a": Red}, "RemovedEnumValue", "'blue'"),
    ({"a": Literal["x", "y"]}, {"a": Literal["x"]}, "RemovedEnumValue", "'y'"),
    ({"a": list[float]}, {"a": list[int]}, "NarrowedType", "field a[]"),
    ({"a": list[int]}, {"a": tuple[int, int]}, "NarrowedType", "field a"),
    ({"a": dict[str, float]}, {"a": dict[str, int]}, "NarrowedType", "field a[value]"),
    ({"a": Street}, {"a": StreetWithZip}, "NewRequiredField", "field a.zip"),
    ({"a": list[Street]}, {"a": list[StreetWithZip]}, "NewRequiredField", "field a[].zip"),
    ({"a": Street | None}, {"a": StreetWithZip | None}, "NewRequiredField", "field a.zip"),
    ({"a": Decimal}, {"a": int}, "NarrowedType", "string"),
]


@pytest.mark.parametrize(("old", "new", "code", "text"), BREAKING)
def test_a_change_that_breaks_is_an_error_and_asks_for_a_new_version(
    old: dict[str, Any], new: dict[str, Any], code: str, text: str
) -> None:
    found = compare(old, new)
    errors = [finding for finding in found if finding.level == "error"]
    assert code in codes(errors) and "VersionNotRaised" in codes(errors)
    assert any(text in finding.message for finding in errors if finding.code == code)
    assert all("@flock_type(version=2)" in finding.fix for finding in errors)


HARMLESS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"a": int}, {"a": int, "b": (str, "")}, ["NewField"]),
    ({"a": int, "b": (str, "")}, {"a": int}, ["RemovedField"]),
    ({"a": int}, {"a": float}, []),
    ({"a": int}, {"a": int | None}, []),
    ({"a": Literal["x"]}, {"a": Literal["x", "y"]}, ["NewEnumValue"]),
    ({"a": Literal["x"]}, {"a": str}, []),
    ({"a": datetime}, {"a": str}, []),
    ({"a": (str, Field(max_length=5))}, {"a": (str, Field(max_length=9))}, []),
    ({"a": StreetWithZip}, {"a": Any}, []),
]


@pytest.mark.parametrize(("old", "new", "expected"), HARMLESS)
def test_a_change_that_reads_old_artifacts_is_a_warning_to_think_of_the_version(
    old: dict[str, Any], new: dict[str, Any], expected: list[str]
) -> None:
    found = compare(old, new)
    assert codes(found, "error") == []
    assert codes(found, "warning") == ["VersionNotRaised"]
    assert codes(found, "info") == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": int, "b": (str, "x")}, {"b": (str, "y"), "a": int}),
        ({"a": int}, {"a": (int, Field(description="how many", title="Number"))}),
        ({"title": str, "default": int}, {"title": str, "default": int}),
    ],
)
def test_order_defaults_and_descriptions_are_no_change(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert compare(old, new) == []


def test_fields_named_like_schema_keywords_are_fields() -> None:
    assert "NewRequiredField" in codes(compare({"a": int}, {"a": int, "title": str}))


def test_a_field_that_is_gone_breaks_a_class_that_refuses_unknown_fields() -> None:
    found = compare({"a": int, "b": (str, "")}, {"a": int}, extra="forbid")
    assert codes(found, "error") == ["RemovedField", "VersionNotRaised"]


def test_types_that_contain_themselves_are_compared() -> None:
    tree = describe_type(RegisteredType("Tree", 1, Tree))
    assert check_types([tree], [tree], {}) == []

    class Node(BaseModel):
        value: int
        weight: float
        children: list[Node] = []

    Node.model_rebuild(_types_namespace={"Node": Node})
    found = check_types([tree], [describe_type(RegisteredType("Tree", 1, Node))], {})
    assert "NewRequiredField" in codes(found, "error")


def test_a_raised_version_needs_an_upcaster_for_every_version_on_the_board() -> None:
    board = [info({"a": int}, version=1), info({"b": int}, version=2)]
    new = [info({"c": int}, version=4)]
    missing = check_types(board, new, {"X": {2}})
    assert codes(missing) == ["MissingUpcaster", "MissingUpcaster"]
    assert ["from_version=1" in missing[0].fix, "from_version=3" in missing[1].fix] == [True, True]
    assert check_types(board, new, {"X": {1, 2, 3}}) == []


def test_a_lower_version_is_an_error() -> None:
    [found] = check_types([info({"a": int}, version=3)], [info({"a": int}, version=2)], {})
    assert (found.level, found.code) == ("error", "VersionLowered")
    assert str(found) == (
        "error VersionLowered: type 'X': the board has version 3, this program knows up to 2 and would not read it; "
        "deploy a program that knows version 3."
    )


def test_a_renamed_type_is_told_from_one_that_is_gone() -> None:
    old = info({"a": int, "b": str}, name="shop.Order")
    renamed = info({"a": int, "b": (str, "")}, name="shop.Purchase")
    [found] = check_types([old], [renamed], {})
    assert (found.level, found.code) == ("error", "RenamedType")
    assert 'name="shop.Order"' in found.fix
    [gone] = check_types([old], [info({"z": int}, name="shop.Other")], {})
    assert (gone.level, gone.code) == ("warning", "TypeGone")
    # and a type of the board that merely looks alike is not the new name
    [gone] = check_types([old, renamed], [renamed], {})
    assert gone.code == "TypeGone"


def test_types_without_a_schema_or_with_a_large_one_are_recorded_by_hash() -> None:
    found = check_types([info({"a": Callable[[], int]})], [info({"a": Callable[[], str]})], {})
    assert codes(found, "warning") == ["VersionNotRaised"]
    large = {f"field_{n}_{'x' * 100}": int for n in range(1000)}
    assert info(large).schema == b"" != info(large).digest.encode()
    found = check_types([info(large)], [info({**large, "b": int})], {})
    assert codes(found) == ["SchemaUnknown"]


KINDS: list[Any] = [
    int,
    float,
    str,
    bool,
    datetime,
    int | None,
    list[int],
    dict[str, int],
    Color,
    Street,
    Any,
]


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=1, max_size=4
    )
)
def test_a_type_is_compatible_with_itself(fields: dict[str, tuple[Any, bool]]) -> None:
    declared = {name: (kind, None) if optional else kind for name, (kind, optional) in fields.items()}
    one, other = info(declared), info(dict(reversed(declared.items())))
    assert one == other
    assert check_types([one], [other], {}) == []


# -- what is recorded ------------------------------------------------------------------------------


def test_an_agent_brings_the_types_that_it_consumes_and_publishes() -> None:
    registry = TypeRegistry()
    definition = AgentDefinition(
        "a",
        subscriptions=[Subscription("s", "a", (Street, Street))],
        output_groups=[OutputGroup((OutputSpec(Tree), OutputSpec(Street)))],
    )
    assert [(t.name, t.version) for t in types_of(definition, registry)] == [("Street", 1), ("Tree", 1)]


def test_nothing_recorded_is_forgotten_and_the_newest_word_counts() -> None:
    first, second = info({"a": int}), info({"b": int}, version=2)
    again = info({"c": int})
    assert merge_types([second], [first]) == (first, second)
    assert merge_types([again], [first, second]) == (again, second)


def test_a_shard_keeps_the_types_of_agents_that_are_gone_and_journals_them() -> None:
    core = ShardCore(owned_slots(0, 1), durable=True)
    one, two = info({"a": int}), info({"b": int}, name="Y")
    core.install(TableSpec(1, (), (), (one,)), 0)
    core.install(TableSpec(2, (), (), (two,)), 0)
    assert core.table.types == (one, two)
    frames = [(1, encode_frame(0, [0, 0], core.records, lambda _: True))]

    assert recorded_types(Loaded([], frames, 1, 0)) == (one, two)
    assert recorded_types(Loaded([Snapshot(SHARD, 1, snapshot_shard(core))], [], 1, 0)) == (one, two)
    assert recorded_types(Loaded([], [], 0, 0)) == ()
    with pytest.raises(StoreCorruptError):
        recorded_types(Loaded([Snapshot(SHARD, 1, b"\xc1")], [], 1, 0))


def test_a_table_of_a_release_without_types_still_decodes() -> None:
    import msgspec

    old = msgspec.msgpack.encode([1, [], []])
    assert msgspec.msgpack.decode(old, type=TableSpec) == TableSpec(1, (), ())


async def test_a_journal_is_peeked_at_without_taking_it_from_its_writer() -> None:
    store = MemoryStore()
    await store.acquire()
    frame = encode_frame(0, [0], [Installed(0, TableSpec(1, (), (), (info({"a": int}),)))], lambda _: True)
    await store.append(StoreBatch(1, 0, frame, [], [], [], []))

    peeked = await MemoryStore(store.disk).peek()

    assert [t.name for t in recorded_types(peeked)] == ["X"]
    await store.append(StoreBatch(2, 0, frame, [], [], [], []))
