"""A context without secrets: what a provider found, with every match of some patterns replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace
from pydantic_core import to_json

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit, header_of
from flock_ray.context.request import BaseContextProvider, ContextProvider, ContextRequest, bind_inner
from flock_ray.core.secrets import MAYBE_ASSIGNED, SECRETS
from flock_ray.errors import ConfigurationError

__all__ = ["REDACTED", "SECRET_KEYS", "SECRET_PATTERNS", "RedactingContextProvider"]

REDACTED = "[REDACTED]"

SECRET_PATTERNS: tuple[str, ...] = (*SECRETS[:-1], MAYBE_ASSIGNED)
"""Private keys, API keys and tokens of known forms, credentials in URLs, and `password: ...` in text.

Artifacts may be hostile: none of these goes over the same text again and again.
"""

SECRET_KEYS = frozenset(
    {"password", "passwd", "pwd", "secret", "api_key", "apikey", "access_token", "refresh_token", "private_key",
     "client_secret", "authorization"}
)  # fmt: skip
"""Fields whose whole value goes, whatever it is; upper case and `-` count as lower case and `_`."""

_MAX_DEPTH = 60


class RedactingContextProvider(BaseContextProvider):
    """Replaces secrets in what another provider finds; a safety net, no proof that nothing is left.

    Ids, types and times stay. A payload may no longer fit its type, when that restricts its strings.
    """

    def __init__(
        self,
        inner: ContextProvider,
        *,
        patterns: Iterable[str | re.Pattern[str]] | Mapping[str, str] | None = None,
        keys: Iterable[str] = SECRET_KEYS,
        replacement: str = REDACTED,
        max_tokens: int | None = None,
    ) -> None:
        """Redact a provider's context.

        Args:
            inner: The provider.
            patterns: Regular expressions, or a mapping of names to them; None is `SECRET_PATTERNS`.
            keys: Names of fields whose value is replaced as a whole.
            replacement: What stands for a match.
            max_tokens: A budget, see `estimated_tokens`; None is no limit.

        Raises:
            ConfigurationError: A pattern is no regular expression.
        """
        given = SECRET_PATTERNS if patterns is None else patterns
        if isinstance(given, (str, re.Pattern)):
            raise ConfigurationError(f"RedactingContextProvider takes a list of patterns: [{given!r}].")
        self.inner = inner
        self.replacement = replacement
        self.max_tokens = None if max_tokens is None else checked_limit(max_tokens, "max_tokens=")
        self._keys = frozenset(_plain(key) for key in keys)
        try:
            self._patterns = [
                re.compile(pattern) for pattern in (given.values() if isinstance(given, Mapping) else given)
            ]
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"A pattern of RedactingContextProvider is no regular expression: {error}."
            ) from error

    def bind(self, services: Any) -> None:
        """Hand on the services of the worker."""
        bind_inner(self.inner, services)

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Return what the provider finds, redacted."""
        found = await self.inner(request)
        # A large text takes its time, and user patterns any time.
        redacted: list[Artifact] = await request.offload(lambda: [self._redacted(a) for a in found])
        return redacted

    def _redacted(self, artifact: Artifact) -> Artifact:
        payload = artifact.payload
        clean = self._clean(payload, 0)
        if clean == payload:
            return artifact
        return Artifact.from_envelope(replace(header_of(artifact), payload=to_json(clean)))

    def _clean(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            for pattern in self._patterns:
                value = pattern.sub(lambda _: self.replacement, value)
            return value
        if depth > _MAX_DEPTH:
            return self.replacement if isinstance(value, (dict, list)) else value
        if isinstance(value, dict):
            return {
                self._clean(key, depth + 1): self.replacement
                if _plain(key) in self._keys and value[key] is not None
                else self._clean(value[key], depth + 1)
                for key in value
            }
        if isinstance(value, list):
            return [self._clean(item, depth + 1) for item in value]
        return value


def _plain(key: object) -> str:
    return str(key).lower().replace("-", "_")
