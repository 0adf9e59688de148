"""No provider, however hostile or broken, shows an agent what it may not see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from flock_ray import (
    AfterVisibility,
    Artifact,
    Context,
    EngineComponent,
    EvalInputs,
    EvalResult,
    LabelledVisibility,
    PublicVisibility,
    TenantVisibility,
    Visibility,
    WorkflowError,
    only_for,
)
from flock_ray.context_provider import (
    BaseContextProvider,
    ContextRequest,
    CorrelatedContextProvider,
    DefaultContextProvider,
    RecentContextProvider,
)
from flock_ray.engines.history import provider_of
from flock_ray.errors import StoreUnavailableError
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual
from tests.unit.context.board import Ask, Fact, Memo, Said, witness

Provider = Callable[[ContextRequest], Awaitable[list[Artifact]]]

HIDDEN: dict[str, Visibility] = {
    "private": only_for("somebody else"),
    "labelled": LabelledVisibility(required_labels=frozenset({"gold"})),
    "tenant": TenantVisibility(tenant_id="acme"),
    "later": AfterVisibility(ttl=timedelta(hours=1)),
}


async def run_on_secrets(
    provider: Any, **options: Any
) -> tuple[list[Artifact], list[str], list[WorkflowError]]:
    """Return the context that an agent got on a board with secrets, the notes, and the errors."""
    async with VirtualFlock(**options) as flock:
        seen = witness(flock, provider)
        for name, visibility in HIDDEN.items():
            await flock.publish(Fact(text=name), visibility=visibility, correlation_id="w")
            await asyncio.sleep(1)
        await flock.publish(Fact(text="public"), correlation_id="w")
        await flock.publish(Ask(), correlation_id="w")
        await flock.run_until_idle()
        events = flock.events("context.refused", "context.failed", "context.cut")
        notes = [f"{event.kind}: {event.detail}" for event in await first(events)]
        errors = await flock.store.get_by_type(WorkflowError)
    return (seen.contexts[-1] if seen.contexts else []), notes, errors


async def first(events: Any) -> list[Any]:
    """Return the events that are there now."""
    found: list[Any] = []

    async def read() -> None:
        async for event in events:
            found.append(event)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(1)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return found


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "provider",
    [DefaultContextProvider(), RecentContextProvider(1), CorrelatedContextProvider()],
    ids=lambda provider: type(provider).__name__,
)
def test_every_provider_shows_only_what_the_agent_may_see(provider: Any, shards: int) -> None:
    context, notes, errors = run_virtual(run_on_secrets(provider, shards=shards))
    assert [artifact.payload["text"] for artifact in context] == ["public"]
    assert (notes, errors) == ([], [])


def test_a_limit_counts_what_the_agent_may_see() -> None:
    async def main() -> int:
        async with VirtualFlock() as flock:
            seen = witness(flock, RecentContextProvider(10))
            await flock.publish_many([Fact(text="public", n=n) for n in range(10)])
            await asyncio.sleep(1)
            await flock.publish_many([Fact(text="secret") for _ in range(700)], visibility=only_for("x"))
            await flock.publish(Ask())
            await flock.run_until_idle()
        assert set(seen.texts) == {"public"}
        return len(seen.texts)

    assert run_virtual(main()) == 10


def test_an_artifact_is_visible_from_the_time_on_that_its_visibility_says() -> None:
    async def main() -> list[list[str]]:
        async with VirtualFlock() as flock:
            seen = witness(flock, DefaultContextProvider())
            await flock.publish(Fact(text="later"), visibility=HIDDEN["later"])
            texts = []
            for wait_s in (3599, 1):
                await asyncio.sleep(wait_s)
                await flock.publish(Ask())
                await flock.run_until_idle()
                texts.append([text for text in seen.texts if text == "later"])
        return texts

    assert run_virtual(main()) == [[], ["later"]]


def forged(stored: Artifact) -> Artifact:
    """Return a copy that claims to be for everybody."""
    return stored.model_copy(update={"visibility": PublicVisibility(), "produced_by": "boss"})


def test_forged_copies_and_inventions_are_refused_and_noted() -> None:
    secrets: list[Artifact] = []

    async def forge(request: ContextRequest) -> list[Artifact]:
        public = await request.store.list()
        invented = Artifact.from_model(Fact(text="invented"))
        return [*(forged(secret) for secret in secrets), invented, *public]

    async def main() -> tuple[list[str], list[Any]]:
        async with VirtualFlock() as flock:
            seen = witness(flock, forge)
            for name, visibility in HIDDEN.items():
                secrets.append(await flock.publish(Fact(text=name), visibility=visibility))
            await flock.publish(Fact(text="public"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            notes = await first(flock.events("context.refused"))
        return seen.texts, notes

    texts, notes = run_virtual(main())
    assert texts == ["public"]
    [note] = notes
    assert note.detail.startswith("forge returned 5 artifacts that it had not read: ")
    assert str(secrets[0].id) in note.detail


def test_a_forged_header_does_not_reach_the_agent_and_a_changed_content_does() -> None:
    async def change(request: ContextRequest) -> list[Artifact]:
        [fact] = await request.store.list_by_type("context.Fact")
        return [fact.model_copy(update={
            "payload": {"text": "changed", "n": 0}, "produced_by": "boss", "type": "context.Memo", "tags": {"x"},
            "created_at": "2030-01-01T00:00:00+00:00", "correlation_id": "other", "visibility": only_for("x"),
        })]  # fmt: skip

    async def main() -> tuple[Artifact, Artifact]:
        async with VirtualFlock() as flock:
            seen = witness(flock, change)
            fact = await flock.publish(Fact(text="stored"), correlation_id="w")
            await flock.publish(Ask(), correlation_id="w")
            await flock.run_until_idle()
        return fact, seen.contexts[0][0]

    stored, seen = run_virtual(main())
    assert seen.payload == {"text": "changed", "n": 0}
    assert seen.model_copy(update={"payload": stored.payload}).to_dict() == stored.to_dict()


def test_changes_of_the_working_copy_count() -> None:
    async def mask(request: ContextRequest) -> list[Artifact]:
        found = await request.store.list()
        for artifact in found:
            artifact.payload["text"] = "***"
        return found

    context, _, _ = run_virtual(run_on_secrets(mask))
    assert [artifact.payload["text"] for artifact in context] == ["***"]
    assert [artifact.model().model_dump() for artifact in context] == [{"text": "***", "n": 0}]


def test_an_artifact_that_is_returned_twice_comes_once_and_in_order() -> None:
    async def twice(request: ContextRequest) -> list[Artifact]:
        found = await request.store.list()
        return [*found[::-1], *found]

    async def main() -> list[str]:
        async with VirtualFlock() as flock:
            seen = witness(flock, twice)
            for n in range(3):
                await flock.publish(Fact(text=str(n)))
                await asyncio.sleep(1)
            await flock.publish(Ask())
            await flock.run_until_idle()
        return seen.texts

    assert run_virtual(main()) == ["0", "1", "2"]


def test_inputs_are_left_out_even_when_a_provider_returns_them() -> None:
    async def inputs_too(request: ContextRequest) -> list[Artifact]:
        return [*request.inputs, *await request.store.list()]

    context, notes, _ = run_virtual(run_on_secrets(inputs_too))
    assert [artifact.type for artifact in context] == ["context.Fact"]
    assert notes == []


async def raising(request: ContextRequest) -> list[Artifact]:
    raise KeyError("hunter2")


async def not_a_list(request: ContextRequest) -> Any:
    return 7


async def not_artifacts(request: ContextRequest) -> Any:
    return ["text"]


class Unfinished(BaseContextProvider):
    """Does not say what to read."""


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        (raising, "raising of agent 'witness' failed: KeyError: 'hunter2'"),
        (not_a_list, "returned a int"),
        (not_artifacts, "a list with a str"),
        (Unfinished(), "needs a method: async def get_artifacts"),
    ],
)
def test_a_provider_that_fails_fails_the_run_and_says_so(provider: Any, problem: str) -> None:
    context, notes, [error] = run_virtual(run_on_secrets(provider))
    assert context == []
    assert error.error_type == "ContextProviderError"
    assert problem in error.error_message
    [note] = notes
    assert note.startswith("context.failed: ")
    assert "hunter2" not in note


def test_an_error_of_ours_keeps_its_type() -> None:
    async def away(request: ContextRequest) -> list[Artifact]:
        raise StoreUnavailableError

    _, notes, [error] = run_virtual(run_on_secrets(away))
    assert error.error_type == "StoreUnavailableError"
    assert notes == ["context.failed: away: StoreUnavailableError"]


def test_a_provider_that_hangs_is_ended_by_the_timeout_of_its_agent() -> None:
    async def hanging(request: ContextRequest) -> list[Artifact]:
        await asyncio.sleep(10**6)
        return []

    async def main() -> list[WorkflowError]:
        async with VirtualFlock() as flock:
            seen = witness(flock, hanging)
            flock.get_agent("witness").timeout(timedelta(seconds=5))
            await flock.publish(Ask())
            await flock.run_until_idle()
            assert seen.contexts == []
            return await flock.store.get_by_type(WorkflowError)

    [error] = run_virtual(main())
    assert error.error_type == "AgentTimeoutError"


def test_a_context_is_at_most_1000_artifacts_and_says_that_it_was_cut() -> None:
    async def two_reads(request: ContextRequest) -> list[Artifact]:
        facts = await request.store.list_by_type("context.Fact")
        return [*facts, *await request.store.list_by_type("context.Memo")]

    async def main() -> tuple[int, list[Any]]:
        async with VirtualFlock() as flock:
            seen = witness(flock, two_reads)
            await flock.publish_many([Fact(text="f") for _ in range(700)])
            await flock.publish_many([Memo(text="m") for _ in range(700)])
            await flock.publish(Ask())
            await flock.run_until_idle()
            return len(seen.texts), await first(flock.events("context.cut"))

    count, [note] = run_virtual(main())
    assert count == 1000
    assert note.detail == "two_reads: 400 artifacts above 1000"


def test_g7_outputs_of_a_restricted_context_inherit_the_restriction() -> None:
    async def main(**publishes: Any) -> list[Visibility]:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Ask).publishes(Said, **publishes).with_context(
                DefaultContextProvider()
            ).runs(lambda ctx, ask: Said(texts=[a.payload["text"] for a in ctx.artifacts]))
            await flock.publish(Fact(text="ours"), visibility=only_for("a", "b"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            return [a.visibility for a in await flock.store.list_by_type("context.Said")]

    assert run_virtual(main()) == [only_for("a", "b")]
    assert run_virtual(main(visibility=PublicVisibility())) == [PublicVisibility()]


def test_g7_errors_inherit_the_restriction_of_all_that_was_read() -> None:
    async def reads_and_raises(request: ContextRequest) -> list[Artifact]:
        raise ValueError((await request.store.list())[0].payload["text"])

    async def raises(ctx: Context, ask: Ask) -> None:
        raise ValueError(ctx.artifacts[0].payload["text"])

    async def nothing(ctx: Context, ask: Ask) -> None:
        return None

    async def main(provider: Any, function: Any) -> Visibility:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Ask).with_context(provider).runs(function)
            await flock.publish(Fact(text="ours"), visibility=only_for("a"))
            await flock.publish(Ask())
            await flock.run_until_idle()
            [error] = [a for a in await flock.store.list() if a.type == "WorkflowError"]
            return error.visibility

    assert run_virtual(main(reads_and_raises, nothing)) == only_for("a")
    assert run_virtual(main(DefaultContextProvider(), raises)) == only_for("a")


def test_what_was_erased_is_in_no_context() -> None:
    async def main() -> list[str]:
        async with VirtualFlock() as flock:
            seen = witness(flock, DefaultContextProvider())
            gone = await flock.publish(Fact(text="gone"), correlation_id="gone")
            await flock.publish(Fact(text="kept"))
            await flock.run_until_idle()
            await flock.erase(artifacts=[gone], reason="asked")
            await flock.publish(Ask())
            await flock.run_until_idle()
        return seen.texts

    assert run_virtual(main()) == ["kept"]


class Curious(EngineComponent):
    """Publishes how much of the context its settings let it use."""

    async def evaluate(self, agent: Any, ctx: Context, inputs: EvalInputs, output_group: Any) -> EvalResult:
        texts = [str(a.payload["text"]) for a in self.get_conversation_context(ctx)]
        return EvalResult.from_object(Said(texts=texts), agent=agent)


def test_enable_context_of_an_engine_shows_the_workflow() -> None:
    async def main(engine: EngineComponent) -> list[str]:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Ask).publishes(Said).with_engines(engine)
            for n in range(4):
                await flock.publish(Fact(text=f"f{n}"), correlation_id="w")
                await flock.publish(Memo(text=f"m{n}"), correlation_id="w")
                await flock.publish(Fact(text=f"o{n}"), correlation_id="other")
                await asyncio.sleep(1)
            await flock.publish(Ask(), correlation_id="w")
            await flock.run_until_idle()
            [said] = await flock.store.get_by_type(Said)
        return said.texts

    assert run_virtual(main(Curious())) == []
    assert len(run_virtual(main(Curious(enable_context=True)))) == 8
    limited = Curious(enable_context=True, context_max_artifacts=2, context_exclude_types={"context.Memo"})
    assert run_virtual(main(limited)) == ["f2", "f3"]


def test_a_language_model_reads_the_context_of_its_agent() -> None:
    async def main() -> str:
        model = ScriptedModel(Said(texts=["ok"]))
        async with VirtualFlock(language_model=model) as flock:
            flock.agent("writer").consumes(Ask).publishes(Said).with_context(CorrelatedContextProvider())
            await flock.publish(Fact(text="the moon is far"), correlation_id="w")
            await flock.publish(Fact(text="the sun is farther"), correlation_id="w", visibility=only_for("x"))
            await flock.publish(Ask(), correlation_id="w")
            await flock.run_until_idle()
            assert await flock.store.get_by_type(Said) == [Said(texts=["ok"])]
        return str(model.requests[0].messages)

    prompt = run_virtual(main())
    assert "the moon is far" in prompt
    assert "the sun is farther" not in prompt


def test_a_virtual_copy_of_a_flock_has_its_context_provider() -> None:
    flock = VirtualFlock(context_provider=DefaultContextProvider())
    assert VirtualFlock.of(flock).context_provider is flock.context_provider


def test_several_engines_get_the_union_of_what_they_ask_for() -> None:
    flock = VirtualFlock()
    one = Curious(enable_context=True, context_max_artifacts=3, context_exclude_types={"A", "B"})
    two = Curious(enable_context=True, context_max_artifacts=5, context_exclude_types={"B", "C"})
    provider = provider_of(flock.agent("a").definition, [one, two, Curious()])
    assert (provider.limit, provider.exclude_types) == (5, {"B"})
    assert provider_of(flock.agent("b").definition, [Curious()]) is None
    assert provider_of(flock.agent("c").definition, [one, Curious(enable_context=True)]).limit == 1000
