"""How far fan-outs are: asked for, by events and on the terminal."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from flock_ray.errors import ConfigurationError
from flock_ray.progress import Progress
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.fan_models import Chunk, Data, Done, declare, events, run, work


async def until_done(flock: VirtualFlock, done: int) -> Progress:
    while (progress := await flock.progress("w")).done < done:  # noqa: ASYNC110  # it is asked for, that is the test
        await asyncio.sleep(0.1)
    return progress


async def one_after_the_other(chunk: Chunk) -> Done:
    await asyncio.sleep(1)
    if chunk.index == 3:
        raise ValueError("bad luck")
    return work(chunk)


def test_progress_can_be_asked_for() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2, max_workers=1) as flock:
            declare(flock, one_after_the_other, on_failure="partial")
            flock.get_agent("work").max_concurrency(1)
            artifact = await flock.publish(Data(items=list(range(10))), correlation_id="w")
            progress = await until_done(flock, 5)
            assert (progress.total, progress.done) == (10, 5)
            assert progress.eta is not None
            assert 4 < progress.eta.total_seconds() < 6
            assert str(progress).startswith("5/10 chunks")
            status = await flock.workflow_status("w")
            [line] = [line for line in status.waiting_for if line.startswith("sum/")]
            assert "5 still running" in line
            [done, *_] = [a for a in await flock.store.list() if a.type == "fan.Done"]
            assert "still running" in str(await flock.why(done))
            await flock.run_until_idle()
            progress = await flock.progress(artifact)
            [fan_out] = progress.fan_outs
            assert (fan_out.agent, fan_out.state, fan_out.failed) == ("cut", "finished", 1)
            assert str(progress) == "10/10 chunks, 1 failed"
            assert (await flock.progress("nobody")).fan_outs == ()

    run_virtual(main())


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_shown_on_the_terminal(is_terminal: bool) -> None:
    out = io.StringIO()

    async def main() -> None:
        async with VirtualFlock(shards=2, max_workers=1) as flock:
            declare(flock, one_after_the_other, on_failure="partial")
            console = Console(file=out, force_terminal=is_terminal, width=100)
            async with flock.print_progress("w", console=console):
                await run(flock, 10)

    run_virtual(main())
    shown = out.getvalue()
    if is_terminal:
        assert "10/10" in shown
        assert "1 failed" in shown
    else:
        assert "[cut] scatter.progress: 5/10 chunks" in shown
        assert "[sum] fan_in.fired: 9 of 10 chunks; missing 3 (1 failed)" in shown
        assert "[cut] scatter.finished: 10 chunks, 1 with a failed run" in shown


def test_a_fan_out_is_not_invoked_by_hand() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            with pytest.raises(ConfigurationError, match="publish its input"):
                await flock.invoke("cut", Data(items=[1]))

    run_virtual(main())


def test_progress_is_told_by_events() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock)
            await run(flock, 50)
            found = await events(flock, "scatter")
            assert [e.kind for e in found] == [
                "scatter.started",
                *["scatter.progress"] * 10,
                "scatter.finished",
            ]
            assert found[0].detail == "50 chunks, to sum"
            assert found[5].detail.startswith("25/50 chunks, about ")

    run_virtual(main())
