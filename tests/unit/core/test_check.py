from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray.agent import AgentBuilder
from flock_ray.core.check import Finding, check
from flock_ray.core.conditions import When
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.system_types import WorkflowError
from flock_ray.core.visibility import (
    AfterVisibility,
    LabelledVisibility,
    PrivateVisibility,
    PublicVisibility,
    TenantVisibility,
)


class A(BaseModel):
    n: int = 0


class B(BaseModel):
    n: int = 0


class C(BaseModel):
    n: int = 0


REGISTRY = TypeRegistry()


def agent(name: str, *, engine: bool = True) -> AgentBuilder:
    builder = AgentBuilder(name, registry=REGISTRY)
    return builder.runs(lambda *inputs: None) if engine else builder


def found(*agents: AgentBuilder, outside: tuple[str, ...] = ("A",)) -> list[Finding]:
    return check([builder.definition for builder in agents], REGISTRY, outside)


def codes(*agents: AgentBuilder, outside: tuple[str, ...] = ("A",)) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.code, finding.agent) for finding in found(*agents, outside=outside)]


NOTHING_CONSUMES_B = ("info", "NobodyConsumes", "a")


def test_a_sound_flock_has_only_its_results_to_mention() -> None:
    flock = [agent("a").consumes(A).publishes(B), agent("b").consumes(B).publishes(C)]

    assert codes(*flock) == [("info", "NobodyConsumes", "b")]
    assert "publishes C, which no agent consumes" in found(*flock)[0].message


def test_an_agent_needs_an_engine_and_something_to_consume() -> None:
    assert codes(agent("a", engine=False).consumes(A)) == [("error", "NoEngine", "a")]
    assert codes(agent("a")) == [("error", "NoConsumes", "a")]
    assert found(agent("a", engine=False).consumes(A))[0].fix == "add .runs(fn) or .with_engines(...)"

    class Engine:
        def evaluate(self) -> None: ...

    assert codes(agent("a", engine=False).with_engines(Engine()).consumes(A)) == []


def test_direct_subscriptions_wait_for_nothing_and_consume_nothing() -> None:
    assert codes(agent("a").consumes(C, mode="direct")) == []
    assert codes(agent("a").consumes(A).publishes(B), agent("b").consumes(B, mode="direct")) == [
        NOTHING_CONSUMES_B
    ]


# --- who publishes, who consumes -------------------------------------------------------------------


def test_a_type_that_nobody_publishes_is_a_warning_unless_it_comes_from_outside() -> None:
    assert codes(agent("a").consumes(A), outside=()) == [("warning", "NobodyPublishes", "a")]
    assert codes(agent("a").consumes(A), outside=("A",)) == []
    assert "consumes A, which no agent publishes" in found(agent("a").consumes(A), outside=())[0].message


def test_what_only_the_agent_itself_publishes_never_comes() -> None:
    alone = agent("a").consumes(A).consumes(B).publishes(B)
    finding = found(alone)[0]

    assert (finding.code, finding.agent) == ("NobodyPublishes", "a")
    assert "nobody but itself" in finding.message
    assert ("warning", "NobodyPublishes", "a") not in codes(alone.prevent_self_trigger(False))


def test_from_agents_limits_who_counts() -> None:
    wrong = agent("b").consumes(B, from_agents=["c"])
    flock = [agent("a").consumes(A).publishes(B), wrong, agent("c").consumes(A)]

    assert codes(*flock, outside=("A", "B")) == [("warning", "NobodyPublishes", "b"), NOTHING_CONSUMES_B]
    assert "none of c publishes" in found(*flock)[0].message
    assert codes(agent("a").consumes(A, from_agents=["external"])) == []


def test_an_unknown_producer_is_a_warning() -> None:
    assert ("warning", "UnknownProducer", "a") in codes(agent("a").consumes(A, from_agents=["typo"]))
    assert codes(agent("a").consumes(WorkflowError, from_agents=["orchestrator#a"])) == []
    assert ("warning", "UnknownProducer", "a") in codes(
        agent("a").consumes(WorkflowError, from_agents=["orchestrator#typo"])
    )


def test_system_types_are_published_by_the_system() -> None:
    assert codes(agent("a").consumes(WorkflowError), outside=()) == []


