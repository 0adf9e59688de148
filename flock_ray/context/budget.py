"""How many tokens artifacts take in a prompt: an estimate that needs no tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flock_ray.artifact import Artifact
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError

__all__ = ["checked_limit", "estimated_tokens", "newest_within", "ordered"]

BYTES_PER_TOKEN = 4
HEADER_TOKENS = 8
"""For the type's name, the producer, and what a prompt puts around a payload."""


def content_of(artifact: Artifact) -> bytes:
    """Return the JSON of an artifact as it is now, changes of its working copy included."""
    return artifact._content()


def header_of(artifact: Artifact) -> Envelope:
    """Return everything but the content of an artifact; nothing is encoded for it."""
    return artifact._header


def estimated_tokens(artifact: Artifact) -> int:
    """Estimate the tokens of an artifact: a quarter of its JSON's UTF-8 bytes, rounded up, and 8 for its header.

    English text has about four bytes per token. Code, numbers and other scripts take more tokens per byte: set
    a budget lower for them.
    """
    return -(-len(content_of(artifact)) // BYTES_PER_TOKEN) + HEADER_TOKENS


def ordered(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Return artifacts by (creation time, id): the oldest first, and always in the same order."""
    return sorted(artifacts, key=lambda a: (header_of(a).created_us, header_of(a).id))


def newest_within(artifacts: Sequence[Artifact], max_tokens: int | None) -> list[Artifact]:
    """Keep as many as fit into a budget, from the end of the list on; nothing behind a gap.

    Args:
        artifacts: Those at the end are kept first.
        max_tokens: The budget, as `estimated_tokens` counts; None is no limit.
    """
    if max_tokens is None:
        return list(artifacts)
    left, kept = max_tokens, list[Artifact]()
    for artifact in reversed(artifacts):
        left -= estimated_tokens(artifact)
        if left < 0:
            break
        kept.append(artifact)
    return kept[::-1]


def checked_limit(value: object, what: str) -> int:
    """Return a whole number from 1.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{what} takes a whole number from 1, got {value!r}.")
    return value
