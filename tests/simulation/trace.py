"""The last decisions of a run, for whoever has to understand a seed that failed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from flock_ray.core.records import (
    Cancelled,
    Completed,
    ForwardAcked,
    ForwardedIn,
    Installed,
    Lost,
    Published,
    Record,
    Rehydrated,
    decode_frame,
)

MAX_LINES = 40
MAX_WIDTH = 150


@dataclass(slots=True)
class _Entry:
    at_s: float
    shard: int | None
    """None: it concerns all of them."""
    text: str
    frame: bytes = b""


class Trace:
    """A short memory; records are put into words only when somebody reads them."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque(maxlen=4000)
        self.concerned: set[int] = set()
        """Shards of which a check failed."""

    def note(self, text: str, shard: int | None = None) -> None:
        self._entries.append(_Entry(asyncio.get_running_loop().time(), shard, text))

    def appended(self, shard: int, lsn: int, frame: bytes) -> None:
        self._entries.append(_Entry(asyncio.get_running_loop().time(), shard, f"#{lsn}", frame))

    def lines(self, limit: int = MAX_LINES) -> list[str]:
        """Return what happened last at the shards concerned, or at all of them."""
        out: list[str] = []
        for entry in reversed(self._entries):
            if self.concerned and entry.shard is not None and entry.shard not in self.concerned:
                continue
            who = "board  " if entry.shard is None else f"shard {entry.shard}"
            texts = [entry.text]
            if entry.frame:
                texts = [f"{entry.text} {text}" for text in describe(decode_frame(entry.frame).records)]
            out += [f"{entry.at_s:9.3f} s  {who}  {text}"[:MAX_WIDTH] for text in reversed(texts)]
            if len(out) >= limit:
                break
        return out[limit - 1 :: -1]


def describe(records: Collection[Record]) -> list[str]:
    """Put records into words; acknowledgements, of which there are many, into one line."""
    lines = [_words(record) for record in records if not isinstance(record, ForwardAcked)]
    acked = [r for r in records if isinstance(r, ForwardAcked)]
    if acked:
        lines.append("acked " + ", ".join(f"{r.slot}>{r.target} #{r.seq}" for r in acked))
    return lines


def _words(record: Record) -> str:
    match record:
        case Published(posting=posting):
            e = posting.envelope
            matches = ", ".join(m.subscription for m in posting.matches)
            return (
                f"published {e.type} {e.id.hex()[:8]} of {e.correlation_id} in slot {e.slot} for [{matches}]"
            )
        case Completed(completion=c):
            made = ", ".join(f"{p.envelope.type} {p.envelope.id.hex()[:8]}" for p in c.outputs)
            return f"completed {c.id.hex()[:8]} attempt {c.attempt & 0xFFFFFFFF}: {c.error.type if c.error else made}"
        case ForwardedIn(forward=f):
            what = (
                f.workflow
                if f.posting is None
                else f"{f.posting.envelope.type} {f.posting.envelope.id.hex()[:8]}"
            )
            return f"forwarded {f.kind} {f.source}>{f.target} #{f.seq}: {what} {f.delta if f.posting is None else ''}"
        case Lost(blamed=blamed, worker=worker):
            return f"lost {worker} with {', '.join(key.hex()[:8] for key in blamed)}"
        case Cancelled(workflow=workflow):
            return f"cancelled {workflow} in slot {record.slot}"
        case Rehydrated(row=row):
            return f"brought back {row.id} in slot {row.slot}"
        case Installed(table=table):
            return f"installed table {table.version}"
        case _:
            return f"{type(record).__name__.lower()} slot {record.slot}"