def test_a_join_whose_types_cannot_both_arrive() -> None:
    join = {"by": lambda model: model.n}
    for waiting in (agent("a").consumes(A, B), agent("a").consumes(A, B, join=join)):
        assert codes(waiting) == [("warning", "NeverComplete", "a"), ("warning", "NobodyPublishes", "a")]
        assert found(waiting)[0].message == "A will wait for ever: B never arrives"

    assert codes(agent("a").consumes(A, B), outside=("A", "B")) == []
    assert codes(agent("a").consumes(A, B, batch={"size": 2})) == [("warning", "NobodyPublishes", "a")]
    assert [code for _, code, _ in codes(agent("a").consumes(A, B), outside=())] == ["NobodyPublishes"] * 2


def test_a_join_from_one_producer_that_publishes_only_one_of_the_types() -> None:
    flock = [
        agent("one").consumes(C).publishes(A),
        agent("two").consumes(C).publishes(B),
        agent("both").consumes(A, B, from_agents=["one"]),
    ]

    assert ("warning", "NeverComplete", "both") in codes(*flock, outside=("C",))


# --- loops -----------------------------------------------------------------------------------------


def loop(
    consumed: dict[str, Any] | None = None,
    published: dict[str, Any] | None = None,
    fn: Any = lambda a: None,
) -> list[AgentBuilder]:
    ping = agent("ping", engine=False).consumes(A, **(consumed or {})).publishes(B, **(published or {}))
    return [ping.runs(fn), agent("pong").consumes(B).publishes(A)]


def test_a_loop_without_exit_is_a_warning_with_its_path() -> None:
    assert codes(*loop()) == [("warning", "LoopWithoutExit", "ping")]
    assert found(*loop())[0].message == "triggers itself for ever: ping -(B)-> pong -(A)-> ping"


def test_every_kind_of_exit_ends_a_loop() -> None:
    assert codes(*loop(consumed={"where": lambda a: a.n < 3})) == []
    assert codes(*loop(consumed={"activation": When.correlation(A).count_at_most(3)})) == []
    assert codes(*loop(published={"where": lambda b: b.n < 3})) == []
    assert codes(*loop(published={"fan_out": (1, 4)})) == [("warning", "LoopWithoutExit", "ping")]


def test_a_function_that_may_return_none_is_an_exit() -> None:
    def once(a: A) -> B:
        return B()

    def perhaps(a: A) -> B | None:
        return None

    assert codes(*loop(fn=perhaps)) == []
    assert codes(*loop(fn=once)) == [("warning", "LoopWithoutExit", "ping")]


def test_self_triggering_is_a_loop_only_when_allowed() -> None:
    alone = agent("a").consumes(A).publishes(A)
    assert ("warning", "LoopWithoutExit", "a") not in codes(alone)

    alone.prevent_self_trigger(False)
    assert codes(alone) == [("warning", "LoopWithoutExit", "a")]
    assert found(alone)[0].message == "triggers itself for ever: a -(A)-> a"


def test_a_loop_that_needs_something_from_elsewhere_each_round_ends() -> None:
    ping = agent("ping").consumes(A, C).publishes(B)
    pong = agent("pong").consumes(B).publishes(A)
    assert codes(ping, pong, outside=("A", "C")) == []

    # Now the loop makes its own C.
    assert ("warning", "LoopWithoutExit", "ping") in codes(ping, pong.publishes(C))


def test_an_edge_that_falls_away_takes_others_with_it() -> None:
    flock = [
        agent("a").consumes(A, C).publishes(B),
        agent("b").consumes(B).publishes(A),
        agent("c").consumes(B, WorkflowError).publishes(C),
    ]

    assert not [code for _, code, _ in codes(*flock) if code == "LoopWithoutExit"]


def test_two_loops_are_two_findings_and_a_tail_is_no_part_of_them() -> None:
    class D(BaseModel): ...

    flock = [
        *loop(),
        agent("x").consumes(C).publishes(D),
        agent("y").consumes(D).publishes(C),
        agent("tail").consumes(A, D),
    ]

    assert [f.agent for f in found(*flock) if f.code == "LoopWithoutExit"] == ["ping", "x"]


# --- visibility ------------------------------------------------------------------------------------


