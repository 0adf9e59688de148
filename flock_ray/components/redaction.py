"""Takes personal data and secrets out of texts, before an engine sees them or before they are published."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from flock_ray.components.patterns import BUILT_IN, Pattern, custom, replaced
from flock_ray.components.texts import changed
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["DEFAULT_KINDS", "RedactionComponent"]

DEFAULT_KINDS = tuple(BUILT_IN)
"""private_key, jwt, bearer, api_key, assigned_secret, email, credit_card and phone."""


class RedactionComponent(AgentComponent):
    """Replaces what its patterns find in the texts of inputs, of outputs, or of both.

    With `inputs` an engine gets redacted copies; the artifacts on the board stay as they are. The context of the
    run is redacted, too. With `outputs` the board never gets the original. Patterns are no proof: a name, an
    address in words, a number that is no text are not found. Only text is replaced, so a field that has to hold an
    e-mail address refuses its replacement and the run fails: nothing passes by accident.

    Each run with a finding leaves an event `redaction.applied` with the counts, never the text.
    """

    priority: int = -100
    kinds: tuple[str, ...] = DEFAULT_KINDS
    """Which of the built-in patterns."""
    custom: dict[str, str] = Field(default_factory=dict)
    """More of them: regular expressions by name, applied first. Nested repetitions are refused; other slow ones
    are for their author to avoid."""
    inputs: bool = False
    outputs: bool = True
    replacement: str = "[{kind}]"
    """What takes the place; `{kind}` is the name of the pattern."""

    _patterns: list[Pattern] = PrivateAttr(default_factory=list)

    @property
    def holds_back_outputs(self) -> bool:
        """Whether nothing may be streamed before it has looked."""
        return self.outputs

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(kinds) - BUILT_IN.keys())
        if unknown:
            raise ConfigurationError(
                f"RedactionComponent knows no kinds {unknown}: take some of {sorted(BUILT_IN)}, or custom=."
            )
        return kinds

    @model_validator(mode="after")
    def _does_something(self) -> RedactionComponent:
        if not (self.inputs or self.outputs):
            raise ConfigurationError("RedactionComponent does nothing: set inputs=True or outputs=True.")
        taken = sorted(self.custom.keys() & BUILT_IN.keys())
        if taken:
            raise ConfigurationError(f"RedactionComponent has patterns {taken} of its own: take other names.")
        self._patterns = [custom(name, expression) for name, expression in self.custom.items()]
        self._patterns += [pattern for name, pattern in BUILT_IN.items() if name in self.kinds]
        return self

    def redacted(self, text: str) -> str:
        """Return a text without what the patterns find."""
        return replaced(text, self._patterns, self._mark)[0]

    async def on_pre_evaluate(self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs) -> EvalInputs:
        """Redact what the engines get."""
        if not self.inputs:
            return inputs
        found: Counter[str] = Counter()
        artifacts = [self._artifact(artifact, found) for artifact in inputs.artifacts]
        # The list of the run is what engines read.
        ctx.artifacts[:] = [self._artifact(artifact, found) for artifact in ctx.artifacts]
        self._tell(ctx, "input", found)
        return inputs.model_copy(update={"artifacts": artifacts})

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """Redact what will be published, and what the result says for the event log."""
        if not self.outputs:
            return result
        found: Counter[str] = Counter()
        change = partial(self._changed, found)
        update = {
            "artifacts": [self._artifact(artifact, found) for artifact in result.artifacts],
            "logs": [change(line) for line in result.logs],
            "errors": [change(line) for line in result.errors],
        }
        self._tell(ctx, "output", found)
        return result.model_copy(update=update)

    def _artifact(self, artifact: Artifact, found: Counter[str]) -> Artifact:
        return changed(artifact, partial(self._changed, found))

    def _changed(self, found: Counter[str], text: str) -> str:
        text, counts = replaced(text, self._patterns, self._mark)
        found.update(counts)
        return text

    def _mark(self, kind: str) -> str:
        return self.replacement.replace("{kind}", kind)

    def _tell(self, ctx: Context, stage: str, found: Counter[str]) -> None:
        if found and ctx.hooks.note is not None:
            told: dict[str, Any] = {"stage": stage, "found": dict(sorted(found.items()))}
            ctx.hooks.note("redaction.applied", json.dumps(told))
