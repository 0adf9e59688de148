"""Calls the tools that a model asks for: in parallel, bounded in time and size; errors are answers, too."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json as dump_json

from flock_ray.engines.llm.parsing import find_json
from flock_ray.engines.tools import Tool
from flock_ray.errors import safe_error_text
from flock_ray.model import ToolCall

__all__ = ["READ_RESULT", "Toolbox", "in_thread"]

INLINE_RESULT_CHARS = 16_000
"""A longer result is cut for the model, which may read the rest by its reference."""
MAX_RESULT_CHARS = 2_000_000
"""Longest result that is kept at all."""
MAX_KEPT_CHARS = 8_000_000
"""Of all results of a run that are kept to be read; the oldest go first."""
MAX_ERROR_CHARS = 2_000
MAX_NOTED_CHARS = 380
"""Of the arguments, and of the result, in the event of a call; an event holds both."""
MAX_ITEMS = 10_000
MAX_PARALLEL = 16
MAX_THREADS = 200
"""Threads of sync tools in this process, those that hang included."""
READ_RESULT = "read_result"

_threads = threading.Semaphore(MAX_THREADS)

Note = Callable[[str, str], None]


class Toolbox:
    """The tools of one run, and the results that were too long for the conversation."""

    def __init__(
        self, tools: Sequence[Tool], *, note: Note | None, captured: Callable[[str], str | None] | None = None
    ) -> None:
        """Take the tools of a run.

        Args:
            tools: What the model may call; of several with one name, the first.
            note: Takes (kind, detail) of each call for the event log; None: nobody does.
            captured: Redacts arguments and results for it; None, or what it returns: they are not kept.
        """
        self._captured = captured
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            self._tools.setdefault(tool.name, tool)
        self._note = note
        self._kept: dict[str, str] = {}
        self._num_kept = 0
        self._slots = asyncio.Semaphore(MAX_PARALLEL)
        self.calls = 0
        """How many calls were made."""

    def __bool__(self) -> bool:
        """Tell whether there is anything to call."""
        return bool(self._tools)

    def specs(self) -> list[dict[str, Any]]:
        """Return what the model is told: `read_result` only once there is something to read."""
        tools = list(self._tools.values())
        if self._kept and READ_RESULT not in self._tools:
            tools.append(_read_result_tool(self._read))
        return [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in tools
        ]

    async def answer(self, calls: Sequence[ToolCall]) -> list[str]:
        """Make calls at the same time, and return what each gave, or what went wrong, as text."""
        self.calls += len(calls)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(self._one(call)) for call in calls]
        return [task.result() for task in running]

    async def _one(self, call: ToolCall) -> str:
        tool = self._tools.get(call.name)
        if tool is None and call.name == READ_RESULT:
            tool = _read_result_tool(self._read)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            return self._told(
                call, 0.0, "UnknownTool", f"Error: there is no tool {call.name[:64]!r}. Tools: {names}."
            )
        arguments = _arguments(call.arguments)
        if arguments is None:
            return self._told(
                call,
                0.0,
                "InvalidArguments",
                "Error: the arguments are not a JSON object. Write them again.",
            )
        async with self._slots:
            now = asyncio.get_running_loop().time
            started = now()
            value, error = await _called(tool, arguments)
            took_s = now() - started
        if error is not None:
            return self._told(call, took_s, error, f"Error: {error}"[:MAX_ERROR_CHARS])
        try:
            text = _as_text(value)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as broken:
            text = f"Error: the result can't be read: {': '.join(safe_error_text(broken))}"[:MAX_ERROR_CHARS]
        return self._told(call, took_s, None, text if tool.name == READ_RESULT else self._bounded(text))

    def _told(self, call: ToolCall, took_s: float, error: str | None, text: str) -> str:
        if self._note is not None:
            name = call.name
            ok = error is None and not text.startswith("Error: ")
            detail: dict[str, Any] = {"tool": name[:64], "ms": round(took_s * 1000), "ok": ok}
            if not ok:
                # Which kind, not the message: it may hold what the tool was given.
                detail["error"] = "ToolError" if error is None else error.partition(":")[0][:80]
            detail |= self._kept_texts(call.arguments, text)
            self._note("tool.called", json.dumps(detail, ensure_ascii=False))
        return text

    def _kept_texts(self, arguments: str, result: str) -> dict[str, str]:
        """Return arguments and result for the event, if they may be kept: redacted first, then cut."""
        kept: dict[str, str] = {}
        for name, text in (("arguments", arguments), ("result", result)):
            shown = None if self._captured is None else self._captured(text)
            if shown is not None:
                kept[name] = _cut(shown)
        return kept

    def _bounded(self, text: str) -> str:
        if len(text) <= INLINE_RESULT_CHARS:
            return text
        self._num_kept += 1
        name, total = f"result-{self._num_kept}", len(text)
        kept = self._kept[name] = text[:MAX_RESULT_CHARS]
        while sum(map(len, self._kept.values())) > MAX_KEPT_CHARS:
            del self._kept[next(iter(self._kept))]
        cut = "" if len(kept) == total else f" (only the first {len(kept)} are kept)"
        return (
            f"{text[:INLINE_RESULT_CHARS]}\n[cut: this is the first {INLINE_RESULT_CHARS} of {total} characters{cut}. "
            f'Read on with {READ_RESULT}(reference="{name}", start={INLINE_RESULT_CHARS}).]'
        )

    def _read(self, arguments: dict[str, Any]) -> str:
        text = self._kept.get(str(arguments.get("reference")))
        if text is None:
            names = ", ".join(self._kept) or "none"
            raise LookupError(f"no result has this reference any more; there are: {names}")
        start = max(0, int(arguments.get("start") or 0))
        part = text[start : start + INLINE_RESULT_CHARS]
        end = start + len(part)
        more = f"\n[to read on: start={end}, of {len(text)} characters]" if end < len(text) else "\n[end]"
        return part + more


def _cut(text: str) -> str:
    """Return what fits beside the rest of an event's detail: one that is cut in the middle would be no JSON."""
    text, length = text.encode("utf-8", "replace").decode(), len(text)  # half a character encodes nowhere
    kept = text[:MAX_NOTED_CHARS]
    while len(json.dumps(kept, ensure_ascii=False)) > MAX_NOTED_CHARS:
        kept = kept[: len(kept) * 3 // 4]
    return kept if len(kept) == length else f"{kept}… [cut]"


async def in_thread(call: Callable[[], Any]) -> Any:
    """Run a sync function in a thread of its own: one that hangs takes no thread from others.

    Raises:
        RuntimeError: Too many threads hang already.
    """
    if not _threads.acquire(blocking=False):
        raise RuntimeError(f"{MAX_THREADS} sync tools run or hang in this process already; try again later")
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(call)
        except BaseException as raised:
            # Neither may end in a future: StopIteration is refused there, SystemExit would stop the loop.
            wrapped = isinstance(raised, (StopIteration, SystemExit, KeyboardInterrupt))
            error = RuntimeError(f"raised {type(raised).__name__}") if wrapped else raised
        finally:
            _threads.release()
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name="flock-tool", daemon=True).start()
    return await done


