"""An embedder for tests: texts are similar as far as they share words. Deterministic, and counts what it is asked."""

from __future__ import annotations

import math
import re
import threading
from hashlib import blake2b

DIMENSIONS = 512
SMALL = frozenset(
    {"a", "and", "i", "in", "is", "it", "my", "not", "of", "on", "or", "the", "to", "was", "with"}
)


class WordEmbedder:
    """The cosine of its vectors is the share of common words."""

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.asked: list[list[str]] = []
        """Batches of texts, in order."""
        self.threads: list[int] = []
        self.broken: BaseException | None = None
        """Raised by every call; None: it works."""

    def embed(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(list(texts))
        self.threads.append(threading.get_ident())
        if self.broken is not None:
            raise self.broken
        return [vector_of(text) for text in texts]

    @property
    def texts(self) -> list[str]:
        """All texts that were asked for."""
        return [text for batch in self.asked for text in batch]


def vector_of(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    words = set(re.findall(r"\w+", text.lower())) - SMALL
    for word in words or {"?"}:
        vector[int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "big") % DIMENSIONS] += 1.0
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]
