"""What a gateway knows of attempts whose worker is gone, and of calls that no run made."""

from __future__ import annotations

import asyncio

import msgspec

from flock_ray.actors.gateway_books import CallBook
from flock_ray.actors.spending import decode_calls, encode
from flock_ray.core.model_calls import MAX_CALLS, ModelCall
from flock_ray.core.spending import LostAttempt
from flock_ray.errors import ModelRequestError
from flock_ray.model import Caller
from flock_ray.testing import run_virtual
from tests.unit.gateway.fakes import FakeProvider, request
from tests.unit.gateway.test_link import Processes, linked

RUN = bytes(range(16))
OURS = Caller(workflow="w", agent="a", activation=RUN.hex(), attempt=2)
LOST = LostAttempt(7, RUN, 2, "a", "w")
CALL = ModelCall("m/x", input_tokens=1)


def test_a_lost_attempt_s_answered_and_failed_calls_are_told_once_and_what_runs_is_ended() -> None:
    async def test() -> None:
        provider = FakeProvider([None, ModelRequestError("no")], delay_s=1.0)
        processes = Processes(provider)
        link = linked(processes)
        await link.complete(request(caller=OURS))
        other = msgspec.structs.replace(OURS, attempt=3)
        await asyncio.gather(
            link.complete(request("bad", caller=OURS)), link.complete(request(caller=other)),
            return_exceptions=True,
        )  # fmt: skip
        provider.delay_s = 1000.0
        open_ = asyncio.ensure_future(link.complete(request(caller=OURS)))
        await asyncio.sleep(1)
        assert provider.running == 1

        [found] = decode_calls(await processes.hosts[0].calls_of(encode([LOST])))

        assert provider.running == 0 and provider.cancelled == 1
        assert (found.slot, found.agent, found.workflow) == (7, "a", "w")
        assert (found.activation, found.attempt) == (RUN, 2)
        assert [call.error_type for call in found.calls] == ["", "ModelRequestError", "CancelledError"]
        assert decode_calls(await processes.hosts[0].calls_of(encode([LOST]))) == []
        open_.cancel()
        await asyncio.gather(open_, return_exceptions=True)
        await asyncio.sleep(1)  # the gateway hears of it

    run_virtual(test())


def test_a_book_stays_bounded_and_forgets_the_oldest_runs() -> None:
    async def test() -> None:
        book = CallBook(most=10)
        for number in range(100):
            book.note(msgspec.structs.replace(OURS, attempt=number), CALL)
        assert len(await book.of([msgspec.structs.replace(LOST, attempt=n) for n in range(90)])) == 0
        assert len(await book.of([msgspec.structs.replace(LOST, attempt=n) for n in range(100)])) == 10
        for _ in range(MAX_CALLS + 5):
            book.note(OURS, CALL)
        [found] = await book.of([LOST])
        assert [call.count for call in found.calls] == [MAX_CALLS + 5]
        assert book._num == 0 and not book._running

    run_virtual(test())


def test_calls_of_no_run_are_added_up_by_who_made_them() -> None:
    book = CallBook()
    for agent in ("external", "external", "other"):
        book.note(Caller(agent=agent), CALL)
    for _ in range(20_000):
        book.note(Caller(agent="external"), CALL)

    taken = {agent: calls for agent, _, calls in book.take_unowned()}

    assert sum(call.count for call in taken["external"]) == 20_002
    assert [call.count for call in taken["other"]] == [1]
    assert book.take_unowned() == []
