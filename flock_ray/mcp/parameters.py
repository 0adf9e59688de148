"""How to reach an MCP server. What may be secret is in no repr and no dump."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "HttpParameters",
    "ServerParameters",
    "SseServerParameters",
    "StdioServerParameters",
    "StreamableHttpServerParameters",
    "WebsocketServerParameters",
    "place",
    "revealed",
    "secrets",
]


def _hidden(values: Mapping[str, str | SecretStr] | None) -> Mapping[str, str | SecretStr] | None:
    if values is None:
        return None
    return {name: v if isinstance(v, SecretStr) else SecretStr(v) for name, v in values.items()}


def _seconds(value: float | timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not seconds > 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _one_url(url: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    # A client library would fail on these at the first use, in a worker.
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"must be a URL such as {schemes[-1]}://example.com/mcp")
    return url


def _websocket_url(url: str) -> str:
    return _one_url(url, ("ws", "wss"))


SecretValues = Annotated[Mapping[str, str | SecretStr] | None, AfterValidator(_hidden)]
Seconds = Annotated[float | timedelta, AfterValidator(_seconds)]
Url = Annotated[str, AfterValidator(_one_url)]
WebsocketUrl = Annotated[str, AfterValidator(_websocket_url)]


class _Parameters(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class StdioServerParameters(_Parameters):
    """A server that the worker starts as a program and talks to over its stdin and stdout."""

    transport_type: Literal["stdio"] = "stdio"
    command: str = Field(min_length=1)
    """The program: a name on the PATH of the workers, or a path."""
    args: list[str] = Field(default_factory=list, repr=False)
    """Its arguments. Other users of the machine can see them: secrets belong into `env`."""
    env: SecretValues = Field(default=None, repr=False)
    """Environment variables besides the few harmless ones that every server gets (HOME, PATH, LANG, ...)."""
    cwd: str | Path | None = None
    """Directory in which it runs; None is that of the worker."""
    encoding: str = "utf-8"
    """Encoding of both pipes."""
    encoding_error_handler: Literal["strict", "ignore", "replace"] = "strict"
    """What to do with bytes that are not text in this encoding."""


class HttpParameters(_Parameters):
    """What servers behind a URL have in common."""

    url: Url = Field(repr=False)
    headers: SecretValues = Field(default=None, repr=False)
    """Sent with every request, such as {"Authorization": "Bearer ..."}."""
    timeout: Seconds = 30.0
    """Limit in seconds for connecting and for sending a request; a timedelta does as well."""
    sse_read_timeout: Seconds = 300.0
    """Limit in seconds for silence while an answer is awaited; a timedelta does as well."""
    auth: Any = Field(default=None, repr=False)
    """An `httpx2.Auth`, which the SDK uses; it travels to the workers with the agents, so it must pickle."""

    def __repr_args__(self) -> Any:
        """Show the URL without what may be secret in it."""
        yield "url", place(self)
        yield from super().__repr_args__()


class SseServerParameters(HttpParameters):
    """A server over HTTP with server-sent events, the older HTTP transport of MCP."""

    transport_type: Literal["sse"] = "sse"
    timeout: Seconds = 5.0
    """Limit in seconds for connecting and for sending a request; a timedelta does as well."""


class StreamableHttpServerParameters(HttpParameters):
    """A server over streamable HTTP, the present HTTP transport of MCP."""

    transport_type: Literal["streamable_http"] = "streamable_http"
    terminate_on_close: bool = True
    """Whether to end the session at the server when the connection is closed."""


class WebsocketServerParameters(_Parameters):
    """A server over WebSocket: a message per text frame, subprotocol `mcp`, as servers of the SDK 1 speak it."""

    transport_type: Literal["websocket"] = "websocket"
    url: WebsocketUrl = Field(repr=False)
    """With ws:// or wss://; a token belongs into its query, which is never shown."""

    def __repr_args__(self) -> Any:
        """Show the URL without what may be secret in it."""
        yield "url", place(self)
        yield from super().__repr_args__()


ServerParameters = (
    StdioServerParameters | SseServerParameters | StreamableHttpServerParameters | WebsocketServerParameters
)


def place(params: ServerParameters | HttpParameters) -> str:
    """Return where a server is, fit for messages: a command, or a URL without credentials and query."""
    if isinstance(params, StdioServerParameters):
        return params.command
    parts = urlsplit(params.url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit(
        (parts.scheme, host if parts.port is None else f"{host}:{parts.port}", parts.path, "", "")
    )


def revealed(values: Mapping[str, str | SecretStr] | None) -> dict[str, str]:
    """Return environment variables or headers in the clear."""
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in (values or {}).items()
    }


def secrets(params: ServerParameters) -> frozenset[str]:
    """Return the texts that may not be in any message about a server."""
    if isinstance(params, StdioServerParameters):
        return frozenset(revealed(params.env).values())
    parts = urlsplit(params.url)
    found = {parts.password or "", parts.username or "", parts.query}
    found.update(value for pair in parts.query.split("&") for value in pair.split("=")[1:])
    if isinstance(params, HttpParameters):
        values = revealed(params.headers).values()
        # "Bearer abc": the token alone is as secret as the whole.
        found.update(values, (word for value in values for word in value.split()))
    return frozenset(found)
