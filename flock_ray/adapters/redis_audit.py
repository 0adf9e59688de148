"""The audit log of a Redis shard: a stream whose ids are the numbers of its entries; the head is in the shard's head.

Redis keeps nobody with the board's password from deleting entries; a stream takes none back in between.
The chain shows what was changed, and a head that was noted elsewhere shows that all of it was written anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from flock_ray.adapters.audit_trail import (
    ENTRIES_PER_READ,
    AuditReport,
    chain_name,
    check_chain,
    pack_fact,
    unpack_entry,
)
from flock_ray.adapters.redis_link import RedisLink
from flock_ray.adapters.redis_rows import Keys
from flock_ray.adapters.redis_writes import Commands, Value
from flock_ray.core.audit import AuditEntry, AuditFact, AuditHead, extend_chain


def read_head(count: bytes | None, hash_: bytes | None) -> AuditHead:
    """Read a head as Redis keeps it; nothing is there before the first entry."""
    return AuditHead(int(count or 0), hash_ or b"")


class Trail:
    """Where the log of one shard ends, as its writer knows."""

    def __init__(self, board: str, shard: int) -> None:
        """Say whose log it is."""
        self._chain = chain_name(board, shard)
        self.head = AuditHead()

    def commands(
        self, commands: Commands, keys: Keys, facts: Iterable[AuditFact]
    ) -> tuple[list[list[Value]], AuditHead]:
        """Return what adds facts to the log, and where it ends then."""
        entries, head = extend_chain(self._chain, self.head, facts)
        stream, place = commands.number(keys.audit), commands.number(keys.head)
        made: list[list[Value]] = [
            ["XADD", stream, f"{entry.number}-0", "f", pack_fact(entry.fact), "h", entry.hash]
            for entry in entries
        ]
        if entries:
            made.append(["HSET", place, "an", head.count, "ah", head.hash])
        return made, head


async def verify_streams(
    board: str, num_shards: int, line_of: Callable[[bytes], RedisLink], noted: Mapping[int, AuditHead]
) -> AuditReport:
    """Verify the audit log of a board; it may be in use meanwhile."""
    report = AuditReport(board)
    for shard in range(num_shards):
        keys = Keys(board, shard)
        line = line_of(keys.head)
        try:
            ((count, hash_),) = await line.read(("HMGET", keys.head, "an", "ah"))
            head = report.heads[shard] = read_head(count, hash_)
            added = await _behind(line, keys)
            pages = _pages(line, keys, head)
            report.problems.extend(
                await check_chain(chain_name(board, shard), head, noted, shard, pages, added)
            )
        finally:
            await line.close()
    return report


async def _behind(line: RedisLink, keys: Keys) -> int | None:
    """Return the number of the newest entry if it is behind the recorded end, which is read after it."""
    (newest,) = await line.read(("XREVRANGE", keys.audit, "+", "-", "COUNT", 1))
    ((count,),) = await line.read(("HMGET", keys.head, "an"))
    number = _number(newest[0][0]) if newest else 0
    return number if number > int(count or 0) else None


async def _pages(line: RedisLink, keys: Keys, head: AuditHead) -> AsyncIterator[list[AuditEntry]]:
    after = "-"
    while True:
        (found,) = await line.read(
            ("XRANGE", keys.audit, after, f"{head.count}-0", "COUNT", ENTRIES_PER_READ)
        )
        if not found:
            return
        after = f"({found[-1][0].decode()}"
        entries = []
        for name, fields in found:
            values = dict(zip(fields[::2], fields[1::2], strict=False))
            entries.append(unpack_entry(_number(name), values.get(b"f"), values.get(b"h")))
        yield entries


def _number(name: bytes) -> int:
    return int(name.partition(b"-")[0])
