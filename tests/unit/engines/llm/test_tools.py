from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from flock_ray import Context, WorkflowError, flock_tool, flock_type
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.engines.llm.toolbox import INLINE_RESULT_CHARS, MAX_THREADS, Toolbox, in_thread, inline
from flock_ray.engines.outputs import MAX_NOTE_CHARS
from flock_ray.engines.records import RecordingModel
from flock_ray.engines.tools import FunctionTool, Tool
from flock_ray.errors import ConfigurationError
from flock_ray.model import ModelRequest, ToolCall
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


@flock_type(name="llm_tools.Case")
class Case(BaseModel):
    path: str


@flock_type(name="llm_tools.Verdict")
class Verdict(BaseModel):
    text: str


class Box(BaseModel):
    width: int
    tags: set[str] = set()


def find(query: str, limit: int = 5, kind: Literal["a", "b"] = "a") -> list[str]:
    """Find files.

    Looks everywhere.

    Args:
        query: What to look for,
            in any file.
        limit (int): Most results.

    Returns:
        Their names.
    """
    return [f"{query}-{kind}-{i}" for i in range(limit)]


async def measure(box: Box, factor: Annotated[float, Field(gt=0)] = 1.0) -> float:
    """Measure a box."""
    return box.width * factor


def call(name: str, key: str = "c1", **arguments: Any) -> ToolCall:
    return ToolCall(key, name, json.dumps(arguments))


class Run:
    """One run on the detective, and what became of it."""

    def __init__(self, model: ScriptedModel, tools: list[Any], **engine: Any) -> None:
        self.model = model
        self.outputs: list[Any] = []
        self.errors: list[WorkflowError] = []
        run_virtual(self._go(tools, engine))

    async def _go(self, tools: list[Any], engine: dict[str, Any]) -> None:
        async with VirtualFlock(language_model=self.model) as flock:
            agent = flock.agent("detective").consumes(Case).publishes(Verdict).with_tools(tools)
            if engine:
                agent.with_engines(LiteLLMEngine(**engine))
            await flock.publish(Case(path="a.py"), correlation_id="wf")
            await flock.run_until_idle()
            self.outputs = await flock.store.get_by_type(Verdict)
            self.errors = await flock.store.get_by_type(WorkflowError)

    def told(self, request: int = -1) -> list[str]:
        """What tools answered in one request."""
        return [m["content"] for m in self.model.requests[request].messages if m["role"] == "tool"]


# --- what a model is told of a function ---------------------------------------------------------------


def test_a_function_is_described_by_its_hints_and_docstring() -> None:
    tool = FunctionTool(find)

    assert tool.name == "find"
    assert tool.description == "Find files.\n\nLooks everywhere.\n\nReturns: Their names."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for, in any file."},
            "limit": {"type": "integer", "default": 5, "description": "Most results."},
            "kind": {"type": "string", "enum": ["a", "b"], "default": "a"},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_a_tool_may_have_another_name_and_a_timeout_of_its_own() -> None:
    @flock_tool(name="a_name_of_this_test", timeout=timedelta(seconds=3))
    def anything() -> str:
        return ""

    tool = FunctionTool(anything)

    assert (tool.name, tool.timeout_s) == ("a_name_of_this_test", 3.0)


def test_parameters_may_have_names_that_pydantic_keeps_for_itself() -> None:
    def odd(model_config: int, copy: str, _private: int = 1) -> None: ...

    assert list(FunctionTool(odd).parameters["properties"]) == ["model_config", "copy", "_private"]


def _lambda_like(*args: int) -> None: ...
def _keywords(**kwargs: int) -> None: ...
def _not_json(thing: Callable[[], int]) -> None: ...
def _unknown(thing: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x, "is no name for a tool"),
        (_lambda_like, "can't fill"),
        (_keywords, "can't fill"),
        (_not_json, "JSON"),
        (_unknown, "type hints can't be read"),
    ],
)
def test_what_a_model_can_not_call_is_refused_at_deploy(function: Any, said: str) -> None:
    async def scenario() -> None:
        async with VirtualFlock(language_model=ScriptedModel()) as flock:
            flock.agent("a").consumes(Case).publishes(Verdict).with_tools([function])
            with pytest.raises(ConfigurationError, match=said):
                await flock.publish(Case(path="x"))

    run_virtual(scenario())


def test_two_tools_of_one_name_are_refused() -> None:
    def other(name: str) -> Callable[..., Any]:
        def find() -> str:
            return name

        return find

    with pytest.raises(ConfigurationError, match="two tools named 'find'"):
        LiteLLMEngine()._function_tools(_agent([other("a"), other("b")]))


def _agent(tools: list[Any]) -> Any:
    from flock_ray.core.definition import AgentDefinition

    return AgentDefinition("a", tools=tools)


# --- calls --------------------------------------------------------------------------------------------


