"""Sinks: one per attempt of a run, several at once; what hostile text does to a terminal."""

from __future__ import annotations

import asyncio
import io
import uuid
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from flock_ray import Context, flock_type
from flock_ray.sinks import SinkRouter, StreamRun, StreamSink
from flock_ray.terminal import MAX_LINE, MAX_PANELS, MAX_TAIL, PlainSink, RichSink, Terminal, printable
from flock_ray.testing import VirtualFlock, run_virtual
from flock_ray.token_streams import StreamPiece


@flock_type(name="streaming.Job")
class Job(BaseModel):
    text: str


class Recorder:
    """A sink that writes down what it gets; raises on the word `boom`."""

    def __init__(self, log: list[tuple[Any, ...]], run: StreamRun) -> None:
        self.log = log
        self.name = f"{run.agent}{run.attempt}"

    async def on_status(self, text: str) -> None:
        self.log.append((self.name, "status", text))

    async def on_token(self, text: str, signature_field: str | None) -> None:
        if text == "boom":
            raise ValueError("a sink that is broken")
        self.log.append((self.name, "token", text))

    async def on_final(self, result: Any, tokens_emitted: int) -> None:
        self.log.append((self.name, "final", result, tokens_emitted))

    async def flush(self) -> None:
        self.log.append((self.name, "flush"))


class Failing(Recorder):
    async def on_failed(self, error: str) -> None:
        self.log.append((self.name, "failed", error))


def piece(kind: str, text: str = "", *, run: int = 1, attempt: int = 1, missed: int = 0) -> StreamPiece:
    key = uuid.UUID(int=run) if run else None
    return StreamPiece(kind, text, "abc"[run - 1] if run else "", "w", key, attempt, missed, None, 0, 1)


def routed(*pieces: StreamPiece, sink: type[Recorder] = Recorder, **options: Any) -> list[tuple[Any, ...]]:
    log: list[tuple[Any, ...]] = []

    async def main() -> None:
        router = SinkRouter(lambda run: sink(log, run), **options)
        for one in pieces:
            await router.put(one)
        log.append(("closed",))
        await router.close()

    run_virtual(main())
    return log


def test_each_run_has_a_sink_of_its_own() -> None:
    assert [
        ("a1", "status", "reads"),
        ("a1", "token", "x"),
        ("b1", "token", "y"),
        ("a1", "token", "z"),
        ("a1", "final", "xz", 2),
        ("a1", "flush"),
        ("b1", "final", "all of it", 1),
        ("b1", "flush"),
        ("closed",),
    ] == routed(
        piece("status", "reads"),
        piece("token", "x"),
        piece("token", "y", run=2),
        piece("token", "z"),
        piece("final"),
        piece("final", "all of it", run=2),
    )


def test_a_new_attempt_ends_the_sink_of_the_old_one_which_is_heard_no_more() -> None:
    assert [
        ("a1", "token", "x"),
        ("a1", "failed", "attempt 2 begins"),
        ("a1", "flush"),
        ("a2", "token", "z"),
        ("a2", "final", "z", 1),
        ("a2", "flush"),
        ("closed",),
    ] == routed(
        piece("token", "x"),
        piece("token", "z", attempt=2),
        piece("token", "y"),
        piece("final", attempt=2),
        piece("final"),
        sink=Failing,
    )


def test_a_failed_attempt_is_only_flushed_when_the_sink_knows_no_failures() -> None:
    pieces = (piece("token", "x"), piece("failed", "RateLimitError"))

    assert [("a1", "token", "x"), ("a1", "flush"), ("closed",)] == routed(*pieces)
    assert ("a1", "failed", "RateLimitError") in routed(*pieces, sink=Failing)


def test_an_answer_that_begins_anew_replaces_the_one_so_far() -> None:
    log = routed(piece("token", "wro"), piece("status", "restarted"), piece("token", "right"), piece("final"))
    sink = RichSink(RUN, Terminal(console(terminal=True)))

    async def main() -> None:
        await sink.on_token("wro")
        await sink.on_status("restarted")
        await sink.on_token("right")

    run_virtual(main())
    assert ("a1", "final", "right", 2) in log
    assert "right" in rendered(sink.panel(5)) and "wro" not in rendered(sink.panel(5))


