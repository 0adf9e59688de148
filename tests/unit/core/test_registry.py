from __future__ import annotations

import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]  # has no stubs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field

from flock_ray.core.registry import (
    RegisteredType,
    TypeRegistry,
    flock_tool,
    flock_type,
    to_json,
    tools,
    type_registry,
)
from flock_ray.core.system_types import TimerTick, WorkflowError
from flock_ray.errors import (
    ArtifactSchemaError,
    ConfigurationError,
    TypeRegistrationError,
    UnknownTypeError,
)


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    known = dict(tools)
    with type_registry.isolated():
        yield
    tools.clear()
    tools.update(known)


def _module(name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__["BaseModel"] = BaseModel
    exec(source, module.__dict__)
    return module


ORDER = "class Order(BaseModel):\n    id: int\n"


class Outer:
    class Inner(BaseModel):
        x: int = 0


# --- names --------------------------------------------------------------------------------------


def test_the_default_name_leaves_out_the_module_and_enclosing_functions() -> None:
    @flock_type
    class Pizza(BaseModel):
        size: int

    assert type_registry.name_for(Pizza) == "Pizza"
    assert type_registry.version_for(Pizza) == 1
    assert type_registry.resolve("Pizza") is Pizza
    assert type_registry.ensure(Outer.Inner).name == "Outer.Inner"


def test_name_and_version_can_be_given() -> None:
    @flock_type(name="shop.order", version=3)
    class Order(BaseModel):
        id: int

    assert type_registry.get("shop.order") == RegisteredType("shop.order", 3, Order)
    assert "Order" not in type_registry


def test_upstreams_qualified_names_resolve_too() -> None:
    order = _module("shop", ORDER).Order
    type_registry.ensure(order)
    assert type_registry.resolve("shop.Order") is order


def test_iteration_is_alphabetical() -> None:
    for name in ("b", "a", "c"):
        type_registry.register(type("X", (BaseModel,), {"__module__": name}), name=name)
    assert [entry.name for entry in type_registry if entry.name in {"a", "b", "c"}] == ["a", "b", "c"]


def test_undecorated_models_register_on_first_use() -> None:
    class Draft(BaseModel):
        text: str

    with pytest.raises(UnknownTypeError, match="Decorate it with @flock_type, or use it in consumes"):
        type_registry.name_for(Draft)
    first = type_registry.ensure(Draft)
    assert type_registry.ensure(Draft) is first
    assert type_registry.name_for(Draft) == "Draft"


def test_registering_again_changes_nothing() -> None:
    @flock_type(name="x", version=2)
    class Thing(BaseModel):
        pass

    assert flock_type(Thing) is Thing
    assert type_registry.ensure(Thing) == RegisteredType("x", 2, Thing)


def test_one_class_has_one_name() -> None:
    @flock_type(name="x")
    class Thing(BaseModel):
        pass

    with pytest.raises(TypeRegistrationError, match="registered as 'x' version 1 already"):
        flock_type(name="y")(Thing)
    with pytest.raises(TypeRegistrationError, match="cannot be 'x' version 2"):
        flock_type(version=2)(Thing)


def test_w12_same_class_name_in_two_modules_is_refused() -> None:
    # Given the same text in two modules
    billing, shipping = _module("billing", ORDER).Order, _module("shipping", ORDER).Order
    type_registry.ensure(billing)

    # When the second class wants the name
    with pytest.raises(
        TypeRegistrationError, match=r"billing\.Order and shipping\.Order.*@flock_type\(name="
    ):
        type_registry.ensure(shipping)

    # Then the first keeps it, and the second is free for another
    assert type_registry.resolve("Order") is billing
    assert type_registry.register(shipping, name="shipping.Order").cls is shipping


def test_w12_local_classes_of_two_functions_are_two_classes() -> None:
    def one() -> type[BaseModel]:
        class Order(BaseModel):
            id: int

        return Order

    def two() -> type[BaseModel]:
        class Order(BaseModel):
            id: int

        return Order

    type_registry.ensure(one())
    with pytest.raises(TypeRegistrationError, match="Two classes"):
        type_registry.ensure(two())


def test_a_notebook_cell_run_twice_replaces_the_class() -> None:
    old, new = _module("__main__", ORDER).Order, _module("__main__", ORDER).Order
    type_registry.ensure(old)
    type_registry.ensure(new)
    assert type_registry.resolve("Order") is new


def test_a_script_that_is_also_imported_is_one_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    as_script, as_module = _module("run_as_script", ORDER), _module("run_as_module", ORDER)
    for module in (as_script, as_module):
        module.__file__ = "/app/run.py"
        monkeypatch.setitem(sys.modules, module.__name__, module)
    type_registry.ensure(as_script.Order)
    type_registry.ensure(as_module.Order)
    assert type_registry.resolve("Order") is as_module.Order


def test_a_decorated_subclass_does_not_take_its_parents_registration() -> None:
    @flock_type(name="base", version=4)
    class Base(BaseModel):
        x: int = 0

    @flock_type
    class Child(Base):
        pass

    class Undecorated(Base):
        pass

    assert type_registry.name_for(Child) == "Child"
    assert type_registry.version_for(Child) == 1
    assert type_registry.resolve("base") is Base
    with pytest.raises(UnknownTypeError):
        type_registry.name_for(Undecorated)
    assert type_registry.ensure(Undecorated).name == "Undecorated"


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    item: T


def test_parametrised_generics_are_types_of_their_own() -> None:
    assert type_registry.ensure(Box[int]).name == "Box[int]"
    assert type_registry.ensure(Box[str]).name == "Box[str]"
    assert type_registry.validate("Box[int]", 1, b'{"item": 3}') == Box[int](item=3)


@dataclass
class Plain:
    x: int


@pytest.mark.parametrize("wrong", [Plain, dict, BaseModel, 3, "Order"])
def test_only_pydantic_models_can_be_types(wrong: Any) -> None:
    with pytest.raises(TypeRegistrationError, match=r"pydantic\.BaseModel"):
        flock_type(wrong)
    with pytest.raises(TypeRegistrationError):
        type_registry.ensure(wrong)


@pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 201])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(TypeRegistrationError, match="use "):
        flock_type(name=name)(type("X", (BaseModel,), {}))


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0])
def test_bad_versions_are_refused(version: Any) -> None:
    with pytest.raises(TypeRegistrationError, match="whole number from 1"):
        flock_type(version=version)(type("X", (BaseModel,), {}))


