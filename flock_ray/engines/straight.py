"""The straight way through a run: one public input, one function, one output of one type.

Most activations are like this, and it costs half of what the general way does. Whatever is
different (tags, restricted inputs, gates, contexts, several outputs) takes the general way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from flock_ray.core.ids import output_id
from flock_ray.core.wire import Completion, Posting, Task
from flock_ray.engines.function import FunctionCall
from flock_ray.engines.outputs import OutputContract

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry

__all__ = ["OutputFn", "StraightRun"]

OutputFn = Callable[[BaseModel, Task, bytes, str, int, tuple[str, ...]], Posting]
"""`Edge.output`: makes an artifact of (model, task, id, produced by, created, agents among its ancestors)."""


class StraightRun:
    """What is known of an agent's plain runs before any of them comes."""

    __slots__ = ("_name", "_now_us", "_output", "_readers", "_singles", "_via", "made")

    def __init__(
        self, definition: AgentDefinition, made: type[BaseModel], registry: TypeRegistry, output: OutputFn,
        now_us: Callable[[], int],
    ) -> None:  # fmt: skip
        """Prepare for an agent that `fits`."""
        self.made = made
        self._name = definition.name
        self._output = output
        self._now_us = now_us
        singles = [sub for sub in definition.subscriptions if sub.kind == "single"]
        self._singles = {sub.id for sub in singles}
        entries = [(registry.ensure(cls), cls) for sub in singles for cls in sub.types]
        self._readers: dict[tuple[str, int], Any] = {
            (entry.name, entry.version): cls.__pydantic_validator__.validate_json for entry, cls in entries
        }
        self._via: dict[tuple[str, ...], tuple[str, ...]] = {}

    @classmethod
    def fits(cls, definition: AgentDefinition, function: FunctionCall, contract: OutputContract) -> bool:
        """Say whether runs of an agent can go straight."""
        declared = definition.best_of or definition.calls or definition.utilities
        only = contract.specs[0] if len(contract.specs) == 1 else None
        conditions = (
            only is None or only.where or only.validate or only.visibility or only.fan_out or only.approval
        )
        return (
            not (declared or conditions or function.is_async or function.wants_context)
            and only is not None
            and (only.count == 1)
        )

    def read(self, task: Task) -> BaseModel | None:
        """Return the input as a model; None when the run has to take the general way."""
        inputs = task.inputs
        if len(inputs) != 1 or task.subscription not in self._singles:
            return None
        envelope = inputs[0]
        if envelope.correlation_id != task.correlation_id:
            return None
        read = self._readers.get((envelope.type, envelope.version))
        if read is None or envelope.visibility is not None or envelope.tags:
            return None
        try:
            model: BaseModel = read(envelope.payload, by_alias=True, by_name=True)
        except ValidationError:
            return None  # the general way says what is wrong with it
        return model

    def completion(self, task: Task, made: BaseModel, run_us: int) -> Completion:
        """Return the completion of a run that made one output of the declared type."""
        ancestors = task.inputs[0].via
        via = self._via.get(ancestors)
        if via is None:
            via = tuple(sorted({self._name, *ancestors}))
            if len(self._via) < 1000:
                self._via[ancestors] = via
        posting = self._output(made, task, output_id(task.id, 0), self._name, self._now_us(), via)
        return Completion(task.id, task.attempt, task.slot, (posting,), None, run_us)
