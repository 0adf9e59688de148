"""A board with one agent, for tests of what surrounds it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from flock_ray.artifact import Artifact
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.events import Event
from flock_ray.core.visibility import AgentIdentity
from flock_ray.engines.component import EngineComponent, EvalInputs
from flock_ray.engines.context import Context, RunHooks
from flock_ray.testing import VirtualFlock, run_virtual


class Ask(BaseModel):
    text: str = ""
    notes: dict[str, str] = Field(default_factory=dict)


class Answer(BaseModel):
    text: str = ""
    extra: list[str] = Field(default_factory=list)


class Replies(EngineComponent):
    """Answers with what a function makes of the inputs; keeps what it saw."""

    reply: Any = None
    takes_s: float = 0.0
    _seen: list[EvalInputs] = PrivateAttr(default_factory=list)

    @property
    def seen(self) -> list[EvalInputs]:
        return self._seen

    async def evaluate(self, agent: Any, ctx: Any, inputs: EvalInputs, output_group: Any) -> Any:
        self._seen.append(inputs)
        await asyncio.sleep(self.takes_s)
        if self.reply is None:
            return Answer(text="re: " + str(inputs.artifacts[0].payload.get("text", "")))
        return self.reply(inputs)


def artifact(model: BaseModel) -> Artifact:
    return Artifact.from_model(model)


def context(
    notes: list[tuple[str, str]] | None = None, *, attempt: int = 1, artifacts: Any = (), **fields: Any
) -> Context:
    """A run outside of any runner, whose notes go to a list."""
    kept: list[tuple[str, str]] = [] if notes is None else notes

    def note(kind: str, detail: str) -> None:
        kept.append((kind, detail))

    run = uuid.uuid4()
    return Context(
        agent_identity=AgentIdentity(name="a"), correlation_id="w", task_id=run.hex, activation_id=run,
        attempt=attempt, artifacts=list(artifacts), hooks=RunHooks(note=note), **fields,
    )  # fmt: skip


AGENT = AgentDefinition("a")


def run_one(
    *utilities: Any, ask: BaseModel | None = None, engine: Replies | None = None, times: int = 1
) -> tuple[list[str], list[Event]]:
    """Ask agent "a" with these utilities; returns the texts of its answers and all events."""

    async def scenario() -> tuple[list[str], list[Event]]:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(engine or Replies())
            if utilities:
                agent.with_utilities(*utilities)
            for _ in range(times):
                await flock.publish(ask or Ask(text="hello"))
                await flock.run_until_idle()
            return [answer.text for answer in await flock.store.get_by_type(Answer)], await events(flock)

    return run_virtual(scenario())


async def events(flock: VirtualFlock) -> list[Event]:
    """Everything that the board's log has."""
    assert flock.local is not None
    shard = flock.local.shards[0]
    assert shard is not None
    found, _ = shard.core.events.read(0, 10_000)
    return found


def kinds(log: list[Event]) -> list[str]:
    return [event.kind for event in log]


def detail(log: list[Event], kind: str) -> str:
    [found] = [event.detail for event in log if event.kind == kind]
    return found
