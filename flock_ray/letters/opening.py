"""The part of a Flock that knows dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flock_ray.core.registry import TypeRegistry

if TYPE_CHECKING:
    from flock_ray.board import Board
    from flock_ray.config import FlockSettings
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.dead_letters import DeadLetters

__all__ = ["DeadLettering"]


class DeadLettering:
    """Looks after runs that failed for good."""

    _registry: TypeRegistry
    _settings: FlockSettings
    _alert_outbox: list[Any] | None = None
    """Gets what webhooks would be sent; None: it is sent."""

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    @property
    def dead_letters(self) -> DeadLetters:
        """Runs that failed for good, of agents with `.retry(dead_letter=...)`: list, edit, redrive, discard."""
        from flock_ray.dead_letters import DeadLetters

        return DeadLetters(self._ready_board, self._registry)

    def _with_alerts(self, definitions: Sequence[AgentDefinition]) -> list[AgentDefinition]:
        """Add the agents that tell of new dead letters."""
        if all(definition.dead_letter is None for definition in definitions):
            return list(definitions)
        from flock_ray.letters.alerts import with_alerts

        return with_alerts(
            definitions, self._registry, self._settings.webhook_secret, outbox=self._alert_outbox
        )