def test_an_output_that_no_consumer_may_see_is_a_warning() -> None:
    hidden = [
        PrivateVisibility(agents=frozenset({"boss"})),
        LabelledVisibility(required_labels=frozenset({"eu", "top"})),
        TenantVisibility(tenant_id="t"),
        AfterVisibility(ttl=timedelta(1), then=TenantVisibility(tenant_id="t")),
    ]
    reader = agent("reader").consumes(B).labels("eu")
    for visibility in hidden:
        maker = agent("maker").consumes(A).publishes(B, visibility=visibility)
        assert codes(maker, reader) == [("warning", "NobodySees", "maker")]
        assert found(maker, reader)[0].message == "nobody who consumes B may see it (reader)"


def test_an_output_that_some_consumer_sees_is_fine() -> None:
    reader = agent("reader").consumes(B).labels("eu").tenant("t")
    for visibility in (
        PrivateVisibility(agents=frozenset({"reader"})),
        LabelledVisibility(required_labels=frozenset({"eu"})),
        TenantVisibility(tenant_id="t"),
        AfterVisibility(ttl=timedelta(1)),
        None,
        lambda b: PrivateVisibility(),
    ):
        maker = agent("maker").consumes(A).publishes(B, visibility=visibility)
        assert codes(maker, reader, agent("other").consumes(B)) == []


def test_publishing_wider_than_the_input_is_worth_knowing() -> None:
    secret = PrivateVisibility(agents=frozenset({"middle"}))
    first = agent("first").consumes(A).publishes(B, visibility=secret)
    last = agent("last").consumes(C)

    def flock(visibility: Any) -> list[tuple[str, str, str]]:
        return codes(first, agent("middle").consumes(B).publishes(C, visibility=visibility), last)

    assert flock(PublicVisibility()) == [("info", "WiderThanInput", "middle")]
    assert flock(None) == []
    assert flock(PrivateVisibility(agents=frozenset({"middle"}))) == [("warning", "NobodySees", "middle")]


# --- the rest --------------------------------------------------------------------------------------


def test_exclusive_next_to_shared_is_worth_knowing() -> None:
    exclusive = agent("a").consumes(A, delivery="exclusive")

    assert codes(exclusive, agent("b").consumes(A)) == [("info", "ExclusiveNextToShared", "a")]
    assert codes(exclusive, agent("b").consumes(A, delivery="exclusive")) == []
    assert codes(exclusive, agent("b").consumes(B), outside=("A", "B")) == []


def test_limits_that_are_probably_mistakes() -> None:
    too_much = (
        agent("a").consumes(A, batch={"size": 100_001}).max_concurrency(1001).best_of(101, lambda result: 1.0)
    )
    just_right = (
        agent("a").consumes(A, batch={"size": 100_000}).max_concurrency(1000).best_of(100, lambda result: 1.0)
    )

    assert codes(too_much) == [
        ("warning", "HighBestOf", "a"),
        ("warning", "HighConcurrency", "a"),
        ("warning", "LargeBatch", "a"),
    ]
    assert codes(just_right) == []
    assert codes(agent("a").consumes(A, batch={"timeout": timedelta(seconds=1)})) == []


def test_the_order_is_by_level_and_does_not_depend_on_the_declarations() -> None:
    flock = [
        *loop(),
        agent("z", engine=False).consumes(B, C).publishes(C),
        agent("m").publishes(C, visibility=TenantVisibility(tenant_id="t")),
        agent("k").consumes(C, delivery="exclusive").consumes(C),
    ]
    expected = found(*flock)
    levels = [finding.level for finding in expected]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)
    assert set(levels) == {"error", "warning", "info"}
    assert len(set(expected)) == len(expected)

    shuffled = random.Random(7)
    for _ in range(10):
        shuffled.shuffle(flock)
        assert found(*flock) == expected


def test_a_finding_reads_as_one_line() -> None:
    finding = found(agent("a", engine=False).consumes(A))[0]

    assert str(finding) == (
        "error NoEngine: agent 'a': nothing runs this agent; add .runs(fn) or .with_engines(...)."
    )


def test_a_large_flock_is_checked_quickly_and_an_empty_one_too() -> None:
    types = [type(f"T{number}", (BaseModel,), {"__module__": __name__}) for number in range(300)]
    flock = [
        agent(f"a{number}").consumes(types[number]).publishes(types[(number + 1) % 300])
        for number in range(300)
    ]

    loops = [finding for finding in found(*flock) if finding.code == "LoopWithoutExit"]
    assert [finding.agent for finding in loops] == ["a0"]
    assert found() == []
