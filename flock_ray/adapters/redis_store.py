"""One shard's journal and rows in Redis.

**Fencing.** Redis runs one script at a time, and every script that writes first compares the writer's token
with the one in the shard's head. `acquire` replaces that token in one script. So an append that was sent before
an acquire either ran before it, and then `load` finds it, or runs after it and is refused; nothing lies between,
however long the writer was stopped or its bytes were under way. The token is random, not the epoch: a failover that
loses an acquire hands out the same epoch twice, and the two writers must still be told apart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any

import msgspec

from flock_ray.adapters.audit_trail import batch_facts, erasure_fact, removal_fact
from flock_ray.adapters.redis_audit import Trail, read_head
from flock_ray.adapters.redis_index import Entry, RedisIndex, parts
from flock_ray.adapters.redis_link import RedisLink
from flock_ray.adapters.redis_rows import FEED, FORMAT, RUN, Keys, id_of, seal, unpack_workflow, unseal
from flock_ray.adapters.redis_scripts import ACQUIRE, APPEND, CHANGE, RELEASE, SNAPSHOTS, TRUNCATE, Script
from flock_ray.adapters.redis_writes import Commands, Value, batch_commands, encode_for_lua, removal_commands
from flock_ray.core.audit import AuditFact, AuditHead
from flock_ray.core.rows import ERASED, SHARD, ActivationRow, Loaded, Snapshot, StoreBatch
from flock_ray.errors import StaleEpochError, StoreCorruptError, StoreUnavailableError

__all__ = ["RedisStore"]

_NOBODY = b"nobody"
"""Token of a store that never acquired; no head has it."""
_FRAMES = 100
"""Frames read at once."""
_REMOVED_AT_ONCE = 5000
"""Artifacts that one script removes, unless a single workflow has more: it blocks the server meanwhile."""
_REMOVAL_TRIES = 5
_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode

PEEKS = 5
"""Times that an onlooker reads a journal that is cut under his eyes."""


class RedisStore(RedisIndex):
    """A `ShardStore` in Redis. Made by `RedisPersistence.store`; belongs to one event loop."""

    mode = "redis"

    def __init__(
        self,
        line: RedisLink,
        keys: Keys,
        incarnation: bytes = b"",
        wait_replicas: int = 0,
        wait_s: float = 0,
        *,
        trail: Trail | None = None,
    ) -> None:
        """Open a shard.

        Args:
            line: Where it is.
            keys: Names of its keys.
            incarnation: What `prepare` found: a server that lost the board since is noticed. Empty: not checked.
            wait_replicas: How many replicas must have a batch before `append` returns.
            wait_s: How long to wait for them, in seconds.
            trail: The audit log; None: none is kept.
        """
        super().__init__(line, keys)
        self._incarnation = incarnation
        self._wait_replicas = wait_replicas
        self._wait_s = wait_s
        self._token = _NOBODY
        self._trail = trail

    async def acquire(self, owner: str = "") -> int:
        """Become the writer; see `Journal`."""
        token = secrets.token_hex(16).encode()
        reply = await self._write(
            ACQUIRE, [self._keys.head], [token, self._incarnation, FORMAT, owner], durable=True
        )
        self._token = token
        if self._trail is not None:
            self._trail.head = read_head(*reply[3:5])
        return int(reply[1])

    async def owner(self) -> str:
        """Return who is the writer; see `Journal`."""
        ((epoch, said),) = await self._line.read(("HMGET", self._keys.head, "e", "o"))
        number, _, owner = (said or b"").partition(b" ")
        return owner.decode() if number == epoch else ""

    async def load(self) -> Loaded:
        """Return snapshots and frames; see `Journal`."""
        return await self._load(writing=True)

    async def peek(self) -> Loaded:
        """Return what `load` would, without being the writer. While one cuts the journal it may have to be repeated.

        Raises:
            StoreUnavailableError: Redis does not answer, or the journal was cut meanwhile; retryable.
            StoreCorruptError: As for `load`.
        """
        for _ in range(PEEKS):
            before = (await self._head(writing=False))[2]
            try:
                return await self._load(writing=False)
            except StoreCorruptError:
                if (await self._head(writing=False))[2] == before:
                    raise
        raise StoreUnavailableError(
            f"The journal of {self._keys.place} was cut while it was read. Try again."
        )

    async def _load(self, *, writing: bool) -> Loaded:
        last_lsn, last_seq, floor = await self._head(writing=writing)
        snapshots = await self._snapshots()
        covered = [snapshot.lsn for snapshot in snapshots if snapshot.slot == SHARD]
        if floor > (covered[0] if covered else 0):
            found = (
                f"the snapshot of the shard is of batch {covered[0]}"
                if covered
                else "there is no snapshot of it"
            )
            raise self._damaged(f"begins behind batch {floor}, but {found}")
        frames = await self._frames(floor, last_lsn)
        # Another writer may have come and truncated meanwhile: then what was read fits nothing.
        await self._head(writing=writing)
        return Loaded(snapshots, frames, last_lsn, last_seq)

    async def append(self, batch: StoreBatch) -> None:
        """Make a batch durable; see `Journal`.

        It is one script, which blocks the server for some 20 to 50 microseconds an artifact.
        """
        commands = batch_commands(self._keys, batch)
        first, last = (batch.artifacts[0][0], batch.artifacts[-1][0]) if batch.artifacts else (0, 0)
        checksum = seal(b"%d" % batch.lsn, batch.frame)[:4]
        facts = [] if self._trail is None else batch_facts(batch)
        rows = commands.take()

        def arguments(logged: list[list[Value]], count: Value) -> list[Any]:
            packed = encode_for_lua(rows + logged)
            return [self._token, batch.lsn, checksum, first, last, packed, count]

        await self._log(APPEND, commands, facts, arguments, durable=True)

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Replace snapshots; see `Journal`."""
        arguments: list[Value] = []
        for snapshot in snapshots:
            sealed = seal(b"%d" % snapshot.slot, _encode(snapshot))
            arguments += (snapshot.slot, snapshot.lsn, b"%d:%b" % (snapshot.lsn, sealed))
        keys = [self._keys.head, self._keys.snapshots]
        await self._write(SNAPSHOTS, keys, [self._token, *arguments], durable=True)

    async def truncate(self, lsn: int) -> None:
        """Drop frames; see `Journal`."""
        await self._write(TRUNCATE, [self._keys.head, self._keys.journal], [self._token, lsn])

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        """Delete settled workflows; see `ArtifactIndex`. What changes meanwhile is looked at again."""
        left = list(dict.fromkeys(workflows))
        if not left:
            await self._head()
        removed = 0
        for _ in range(_REMOVAL_TRIES):
            again: list[tuple[int, str]] = []
            for some in parts(left, 100):
                count, changed = await self._remove(some)
                removed += count
                again += changed
            left = again
            if not left:
                break
        return removed

    async def erase(self, ids: Collection[bytes]) -> int:
        """Replace payloads; see `ArtifactIndex`.

        The append-only file holds them until Redis rewrites it.
        """
        erased = 0
        for some in parts(set(ids)) if ids else [[]]:
            commands = Commands(self._keys.head)
            body, row = commands.number(self._keys.bodies), commands.number(self._keys.artifacts)
            groups = [
                [[["1", "HEXISTS", row, key]], [["HSET", body, key, seal(key, ERASED)]]] for key in some
            ]
            facts: list[AuditFact] = []
            if self._trail is not None:
                known = await self._line.read(*(("HEXISTS", self._keys.artifacts, key) for key in some))
                at_us = time.time_ns() // 1000
                facts = [erasure_fact(at_us, key) for key, there in zip(some, known, strict=True) if there]
                groups.append([[], []])
            done = await self._change(CHANGE, commands, groups, facts, durable=True)
            erased += sum(done[: len(some)])
        return erased

    async def close(self) -> None:
        """Cut the connections; safe to repeat."""
        await self._line.close()

    # reading the journal

    async def _head(self, *, writing: bool = True) -> tuple[int, int, int]:
        """Return last lsn, last position and lsn of the last truncation; refuses a writer that was replaced."""
        ((token, lsn, seq, floor),) = await self._line.read(("HMGET", self._keys.head, "t", "l", "q", "f"))
        if lsn is None:
            raise self._lost()
        if writing and token != self._token:
            raise StaleEpochError
        return int(lsn), int(seq), int(floor)

    async def _snapshots(self) -> list[Snapshot]:
        (fields,) = await self._line.read(("HKEYS", self._keys.snapshots))
        found: list[Snapshot] = []
        for some in parts(fields, 16):
            (values,) = await self._line.read(("HMGET", self._keys.snapshots, *some))
            for slot, value in zip(some, values, strict=True):
                if value is None:
                    continue
                what = f"The snapshot of slot {slot.decode()} of {self._keys.place} ({self._keys.snapshots.decode()})"
                try:
                    found.append(_decode_snapshot(unseal(slot, value.partition(b":")[2], what)))
                except msgspec.MsgspecError:
                    raise StoreCorruptError(
                        f"{what} cannot be read by this version. Use the one that wrote it."
                    ) from None
        return found

    async def _frames(self, floor: int, last_lsn: int) -> list[tuple[int, bytes]]:
        frames: list[tuple[int, bytes]] = []
        while floor + len(frames) < last_lsn:
            start = floor + len(frames) + 1
            (entries,) = await self._line.read(
                ("XRANGE", self._keys.journal, f"{start}-0", "+", "COUNT", _FRAMES)
            )
            expected = start
            for name, fields in entries:
                lsn = int(name.partition(b"-")[0])
                if lsn != expected:
                    break
                what = f"Batch {lsn} of {self._keys.place} ({self._keys.journal.decode()})"
                frames.append((lsn, unseal(b"%d" % lsn, fields[1], what)))
                expected += 1
            if expected != start + len(entries) or not entries:
                raise self._damaged(f"lacks batch {expected}; the newest is {last_lsn}")
        return frames

    # guarded writes

    async def _change(
        self,
        script: Script,
        commands: Commands,
        groups: list[Any],
        facts: Sequence[AuditFact] = (),
        *,
        durable: bool = False,
    ) -> list[int]:
        """Do groups of commands as one step; says of each whether its checks held.

        Facts go into the audit log together with the last group.
        """

        def arguments(logged: list[list[Value]], count: Value) -> list[Any]:
            asked = groups
            if logged:
                *others, (checks, items) = groups
                asked = [*others, [checks, [*items, *logged]]]
            return [self._token, encode_for_lua(asked), count]

        reply = await self._log(script, commands, facts, arguments, durable=durable)
        return [int(done) for done in reply[1]]

    async def _log(
        self,
        script: Script,
        commands: Commands,
        facts: Sequence[AuditFact],
        arguments: Callable[[list[list[Value]], Value], list[Any]],
        *,
        durable: bool,
    ) -> list[Any]:
        """Run a script that adds facts to the audit log, once it is known where that ends."""
        trail = self._trail
        if trail is None or not facts:
            return await self._write(script, commands.keys, arguments([], ""), durable=durable)
        while True:
            logged, head = trail.commands(commands, self._keys, facts)
            try:
                reply = await self._write(
                    script, commands.keys, arguments(logged, trail.head.count), durable=durable
                )
            except _MovedLogError as moved:  # by a call whose answer was lost
                trail.head = moved.head
                continue
            if script is APPEND or reply[1][-1]:
                trail.head = head
            return reply

    async def _write(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any], *, durable: bool = False
    ) -> list[Any]:
        waiting = durable and self._wait_replicas > 0
        wait = [("WAIT", self._wait_replicas, int(self._wait_s * 1000))] if waiting else []
        reply, *have = await self._line.script(script, keys, arguments, *wait)
        status = reply[0].decode()
        if status != "OK":
            raise self._refusal(status, reply[1:])
        if have and have[0] < self._wait_replicas:
            raise StoreUnavailableError(
                f"Only {have[0]} of {self._wait_replicas} replicas of Redis at {self._line.where} took the write "
                "in time. Check the replicas; repeating the call is safe."
            )
        return list(reply)

    def _refusal(self, status: str, details: Sequence[Any]) -> Exception:
        if status == "STALE":
            return StaleEpochError()
        if status in ("LOST", "OTHER"):
            return self._lost()
        if status == "AUDIT":
            return _MovedLogError(read_head(*details))
        if status == "NEWER":
            return self._damaged("was written by a newer version of flock_ray")
        if status == "FOREIGN":
            return self._damaged(f"has another batch of that number; the newest is {details[0]}")
        if status == "GAP":
            return self._damaged(
                f"ends with batch {details[0]}: the server lost batches, or one was left out"
            )
        return self._damaged(f"already has an artifact at feed position {details[0]}")

    def _lost(self) -> StoreCorruptError:
        return StoreCorruptError(
            f"Redis at {self._line.where} no longer has {self._keys.place} ({self._keys.head.decode()}): "
            "it was emptied, or restarted without its data. Restore a backup, or start a new board."
        )

    def _damaged(self, how: str) -> StoreCorruptError:
        return StoreCorruptError(
            f"The journal of {self._keys.place} ({self._keys.journal.decode()}) at Redis {self._line.where} {how}. "
            "Stop this writer and compare with a backup; nothing was changed."
        )

    # removing workflows

    async def _remove(self, places: Sequence[tuple[int, str]]) -> tuple[int, list[tuple[int, str]]]:
        """Try to remove workflows; returns how many artifacts went, and the ones that changed meanwhile."""
        replies = await self._line.read(
            *(
                command
                for slot, name in places
                for command in (
                    ("HGET", self._keys.workflow(name), slot),
                    ("ZRANGE", self._flow(name), 0, -1),
                )
            )
        )
        commands = Commands(self._keys.head)
        groups: list[Any] = []
        tried: list[tuple[tuple[int, str], int]] = []
        removed, changed = 0, list[tuple[int, str]]()
        for number, place in enumerate(places):
            row, members = replies[2 * number : 2 * number + 2]
            if row is None or not unpack_workflow(place[1], row, self._keys).settled:
                continue
            entries, runs = await self._belongings(place, members)
            removal_commands(commands, self._keys, place, entries, runs)
            checks: list[list[Value]] = [
                [row, "HGET", commands.number(self._keys.workflow(place[1])), place[0]],
                [str(len(members)), "ZCARD", commands.number(self._flow(place[1]))],
            ]
            groups.append([checks, commands.take()])
            tried.append((place, len(entries)))
            if sum(count for _, count in tried) >= _REMOVED_AT_ONCE:
                done, again = await self._commit(commands, groups, tried)
                removed, changed = removed + done, changed + again
                commands, groups, tried = Commands(self._keys.head), [], []
        done, again = await self._commit(commands, groups, tried)
        return removed + done, changed + again

    async def _belongings(
        self, place: tuple[int, str], members: Sequence[bytes]
    ) -> tuple[list[Entry], list[tuple[int, ActivationRow]]]:
        """Return a workflow's artifacts (without payloads) and activations in a slot."""
        slot, _ = place
        artifacts = [id_of(entry) for entry in members if entry.startswith(FEED)]
        runs = [id_of(entry) for entry in members if entry.startswith(RUN)]
        entries = [
            entry for some in parts(artifacts) for entry in await self._rows(some) if entry[1].slot == slot
        ]
        return entries, [run for run in await self._runs(runs) if run[1].slot == slot]

    async def _commit(
        self, commands: Commands, groups: list[Any], tried: Sequence[tuple[tuple[int, str], int]]
    ) -> tuple[int, list[tuple[int, str]]]:
        if self._trail is not None and groups:
            return await self._commit_logged(commands, groups, tried)
        done = await self._change(RELEASE, commands, groups)
        removed = sum(count for (_, count), held in zip(tried, done, strict=True) if held)
        return removed, [place for (place, _), held in zip(tried, done, strict=True) if not held]

    async def _commit_logged(
        self, commands: Commands, groups: list[Any], tried: Sequence[tuple[tuple[int, str], int]]
    ) -> tuple[int, list[tuple[int, str]]]:
        """Remove all of them with their entries in the audit log, or when one has changed, each by itself."""
        at_us = time.time_ns() // 1000
        facts = [removal_fact(at_us, name, slot, count) for (slot, name), count in tried]
        checks, items = zip(*groups, strict=True)
        whole = [list(chain.from_iterable(checks)), list(chain.from_iterable(items))]
        (held,) = await self._change(RELEASE, commands, [whole], facts)
        if held:
            return sum(count for _, count in tried), []
        if len(groups) == 1:
            return 0, [tried[0][0]]
        removed, changed = 0, list[tuple[int, str]]()
        for group, one in zip(groups, tried, strict=True):
            done, again = await self._commit_logged(commands, [group], [one])
            removed, changed = removed + done, changed + again
        return removed, changed


class _MovedLogError(Exception):
    """The audit log ends elsewhere than its writer thought."""

    def __init__(self, head: AuditHead) -> None:
        super().__init__()
        self.head = head
