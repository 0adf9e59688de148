"""What a flock and its agents declare about MCP servers. Travels to the workers with the agents."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from flock_ray.agent_checks import whole_number
from flock_ray.errors import ConfigurationError
from flock_ray.mcp.parameters import (
    HttpParameters,
    ServerParameters,
    SseServerParameters,
    StdioServerParameters,
    StreamableHttpServerParameters,
    WebsocketServerParameters,
)

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.core.definition import AgentDefinition

__all__ = [
    "MCPServerConfig",
    "McpDeclaring",
    "McpSelecting",
    "McpSelection",
    "McpServer",
    "McpUse",
    "selected",
]

_NAME = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")
_MAX_SERVER_NAME = 32
_KINDS = (
    StdioServerParameters,
    SseServerParameters,
    StreamableHttpServerParameters,
    WebsocketServerParameters,
)


class MCPServerConfig(TypedDict, total=False):
    """How one agent uses one server: the values of `with_mcps({...})`."""

    roots: list[str]
    """Directories that the server is told it may use, instead of the server's `mount_points`."""
    tool_whitelist: list[str]
    """Names of tools, as the server calls them; without it, all that `add_mcp` allows."""


McpSelection = (
    Iterable[str | Mapping[str, MCPServerConfig | list[str] | None]]
    | Mapping[str, MCPServerConfig | list[str] | None]
)