def test_gaps_are_told() -> None:
    log = routed(piece("token", "x"), piece("gap", missed=3), piece("gap", run=0), piece("final"))

    assert [
        ("a1", "status", "3 pieces of the text are missing here"),
        ("a1", "status", "some of the text is missing here"),
    ] == log[1:3]


def test_a_sink_that_raises_gets_nothing_more_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    log = routed(piece("token", "boom"), piece("token", "x"), piece("token", "y", run=2), piece("final"))

    assert [("b1", "token", "y"), ("closed",), ("b1", "flush")] == log
    assert "a sink for what agent 'a' streams failed" in caplog.text


def test_a_factory_that_raises_loses_its_run_only(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Recorder):
        def __init__(self, log: list[tuple[Any, ...]], run: StreamRun) -> None:
            if run.agent == "a":
                raise ValueError("not this one")
            super().__init__(log, run)

    assert [("b1", "token", "y"), ("closed",), ("b1", "flush")] == routed(
        piece("token", "x"), piece("token", "y", run=2), sink=Picky
    )
    assert "no sink for what agent 'a' streams" in caplog.text


def test_sinks_are_bounded() -> None:
    log = routed(piece("token", "x"), piece("token", "y", run=2), piece("token", "z", run=3), max_runs=2)

    assert log.index(("a1", "flush")) < log.index(("closed",))
    assert {("b1", "flush"), ("c1", "flush")} == set(log[log.index(("closed",)) + 1 :])


# -- terminals ---------------------------------------------------------------------------------


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=60, height=30, color_system=None)


def output(of: Console) -> str:
    file = of.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def rendered(what: Any) -> str:
    screen = console()
    screen.print(what)
    return output(screen)


RUN = StreamRun("poet", "w", uuid.UUID("12345678-0000-0000-0000-000000000000"), 1)
HOSTILE = "\x1b[2J\x1b]0;owned\x07a\u202eb\x9b31mc\rd\ttab"


def shown(*calls: tuple[str, Any], run: StreamRun = RUN) -> list[str]:
    screen = console()
    sink = PlainSink(run, screen)

    async def main() -> None:
        for method, arg in calls:
            await (sink.on_final(arg, 1) if method == "on_final" else getattr(sink, method)(arg))

    run_virtual(main())
    return output(screen).splitlines()


def test_plain_lines_are_whole_lines() -> None:
    assert [
        "[poet 12345678] one two",
        "[poet 12345678] three",
        "[poet 12345678] (calls a tool)",
        "[poet 12345678] [b]four[/b] :smile:",
    ] == shown(
        ("on_token", "one "),
        ("on_token", "two\nthr"),
        ("on_token", "ee"),
        ("on_status", "calls a tool"),
        ("on_token", "[b]four[/b] :smile:"),
        ("on_final", "all"),
    )


def test_plain_shows_an_answer_that_was_not_streamed_and_failures() -> None:
    second = StreamRun("poet", "w", RUN.activation_id, 2)

    assert ["[poet 12345678] a", "[poet 12345678] b"] == shown(("on_final", "a\nb"))
    assert ["[poet 12345678 attempt 2] x", "[poet 12345678 attempt 2] failed: RateLimitError"] == shown(
        ("on_token", "x"), ("on_failed", "RateLimitError"), run=second
    )


def test_a_line_that_never_ends_is_written_in_parts() -> None:
    lines = shown(("on_token", "x" * (2 * MAX_LINE + 5)), ("on_final", ""))

    assert [MAX_LINE, MAX_LINE, 5] == [line.count("x") for line in lines]


def test_commands_to_the_terminal_are_taken_out() -> None:
    assert "[2J]0;owneda" + "b31mcd\ttab" == printable(HOSTILE)
    assert "zwölf 日本 🙂\n" == printable("zwölf 日本 🙂\n")
    [line] = shown(("on_token", HOSTILE), ("on_final", ""))
    assert not set("\x1b\x07\x9b\u202e\r") & set(line)


