"""A program that a worker talks to over its pipes, and that never outlives the worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from flock_ray.mcp.parameters import StdioServerParameters, revealed

__all__ = ["MAX_MESSAGE_BYTES", "ServerProcess", "environment"]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Longest message of a server; one that sends a longer one is disconnected."""

EXIT_GRACE_S = 2.0
"""Seconds that a server has to end after its stdin was closed, and again after SIGTERM."""

MAX_STDERR_BYTES = 4096

_INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")

# The shell becomes the server. What it leaves behind, in the server's process group, waits for the end of
# a pipe that only the worker holds, and then ends the group: SIGKILL of the worker closes that pipe, too.
# PR_SET_PDEATHSIG would reach only the first process of `npx`-like chains.
_GUARDED = (
    '{ trap "" TERM HUP INT; read -r _ < "/dev/fd/$0"; sleep 1; kill -TERM 0; sleep 2; kill -KILL 0; } '
    '</dev/null >/dev/null 2>&1 & exec "$@"'
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server: a few harmless variables of the worker, and what was given."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # Exported shell functions would be code.
    return {name: v for name, v in inherited.items() if not v.startswith("()")} | dict(given)


class ServerProcess:
    """One running server. Belongs to the event loop that started it; needs no child watcher there."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], guard: int) -> None:
        """Hold a started process; use `start`."""
        self._name = name
        self._process = process
        self._guard = guard
        self._pipes: list[asyncio.ReadTransport] = []
        self._stderr = b""
        self._tasks: list[asyncio.Task[None]] = []
        self.reader = asyncio.StreamReader(limit=MAX_MESSAGE_BYTES)
        self.fault = ""
        """Why this side gave the server up; empty when it did not."""
        self.writer: asyncio.StreamWriter | None = None
        """None before it is started."""

    @classmethod
    async def start(cls, params: StdioServerParameters) -> ServerProcess:
        """Start a server in a process group of its own.

        Raises:
            FileNotFoundError: The command, or the directory, does not exist here; one sentence.
            OSError: It can't be started.
        """
        process, guard = _spawn(params)
        made = cls(params.command, process, guard)
        try:
            await made._open()
        except BaseException:
            made._kill(signal.SIGKILL)
            made._release()
            raise
        return made

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process
        reading = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self._pipes.append((await loop.connect_read_pipe(lambda: reading, process.stdout))[0])
        errors = asyncio.StreamReader(loop=loop)
        saying = asyncio.StreamReaderProtocol(errors, loop=loop)
        self._pipes.append((await loop.connect_read_pipe(lambda: saying, process.stderr))[0])
        # The only protocol that a writer can wait for is one that could read, too.
        unused = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        pipe, _ = await loop.connect_write_pipe(lambda: unused, process.stdin)
        self.writer = asyncio.StreamWriter(pipe, unused, None, loop)
        self._tasks.append(loop.create_task(self._read_errors(errors)))

    async def _read_errors(self, errors: asyncio.StreamReader) -> None:
        """Read stderr so that the server never waits for it; its end is kept for messages."""
        while data := await errors.read(4096):
            self._stderr = (self._stderr + data)[-MAX_STDERR_BYTES:]

    @property
    def pid(self) -> int:
        """Process id, and that of the process group."""
        return self._process.pid

    def last_words(self) -> str:
        """Return how it ended, if it did, and its last line on stderr; may hold secrets."""
        if self.fault:
            return f"{self._name!r} was disconnected: {self.fault}"
        code = self._process.poll()
        lines = [line.strip() for line in self._stderr.decode(errors="replace").splitlines() if line.strip()]
        said = f"; it said: {lines[-1]}" if lines else ""
        if code is None:
            return f"{self._name!r} closed its output{said}"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{self._name!r} {how}{said}"

    async def stop(self) -> None:
        """End the server and everything in its process group: politely first, then by force."""
        if self.writer is not None:
            self.writer.close()
        with contextlib.suppress(asyncio.CancelledError):
            if not await self._ended(EXIT_GRACE_S):
                self._kill(signal.SIGTERM)
                await self._ended(EXIT_GRACE_S)
        # Also when it has ended: others of its group, such as the guard, have not.
        self._kill(signal.SIGKILL)
        with contextlib.suppress(asyncio.CancelledError):
            await self._ended(EXIT_GRACE_S)
        self._release()

    async def _ended(self, within_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._process.poll() is None:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _kill(self, number: signal.Signals) -> None:
        # The leader's pid is the group's id, also after the leader has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _release(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.writer is not None:
            pipe_in = self.writer.transport
            # One that is closed for good can't be aborted any more.
            if pipe_in.get_write_buffer_size() or not pipe_in.is_closing():
                pipe_in.abort()
        for pipe in self._pipes:
            pipe.close()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        with contextlib.suppress(OSError):
            os.close(self._guard)
        self._process.poll()


def _spawn(params: StdioServerParameters) -> tuple[subprocess.Popen[bytes], int]:
    """Start the program; returns it, and the pipe that must stay open as long as it may live.

    Not in a thread: a call that is cancelled would leave the process behind. It takes milliseconds.
    """
    env = environment(revealed(params.env))
    cwd = None if params.cwd is None else str(params.cwd)
    if cwd is not None and not Path(cwd).is_dir():
        raise FileNotFoundError(f"its directory {cwd!r} does not exist on this worker")
    # Relative commands are relative to the server's directory, as in a shell.
    name = params.command
    where = os.path.join(cwd, name) if cwd is not None and os.sep in name else name
    command = shutil.which(where, path=env.get("PATH"))
    if command is None:
        raise FileNotFoundError(
            f"the command {name!r} is not found on this worker: install it there, or give its full path"
        )
    waiting, guard = os.pipe()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDED, str(waiting), os.path.abspath(command), *params.args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=env, cwd=cwd, start_new_session=True, pass_fds=(waiting,),
        )  # fmt: skip
    except BaseException:
        os.close(guard)
        raise
    finally:
        os.close(waiting)
    return process, guard
