"""One attempt of one activation: from a task to its completion, whatever user code does.

It reads no clock and publishes nothing itself: times, and the function that matches outputs,
come in; a `wire.Completion` goes out.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flock_ray.artifact import Artifact
from flock_ray.core.definition import DIRECT, OutputGroup, Subscription
from flock_ray.core.ids import attempt_of
from flock_ray.core.parking import first_unread, newer_input
from flock_ray.core.system_types import TimerTick
from flock_ray.core.visibility import AgentIdentity
from flock_ray.core.wire import Completion, ErrorInfo, InputCheck, Posting, Task
from flock_ray.engines.aggregating import about
from flock_ray.engines.best_of import PROPAGATED, best_of, best_of_sync
from flock_ray.engines.chain import ComponentChain
from flock_ray.engines.component import EvalInputs, EvalResult
from flock_ray.engines.context import Context
from flock_ray.engines.failures import Failing, Verdict, is_retryable_name, no_engine
from flock_ray.engines.function import FunctionCall, is_async_callable, refuse_awaitable
from flock_ray.engines.history import HistorySource, history_source
from flock_ray.engines.notes import noting
from flock_ray.engines.outputs import Note, Output, OutputContract, bounded_notes
from flock_ray.engines.paying import Paying
from flock_ray.engines.posting import Poster, PostFn, Warming
from flock_ray.engines.records import OpenRuns
from flock_ray.engines.services import Services
from flock_ray.engines.straight import OutputFn, StraightRun
from flock_ray.engines.wiring import hooks_of, services_for, with_services
from flock_ray.engines.witness import Witness
from flock_ray.errors import ConfigurationError, DeployConflictError, safe_error_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.registry import TypeRegistry

__all__ = ["AgentRunner"]

Made = tuple[list[Output], list[Note]]


class _Plan(NamedTuple):
    """What is known of a subscription before any of its tasks comes."""

    subscription: Subscription
    classes: dict[str, type[BaseModel]]
    """The agent's own definitions of its input types, by registered name."""
    is_single: bool
    """Whether the only argument is the only input: the frequent case has a short way."""

    @property
    def is_batch(self) -> bool:
        return self.subscription.batch is not None or self.subscription.aggregate is not None


