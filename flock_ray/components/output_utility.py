"""Prints what an agent makes. Nothing prints by itself here: an agent has this component only when it is given one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, field_validator

from flock_ray.engines.component import AgentComponent, AgentComponentConfig

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["OutputUtilityComponent", "OutputUtilityConfig"]


class OutputUtilityConfig(AgentComponentConfig):
    """How outputs are shown."""

    theme: str | None = None
    """Upstream's; taken and not used: there are no themes here."""
    render_table: bool = True
    """A table by rich; otherwise one line of JSON per output."""
    max_length: int = Field(default=1000, ge=1)
    """Longest value that is shown, in characters."""
    show_metadata: bool = True
    """Whether the id, the workflow and the tags are shown."""
    print_context: bool = False
    """Whether the artifacts of the context are listed, by type and id."""


class OutputUtilityComponent(AgentComponent):
    """Prints every output of a run to standard output, when it is about to be committed.

    On Ray that is the worker's; Ray shows it in the driver unless `FLOCK_RAY_LOG_TO_DRIVER` is off. A run that is
    repeated after a crash prints again.
    """

    config: AgentComponentConfig = Field(default_factory=OutputUtilityConfig)

    @field_validator("config")
    @classmethod
    def _of_this(cls, config: AgentComponentConfig) -> AgentComponentConfig:
        if isinstance(config, OutputUtilityConfig):
            return config
        return OutputUtilityConfig(**config.model_dump())

    async def on_post_publish(self, agent: AgentDefinition, ctx: Context, artifact: Artifact) -> None:
        """Print an output."""
        if self.no_output:
            return
        settings = cast("OutputUtilityConfig", self.config)
        rows = [(name, self._shown(value)) for name, value in artifact.payload.items()]
        if settings.show_metadata:
            rows += [("id", str(artifact.id)), ("workflow", self._shown(artifact.correlation_id or ""))]
            rows += [("tags", self._shown(", ".join(sorted(artifact.tags))))] if artifact.tags else []
        if settings.print_context:
            rows += [("context", f"{one.type} {one.id}") for one in ctx.artifacts]
        if settings.render_table:
            _print_table(f"{agent.name}: {artifact.type}", rows)
        else:
            print(json.dumps({"agent": agent.name, "type": artifact.type, **dict(rows)}, ensure_ascii=False))

    def _shown(self, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        limit = cast("OutputUtilityConfig", self.config).max_length
        # A model may write escape sequences: a terminal would obey them.
        clean = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text[: limit + 1])
        return clean if len(text) <= limit else clean[:limit] + "..."


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    # Not at the top: rich is large, and workers that print nothing need none of it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    Console(file=sys.stdout).print(table)
