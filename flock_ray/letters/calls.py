"""Calls about dead letters to the shards of a board: pages over all of them, orders to the one that keeps a letter."""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.ids import shard_of
from flock_ray.core.letter_index import (
    LetterOrder,
    LetterQuery,
    LetterRow,
    Place,
    decode_rows,
    encode,
)
from flock_ray.core.matching import Check
from flock_ray.core.messages import parts
from flock_ray.core.wire import Envelope
from flock_ray.errors import (
    ArtifactNotFoundError,
    BackpressureError,
    BoardClosedError,
    FlockError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from flock_ray.board import Board

PATIENCE_S = 30.0
"""How long an order waits for a board that is full, or whose store is away."""

_rows = msgspec.msgpack.Decoder(list[LetterRow]).decode
_envelopes = msgspec.msgpack.Decoder(list[Envelope]).decode
_REFUSALS = ("busy", "unavailable", "closed")


class LetterBoard:
    """A board as those see it who look after its dead letters."""

    def __init__(self, board: Board) -> None:
        """Use a client of the board."""
        self._board = board

    @property
    def num_shards(self) -> int:
        """Shards of the board."""
        return self._board.num_shards

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload."""
        return self._board.edge.max_payload_bytes

    def now_us(self) -> int:
        """Wall time."""
        return self._board.clock.now_us()

    # -- reading -------------------------------------------------------------------------------

    async def page(
        self, query: LetterQuery, ends: Sequence[tuple[int, tuple[bytes, ...]]] | None = None
    ) -> list[LetterRow]:
        """Return the first letters that a query selects, over all shards, oldest first; fewer only at the end.

        Args:
            query: Which, and how many.
            ends: By shard, where the walk ends; None: nowhere.
        """
        found = await asyncio.gather(
            *(
                self._page_of(shard, query, None if ends is None else ends[shard])
                for shard in range(self.num_shards)
            )
        )
        return list(heapq.merge(*found, key=lambda row: row.place))[: query.limit]

    async def _page_of(
        self, shard: int, query: LetterQuery, end: tuple[int, tuple[bytes, ...]] | None
    ) -> list[LetterRow]:
        rows: list[LetterRow] = []
        after: Place | None = query.after
        while after is not None and len(rows) < query.limit:
            asked = msgspec.structs.replace(query, after=after, limit=query.limit - len(rows), end=end)
            part = decode_rows(await self._board.ask_shard(shard, "letters", encode(asked)))
            rows += part.rows
            after = part.seen
        return rows

    async def count(self, query: LetterQuery) -> int:
        """Count the open letters that a query selects."""
        return sum(await self._board.each("count_letters", encode(query)))

    async def ends(self) -> list[tuple[int, tuple[bytes, ...]]]:
        """Return, by shard, where a walk over the letters of now ends."""
        found = await self._board.each("newest_letters")
        return [(time_us, tuple(ids)) for time_us, ids in found]

    async def find(self, key: bytes) -> LetterRow | None:
        """Return an open letter; None when no letter of this id is open."""
        rows = [row for blob in await self._board.each("find_letters", [key]) for row in _rows(blob)]
        return rows[0] if rows else None

    async def fetch(self, ids: Sequence[bytes]) -> list[Envelope | None]:
        """Return artifacts of any shard, in order; None for one that is not there."""
        if not ids:
            return []
        blobs = await self._board.each("get", list(dict.fromkeys(ids)))
        envelopes = await self._board.whole([e for blob in blobs for e in _envelopes(blob)])
        known = {envelope.id: envelope for envelope in envelopes}
        return [known.get(key) for key in ids]

    async def actions(self, workflow: str, letter: bytes) -> list[Envelope]:
        """Return what was done with a letter, oldest first."""
        found = await self._board.read(type_name="DeadLetterAction", workflow=workflow)
        return [envelope for envelope in found if letter in envelope.parents]

    async def conditions(self, subscription: str, envelope: Envelope) -> list[Check]:
        """Evaluate a subscription's conditions on an artifact; empty when it is not known here (any more)."""
        try:
            return (await self._board.edge.explain(envelope)).get(subscription, [])
        except FlockError:
            return []  # a type or visibility that this process can't read

    # -- orders --------------------------------------------------------------------------------

    async def order(self, orders: Sequence[LetterOrder]) -> list[str]:
        """Have orders carried out, several in one message; all are for letters, or artifacts, of one shard.

        Raises:
            BackpressureError: The board stayed full; retryable. What was answered before has been done.
            StoreUnavailableError: The shard or its store is away; retryable.
            BoardClosedError: The board was shut down.
        """
        sizes = [
            sum(len(e.payload) for e in (*o.inputs, *(() if o.new is None else (o.new,)))) for o in orders
        ]
        answers: list[str] = []
        for batch in parts(list(orders), sizes):
            answers += await self._send(batch)
        return answers

    async def _send(self, orders: list[LetterOrder]) -> list[str]:
        first = orders[0]
        slot = first.new.slot if first.kind == "put" and first.new is not None else first.slot
        blob, loop = encode(orders), asyncio.get_running_loop()
        deadline, pause_s = loop.time() + PATIENCE_S, 0.05
        while True:
            answers: list[str] = await self._board.ask_shard(
                shard_of(slot, self.num_shards), "order_letters", blob
            )
            if answers[0] not in _REFUSALS:
                return answers
            if answers[0] == "closed":
                raise BoardClosedError("The board was shut down. Create a new Flock to go on.")
            if loop.time() >= deadline:
                raise _given_up(answers[0])
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)

    async def edit(self, order: LetterOrder) -> str:
        """Carry out an edit; its artifact may belong to another shard than the letter."""
        assert order.new is not None
        if shard_of(order.new.slot, self.num_shards) != shard_of(order.slot, self.num_shards):
            # Should this program die in between: an artifact that nobody looks at, and the next try finds it.
            put = LetterOrder("put", order.new.slot, order.letter, new=order.new)
            [answer] = await self.order([put])
            if answer != "ok":
                return answer
        [answer] = await self.order([order])
        return answer

    async def redrive_one(self, row: LetterRow, by: str) -> str:
        """Redrive one letter.

        Raises:
            ArtifactNotFoundError: An input is gone.
        """
        inputs = await self.fetch(inputs_of(row))
        order = redrive_order(row, inputs, by)
        if order is None:
            raise ArtifactNotFoundError(
                f"Dead letter {uuid.UUID(bytes=row.letter.envelope.id)} can't be redriven: its input "
                f"{_missing(row, inputs)} is gone. Discard the letter."
            )
        [answer] = await self.order([order])
        return answer


def inputs_of(row: LetterRow) -> list[bytes]:
    """Return the ids of what a redrive runs on."""
    return [row.letter.replaced.get(key, key) for key in row.letter.inputs]


def redrive_order(row: LetterRow, inputs: Sequence[Envelope | None], by: str) -> LetterOrder | None:
    """Return the order to redrive a letter; None when an input of it is gone."""
    there = tuple(envelope for envelope in inputs if envelope is not None)
    if len(there) != len(row.letter.inputs):
        return None
    return LetterOrder("redrive", row.slot, row.letter.envelope.id, inputs=there, by=by)


def _missing(row: LetterRow, inputs: Sequence[Envelope | None]) -> str:
    gone = [key for key, found in zip(inputs_of(row), inputs, strict=True) if found is None]
    return ", ".join(str(uuid.UUID(bytes=key)) for key in gone)


def _given_up(status: str) -> FlockError:
    if status == "unavailable":
        return StoreUnavailableError(
            f"The board's store did not answer for {PATIENCE_S:g} s. Ask again when it is back."
        )
    return BackpressureError(
        f"The board took nothing for {PATIENCE_S:g} s: its agents have too much to do. Redrive later, or with a rate.",
        retry_after_s=1.0,
    )
