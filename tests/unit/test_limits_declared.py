"""What `.rate_limit()` and its kin take, refuse and make of it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray.agent import AgentBuilder
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.limiting import AgentLimits
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.wire import BreakerSpec, Envelope, LimitSpec, Rate
from flock_ray.deployment import fingerprint
from flock_ray.errors import (
    ArtifactSchemaError,
    ConfigurationError,
    ContextTooLongError,
    GuardBlockedError,
    GuardUnavailableError,
    ModelError,
    ModelRequestError,
    OutputContractError,
)

S = timedelta(seconds=1)


class Order(BaseModel):
    customer: Any = "c1"
    total: int = 1


def by_customer(order: Order) -> Any:
    return order.customer


def agent() -> AgentBuilder:
    return AgentBuilder("shipper", registry=TypeRegistry()).consumes(Order)


def spec_of(builder: AgentBuilder) -> LimitSpec:
    limits: AgentLimits = builder.definition.limits
    return limits.spec()


def test_an_agent_without_limits_has_none() -> None:
    assert agent().definition.limits is None


def test_rates_add_up() -> None:
    made = agent().rate_limit(10, per=S).rate_limit(1000, per=timedelta(days=1), key=by_customer)

    assert (Rate(10, 1_000_000), Rate(1000, 86_400_000_000, True)) == spec_of(made).rates
    assert spec_of(made).keyed


def test_the_last_concurrency_of_a_kind_holds() -> None:
    made = agent().concurrency(3).concurrency(5).concurrency(2, key=by_customer)

    assert LimitSpec(concurrency=5, keyed_concurrency=2, keyed=True) == spec_of(made)


def test_a_queueing_singleton_is_a_concurrency_of_one() -> None:
    assert LimitSpec(concurrency=1) == spec_of(agent().singleton())
    assert LimitSpec(keyed_concurrency=1, keyed=True) == spec_of(agent().singleton(key=by_customer))


def test_other_singletons_and_debouncing_are_left_to_the_shard() -> None:
    made = agent().singleton(by_customer, on_conflict="replace").debounce(2 * S, key=by_customer)

    # Redriven runs are not replaced: they queue.
    wanted = LimitSpec(keyed_concurrency=1, debounce_us=2_000_000, singleton="replace", keyed=True)
    assert wanted == spec_of(made)


def test_a_circuit_breaker_has_the_roadmaps_defaults() -> None:
    assert BreakerSpec(5, 60_000_000, 3) == spec_of(agent().circuit_breaker()).breaker


def test_a_circuit_breaker_by_rate() -> None:
    made = agent().circuit_breaker(20, 10 * S, 1, failure_rate=0.5, window=30 * S)

    assert BreakerSpec(20, 10_000_000, 1, 0.5, 30_000_000) == spec_of(made).breaker
    assert 60_000_000 == spec_of(agent().circuit_breaker(failure_rate=1)).breaker.window_us  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda a: a.rate_limit(0, per=S), "n must be a whole number of at least 1, got 0"),
        (lambda a: a.rate_limit(-1, per=S), "n must be"),
        (lambda a: a.rate_limit(1.5, per=S), "n must be"),
        (lambda a: a.rate_limit(float("nan"), per=S), "n must be"),
        (lambda a: a.rate_limit(True, per=S), "n must be"),
        (lambda a: a.rate_limit(10**12, per=S), "n is at most 1,000,000,000"),
        (lambda a: a.rate_limit(1, per=0 * S), "per must be longer than nothing"),
        (lambda a: a.rate_limit(1, per=-S), "per must be longer than nothing"),
        (lambda a: a.rate_limit(1, per=60), "per must be a timedelta, got 60"),
        (lambda a: a.rate_limit(1, per=timedelta.max), "per is at most 3650 days"),
        (lambda a: a.rate_limit(1, per=S, key="customer"), "key must be a function of the model"),
        (lambda a: a.concurrency(0), "n must be"),
        (lambda a: a.concurrency(False), "n must be"),
        (lambda a: a.concurrency(2, key=3), "key must be a function"),
        (lambda a: a.debounce(0 * S), "wait must be longer than nothing"),
        (lambda a: a.debounce(5), "wait must be a timedelta"),
        (lambda a: a.singleton(on_conflict="drop"), "on_conflict must be one of 'queue', 'skip', 'replace'"),
        (lambda a: a.circuit_breaker(failure_threshold=0), "failure_threshold must be"),
        (lambda a: a.circuit_breaker(failure_threshold=True), "failure_threshold must be"),
        (lambda a: a.circuit_breaker(recovery_timeout=-S), "recovery_timeout must be longer"),
        (lambda a: a.circuit_breaker(recovery_timeout=60), "recovery_timeout must be a timedelta"),
        (lambda a: a.circuit_breaker(half_open_attempts=0), "half_open_attempts must be"),
        (lambda a: a.circuit_breaker(failure_rate=0), "failure_rate must be a number above 0"),
        (lambda a: a.circuit_breaker(failure_rate=1.1), "failure_rate must be"),
        (lambda a: a.circuit_breaker(failure_rate=float("nan")), "failure_rate must be"),
        (lambda a: a.circuit_breaker(failure_rate=True), "failure_rate must be"),
        (lambda a: a.circuit_breaker(window=S), "give failure_rate, too"),
        (lambda a: a.circuit_breaker(failure_rate=0.5, window=0 * S), "window must be longer"),
        (lambda a: a.circuit_breaker(on="NoSuchError"), "NoSuchError"),
        (lambda a: a.circuit_breaker(on=[]), "on=[]"),
        (lambda a: a.circuit_breaker(on=5), "on= takes"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_changes_nothing(declare: Callable[[Any], Any], says: str) -> None:
    builder = agent().concurrency(7)

    with pytest.raises(ConfigurationError, match=r"^agent 'shipper': ") as refusal:
        declare(builder)

    assert says in str(refusal.value)
    assert AgentLimits(concurrency=7) == builder.definition.limits


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda a: a.concurrency(1, key=by_customer).rate_limit(1, S, key=lambda o: o.total), "have one key"),
        (lambda a: a.concurrency(1, key=by_customer).debounce(S), "debounce() needs the same one"),
        (lambda a: a.debounce(S).concurrency(1, key=by_customer), "debounce() needs the same one"),
        (lambda a: a.singleton(on_conflict="skip").rate_limit(1, S, key=by_customer), "singleton() needs"),
        (lambda a: a.singleton().concurrency(2), "a singleton is a concurrency of 1"),
        (lambda a: a.concurrency(2, key=by_customer).singleton(key=by_customer), "a singleton is a concurrency"),
        (lambda a: [a.rate_limit(1, S) for _ in range(9)], "at most 8 rates"),
    ],
)  # fmt: skip
def test_limits_that_contradict_each_other_are_refused(declare: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        declare(agent())

    assert says in str(refusal.value)


def test_limits_of_key_and_agent_go_together() -> None:
    made = (
        agent().singleton().rate_limit(2, S, key=by_customer).rate_limit(9, S).concurrency(3, key=by_customer)
    )

    assert LimitSpec((Rate(9, 1_000_000), Rate(2, 1_000_000, True)), 1, 3, keyed=True) == spec_of(made)


def test_a_key_written_twice_is_the_same_key() -> None:
    limit = 5
    made = agent().concurrency(1, key=lambda o: o.customer)

    made.rate_limit(1, S, key=lambda o: o.customer)
    with pytest.raises(ConfigurationError):
        made.rate_limit(1, S, key=lambda o: (o.customer, limit))
    with pytest.raises(ConfigurationError):
        made.rate_limit(1, S, key=operator.attrgetter("customer"))


def test_keys_that_close_over_different_values_are_different() -> None:
    def key_of(field: str) -> Callable[[Any], Any]:
        return lambda order: getattr(order, field)

    made = agent().concurrency(1, key=key_of("customer"))

    made.rate_limit(1, S, key=key_of("customer"))
    with pytest.raises(ConfigurationError):
        made.rate_limit(1, S, key=key_of("total"))


@pytest.mark.parametrize(
    ("value", "lane"),
    [("acme", "acme"), ("", ""), (7, "7"), (None, "null"), ((1, "a"), '[1,"a"]'), ({"b": 1, "a": 2}, '{"a":2,"b":1}')],
)  # fmt: skip
def test_keys_become_text(value: object, lane: str) -> None:
    limits = AgentLimits(key=by_customer)

    assert lane == limits.lane(Order(customer=value))


def test_a_long_key_is_hashed() -> None:
    limits = AgentLimits(key=by_customer)
    lanes = {limits.lane(Order(customer="x" * 10_000 + str(i))) for i in range(3)}

    assert len(lanes) == 3
    assert all(len(lane) == 32 for lane in lanes)


def table(builder: AgentBuilder) -> MatchTable:
    registry = builder._registry
    return MatchTable(1, (builder.definition_checked(),), registry)


def envelope(order: Order) -> Envelope:
    return Envelope(b"i" * 16, "Order", 1, order.model_dump_json().encode(), "w", 0, "test", 1)


def test_a_match_carries_the_key() -> None:
    builder = agent().concurrency(1, key=by_customer)
    builder._registry.ensure(Order)

    matched = table(builder).match(envelope(Order(customer="acme")), None)

    assert ["acme"] == [match.lane for match in matched.matches]
    assert table(builder).plain("Order", "test") is None


def test_without_a_key_matching_takes_its_short_way() -> None:
    assert table(agent().concurrency(1)).plain("Order", "test") is not None


@pytest.mark.parametrize("bad", [lambda order: 1 / 0, lambda order: object(), lambda order: "\ud800"])
def test_a_key_that_fails_refuses_the_match_visibly(bad: Callable[[Any], Any]) -> None:
    builder = agent().concurrency(1, key=bad)
    builder._registry.ensure(Order)

    matched = table(builder).match(envelope(Order()), None)
    checks = next(iter(table(builder).explain(envelope(Order())).values()))

    assert () == matched.matches
    assert ["limit key"] == [refusal.condition for refusal in matched.refusals]
    assert [("limit key", False)] == [(c.condition, c.passed) for c in checks if not c.passed]


def prints(builder: AgentBuilder) -> str:
    definition: AgentDefinition = builder.definition_checked()
    return fingerprint(definition, MatchTable(0, (definition,), builder._registry).spec)


def test_a_change_of_limits_is_a_change_of_the_agent() -> None:
    variants = [
        agent(),
        agent().concurrency(1),
        agent().concurrency(2),
        agent().concurrency(2, key=lambda o: o.customer),
        agent().concurrency(2, key=lambda o: o.total),
        agent().circuit_breaker(),
        agent().circuit_breaker(on=TimeoutError),
        agent().circuit_breaker(on=lambda error: "a" in str(error)),
        agent().circuit_breaker(on=lambda error: "b" in str(error)),
    ]

    assert len(variants) == len({prints(builder) for builder in variants})
    assert prints(agent().concurrency(2, key=by_customer)) == prints(agent().concurrency(2, key=by_customer))


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (RuntimeError("x"), True),
        (ModelError("x"), True),
        (ModelRequestError("401"), True),
        (OutputContractError("x"), True),
        (GuardUnavailableError("x"), True),
        (GuardBlockedError("x"), False),
        (ArtifactSchemaError("x"), False),
        (ContextTooLongError("x"), False),
        (ExceptionGroup("g", [GuardBlockedError("x"), RuntimeError("y")]), True),
        (ExceptionGroup("g", [GuardBlockedError("x"), ArtifactSchemaError("y")]), False),
    ],
)
def test_by_default_a_breaker_counts_what_is_not_the_inputs_fault(error: Exception, counts: bool) -> None:
    limits: AgentLimits = agent().circuit_breaker().definition.limits

    assert counts == limits.trips(error)


@pytest.mark.parametrize(
    ("on", "error", "counts"),
    [
        (TimeoutError, TimeoutError(), True),
        (TimeoutError, RuntimeError(), False),
        ("TimeoutError", TimeoutError(), True),
        ([KeyError, "RateLimitError"], KeyError(), True),
        (lambda error: "busy" in str(error), RuntimeError("busy"), True),
        (lambda error: "busy" in str(error), RuntimeError("down"), False),
        (lambda error: 1 / 0, RuntimeError("down"), False),
        (partial(operator.contains, {1}), RuntimeError("down"), False),
        (GuardBlockedError, GuardBlockedError("x"), True),
    ],
)
def test_on_says_what_a_breaker_counts(on: Any, error: Exception, counts: bool) -> None:
    limits: AgentLimits = agent().circuit_breaker(on=on).definition.limits

    assert counts == limits.trips(error)
