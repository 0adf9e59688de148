"""A context by meaning: the artifacts whose text is most similar to a query."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit, newest_within
from flock_ray.context.request import BaseContextProvider, ContextRequest
from flock_ray.context.view import ContextView
from flock_ray.core.registry import type_registry
from flock_ray.errors import ConfigurationError
from flock_ray.filters import FilterConfig

if TYPE_CHECKING:
    from flock_ray.engines.services import Services
    from flock_ray.model import Embedder

__all__ = ["SemanticContextProvider", "text_of"]

MAX_TEXT_CHARS = 8000
"""Of one artifact; models that embed read the beginning of a text anyway."""
_MAX_DEPTH = 20


class SemanticContextProvider(BaseContextProvider):
    """Shows the artifacts that are most similar to a text, of the newest ones of the board.

    Asks for `Flock(embedder=...)`. Similarity is the dot product of vectors of length 1: 1 is equal, 0 unrelated.
    """

    needs_embedder = True

    def __init__(
        self,
        query_text: str | None = None,
        threshold: float = 0.4,
        limit: int = 10,
        extract_field: str | None = None,
        artifact_type: type[BaseModel] | str | None = None,
        where: Callable[[Artifact], bool] | None = None,
        *,
        candidates: int = 200,
        max_tokens: int | None = None,
    ) -> None:
        """Say what to look for.

        Args:
            query_text: The text; None: that of the run's inputs.
            threshold: Least similarity, from -1 to 1.
            limit: At most so many artifacts, the most similar.
            extract_field: Compare only this field; None: all strings of the payload.
            artifact_type: Only this type, a class or a registered name; None: every type.
            where: Only artifacts for which this is true; None: all. One that raises fails the run.
            candidates: How many of the newest artifacts to compare, to 1000.
            max_tokens: A budget, see `estimated_tokens`; the most similar are kept. None is no limit.

        Raises:
            ConfigurationError: A value makes no sense.
        """
        given: tuple[object, object] = (query_text, threshold)
        if query_text is not None and (not isinstance(given[0], str) or not query_text.strip()):
            raise ConfigurationError(
                f"SemanticContextProvider(query_text={query_text!r}): give a text, or None for the run's inputs."
            )
        is_number = isinstance(given[1], (int, float)) and not isinstance(given[1], bool)
        if not is_number or not -1 <= threshold <= 1:
            raise ConfigurationError(
                f"SemanticContextProvider(threshold={threshold!r}): give a number from -1 to 1."
            )
        if artifact_type is not None and not isinstance(artifact_type, str):
            artifact_type = type_registry.ensure(artifact_type).name
        self.query_text = query_text
        self.threshold = threshold
        self.limit = checked_limit(limit, "SemanticContextProvider(limit=)")
        self.extract_field = extract_field
        self.type_name = artifact_type
        self.where = where
        self.candidates = checked_limit(candidates, "SemanticContextProvider(candidates=)")
        self.max_tokens = None if max_tokens is None else checked_limit(max_tokens, "max_tokens=")
        self._embedder: Embedder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the embedder of this process."""
        return {**self.__dict__, "_embedder": None}

    def bind(self, services: Services) -> None:
        """Take the embedder of the worker."""
        self._embedder = services.embedder

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Compare the newest artifacts with the query, and return the most similar."""
        return await self._search(request.store, self._query(request.inputs), request.offload)

    async def get_context(self, store: ContextView) -> list[Artifact]:
        """Return the most similar artifacts: upstream's call, for providers that are made of others.

        Args:
            store: `request.store` of a provider. It applies visibility.

        Raises:
            ConfigurationError: There is no query text, or `store` is another store.
        """
        if not isinstance(store, ContextView):
            raise ConfigurationError(
                "SemanticContextProvider.get_context() takes the store of a ContextRequest, which applies visibility; "
                "give the provider to with_context() instead."
            )
        return await self._search(store, self._query(()), asyncio.to_thread)

    def _query(self, inputs: Sequence[Artifact]) -> str:
        if self.query_text is not None:
            return self.query_text
        text = " ".join(text for text in (text_of(artifact, None) for artifact in inputs) if text)
        if not inputs:
            raise ConfigurationError("SemanticContextProvider needs query_text= where there are no inputs.")
        return text[:MAX_TEXT_CHARS]

    async def _search(
        self, store: ContextView, query: str, offload: Callable[..., Awaitable[Any]]
    ) -> list[Artifact]:
        if self._embedder is None:
            raise ConfigurationError(
                "SemanticContextProvider compares meanings, and there is no embedder: give "
                'Flock(embedder="onnx:/path/to/model") or set FLOCK_EMBEDDER.'
            )
        filters = None if self.type_name is None else FilterConfig(type_names={self.type_name})
        found = await store.newest(filters, limit=self.candidates)
        if self.where is not None:
            found = [artifact for artifact in found if self.where(artifact)]
        texts = [(artifact, text_of(artifact, self.extract_field)) for artifact in found]
        texts = [(artifact, text) for artifact, text in texts if text]
        if not texts or not query.strip():
            return []
        vectors: list[list[float]] = await offload(
            self._embedder.embed, [query, *(text for _, text in texts)]
        )
        return self._chosen([artifact for artifact, _ in texts], vectors)

    def _chosen(self, artifacts: list[Artifact], vectors: list[list[float]]) -> list[Artifact]:
        asked, *answers = vectors
        rated = [
            (sum(map(operator.mul, asked, vector)), artifact)
            for artifact, vector in zip(artifacts, answers, strict=True)
        ]
        # Equal ones: the newer first.
        similar = sorted(
            (pair for pair in reversed(rated) if pair[0] >= self.threshold), key=lambda pair: -pair[0]
        )
        best = [artifact for _, artifact in similar[: self.limit]]
        return newest_within(best[::-1], self.max_tokens)


def text_of(artifact: Artifact, field: str | None) -> str:
    """Return what of an artifact is compared: one field, or every string of the payload, joined by spaces."""
    payload: Any = artifact.payload
    if field is not None:
        payload = payload.get(field) if isinstance(payload, dict) else None
    return " ".join(_strings(payload, 0))[:MAX_TEXT_CHARS]


def _strings(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif depth < _MAX_DEPTH and isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item, depth + 1)