def test_tools_are_called_with_checked_arguments_and_their_results_told() -> None:
    model = ScriptedModel(
        [
            [call("find", "c1", query="x", limit=2), call("measure", "c2", box={"width": "3"}, factor=2)],
            {"text": "ok"},
        ]
    )

    run = Run(model, [find, measure])

    assert run.outputs == [Verdict(text="ok")]
    assert run.told() == ['["x-a-0","x-a-1"]', "6.0"]
    assert model.requests[1].messages[-3]["tool_calls"][1]["id"] == "c2"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            call("find", limit="many"),
            "InvalidArguments: query: Field required; limit: Input should be a valid integer",
        ),
        (call("find", query="x", colour="red"), "colour: Extra inputs are not permitted"),
        (ToolCall("c1", "find", "{not json"), "the arguments are not a JSON object"),
        (ToolCall("c1", "find", "[1]"), "the arguments are not a JSON object"),
        (call("fnd", query="x"), "there is no tool 'fnd'. Tools: find."),
    ],
)
def test_wrong_calls_are_answered_with_what_is_wrong(asked: ToolCall, said: str) -> None:
    run = Run(ScriptedModel([asked, {"text": "ok"}]), [find])

    assert run.outputs == [Verdict(text="ok")]
    assert said in run.told()[0]
    json.loads(run.model.requests[1].messages[-2]["tool_calls"][0]["function"]["arguments"])


def broken(kind: str) -> str:
    """Go wrong."""
    if kind == "exit":
        raise SystemExit(3)
    if kind == "stop":
        raise StopIteration
    if kind == "cancel":
        raise asyncio.CancelledError
    raise ValueError("the file is gone")


async def broken_async(kind: str) -> str:
    """Go wrong, too."""
    return broken(kind)


@pytest.mark.parametrize("tool", [broken, broken_async])
@pytest.mark.parametrize("kind", ["error", "exit", "stop", "cancel"])
def test_a_tool_that_fails_fails_the_call_and_not_the_agent(tool: Any, kind: str) -> None:
    run = Run(ScriptedModel([call(tool.__name__, kind=kind), {"text": "ok"}]), [tool])

    assert run.outputs == [Verdict(text="ok")]
    assert run.told()[0].startswith("Error: ")
    assert "Traceback" not in run.told()[0]


def test_a_tool_that_hangs_is_given_up_after_its_timeout() -> None:
    async def hang() -> str:
        """Never come back."""
        while True:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                continue  # the worst kind

    @flock_tool(name="hang_briefly", timeout=timedelta(seconds=2))
    async def hang_briefly() -> str:
        await asyncio.sleep(1e6)
        return ""

    async def scenario() -> list[str]:
        tools = [FunctionTool(f).bind(Any, in_thread, 5.0) for f in (hang_briefly,)]  # type: ignore[arg-type]
        return await Toolbox(tools, note=None).answer([call("hang_briefly")])

    assert run_virtual(scenario()) == ["Error: TimeoutError: no result within 2 s"]
    assert FunctionTool(hang).bind(Any, in_thread, 5.0).timeout_s == 5.0  # type: ignore[arg-type]


def test_calls_of_one_answer_run_at_the_same_time() -> None:
    together = []

    async def slow(number: int) -> int:
        """Take a while."""
        together.append(number)
        await asyncio.sleep(10)
        assert len(together) == 3
        return number

    run = Run(ScriptedModel([[call("slow", f"c{i}", number=i) for i in range(3)], {"text": "ok"}]), [slow])

    assert run.told() == ["0", "1", "2"]


def test_behind_the_limit_of_calls_the_model_has_to_answer() -> None:
    def answer(request: ModelRequest) -> Any:
        return (
            {"text": "enough"}
            if request.tool_choice == "none"
            else [call("find", "x", query="q", limit=0)] * 2
        )

    run = Run(ScriptedModel(answer), [find], max_tool_calls=5)

    assert run.outputs == [Verdict(text="enough")]
    assert run.told()[-1] == "Error: the limit of 5 calls is reached. Answer with what you know."
    assert len(run.told()) == 6


def test_a_model_that_never_stops_calling_ends_as_a_typed_failure() -> None:
    run = Run(
        ScriptedModel(lambda request: [call("find", query="q")]), [find], max_tool_calls=3, max_repairs=1
    )

    assert [error.error_type for error in run.errors] == ["ModelAnswerError"]
    assert len(run.model.requests) < 10


def test_repeated_and_missing_ids_are_told_apart() -> None:
    model = ScriptedModel(
        [
            [call("find", "", query="a"), call("find", "x", query="b"), call("find", "x", query="c")],
            {"text": "ok"},
        ]
    )

    run = Run(model, [find])

    ids = [m["tool_call_id"] for m in run.model.requests[1].messages if m["role"] == "tool"]
    assert len(set(ids)) == 3
    assert "" not in ids


def test_a_tool_may_have_the_runs_context() -> None:
    seen = []

    async def who(ctx: Context, person: str) -> str:
        """Tell."""
        await ctx.heartbeat()
        seen.append(ctx.correlation_id)
        return person

    run = Run(ScriptedModel([call("who", person="n"), {"text": "ok"}]), [who])

    assert (run.told(), seen) == (["n"], ["wf"])
    assert list(run.model.requests[0].tools[0]["function"]["parameters"]["properties"]) == ["person"]


