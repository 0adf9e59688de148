"""Upstream's documented import path for who an agent is; the definitions are in `flock_ray.core.visibility`."""

from flock_ray.core.visibility import AgentIdentity

__all__ = ["AgentIdentity"]
