"""The base classes of engines and agent components, and what goes into and out of `evaluate`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, create_model, field_validator
from pydantic_core import to_json as dump_json

from flock_ray.artifact import Artifact
from flock_ray.core.registry import type_registry
from flock_ray.errors import OutputContractError, UnknownTypeError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context

__all__ = [
    "AgentComponent",
    "AgentComponentConfig",
    "EngineComponent",
    "EvalInputs",
    "EvalResult",
    "as_result",
]

ModelT = TypeVar("ModelT", bound=BaseModel)


class EvalInputs(BaseModel):
    """What an engine works on."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    artifacts: list[Artifact] = Field(default_factory=list)
    """In the order of the subscription; behind another engine of a chain, what that one made."""
    state: dict[str, Any] = Field(default_factory=dict)
    """What the engines and hooks before this one left."""

    def first_as(self, model: type[ModelT]) -> ModelT | None:
        """Return the first input of a type; None when there is none.

        As for `all_as`, a class that is not registered reads the first input whatever its type.

        Raises:
            ArtifactSchemaError: The payload does not fit the class.
        """
        chosen = self._chosen(model)
        return _read(chosen[0], model) if chosen else None

    def all_as(self, model: type[ModelT]) -> list[ModelT]:
        """Return all inputs of a type.

        A class that is not registered as an artifact type is a view: it reads all inputs.

        Raises:
            ArtifactSchemaError: A payload does not fit the class.
        """
        return [_read(artifact, model) for artifact in self._chosen(model)]

    def _chosen(self, model: type[BaseModel]) -> list[Artifact]:
        name = _registered_name(model)
        if name is None:
            return self.artifacts
        # Artifacts of upstream's stores have `module.Class` as their type.
        names = (name, f"{model.__module__}.{model.__qualname__}")
        return [artifact for artifact in self.artifacts if artifact.type in names]


class EvalResult(BaseModel):
    """What an engine made."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    artifacts: list[Artifact] = Field(default_factory=list)
    """Not published yet: ids, workflow, tags and visibility are set when they are."""
    state: dict[str, Any] = Field(default_factory=dict)
    """Merged over the state so far, for the next engines and hooks."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    logs: list[str] = Field(default_factory=list)
    errors: list[str] = Field(default_factory=list)
    """Problems that did not stop the engine: they go to the event log and do not fail the run."""

    _declined: bool = PrivateAttr(default=False)
    _state_only: bool = PrivateAttr(default=False)
    _skipped: frozenset[int] = PrivateAttr(default=frozenset())
    """Declared outputs that a function left out on purpose."""

    @field_validator("errors", mode="before")
    @classmethod
    def _as_text(cls, errors: Any) -> Any:
        if not isinstance(errors, (list, tuple)):
            return errors
        return [": ".join(safe_error_text(e)) if isinstance(e, BaseException) else e for e in errors]

    @property
    def declined(self) -> bool:
        """Whether the engine said, with `empty()` or `with_state()`, that it publishes nothing."""
        return self._declined and not self.artifacts

    @property
    def is_state_only(self) -> bool:
        """Whether it says nothing about outputs: those of earlier engines of a chain stand."""
        return self._state_only and not self.artifacts

    def notes(self) -> list[tuple[str, str]]:
        """Return what the event log should know of it."""
        found = [("engine.error", error) for error in self.errors]
        found += [("engine.log", line) for line in self.logs]
        if self.metrics:
            found.append(("engine.metrics", dump_json(self.metrics, fallback=str).decode()))
        return found

    @classmethod
    def from_object(
        cls,
        obj: BaseModel,
        *,
        agent: Any = None,
        state: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        errors: Iterable[str | BaseException] = (),
    ) -> EvalResult:
        """Make a result of one model.

        Args:
            obj: What to publish.
            agent: The `agent` that `evaluate` got; None is filled in when it is published.
            state: See `EvalResult.state`; None for nothing new.
            metrics: Numbers by name; None for none.
            errors: See `EvalResult.errors`.
        """
        return cls.from_objects(obj, agent=agent, state=state, metrics=metrics, errors=errors)

    @classmethod
    def from_objects(
        cls,
        *objs: BaseModel,
        agent: Any = None,
        state: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        errors: Iterable[str | BaseException] = (),
    ) -> EvalResult:
        """Make a result of any number of models; see `from_object`."""
        name = "" if agent is None else str(getattr(agent, "name", agent))
        artifacts = [Artifact.from_model(obj, produced_by=name) for obj in objs]
        return cls(
            artifacts=artifacts,
            state=state or {},
            metrics=metrics or {},
            errors=cast("list[str]", list(errors)),
        )

    @classmethod
    def empty(
        cls,
        *,
        state: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        errors: Iterable[str | BaseException] = (),
    ) -> EvalResult:
        """Make a result that publishes nothing on purpose, whatever the agent declares.

        As the last of a chain, it takes back what the engines before it made.
        """
        result = cls.from_objects(state=state, metrics=metrics, errors=errors)
        result._declined = True
        return result

    @classmethod
    def with_state(
        cls,
        state: dict[str, Any],
        *,
        metrics: dict[str, Any] | None = None,
        errors: Iterable[str | BaseException] = (),
    ) -> EvalResult:
        """Make a result that only changes the state; alone, it publishes nothing."""
        result = cls.empty(state=state, metrics=metrics, errors=errors)
        result._state_only = True
        return result


