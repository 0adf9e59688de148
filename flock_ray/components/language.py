"""Checks which language inputs or outputs are written in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from flock_ray.components.languages import LANGUAGES, detect_language
from flock_ray.components.texts import strings
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError, OutputContractError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["LanguageComponent"]

MAX_CHARS = 20_000
"""Most of an artifact's text that is looked at."""


class LanguageComponent(AgentComponent):
    """Lets texts pass only in some languages.

    Its own detector goes by script and by frequent words. It is meant for sentences: it knows the languages of
    `LANGUAGES`, says nothing about short or mixed texts, and can be wrong about close relatives. Where that is not
    enough give it a `detect` of your own, such as a function around a language model or a library.
    """

    allowed: set[str]
    """ISO 639-1 codes, such as {"en", "de"}."""
    detect: Callable[[str], Any] | None = None
    """Returns the code of a text's language, or None when it can't tell; sync or async. None: the built-in one."""
    fields: tuple[str, ...] = ()
    """Top-level fields that are looked at; empty is all."""
    min_chars: int = Field(default=40, ge=1)
    """Shorter texts are let pass: there is nothing to go by."""
    check_inputs: bool = False
    check_outputs: bool = True
    on_violation: Literal["fail", "warn"] = "fail"
    """`fail` is an OutputContractError; `warn` leaves an event `language.mismatch`."""
    on_unknown: Literal["allow", "fail"] = "allow"
    """What follows when the detector can't tell."""

    @model_validator(mode="after")
    def _makes_sense(self) -> LanguageComponent:
        if not self.allowed:
            raise ConfigurationError("LanguageComponent allows no language: allowed={'en'}.")
        unknown = sorted(self.allowed - LANGUAGES)
        if self.detect is None and unknown:
            raise ConfigurationError(
                f"LanguageComponent's own detector does not know {unknown}, only {sorted(LANGUAGES)}: give it detect=."
            )
        if not (self.check_inputs or self.check_outputs):
            raise ConfigurationError("LanguageComponent does nothing: set check_inputs or check_outputs.")
        return self

    async def on_pre_evaluate(self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs) -> EvalInputs:
        """Look at the inputs, if it should."""
        if self.check_inputs:
            await self._check(agent, ctx, "input", inputs.artifacts)
        return inputs

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """Look at the outputs, if it should."""
        if self.check_outputs:
            await self._check(agent, ctx, "output", result.artifacts)
        return result

    async def _check(
        self, agent: AgentDefinition, ctx: Context, stage: str, artifacts: list[Artifact]
    ) -> None:
        for artifact in artifacts:
            text = "\n".join(strings(self._looked_at(artifact)))[:MAX_CHARS]
            if len(text) < self.min_chars:
                continue
            found = (self.detect or detect_language)(text)
            found = await found if inspect.isawaitable(found) else found
            if found in self.allowed or (found is None and self.on_unknown == "allow"):
                continue
            problem = f"the {stage} {artifact.type!r} is in {found or 'an unknown language'}"
            if self.on_violation == "warn":
                if ctx.hooks.note is not None:
                    ctx.hooks.note("language.mismatch", problem)
                continue
            raise OutputContractError(
                f"Agent {agent.name!r}: {problem}, allowed are {', '.join(sorted(self.allowed))}. "
                "Ask for one of them, or allow it.",
                agent=agent.name,
            )

    def _looked_at(self, artifact: Artifact) -> dict[str, Any]:
        payload = artifact.payload
        return {name: item for name, item in payload.items() if not self.fields or name in self.fields}
