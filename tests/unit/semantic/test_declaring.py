"""`consumes(semantic_match=...)`: every form, and what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from flock_ray import Flock, flock_type
from flock_ray.core.matching import MatchTable
from flock_ray.core.similarity import TextPredicate
from flock_ray.deployment import fingerprint
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantic.words import WordEmbedder


@flock_type(name="desk.Ticket")
class Ticket(BaseModel):
    title: str
    body: str = ""


@flock_type(name="desk.Loose")
class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")

    n: int = 0


def declared(*args: Any, **options: Any) -> tuple[TextPredicate, ...]:
    agent = Flock().agent("reader").consumes(*(args or (Ticket,)), **options)
    return agent.definition.subscriptions[0].semantic


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"semantic_match": "refunds"}, [("refunds", 0.4, None)]),
        ({"semantic_match": "refunds", "semantic_threshold": 0.7}, [("refunds", 0.7, None)]),
        ({"semantic_match": ["refunds", "angry"]}, [("refunds", 0.4, None), ("angry", 0.4, None)]),
        ({"semantic_match": ("refunds", "refunds")}, [("refunds", 0.4, None)]),
        ({"semantic_match": {"query": "refunds"}, "semantic_threshold": 0.7}, [("refunds", 0.7, None)]),
        (
            {
                "semantic_match": {"query": "refunds", "threshold": 0.8, "field": "body"},
                "semantic_threshold": 0.1,
            },
            [("refunds", 0.8, "body")],
        ),
        (
            {"semantic_match": [{"query": "refunds", "threshold": 0}, "angry"], "semantic_threshold": 0.6},
            [("refunds", 0, None), ("angry", 0.6, None)],
        ),
        ({"semantic_match": [TextPredicate("refunds", 0.9, "title")]}, [("refunds", 0.9, "title")]),
        ({"semantic_match": None}, []),
    ],
)
def test_every_form_says_the_same_thing(given: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    assert [(p.query, p.threshold, p.field) for p in declared(**given)] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"semantic_match": ""}, "is empty"),
        ({"semantic_match": "  "}, "is empty"),
        ({"semantic_match": []}, "is an empty list"),
        ({"semantic_match": 7}, "takes text"),
        ({"semantic_match": [["nested"]]}, "takes text"),
        ({"semantic_match": {"text": "refunds"}}, r"does not know \['text'\]"),
        ({"semantic_match": {"threshold": 0.5}}, "has no 'query'"),
        ({"semantic_match": {"query": 5}}, "is empty"),
        ({"semantic_match": {"query": "refunds", "threshold": 1.5}}, "from 0 to 1"),
        ({"semantic_match": {"query": "refunds", "threshold": "high"}}, "not a number"),
        (
            {"semantic_match": {"query": "refunds", "field": "subject"}},
            "which Ticket does not have; .* title, body",
        ),
        ({"semantic_match": {"query": "refunds", "field": 3}}, "name of a field"),
        ({"semantic_match": "refunds", "semantic_threshold": -0.1}, "from 0 to 1"),
        ({"semantic_match": "refunds", "semantic_threshold": float("nan")}, "from 0 to 1"),
        ({"semantic_match": "refunds", "semantic_threshold": True}, "not a number"),
        ({"semantic_threshold": 0.5}, "needs semantic_match"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(given: dict[str, Any], message: str) -> None:
    agent = Flock().agent("reader")

    with pytest.raises(ConfigurationError, match=f"agent 'reader'.*{message}"):
        agent.consumes(Ticket, **given)

    assert agent.definition.subscriptions == []


def test_a_field_must_be_one_of_every_type_unless_the_type_takes_any() -> None:
    class Plain(BaseModel):
        n: int

    with pytest.raises(ConfigurationError, match="'title', which Plain does not have"):
        declared(Ticket, Plain, semantic_match={"query": "refunds", "field": "title"})

    assert declared(Loose, semantic_match={"query": "refunds", "field": "anything"})


def test_queries_are_part_of_the_identity_and_leave_other_subscriptions_alone() -> None:
    plain = Flock().agent("a").consumes(Ticket).definition.subscriptions[0].id
    one = Flock().agent("a").consumes(Ticket, semantic_match="x").definition.subscriptions[0].id
    other = Flock().agent("a").consumes(Ticket, semantic_match="y").definition.subscriptions[0].id
    closer = Flock().agent("a").consumes(Ticket, semantic_match="x", semantic_threshold=0.9)

    assert plain == "a/desk.Ticket"
    assert len({plain, one, other, closer.definition.subscriptions[0].id}) == 4


def test_an_agent_whose_queries_or_embedder_changed_is_deployed_again() -> None:
    def print_of(embedder: str, query: str) -> str:
        flock = Flock(embedder=WordEmbedder(embedder))
        flock.agent("a").consumes(Ticket, semantic_match=query, name="same").runs(lambda ticket: None)
        [definition] = flock._definitions()
        return fingerprint(definition, MatchTable(0, (definition,), flock._registry).spec)

    assert print_of("e", "q") == print_of("e", "q")
    assert len({print_of("e", "q"), print_of("f", "q"), print_of("e", "r")}) == 3


def test_without_an_embedder_it_is_refused_and_never_means_everything() -> None:
    async def scenario() -> None:
        flock = VirtualFlock()
        flock.agent("reader").consumes(Ticket, semantic_match="refunds").runs(lambda ticket: None)

        with pytest.raises(ConfigurationError, match=r"'reader' consumes by semantic_match.*FLOCK_EMBEDDER"):
            await flock.publish(Ticket(title="anything"))
        assert [f.code for f in flock.check(published=[Ticket]) if f.level == "error"] == ["NoEmbedder"]
        await flock.shutdown()

    run_virtual(scenario())


def test_with_an_embedder_there_is_nothing_to_find() -> None:
    flock = Flock(embedder=WordEmbedder())
    flock.agent("reader").consumes(Ticket, semantic_match="refunds").runs(lambda ticket: None)

    assert flock.check(published=[Ticket]) == []


def test_meaning_is_an_exit_of_a_loop() -> None:
    flock = Flock(embedder=WordEmbedder())
    flock.agent("again").consumes(Ticket, semantic_match="more").publishes(Ticket).prevent_self_trigger(
        False
    ).runs(lambda ticket: ticket)

    assert "LoopWithoutExit" not in {finding.code for finding in flock.check(published=[Ticket])}
