"""What the conditions of a subscription made of the inputs of a run that failed, for its dead letter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flock_ray.core.matching import Candidate, candidate_checks
from flock_ray.core.wire import InputCheck
from flock_ray.errors import safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.core.wire import Task

__all__ = ["MAX_CHECKS", "Witness"]

MAX_CHECKS = 200
"""Conditions that a dead letter keeps, over all its inputs."""

MAX_VALUE_CHARS = 500


class Witness:
    """Evaluates conditions once more, with the code and the inputs of the run that failed. Calls user code."""

    def __init__(self, definition: AgentDefinition, registry: TypeRegistry) -> None:
        """Compile what an agent consumes; for one without dead letters there is nothing to do."""
        self._registry = registry
        subscriptions = definition.subscriptions if definition.dead_letter is not None else ()
        self._candidates = {sub.id: Candidate(sub, definition) for sub in subscriptions}

    def checks(self, task: Task, wanted: bool = True) -> tuple[InputCheck, ...]:
        """Return the conditions of a task's subscription with their values, if they are wanted; never raises."""
        candidate = self._candidates.get(task.subscription) if wanted else None
        if candidate is None:
            return ()
        found: list[InputCheck] = []
        for position, envelope in enumerate(task.inputs):
            if len(found) >= MAX_CHECKS:
                break
            model = partial(self._registry.validate, envelope.type, envelope.version, envelope.payload)
            try:
                for check in candidate_checks(candidate, envelope, model):
                    found.append(
                        InputCheck(
                            position,
                            check.condition,
                            check.passed,
                            _cut(check.value),
                            _cut(check.error or ""),
                        )
                    )
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # a payload or a visibility that can't be read (any more)
                kind, text = safe_error_text(error)
                found.append(InputCheck(position, "conditions", False, "unknown", _cut(f"{kind}: {text}")))
        return tuple(found[:MAX_CHECKS])


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."
