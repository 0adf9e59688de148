"""Bad input: each is a typed error or an event that says what to do; nothing hangs, nothing is lost."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from pydantic import BaseModel

from flock_ray import Artifact, WorkflowError
from flock_ray.errors import (
    ArtifactNotFoundError,
    ArtifactSchemaError,
    BoardClosedError,
    ConfigurationError,
    DeployConflictError,
    DuplicateAgentError,
    DuplicateArtifactError,
    FlockError,
    PayloadTooLargeError,
    UnknownTypeError,
)
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Seen


class Undeclared(BaseModel):
    n: int


async def refusal_of(thing: object, **options: object) -> FlockError:
    """Publish something bad; returns the error. The board must work on afterwards."""
    seen = Seen()
    async with VirtualFlock(max_payload_bytes=1024) as flock:
        flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
        with pytest.raises(FlockError) as caught:
            await flock.publish(thing, **options)  # type: ignore[arg-type]  # wrong on purpose
        await flock.publish(Order(n=5))
        await flock.run_until_idle()
        assert await flock.store.list_by_type("market.Note") == []
    assert seen == [5]
    return caught.value


def test_what_cannot_be_published_is_a_typed_error_that_says_what_to_do() -> None:
    cases: list[tuple[object, type[FlockError], str]] = [
        (Undeclared(n=1), UnknownTypeError, "@flock_type"),
        ({"type": "no.Such"}, UnknownTypeError, "no.Such"),
        ({"n": 1}, ArtifactSchemaError, '"type"'),
        ({"type": "market.Order", "payload": {"n": "many"}}, ArtifactSchemaError, "n"),
        (Artifact(type="market.Order", payload={}), ArtifactSchemaError, "n"),
        (42, ArtifactSchemaError, "int"),
        (None, ArtifactSchemaError, "NoneType"),
        (Note(text="x" * 1100), PayloadTooLargeError, "max_payload_bytes"),
    ]
    for thing, kind, text in cases:
        error = run_virtual(refusal_of(thing))
        assert type(error) is kind and text in str(error), (thing, error)


def test_options_that_make_no_sense_are_configuration_errors() -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"delay": timedelta(seconds=-1)}, "delay"),
        ({"delay": 5}, "timedelta"),
        ({"visibility": "public"}, "visibility"),
        ({"tags": {1}}, "tags"),
        ({"priority": "high"}, "priority"),
        ({"correlation_id": 7}, "correlation_id"),
        ({"partition_key": 7}, "partition_key"),
        ({"idempotency_key": 7}, "idempotency_key"),
    ]
    for options, text in cases:
        error = run_virtual(refusal_of(Note(text="x"), **options))
        assert type(error) is ConfigurationError and text in str(error), (options, error)


def test_a_uuid_is_a_fine_correlation_id_and_a_single_string_one_tag() -> None:
    async def main() -> tuple[bool, set[str]]:
        name = uuid.uuid4()
        async with VirtualFlock() as flock:
            note = await flock.publish(Note(text="x"), correlation_id=name, tags="urgent")  # type: ignore[arg-type]  # wrong on purpose
            return note.correlation_id == str(name), note.tags

    assert run_virtual(main()) == (True, {"urgent"})


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="naive"):
        Artifact(type="market.Order", payload={"n": 1}, created_at=datetime(2026, 1, 1))


def test_an_output_that_is_too_large_fails_the_run_not_the_board() -> None:
    async def main() -> tuple[str, str]:
        async with VirtualFlock(max_payload_bytes=1024) as flock:
            flock.agent("a").consumes(Order).publishes(Note).runs(lambda o: Note(text="x" * 1100))
            await flock.publish(Order(n=1), correlation_id="w")
            state = (await flock.wait("w")).state
            errors = [e async for e in flock_events(flock)]
            return state, errors[0]

    state, detail = run_virtual(main())
    assert state == "failed"
    assert "PayloadTooLargeError" in detail


async def flock_events(flock: VirtualFlock) -> AsyncIterator[str]:
    async for event in flock.events("activation.failed"):
        yield event.detail
        return


def test_the_same_artifact_again_is_fine_other_content_under_its_id_is_refused() -> None:
    async def main() -> tuple[list[int], int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
            first = await flock.publish(Order(n=1))
            again = await flock.publish(first)
            assert again.id == first.id
            with pytest.raises(DuplicateArtifactError, match=str(first.id)):
                await flock.publish(first.model_copy(update={"payload": {"n": 2}}))
            await flock.run_until_idle()
            assert len(await flock.store.list_by_type("market.Order")) == 1
            return list(seen), await flock.store.count(Order)

    assert run_virtual(main()) == ([1], 1)


def test_w14_the_same_id_is_stored_once_also_under_another_workflow_or_key() -> None:
    async def main(shards: int) -> int:
        async with VirtualFlock(shards=shards) as flock:
            first = await flock.publish(Order(n=1), correlation_id="w0")
            await flock.publish(first, correlation_id="w1")
            return await flock.store.count(Order)

    assert run_virtual(main(1)) == 1
    assert run_virtual(main(3)) == 1


def test_agents_that_do_not_fit_together_are_refused_when_declared() -> None:
    flock = VirtualFlock()
    flock.agent("a").consumes(Order)
    with pytest.raises(DuplicateAgentError, match="'a'"):
        flock.agent("a")
    for name in ("", "  ", "a/b", 7):
        with pytest.raises(ConfigurationError):
            flock.agent(name)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigurationError, match="consumes"):
        flock.agent("b").consumes()
    with pytest.raises(ConfigurationError, match="detached"):
        VirtualFlock(detached=True)


def test_an_agent_that_consumes_nothing_is_found_by_check_and_does_no_harm() -> None:
    async def main() -> tuple[list[str], list[int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("idle").publishes(Note).runs(lambda anything: Note(text="x"))
            flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            return [str(finding) for finding in flock.check() if finding.agent == "idle"], list(seen)

    findings, seen = run_virtual(main())
    assert seen == [1]
    assert any("consumes" in finding for finding in findings)


def test_an_agent_without_an_engine_says_what_to_do() -> None:
    async def main() -> str:
        async with VirtualFlock() as flock:
            flock.agent("empty").consumes(Order).publishes(Parcel)
            await flock.publish(Order(n=1), correlation_id="w")
            assert (await flock.wait("w")).state == "failed"
            (error,) = await flock.store.get_by_type(WorkflowError)
            return f"{error.error_type}: {error.error_message}"

    message = run_virtual(main())
    assert message.startswith("NoEngineError") and ".runs(fn)" in message and "'empty'" in message


def test_after_shutdown_every_call_says_that_it_is_over_and_shutdown_may_be_repeated() -> None:
    async def main() -> None:
        flock = VirtualFlock()
        agent = flock.agent("a").consumes(Order).runs(lambda o: None)
        await flock.publish(Order(n=1))
        await flock.shutdown()
        await flock.shutdown()
        for call in (
            flock.publish(Order(n=1)), flock.publish_many([]), flock.invoke(agent, Order(n=1)), flock.store.list(),
            flock.run_until_idle(), flock.workflow_status("w"), flock.arun(agent, Order(n=1)), flock.start(),
        ):  # fmt: skip
            with pytest.raises(BoardClosedError, match="new"):
                await call

    run_virtual(main())


def test_asking_for_what_is_not_there_says_so() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(lambda o: None)
            with pytest.raises(ArtifactNotFoundError):
                await flock.why(uuid.uuid4())
            assert "no such agent" in str(await flock.why("nobody"))
            with pytest.raises(ConfigurationError, match="nobody"):
                await flock.invoke("nobody", Order(n=1))
            with pytest.raises(ConfigurationError, match=r"market\.Note"):
                await flock.invoke("a", Note(text="x"))

    run_virtual(main())


def test_another_client_may_not_change_an_agent_unless_on_purpose() -> None:
    async def main() -> list[str]:
        mine, theirs = VirtualFlock(), VirtualFlock()
        mine.agent("a").consumes(Order).publishes(Note).runs(lambda o: Note(text="mine"))
        theirs.agent("a").consumes(Order).publishes(Note).runs(lambda o: Note(text="theirs"))
        async with mine as flock:
            assert flock.local is not None
            other = (await theirs._open()).board
            other._links = flock.local.links()
            other._codec = flock.local.codec
            definitions = [builder.definition_checked() for builder in theirs.agents]
            with pytest.raises(DeployConflictError, match="replace_agents=True"):
                await other.deploy(definitions)
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            await other.deploy(definitions, replace=True)
            await flock.publish(Order(n=2))
            await flock.run_until_idle()
            return [note.text for note in await flock.store.get_by_type(Note)]

    assert run_virtual(main()) == ["mine", "theirs"]
