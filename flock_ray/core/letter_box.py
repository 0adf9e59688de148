"""The open dead letters of one slot, packed: they may lie there for weeks, and in tens of thousands."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from flock_ray.core.state import Letter

__all__ = ["LetterBox"]

_encode = msgspec.msgpack.Encoder().encode


class LetterBox(MutableMapping[bytes, "Letter"]):
    """Letters by id, oldest first. About a third of what they would take as objects.

    What one gets is a copy: a letter that was changed has to be put back.
    """

    __slots__ = ("_decode", "_packed")

    def __init__(self, kind: type[Letter]) -> None:
        """Start empty; `kind` is the class of letters."""
        self._packed: dict[bytes, bytes] = {}
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def __getitem__(self, key: bytes) -> Letter:
        """Return a copy of a letter."""
        return self._decode(self._packed[key])

    def __setitem__(self, key: bytes, letter: Letter) -> None:
        """Add a letter, or put back one that was changed: in its place."""
        self._packed[key] = _encode(letter)

    def __delitem__(self, key: bytes) -> None:
        """Forget a letter."""
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        """Say whether a letter is open."""
        return key in self._packed

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the ids, oldest first."""
        return iter(self._packed)

    def __len__(self) -> int:
        """Count the letters."""
        return len(self._packed)

    def newest_first(self) -> Iterator[Letter]:
        """Iterate over the letters, the newest first; unpacks no more than are looked at."""
        return (self._decode(packed) for packed in reversed(self._packed.values()))

    def of_workflow(self, workflow: str) -> list[Letter]:
        """Return the letters of a workflow, oldest first; unpacks few others."""
        name = workflow.encode("utf-8", "surrogatepass")
        found = [self._decode(packed) for packed in self._packed.values() if name in packed]
        return [letter for letter in found if letter.envelope.correlation_id == workflow]
