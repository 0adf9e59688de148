"""Guards: components that look at what goes into and comes out of a run, and may stop it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, Field, field_validator

from flock_ray.components.texts import text_of
from flock_ray.engines.component import AgentComponent, AgentComponentConfig, EvalInputs, EvalResult
from flock_ray.errors import FlockError, GuardBlockedError, GuardUnavailableError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["GuardAction", "GuardComponent", "GuardComponentConfig", "GuardVerdict"]

GuardAction = Literal["block", "warn", "annotate"]

MAX_REASON_CHARS = 300

FLAGGED = "guard.flagged"
FAILED = "guard.failed"


class GuardVerdict(BaseModel):
    """What a guard thinks of a text."""

    safe: bool
    reason: str | None = None
    """One sentence for events and errors; it must not quote the text. None: the guard gives none."""
    details: dict[str, Any] = Field(default_factory=dict)
    """More about it; goes to the state of the run with `annotate`, never to events or errors."""
    provider: str | None = None
    """Who looked; None is the name of the component."""


class GuardComponentConfig(AgentComponentConfig):
    """What a guard looks at, and what follows."""

    on_input_flagged: GuardAction = "block"
    """`block` fails the run, `warn` leaves an event, `annotate` also puts the verdict into the state as `guard`."""
    on_output_flagged: GuardAction = "warn"
    scan_input: bool = True
    scan_output: bool = False
    scan_context_artifacts: bool = True
    """Whether the input's scan also gets the artifacts of the context, as documents."""
    on_error: Literal["block", "allow"] = "block"
    """What follows when the guard itself fails: no run without a verdict, or an event and a run without one."""


class GuardComponent(AgentComponent):
    """Looks at inputs before the engines get them, and at outputs before they are published.

    Subclass it and write `scan_input` and `scan_output`, async or not. Its default priority is behind other
    components, so that it sees what the engine gets and what will be published; keep it the last one.
    """

    config: AgentComponentConfig = Field(default_factory=GuardComponentConfig)
    priority: int = 1000

    @field_validator("config")
    @classmethod
    def _of_a_guard(cls, config: AgentComponentConfig) -> AgentComponentConfig:
        if isinstance(config, GuardComponentConfig):
            return config
        return GuardComponentConfig(**config.model_dump())

    @property
    def holds_back_outputs(self) -> bool:
        """Whether nothing may be streamed before it has looked."""
        return self.settings.scan_output and self.settings.on_output_flagged == "block"

    @property
    def settings(self) -> GuardComponentConfig:
        """The config, as what it is."""
        return cast("GuardComponentConfig", self.config)

    async def scan_input(self, text: str, documents: list[str]) -> GuardVerdict:
        """Look at the inputs of a run.

        Args:
            text: The payloads of all inputs, a line `key: value` for each value.
            documents: The artifacts of the context, in the same form.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method: async def scan_input(...)")

    async def scan_output(self, text: str) -> GuardVerdict:
        """Look at the outputs of one output group, in the form of `scan_input`."""
        raise NotImplementedError(f"{type(self).__name__} needs a method: async def scan_output(...)")

    async def on_pre_evaluate(self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs) -> EvalInputs:
        """Look at the inputs, if the config says so."""
        settings = self.settings
        if not settings.scan_input:
            return inputs

        async def scan() -> GuardVerdict:
            shown = ctx.artifacts if settings.scan_context_artifacts else []
            return await _verdict(self.scan_input(_text(inputs.artifacts), [text_of(one) for one in shown]))

        verdict = await self._scanned(ctx, "input", scan())
        if verdict is None or verdict.safe:
            return inputs
        self._act(agent, ctx, "input", settings.on_input_flagged, verdict)
        if settings.on_input_flagged == "annotate":
            state = self._annotated(inputs.state, "input", verdict)
            return inputs.model_copy(update={"state": state})
        return inputs

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """Look at the outputs, if the config says so."""
        settings = self.settings
        if not settings.scan_output or not result.artifacts:
            return result

        async def scan() -> GuardVerdict:
            return await _verdict(self.scan_output(_text(result.artifacts)))

        verdict = await self._scanned(ctx, "output", scan())
        if verdict is None or verdict.safe:
            return result
        self._act(agent, ctx, "output", settings.on_output_flagged, verdict)
        if settings.on_output_flagged == "annotate":
            state = self._annotated(result.state, "output", verdict)
            return result.model_copy(update={"state": state})
        return result

    async def _scanned(self, ctx: Context, stage: str, scan: Awaitable[GuardVerdict]) -> GuardVerdict | None:
        """Return the verdict; None when there is none and the config lets the run go on without."""
        try:
            return await scan
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            kind, text = safe_error_text(error)
            allowed = self.settings.on_error == "allow"
            told = {"guard": self._label(), "stage": stage, "action": "allow" if allowed else "block"}
            _note(ctx, FAILED, {**told, "error": kind})
            if allowed:
                return None
            retryable = isinstance(error, (ConnectionError, TimeoutError))
            if error.retryable if isinstance(error, FlockError) else retryable:
                raise GuardUnavailableError(
                    f"Guard {self._label()!r} could not scan the {stage}: {kind}: {text} Run it again later, "
                    'or set on_error="allow" in its config to go on without a verdict.'
                ) from error
            raise GuardBlockedError(
                f"Guard {self._label()!r} failed on the {stage}, so the run was blocked: {kind}: {text} "
                "Correct the guard."
            ) from error

    def _act(
        self, agent: AgentDefinition, ctx: Context, stage: str, action: GuardAction, verdict: GuardVerdict
    ) -> None:
        reason = (verdict.reason or "no reason given")[:MAX_REASON_CHARS]
        told = {"guard": self._label(), "stage": stage, "action": action, "reason": reason}
        _note(ctx, FLAGGED, {**told, "provider": verdict.provider or self._label()})
        if action == "block":
            raise GuardBlockedError(
                f"Guard {self._label()!r} blocked the {stage} of agent {agent.name!r}: {reason}. "
                "Change the content, or what the guard does about it.",
                agent=agent.name,
            )

    def _annotated(self, state: dict[str, Any], stage: str, verdict: GuardVerdict) -> dict[str, Any]:
        entry = {"guard": self._label(), "stage": stage, **verdict.model_dump(mode="json")}
        return {**state, "guard": [*state.get("guard", []), entry]}

    def _label(self) -> str:
        return self.name or type(self).__name__


def _text(artifacts: list[Artifact]) -> str:
    return "\n".join(text_of(artifact) for artifact in artifacts)


def _note(ctx: Context, kind: str, told: dict[str, str]) -> None:
    if ctx.hooks.note is not None:
        ctx.hooks.note(kind, json.dumps(told, ensure_ascii=False))


async def _verdict(value: Any) -> GuardVerdict:
    """Return what a scan answered; anything but a verdict is a mistake of the guard, not a yes."""
    if inspect.isawaitable(value):
        value = await value
    if not isinstance(value, GuardVerdict):
        raise TypeError(f"a scan has to return a GuardVerdict, not a {type(value).__name__}.")
    return value