class AgentRunner:
    """Runs the activations of one agent. Compiled once; safe to call from several threads."""

    def __init__(
        self,
        definition: AgentDefinition,
        registry: TypeRegistry,
        post: PostFn,
        *,
        now_us: Callable[[], int],
        monotonic: Callable[[], float],
        output: OutputFn | None = None,
        services: Services | None = None,
        warming: Warming | None = None,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Compile an agent; its types are registered if they are not.

        Args:
            definition: What the agent declares; not to be changed any more.
            registry: Decodes inputs.
            post: Makes postings of outputs.
            now_us: Wall clock, in microseconds since the Unix epoch.
            monotonic: A clock that never goes back, in seconds.
            output: Makes postings of plain outputs, faster; None: `post` makes them all.
            services: What engines, components and the context provider are bound to; None: nothing.
            warming: Embeds what matching outputs compares, before `post`; None: `post` does.
            offload: Runs a blocking function off the event loop.

        Raises:
            TypeRegistrationError: One of its types has the name of another class.
        """
        self._services = services_for(definition, services or Services())
        definition = with_services(definition, self._services)
        self._definition = definition
        self._registry = registry
        self._monotonic = monotonic
        self._name = definition.name
        self._poster = Poster(definition.name, post, now_us, warming)
        self._identity = AgentIdentity(name=self._name, labels=definition.labels, tenant_id=definition.tenant)
        self._plans = {s.id: self._plan(s) for s in definition.subscriptions}
        self._groups = tuple(definition.output_groups) or (OutputGroup(outputs=()),)
        specs = [spec for group in self._groups for spec in group.outputs]
        for spec in specs:
            registry.ensure(spec.type)
        types = [spec.type for spec in specs]
        self._failing = Failing(definition, self._services.draw)
        self._witness = Witness(definition, registry)
        self._offload = offload
        self._contract = OutputContract(self._name, specs)
        self._group_contracts = [
            OutputContract(self._name, group.outputs, elsewhere=types) for group in self._groups
        ]
        self._chain = ComponentChain(definition)
        self._function: FunctionCall | None = None
        if definition.function is not None:
            self._function = FunctionCall(
                self._name, definition.function, num_declared=len(specs), registry=registry, offload=offload
            )
        sees_context = self._function is None or self._function.wants_context or bool(self._chain.utilities)
        self._history: HistorySource | None = history_source(
            definition, sees_context, reader=self._services.reader, identity=self._identity, registry=registry,
            now_us=now_us, offload=offload,
        )  # fmt: skip
        self._is_async = self._needs_loop()
        self._open_runs = OpenRuns(Paying(definition, now_us, self._services.draw))
        self._straight: StraightRun | None = None
        function = self._function
        if (
            output is not None
            and function is not None
            and StraightRun.fits(definition, function, self._contract)
        ):
            self._straight = StraightRun(definition, specs[0].type, registry, output, now_us)

    @property
    def is_async(self) -> bool:
        """Whether tasks go to `run_async`: the function, an engine or a hook has to be awaited."""
        return self._is_async

    def run_sync(self, task: Task, history: Sequence[Artifact] = ()) -> Completion:
        """Run one attempt in the calling thread.

        Args:
            task: What to do; `task.attempt` is copied to the completion.
            history: What the context shows of the board, if the function asks for the context.

        Returns:
            The outputs, or why there are none. Only KeyboardInterrupt, GeneratorExit and
            asyncio.CancelledError are raised.
        """
        started = self._monotonic()
        try:
            if self._straight is not None and self._function is not None:
                model = self._straight.read(task)
                if model is None:
                    outputs, notes = self._make_sync(task, history)
                else:
                    value = self._function.function(model)
                    if type(value) is self._straight.made:
                        return self._straight.completion(task, value, self._elapsed_us(started))
                    outputs, notes = self._settled(self._function, value)
            else:
                outputs, notes = self._make_sync(task, history)
            run_us = self._elapsed_us(started)
            postings = self._poster.outputs(task, outputs)
            if outputs and self._definition.calls is not None:
                refuse_awaitable(self._definition.calls(outputs[0].model), self._name)
                run_us = self._elapsed_us(started)
        except PROPAGATED:
            raise
        except BaseException as error:
            run_us = self._elapsed_us(started)
            info, verdict = self._failing.look_at(task, error)
            checks = self._witness.checks(task, verdict.buries)
            return self._failed(task, info, run_us, [], verdict, checks=checks)
        return Completion(task.id, task.attempt, task.slot, postings, None, run_us, bounded_notes(notes))

    async def run_async(self, task: Task, history: Sequence[Artifact] = ()) -> Completion:
        """Run one attempt on the calling event loop; otherwise like `run_sync`.

        A function that is not async runs in a thread. Cancelled, the run still calls `on_terminate`.
        """
        if self._services.model is None:
            return await self._attempt(task, history)
        return await self._open_runs.run(task, self._attempt(task, history))

    async def _attempt(self, task: Task, history: Sequence[Artifact]) -> Completion:
        started = self._monotonic()
        notes: list[Note] = []
        history = list(history)
        try:
            if self._history is not None:
                await self._history.fetch(task, history, notes)
            if self._function is None or self._chain.has_hooks:
                with noting(notes):
                    postings = await self._run_with_hooks(task, history, notes)
                run_us = self._elapsed_us(started)
            else:
                outputs, made = await self._make_async(self._function, task, history)
                notes += made
                run_us = self._elapsed_us(started)
                await self._poster.warmed(outputs)
                postings = self._poster.outputs(task, outputs, history)
                if await self._call_after(outputs):
                    run_us = self._elapsed_us(started)
        except PROPAGATED:
            raise
        except BaseException as error:
            run_us = self._elapsed_us(started)
            info, verdict = self._failing.look_at(task, error)
            if verdict.needs_artifact:
                await self._poster.warmed_error(task, info)
            # Conditions are user code, and may compare meanings.
            checks = await self._offload(self._witness.checks, task) if verdict.buries else ()
            return self._failed(task, info, run_us, notes, verdict, history, checks)
        return Completion(task.id, task.attempt, task.slot, postings, None, run_us, bounded_notes(notes))

    def failure(
        self, task: Task, exc_type: str, message: str, *, retryable: bool | None = None
    ) -> Completion:
        """Make the completion of an attempt that was given up from outside, such as by a timeout.

        Args:
            task: The attempt.
            exc_type: Name of the error's class, such as "AgentTimeoutError".
            message: What happened and what to do next.
            retryable: None is what the class of that name in `flock_ray.errors` says, else False.
        """
        retryable = is_retryable_name(exc_type) if retryable is None else retryable
        info = ErrorInfo(exc_type, message, "", retryable)
        verdict = self._failing.judge(task, info)
        failed = self._failed(task, info, 0, [], verdict, checks=self._witness.checks(task, verdict.buries))
        return self._open_runs.given_up(task, failed)

    def _needs_loop(self) -> bool:
        if self._function is None:
            return bool(self._chain.engines)
        if self._history is not None:
            return True
        calls = self._definition.calls
        after = calls is not None and is_async_callable(calls)
        return self._function.is_async or after or self._chain.has_hooks

    def _plan(self, subscription: Subscription) -> _Plan:
        classes = {self._registry.ensure(cls).name: cls for cls in subscription.types}
        return _Plan(subscription, classes, subscription.kind == "single")

    def _elapsed_us(self, started: float) -> int:
        return int((self._monotonic() - started) * 1_000_000)

    # --- inputs -----------------------------------------------------------------------------------

    def _plan_of(self, task: Task) -> _Plan:
        plan = self._plans.get(task.subscription)
        if plan is not None:
            return plan
        if not task.subscription:
            return self._direct_plan(task)
        raise DeployConflictError(
            f"Agent {self._name!r} has no subscription {task.subscription!r} in this worker: it was changed "
            "while the task waited. Deploy the version that has it, or publish the inputs again."
        )

    def _direct_plan(self, task: Task) -> _Plan:
        """Find how to pass inputs that nobody matched: like the first subscription that they fit."""
        names = sorted(envelope.type for envelope in task.inputs)
        for plan in self._plans.values():
            declared = sorted(self._registry.name_for(cls) for cls in plan.subscription.types)
            if names == declared or (plan.is_batch and set(names) <= set(declared)):
                return plan
        types = tuple(self._registry.resolve(envelope.type) for envelope in task.inputs)
        return self._plan(Subscription(id="", agent=self._name, types=types))

    def _arguments(self, function: FunctionCall, task: Task, history: Sequence[Artifact]) -> tuple[Any, ...]:
        plan = self._plan_of(task)
        validate, classes = self._registry.validate, plan.classes
        models = [validate(e.type, e.version, e.payload, cls=classes.get(e.type)) for e in task.inputs]
        if plan.is_single and len(models) == 1 and not function.wants_context:
            return (models[0],)
        context = self._context(task, history) if function.wants_context else None
        return function.arguments(plan.subscription, models, task.groups, context)

    def _context(self, task: Task, history: Sequence[Artifact], notes: list[Note] | None = None) -> Context:
        tick = next((e for e in task.inputs if e.type == "TimerTick"), None)
        plan = self._plan_of(task)
        timer = None if tick is None else TimerTick.model_validate_json(tick.payload)
        return Context(
            agent_identity=self._identity,
            correlation_id=task.correlation_id,
            task_id=task.id.hex(),
            activation_id=uuid.UUID(bytes=task.id),
            attempt=max(attempt_of(task.attempt), task.failures + 1),
            artifacts=list(history),
            is_batch=plan.is_batch,
            trigger_type="artifact" if timer is None else "timer",
            timer_iteration=None if timer is None else timer.iteration,
            fire_time=None if timer is None else timer.fire_time,
            window=None if timer is None else timer.window,
            groups=task.groups,
            **about(plan.subscription, task),
            hooks=hooks_of(self._services, task, notes),
        )

    # --- plain functions --------------------------------------------------------------------------

    def _make_sync(self, task: Task, history: Sequence[Artifact]) -> Made:
        function = self._function
        if function is None:
            raise no_engine(self._name)
        if self._is_async:
            raise ConfigurationError(f"Agent {self._name!r} must be awaited: give its tasks to run_async.")
        if self._definition.best_of is None:
            return self._settled(function, function.function(*self._arguments(function, task, history)))
        count, score = self._definition.best_of
        (outputs, notes), failed = best_of_sync(
            count,
            # Decoded anew each time: a candidate may change its inputs.
            lambda: self._settled(function, function.function(*self._arguments(function, task, history))),
            lambda made: score(self._as_result(made)),
            self._definition.good_enough,
        )
        return outputs, [*notes, *failed]

    async def _make_async(self, function: FunctionCall, task: Task, history: Sequence[Artifact]) -> Made:
        async def attempt() -> Made:
            return self._settled(function, await function.call(self._arguments(function, task, history)))

        if self._definition.best_of is None:
            return await attempt()
        count, score = self._definition.best_of
        (outputs, notes), failed = await best_of(
            count, attempt, lambda made: score(self._as_result(made)), self._definition.good_enough
        )
        return outputs, [*notes, *failed]

    def _settled(self, function: FunctionCall, value: object) -> Made:
        returned = function.returned(value)
        if returned is None:
            return [], []
        outputs, notes = self._contract.fill(returned.models, skipped=returned.skipped)
        kept, more = self._contract.accept(outputs)
        return kept, notes + more

    def _as_result(self, made: Made) -> EvalResult:
        return EvalResult.from_objects(*(output.model for output in made[0]), agent=self._name)

    # --- engines and hooks ------------------------------------------------------------------------

    async def _run_with_hooks(
        self, task: Task, history: Sequence[Artifact], notes: list[Note]
    ) -> tuple[Posting, ...]:
        if self._function is None and not self._chain.engines:
            raise no_engine(self._name)
        chain, ctx = self._chain, self._context(task, history, notes)
        artifacts = [Artifact.from_envelope(e) for e in task.inputs]
        if any(envelope.produced_by != DIRECT for envelope in task.inputs):
            kept = await chain.started(artifacts, notes)
            if kept is None:
                return ()
            artifacts = kept
        try:
            await chain.initialize(ctx)
            inputs = await chain.consume(ctx, artifacts)
            outputs = await self._evaluate(task, ctx, inputs, notes)
            await self._poster.warmed(outputs)
            postings = self._poster.outputs(task, outputs, history)
            await chain.published(ctx, [Artifact.from_envelope(posting.envelope) for posting in postings])
            await self._call_after(outputs)
        except asyncio.CancelledError:
            await chain.terminate(ctx)
            raise
        except PROPAGATED:
            raise
        except BaseException as error:
            notes += await chain.failed(ctx, error)
            notes += (await chain.terminate(ctx))[1]
            raise
        error_at_end, more = await chain.terminate(ctx)
        notes += more
        if error_at_end is not None:
            raise error_at_end
        return postings

    async def _evaluate(
        self, task: Task, ctx: Context, inputs: EvalInputs, notes: list[Note]
    ) -> list[Output]:
        if self._function is not None:
            make = partial(self._evaluate_function, self._function, task, ctx, inputs, notes)
            result = await self._chain.around(ctx, inputs, OutputGroup(outputs=self._contract.specs), make)
            skipped = result._skipped
            result = await self._chain.evaluated(ctx, inputs, result)
            return self._contracted(self._contract, result, 0, notes, skipped)[0]
        outputs: list[Output] = []
        position = 0
        for group, contract in zip(self._groups, self._group_contracts, strict=True):
            make = partial(self._evaluate_group, ctx, inputs, group, notes)
            result = await self._chain.around(ctx, inputs, group, make)
            result = await self._chain.evaluated(ctx, inputs, result)
            kept, count = self._contracted(contract, result, position, notes)
            outputs += kept
            position += count
        return outputs

    async def _evaluate_group(
        self, ctx: Context, inputs: EvalInputs, group: OutputGroup, notes: list[Note]
    ) -> EvalResult:
        result, failed = await self._chain.evaluate(ctx, inputs, group)
        notes += failed
        return result

    async def _evaluate_function(
        self, function: FunctionCall, task: Task, ctx: Context, inputs: EvalInputs, notes: list[Note]
    ) -> EvalResult:
        """Call a function whose inputs or outputs the utilities may change."""
        plan = self._plan_of(task)

        async def attempt() -> EvalResult:
            models = [a.model(self._registry, cls=plan.classes.get(a.type)) for a in inputs.artifacts]
            arguments = function.arguments(plan.subscription, models, task.groups, ctx)
            returned = function.returned(await function.call(arguments))
            if returned is None:
                return EvalResult.empty()
            result = EvalResult.from_objects(*returned.models, agent=self._name)
            result._skipped = returned.skipped
            return result

        if self._definition.best_of is None:
            return await attempt()
        count, score = self._definition.best_of
        best: EvalResult
        best, failed = await best_of(count, attempt, score, self._definition.good_enough)
        notes += failed
        return best

    def _contracted(
        self,
        contract: OutputContract,
        result: EvalResult,
        first: int,
        notes: list[Note],
        skipped: frozenset[int] = frozenset(),
    ) -> tuple[list[Output], int]:
        """Check a result; returns what is kept, and how many positions it takes."""
        notes += result.notes()
        if result.declined:
            return [], 0
        models = [artifact.model(self._registry) for artifact in result.artifacts]
        outputs, filled = contract.fill(models, skipped=skipped, first=first)
        kept, dropped = contract.accept(outputs)
        notes += filled + dropped
        return kept, len(outputs)

    async def _call_after(self, outputs: list[Output]) -> bool:
        """Call the hook of `.calls()` with the first output, if there are both."""
        if not outputs or self._definition.calls is None:
            return False
        made = self._definition.calls(outputs[0].model)
        if inspect.isawaitable(made):
            await made
        return True

    def _failed(
        self,
        task: Task,
        info: ErrorInfo,
        run_us: int,
        notes: list[Note],
        verdict: Verdict,
        history: Sequence[Artifact] = (),
        checks: tuple[InputCheck, ...] = (),
    ) -> Completion:
        plan = self._plans.get(task.subscription)
        newer = first_unread(task, self._registry, {} if plan is None else plan.classes)
        if newer is not None:
            # Whatever was raised: the agent could not have read it. The shard keeps the activation.
            return newer_input(task, newer, run_us)
        postings: tuple[Posting, ...] = ()
        try:
            if verdict.needs_artifact:
                postings = (self._poster.error(task, info, history),)
        except PROPAGATED:
            raise
        except BaseException as error:
            # The journal still gets the error itself; only the artifact is missing.
            notes = [("error.unposted", ": ".join(safe_error_text(error))), *notes]
        said = bounded_notes([*verdict.notes, *notes])
        return Completion(
            task.id, task.attempt, task.slot, postings, info, run_us, said, (), verdict.retry, verdict.trips,
            checks=checks,
        )  # fmt: skip
