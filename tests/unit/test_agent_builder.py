from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray.agent import AgentBuilder, PublishBuilder
from flock_ray.core.conditions import Until, When
from flock_ray.core.definition import AgentDefinition, OutputGroup, OutputSpec
from flock_ray.core.registry import TypeRegistry, flock_type
from flock_ray.core.specs import BatchSpec, JoinSpec
from flock_ray.core.visibility import (
    AgentIdentity,
)
from flock_ray.errors import ConfigurationError
from tests.unit.builder_models import Invoice, Order, Payment, Recorder, builder, by_id, ids

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
        ((Order,), {"semantic_match": ""}, "is empty"),
        ((Order,), {"semantic_threshold": 0.5}, "needs semantic_match"),
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