@dataclass(frozen=True, slots=True)
class McpServer:
    """A server of a flock."""

    name: str
    params: ServerParameters
    has_tools: bool = True
    has_roots: bool = True
    mount_points: tuple[str, ...] = ()
    """`file://` URIs of what the server may use, for agents that name no roots of their own."""
    tool_whitelist: frozenset[str] | None = None
    """Names that any agent may call; None: all."""
    read_timeout_s: float = 300.0
    """Limit of one call of a tool, in seconds."""
    connect_timeout_s: float = 60.0
    """Limit of connecting, all attempts together, in seconds; a server may have to be downloaded first."""
    max_retries: int = 3
    """Attempts to connect after the first, before a run goes on without the server."""

    def digest(self) -> bytes:
        """Return a hash of everything, secrets included: another server, or another token, has another one."""
        dump = self.params.model_dump(exclude={"auth"})
        seen = [type(self.params).__qualname__, _plain(dump), _plain(_vars(self.params))]
        rest = [getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "params"]
        return blake2b(repr([seen, _plain(rest)]).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class McpUse:
    """What one agent may do with one server."""

    name: str
    """The server's, in the flock."""
    roots: tuple[str, ...] | None = None
    """`file://` URIs; None: the mount points of the server."""
    tool_whitelist: frozenset[str] | None = None
    """Names of tools; None: all that the server's own list allows."""
    server: McpServer | None = None
    """None until the agent is deployed."""

    def digest(self) -> bytes:
        """Return a hash of everything."""
        own = repr([self.name, self.roots, _plain(self.tool_whitelist)]).encode("utf-8", "surrogatepass")
        return own + (b"" if self.server is None else self.server.digest())


class McpSelecting:
    """The part of an agent's builder that knows MCP servers."""

    _definition: AgentDefinition

    def with_mcps(self, servers: McpSelection) -> AgentBuilder:
        """Let the language model of the agent call tools of MCP servers, which `flock.add_mcp` made known.

        Args:
            servers: Names; or a mapping of name to {"roots": [...], "tool_whitelist": [...]}; or a list of both.
                A server that is named again is used as said last.
        """
        at = f"agent {self._definition.name!r}: with_mcps()"
        self._definition.mcp_servers = selected(servers, self._definition.mcp_servers, at)
        return self._changed()

    def _changed(self) -> AgentBuilder:
        """Tell the flock, and return the builder; the builder does."""
        raise NotImplementedError  # AgentBuilder's


class McpDeclaring:
    """The part of a Flock that knows MCP servers."""

    _mcp_servers: dict[str, McpServer]

    def add_mcp(
        self,
        name: str,
        connection_params: ServerParameters,
        *,
        enable_tools_feature: bool = True,
        enable_prompts_feature: bool = False,
        enable_sampling_feature: bool = False,
        enable_roots_feature: bool = True,
        mount_points: Iterable[str] | None = None,
        tool_whitelist: Iterable[str] | None = None,
        read_timeout_seconds: float | timedelta = 300,
        connect_timeout_seconds: float | timedelta = 60,
        max_retries: int = 3,
    ) -> Self:
        """Make an MCP server known; agents use it after `.with_mcps([name])`.

        Each worker connects when the first run needs the server, and all its runs share the connection.

        Args:
            name: Letters and digits, joined by single `_` or `-`; at most 32. Tools are called `{name}__{tool}`.
            connection_params: How to reach it, see `flock_ray.mcp`.
            enable_tools_feature: Whether agents get its tools.
            enable_prompts_feature: Refused: agents have no use for a server's prompts.
            enable_sampling_feature: Refused: a server can't make this flock call a model.
            enable_roots_feature: Whether the server may ask which directories it may use.
            mount_points: Those directories, paths or `file://` URIs; None: the server is told of none.
            tool_whitelist: Tools that agents may use, by the server's names; None: all.
            read_timeout_seconds: Limit of one call of a tool.
            connect_timeout_seconds: Limit of connecting; then runs go on without the server for a while.
            max_retries: Attempts to connect after the first, within that limit; from 0.

        Raises:
            ConfigurationError: Something of this makes no sense, or is not offered.
        """
        at = f"add_mcp({name!r}):"
        _check_name(name, at)
        if name in self._mcp_servers:
            raise ConfigurationError(f"{at} this flock has a server of that name already; take another one")
        if enable_prompts_feature:
            raise ConfigurationError(
                f"{at} prompts of servers are not used by agents; leave enable_prompts_feature out"
            )
        if enable_sampling_feature:
            raise ConfigurationError(
                f"{at} servers may not call your models through a flock; leave enable_sampling_feature out"
            )
        self._mcp_servers[name] = McpServer(
            name=name,
            params=_params(connection_params, at),
            has_tools=bool(enable_tools_feature),
            has_roots=bool(enable_roots_feature),
            mount_points=_roots(mount_points, "mount_points", at) or (),
            tool_whitelist=_names(tool_whitelist, at),
            read_timeout_s=_seconds(read_timeout_seconds, "read_timeout_seconds", at),
            connect_timeout_s=_seconds(connect_timeout_seconds, "connect_timeout_seconds", at),
            max_retries=whole_number(max_retries, "max_retries", at, low=0),
        )
        self._on_change()
        return self

    def _on_change(self) -> None:
        """Note that agents must be deployed again; the Flock does."""
        raise NotImplementedError  # Flock's

    def _with_mcp_servers(self, definition: AgentDefinition) -> AgentDefinition:
        """Return an agent that carries the servers it names.

        Raises:
            ConfigurationError: The flock does not have one of them, or the agent could not use any.
        """
        if not definition.mcp_servers:
            return definition
        at = f"agent {definition.name!r}: with_mcps()"
        if definition.function is not None:
            raise ConfigurationError(
                f"{at} gives tools to a language model, and this agent runs a function; drop with_mcps() or runs()"
            )
        uses = []
        for use in definition.mcp_servers:
            server = self._mcp_servers.get(use.name)
            if server is None:
                known = ", ".join(sorted(self._mcp_servers)) or "none"
                raise ConfigurationError(
                    f"{at} names the server {use.name!r}, which this flock does not have (it has: {known}); "
                    f"add it by flock.add_mcp({use.name!r}, ...)"
                )
            uses.append(dataclasses.replace(use, server=server))
        return dataclasses.replace(definition, mcp_servers=tuple(uses))


def _check_name(name: Any, at: str) -> None:
    if not isinstance(name, str) or len(name) > _MAX_SERVER_NAME or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{at} tools are called by the server's name: use at most {_MAX_SERVER_NAME} letters and digits, "
            "joined by single '_' or '-'"
        )


def selected(servers: Any, before: tuple[McpUse, ...], at: str) -> tuple[McpUse, ...]:
    """Read what `.with_mcps()` was given: names, a mapping by name, or a list of both.

    Args:
        servers: As given.
        before: What earlier calls selected; a server that is named again replaces it.
        at: The words that start an error message.

    Raises:
        ConfigurationError: It is nothing of the kind.
    """
    given = [servers] if isinstance(servers, Mapping) else servers
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{at} takes names of servers: with_mcps([{servers!r}])")
    uses = {use.name: use for use in before}
    number = 0
    for item in given:
        pairs = item.items() if isinstance(item, Mapping) else [(item, None)]
        for name, config in pairs:
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"{at} takes names of servers, got {name!r}")
            uses[name] = _use(name, config, at)
            number += 1
    if not number:
        raise ConfigurationError(f"{at} needs at least one name of a server")
    return tuple(uses.values())


