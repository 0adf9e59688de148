from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from flock_ray.agent import AgentBuilder, Pipeline, PublishBuilder, RunHandle
from flock_ray.core.conditions import Until, When
from flock_ray.core.definition import AgentDefinition, OutputGroup, OutputSpec, PoolSpec
from flock_ray.core.registry import TypeRegistry, flock_type
from flock_ray.core.specs import BatchSpec, FanOutRange, JoinSpec
from flock_ray.core.visibility import (
    AgentIdentity,
    LabelledVisibility,
    PrivateVisibility,
    TenantVisibility,
)
from flock_ray.errors import ConfigurationError


class Order(BaseModel):
    id: int = 0


class Payment(BaseModel):
    id: int = 0


class Invoice(BaseModel):
    id: int = 0


class Context:
    """Stands for the context of a run."""


class Recorder:
    """Counts the changes of a builder."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def builder(name: str = "biller", **kwargs: Any) -> AgentBuilder:
    return AgentBuilder(name, registry=TypeRegistry(), **kwargs)


def ids(agent: AgentBuilder) -> list[str]:
    return [subscription.id for subscription in agent.definition.subscriptions]


def by_id(model: Any) -> int:
    return int(model.id)


# --- the builder itself ------------------------------------------------------------------------


def test_the_facade_reads_as_printed() -> None:
    agent = builder()

    result = agent.description("bills").consumes(Order).publishes(Invoice).max_concurrency(3).labels("eu")

    assert result is agent
    definition = agent.definition
    assert definition.description == "bills"
    assert [s.types for s in definition.subscriptions] == [(Order,)]
    assert definition.output_groups == [OutputGroup(outputs=(OutputSpec(type=Invoice),))]
    assert definition.max_concurrency == 3
    assert definition.labels == frozenset({"eu"})


def test_every_method_reports_one_change_and_returns_the_builder() -> None:
    changes = Recorder()
    agent = builder(on_change=changes)

    def run(order: Order) -> None: ...

    calls: list[Any] = [
        lambda b: b.description("d"),
        lambda b: b.consumes(Order),
        lambda b: b.prevent_self_trigger(False),
        lambda b: b.runs(run),
        lambda b: b.with_utilities(object()),
        lambda b: b.with_tools([run]),
        lambda b: b.best_of(2, lambda result: 1.0),
        lambda b: b.calls(run),
        lambda b: b.labels("a"),
        lambda b: b.tenant("t"),
        lambda b: b.identity(AgentIdentity(name="biller")),
        lambda b: b.max_concurrency(1),
        lambda b: b.timeout(timedelta(seconds=1)),
        lambda b: b.pool(),
        lambda b: b.max_agent_iterations(5),
        lambda b: b.max_crashes(2),
    ]
    for number, call in enumerate(calls, start=1):
        assert call(agent) is agent
        assert changes.count == number

    assert isinstance(agent.publishes(Invoice), PublishBuilder)
    assert changes.count == len(calls) + 1


def test_a_refused_call_changes_nothing() -> None:
    changes = Recorder()
    agent = builder(on_change=changes)

    with pytest.raises(ConfigurationError):
        agent.consumes(Order, mode="sometimes")  # type: ignore[arg-type]  # wrong on purpose

    assert agent.definition == AgentDefinition(name="biller")
    assert changes.count == 0


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\x00b", "external", 7])
def test_names_that_ids_cannot_be_built_from_are_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        builder(name)


def test_repr_shows_what_flows_through() -> None:
    agent = builder()
    assert repr(agent) == "<agent 'biller': nothing -> nothing>"

    agent.consumes(Order, Payment).consumes(Order).publishes(Invoice)

    assert repr(agent) == "<agent 'biller': Order+Payment | Order -> Invoice>"


# --- consumes ------------------------------------------------------------------------------------


def test_consumes_keeps_every_option() -> None:
    agent = builder()
    condition = When.correlation(Order).count_at_least(2)

    def large(order: Any) -> bool:
        return bool(order.id > 3)

    agent.consumes(
        Order,
        Order,
        Payment,
        where=[large, bool],
        from_agents=["shop"],
        tags={"new"},
        join=JoinSpec(by=by_id),
        batch=BatchSpec(size=3),
        mode="events",
        priority=-2,
        activation=condition,
        delivery="exclusive",
        scope="board",
    )

    subscription = agent.definition.subscriptions[0]
    assert subscription.agent == "biller"
    assert subscription.types == (Order, Order, Payment)
    assert subscription.where == (large, bool)
    assert subscription.from_agents == frozenset({"shop"})
    assert subscription.tags == frozenset({"new"})
    assert subscription.join == JoinSpec(by=by_id)
    assert subscription.batch == BatchSpec(size=3)
    assert subscription.mode == "events"
    assert subscription.priority == -2
    assert subscription.activation == condition
    assert subscription.delivery == "exclusive"
    assert subscription.scope == "board"
    assert subscription.kind == "join_batch"


def test_dict_forms_of_join_and_batch_are_understood() -> None:
    agent = builder()

    agent.consumes(
        Order,
        Payment,
        join={"by": by_id, "within": timedelta(seconds=9)},
        batch={"size": 4, "timeout": timedelta(seconds=2)},
    )

    subscription = agent.definition.subscriptions[0]
    assert subscription.join == JoinSpec(by=by_id, within=timedelta(seconds=9))
    assert subscription.batch == BatchSpec(size=4, timeout=timedelta(seconds=2))


def test_one_predicate_needs_no_list() -> None:
    agent = builder().consumes(Order, where=bool)

    assert agent.definition.subscriptions[0].where == (bool,)


@pytest.mark.parametrize(
    ("types", "kwargs", "message"),
    [
        ((), {}, "at least one type"),
        ((str,), {}, "BaseModel"),
        ((BaseModel,), {}, "BaseModel"),
        ((Order(),), {}, "pass its class"),
        ((Order,), {"where": 3}, "where must be a function"),
        ((Order,), {"where": "id > 3"}, "where must be a function"),
        ((Order,), {"from_agents": "shop"}, r"from_agents=\['shop'\]"),
        ((Order,), {"from_agents": []}, "leave from_agents out"),
        ((Order,), {"tags": "new"}, "tags"),
        ((Order,), {"tags": [3]}, "tags must hold names"),
        ((Order,), {"mode": "never"}, "'both', 'events', 'direct'"),
        ((Order,), {"delivery": "one"}, "'all', 'exclusive'"),
        ((Order,), {"scope": "world"}, "None, 'workflow', 'board'"),
        ((Order,), {"priority": 1.5}, "priority must be a whole number"),
        ((Order,), {"priority": True}, "priority must be a whole number"),
        ((Order,), {"join": {"by": by_id}}, "name all their types"),
        ((Order, Payment), {"join": {"key": by_id}}, r"consumes\(\)"),
        ((Order,), {"batch": {}}, r"consumes\(\)"),
        ((Order,), {"activation": Until.idle()}, "activation"),
        ((Order,), {"activation": 3}, "condition"),
        ((Order,), {"semantic_match": "refunds"}, "not in this release"),
        ((Order,), {"semantic_threshold": 0.5}, "not in this release"),
        ((Order,), {"name": ""}, "name"),
        ((Order,), {"name": "a/b"}, "name"),
    ],
)
def test_consumes_says_what_is_wrong(types: Any, kwargs: dict[str, Any], message: str) -> None:
    agent = builder()

    with pytest.raises(ConfigurationError, match=message) as caught:
        agent.consumes(*types, **kwargs)

    assert "agent 'biller': consumes()" in str(caught.value)
    assert agent.definition.subscriptions == []


def test_consumed_and_published_types_are_registered() -> None:
    registry = TypeRegistry()

    AgentBuilder("a", registry=registry).consumes(Order).publishes(Invoice)

    assert "Order" in registry
    assert "Invoice" in registry


# --- subscription ids ----------------------------------------------------------------------------


def test_ids_come_from_the_shape() -> None:
    agent = (
        builder()
        .consumes(Order)
        .consumes(Payment, Order)
        .consumes(Order, Order, Payment)
        .consumes(Order, batch={"size": 2})
        .consumes(Order, Payment, join={"by": by_id})
        .consumes(Order, Payment, join={"by": by_id}, batch={"size": 2})
    )

    assert ids(agent) == [
        "biller/Order",
        "biller/Order+Payment",
        "biller/Order+Order+Payment",
        "biller/Order~batch",
        "biller/Order+Payment~join",
        "biller/Order+Payment~join~batch",
    ]


def test_ids_use_registered_names() -> None:
    @flock_type(name="shop.Return")
    class Return(BaseModel): ...

    assert ids(builder().consumes(Return)) == ["biller/shop.Return"]


def test_ids_do_not_depend_on_other_subscriptions_or_on_types_order() -> None:
    first = builder().consumes(Payment).consumes(Order, Invoice)
    second = builder().consumes(Invoice, Order)

    assert ids(first)[1] == ids(second)[0]


def test_options_that_tell_subscriptions_apart_change_the_id() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"from_agents": ["a"]},
        {"from_agents": ["b"]},
        {"tags": ["a"]},
        {"mode": "events"},
        {"delivery": "exclusive"},
        {"scope": "board"},
    ]

    seen = [ids(builder().consumes(Order, **option))[0] for option in options]

    assert len(set(seen)) == len(options)
    assert all("#" not in one for one in seen)


def test_the_hash_of_options_is_stable_across_processes_and_releases() -> None:
    agent = builder().consumes(Order, tags=["b", "a"], from_agents={"x"})

    # A change here forgets the waiting inputs of everybody who upgrades.
    assert ids(agent) == ["biller/Order~a1c2ed9f"]


def test_options_that_may_change_freely_keep_the_id() -> None:
    agent = builder().consumes(
        Order, where=bool, priority=4, activation=When.correlation(Order).exists(), mode="both"
    )

    assert ids(agent) == ["biller/Order"]


def test_equal_shapes_are_numbered_among_themselves() -> None:
    agent = builder().consumes(Order, where=bool).consumes(Payment).consumes(Order).consumes(Order)

    assert ids(agent) == ["biller/Order", "biller/Payment", "biller/Order#2", "biller/Order#3"]


def test_a_given_name_is_the_id_and_can_be_used_once() -> None:
    agent = builder().consumes(Order, tags=["x"], name="rush")
    assert ids(agent) == ["biller/rush"]

    with pytest.raises(ConfigurationError, match="'rush'"):
        agent.consumes(Payment, name="rush")


# --- publishes -----------------------------------------------------------------------------------


def test_types_of_one_call_are_one_group_and_repetition_counts() -> None:
    agent = builder().publishes(Order, Payment, Order).publishes(Invoice)

    assert [[(o.type, o.count) for o in g.outputs] for g in agent.definition.output_groups] == [
        [(Order, 2), (Payment, 1)],
        [(Invoice, 1)],
    ]


@pytest.mark.parametrize(
    ("fan_out", "count", "expected"),
    [
        (None, 1, None),
        (1, 1, None),
        (5, 5, None),
        ((2, 4), 1, FanOutRange(2, 4)),
        (FanOutRange(1, 9), 1, FanOutRange(1, 9)),
    ],
)
def test_fan_out_is_a_number_or_a_range(fan_out: Any, count: int, expected: FanOutRange | None) -> None:
    output = builder().publishes(Invoice, fan_out=fan_out).definition.output_groups[0].outputs[0]

    assert (output.count, output.fan_out) == (count, expected)


def test_publishes_keeps_every_option() -> None:
    public = PrivateVisibility(agents=frozenset({"x"}))
    agent = builder().publishes(
        Invoice, visibility=public, where=bool, validate=[(bool, "empty")], description="the bill"
    )

    group = agent.definition.output_groups[0]
    assert group.description == "the bill"
    assert group.outputs[0] == OutputSpec(
        type=Invoice, visibility=public, where=bool, validate=((bool, "empty"),), description="the bill"
    )


def test_a_validator_alone_gets_a_message() -> None:
    def positive(invoice: Any) -> bool:
        return True

    output = builder().publishes(Invoice, validate=positive).definition.output_groups[0].outputs[0]

    assert output.validate == ((positive, "Invoice failed validation (positive)"),)


@pytest.mark.parametrize(
    ("types", "kwargs", "message"),
    [
        ((), {}, "at least one type"),
        ((dict,), {}, "BaseModel"),
        ((Invoice,), {"fan_out": 0}, "fan_out"),
        ((Invoice,), {"fan_out": True}, "fan_out"),
        ((Invoice,), {"fan_out": (3, 2)}, "fan_out|FanOutRange"),
        ((Invoice, Invoice), {"fan_out": 3}, "says twice how many Invoice"),
        ((Invoice,), {"where": 3}, "where"),
        ((Invoice,), {"validate": [bool]}, "pairs"),
        ((Invoice,), {"validate": "x"}, "validate must be"),
        ((Invoice,), {"visibility": "public"}, "visibility must be"),
        ((Invoice,), {"visibility": PrivateVisibility}, r"write PrivateVisibility\(\.\.\.\)"),
    ],
)
def test_publishes_says_what_is_wrong(types: Any, kwargs: dict[str, Any], message: str) -> None:
    agent = builder()

    with pytest.raises(ConfigurationError, match=message) as caught:
        agent.publishes(*types, **kwargs)

    assert "agent 'biller': publishes()" in str(caught.value)
    assert agent.definition.output_groups == []


def test_only_for_and_visibility_are_about_the_last_outputs() -> None:
    agent = builder()

    agent.publishes(Order).publishes(Payment, Invoice).only_for("boss", "auditor")

    first, second = agent.definition.output_groups
    private = PrivateVisibility(agents=frozenset({"boss", "auditor"}))
    assert first.outputs[0].visibility is None
    assert [output.visibility for output in second.outputs] == [private, private]

    agent.publishes(Order).visibility(TenantVisibility(tenant_id="t"))
    assert agent.definition.output_groups[2].outputs[0].visibility == TenantVisibility(tenant_id="t")


def test_the_publish_builder_is_the_builder_in_everything_else() -> None:
    changes = Recorder()
    agent = builder(on_change=changes)
    publishing = agent.publishes(Invoice)

    assert publishing.name == "biller"
    assert publishing.definition is agent.definition
    assert publishing.consumes(Order) is agent
    assert publishing.only_for("boss") is publishing
    assert changes.count == 3
    with pytest.raises(ConfigurationError):
        publishing.only_for()
    with pytest.raises(ConfigurationError):
        publishing.visibility("secret")  # type: ignore[arg-type]  # wrong on purpose


# --- runs ----------------------------------------------------------------------------------------


def takes_order(order: Order) -> Invoice:
    return Invoice()


def test_runs_takes_sync_and_async_functions_and_callable_objects() -> None:
    async def later(order: Order) -> Invoice | None:
        return None

    class Biller:
        def __call__(self, order: Order) -> Invoice:
            return Invoice()

    for fn in (takes_order, later, Biller(), lambda order: None):
        agent = builder().consumes(Order).publishes(Invoice).runs(fn)
        assert agent.definition.function is fn
        assert agent.definition_checked().function is fn


def test_a_wrong_hint_names_function_parameter_expected_and_got() -> None:
    with pytest.raises(ConfigurationError) as caught:
        builder().consumes(Payment).runs(takes_order)

    message = str(caught.value)
    assert "'order' of takes_order is annotated Order" in message
    assert "consumes(Payment) gives it Payment" in message


def test_runs_before_consumes_is_checked_too() -> None:
    agent = builder().runs(takes_order)

    with pytest.raises(ConfigurationError, match="takes_order"):
        agent.consumes(Payment)

    assert agent.definition.subscriptions == []


def test_runs_before_publishes_is_checked_at_deploy() -> None:
    agent = builder().runs(takes_order).consumes(Order)
    with pytest.raises(ConfigurationError, match="Invoice is not declared"):
        agent.definition_checked()

    agent.publishes(Payment)
    with pytest.raises(ConfigurationError, match="Invoice is not declared"):
        agent.definition_checked()

    agent.publishes(Invoice)
    assert agent.definition_checked() == agent.definition


def test_the_checked_definition_is_a_snapshot() -> None:
    agent = builder().consumes(Order).publishes(Invoice).runs(takes_order)
    checked = agent.definition_checked()

    agent.consumes(Order).publishes(Payment).with_tools([takes_order])

    assert len(checked.subscriptions) == len(checked.output_groups) == 1
    assert checked.tools == []


def test_one_engine_only() -> None:
    class Engine:
        def evaluate(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"use \.runs\(\) or \.with_engines"):
        builder().runs(takes_order).with_engines(Engine())
    with pytest.raises(ConfigurationError, match=r"use \.runs\(\) or \.with_engines"):
        builder().with_engines(Engine()).runs(takes_order)
    with pytest.raises(ConfigurationError, match="already"):
        builder().runs(takes_order).runs(takes_order)
    with pytest.raises(ConfigurationError, match="evaluate"):
        builder().with_engines(takes_order)
    with pytest.raises(ConfigurationError, match="at least one"):
        builder().with_engines()
    assert len(builder().with_engines(Engine(), Engine()).definition.engines) == 2


# --- the rest ------------------------------------------------------------------------------------


def test_pool_is_stored_in_seconds() -> None:
    agent = builder().pool(
        min=1, max=4, num_cpus=0.5, num_gpus=1, resources={"b": 2, "a": 1}, idle_timeout=timedelta(minutes=2)
    )

    assert agent.definition.pool == PoolSpec(
        min=1, max=4, num_cpus=0.5, num_gpus=1.0, resources=(("a", 1.0), ("b", 2.0)), idle_timeout_s=120.0
    )
    assert builder().pool().definition.pool == PoolSpec()


def test_timeout_and_limits_are_stored() -> None:
    agent = builder().timeout(timedelta(seconds=1.5)).max_agent_iterations(7).max_crashes(2)

    assert agent.definition.timeout_s == 1.5
    assert agent.definition.max_iterations == 7
    assert agent.definition.max_crashes == 2
    assert agent.timeout(None).definition.timeout_s is None


def test_identity_sets_labels_and_tenant_and_labels_add_up() -> None:
    agent = builder().identity(AgentIdentity(name="biller", labels=frozenset({"a"}), tenant_id="t"))

    assert agent.labels("b").definition.labels == frozenset({"a", "b"})
    assert agent.definition.tenant == "t"


WRONG: dict[str, tuple[Any, str]] = {
    "description": (lambda b: b.description(3), "text"),
    "best_of": (lambda b: b.best_of(0, lambda r: 1.0), "at least 1"),
    "best_of score": (lambda b: b.best_of(2, None), "score"),
    "max_concurrency": (lambda b: b.max_concurrency(0), "at least 1"),
    "max_agent_iterations": (lambda b: b.max_agent_iterations(0), "at least 1"),
    "max_crashes": (lambda b: b.max_crashes(True), "whole number"),
    "calls": (lambda b: b.calls("f"), "a function"),
    "labels": (lambda b: b.labels(), "labels"),
    "tenant": (lambda b: b.tenant(""), "tenant"),
    "identity type": (lambda b: b.identity("biller"), "AgentIdentity"),
    "identity name": (lambda b: b.identity(AgentIdentity(name="boss")), "name='biller'"),
    "timeout": (lambda b: b.timeout(30), r"timedelta\(seconds=30\)"),
    "timeout zero": (lambda b: b.timeout(timedelta(0)), "longer than nothing"),
    "pool min": (lambda b: b.pool(min=-1), "at least 0"),
    "pool max": (lambda b: b.pool(min=3, max=2), "less than min"),
    "pool cpus": (lambda b: b.pool(num_cpus=-1), "num_cpus"),
    "pool nan": (lambda b: b.pool(num_gpus=float("nan")), "num_gpus"),
    "pool resources": (lambda b: b.pool(resources={"CPU": 1}), "num_cpus="),
    "pool idle": (lambda b: b.pool(idle_timeout=60), "timedelta"),
    "runs": (lambda b: b.runs(3), "a function"),
    "runs without input": (lambda b: b.runs(lambda: None), "no parameter for its input"),
    "with_tools": (lambda b: b.with_tools([3]), "functions"),
    "with_tools one": (lambda b: b.with_tools(len), "list of functions"),
    "with_utilities": (lambda b: b.with_utilities(), "at least one"),
    "with_mcps": (lambda b: b.with_mcps(["files"]), "not in this release"),
    "with_context": (lambda b: b.with_context(None), "not in this release"),
    "schedule": (lambda b: b.schedule(every=timedelta(hours=1)), "not in this release"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused_and_change_nothing(call: Any, message: str) -> None:
    agent = builder()

    with pytest.raises(ConfigurationError, match=message) as caught:
        call(agent)

    assert "agent 'biller'" in str(caught.value)
    assert agent.definition == AgentDefinition(name="biller")


# --- run and then --------------------------------------------------------------------------------


class Owner:
    """Stands for the Flock: remembers what it was asked to run."""

    steps: ClassVar[list[Any]] = []

    async def _run_pipeline(self, steps: list[Any]) -> str:
        self.steps[:] = steps
        return "outputs"


def test_run_delegates_its_inputs_to_the_owner() -> None:
    owner = Owner()
    agent = builder(owner=owner)
    handle = agent.run(Order(id=1), Order(id=2))

    assert isinstance(handle, RunHandle)
    assert asyncio.run(handle.execute()) == "outputs"
    assert owner.steps == [(agent, (Order(id=1), Order(id=2)))]


def test_then_adds_steps_without_changing_what_it_was_called_on() -> None:
    owner = Owner()
    first, second, third = builder("a", owner=owner), builder("b").publishes(Order), builder("c")
    run = first.run(Order())
    pipeline = run.then(second).then(third)

    asyncio.run(pipeline.execute())
    assert [(step.name, inputs) for step, inputs in owner.steps] == [("a", (Order(),)), ("b", ()), ("c", ())]
    assert not isinstance(owner.steps[1][0], PublishBuilder)

    asyncio.run(run.execute())
    assert len(owner.steps) == 1

    asyncio.run(first.then(second).execute())
    assert [step.name for step, _ in owner.steps] == ["a", "b"]


def test_running_needs_a_flock_and_builders() -> None:
    with pytest.raises(ConfigurationError, match="no flock"):
        asyncio.run(builder().run().execute())
    with pytest.raises(ConfigurationError, match="then"):
        builder().then("other")  # type: ignore[arg-type]  # wrong on purpose
    assert isinstance(builder().then(builder()), Pipeline)


def test_labels_are_what_labelled_visibility_asks_for() -> None:
    agent = builder().labels("eu", "finance")
    who = AgentIdentity(name=agent.name, labels=agent.definition.labels)

    assert LabelledVisibility(required_labels=frozenset({"eu"})).allows(who)
