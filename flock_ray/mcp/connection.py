"""One connection to one MCP server, shared by all runs of a worker: opened when needed, again when lost.

Imports the SDK: only for workers that use a server. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import mcp_types as types
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from flock_ray.errors import safe_error_text
from flock_ray.mcp.declaring import McpServer
from flock_ray.mcp.parameters import secrets
from flock_ray.mcp.results import as_text, one_line, redacted
from flock_ray.mcp.transports import Diagnosis, open_transport
from flock_ray.mcp.trouble import ServerUnreachableError, ToolFailedError, why

__all__ = ["Connection", "ServerTool"]

MAX_CALLS = 64
"""Calls that a server gets at a time; more wait."""

IDLE_S = 900.0
"""Seconds without a call after which a connection is closed: its agents may be gone."""

BACKOFF_S = 0.2
"""Seconds before the second attempt to connect; doubled for each one after it."""

MAX_PAUSE_S = 30.0
"""Most seconds during which runs don't try a server again that could not be reached."""

LISTEN_AGAIN_S = 30.0
"""Seconds after which a server that stopped telling of changes is asked to do so again."""

STOP_S = 8.0
"""Seconds that a connection has for its end; a program takes up to 6."""

MAX_PAGES = 100
MAX_TOOLS = 500
MAX_DESCRIPTION_CHARS = 8_192
MAX_SCHEMA_CHARS = 65_536
MAX_LOGS = 5
"""Log lines of a server that one call notes."""

