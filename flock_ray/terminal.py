"""What agents stream, on the terminal: several at once, each in its panel; plain lines where there is no terminal."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from flock_ray.core.texts import RESTARTED
from flock_ray.sinks import StreamRun, StreamSink

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live
    from rich.text import Text

__all__ = ["PlainSink", "RichSink", "Terminal", "printable"]

MAX_TAIL = 64 * 1024
"""Characters that are kept of one answer; the beginning of a longer one is not shown."""

MAX_PANELS = 6
"""Panels at the same time; of the other runs only their number is shown."""

MAX_LINE = 2000
"""Characters after which a line is written though it has not ended."""

REFRESH_PER_S = 10

# What could move the cursor, change colours or turn text around: a model's answer is not to be trusted with it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def printable(text: str) -> str:
    """Return text without control characters, which would reach the terminal as commands."""
    return _UNPRINTABLE.sub("", text)


def _name(run: StreamRun) -> str:
    again = f" attempt {run.attempt}" if run.attempt > 1 else ""
    return f"{printable(run.agent)} {run.activation_id.hex[:8]}{again}"


class PlainSink:
    """Writes whole lines, each with the agent's name: those of several runs come mixed, never within a line."""

    def __init__(self, run: StreamRun, console: Console) -> None:
        """Write the stream of one attempt to a console."""
        self._prefix = f"[{_name(run)}] "
        self._console = console
        self._line = ""
        self._said = False

    def _write(self, line: str) -> None:
        self._console.print(self._prefix + line, markup=False, highlight=False, soft_wrap=True, emoji=False)

    async def on_status(self, text: str) -> None:
        """Write the status as a line of its own."""
        await self.flush()
        for line in printable(text).splitlines():
            self._write(f"({line})")

    async def on_token(self, text: str, signature_field: str | None = None) -> None:
        """Write the lines that are complete."""
        self._said = True
        *lines, self._line = (self._line + printable(text)).split("\n")
        for line in lines:
            self._write(line)
        while len(self._line) > MAX_LINE:
            self._write(self._line[:MAX_LINE])
            self._line = self._line[MAX_LINE:]

    async def on_final(self, result: Any, tokens_emitted: int) -> None:
        """Write the rest, or the whole answer when nothing of it was streamed."""
        if not self._said and result:
            await self.on_token(str(result))
        await self.flush()

    async def on_failed(self, error: str) -> None:
        """Write that the attempt ended without a result."""
        await self.flush()
        self._write(f"failed: {printable(error)}")

    async def flush(self) -> None:
        """Write the line that has not ended."""
        line, self._line = self._line, ""
        if line:
            self._write(line)


class RichSink:
    """A panel that grows while the run speaks, and stays on the screen afterwards."""

    def __init__(self, run: StreamRun, terminal: Terminal) -> None:
        """Show the stream of one attempt in a terminal."""
        self.run = run
        self._terminal = terminal
        self._text = ""
        self._cut = False
        self._status = ""
        self._over = False

    async def on_status(self, text: str) -> None:
        """Show a line below the text, until the next one; an answer that begins anew replaces the one so far."""
        if text == RESTARTED:
            self._text, self._cut = "", False
        self._status = printable(text).replace("\n", " ")[:MAX_LINE]

    async def on_token(self, text: str, signature_field: str | None = None) -> None:
        """Add to the text."""
        self._text += printable(text)
        if len(self._text) > 2 * MAX_TAIL:
            self._text, self._cut = self._text[-MAX_TAIL:], True

    async def on_final(self, result: Any, tokens_emitted: int) -> None:
        """Leave the whole text on the screen."""
        if not self._text and result:
            await self.on_token(str(result))
        self._status = ""
        self._finish("green")

    async def on_failed(self, error: str) -> None:
        """Leave what was said on the screen, and why no more came."""
        self._status = f"failed: {printable(error)}"
        self._finish("red")

    async def flush(self) -> None:
        """Leave on the screen what was said."""
        self._finish("yellow")

    def _finish(self, style: str) -> None:
        if not self._over:
            self._over = True
            self._terminal.finished(self, self.panel(None, style))

    def panel(self, max_lines: int | None, style: str = "cyan") -> RenderableType:
        """Return the panel, of the last lines or (None) of all."""
        from rich.panel import Panel
        from rich.text import Text

        text = self._text
        cut = self._cut
        if max_lines is not None:
            lines = text.splitlines()
            cut = cut or len(lines) > max_lines
            text = "\n".join(lines[-max_lines:])[-max_lines * 500 :]
        body: Text = Text()
        if cut:
            body.append("…\n", style="dim")
        body.append(text)
        if self._status:
            body.append(f"\n{self._status}" if text else self._status, style="italic dim")
        return Panel(body, title=Text(_name(self.run)), title_align="left", border_style=style)


class Terminal:
    """Shows several streams at once; makes the sinks for them. Use it in a `with`."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on a console; None: standard output."""
        if console is None:
            from rich.console import Console

            console = Console()
        self.console = console
        self._shown: list[RichSink] = []
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Begin to show, if this is a terminal."""
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(
                self, console=self.console, refresh_per_second=REFRESH_PER_S, transient=True,
                vertical_overflow="crop",
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the panels away that are still open."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def sink(self, run: StreamRun) -> StreamSink:
        """Return a sink for one attempt of a run."""
        if self._live is None:
            return PlainSink(run, self.console)
        sink = RichSink(run, self)
        with self._lock:
            self._shown.append(sink)
        return sink

    def finished(self, sink: RichSink, panel: RenderableType) -> None:
        """Take a panel out of what changes and leave it on the screen for good."""
        with self._lock:
            if sink in self._shown:
                self._shown.remove(sink)
        self.console.print(panel)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the panels of the runs that speak now; called by a thread of Live."""
        from rich.text import Text

        with self._lock:
            shown = list(self._shown)
        some = shown[-MAX_PANELS:]
        height = max(1, (options.size.height - 2) // max(1, len(some)) - 3)
        for sink in some:
            yield sink.panel(height)
        if len(shown) > len(some):
            yield Text(f"and {len(shown) - len(some)} more", style="dim")
