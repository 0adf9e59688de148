"""The part of `Flock` that has orchestrator components, and calls the hooks that run in this program."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from flock_ray.errors import safe_error_text

if TYPE_CHECKING:
    from flock_ray.components.orchestrator.base import OrchestratorComponent
    from flock_ray.components.orchestrator.gate import ComponentGate
    from flock_ray.core.definition import AgentDefinition

__all__ = ["ComponentDeclaring"]

logger = logging.getLogger("flock_ray")

_inside: ContextVar[frozenset[tuple[int, str]]] = ContextVar("flock_component_hooks", default=frozenset())
"""Flock and name of the hooks that the running code was called from."""


class ComponentDeclaring:
    """`add_component` and the life of components; a parent of `Flock`."""

    _components: tuple[OrchestratorComponent, ...] = ()
    """By priority."""
    _initialized: frozenset[int] = frozenset()
    """`id()` of the components whose on_initialize has ended well."""
    _component_lock: asyncio.Lock | None = None
    _told_shutdown = False

    def add_component(self, component: OrchestratorComponent) -> Self:
        """Add a component whose hooks see this flock's artifacts and life.

        Raises:
            ConfigurationError: It has a hook that a distributed board can't call; says what to use instead.
        """
        from flock_ray.components.orchestrator.base import refuse_impossible

        refuse_impossible(component)
        self._components = tuple(sorted((*self._components, component), key=lambda one: one.priority))
        self._on_change()
        return self

    def _on_change(self) -> None:
        raise NotImplementedError  # Flock's

    def _with_gate(self, definitions: list[AgentDefinition]) -> list[AgentDefinition]:
        """Give agents the components that are part of matching for them."""
        if self._components:
            from flock_ray.components.orchestrator.gate import ComponentGate
            from flock_ray.components.orchestrator.starting import starting

            gate: ComponentGate | None = ComponentGate.of(self._components)
            starters = starting(self._components)
            for definition in definitions:
                definition.gate = gate
                definition.starters = starters
        return definitions

    async def _initialize_components(self) -> None:
        """Call on_initialize of components that have not had it; who comes meanwhile waits.

        The flock is usable from inside the hook.
        """
        if all(id(one) in self._initialized for one in self._components):
            return
        mark = (id(self), "on_initialize")
        if mark in _inside.get():
            return
        if self._component_lock is None:
            self._component_lock = asyncio.Lock()
        async with self._component_lock:
            token = _inside.set(_inside.get() | {mark})
            try:
                for component in self._components:
                    if component.config.enabled and id(component) not in self._initialized:
                        await _called(component, "on_initialize", self)
                    self._initialized |= {id(component)}
            finally:
                _inside.reset(token)

    async def _tell_components(self, hook: str) -> None:
        """Call a hook of all components that were initialized; one that raises is logged and stops nobody.

        Does nothing inside the same hook.
        """
        mark = (id(self), hook)
        if mark in _inside.get():
            return
        token = _inside.set(_inside.get() | {mark})
        try:
            for component in self._components:
                if component.config.enabled and id(component) in self._initialized:
                    await self._tell(component, hook)
        finally:
            _inside.reset(token)

    async def _tell(self, component: OrchestratorComponent, hook: str) -> None:
        try:
            await _called(component, hook, self)
        except Exception as error:
            name = component.name or type(component).__name__
            logger.error("flock_ray: %s.%s failed: %s", name, hook, ": ".join(safe_error_text(error)))

    async def _fell_idle(self) -> None:
        await self._tell_components("on_orchestrator_idle")

    async def _shutting_down(self) -> None:
        """Call on_shutdown, once."""
        if not self._told_shutdown:
            self._told_shutdown = True
            await self._tell_components("on_shutdown")


async def _called(component: OrchestratorComponent, hook: str, flock: Any) -> None:
    made = getattr(component, hook)(flock)
    if inspect.isawaitable(made):
        await made
