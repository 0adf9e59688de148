"""The part of a Flock that knows approvals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flock_ray.core.registry import TypeRegistry

if TYPE_CHECKING:
    from flock_ray.approvals.service import Approvals
    from flock_ray.board import Board
    from flock_ray.config import FlockSettings
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.ports import Notifier, PrincipalDirectory

__all__ = ["Approving"]


class Approving:
    """Lets people decide."""

    _registry: TypeRegistry
    _settings: FlockSettings
    principals: PrincipalDirectory | None
    """Knows the roles of people; None: everybody is who they say, with no roles."""
    _notifiers: tuple[Notifier, ...]
    _alert_outbox: list[Any] | None = None
    """Gets what would be sent; None: it is sent."""

    async def _ready_board(self) -> Board:
        raise NotImplementedError  # Flock's

    @property
    def approvals(self) -> Approvals:
        """What waits for people, by `.publishes(T, approval=...)`: list it, approve, reject, edit, delegate."""
        from flock_ray.approvals.service import Approvals

        return Approvals(self._ready_board, self._registry, self.principals, self._settings.approval_secret)

    @staticmethod
    def _checked_notifiers(given: Iterable[Any]) -> tuple[Notifier, ...]:
        notifiers = tuple(given)
        if not notifiers:
            return ()
        from flock_ray.approvals.notifiers import notifier_of

        return tuple(notifier_of(one) for one in notifiers)

    def _with_notices(self, definitions: Sequence[AgentDefinition]) -> list[AgentDefinition]:
        """Add the agents that tell approvers."""
        if not self._notifiers:
            return list(definitions)
        from flock_ray.approvals.telling import with_notices

        return with_notices(
            definitions, self._notifiers, self._registry, webhook_secret=self._settings.webhook_secret,
            approval_secret=self._settings.approval_secret, outbox=self._alert_outbox,
        )  # fmt: skip