def _use(name: str, config: Any, at: str) -> McpUse:
    if config is None:
        return McpUse(name)
    if isinstance(config, (list, tuple)):  # upstream's older form: only roots
        config = {"roots": config}
    if not isinstance(config, Mapping) or not set(config) <= {"roots", "tool_whitelist"}:
        raise ConfigurationError(
            f"{at} takes for {name!r} a dict with roots and tool_whitelist, got {config!r}"
        )
    return McpUse(name, _roots(config.get("roots"), "roots", at), _names(config.get("tool_whitelist"), at))


def _params(given: Any, at: str) -> ServerParameters:
    params: ServerParameters | None = given if isinstance(given, _KINDS) else _of_sdk(given)
    if params is None:
        raise ConfigurationError(
            f"{at} connection_params must be one of {', '.join(kind.__name__ for kind in _KINDS)} of flock_ray.mcp, "
            f"got a {type(given).__name__}"
        )
    if find_spec("mcp") is None:
        raise ConfigurationError(f"{at} the MCP SDK is not installed; pip install 'flock-ray[mcp]'")
    if isinstance(params, WebsocketServerParameters) and find_spec("websockets") is None:
        raise ConfigurationError(f"{at} websockets is not installed; pip install 'flock-ray[mcp]'")
    if isinstance(params, HttpParameters) and not (params.auth is None or _is_auth(params.auth)):
        raise ConfigurationError(
            f"{at} auth must be an httpx2.Auth, the HTTP library of the MCP SDK, got a {type(params.auth).__name__}; "
            "headers={'Authorization': ...} does for a fixed token"
        )
    return params


def _of_sdk(given: Any) -> StdioServerParameters | None:
    """Take the SDK's own parameters of a stdio server, which upstream's derive from."""
    if not isinstance(getattr(given, "command", None), str):
        return None
    known = {name: getattr(given, name, None) for name in ("command", "args", "env", "cwd")}
    try:
        return StdioServerParameters(**{name: value for name, value in known.items() if value is not None})
    except ValidationError:
        return None


def _is_auth(auth: object) -> bool:
    # By name: importing the library takes a while, and the driver has no use for it.
    return any(
        cls.__name__ == "Auth" and cls.__module__.split(".")[0] == "httpx2" for cls in type(auth).__mro__
    )


def _names(given: Any, at: str) -> frozenset[str] | None:
    if given is None:
        return None
    names = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(
            f"{at} tool_whitelist must be a list of names of tools, got {given!r}; leave it out to allow all"
        )
    return frozenset(names)


def _roots(given: Any, parameter: str, at: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    paths = None if isinstance(given, (str, bytes, Path)) or not isinstance(given, Iterable) else tuple(given)
    if paths is None or not all(isinstance(path, (str, Path)) and str(path) for path in paths):
        raise ConfigurationError(f"{at} {parameter} must be a list of directories, got {given!r}")
    uris = []
    for path in map(str, paths):
        parts = urlsplit(path)
        if "://" in path and parts.scheme != "file":
            raise ConfigurationError(f"{at} {parameter} takes paths and file:// URIs, got {path!r}")
        # Relative to the declaring program: workers have other working directories.
        uris.append(path if parts.scheme == "file" else Path(os.path.abspath(path)).as_uri())
    return tuple(uris)


def _seconds(given: Any, parameter: str, at: str) -> float:
    value = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigurationError(
            f"{at} {parameter} must be seconds, more than 0, or a timedelta, got {given!r}"
        )
    return float(value)


def _vars(params: ServerParameters) -> Any:
    """What an auth object holds that looks the same in every process."""
    auth = getattr(params, "auth", None)
    if auth is None:
        return None
    held = {name: v for name, v in vars(auth).items() if isinstance(v, (str, bytes, int, float, type(None)))}
    return [type(auth).__module__, type(auth).__qualname__, held]


def _plain(value: Any) -> Any:
    """Turn a value into one whose repr is the same in every process, secrets in the clear."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return [(name, _plain(value[name])) for name in sorted(value)]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