_LEVELS = ("warning", "error", "critical", "alert", "emergency")
_FORGOTTEN = frozenset({"Session terminated", "Session not found"})
"""What a server that was restarted says of our session; it has not looked at the request."""


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A tool as its server describes it, cut to what is sensible."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class _Session:
    """One life of the connection."""

    client: Client
    owner: asyncio.Task[None]
    diagnosis: Diagnosis
    ending: asyncio.Event
    tools: list[ServerTool] | None = None
    is_stale: bool = False
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Connection:
    """A server as runs see it: its tools, and calls of them."""

    def __init__(self, server: McpServer, roots: tuple[str, ...]) -> None:
        """Connect to nothing yet.

        Args:
            server: What to connect to.
            roots: `file://` URIs that the server is told it may use.
        """
        self.server = server
        self._roots = roots if server.has_roots else ()
        self._secrets = secrets(server.params)
        self._session: _Session | None = None
        self._opening: asyncio.Task[_Session] | None = None
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._running = 0
        self._logs: list[list[str]] = []
        """Of the calls under way."""
        self._failures = 0
        self._trouble = ""
        self._pause_until = 0.0
        self._used = 0.0
        self._closed = False

    async def tools(self) -> list[ServerTool]:
        """Return what the server offers; asks it only after it said that this has changed, or was connected anew.

        Raises:
            ServerUnreachableError: It can't be reached, or not again so soon; one sentence.
        """
        for is_last in (False, True):
            session = await self._ready()
            try:
                # The limit first: it holds for waiting behind other runs, too.
                async with asyncio.timeout(self.server.connect_timeout_s), session.listing:
                    if session.tools is None or session.is_stale:
                        # Before asking: what changes meanwhile is asked for again.
                        session.is_stale = False
                        session.tools = await self._list(session.client)
                    return session.tools
            except Exception as error:
                session.is_stale = True
                lost = self._note_loss(session, error)
                if is_last or not lost:
                    raise ServerUnreachableError(self._why(error, session.diagnosis)) from None
        raise AssertionError("unreachable")

    async def call(self, tool: str, arguments: dict[str, Any]) -> tuple[str, list[str]]:
        """Call a tool once; returns its answer as text, and what the server logged meanwhile.

        Raises:
            ToolFailedError: It failed, or did not answer in time; whether it had an effect may be unknown.
        """
        async with self._calls:
            with self._collecting() as logs:
                return await self._call(tool, arguments), logs

    async def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        limit = self.server.read_timeout_s
        for is_last in (False, True):
            try:
                session = await self._ready()
            except ServerUnreachableError as error:
                raise ToolFailedError(
                    f"The tool server {self.server.name!r} can't be reached: {error}"
                ) from None
            try:
                async with asyncio.timeout(limit):
                    result = await session.client.call_tool(tool, arguments)
            except TimeoutError:
                raise ToolFailedError(
                    f"The tool did not answer within {limit:g} s; it may still have an effect."
                ) from None
            except Exception as error:
                forgotten = isinstance(error, MCPError) and error.message in _FORGOTTEN
                lost = self._note_loss(session, error, forgotten=forgotten)
                if forgotten and not is_last:
                    continue
                if lost:
                    # The owner learns how a program ended, or what the network said.
                    await asyncio.wait([session.owner], timeout=STOP_S)
                    reason = self._why(session.diagnosis.error or error, session.diagnosis)
                    raise ToolFailedError(
                        f"The tool server {self.server.name!r} was lost during the call, which may have had an "
                        f"effect: {reason}"
                    ) from None
                text = redacted(safe_error_text(error)[1], self._secrets)
                raise ToolFailedError(one_line(text)) from None
            text = as_text(result)
            if result.is_error:
                raise ToolFailedError(text or "The tool failed and gave no reason.")
            return text
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """End the connection, and the server if it is a program; it opens no more."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._session is not None:
            await _ended(self._session.owner, self._session.ending)

    # --- opening ------------------------------------------------------------------------------

    async def _ready(self) -> _Session:
        """Return the open session; of several runs that need one, one opens it."""
        self._used = asyncio.get_running_loop().time()
        if self._closed:
            raise ServerUnreachableError("the worker is shutting down")
        if self._session is not None and not self._session.ending.is_set():
            return self._session
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name=f"mcp-open-{self.server.name}")
            self._opening.add_done_callback(self._opened)
        # A run that is cancelled does not take the others' connection with it.
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[_Session]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # seen here: those who waited may be gone

    async def _open(self) -> _Session:
        loop = asyncio.get_running_loop()
        if loop.time() < self._pause_until:
            wait_s = self._pause_until - loop.time()
            raise ServerUnreachableError(f"{self._trouble} (it is tried again in {wait_s:.0f} s)")
        deadline = loop.time() + self.server.connect_timeout_s
        for attempt in range(self.server.max_retries + 1):
            diagnosis = Diagnosis()
            try:
                self._session = await self._start(diagnosis, deadline - loop.time())
            except Exception as error:
                self._trouble = self._why(error, diagnosis)
                pause_s = BACKOFF_S * 2**attempt
                # A command that is not there will not be there in a second.
                if isinstance(error, FileNotFoundError) or loop.time() + pause_s >= deadline:
                    break
                await asyncio.sleep(pause_s)
            else:
                self._failures = 0
                return self._session
        self._failures += 1
        pause_s = min(2.0 ** min(self._failures - 1, 10), MAX_PAUSE_S)
        self._pause_until = loop.time() + pause_s * random.uniform(0.8, 1.2)
        raise ServerUnreachableError(self._trouble)

    async def _start(self, diagnosis: Diagnosis, within_s: float) -> _Session:
        """Connect once. The SDK wants a connection to be opened and closed by the same task: its owner."""
        started: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        ending = asyncio.Event()
        owner = asyncio.create_task(self._own(started, diagnosis, ending), name=f"mcp-{self.server.name}")
        try:
            client = await asyncio.wait_for(asyncio.shield(started), max(within_s, 0.0))
        except BaseException:
            owner.cancel()
            await asyncio.wait([owner], timeout=STOP_S)
            raise
        return _Session(client, owner, diagnosis, ending)

    async def _own(
        self, started: asyncio.Future[Client], diagnosis: Diagnosis, ending: asyncio.Event
    ) -> None:
        """Hold a connection open until it ends, is lost or idle."""
        try:
            transport = open_transport(self.server.params, diagnosis, ending.set)
            async with self._client(transport, ending) as client:
                if not started.done():
                    started.set_result(client)
                watch = asyncio.create_task(self._listen(client))
                try:
                    await self._until_idle(ending)
                finally:
                    watch.cancel()
                    await asyncio.wait([watch])
        except BaseException as error:
            diagnosis.error = _first(error)
            if not started.done():
                started.set_exception(diagnosis.error or ConnectionError("connecting was given up"))
                started.exception()  # seen: who waited may have gone
            if not isinstance(error, Exception):
                raise
        finally:
            ending.set()

    def _client(self, transport: Any, ending: asyncio.Event) -> Client:
        async def roots(context: Any) -> types.ListRootsResult:
            return types.ListRootsResult(roots=[types.Root(uri=uri) for uri in self._roots])  # type: ignore[arg-type]  # pydantic parses URIs

        async def logged(params: types.LoggingMessageNotificationParams) -> None:
            self._on_log(params)

        async def on_message(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                self._on_tools_changed()

        # Sampling and elicitation have no callback: the SDK then does not offer them, and refuses them.
        return Client(
            transport,
            cache=None,
            list_roots_callback=roots if self._roots else None,
            logging_callback=logged,
            log_level="warning",
            message_handler=on_message,
            client_info=types.Implementation(name="flock_ray", version=_own_version()),
        )

    async def _until_idle(self, ending: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not ending.is_set():
            left = self._used + IDLE_S - loop.time()
            if left <= 0 and not self._running:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), max(left, 1.0))

    # --- what the server says unasked -----------------------------------------------------------

    async def _listen(self, client: Client) -> None:
        """Ask a server of the newer protocol to tell of changed tools; older ones do so unasked."""
        offered = client.server_capabilities.tools
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (offered and offered.list_changed):
            return
        while True:
            with contextlib.suppress(Exception):
                async with client.listen(tools_list_changed=True) as events:
                    async for _ in events:
                        self._on_tools_changed()
            # What changes while nobody listens is not told later.
            self._on_tools_changed()
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _on_tools_changed(self) -> None:
        if self._session is not None:
            self._session.is_stale = True

    def _on_log(self, params: types.LoggingMessageNotificationParams) -> None:
        if params.level not in _LEVELS:
            return
        data = params.data if isinstance(params.data, str) else repr(params.data)
        # Cut before looking for secrets in it: it may be of any size.
        line = one_line(redacted(data[:10_000], self._secrets))
        for logs in self._logs:
            if len(logs) < MAX_LOGS:
                logs.append(f"{self.server.name}: {params.level}: {line}")

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[list[str]]:
        logs: list[str] = []
        self._logs.append(logs)
        self._running += 1
        try:
            yield logs
        finally:
            self._running -= 1
            self._logs = [other for other in self._logs if other is not logs]

    # --- details ------------------------------------------------------------------------------

    async def _list(self, client: Client) -> list[ServerTool]:
        found: dict[str, ServerTool] = {}
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                if tool.name not in found and len(repr(tool.input_schema)) <= MAX_SCHEMA_CHARS:
                    found[tool.name] = _described(tool)
            cursor = page.next_cursor
            if cursor is None or len(found) >= MAX_TOOLS:
                break
        # In an order that does not depend on the server's mood: requests to models are compared.
        return [found[name] for name in sorted(found)[:MAX_TOOLS]]

    def _note_loss(self, session: _Session, error: BaseException, *, forgotten: bool = False) -> bool:
        """Tell whether an error means that the session is over, and end it then."""
        is_closed = isinstance(error, MCPError) and error.code == types.CONNECTION_CLOSED
        if is_closed or forgotten:
            session.ending.set()
        return session.ending.is_set()

    def _why(self, error: BaseException, diagnosis: Diagnosis) -> str:
        text = why(error, self.server, diagnosis)
        return one_line(redacted(text, self._secrets))


def _described(tool: types.Tool) -> ServerTool:
    schema = tool.input_schema if tool.input_schema.get("type") == "object" else {"type": "object"}
    return ServerTool(
        tool.name,
        (tool.description or tool.title or "")[:MAX_DESCRIPTION_CHARS],
        {"properties": {}, **schema},
    )


async def _ended(owner: asyncio.Task[None], ending: asyncio.Event) -> None:
    ending.set()
    await asyncio.wait([owner], timeout=STOP_S)
    if not owner.done():
        owner.cancel()
        await asyncio.wait([owner], timeout=STOP_S)


def _first(error: BaseException) -> Exception | None:
    """Return the error inside the groups that task groups make of it; None for a cancellation."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else None


def _own_version() -> str:
    with contextlib.suppress(Exception):
        return version("flock-ray")
    return "0"
