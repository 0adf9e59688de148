"""Engines in a chain, and the hooks of components around a run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from flock_ray.artifact import Artifact
from flock_ray.engines.best_of import PROPAGATED, best_of
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult, as_result
from flock_ray.engines.outputs import Note
from flock_ray.errors import safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context

__all__ = ["ComponentChain"]

T = TypeVar("T")


class ComponentChain:
    """The utilities and engines of one agent, in the order in which they are called."""

    def __init__(self, definition: AgentDefinition) -> None:
        """Sort the components once; those that are not enabled are left out."""
        self._agent = definition
        enabled = [utility for utility in definition.utilities if _enabled(utility)]
        self.utilities: list[Any] = sorted(enabled, key=lambda utility: getattr(utility, "priority", 0))
        self._starters = definition.starters
        self.engines: list[Any] = [engine for engine in definition.engines if _enabled(engine)]

    @property
    def has_hooks(self) -> bool:
        """Whether anything but engines is called around a run."""
        return bool(self.utilities or self._starters)

    async def started(self, artifacts: list[Artifact], notes: list[Note]) -> list[Artifact] | None:
        """Let components of the flock see and change the inputs before all others; None: one refused the run."""
        if not self._starters:
            return artifacts
        from flock_ray.components.orchestrator.starting import started

        artifacts, refused_by = await started(self._starters, self._agent, artifacts)
        if not refused_by:
            return artifacts
        notes.append(("activation.skipped", f"{refused_by}.on_before_agent_schedule returned None"))
        return None

    async def initialize(self, ctx: Context) -> None:
        """Call `on_initialize` of utilities, then of engines."""
        await self._tell((*self.utilities, *self.engines), "on_initialize", ctx)

    async def consume(self, ctx: Context, artifacts: list[Artifact]) -> EvalInputs:
        """Let the utilities see and change the inputs."""
        artifacts = await self._pass(self.utilities, "on_pre_consume", artifacts, ctx)
        inputs = EvalInputs(artifacts=list(artifacts), state=dict(ctx.state))
        return await self._pass(self.utilities, "on_pre_evaluate", inputs, ctx)

    async def evaluate(
        self, ctx: Context, inputs: EvalInputs, group: OutputGroup
    ) -> tuple[EvalResult, list[Note]]:
        """Run the engines for one output group, several times for `best_of`.

        Raises:
            OutputContractError: An engine returned neither a result nor models.
        """
        if self._agent.best_of is None:
            return await self._run_engines(ctx, inputs, group), []
        count, score = self._agent.best_of
        return await best_of(
            count, lambda: self._run_engines(ctx, inputs, group), score, self._agent.good_enough
        )

    async def around(
        self,
        ctx: Context,
        inputs: EvalInputs,
        group: OutputGroup,
        engines: Callable[[], Awaitable[EvalResult]],
    ) -> EvalResult:
        """Run `engines` inside the `around_evaluate` of the utilities, the first of them outermost.

        Raises:
            OutputContractError: A utility returned neither a result nor models.
        """
        proceed = engines
        for component in reversed(self.utilities):
            call = _hook(component, "around_evaluate")
            if call is not None:
                proceed = partial(self._enclosed, call, ctx, inputs, group, proceed)
        return await proceed()

    async def _enclosed(self, call: Callable[..., Any], *arguments: Any) -> EvalResult:
        return as_result(await _awaited(call(self._agent, *arguments)), self._agent)

    async def evaluated(self, ctx: Context, inputs: EvalInputs, result: EvalResult) -> EvalResult:
        """Let the utilities see and change the result of one output group."""
        return await self._pass(self.utilities, "on_post_evaluate", result, ctx, inputs)

    async def published(self, ctx: Context, artifacts: Iterable[Artifact]) -> None:
        """Show the utilities every output."""
        for artifact in artifacts:
            await self._tell(self.utilities, "on_post_publish", ctx, artifact)

    async def failed(self, ctx: Context, error: BaseException) -> list[Note]:
        """Show all components the error; hooks that raise are noted, and hide nothing."""
        return await self._tell_all("on_error", ctx, error)

    async def terminate(self, ctx: Context) -> tuple[BaseException | None, list[Note]]:
        """Call `on_terminate` of every component, also after one that raised.

        Returns:
            The first error, which fails a run that had not failed, and a note for each.
        """
        errors: list[BaseException] = []
        notes = await self._tell_all("on_terminate", ctx, errors=errors)
        return (errors[0] if errors else None), notes

    async def _run_engines(self, ctx: Context, inputs: EvalInputs, group: OutputGroup) -> EvalResult:
        # Each candidate of best_of has lists and dicts of its own.
        current = EvalInputs(artifacts=list(inputs.artifacts), state=dict(inputs.state))
        total = EvalResult.empty()
        for engine in self.engines:
            seen = await self._pass((engine,), "on_pre_evaluate", current, ctx)
            result = as_result(await _awaited(engine.evaluate(self._agent, ctx, seen, group)), self._agent)
            result = await self._pass((engine,), "on_post_evaluate", result, ctx, seen)
            total = _merged(total, result)
            # An engine that only changes the state hands on what it got.
            current = EvalInputs(
                artifacts=result.artifacts or seen.artifacts, state={**seen.state, **result.state}
            )
        return total.model_copy(update={"state": current.state})

    async def _tell(self, components: Sequence[Any], hook: str, *arguments: Any) -> None:
        for component in components:
            call = _hook(component, hook)
            if call is not None:
                await _awaited(call(self._agent, *arguments))

    async def _tell_all(
        self, hook: str, *arguments: Any, errors: list[BaseException] | None = None
    ) -> list[Note]:
        notes: list[Note] = []
        for component in (*self.utilities, *self.engines):
            try:
                await self._tell((component,), hook, *arguments)
            except PROPAGATED:
                raise
            except BaseException as error:
                notes.append(
                    ("hook.failed", f"{_name(component)}.{hook}: {': '.join(safe_error_text(error))}")
                )
                if errors is not None:
                    errors.append(error)
        return notes

    async def _pass(self, components: Sequence[Any], hook: str, value: T, ctx: Context, *before: Any) -> T:
        """Hand a value through the hooks; one that returns None keeps it."""
        for component in components:
            call = _hook(component, hook)
            if call is not None:
                changed = await _awaited(call(self._agent, ctx, *before, value))
                value = value if changed is None else changed
        return value


def _merged(total: EvalResult, result: EvalResult) -> EvalResult:
    """Put what a later engine made over what was there; its artifacts replace the earlier ones."""
    return result.model_copy(
        update={
            "artifacts": total.artifacts if result.is_state_only else result.artifacts,
            "metrics": {**total.metrics, **result.metrics},
            "logs": [*total.logs, *result.logs],
            "errors": [*total.errors, *result.errors],
        }
    )


def _enabled(component: Any) -> bool:
    return bool(getattr(getattr(component, "config", None), "enabled", True))


def _hook(component: Any, name: str) -> Callable[..., Any] | None:
    """Return a hook that does something: not a missing one, nor the default of the base class."""
    if getattr(type(component), name, None) is getattr(AgentComponent, name):
        return None
    return getattr(component, name, None)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _name(component: Any) -> str:
    return str(getattr(component, "name", None) or type(component).__name__)
