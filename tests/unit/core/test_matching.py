"""The match table: who is asked about an artifact, and what the shard is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, create_model

from flock_ray import BatchSpec, Flock, JoinSpec
from flock_ray.core import matching
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.visibility import only_for
from flock_ray.core.wire import Posting
from flock_ray.edge import Edge


class Thing(BaseModel):
    n: int


class Other(BaseModel):
    n: int


def edge_of(flock: Flock, registry: TypeRegistry) -> Edge:
    definitions = [builder.definition_checked() for builder in flock.agents]
    for cls in (Thing, Other):
        registry.ensure(cls)
    return Edge(MatchTable(1, definitions, registry), registry)


def post(edge: Edge, model: BaseModel, **options: Any) -> Posting:
    given = {"id": b"i" * 16, "correlation_id": "w", "produced_by": "external", "created_us": 1_000_000}
    return edge.post(model, **{**given, **options})


def who(posting: Posting) -> list[str]:
    return [match.subscription.partition("/")[0] for match in posting.matches]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of agents whose conditions were evaluated."""
    names: list[str] = []
    original = matching.Candidate.checks

    def counting(self: matching.Candidate, *args: Any) -> Any:
        names.append(self.subscription.agent)
        return original(self, *args)

    monkeypatch.setattr(matching.Candidate, "checks", counting)
    return names


def test_agents_that_do_not_listen_to_the_type_are_never_asked(asked: list[str]) -> None:
    registry = TypeRegistry()
    flock = Flock(registry=registry)
    kinds = [create_model(f"Kind{number}", n=(int, 0)) for number in range(200)]
    for number in range(1000):
        flock.agent(f"a{number}").consumes(kinds[number % 200], where=lambda m: m.n > 0)
    flock.agent("listener").consumes(Thing, where=lambda thing: thing.n > 0)
    edge = edge_of(flock, registry)

    assert who(post(edge, Thing(n=1))) == ["listener"]
    assert asked == ["listener"]


def test_listeners_without_conditions_cost_no_evaluation_at_all(asked: list[str]) -> None:
    registry = TypeRegistry()
    flock = Flock(registry=registry)
    for number in range(50):
        flock.agent(f"a{number}").consumes(Thing, priority=number % 2)
    edge = edge_of(flock, registry)

    assert len(who(post(edge, Thing(n=1)))) == 50
    assert asked == []
    # Its own producer must be looked at, and gets nothing.
    assert "a7" not in who(post(edge, Thing(n=1), produced_by="a7"))
    assert len(asked) == 50


def test_matching_an_artifact_again_from_its_bytes_decides_the_same() -> None:
    registry = TypeRegistry()
    flock = Flock(registry=registry)
    flock.agent("big").consumes(Thing, where=lambda thing: thing.n > 5)
    flock.agent("pair").consumes(Thing, Other, join=JoinSpec(by=lambda m: m.n))
    flock.agent("bad").consumes(Thing, where=lambda thing: thing.nothing)
    edge = edge_of(flock, registry)
    posting = post(edge, Thing(n=7), visibility=only_for("big", "pair", "bad"), not_before_us=5)

    again = edge.rematch(msgspec.structs.replace(posting, matches=(), refusals=()))

    assert again == posting
    assert who(posting) == ["big", "pair"]
    assert [refusal.subscription.partition("/")[0] for refusal in posting.refusals] == ["bad"]
    assert {match.due_us for match in posting.matches} == {5}


def test_join_keys_are_equal_exactly_when_their_json_is() -> None:
    registry = TypeRegistry()
    flock = Flock(registry=registry)
    same = [{"b": 1, "a": 2}, {"a": 2, "b": 1}], [(1, "x"), [1, "x"]]
    keys = dict(enumerate([*same[0], *same[1], "1", 1, "k" * 99]))
    flock.agent("pair").consumes(Thing, Other, join=JoinSpec(by=lambda m: keys[m.n]))
    edge = edge_of(flock, registry)
    found = {n: post(edge, Thing(n=n)).matches[0].key for n in keys}

    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[4] != found[5]
    assert len(found[6]) == 16


def test_the_shard_is_told_what_it_must_know_and_nothing_of_user_code() -> None:
    registry = TypeRegistry()
    flock = Flock(registry=registry)
    flock.agent("a").consumes(Thing, Thing, Other, priority=3)
    flock.agent("b").consumes(Thing, batch=BatchSpec(size=5, timeout=timedelta(seconds=2)))
    flock.agent("c").consumes(Thing, Other, join=JoinSpec(by=lambda m: m.n, within=7), delivery="exclusive")
    flock.agent("d").consumes(Thing, mode="direct")
    definitions: list[AgentDefinition] = [builder.definition_checked() for builder in flock.agents]
    specs = {spec.agent: spec for spec in MatchTable(4, definitions, registry).spec.subscriptions}

    assert specs["a"].types == ("Thing", "Thing", "Other")
    assert (specs["a"].kind, specs["a"].scope, specs["a"].priority) == ("and", "workflow", 3)
    assert (specs["b"].kind, specs["b"].scope) == ("batch", "board")
    assert (specs["b"].batch_size, specs["b"].batch_timeout_us) == (5, 2_000_000)
    assert (specs["c"].kind, specs["c"].within_count, specs["c"].exclusive) == ("join", 7, True)
    # A direct subscription is known, so that a directed input finds it, but nobody matches it.
    assert "d" in specs
    edge = Edge(MatchTable(4, definitions, registry), registry)
    assert "d" not in who(post(edge, Thing(n=1)))