def test_positional_only_parameters_and_partials_work() -> None:
    def add(a: int, b: int, /, c: int = 0) -> int:
        """Add."""
        return a + b + c

    run = Run(ScriptedModel([[call("add", a=1, b=2, c=3)], {"text": "ok"}]), [partial(add, c=10)])

    assert run.told() == ["6"]


def test_tool_objects_are_tools_as_they_are() -> None:
    async def run_it(arguments: dict[str, Any]) -> Any:
        return arguments

    tool = Tool("echo", "Echo.", {"type": "object", "properties": {}}, run_it)

    assert Run(ScriptedModel([call("echo", a=1), {"text": "ok"}]), [tool]).told() == ['{"a":1}']


def gen() -> Iterator[int]:
    """Count without end."""
    number = 0
    while True:
        yield number
        number += 1


def test_a_result_without_end_is_bounded() -> None:
    run = Run(ScriptedModel([call("gen"), {"text": "ok"}]), [gen])

    assert len(run.told()[0]) < INLINE_RESULT_CHARS + 300


def test_a_long_result_is_cut_and_can_be_read_on() -> None:
    text = "".join(f"{number:06d}," for number in range(10_000))

    def dump() -> str:
        """Dump."""
        return text

    def answer(request: ModelRequest) -> Any:
        told = [m["content"] for m in request.messages if m["role"] == "tool"]
        if not told:
            return call("dump")
        if "start=" in told[-1]:
            start = int(told[-1].rpartition("start=")[2].partition(")")[0].partition(",")[0].rstrip("]."))
            return call("read_result", reference="result-1", start=start)
        return {"text": "read"}

    run = Run(ScriptedModel(answer), [dump])

    told = run.told()
    parts = [part.rpartition("\n[")[0] for part in told]
    assert "".join(parts) == text
    assert [t["function"]["name"] for t in run.model.requests[0].tools] == ["dump"]
    assert [t["function"]["name"] for t in run.model.requests[1].tools] == ["dump", "read_result"]


# --- threads ------------------------------------------------------------------------------------------


async def test_a_sync_tool_does_not_block_the_event_loop() -> None:
    free = threading.Event()
    tool = FunctionTool(_waiter(free)).bind(None, in_thread, 30.0)  # type: ignore[arg-type]
    running = asyncio.ensure_future(Toolbox([tool], note=None).answer([call("wait")]))
    await asyncio.sleep(0)

    free.set()

    assert await running == ["done waiting"]


def _waiter(free: threading.Event) -> Callable[[], str]:
    def wait() -> str:
        """Wait."""
        free.wait(20)
        return "done waiting"

    return wait


async def test_sync_tools_that_hang_take_no_thread_from_others_until_there_are_far_too_many() -> None:
    free = threading.Event()
    hanging = [asyncio.ensure_future(in_thread(_waiter(free))) for _ in range(MAX_THREADS)]
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="try again later"):
        await in_thread(lambda: 1)
    free.set()
    await asyncio.gather(*hanging)

    assert await in_thread(lambda: 1) == 1


def noted(
    captured: Callable[[str], str | None] | None, *calls: ToolCall, answers: str = ""
) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []

    def tell(password: str = "") -> str:
        """Tell."""
        return answers

    def note(kind: str, detail: str) -> None:
        assert kind == "tool.called" and len(detail) <= MAX_NOTE_CHARS
        notes.append(json.loads(detail))

    tool = FunctionTool(tell).bind(None, inline, None)  # type: ignore[arg-type]  # it asks nothing of its run
    run_virtual(Toolbox([tool], note=note, captured=captured).answer(calls))
    return notes


def test_what_tools_get_and_give_is_kept_only_when_texts_are() -> None:
    def model(capture: Any) -> RecordingModel:
        return RecordingModel(ScriptedModel(), now_us=lambda: 0, capture=capture, redact=[r"\d{4}"])

    told = call("tell", password="hunter2hunter2")
    for captured in (None, model("none").captured):
        (plain,) = noted(captured, told, answers="pin 1234")
        assert set(plain) == {"tool", "ms", "ok"}

    (full,) = noted(model("full").captured, told, answers="pin 1234")
    assert full["result"] == "pin [redacted]"
    assert "hunter2" not in full["arguments"] and json.loads(full["arguments"]) == {"password": "[redacted]"}

    (unknown,) = noted(model("full").captured, call("nobody", password="hunter2hunter2"))
    assert not unknown["ok"] and "hunter2" not in json.dumps(unknown)


@pytest.mark.parametrize("text", ["x" * 5000, '"' * 5000, "\x00\ud800" * 3000, "ä" * 5000])
def test_what_is_kept_of_a_tool_call_leaves_its_event_readable(text: str) -> None:
    (event,) = noted(lambda shown: shown, call("tell", password=text), answers=text)
    assert event["result"].endswith("… [cut]") and event["arguments"].endswith("… [cut]")
