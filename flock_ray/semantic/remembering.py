"""An embedder with a memory: equal texts are embedded once per process, and answers are checked."""

from __future__ import annotations

import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from flock_ray.errors import FlockError, ModelError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.model import Embedder

__all__ = ["DEFAULT_MEMORY_BYTES", "MemoryStats", "RememberingEmbedder"]

DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024
"""Of vectors, per process: about 36,000 texts at 384 numbers each."""

BATCH = 256
"""Most texts of one call to the embedder."""

ENTRY_BYTES = 250
"""Roughly what an entry takes beside its numbers."""


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """How the memory of an embedder fares in this process."""

    hits: int
    misses: int
    entries: int
    size_bytes: int
    max_bytes: int


class RememberingEmbedder:
    """Wraps an embedder: remembers vectors by the hash of their text, least recently used out first.

    Copies that travel to another process find each other there: all agents share one model and one memory.
    Its methods may be called from several threads; those of the wrapped embedder are then, too.
    """

    def __init__(self, embedder: Embedder, *, max_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        """Wrap an embedder.

        Args:
            embedder: Asked for what is not remembered; nothing is asked now.
            max_bytes: Size of the memory, about; it holds no texts.
        """
        self._embedder = embedder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._vectors: OrderedDict[bytes, array[float]] = OrderedDict()
        self._size = 0
        self._length: int | None = None
        """Numbers of a vector; None before the first."""
        self._hits = self._misses = 0

    @property
    def name(self) -> str:
        """Names the model."""
        return self._embedder.name

    @property
    def wrapped(self) -> Embedder:
        """The embedder that it remembers for."""
        return self._embedder

    def __repr__(self) -> str:
        """Show the wrapped embedder."""
        return f"RememberingEmbedder({self._embedder!r})"

    def __reduce__(self) -> Any:
        """Travel as the wrapped embedder; the memory stays here."""
        import cloudpickle  # type: ignore[import-untyped]  # ships no types

        return _arrive, (cloudpickle.dumps(self._embedder), self._max_bytes)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of length 1 per text, in order. Blocks while the embedder works.

        Raises:
            ModelError: The embedder failed, or answered with something else than vectors; `retryable` says
                whether to repeat it.
        """
        keys = [_key(text) for text in texts]
        found: dict[bytes, array[float]] = {}
        with self._lock:
            for key in keys:
                vector = self._vectors.get(key)
                if vector is not None:
                    self._vectors.move_to_end(key)
                    found[key] = vector
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        # What was asked for twice at once is asked for once; that counts as a miss and a hit.
        with self._lock:
            self._misses += len(wanted)
            self._hits += len(texts) - len(wanted)
        todo = list(wanted.items())
        for start in range(0, len(todo), BATCH):
            part = todo[start : start + BATCH]
            made = dict(zip([key for key, _ in part], self._ask([text for _, text in part]), strict=True))
            self._remember(made)
            found |= made
        return [found[key].tolist() for key in keys]

    def missing(self, texts: list[str]) -> list[str]:
        """Return the texts, each once, that are not remembered."""
        wanted = {_key(text): text for text in texts}
        with self._lock:
            return [text for key, text in wanted.items() if key not in self._vectors]

    def stats(self) -> MemoryStats:
        """Return how the memory fares in this process."""
        with self._lock:
            return MemoryStats(self._hits, self._misses, len(self._vectors), self._size, self._max_bytes)

    def _remember(self, made: dict[bytes, array[float]]) -> None:
        with self._lock:
            for key, vector in made.items():
                if key not in self._vectors:
                    self._size += _bytes_of(vector)
                self._vectors[key] = vector
            while self._size > self._max_bytes and self._vectors:
                _, old = self._vectors.popitem(last=False)
                self._size -= _bytes_of(old)

    def _ask(self, texts: list[str]) -> list[array[float]]:
        try:
            answer = self._embedder.embed(texts)
        except FlockError:
            raise
        except Exception as error:
            kind, _ = safe_error_text(error)  # its text may quote what was embedded
            raise ModelError(f"The embedder {self.name!r} failed: {kind}. Try again.") from error
        try:
            return self._checked(texts, answer)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"The embedder {self.name!r} answered with no usable vectors: {error}."
            ) from None

    def _checked(self, texts: list[str], answer: Sequence[Sequence[float]]) -> list[array[float]]:
        if len(answer) != len(texts):
            raise ValueError(f"{len(answer)} for {len(texts)} texts")
        vectors = []
        for given in answer:
            norm = math.hypot(*given)
            if not math.isfinite(norm) or norm == 0:
                raise ValueError("one has no direction")
            if len(given) != (self._length or len(given)):
                raise ValueError(f"one has {len(given)} numbers, another {self._length}")
            self._length = len(given)
            vectors.append(array("f", [number / norm for number in given]))
        return vectors


_here: WeakValueDictionary[bytes, RememberingEmbedder] = WeakValueDictionary()
_here_lock = threading.Lock()


def _arrive(data: bytes, max_bytes: int) -> RememberingEmbedder:
    """Return this process's copy of an embedder that was sent here, made on first arrival."""
    import cloudpickle

    key = blake2b(data, digest_size=16).digest() + max_bytes.to_bytes(8, "big")
    with _here_lock:
        known = _here.get(key)
        if known is None:
            known = _here[key] = RememberingEmbedder(cloudpickle.loads(data), max_bytes=max_bytes)
        return known


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _bytes_of(vector: array[float]) -> int:
    return len(vector) * vector.itemsize + ENTRY_BYTES
