"""What each context provider shows, on a whole board with virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flock_ray import AgentIdentity, Artifact, Context, FilterConfig, WorkflowError, only_for
from flock_ray.context_provider import (
    BaseContextProvider,
    BoundContextProvider,
    ContextRequest,
    CorrelatedContextProvider,
    DefaultContextProvider,
    EmptyContextProvider,
    FilteredContextProvider,
    RecentContextProvider,
    TimeWindowContextProvider,
    estimated_tokens,
)
from flock_ray.errors import ConfigurationError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.context.board import Ask, Fact, Memo, Said, witness


def shown(provider: Any, fill: Callable[[VirtualFlock], Any], **options: Any) -> list[str]:
    """Return the texts that a provider shows on a board that `fill` has filled."""

    async def main() -> list[str]:
        async with VirtualFlock(**options) as flock:
            seen = witness(flock, provider)
            await fill(flock)
            await flock.publish(Ask(), correlation_id="mine")
            await flock.run_until_idle()
            assert not await flock.store.get_by_type(WorkflowError)
        return seen.texts

    return run_virtual(main())


async def five_of_two_workflows(flock: VirtualFlock) -> None:
    for n in range(5):
        await flock.publish(Fact(text=f"f{n}", n=n), correlation_id="mine" if n % 2 else "other")
        await asyncio.sleep(1)


EVERY_KIND_OF_BOARD: list[dict[str, Any]] = [
    {},
    {"shards": 3},
    {"shards": 3, "persistence": MemoryPersistence},
]


@pytest.fixture(params=EVERY_KIND_OF_BOARD, ids=["memory", "shards", "durable"])
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    options = dict(request.param)
    if "persistence" in options:
        options["persistence"] = options["persistence"]()
    return options


def test_default_shows_the_whole_board_oldest_first(board: dict[str, Any]) -> None:
    assert shown(DefaultContextProvider(), five_of_two_workflows, **board) == ["f0", "f1", "f2", "f3", "f4"]


def test_correlated_shows_the_workflow_of_the_run(board: dict[str, Any]) -> None:
    assert shown(CorrelatedContextProvider(), five_of_two_workflows, **board) == ["f1", "f3"]


def test_recent_shows_the_newest_of_the_board(board: dict[str, Any]) -> None:
    assert shown(RecentContextProvider(limit=2), five_of_two_workflows, **board) == ["f3", "f4"]


def test_empty_shows_nothing() -> None:
    assert shown(EmptyContextProvider(), five_of_two_workflows) == []


def test_a_time_window_ends_now_and_begins_hours_ago(board: dict[str, Any]) -> None:
    # The run is at second 5; the facts are of the seconds 0 to 4.
    assert shown(TimeWindowContextProvider(hours=3 / 3600), five_of_two_workflows, **board) == [
        "f2",
        "f3",
        "f4",
    ]


def test_filtered_shows_the_newest_50_not_the_oldest() -> None:
    async def fill(flock: VirtualFlock) -> None:
        await flock.publish_many([Fact(text="f", n=n) for n in range(30)], correlation_id="x")
        await asyncio.sleep(1)
        await flock.publish_many([Memo(text="m") for n in range(30)], correlation_id="x")
        await asyncio.sleep(1)
        await flock.publish_many([Fact(text="g", n=n) for n in range(40)], correlation_id="x")

    texts = shown(FilteredContextProvider(FilterConfig(type_names={"context.Fact"})), fill)
    assert texts == ["f"] * 10 + ["g"] * 40


def test_filtered_applies_every_condition(board: dict[str, Any]) -> None:
    async def fill(flock: VirtualFlock) -> None:
        await flock.publish(Fact(text="right"), correlation_id="a", tags={"red", "big"})
        await flock.publish(Fact(text="less"), correlation_id="a", tags={"red"})
        await flock.publish(Fact(text="elsewhere"), correlation_id="b", tags={"red", "big"})
        await flock.publish(Memo(text="memo"), correlation_id="a", tags={"red", "big"})
        await flock.publish(
            Fact(text="secret"), correlation_id="a", tags={"red", "big"}, visibility=only_for("x")
        )

    filters = FilterConfig(
        type_names={"context.Fact"}, tags={"red", "big"}, correlation_id="a", produced_by={"external"},
        visibility={"Public", "Private"}, start=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert shown(FilteredContextProvider(filters), fill, **board) == ["right"]


def test_exclude_types_does_not_use_up_the_limit() -> None:
    async def fill(flock: VirtualFlock) -> None:
        await flock.publish_many([Fact(text=f"f{n}") for n in range(3)])
        await asyncio.sleep(1)
        await flock.publish_many([Memo(text="m") for _ in range(500)])

    assert len(shown(RecentContextProvider(3, exclude_types={"context.Memo"}), fill)) == 3


def test_the_inputs_of_a_run_are_not_in_its_context() -> None:
    async def main() -> list[str]:
        async with VirtualFlock() as flock:
            seen = witness(flock, DefaultContextProvider())
            await flock.publish(Ask(text="first"), correlation_id="w")
            await flock.run_until_idle()
            await asyncio.sleep(1)
            await flock.publish(Ask(text="second"), correlation_id="w")
            await flock.run_until_idle()
        return [a.type.rpartition(".")[2] for a in seen.contexts[1]]

    assert sorted(run_virtual(main())) == ["Ask", "Said"]


def test_the_budget_keeps_the_newest_that_fit() -> None:
    fact = Artifact.from_model(Fact(text="f0"))
    provider = DefaultContextProvider(max_tokens=2 * estimated_tokens(fact) + 1)
    assert shown(provider, five_of_two_workflows) == ["f3", "f4"]


def test_nothing_behind_a_gap_is_kept() -> None:
    async def fill(flock: VirtualFlock) -> None:
        for text in ("small", "large" * 100, "tiny"):
            await flock.publish(Fact(text=text))
            await asyncio.sleep(1)

    assert shown(DefaultContextProvider(max_tokens=40), fill) == ["tiny"]


def test_with_context_puts_a_budget_on_any_function() -> None:
    async def everything(request: ContextRequest) -> list[Artifact]:
        return await request.store.list()

    async def main() -> list[str]:
        async with VirtualFlock() as flock:
            seen = witness(flock, everything, max_tokens=20)
            await five_of_two_workflows(flock)
            await flock.publish(Ask())
            await flock.run_until_idle()
        return seen.texts

    assert run_virtual(main()) == ["f4"]


def test_bound_shows_only_what_somebody_else_may_see_too() -> None:
    async def fill(flock: VirtualFlock) -> None:
        for text, names in (("both", ("witness", "boss")), ("mine", ("witness",)), ("theirs", ("boss",))):
            await flock.publish(Fact(text=text), visibility=only_for(*names))
        await flock.publish(Fact(text="public"))

    boss = AgentIdentity(name="boss")
    assert sorted(shown(BoundContextProvider(DefaultContextProvider(), boss), fill)) == ["both", "public"]


def test_a_provider_with_a_class_only_says_what_to_read() -> None:
    class Loud(BaseContextProvider):
        async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
            assert request.agent.name == "witness"
            assert request.correlation_id == "mine"
            assert [a.type for a in request.inputs] == ["context.Ask"]
            assert {a.id for a in request.inputs} == request.exclude_ids
            found, count = await request.store.query_artifacts(FilterConfig(), limit=2, offset=1)
            assert count == 3
            return found[::-1]

    assert shown(Loud(), five_of_two_workflows) == ["f2", "f3"]


def test_a_view_answers_upstreams_reading_calls() -> None:
    answers: dict[str, Any] = {}

    async def reading(request: ContextRequest) -> list[Artifact]:
        store = request.store
        answers["list"] = [a.payload["text"] for a in await store.list()]
        answers["by_type"] = [a.payload["text"] for a in await store.list_by_type("context.Memo")]
        answers["models"] = await store.get_by_type(Fact, correlation_id="mine")
        answers["page"] = [a.payload["n"] for a in (await store.query_artifacts(limit=0))[0]]
        found = await store.get((await store.list())[0].id)
        assert found is not None
        answers["get"] = found.payload["text"]
        answers["unknown"] = await store.get("00000000-0000-0000-0000-000000000001")
        answers["input"] = await store.get(request.inputs[0].id)
        return []

    assert shown(reading, five_of_two_workflows, shards=2) == []
    assert answers == {
        "list": ["f0", "f1", "f2", "f3", "f4"], "by_type": [], "get": "f0", "unknown": None, "input": None,
        "models": [Fact(text="f1", n=1), Fact(text="f3", n=3)], "page": [0, 1, 2, 3, 4],
    }  # fmt: skip


def test_the_agents_provider_goes_before_the_flocks_and_no_provider_is_no_context() -> None:
    async def main(default: Any) -> dict[str, int]:
        seen: dict[str, int] = {}

        def look(name: str) -> Callable[..., None]:
            def run(ctx: Context, ask: Ask) -> None:
                seen[name] = len(ctx.artifacts)

            return run

        async with VirtualFlock(context_provider=default) as flock:
            flock.agent("own").consumes(Ask).with_context(RecentContextProvider(2)).runs(look("own"))
            flock.agent("none").consumes(Ask).with_context(EmptyContextProvider()).runs(look("none"))
            flock.agent("plain").consumes(Ask).runs(look("plain"))
            await five_of_two_workflows(flock)
            await flock.publish(Ask())
            await flock.run_until_idle()
        return seen

    assert run_virtual(main(None)) == {"own": 2, "none": 0, "plain": 0}
    assert run_virtual(main(RecentContextProvider(4))) == {"own": 2, "none": 0, "plain": 4}


def test_a_function_without_ctx_costs_no_reading() -> None:
    async def main() -> int:
        asked = 0

        async def provider(request: ContextRequest) -> list[Artifact]:
            nonlocal asked
            asked += 1
            return []

        async with VirtualFlock(context_provider=provider) as flock:
            flock.agent("a").consumes(Ask).publishes(Fact).runs(lambda ask: Fact(text="x"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            assert len(await flock.store.get_by_type(Fact)) == 1
        return asked

    assert run_virtual(main()) == 0


def test_a_sync_function_with_ctx_gets_its_context_and_virtual_time_stands_still() -> None:
    async def main() -> tuple[list[str], float]:
        texts: list[str] = []

        def look(ctx: Context, ask: Ask) -> None:
            texts.extend(str(a.payload["text"]) for a in ctx.artifacts)

        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Ask).with_context(DefaultContextProvider()).runs(look)
            await flock.publish(Fact(text="known"))
            before = asyncio.get_running_loop().time()
            await flock.publish(Ask())
            await flock.run_until_idle()
            return texts, asyncio.get_running_loop().time() - before

    texts, passed = run_virtual(main())
    assert texts == ["known"]
    assert passed < 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RecentContextProvider(0),
        lambda: RecentContextProvider(limit="5"),  # type: ignore[arg-type]
        lambda: RecentContextProvider(max_tokens=0),
        lambda: RecentContextProvider(exclude_types="Fact"),
        lambda: TimeWindowContextProvider(hours=0),
        lambda: TimeWindowContextProvider(hours=float("nan")),
        lambda: TimeWindowContextProvider(hours=float("inf")),
        lambda: TimeWindowContextProvider(hours="1"),  # type: ignore[arg-type]
        lambda: FilteredContextProvider({"tags": {"a"}}),  # type: ignore[arg-type]
        lambda: FilteredContextProvider(FilterConfig(start=datetime(2026, 1, 1))),
        lambda: FilteredContextProvider(FilterConfig(tags="red")),  # type: ignore[arg-type]
        lambda: BoundContextProvider(RecentContextProvider(), "boss"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        wrong()


@pytest.mark.parametrize("provider", [RecentContextProvider, "recent", None, lambda request: []])
def test_what_is_no_async_provider_is_refused_when_it_is_declared(provider: Any) -> None:
    flock = VirtualFlock()
    with pytest.raises(ConfigurationError, match="with_context"):
        flock.agent("a").with_context(provider)
    if provider is not None:
        with pytest.raises(ConfigurationError, match="context_provider"):
            VirtualFlock(context_provider=provider)


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_tokens"):
        VirtualFlock().agent("a").with_context(RecentContextProvider(), max_tokens=0)


def test_w_time_window_works_with_aware_times_over_a_day() -> None:
    async def fill(flock: VirtualFlock) -> None:
        await flock.publish(Fact(text="old"))
        await asyncio.sleep(timedelta(hours=23).total_seconds())
        await flock.publish(Fact(text="new"))
        await asyncio.sleep(timedelta(hours=2).total_seconds())

    assert shown(TimeWindowContextProvider(24), fill) == ["new"]
    assert shown(TimeWindowContextProvider(), fill) == []


def test_said_is_published_from_the_context() -> None:
    async def main() -> list[Said]:
        async with VirtualFlock() as flock:
            witness(flock, CorrelatedContextProvider())
            await flock.publish(Fact(text="a"), correlation_id="w")
            await flock.publish(Ask(), correlation_id="w")
            await flock.run_until_idle()
            return await flock.store.get_by_type(Said)

    assert run_virtual(main()) == [Said(texts=["a"])]
