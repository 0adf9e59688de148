"""`LiteLLMEngine`: a language model makes the outputs of an agent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from flock_ray.engines.component import EngineComponent, EvalInputs, EvalResult
from flock_ray.engines.llm.conversation import Conversation
from flock_ray.engines.llm.prompt import Inputs, instructions
from flock_ray.engines.llm.schema import AnswerShape, answer_shape
from flock_ray.engines.llm.toolbox import READ_RESULT, Toolbox, in_thread, inline
from flock_ray.engines.services import Services
from flock_ray.engines.tools import FunctionTool, Tool
from flock_ray.errors import ConfigurationError, NoEngineError
from flock_ray.model import Caller, Model, ModelRequest, Timeouts

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context

__all__ = ["Adapter", "LiteLLMEngine"]

Adapter = Literal["auto", "json_schema", "json_object", "prompt"]

_SECRET = re.compile(
    r"api_?key|access_key|secret|password|credential|header|authorization|_token$|^token$", re.IGNORECASE
)
_TIMEOUT_NAMES = ", ".join(Timeouts.__struct_fields__)


class LiteLLMEngine(EngineComponent):
    """Asks a language model for the outputs; the default engine of agents that declare none.

    The prompt is made of the agent's description, the output types with their descriptions and constraints,
    and all inputs. What the model answers is validated with the real classes; what does not fit is asked for
    again, only the wrong fields where that is possible.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | None = None
    """As litellm names it, such as "openai/gpt-4.1-mini"; None: the agent's, then the flock's."""
    instructions: str | None = None
    """What to do, behind the agent's description; None for nothing more."""
    temperature: float | None = Field(default=None, ge=0)
    """None: the provider's default."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; None: the provider's limit."""
    max_tool_calls: int = Field(default=100, ge=0)
    """Calls of tools in one run; behind them the model has to answer."""
    tool_timeout: timedelta | None = timedelta(minutes=1)
    """Limit of one call of a tool that has none of its own; None: no limit."""
    stream: bool | None = None
    """Whether the answer is asked for in pieces; False: never shown at all. None: when somebody reads what runs of the
    board stream, or did within the last hour; who comes later gets it in one piece."""
    adapter: Adapter = "auto"
    """How the model is made to answer in JSON.

    "json_schema": the provider enforces the schema. "json_object": the provider enforces JSON, the schema stands
    in the prompt. "prompt": only the prompt asks for it. "auto": the first that the provider takes; with tools
    "prompt", because few providers take both."""
    max_repairs: int = Field(default=2, ge=0)
    """How often an answer that does not fit is asked for again."""
    timeouts: Timeouts = Timeouts()
    """Of one call to the model, in seconds; see `flock_ray.model.Timeouts`."""
    fallbacks: tuple[str, ...] = ()
    """Models to try in turn when the first is unavailable, rate limited or too slow."""
    cache_ttl: timedelta | None = None
    """How long an equal request is answered from the cache; None: never."""
    seed: int | None = None
    """For providers that sample the same way again; None: no seed."""
    lm_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More parameters, handed to the provider as they are. API keys do not belong here, but in the environment."""

    _services: Services = PrivateAttr(default_factory=Services)
    _shapes: dict[int, tuple[Any, AnswerShape]] = PrivateAttr(default_factory=dict)
    """By the group's id in this process, with the group itself."""
    _tools: dict[str, tuple[list[Any], list[FunctionTool | Tool]]] = PrivateAttr(default_factory=dict)
    """By agent: the functions, and what was compiled of them."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Make the engine; the settings are the fields of the class.

        Raises:
            ConfigurationError: An API key is among the `lm_kwargs`: they would be stored with the agent.
        """
        super().__init__(**{"model": model, **settings})
        for name in self.lm_kwargs:
            if _SECRET.search(name):
                raise ConfigurationError(
                    f"{type(self).__name__}: {name} in lm_kwargs would be stored with the agent and in every request. "
                    "Set the provider's environment variable on the gateway instead, such as OPENAI_API_KEY."
                )

    @field_validator("timeouts", mode="before")
    @classmethod
    def _read_timeouts(cls, value: Any) -> Any:
        """Take a mapping, too."""
        if not isinstance(value, dict):
            return value
        unknown = sorted(set(value) - set(Timeouts.__struct_fields__))
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {_TIMEOUT_NAMES}")
        return Timeouts(**value)

    def __getstate__(self) -> dict[Any, Any]:
        """Travel without what belongs to this process."""
        state = super().__getstate__()
        private = dict(state.get("__pydantic_private__") or {})
        private.update(_services=Services(), _shapes={}, _tools={})
        return {**state, "__pydantic_private__": private}

    def bind(self, services: Services) -> None:
        """Take the services of the worker."""
        self._services = services

    def check_agent(self, agent: AgentDefinition) -> None:
        """Check at deploy what a model would be asked.

        Raises:
            ConfigurationError: The schema of the outputs can't be followed, or a tool can't be called.
        """
        for group in agent.output_groups:
            self._shape(agent, group)
        self._function_tools(agent)

    async def evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, output_group: OutputGroup
    ) -> EvalResult:
        """Ask the model for the outputs of one group, in one conversation.

        Raises:
            NoEngineError: No model is named.
            ModelRefusedError: The model, or its provider's filter, declines to answer; not retryable.
            ModelAnswerError: After all repairs the answer does not fit; not retryable.
            ModelError: The provider failed; `retryable` says whether to try again.
        """
        model, name = self._model_port(agent), self._model_name(agent)
        shape = self._shape(agent, output_group)
        tools, captured = await self._run_tools(agent, ctx), getattr(model, "captured", None)
        toolbox = Toolbox(tools, note=ctx.hooks.note, captured=captured)
        adapter = self._adapter(bool(toolbox))
        user = Inputs(agent, ctx.groups)
        message = user.message(inputs.artifacts, self._context_artifacts(ctx, inputs), is_batch=ctx.is_batch)
        system = instructions(
            agent, output_group, shape,
            extra=self.instructions, with_schema=self.adapter != "json_schema", with_tools=bool(toolbox),
        )  # fmt: skip
        conversation = Conversation(
            model, self._request(agent, ctx, name, [system, message]), shape,
            toolbox=toolbox, ctx=ctx, adapter=adapter, may_step_down=self.adapter == "auto",
            max_tool_calls=self.max_tool_calls, max_repairs=self.max_repairs,
            streams=self._streams(agent), num_media=user.num_media,
        )  # fmt: skip
        models = await conversation.run()
        return EvalResult.from_objects(*models, agent=agent)

    def _model_port(self, agent: AgentDefinition) -> Model:
        if self._services.model is None:
            raise NoEngineError(
                f"Agent {agent.name!r} needs a language model, and there is none here. Run it on a Flock with a model, "
                "or in tests on VirtualFlock(language_model=ScriptedModel(...)).",
                agent=agent.name,
            )
        return self._services.model

    def _model_name(self, agent: AgentDefinition) -> str:
        name = self.model or self.config.model or agent.model or self._services.default_model
        if not name:
            raise NoEngineError(
                f'Agent {agent.name!r} has no model: name one with {type(self).__name__}(model=...), Flock("...") or '
                "FLOCK_MODEL.",
                agent=agent.name,
            )
        return name

    def _request(
        self, agent: AgentDefinition, ctx: Context, name: str, messages: list[dict[str, Any]]
    ) -> ModelRequest:
        return ModelRequest(
            model=name,
            messages=messages,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            extra=dict(self.lm_kwargs),
            fallbacks=list(self.fallbacks),
            timeouts=self.timeouts,
            cache_ttl_s=None if self.cache_ttl is None else self.cache_ttl.total_seconds(),
            caller=Caller(
                workflow=ctx.correlation_id or "",
                agent=agent.name,
                activation=ctx.task_id,
                attempt=ctx.attempt,
                tenant=agent.tenant or "",
            ),
        )

    def _shape(self, agent: AgentDefinition, group: OutputGroup) -> AnswerShape:
        found = self._shapes.get(id(group))
        if found is None or found[0] is not group:
            found = self._shapes[id(group)] = (group, answer_shape(agent.name, group))
        return found[1]

    def _adapter(self, has_tools: bool) -> Adapter:
        if self.adapter != "auto":
            return self.adapter
        return "prompt" if has_tools else "json_schema"

    def _streams(self, agent: AgentDefinition) -> bool | None:
        # Candidates that are made at the same time would be mixed.
        return self.stream if agent.best_of is None or agent.best_of[0] == 1 else False

    def _context_artifacts(self, ctx: Context, inputs: EvalInputs) -> list[Artifact]:
        """Return what the agent may know besides its inputs: what its context provider gave, or the history."""
        shown = {artifact.id for artifact in inputs.artifacts}
        kept = [a for a in ctx.artifacts if a.type not in self.context_exclude_types and a.id not in shown]
        limit = self.context_max_artifacts
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def _function_tools(self, agent: AgentDefinition) -> list[FunctionTool | Tool]:
        """Return the agent's own tools, compiled once.

        Raises:
            ConfigurationError: One can't be called by a model, or two have one name.
        """
        found = self._tools.get(agent.name)
        if found is None or found[0] != agent.tools:
            made = [tool if isinstance(tool, Tool) else FunctionTool(tool) for tool in agent.tools]
            names = [tool.name for tool in made]
            twice = sorted({name for name in names if names.count(name) > 1 or name == READ_RESULT})
            if twice:
                raise ConfigurationError(
                    f"Agent {agent.name!r} has two tools named {twice[0]!r}; rename one with @flock_tool(name=...)."
                )
            found = self._tools[agent.name] = (list(agent.tools), made)
        return found[1]

    async def _run_tools(self, agent: AgentDefinition, ctx: Context) -> list[Tool]:
        offload = inline if self._services.inline else in_thread
        limit = None if self.tool_timeout is None else self.tool_timeout.total_seconds()
        own = self._function_tools(agent)
        tools = [tool if isinstance(tool, Tool) else tool.bind(ctx, offload, limit) for tool in own]
        servers = self._services.tool_servers
        return tools if servers is None else [*tools, *cast("Sequence[Tool]", await servers.tools(agent))]