def test_panels_of_several_runs_at_once() -> None:
    screen = console(terminal=True)
    terminal = Terminal(screen)
    runs = [StreamRun(f"agent{n}", "w", uuid.UUID(int=n), 1) for n in range(MAX_PANELS + 2)]

    async def main() -> None:
        with terminal:
            sinks = [terminal.sink(run) for run in runs]
            assert all(isinstance(sink, RichSink) and isinstance(sink, StreamSink) for sink in sinks)
            for n, sink in enumerate(sinks):
                await sink.on_token(f"words of {n} {HOSTILE}", None)
            await sinks[-1].on_status("calls a tool")
            speaking = rendered(terminal)
            assert f"agent{MAX_PANELS + 1} " in speaking and "agent0 " not in speaking
            assert "calls a tool" in speaking and "and 2 more" in speaking
            assert "\x1b" not in speaking
            await sinks[0].on_final("", 1)
            await sinks[0].flush()
            await sinks[1].on_failed("RateLimitError")  # type: ignore[attr-defined]
            for sink in sinks[2:]:
                await sink.flush()
            assert "" == rendered(terminal)

    run_virtual(main())
    kept = output(screen)
    assert 1 == kept.count("words of 0") and "failed: RateLimitError" in kept


def test_a_panel_keeps_the_end_of_a_long_answer() -> None:
    sink = RichSink(RUN, Terminal(console(terminal=True)))

    async def main() -> None:
        for n in range(30_000):
            await sink.on_token(f"line {n}\n")
            assert len(sink._text) <= 2 * MAX_TAIL + 20

    run_virtual(main())
    lines = rendered(sink.panel(5)).splitlines()
    assert ["…", "line 29995", "line 29999"] == [lines[n].strip("│ ") for n in (1, 2, 6)]


# -- a whole board -----------------------------------------------------------------------------


async def chant(ctx: Context, job: Job) -> None:
    for word in job.text.split():
        ctx.stream(f"{word}\n")
        await asyncio.sleep(0.01)
    ctx.stream("", "final")


def printed(**options: Any) -> str:
    screen = console()

    async def main() -> None:
        async with VirtualFlock(**options) as flock:
            for name in ("left", "right"):
                flock.agent(name).consumes(Job).runs(chant)
            await flock.publish(Job(text="before the block"))
            await flock.run_until_idle()
            await asyncio.sleep(1)
            async with flock.print_stream(terminal=Terminal(screen)):
                await flock.publish(Job(text="one two three"))
                await flock.run_until_idle()
            await flock.publish(Job(text="after the block"))
            await flock.run_until_idle()

    run_virtual(main())
    return output(screen)


def test_print_stream_shows_all_agents_to_their_last_word() -> None:
    lines = printed().splitlines()

    for name in ("left", "right"):
        assert ["one", "two", "three"] == [
            line.split("] ")[1] for line in lines if line.startswith(f"[{name}")
        ]
    assert 6 == len(lines)


def test_print_stream_is_silent_with_no_output() -> None:
    assert "" == printed(no_output=True)


def test_print_stream_shows_what_was_said_before_the_block_failed() -> None:
    screen = console()

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("left").consumes(Job).runs(chant)
            async with flock.print_stream(terminal=Terminal(screen)):
                await flock.publish(Job(text="one two"))
                await flock.run_until_idle()
                raise KeyError("the block")

    with pytest.raises(KeyError):
        run_virtual(main())
    assert 2 == len(output(screen).splitlines())


def test_stream_into_feeds_sinks_until_it_is_cancelled() -> None:
    log: list[tuple[Any, ...]] = []

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("left").consumes(Job).runs(chant)
            feeding = asyncio.ensure_future(flock.stream_into(lambda run: Recorder(log, run), agent="left"))
            await flock.publish(Job(text="one two"))
            await flock.run_until_idle()
            await asyncio.sleep(1)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    run_virtual(main())
    assert [("left1", "token", "one\ntwo\n"), ("left1", "final", "one\ntwo\n", 1), ("left1", "flush")] == log