def test_a_refused_class_is_left_as_it_was() -> None:
    billing, shipping = _module("billing", ORDER).Order, _module("shipping", ORDER).Order
    type_registry.ensure(billing)
    with pytest.raises(TypeRegistrationError):
        type_registry.ensure(shipping)
    with pytest.raises(UnknownTypeError):
        type_registry.name_for(shipping)


def test_an_unknown_name_gets_a_guess() -> None:
    type_registry.register(type("X", (BaseModel,), {}), name="PizzaOrder")
    with pytest.raises(UnknownTypeError, match=r"Did you mean 'PizzaOrder'\?.*import the module") as caught:
        type_registry.resolve("PizaOrder")
    assert caught.value.type_name == "PizaOrder"


def test_isolated_forgets() -> None:
    with type_registry.isolated():
        type_registry.register(type("X", (BaseModel,), {}), name="temporary")
        assert "temporary" in type_registry
    assert "temporary" not in type_registry


# --- payloads -----------------------------------------------------------------------------------


class Everything(BaseModel):
    when: datetime
    day: date
    key: UUID
    price: Decimal
    tags: frozenset[str]
    raw: bytes
    nested: dict[str, list[int]]
    text: str
    maybe: float | None = None


def test_w6_payloads_of_every_kind_survive() -> None:
    name = type_registry.ensure(Everything).name
    model = Everything(
        when=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
        day=date(2026, 1, 2),
        key=UUID(int=7),
        price=Decimal("1.10"),
        tags=frozenset({"a", "b"}),
        raw=b"bytes",
        nested={"x": [1, 2]},
        text="é\u2028\0",
    )
    payload = to_json(model)
    assert isinstance(payload, bytes)
    assert type_registry.validate(name, 1, payload) == model