async def inline(call: Callable[[], Any]) -> Any:
    """Run a sync function on the event loop itself, for tests with virtual time."""
    return call()


async def _called(tool: Tool, arguments: dict[str, Any]) -> tuple[Any, str | None]:
    """Call a tool; returns its value, or what went wrong."""
    task = asyncio.ensure_future(_guarded(tool.call(arguments)))
    try:
        done, _ = await asyncio.wait({task}, timeout=tool.timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        # Not waited for: a tool that swallows its cancellation would hold the run.
        task.cancel()
        return None, f"TimeoutError: no result within {tool.timeout_s:g} s"
    if task.cancelled():
        return None, "CancelledError: the tool was cancelled from inside"
    return task.result()


async def _guarded(call: Awaitable[Any]) -> tuple[Any, str | None]:
    # Errors come back as values: a SystemExit that leaves a task stops the event loop.
    try:
        return await call, None
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except ValidationError as error:
        return None, _invalid(error)
    except BaseException as error:
        return None, ": ".join(safe_error_text(error))


def _invalid(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}" for item in details[:10]]
    return "InvalidArguments: " + "; ".join(parts)


def _arguments(text: str) -> dict[str, Any] | None:
    if not text.strip():
        return {}
    return next((value for value in find_json(text) if isinstance(value, dict)), None)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "done"
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace")
    if inspect.isgenerator(value) or isinstance(value, (Iterator, map, filter)):
        value = list(itertools.islice(value, MAX_ITEMS))
    return dump_json(value, fallback=_fallback, inf_nan_mode="strings").decode()


def _fallback(value: Any) -> str:
    return safe_error_text(value)[1] if isinstance(value, BaseException) else str(value)


def _read_result_tool(read: Callable[[dict[str, Any]], str]) -> Tool:
    async def call(arguments: dict[str, Any]) -> str:
        return read(arguments)

    return Tool(
        READ_RESULT,
        "Read on in the result of an earlier tool call that was cut.",
        {
            "type": "object",
            "properties": {
                "reference": {"type": "string", "description": "As the cut result names it."},
                "start": {"type": "integer", "description": "From which character, from 0."},
            },
            "required": ["reference", "start"],
            "additionalProperties": False,
        },
        partial(call),
    )
