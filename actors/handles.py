"""Links over Ray actor handles: the only place that calls `.remote()` on the board's actors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayTaskError,
)

from flock_ray.ports import PeerGoneError

RESTART_S = 30.0
"""How long drivers wait for a router that restarts; it takes about a second."""


def actor_name(namespace: str, role: str, index: int | str) -> str:
    """Return the name of an actor of a board: `flock:<namespace>:<role>:<index>`."""
    return f"flock:{namespace}:{role}:{index}"


class ActorLink:
    """Calls methods of one named actor and tells a dead actor from a failing method.

    The actor is looked up at the first call, and again after it was unavailable.
    """

    __slots__ = ("_calls", "_handle", "_name", "_namespace")

    def __init__(self, name: str, namespace: str, handle: Any = None) -> None:
        """Link to an actor by name; `handle` saves the lookup."""
        self._name = name
        self._namespace = namespace
        self._handle: Any = handle
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {}

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Return a method of the actor as a coroutine function."""
        if method.startswith("__"):
            raise AttributeError(method)
        known = self._calls.get(method)
        if known is not None:
            return known

        async def call(*args: Any) -> Any:
            return await self._call(method, *args)

        self._calls[method] = call
        return call

    async def _call(self, method: str, *args: Any) -> Any:
        handle = self._handle
        if handle is None:
            handle = self._handle = await self._find()
        try:
            return await getattr(handle, method).remote(*args)
        except ActorUnavailableError as error:
            raise PeerGoneError(f"{self._name} is unavailable") from error
        except (ActorDiedError, RayActorError) as error:
            raise PeerGoneError(f"{self._name} is dead", final=True) from error
        except RayTaskError as error:
            # The cause is our own typed error; Ray's wrapper would hide its class.
            raise error.cause from None

    async def _find(self) -> ActorHandle[Any]:
        try:
            return await asyncio.to_thread(ray.get_actor, self._name, self._namespace)
        except ValueError as error:
            raise PeerGoneError(f"{self._name} does not exist", final=True) from error
        except GetTimeoutError as error:
            raise PeerGoneError(f"{self._name} can't be looked up now") from error

    def kill(self) -> None:
        """End the actor's process at once; nothing happens when it is gone already."""
        try:
            handle = self._handle or ray.get_actor(self._name, self._namespace)
        except ValueError:
            return
        ray.kill(handle, no_restart=True)


class PatientLink(ActorLink):
    """Waits for an actor that restarts; for calls that may be repeated, of drivers to the router."""

    __slots__ = ()

    async def _call(self, method: str, *args: Any) -> Any:
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                return await super()._call(method, *args)
            except PeerGoneError as gone:
                if gone.final or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.2)


class RayPeers:
    """Finds the actors of one board by their names."""

    def __init__(self, namespace: str) -> None:
        """Look in the board's namespace."""
        self._namespace = namespace
        self._links: dict[str, ActorLink] = {}

    def _link(self, role: str, index: int | str) -> ActorLink:
        name = actor_name(self._namespace, role, index)
        link = self._links.get(name)
        if link is None:
            if len(self._links) > 10_000:
                self._links.clear()  # links of workers long gone; those in use are made again
            link = self._links[name] = ActorLink(name, self._namespace)
        return link

    def shard(self, index: int) -> Any:
        """Return a shard."""
        return self._link("shard", index)

    def worker(self, worker: str) -> Any:
        """Return a worker."""
        return self._link("worker", worker)

    def router(self) -> Any:
        """Return the router."""
        return self._link("router", 0)

    def gateway(self, index: int) -> Any:
        """Return a model gateway; it may not be there."""
        return self._link("gateway", index)