@given(
    st.builds(
        Everything,
        when=st.datetimes(timezones=st.just(UTC)),
        price=st.decimals(allow_nan=False, allow_infinity=False, places=4),
        raw=st.text().map(str.encode),
        maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_payload_round_trip(model: Everything) -> None:
    name = type_registry.ensure(Everything).name
    assert type_registry.validate(name, 1, to_json(model)) == model


def test_aliases_computed_fields_and_strict_models_survive() -> None:
    @flock_type
    class Awkward(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        user_id: int = Field(alias="userId")
        seen: datetime = Field(validation_alias="seenAt", serialization_alias="seen_out")

        @computed_field  # type: ignore[prop-decorator]  # mypy's own limitation
        @property
        def double(self) -> int:
            return self.user_id * 2

    model = Awkward.model_validate_json('{"userId": 3, "seenAt": "2026-01-01T00:00:00Z"}')
    payload = to_json(model)
    assert b'"user_id":3' in payload
    assert b"double" not in payload
    assert type_registry.validate("Awkward", 1, payload) == model
    assert type_registry.validate("Awkward", 1, b'{"userId":3,"seenAt":"2026-01-01T00:00:00Z"}') == model


def test_root_models_work() -> None:
    @flock_type
    class Names(RootModel[list[str]]):
        pass

    assert type_registry.validate("Names", 1, to_json(Names(["a"]))) == Names(["a"])


def test_an_invalid_payload_says_what_is_wrong_but_not_the_values() -> None:
    type_registry.ensure(Everything)
    with pytest.raises(ArtifactSchemaError, match=r"'Everything': when: .*; and 3 more") as caught:
        type_registry.validate("Everything", 1, b'{"when": "SECRET"}')
    assert "SECRET" not in str(caught.value)
    assert (caught.value.type_name, caught.value.version) == ("Everything", 1)


def test_a_value_without_a_json_form_is_refused_at_the_writer() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: object

    with pytest.raises(ArtifactSchemaError, match=r"Odd cannot be written.*field_serializer"):
        to_json(Odd(thing=object()))
    with pytest.raises(ArtifactSchemaError, match="base64"):
        to_json(Everything.model_construct(raw=b"\xff"))


def test_an_agents_own_class_is_used_when_the_registered_one_was_replaced() -> None:
    old, new = _module("__main__", ORDER).Order, _module("__main__", ORDER).Order
    type_registry.ensure(old)
    type_registry.ensure(new)
    assert type(type_registry.validate("Order", 1, b'{"id": 1}', cls=old)) is old


# --- other processes ----------------------------------------------------------------------------


def test_a_class_brings_its_registration_and_upcasters_to_another_process(tmp_path: Path) -> None:
    # Given a script's own class, as cloudpickle ships it by value
    script = f"""
import sys, cloudpickle
sys.path[:0] = {sys.path!r}
from pydantic import BaseModel
from flock_ray.core.registry import flock_type, upcaster, type_registry

@flock_type(name="shop.order", version=2)
class Order(BaseModel):
    id: int

@upcaster(Order, from_version=1)
def rename(data):
    return {{"id": data["number"]}}

def use():
    return type_registry.ensure(Order)

open({str(tmp_path / "agent")!r}, "wb").write(cloudpickle.dumps((Order, use)))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    # When this process, which never saw it, receives it
    order, use = pickle.loads((tmp_path / "agent").read_bytes())
    assert "shop.order" not in type_registry
    entry = use()

    # Then name, version and upcasters are known here, in this process's own registry
    assert entry == RegisteredType("shop.order", 2, order)
    assert type_registry.resolve("shop.order") is order
    assert type_registry.validate("shop.order", 1, b'{"number": 7}') == order(id=7)


def test_the_registry_pickles_as_a_reference() -> None:
    assert pickle.loads(cloudpickle.dumps(type_registry)) is type_registry
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(TypeRegistry())


# --- tools and system types -----------------------------------------------------------------------


def test_tools() -> None:
    @flock_tool
    def search(query: str) -> str:
        return query

    @flock_tool(name="add")
    def plus(a: int, b: int) -> int:
        return a + b

    assert tools["search"] is search
    assert tools["add"] is plus
    assert flock_tool(name="search")(search) is search
    with pytest.raises(ConfigurationError, match="Two functions want to be the tool 'search'"):
        flock_tool(name="search")(plus)


def test_system_types_are_registered() -> None:
    assert type_registry.resolve("WorkflowError") is WorkflowError
    assert type_registry.resolve("TimerTick") is TimerTick


def test_w6_system_artifacts_survive_as_json() -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    error = WorkflowError(
        failed_agent="cook", error_type="ValueError", error_message="burnt", timestamp=moment, task_id="07ff"
    )
    tick = TimerTick(timer_name="cook", fire_time=moment, iteration=0, schedule_spec={"interval_s": 5.0})
    assert type_registry.validate("WorkflowError", 1, to_json(error)) == error
    assert type_registry.validate("TimerTick", 1, to_json(tick)) == tick
    with pytest.raises(ArtifactSchemaError):
        type_registry.validate(
            "TimerTick", 1, b'{"timer_name":"x","fire_time":"2026-01-01T12:00:00","iteration":0}'
        )


def test_a_users_class_cannot_take_a_system_name() -> None:
    with pytest.raises(TypeRegistrationError, match="Two classes"):
        type_registry.register(type("WorkflowError", (BaseModel,), {}))


def test_a_program_may_have_a_class_of_its_own_for_what_approvals_publish() -> None:
    from flock_ray.core.approval_types import ApprovalRequest as Ours

    registry = TypeRegistry()
    registry.ensure(Ours)

    class ApprovalRequest(BaseModel):
        artifact: dict[str, int]

    # It takes the place of ours, and who still reads with ours can do so
    assert registry.register(ApprovalRequest).cls is ApprovalRequest
    assert registry.resolve("ApprovalRequest") is ApprovalRequest
    assert registry.ensure(Ours).cls is Ours
    assert registry.resolve("ApprovalRequest") is ApprovalRequest
    shown = b'{"artifact": {"x": 1}, "artifact_id": "i", "artifact_type": "T", "agent": "a", "shown": ""}'
    assert isinstance(registry.validate("ApprovalRequest", 1, shown), ApprovalRequest)
    assert isinstance(registry.validate("ApprovalRequest", 1, shown, cls=Ours), Ours)
    with pytest.raises(TypeRegistrationError):
        registry.register(type("ApprovalRequest", (BaseModel,), {"__module__": "elsewhere"}))
