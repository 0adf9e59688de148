"""Runs of fan-outs and fan-ins. A split comes in parts; what a fan-in gets, it gets in the order of the chunks."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from flock_ray.core.fan_in_desk import PARTIAL
from flock_ray.core.scatter import Split
from flock_ray.core.wire import Completion, Posting, Task
from flock_ray.engines.best_of import PROPAGATED
from flock_ray.engines.failures import describe
from flock_ray.engines.fan.merging import Gathered
from flock_ray.engines.function import is_async_callable
from flock_ray.engines.outputs import Output
from flock_ray.engines.runner import AgentRunner
from flock_ray.errors import ConfigurationError, OutputContractError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition

__all__ = ["runner_for"]

MAX_PART_CHUNKS = 2_000
"""Chunks of one part: what is committed at once, with one append."""
MAX_PART_BYTES = 4 * 1024 * 1024
MAX_OPEN_SPLITS = 4
"""Splits that a worker keeps open between two parts; another one begins anew and skips what is there."""


def runner_for(definition: AgentDefinition, *args: Any, **options: Any) -> AgentRunner:
    """Make what runs an agent's activations; arguments as for `AgentRunner`."""
    if definition.fan_out is not None:
        return FanOutRunner(definition, *args, **{**options, "output": None})
    if definition.fan_in is not None:
        return FanInRunner(definition, *args, **{**options, "output": None})
    return AgentRunner(definition, *args, **options)


class _OpenSplit:
    """A split that was interrupted: the iterator, where it is, and the chunk that was looked at already."""

    __slots__ = ("ahead", "chunks", "position")

    def __init__(self, chunks: Iterator[BaseModel]) -> None:
        self.chunks = chunks
        self.position = 0
        self.ahead: list[BaseModel] = []

    def __iter__(self) -> Iterator[BaseModel]:
        return self

    def __next__(self) -> BaseModel:
        return self.ahead.pop() if self.ahead else next(self.chunks)


class FanOutRunner(AgentRunner):
    """Runs a fan-out."""

    def __init__(self, definition: AgentDefinition, *args: Any, **options: Any) -> None:
        """Compile an agent; arguments as for `AgentRunner`."""
        super().__init__(definition, *args, **options)
        self._open_splits: OrderedDict[bytes, _OpenSplit] = OrderedDict()
        self._lock = Lock()

    @property
    def is_async(self) -> bool:
        """It is not."""
        return False

    def run_sync(self, task: Task, history: Sequence[Artifact] = ()) -> Completion:
        """Make the next part of the chunks."""
        started = self._monotonic()
        try:
            split = self._split_of(task)
            postings, more = self._part(task, split)
            if more:
                self._keep(task, split)
        except PROPAGATED:
            raise
        except BaseException as error:
            info, run_us = describe(error), self._elapsed_us(started)
            return self._failed(task, info, run_us, [], self._failing.judge(task, info, error))
        return Completion(
            task.id, task.attempt, task.slot, postings, None, self._elapsed_us(started),
            split=Split(task.offset, more),
        )  # fmt: skip

    def _split_of(self, task: Task) -> _OpenSplit:
        with self._lock:
            split = self._open_splits.pop(task.id, None)
        if split is None or split.position > task.offset:
            function = self._function
            assert function is not None  # it is the fan-out
            split = _OpenSplit(iter(function.function(*self._arguments(function, task, ()))))
        while split.position < task.offset:
            if next(split, None) is None:
                raise OutputContractError(
                    f"Agent {self._name!r} made {split.position} chunks, and {task.offset} when it ran before: "
                    "cut the same input in the same way every time.", agent=self._name,
                )  # fmt: skip
            split.position += 1
        return split

    def _part(self, task: Task, split: _OpenSplit) -> tuple[tuple[Posting, ...], bool]:
        declared = self._definition.output_groups[0].outputs[0]
        postings: list[Posting] = []
        size = 0
        post = self._poster.chunks(task)
        for model in split:
            if len(postings) >= MAX_PART_CHUNKS or size >= MAX_PART_BYTES:
                split.ahead.append(model)
                return tuple(postings), True
            if not isinstance(model, declared.type):
                raise OutputContractError(
                    f"Agent {self._name!r} made a {type(model).__name__} as a chunk; make a {declared.type.__name__}.",
                    agent=self._name,
                )  # fmt: skip
            posting = post(declared, model, split.position)
            split.position += 1
            size += len(posting.envelope.payload)
            postings.append(posting)
        return tuple(postings), False

    def _keep(self, task: Task, split: _OpenSplit) -> None:
        with self._lock:
            self._open_splits[task.id] = split
            while len(self._open_splits) > MAX_OPEN_SPLITS:
                self._open_splits.popitem(last=False)


class FanInRunner(AgentRunner):
    """Runs a fan-in."""

    @property
    def is_async(self) -> bool:
        """Whether its functions have to be awaited."""
        fan_in = self._definition.fan_in
        return any(function is not None and is_async_callable(function) for function in fan_in.functions())

    def run_sync(self, task: Task, history: Sequence[Artifact] = ()) -> Completion:
        """Merge."""
        started = self._monotonic()
        try:
            return self._merged(task, self._call(task), started)
        except PROPAGATED:
            raise
        except BaseException as error:
            return self._broken(task, error, started)

    async def run_async(self, task: Task, history: Sequence[Artifact] = ()) -> Completion:
        """Merge with an async function."""
        started = self._monotonic()
        try:
            made = self._call(task)
            return self._merged(task, await made if inspect.isawaitable(made) else made, started)
        except PROPAGATED:
            raise
        except BaseException as error:
            return self._broken(task, error, started)

    def _call(self, task: Task) -> Any:
        gather = task.gather
        if gather is None:
            raise ConfigurationError(
                f"Agent {self._name!r} merges what the chunks of a fan-out deliver: it can't be run by hand."
            )
        fan_in, registry = self._definition.fan_in, self._registry
        into, from_type = registry.ensure(fan_in.into), registry.ensure(fan_in.from_type)
        models = [] if gather.empty else [
            registry.validate(into.name, into.version, e.payload, cls=fan_in.into)
            if e.type == PARTIAL
            else registry.validate(from_type.name, e.version, e.payload, cls=fan_in.from_type)
            for e in task.inputs
        ]  # fmt: skip
        missing = tuple(n for first, last in gather.missing for n in range(first, last + 1))
        again = any(e.type == PARTIAL for e in task.inputs)
        return fan_in.merged(models, Gathered(gather.total, missing, not gather.final), again=again)

    def _merged(self, task: Task, made: Any, started: float) -> Completion:
        gather, fan_in = task.gather, self._definition.fan_in
        assert gather is not None  # `_call` has refused others
        model = fan_in.checked(made, self._name)
        run_us = self._elapsed_us(started)
        spec = self._definition.output_groups[0].outputs[0]
        [posting] = self._poster.outputs(task, [Output(0, spec, model)])
        if not gather.final:
            posting = self._poster.partial(task, gather, posting)
        return Completion(task.id, task.attempt, task.slot, (posting,), None, run_us)

    def _broken(self, task: Task, error: BaseException, started: float) -> Completion:
        info, run_us = describe(error), self._elapsed_us(started)
        return self._failed(task, info, run_us, [], self._failing.judge(task, info, error))
