"""A tool: something that a model may call, whether a function of the agent or of an MCP server."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

from flock_ray.errors import ConfigurationError, safe_error_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.engines.context import Context

__all__ = ["FunctionTool", "Tool"]

DEFAULT_TIMEOUT_S = 60.0
MAX_ITEMS = 10_000
"""Of what a generator yields."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Example|Examples|Note|Notes):\s*$")
_ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model is told of a tool, and how to call it."""

    name: str
    """At most 64 letters, digits, `_` and `-`, unique among the tools of a call."""
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments: an object."""
    call: Callable[[dict[str, Any]], Awaitable[Any]]
    """Called with arguments that are a JSON object and not checked yet; what it raises the model is told."""
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    """Limit of one call in seconds; None: only the agent's own."""


Offload = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a sync function without blocking the event loop."""


class FunctionTool:
    """A function as a tool: its schema comes from its type hints and docstring. Compiled once.

    A parameter that is named `ctx`, or annotated `Context`, gets the run's context and is not shown to
    the model.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Look at a function.

        Raises:
            ConfigurationError: It has no usable name, or parameters that JSON can't fill.
        """
        # Looked at as it was defined: `functools.partial` has neither name nor hints of its own.
        inner: Any = function
        while isinstance(inner, partial):
            inner = inner.func
        marked: tuple[str | None, float | None] = getattr(inner, "__flock_tool__", (None, None))
        self.name = str(marked[0] or getattr(inner, "__name__", type(inner).__name__))
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} is no name for a tool: at most 64 letters, digits, _ and -. Give the function a "
                'name with def, or @flock_tool(name="...").'
            )
        self.timeout_s = marked[1]
        self._function = function
        # Of a callable object the hints are those of its __call__.
        self._hinted = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__
        self._is_async = inspect.iscoroutinefunction(self._hinted)
        about, arguments = _read_docstring(inspect.getdoc(inner) or "")
        self.description = about or self.name.replace("_", " ")
        self._context: str | None = None
        self._fields: dict[str, str] = {}
        self._positional: set[str] = set()
        self._model = self._arguments_model(arguments)
        self.parameters = _parameters(self.name, self._model)

    def bind(self, ctx: Context, offload: Offload, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> Tool:
        """Return the tool for one run.

        Args:
            ctx: The run.
            offload: How sync functions are run.
            timeout_s: Limit of one call in seconds, if the function has none of its own; None: no limit.
        """
        limit = self.timeout_s if self.timeout_s is not None else timeout_s
        return Tool(self.name, self.description, self.parameters, partial(self._call, ctx, offload), limit)

    async def _call(self, ctx: Context, offload: Offload, arguments: dict[str, Any]) -> Any:
        values = self._model.model_validate(arguments)
        given: dict[str, Any] = {}
        for field, name in self._fields.items():
            if field in values.model_fields_set:
                given[name] = getattr(values, field)
        if self._context is not None:
            given[self._context] = ctx
        positional = [given.pop(name) for name in list(given) if name in self._positional]
        call = partial(self._function, *positional, **given)
        if self._is_async:
            return await call()
        value = await offload(partial(_called_through, call))
        return await value if inspect.isawaitable(value) else value

    def _arguments_model(self, about: dict[str, str]) -> type[BaseModel]:
        from pydantic import ConfigDict, Field, create_model

        try:
            hints = get_type_hints(self._hinted, include_extras=True)
            parameters = inspect.signature(self._function).parameters
        except Exception as error:
            reason = ": ".join(safe_error_text(error))
            raise ConfigurationError(
                f"Tool {self.name!r}: its type hints can't be read ({reason})."
            ) from error
        fields: dict[str, Any] = {}
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(
                    f"Tool {self.name!r}: a model can't fill {parameter}. Give the function named parameters."
                )
            hint = hints.get(name, Any)
            if name == "ctx" or getattr(hint, "__name__", "") == "Context":
                self._context = name
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.add(name)
            # By alias: a parameter may have a name that a pydantic model can't give to a field.
            default = ... if parameter.default is parameter.empty else parameter.default
            field = f"p{len(fields)}"
            self._fields[field] = name
            fields[field] = (hint, Field(default, alias=name, description=about.get(name)))
        try:
            made: type[BaseModel] = create_model(
                f"{self.name}_arguments",
                __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False),
                **fields,
            )
        except Exception as error:
            reason = safe_error_text(error)[1].partition("\n")[0]
            raise ConfigurationError(
                f"Tool {self.name!r}: its parameters can't come from JSON ({reason}). Use types that JSON has."
            ) from error
        return made


def _parameters(name: str, model: type[BaseModel]) -> dict[str, Any]:
    try:
        schema = model.model_json_schema(by_alias=True)
    except Exception as error:
        reason = safe_error_text(error)[1].partition("\n")[0]
        raise ConfigurationError(
            f"Tool {name!r}: its parameters have no JSON schema ({reason}). Use types that JSON has."
        ) from error
    schema.pop("title", None)
    for part in schema.get("properties", {}).values():
        part.pop("title", None)
    schema.setdefault("properties", {})
    return schema


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of the function, and of each of its arguments."""
    about: list[str] = []
    arguments: dict[str, str] = {}
    section, current = "", ""
    for line in text.splitlines():
        head = _SECTION.match(line)
        if head is not None:
            section, current = head.group(1), ""
        elif not section:
            about.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            found = _ARGUMENT.match(line.strip())
            if found is not None and len(line) - len(line.lstrip()) <= 4:
                current = found.group(1)
                arguments[current] = found.group(2)
            elif current and line.strip():
                arguments[current] += " " + line.strip()
        elif section.startswith("Return") and line.strip():
            about.append(f"Returns: {line.strip()}")
            section = "Raises"
    return "\n".join(about).strip(), arguments


def _called_through(call: Callable[[], Any]) -> Any:
    # A generator would otherwise do its work later: on the event loop, and without a limit.
    value = call()
    is_lazy = isinstance(value, Iterator) and not inspect.isawaitable(value)
    return list(itertools.islice(value, MAX_ITEMS)) if is_lazy else value
