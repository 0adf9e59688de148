"""One conversation with a model: tools until it answers, repairs until the answer fits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from flock_ray.engines.llm.answer import Checked, Target, merge, read, repair_schema, repair_targets
from flock_ray.engines.llm.prompt import echoed, repair_message
from flock_ray.engines.llm.schema import AnswerShape, Schema, strict_schema
from flock_ray.errors import ModelAnswerError, ModelError, ModelRefusedError, ModelRequestError
from flock_ray.model import Model, ModelReply, ModelRequest, ToolCall

if TYPE_CHECKING:
    from flock_ray.engines.context import Context
    from flock_ray.engines.llm.toolbox import Toolbox

__all__ = ["Conversation"]

MAX_SHOWN_PROBLEMS = 5
MAX_REFUSAL_CHARS = 200
MAX_REMEMBERED = 1000

_STEPS = {"json_schema": "json_object", "json_object": "prompt"}
_FORMAT_WORDS = re.compile(r"response_format|json_schema|json_object|structured output|schema", re.IGNORECASE)
_takes: dict[tuple[str, str], str] = {}
"""By model and agent: what a provider takes that has refused more; it may be the agent's own schema."""


class Conversation:
    """The messages so far, and what is still asked for."""

    def __init__(
        self,
        model: Model,
        request: ModelRequest,
        shape: AnswerShape,
        *,
        toolbox: Toolbox,
        ctx: Context,
        adapter: str,
        may_step_down: bool,
        max_tool_calls: int,
        max_repairs: int,
        streams: bool | None,
        num_media: int = 0,
    ) -> None:
        """Begin with a request that has the first messages.

        Args:
            model: Answers.
            request: What every call has in common.
            shape: How the answer has to look.
            toolbox: What the model may call.
            ctx: The run.
            adapter: How JSON is asked for.
            may_step_down: Whether to ask in a simpler way when the provider refuses this one.
            max_tool_calls: See the engine.
            max_repairs: See the engine.
            streams: Whether pieces of the answer are handed on as they come; None: when somebody listens.
            num_media: How many images and files the messages hold.
        """
        self._model = model
        self._request = request
        self._messages: list[dict[str, Any]] = list(request.messages)
        self._shape = shape
        self._toolbox = toolbox
        self._ctx = ctx
        self._adapter = adapter
        if may_step_down and adapter != "prompt":
            self._adapter = _takes.get((request.model, request.caller.agent), adapter)
        self._may_step_down = may_step_down
        self._max_tool_calls = max_tool_calls
        self._max_repairs = max_repairs
        self._streams = streams
        self._num_media = num_media
        self._may_call = bool(toolbox) and max_tool_calls > 0

    async def run(self) -> list[BaseModel]:
        """Return the outputs in declared order.

        Raises:
            ModelRefusedError: The model or its provider's filter declines.
            ModelAnswerError: The answer does not fit after all repairs.
            ModelError: The provider failed.
        """
        reply = await self._ask(self._shape.schema)
        if not self._shape.slots:
            self._stream("final", reply.text)
            return []
        checked, targets = read(self._shape, reply.text), list[Target]()
        for number in range(1, self._max_repairs + 1):
            if not checked.problems:
                break
            targets = repair_targets(self._shape, checked)
            schema = repair_schema(self._shape, targets) if targets else self._shape.schema
            self._note_repair(number, checked, targets)
            was_cut = reply.finish_reason == "length"
            self._messages += [
                echoed(reply.text),
                repair_message(self._shape, checked.problems, targets, schema, was_cut=was_cut),
            ]
            # It knows enough: what is wrong is how it says it.
            self._may_call = False
            self._stream("status", "repairing")
            reply = await self._ask(schema)
            checked = (
                merge(self._shape, checked, targets, reply.text) if targets else read(self._shape, reply.text)
            )
        if checked.problems:
            raise self._does_not_fit(checked, reply)
        for line in checked.dropped:
            self._note("output.capped", line)
        self._stream("final", reply.text)
        return checked.models

    async def _ask(self, schema: Schema) -> ModelReply:
        """Ask, answering the calls of tools, until the model says something else."""
        while True:
            reply = await self._complete(schema)
            await self._ctx.heartbeat()
            if reply.refusal or reply.finish_reason == "content_filter":
                raise self._refused(reply)
            if not reply.tool_calls or not self._may_call:
                return reply
            await self._call_tools(reply)
            await self._ctx.heartbeat()

    async def _complete(self, schema: Schema) -> ModelReply:
        while True:
            request = self._next_request(schema)
            # For each call anew: a long run may get its first listener on the way.
            on_text = self._on_text if self._is_heard() else None
            try:
                reply = await self._model.complete(request, on_text)
                self._note_call(reply)
                if on_text is None and reply.text:
                    self._stream("token", reply.text)  # in one piece, for who comes later
                return reply
            except ModelRequestError as error:
                if not self._steps_down(error):
                    raise self._explained(error) from error.__cause__
            except ModelError as error:
                error.agent = error.agent or self._request.caller.agent
                raise

    def _next_request(self, schema: Schema) -> ModelRequest:
        tools = self._toolbox.specs() if self._toolbox else []
        return msgspec.structs.replace(
            self._request,
            messages=list(self._messages),
            tools=tools,
            tool_choice="none" if tools and not self._may_call else None,
            response_format=self._response_format(schema),
        )

    def _response_format(self, schema: Schema) -> dict[str, Any] | None:
        if not self._shape.slots or self._adapter == "prompt":
            return None
        if self._adapter == "json_object":
            return {"type": "json_object"}
        strict = self._shape.strict if schema is self._shape.schema else strict_schema(schema)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self._request.caller.agent)[:64] or "answer"
        return {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": strict or schema, "strict": strict is not None},
        }

    def _steps_down(self, error: ModelRequestError) -> bool:
        """Ask in a simpler way from now on, if it is the way of asking that was refused."""
        lower = _STEPS.get(self._adapter)
        # Only this class: what is too long, or not on a cassette, is so in any form.
        if not self._may_step_down or lower is None or type(error) is not ModelRequestError:
            return False
        if not _FORMAT_WORDS.search(str(error)):
            return False
        self._adapter = lower
        if len(_takes) < MAX_REMEMBERED:
            _takes[self._request.model, self._request.caller.agent] = lower
        self._note("model.adapter", f"{self._request.model} is asked by {lower}: it refuses more")
        return True

    async def _call_tools(self, reply: ModelReply) -> None:
        left = self._max_tool_calls - self._toolbox.calls
        calls, over = _named(reply.tool_calls, self._toolbox.calls), list[ToolCall]()
        calls, over = calls[:left], calls[left:]
        self._stream("status", "calling " + ", ".join(call.name for call in calls))
        self._messages.append(_assistant(reply.text, [*calls, *over]))
        results = await self._toolbox.answer(calls)
        limit = f"Error: the limit of {self._max_tool_calls} calls is reached. Answer with what you know."
        for call, text in zip([*calls, *over], [*results, *[limit] * len(over)], strict=True):
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
        if self._toolbox.calls >= self._max_tool_calls:
            self._may_call = False
            self._note("tool.limit", f"{self._max_tool_calls} calls of tools; the model has to answer now")

    def _is_heard(self) -> bool:
        """Tell whether the answer is to come in pieces: that costs several times the CPU of a whole one."""
        hooks = self._ctx.hooks
        if self._streams is False or hooks.stream is None:
            return False
        return self._streams is True or hooks.listened is None or hooks.listened()

    def _on_text(self, piece: str) -> None:
        # An empty piece says that the text begins again, after a try that failed.
        if piece:
            self._stream("token", piece)
        else:
            self._stream("status", "restarted")

    def _stream(self, kind: str, text: str) -> None:
        sink: Callable[[str, str], None] | None = self._ctx.hooks.stream
        if sink is not None and self._streams is not False:
            sink(kind, text)

    def _note(self, kind: str, detail: str) -> None:
        if self._ctx.hooks.note is not None:
            self._ctx.hooks.note(kind, detail)

    def _note_call(self, reply: ModelReply) -> None:
        detail = {
            "model": reply.model or self._request.model,
            "prompt": reply.request_hash,
            "in": reply.usage.input_tokens,
            "out": reply.usage.output_tokens,
            "ms": round(reply.latency_s * 1000),
            "finish": reply.finish_reason,
            "source": reply.source,
        }
        if detail["model"] != self._request.model:
            detail["asked"] = self._request.model
        self._note("model.called", json.dumps(detail))

    def _note_repair(self, number: int, checked: Checked, targets: Sequence[Target]) -> None:
        detail: dict[str, Any] = {
            "repair": number,
            "problems": [problem.text[:200] for problem in checked.problems[:MAX_SHOWN_PROBLEMS]],
        }
        if targets:
            detail["parts"] = [target.name for target in targets]
        self._note("model.repair", json.dumps(detail, ensure_ascii=False))

    def _does_not_fit(self, checked: Checked, reply: ModelReply) -> ModelAnswerError:
        shown = [problem.text for problem in checked.problems[:MAX_SHOWN_PROBLEMS]]
        more = len(checked.problems) - len(shown)
        shown += [f"{more} more"] if more > 0 else []
        cut = " It was cut off at max_tokens." if reply.finish_reason == "length" else ""
        agent = self._request.caller.agent
        return ModelAnswerError(
            f"The answer of {reply.model or self._request.model} does not fit what agent {agent!r} publishes, after "
            f"{self._max_repairs} repairs: {'; '.join(shown)}.{cut} Describe the fields, make the types simpler, "
            "or raise max_repairs.",
            agent=agent,
        )

    def _refused(self, reply: ModelReply) -> ModelRefusedError:
        agent = self._request.caller.agent
        who = reply.model or self._request.model
        said = reply.refusal[:MAX_REFUSAL_CHARS].strip()
        what = (
            f"declined to answer: {said!r}" if said else "was cut off by the content filter of its provider"
        )
        return ModelRefusedError(
            f"{who}, asked by agent {agent!r}, {what}. Change the agent's description or its input.",
            agent=agent,
        )

    def _explained(self, error: ModelRequestError) -> ModelRequestError:
        error.agent = error.agent or self._request.caller.agent
        if self._num_media and type(error) is ModelRequestError:
            number = f"{self._num_media} images or files" if self._num_media > 1 else "an image or file"
            return ModelRequestError(
                f"{error} The request holds {number}: if {self._request.model} does not take them, name a model that "
                "does, or leave the field out of the input.",
                agent=error.agent,
            )
        return error


def _named(calls: Sequence[ToolCall], before: int) -> list[ToolCall]:
    """Give calls ids of their own: some models leave them out or repeat them."""
    seen: set[str] = set()
    named: list[ToolCall] = []
    for number, call in enumerate(calls, before + 1):
        key = call.id if call.id and call.id not in seen else f"call_{number}"
        seen.add(key)
        named.append(ToolCall(key, call.name, call.arguments))
    return named


def _assistant(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _valid(call.arguments)},
            }
            for call in calls
        ],
    }


def _valid(arguments: str) -> str:
    """Return arguments as a JSON object: providers refuse a message that holds anything else."""
    try:
        return arguments if isinstance(json.loads(arguments), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"
