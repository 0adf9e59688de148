"""Old and new versions of a type on one board: what is read, what is refused, and what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, create_model

from flock_ray import Artifact
from flock_ray.core.registry import TypeRegistry
from flock_ray.errors import VersionConflictError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

OLD, NEW = 1, 2


def program(version: int) -> tuple[TypeRegistry, type[BaseModel], type[BaseModel]]:
    """The types of a program: version 1 counts euros, version 2 cents."""
    registry = TypeRegistry()
    # One class, a release later: the same name and module.
    fields: dict[str, Any] = {"euros": (int, ...)} if version == OLD else {"cents": (int, ...)}
    Invoice = create_model("Invoice", __module__=__name__, **fields)

    class Receipt(BaseModel):
        seen: int

    registry.register(Invoice, name="versions.Invoice", version=version)
    registry.register(Receipt, name="versions.Receipt")
    if version == NEW:
        registry.add_upcaster(Invoice, lambda old: {"cents": old["euros"] * 100}, from_version=OLD)
    return registry, Invoice, Receipt


def clerk(
    flock: VirtualFlock, invoice: type[BaseModel], receipt: type[BaseModel], seen: list[Any], **options: Any
) -> Any:
    def run(model: Any) -> Any:
        seen.append(model.model_dump())
        return receipt(seen=len(seen))

    return flock.agent("clerk").consumes(invoice, **options).publishes(receipt).runs(run)


def opened(version: int, keep: MemoryPersistence, **options: Any) -> tuple[VirtualFlock, Any, Any]:
    registry, invoice, receipt = program(version)
    return VirtualFlock(persistence=keep, registry=registry, **options), invoice, receipt


async def left_open_by(version: int, keep: MemoryPersistence, values: dict[str, int]) -> None:
    """Publish an invoice, and stop while its agent still runs."""
    flock, invoice, receipt = opened(version, keep)

    async def slow(model: Any) -> Any:
        await asyncio.sleep(1000)

    async with flock:
        flock.agent("clerk").consumes(invoice).publishes(receipt).runs(slow)
        await flock.publish(invoice(**values), correlation_id="w")
        await asyncio.sleep(1)


def test_what_an_old_program_left_open_reaches_new_code_brought_up_to_date() -> None:
    keep = MemoryPersistence()

    async def main() -> None:
        await left_open_by(OLD, keep, {"euros": 3})
        flock, invoice, receipt = opened(NEW, keep)
        seen: list[Any] = []
        async with flock:
            clerk(flock, invoice, receipt, seen, where=lambda i: i.cents > 1)
            await flock.run_until_idle()
            # the store, the artifact and the stream bring it up to date as well
            assert await flock.store.get_by_type(invoice) == [invoice(cents=300)]
            [old] = await flock.store.list_by_type("versions.Invoice")
            assert old.version == OLD and old.payload == {"euros": 3}
            assert old.model(flock._registry) == invoice(cents=300)
            async for item in flock.stream(invoice):
                assert isinstance(item, Artifact) and item.model(flock._registry) == invoice(cents=300)
                break
        assert seen == [{"cents": 300}]

    run_virtual(main())


def test_reading_a_newer_version_is_refused_and_everything_else_is_read() -> None:
    keep = MemoryPersistence()

    async def main() -> None:
        newer, invoice, _ = opened(NEW, keep)
        async with newer:
            await newer.publish(invoice(cents=300))
        older, invoice, _ = opened(OLD, keep)
        async with older:
            with pytest.raises(VersionConflictError, match="has version 2; this process knows up to 1"):
                await older.store.get_by_type(invoice)
            [artifact] = (await older.store.query_artifacts())[0]
            assert artifact.payload == {"cents": 300}  # as it was written, with its version beside it
            with pytest.raises(VersionConflictError):
                artifact.model(older._registry)
            with pytest.raises(VersionConflictError):
                await older.publish(Artifact(type="versions.Invoice", version=NEW, payload={"cents": 1}))
            assert await older.store.count(invoice) == 1

    run_virtual(main())


@pytest.mark.parametrize("shards", [1, 2])
def test_an_activation_with_newer_input_waits_and_runs_once_there_is_code_for_it(shards: int) -> None:
    keep = MemoryPersistence()
    seen: list[Any] = []

    async def left_by_new_code() -> None:
        await left_open_by(NEW, keep, {"cents": 300})

    async def rolled_back() -> None:
        flock, invoice, receipt = opened(OLD, keep)
        async with flock:
            clerk(flock, invoice, receipt, seen)
            await flock.publish(invoice(euros=1), correlation_id="v")
            await flock.wait("v")
            await asyncio.sleep(100)
            status = await flock.workflow_status("w")
            assert (status.state, status.open, status.error_count) == ("active", 1, 0)
            events = [event async for event in _first(flock.events("activation.needs_code"), 1)]
            assert events[0].agent == "clerk" and "versions.Invoice version 2" in events[0].detail
        assert seen == [{"euros": 1}]

    async def deployed() -> None:
        flock, invoice, receipt = opened(NEW, keep)
        async with flock:
            clerk(flock, invoice, receipt, seen)
            await flock.run_until_idle()
            assert (await flock.workflow_status("w")).state == "completed"
        assert seen == [{"euros": 1}, {"cents": 300}]

    keep_shards = asyncio.run(keep.prepare("default", shards))
    assert keep_shards == shards
    run_virtual(left_by_new_code())
    run_virtual(rolled_back())
    run_virtual(deployed())


def test_a_deploy_on_the_running_board_sets_free_what_waits() -> None:
    keep = MemoryPersistence()
    seen: list[Any] = []

    async def main() -> None:
        await left_open_by(NEW, keep, {"cents": 300})
        flock, invoice, receipt = opened(OLD, keep, replace_agents=True)
        async with flock:
            clerk(flock, invoice, receipt, seen)
            await flock.start()
            await asyncio.sleep(10)
            assert flock.local is not None and flock.local.shards[0] is not None
            assert len(flock.local.shards[0].core.parked) == 1
            # Given the next release of the program, in place of the old one
            next_registry, invoice, receipt = program(NEW)
            for worker in flock.local.workers.values():
                worker._registry = next_registry
            flock._registry = next_registry
            del flock._builders["clerk"]
            clerk(flock, invoice, receipt, seen)
            flock._opened.board._registry = next_registry  # type: ignore[union-attr]  # it is open
            await flock.run_until_idle()
        assert seen == [{"cents": 300}]

    run_virtual(main())


def test_a_cancelled_activation_does_not_come_back_with_the_next_deploy() -> None:
    keep = MemoryPersistence()
    seen: list[Any] = []

    async def main() -> None:
        await left_open_by(NEW, keep, {"cents": 300})
        flock, invoice, receipt = opened(OLD, keep)
        async with flock:
            agent = clerk(flock, invoice, receipt, seen)
            await flock.start()
            await asyncio.sleep(10)
            assert await flock.cancel("w") == 1
            agent.description("deployed again")
            await flock.run_until_idle()
            assert (await flock.workflow_status("w")).state == "cancelled"
        assert seen == []

    run_virtual(main())


def test_user_code_that_raises_the_error_itself_fails_like_any_other() -> None:
    async def main() -> str:
        registry, invoice, receipt = program(OLD)

        def run(_: Any) -> Any:
            raise VersionConflictError("mine")

        async with VirtualFlock(registry=registry) as flock:
            flock.agent("clerk").consumes(invoice).publishes(receipt).runs(run)
            await flock.publish(invoice(euros=1), correlation_id="w")
            return (await flock.wait("w")).state

    assert run_virtual(main()) == "failed"


async def _first(items: Any, count: int) -> AsyncIterator[Any]:
    async for item in items:
        yield item
        count -= 1
        if not count:
            return
