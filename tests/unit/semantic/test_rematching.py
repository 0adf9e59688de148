"""Results whose outputs can't be matched again just now, because what compares meanings does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from flock_ray import FixedDelay, Flock
from flock_ray.actors.worker import Worker
from flock_ray.core import wire
from flock_ray.errors import ConfigurationError, ModelError
from flock_ray.testing import VirtualClock, run_virtual
from tests.unit.semantic.test_routing import Inbox, Ticket, worker_that_compares
from tests.unit.semantic.words import WordEmbedder


class Committed:
    """A shard that takes everything, as all of a worker's peers."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, list[wire.Completion]]] = []

    def shard(self, index: int) -> Committed:
        return self

    async def complete(self, blob: bytes) -> bytes:
        now = asyncio.get_running_loop().time()
        self.batches.append((now, wire.decode_complete(blob).completions))
        return wire.encode(wire.CompleteReply("ok"))


def rematched(
    mend_after_s: float, broken: Exception, *, failed: wire.ErrorInfo | None = None, retry: bool = False
) -> list[tuple[float, wire.Completion]]:
    """Have a worker match two results again, of which one compares meanings; returns what was committed, and when."""

    async def main() -> list[tuple[float, wire.Completion]]:
        words, shard = WordEmbedder(), Committed()
        edge, envelope = worker_that_compares(words)

        async def inline(function: Callable[..., Any], *args: Any) -> Any:
            return function(*args)

        peers: Any = shard
        nothing: Any = None
        executor: Any = lambda done: SimpleNamespace(heartbeat=None)  # noqa: E731  # of no type that it could have
        worker = Worker(
            "shared:1", clock=VirtualClock(), monotonic=lambda: 0.0, peers=peers, codec=nothing,
            executor=executor, offload=inline,
        )  # fmt: skip
        worker._edge = edge
        reader = (
            Flock().agent("reader").consumes(Inbox).publishes(Ticket).runs(lambda inbox: Ticket(title=""))
        )
        if retry:
            reader.retry(FixedDelay(timedelta(minutes=1)), max_attempts=2)
        worker._definitions = {"reader": reader._definition}
        words.broken = broken
        asyncio.get_running_loop().call_later(mend_after_s, setattr, words, "broken", None)
        result = wire.Completion(b"a" * 16, 1, 0, (wire.Posting(envelope),), failed)
        worker._rematch |= {result.id, b"b" * 16}
        worker._put(0, result)
        worker._put(0, wire.Completion(b"b" * 16, 1, 0))
        await asyncio.sleep(200)
        assert not worker._unmatched and not worker._sending and not worker._match_tries
        return [(at, completion) for at, batch in shard.batches for completion in batch]

    return run_virtual(main())


def test_outputs_that_cannot_be_matched_again_just_now_wait_for_the_embedder() -> None:
    """The run once failed for good, although it was done."""
    (at_other, other), (at, result) = rematched(20, ModelError("down"))
    assert (at_other, other.id) == (0.0, b"b" * 16)  # not held up
    assert 20 <= at < 40
    assert result.error is None
    assert [m.subscription.partition("/")[0] for m in result.outputs[0].matches] == ["billing"]


@pytest.mark.parametrize("failed", [None, wire.ErrorInfo("ValueError", "before")])
@pytest.mark.parametrize("retry", [False, True])
def test_outputs_that_cannot_be_matched_again_for_long_fail_their_run(
    failed: wire.ErrorInfo | None, retry: bool
) -> None:
    _, (at, result) = rematched(1_000, ModelError("down"), failed=failed, retry=retry)
    assert 60 < at < 120
    assert result.outputs == ()
    assert result.error is not None
    assert result.error.type == ("ModelError" if failed is None else "ValueError")
    assert result.error.retryable is (failed is None)
    # It is made again if its agent is tried again, and the circuit breaker of the agent does not count it
    assert (result.retry is not None) is (retry and failed is None)
    assert result.trips is (failed is not None)


def test_outputs_that_can_never_be_matched_fail_their_run_at_once() -> None:
    """What is no error of a model once ended the sending of results, and with it everything the worker had."""
    found = rematched(1_000, ConfigurationError("no embedder"))
    assert [at for at, _ in found] == [0.0, 0.0]
    [result] = [completion for _, completion in found if completion.id == b"a" * 16]
    assert result.error is not None
    assert result.error.type == "ConfigurationError"
