from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from flock_ray.agent import Pipeline, PublishBuilder, RunHandle
from flock_ray.core.definition import AgentDefinition, OutputSpec, PoolSpec
from flock_ray.core.specs import FanOutRange
from flock_ray.core.visibility import (
    AgentIdentity,
    LabelledVisibility,
    PrivateVisibility,
    TenantVisibility,
)
from flock_ray.errors import ConfigurationError
from tests.unit.builder_models import Invoice, Order, Payment, Recorder, builder

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
    "with_mcps": (lambda b: b.with_mcps("files"), "takes names of servers"),
    "with_context": (lambda b: b.with_context(None), "takes a context provider"),
    "schedule": (lambda b: b.schedule(every=timedelta(hours=1), cron="0 9 * * *"), "exactly one"),
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
