"""From what users write to an embedder: `Flock(embedder=...)` and FLOCK_EMBEDDER."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flock_ray.errors import ConfigurationError
from flock_ray.semantic.remembering import RememberingEmbedder

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.model import Embedder

__all__ = ["chosen_embedder", "embedder_of", "give_embedder", "model_behind"]

LOCAL = "onnx:"


def embedder_of(given: Embedder | str | None) -> RememberingEmbedder | None:
    """Return an embedder with a memory; None for None.

    Args:
        given: An embedder, `onnx:/path/to/folder` for a local model, or the name of a model behind an API,
            such as `openai/text-embedding-3-small` or `ollama/nomic-embed-text`.

    Raises:
        ConfigurationError: It is none of these, or the folder holds no model.
    """
    if given is None or isinstance(given, RememberingEmbedder):
        return given
    if isinstance(given, str):
        return RememberingEmbedder(_named(given.strip()))
    if not callable(getattr(given, "embed", None)) or not isinstance(getattr(given, "name", None), str):
        raise ConfigurationError(
            f"embedder={given!r} has no name and embed(texts): give OnnxEmbedder(path), OpenAIEmbedder(model), "
            "or an object of your own with both."
        )
    return RememberingEmbedder(given)


def chosen_embedder(given: Embedder | str | None, setting: str | None) -> RememberingEmbedder | None:
    """Return the embedder of a flock: what it was given, else what the setting names; see `embedder_of`."""
    return embedder_of(given if given is not None else setting)


def give_embedder(definition: AgentDefinition, embedder: RememberingEmbedder | None) -> None:
    """Let an agent that is about to be deployed compare meanings.

    Raises:
        ConfigurationError: It has to, and there is no embedder.
    """
    if embedder is None and any(subscription.semantic for subscription in definition.subscriptions):
        raise ConfigurationError(
            f"agent {definition.name!r} consumes by semantic_match, and there is no embedder: give "
            'Flock(embedder="onnx:/path/to/model") or set FLOCK_EMBEDDER.'
        )
    definition.embedder = embedder


def model_behind(embedder: RememberingEmbedder | None) -> str | None:
    """Return the model that an embedder asks through the gateway; None: it asks none."""
    inner = None if embedder is None else embedder.wrapped
    return getattr(inner, "gateway_model", None)


def _named(text: str) -> Embedder:
    if text.startswith(LOCAL):
        from flock_ray.semantic.onnx import OnnxEmbedder

        return OnnxEmbedder(text.removeprefix(LOCAL))
    if "/" in text:
        from flock_ray.semantic.openai import OpenAIEmbedder

        return OpenAIEmbedder(text)
    raise ConfigurationError(
        f'embedder={text!r}: write "onnx:/path/to/model" for a local model, or "provider/model", '
        'such as "openai/text-embedding-3-small".'
    )
