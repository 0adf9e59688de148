"""Keeps outputs within a length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from flock_ray.components.texts import changed, strings
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError, OutputContractError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["OutputLengthComponent"]


class OutputLengthComponent(AgentComponent):
    """Limits the texts in an agent's outputs, in characters: each text, or only those of some top-level fields."""

    fields: tuple[str, ...] = ()
    """Top-level fields that are measured, with everything in them; empty is all. A type without them passes."""
    min_chars: int = Field(default=0, ge=0)
    """A shorter text can't be repaired here: it fails the run unless the action is `warn`."""
    max_chars: int | None = Field(default=None, ge=1)
    """None is no limit."""
    on_violation: Literal["fail", "truncate", "warn"] = "fail"
    """`fail` is an OutputContractError; `truncate` cuts what is too long; `warn` leaves an event."""
    ellipsis: str = "..."
    """Ends a text that was cut, and counts for its length."""

    @model_validator(mode="after")
    def _makes_sense(self) -> OutputLengthComponent:
        if self.max_chars is None and not self.min_chars:
            raise ConfigurationError("OutputLengthComponent does nothing: set max_chars or min_chars.")
        if self.max_chars is not None and self.max_chars < max(self.min_chars, len(self.ellipsis)):
            raise ConfigurationError(
                "OutputLengthComponent: max_chars is less than min_chars or the ellipsis."
            )
        return self

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """Measure the outputs.

        Raises:
            OutputContractError: A text is too long or too short.
        """
        if self.on_violation == "truncate" and self.max_chars is not None:
            cut = [self._cut_down(artifact) for artifact in result.artifacts]
            result = result.model_copy(update={"artifacts": cut})
        for artifact in result.artifacts:
            problem = self._problem(artifact)
            if problem and self.on_violation == "warn":
                if ctx.hooks.note is not None:
                    ctx.hooks.note("output.length", f"{artifact.type}: {problem}")
            elif problem:
                raise OutputContractError(
                    f"Agent {agent.name!r} made a {artifact.type!r} with {problem}. Ask it for another length, "
                    "or change the limit.",
                    agent=agent.name,
                )
        return result

    def _problem(self, artifact: Artifact) -> str:
        lengths = [len(text) for text in strings(self._measured(artifact))]
        if self.max_chars is not None and max(lengths, default=0) > self.max_chars:
            return f"a text of {max(lengths)} characters, more than {self.max_chars}"
        if lengths and min(lengths) < self.min_chars:
            return f"a text of {min(lengths)} characters, less than {self.min_chars}"
        return ""

    def _measured(self, artifact: Artifact) -> dict[str, Any]:
        payload = artifact.payload
        return {name: item for name, item in payload.items() if not self.fields or name in self.fields}

    def _cut_down(self, artifact: Artifact) -> Artifact:
        if not self.fields:
            return changed(artifact, self._cut)
        only = artifact.model_copy(update={"payload": self._measured(artifact)})
        cut = changed(only, self._cut)
        if cut is only:
            return artifact
        return artifact.model_copy(update={"payload": {**artifact.payload, **cut.payload}})

    def _cut(self, text: str) -> str:
        limit = self.max_chars
        if limit is None or len(text) <= limit:
            return text
        return text[: limit - len(self.ellipsis)] + self.ellipsis
