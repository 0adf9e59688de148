"""Agents that listen by meaning, on a whole board."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import BatchSpec, Flock, WorkflowError, flock_type
from flock_ray.actors.worker import MatchRunner
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.core import wire
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import type_registry
from flock_ray.edge import Edge
from flock_ray.errors import ConfigurationError, FlockError, ModelError
from flock_ray.publishing import WARM_AT_ONCE, Publisher
from flock_ray.testing import VirtualClock, VirtualFlock, run_virtual
from tests.unit.semantic.words import WordEmbedder

BILLING = "refund money invoice"
TECH = "crash error login"


@flock_type(name="routing.Ticket")
class Ticket(BaseModel):
    title: str
    body: str = ""


@flock_type(name="routing.Inbox")
class Inbox(BaseModel):
    n: int = 0


class Taken(list[tuple[str, str]]):
    """(agent, title) of the tickets that agents got, in order."""

    def by(self, name: str) -> Callable[[Ticket], None]:
        return lambda ticket: self.append((name, ticket.title))

    def of(self, name: str) -> list[str]:
        return [title for agent, title in self if agent == name]


def desk(flock: Flock, taken: Taken, **options: Any) -> None:
    flock.agent("billing").consumes(Ticket, semantic_match=BILLING, **options).runs(taken.by("billing"))
    flock.agent("tech").consumes(Ticket, semantic_match=TECH, **options).runs(taken.by("tech"))


def test_artifacts_go_to_those_whose_query_they_are_similar_to() -> None:
    async def main() -> Taken:
        taken = Taken()
        async with VirtualFlock(embedder=WordEmbedder()) as flock:
            desk(flock, taken)
            for title in ("refund my money", "login crash", "hello there", "refund money after login crash"):
                await flock.publish(Ticket(title=title))
            await flock.run_until_idle()
        return taken

    taken = run_virtual(main())

    assert taken.of("billing") == ["refund my money", "refund money after login crash"]
    assert taken.of("tech") == ["login crash", "refund money after login crash"]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (["refund", "urgent"], ["urgent refund"]),
        ([{"query": "refund", "field": "title"}, {"query": "urgent", "field": "body"}], ["refund"]),
        ({"query": "refund urgent", "threshold": 0.9}, ["urgent refund"]),
    ],
)
def test_all_queries_must_be_reached(match: Any, expected: list[str]) -> None:
    async def main() -> Taken:
        taken = Taken()
        async with VirtualFlock(embedder=WordEmbedder()) as flock:
            flock.agent("a").consumes(Ticket, semantic_match=match).runs(taken.by("a"))
            for title, body in (
                ("urgent refund", ""),
                ("refund", "urgent"),
                ("urgent", ""),
                ("refund", "later"),
            ):
                await flock.publish(Ticket(title=title, body=body))
            await flock.run_until_idle()
        return taken

    assert run_virtual(main()).of("a")[: len(expected)] == expected


def test_meaning_joins_every_other_condition() -> None:
    async def main() -> tuple[Taken, list[int], WordEmbedder]:
        taken, batches, words = Taken(), list[int](), WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            flock.agent("picky").consumes(
                Ticket, semantic_match="refund", where=lambda t: t.body == "yes", tags={"vip"}
            ).runs(taken.by("picky"))
            flock.agent("collector").consumes(
                Ticket, semantic_match="refund", batch=BatchSpec(size=2, timeout=timedelta(hours=1))
            ).runs(lambda tickets: batches.append(len(tickets)))
            await flock.publish(Ticket(title="refund", body="yes"), tags={"vip"})
            await flock.publish(Ticket(title="refund", body="no"), tags={"vip"})
            await flock.publish(Ticket(title="refund", body="yes"))
            await flock.publish(Ticket(title="other", body="yes"), tags={"vip"})
            await flock.run_until_idle()
        return taken, batches, words

    taken, batches, _ = run_virtual(main())

    assert taken == [("picky", "refund")]
    assert batches[0] == 2


def test_of_exclusive_subscriptions_one_of_those_that_match_gets_it() -> None:
    async def main() -> Taken:
        taken = Taken()
        async with VirtualFlock(embedder=WordEmbedder()) as flock:
            desk(flock, taken, delivery="exclusive")
            for _ in range(4):
                await flock.publish(Ticket(title="refund money login crash"))
            await flock.publish(Ticket(title="login crash"))
            await flock.run_until_idle()
        return taken

    taken = run_virtual(main())

    assert len(taken) == 5
    assert ("tech", "login crash") in taken


def test_a_list_is_embedded_in_one_batch_and_equal_texts_once() -> None:
    async def main() -> WordEmbedder:
        words = WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            desk(flock, Taken())
            await flock.publish_many([Ticket(title=f"refund {n % 50}") for n in range(200)])
            await flock.run_until_idle()
        return words

    words = run_virtual(main())

    assert len(words.asked) == 1
    assert sorted(words.texts) == sorted([BILLING, TECH, *(f"refund {n}" for n in range(50))])


def test_a_list_that_is_larger_than_the_memory_is_matched_completely() -> None:
    async def main() -> tuple[int, int]:
        words, taken = WordEmbedder(), Taken()
        async with VirtualFlock(embedder=words) as flock:
            desk(flock, taken)
            await flock.publish_many([Ticket(title=f"refund {n}") for n in range(WARM_AT_ONCE + 10)])
            await flock.run_until_idle()
        return len(taken.of("billing")), max(map(len, words.asked))

    taken, largest = run_virtual(main())

    assert taken == WARM_AT_ONCE + 10
    assert largest <= 256


def test_what_nobody_compares_is_not_embedded() -> None:
    async def main() -> WordEmbedder:
        words = WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            flock.agent("plain").consumes(Inbox).runs(lambda inbox: None)
            flock.agent("inside").consumes(Ticket, semantic_match="refund", from_agents={"plain"}).runs(
                Taken().by("inside")
            )
            await flock.publish(Inbox())
            await flock.publish(Ticket(title="from outside"))
            await flock.run_until_idle()
        return words

    assert run_virtual(main()).asked == []


@pytest.mark.parametrize("is_async", [False, True])
def test_outputs_of_a_run_are_embedded_in_one_batch(is_async: bool) -> None:
    async def spread(inbox: Inbox) -> list[Ticket]:
        return [Ticket(title=f"refund {n}") for n in range(inbox.n)]

    def spread_in_a_thread(inbox: Inbox) -> list[Ticket]:
        return [Ticket(title=f"refund {n}") for n in range(inbox.n)]

    async def main() -> tuple[Taken, WordEmbedder]:
        taken, words = Taken(), WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            flock.agent("reader").consumes(Inbox).publishes(Ticket, fan_out=(1, 10)).runs(
                spread if is_async else spread_in_a_thread
            )
            desk(flock, taken)
            await flock.publish(Inbox(n=5))
            await flock.run_until_idle()
        return taken, words

    taken, words = run_virtual(main())

    assert len(taken.of("billing")) == 5
    assert len(words.asked) == 1


BROKEN = [
    (ModelError("down"), ModelError, True),
    (ConnectionError("secret text"), ModelError, True),
    (ConfigurationError("no file"), ConfigurationError, False),
]


@pytest.mark.parametrize(("broken", "kind", "retryable"), BROKEN)
def test_an_embedder_that_fails_fails_the_publish_before_anything_is_accepted(
    broken: Exception, kind: type[FlockError], retryable: bool
) -> None:
    async def main() -> None:
        taken, words = Taken(), WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            desk(flock, taken)
            words.broken = broken
            with pytest.raises(kind) as raised:
                await flock.publish_many([Inbox(), Ticket(title="refund money")])
            assert raised.value.retryable is retryable
            assert "secret" not in str(raised.value)
            assert [await flock.store.count(kind) for kind in (Inbox, Ticket)] == [0, 0]

            words.broken = None
            await flock.publish(Ticket(title="refund money"))
            await flock.run_until_idle()
            assert taken == [("billing", "refund money")]

    run_virtual(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_an_embedder_that_fails_on_a_worker_fails_the_run_visibly(is_async: bool) -> None:
    async def later(inbox: Inbox) -> Ticket:
        return Ticket(title="refund money")

    async def main() -> None:
        taken, words = Taken(), WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            function = later if is_async else lambda inbox: Ticket(title="refund money")
            flock.agent("reader").consumes(Inbox).publishes(Ticket).runs(function)
            desk(flock, taken)
            words.broken = ModelError("down")
            await flock.publish(Inbox())
            await flock.run_until_idle()

            [error] = await flock.store.get_by_type(WorkflowError)
            assert (error.failed_agent, error.error_type) == ("reader", "ModelError")
            assert await flock.store.count(Ticket) == 0
            assert taken == []

    run_virtual(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_errors_are_routed_by_meaning_too(is_async: bool) -> None:
    async def failing(inbox: Inbox) -> Ticket:
        raise ValueError("login crash")

    def failing_in_a_thread(inbox: Inbox) -> Ticket:
        raise ValueError("login crash")

    async def main() -> tuple[list[str], list[list[str]]]:
        got, words = list[str](), WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            flock.agent("reader").consumes(Inbox).publishes(Ticket).runs(
                failing if is_async else failing_in_a_thread
            )
            match = {"query": TECH, "field": "error_message"}
            flock.agent("medic").consumes(WorkflowError, semantic_match=match).runs(
                lambda error: got.append(error.error_message)
            )
            await flock.publish(Inbox())
            await flock.run_until_idle()
        return got, words.asked

    got, asked = run_virtual(main())

    assert got == ["login crash"]
    assert asked == ([[TECH, "login crash"]] if is_async else [["login crash"], [TECH]])


def test_recovery_does_not_embed_again() -> None:
    kept, taken = MemoryPersistence(), Taken()

    async def first() -> None:
        flock = VirtualFlock(embedder=WordEmbedder(), persistence=kept)
        desk(flock, taken)
        await flock.publish(Ticket(title="refund money"), delay=timedelta(days=1))
        await flock.shutdown(flush_batches=False)

    async def second() -> WordEmbedder:
        words = WordEmbedder()
        words.broken = ModelError("must not be asked")
        async with VirtualFlock(embedder=words, persistence=kept) as flock:
            desk(flock, taken)
            await flock.start()
            await flock.run_until_idle(include_timers=True)
        return words

    run_virtual(first())
    assert taken == []
    words = run_virtual(second())

    assert taken == [("billing", "refund money")]
    assert words.asked == []


def test_a_deploy_while_a_run_is_under_way_matches_its_output_by_the_new_agents() -> None:
    async def main() -> Taken:
        taken, release = Taken(), asyncio.Event()

        async def slow(inbox: Inbox) -> Ticket:
            await release.wait()
            return Ticket(title="refund money")

        async with VirtualFlock(embedder=WordEmbedder()) as flock:
            flock.agent("reader").consumes(Inbox).publishes(Ticket).runs(slow)
            await flock.publish(Inbox())
            await asyncio.sleep(1)
            desk(flock, taken)
            await flock.start()
            release.set()
            await flock.run_until_idle()
        return taken

    assert run_virtual(main()) == [("billing", "refund money")]


def test_a_deploy_between_two_parts_of_a_list_matches_all_of_it_by_the_new_agents() -> None:
    async def main() -> list[tuple[str, ...]]:
        words = WordEmbedder()
        old, new = Flock(embedder=words), Flock(embedder=words)
        desk(old, Taken())
        desk(new, Taken())
        new.agent("late").consumes(Ticket).runs(Taken().by("late"))
        edge = Edge(MatchTable(1, old._definitions(), type_registry), type_registry)
        batches = 0

        async def deploying(function: Callable[..., Any], *args: Any) -> Any:
            nonlocal batches
            batches += 1
            if batches == 2:
                edge.table = MatchTable(2, new._definitions(), type_registry)
            return function(*args)

        edge.offload = deploying
        tickets = [Ticket(title=f"refund {n}") for n in range(WARM_AT_ONCE + 1)]
        postings = await Publisher(edge, type_registry, VirtualClock()).postings(tickets, [{}] * len(tickets))
        return [tuple(m.subscription.partition("/")[0] for m in posting.matches) for posting in postings]

    matches = run_virtual(main())

    assert [names for names in matches if "late" not in names] == []
    assert len(matches) == WARM_AT_ONCE + 1


def worker_that_compares(words: WordEmbedder) -> tuple[Edge, wire.Envelope]:
    flock = Flock(embedder=words)
    desk(flock, Taken())
    edge = Edge(MatchTable(1, flock._definitions(), type_registry), type_registry)
    plain = Edge(MatchTable(0, (), type_registry), type_registry)
    posting = plain.post(
        Ticket(title="refund money"), id=b"i" * 16, correlation_id="w", produced_by="reader", created_us=1
    )
    return edge, posting.envelope


def test_what_the_board_itself_matches_is_refused_visibly_when_the_embedder_fails() -> None:
    words = WordEmbedder()
    edge, envelope = worker_that_compares(words)
    words.broken = ModelError("down")
    task = wire.Task(b"t" * 16, 1, "flock:match", "", 0, "w", (envelope,))

    completion = MatchRunner(edge, lambda: 0).run_sync(task)

    assert completion.error is not None
    assert (completion.error.type, completion.error.retryable) == ("ModelError", True)


def test_why_tells_the_similarity_to_every_query() -> None:
    async def main() -> tuple[str, str]:
        words = WordEmbedder()
        async with VirtualFlock(embedder=words) as flock:
            match: Any = ["refund money", {"query": "urgent", "field": "body"}]
            ticket = await flock.publish(Ticket(title="refund money please now"))
            flock.agent("a").consumes(Ticket, semantic_match=match).runs(Taken().by("a"))
            await flock.start()
            words.broken = ModelError("down")
            broken = str(await flock.why(ticket))
            words.broken = None
            return str(await flock.why(ticket)), broken

    answer, broken = run_virtual(main())

    assert "ok  semantic 'refund money': similarity 0.707, threshold 0.4" in answer
    assert "NO  semantic 'urgent' in body: no text to compare" in answer
    assert "NO  semantic: ModelError: down" in broken


def test_the_publishers_loop_goes_on_while_texts_are_embedded() -> None:
    async def main() -> None:
        words = WordEmbedder()
        gate = threading.Event()

        def slow(texts: list[str]) -> list[list[float]]:
            assert gate.wait(10), "the event loop was blocked"
            return words.embed(texts)

        flock = VirtualFlock(embedder=type("Slow", (), {"name": "slow", "embed": staticmethod(slow)})())
        desk(flock, Taken())
        await flock.start()
        flock._opened.board.edge.offload = asyncio.to_thread  # type: ignore[union-attr]  # it is open
        publishing = asyncio.ensure_future(flock.publish(Ticket(title="refund")))
        await asyncio.sleep(0)
        gate.set()
        await publishing
        await flock.shutdown()
        assert threading.get_ident() not in words.threads

    asyncio.run(main())
