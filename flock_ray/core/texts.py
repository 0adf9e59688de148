"""What runs say while they go on: pieces of text on their way to readers, and the ring that a shard keeps of them.

Soft state: it is in no journal, and a shard's process that dies takes it along.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import msgspec

from flock_ray.core.ids import EPOCH_SHIFT

__all__ = [
    "EVENT_KINDS",
    "FAMILY",
    "GAP",
    "KINDS",
    "MAX_TEXT",
    "RESTARTED",
    "Text",
    "TextBatch",
    "TextLog",
    "TextQuery",
    "decode_batch",
    "encode",
]

FAMILY = "stream"
EVENT_KINDS = frozenset(("stream.failed", "stream.final", "stream.status", "stream.token"))
"""What the pieces are called among events."""

KINDS = frozenset(kind.partition(".")[2] for kind in EVENT_KINDS)
GAP = "gap"

RESTARTED = "restarted"
"""Status: the answer begins again, what the tokens of this attempt have said counts no more."""

MAX_TEXT = 4096
"""Characters of one piece."""

MAX_RING_BYTES = 8 * 1024 * 1024
"""What a shard keeps of all its texts, about."""

OVERHEAD_BYTES = 200
"""What a piece costs beside its text."""


class Text(msgspec.Struct, array_like=True, gc=False):
    """A piece of what one attempt of one run says."""

    activation_id: bytes
    attempt: int
    agent: str
    correlation_id: str
    kind: str
    """token, status, final or failed; a reader also gets `gap`s."""
    text: str = ""
    missed: int = 0
    """Pieces of this attempt that were dropped right before this one; of a gap: of anybody, 0 for an unknown number."""
    seq: int = 0
    """Position in the shard's ring."""
    at_us: int = 0

    @property
    def size(self) -> int:
        """What it costs in bytes, about."""
        return OVERHEAD_BYTES + 2 * len(self.text)


class TextBatch(msgspec.Struct, array_like=True, gc=False):
    """Pieces from one worker, in order."""

    texts: list[Text]


class TextQuery(msgspec.Struct, array_like=True, frozen=True):
    """Which pieces a reader wants; empty means all."""

    kinds: tuple[str, ...] = ()
    correlation_id: str = ""
    agent: str = ""

    def selects(self, text: Text) -> bool:
        """Tell whether a piece is wanted."""
        return (
            (not self.correlation_id or text.correlation_id == self.correlation_id)
            and (not self.agent or text.agent == self.agent)
            and (not self.kinds or text.kind in self.kinds)
        )


encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(TextBatch).decode


class TextLog:
    """A ring of the newest pieces of one shard, bounded by what they weigh."""

    def __init__(self, max_bytes: int = MAX_RING_BYTES) -> None:
        """Start empty."""
        self._max_bytes = max_bytes
        self._texts: list[Text | None] = []
        self._gone = 0
        """Entries at the front that were dropped already."""
        self._bytes = 0
        # Not 0: who has read nothing of an empty ring is not who begins with the oldest piece.
        self.head = 1
        """Position of the newest piece."""

    def begin_at(self, base: int) -> None:
        """Forget everything and number what comes from `base`: a new process is another ring."""
        self.clear()
        self.head = base - 1

    def clear(self) -> None:
        """Forget everything; the numbers go on, so that readers see a gap."""
        self._texts.clear()
        self._gone = self._bytes = 0

    def __len__(self) -> int:
        """Return how many pieces are kept."""
        return len(self._texts) - self._gone

    @property
    def size(self) -> int:
        """Bytes that are kept, about."""
        return self._bytes

    def add(self, texts: Iterable[Text], at_us: int) -> None:
        """Number pieces and keep them; the oldest go."""
        for text in texts:
            if len(text.text) > MAX_TEXT:
                text.text = text.text[:MAX_TEXT]
            self.head += 1
            text.seq, text.at_us = self.head, at_us
            self._texts.append(text)
            self._bytes += text.size
        while self._bytes > self._max_bytes:
            oldest = self._texts[self._gone]
            self._bytes -= 0 if oldest is None else oldest.size
            self._texts[self._gone] = None
            self._gone += 1
        if 2 * self._gone > len(self._texts):
            del self._texts[: self._gone]
            self._gone = 0

    def read(self, after: int, limit: int, query: TextQuery) -> tuple[list[Text], int]:
        """Return pieces behind a position and the position to go on from.

        Args:
            after: Position of the last piece seen; 0 for the oldest kept, below 0 for none of those. If pieces
                behind it are gone, the first one returned is a gap.
            limit: At most this many pieces, and a gap.
            query: Which ones.
        """
        if after < 0:
            return [], self.head
        out: list[Text] = []
        oldest = self.head - len(self) + 1
        if after > self.head or 0 < after < oldest - 1:
            out.append(Text(b"", 0, "", "", GAP, missed=self._missed(after, oldest), seq=oldest - 1))
            after = oldest - 1
        limit += len(out)
        position = max(after, oldest - 1)
        for text in islice(self._texts, self._gone + position + 1 - oldest, None):
            if len(out) == limit:
                break
            position += 1
            if text is not None and query.selects(text):
                out.append(text)
        return out, position

    @staticmethod
    def _missed(after: int, oldest: int) -> int:
        """Return how many pieces are gone; 0 when the position is one of a ring that is gone itself."""
        same = after >> EPOCH_SHIFT == oldest >> EPOCH_SHIFT
        return max(0, oldest - after - 1) if same else 0