class AgentComponentConfig(BaseModel):
    """Settings of a component; subclass it, or add fields with `with_fields`."""

    enabled: bool = True
    """A component that is not enabled is skipped."""
    model: str | None = None
    """Model of the component; None is the agent's."""

    @classmethod
    def with_fields(cls, **fields: Any) -> type[AgentComponentConfig]:
        """Make a subclass with more fields, each given as `name=(type, default)`."""
        made: Any = create_model(f"{cls.__name__}WithFields", __base__=cls, **fields)
        return cast("type[AgentComponentConfig]", made)


class AgentComponent(BaseModel):
    """Hooks around every run of an agent. A hook that raises fails the run."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str | None = None
    """For logs; None is the name of the class."""
    config: AgentComponentConfig = Field(default_factory=AgentComponentConfig)
    priority: int = 0
    """Lower ones run first; equal ones in the order in which they were added."""
    no_output: bool = False
    """Whether the component should print nothing."""

    async def on_initialize(self, agent: AgentDefinition, ctx: Context) -> None:
        """Prepare for a run; called before anything else."""

    async def on_pre_consume(
        self, agent: AgentDefinition, ctx: Context, inputs: list[Artifact]
    ) -> list[Artifact]:
        """See or replace the artifacts that triggered the run. Utilities only."""
        return inputs

    async def on_pre_evaluate(self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs) -> EvalInputs:
        """See or replace what is evaluated."""
        return inputs

    async def around_evaluate(
        self,
        agent: AgentDefinition,
        ctx: Context,
        inputs: EvalInputs,
        output_group: OutputGroup,
        proceed: Callable[[], Awaitable[EvalResult]],
    ) -> EvalResult:
        """Let the engines make one output group, or answer in their place. Utilities only; ours, not upstream's.

        Called between `on_pre_evaluate` and `on_post_evaluate`; the component of the lowest priority is outermost.
        An agent that runs a function has one group, of all that it publishes.

        Args:
            agent: The agent that runs.
            ctx: This run.
            inputs: What the engines get; what they should see changed is changed in `on_pre_evaluate`.
            output_group: What is asked for.
            proceed: Runs the components further in and the engines, all candidates of `best_of` included.
        """
        return await proceed()

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """See or replace a result: an engine its own, a utility that of each output group."""
        return result

    async def on_post_publish(self, agent: AgentDefinition, ctx: Context, artifact: Artifact) -> None:
        """See an output that has its id and is about to be committed. Utilities only."""

    async def on_error(self, agent: AgentDefinition, ctx: Context, error: BaseException) -> None:
        """See the error that failed the run."""

    async def on_terminate(self, agent: AgentDefinition, ctx: Context) -> None:
        """Clean up; called at the end of every run, also of a failed or cancelled one."""


class EngineComponent(AgentComponent):
    """Makes outputs of inputs. Runs may be repeated after a crash; their effects on the board are not."""

    enable_context: bool = False
    """Whether runs get the artifacts that the agent may see, as `ctx.artifacts`."""
    context_max_artifacts: int | None = None
    """At most this many, the newest; None is all."""
    context_exclude_types: set[str] = Field(default_factory=set)
    """Names of types that the context leaves out."""

    async def evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, output_group: OutputGroup
    ) -> EvalResult | BaseModel | list[Any] | None:
        """Make the outputs of one group.

        Args:
            agent: The agent that runs.
            ctx: This run; `ctx.is_batch` tells whether the inputs are a batch.
            inputs: What to work on.
            output_group: What is asked for: one `publishes()` of the agent. `outputs[i].count` and
                `outputs[i].fan_out` say how many.

        Returns:
            A result, one model, a list of models, or None to publish nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method: async def evaluate(...)")

    def get_conversation_context(self, ctx: Context, max_artifacts: int | None = None) -> list[Artifact]:
        """Return the context as this engine's settings limit it, oldest first.

        Args:
            ctx: This run.
            max_artifacts: At most this many, the newest; None is `context_max_artifacts`.
        """
        if not self.enable_context:
            return []
        limit = self.context_max_artifacts if max_artifacts is None else max_artifacts
        kept = [a for a in ctx.artifacts if a.type not in self.context_exclude_types]
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def should_use_context(self, inputs: EvalInputs) -> bool:
        """Tell whether to look at the context at all."""
        return self.enable_context


def as_result(value: Any, agent: AgentDefinition) -> EvalResult:
    """Turn whatever `evaluate` returned into a result.

    Raises:
        OutputContractError: It is, or contains, neither a model nor an artifact.
    """
    if isinstance(value, EvalResult):
        return value
    if value is None:
        return EvalResult.empty()
    items = value if isinstance(value, (list, tuple)) else (value,)
    artifacts: list[Artifact] = []
    for item in items:
        if isinstance(item, Artifact):
            artifacts.append(item)
        elif isinstance(item, BaseModel):
            artifacts.append(Artifact.from_model(item, produced_by=agent.name))
        else:
            raise OutputContractError(
                f"An engine of agent {agent.name!r} returned a {type(item).__name__}: return an EvalResult, "
                "a pydantic model, a list of models, or None.",
                agent=agent.name,
            )
    return EvalResult(artifacts=artifacts)


def _registered_name(model: type[BaseModel]) -> str | None:
    try:
        return type_registry.name_for(model)
    except UnknownTypeError:
        return None


def _read(artifact: Artifact, model: type[ModelT]) -> ModelT:
    """Read through the registry, which knows old versions, unless the class is only a view."""
    if _registered_name(model) is None:
        return artifact.view_as(model)
    return cast(ModelT, artifact.model(cls=model))
