"""The shard's half of streaming: takes what runs say from workers, keeps a ring of it, and serves readers.

None of it goes through a micro-batch or the journal: it must cost the board's work as little as possible.
"""

from __future__ import annotations

import asyncio

import msgspec

from flock_ray.core.texts import TextLog, TextQuery, decode_batch, encode
from flock_ray.ports import Clock

__all__ = ["ShardTexts", "is_heard"]

MAX_TEXTS = 1000
"""Most pieces that one read returns."""

LISTENED_S = 3600.0
"""A board that had a reader has one again soon: so long the answers of models are streamed for the next one."""

_decode_query = msgspec.msgpack.Decoder(TextQuery).decode


def is_heard(read_s: float | None) -> bool:
    """Tell whether somebody reads what runs say; `read_s`: the loop's time when somebody last did, None: never."""
    return read_s is not None and asyncio.get_running_loop().time() - read_s < LISTENED_S


class ShardTexts:
    """Keeps and serves what runs of this shard's workflows say."""

    _clock: Clock

    def __init__(self) -> None:
        """Start with an empty ring."""
        super().__init__()
        self.texts = TextLog()
        self._texts_changed: asyncio.Future[None] | None = None
        self._read_texts_s: float | None = None
        """Loop time at which somebody last asked for texts."""

    async def take_texts(self, blob: bytes) -> bool:
        """Take a TextBatch from a worker; returns whether somebody reads them, or did lately."""
        self.texts.add(decode_batch(blob).texts, self._clock.now_us())
        self._tell_text_readers()
        return is_heard(self._read_texts_s)

    def forget_texts(self) -> None:
        """Forget everything that runs have said: it may repeat what has to be erased. Readers see a gap."""
        self.texts.clear()
        self._tell_text_readers()

    def _tell_text_readers(self) -> None:
        changed, self._texts_changed = self._texts_changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def text_list(self, after: int, query: bytes, limit: int, wait_s: float) -> tuple[bytes, int]:
        """Return what was said behind a position, waiting for the first piece.

        Args:
            after: Position of the last piece seen; 0: from the oldest kept; below 0: nothing, only where the end is.
            query: msgpack of a TextQuery.
            limit: How many pieces; at most MAX_TEXTS come.
            wait_s: How long to wait for the first one, in seconds.

        Returns:
            msgpack of a list of Text, and the position to go on from.
        """
        wanted = _decode_query(query)
        self._read_texts_s = asyncio.get_running_loop().time()
        until_s = self._read_texts_s + wait_s
        from_now = after < 0
        while True:
            found, after = self.texts.read(after, max(1, min(limit, MAX_TEXTS)), wanted)
            left_s = until_s - asyncio.get_running_loop().time()
            if found or from_now or left_s <= 0:
                return encode(found), after
            if self._texts_changed is None:
                self._texts_changed = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._texts_changed], timeout=left_s)
