"""Large payloads in Ray's object stores: they stay on the node that made them, and the artifact's shard owns them.

Ray frees an object when its owner dies, and whoever calls `ray.put` is the owner: a worker's payloads would go with
the worker. So a shard adopts them: it calls the carrier of the node, which copies them from one object into another
within that node's store, and the caller owns what a call returns. The shard sees references only.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray._private.worker
from ray.exceptions import (
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flock_ray.actors.handles import RayPeers, actor_name
from flock_ray.core.claims import fits, payload_bytes
from flock_ray.errors import BackpressureError, PayloadLostError
from flock_ray.ports import PeerGoneError

logger = logging.getLogger(__name__)

api: Any = ray._private.worker

PACK_BYTES = 1_000_000
"""Small payloads of one message share an object of about this size: see `INLINE_BYTES`."""
INLINE_BYTES = int(os.environ.get("RAY_max_direct_call_object_size") or 100 * 1024)  # noqa: SIM112  # Ray's name
"""What a call returns up to this size goes to its caller, and not into the object store."""
CHUNK = 100
"""References that are waited for with one call."""
ADOPT_S = 120.0
"""Longest wait for a carrier."""
LINGER_S = 2.0
"""How long references are kept that were read: others read the same then. See `flock_ray.claiming.ATTEMPTS`."""
GONE_AFTER_S = 20.0
"""A carrier that finds no router for so long ends itself: its board is gone."""

Handle = tuple[Any, int]
"""An object of Ray's, and the place of the payload in it."""
Offer = tuple[str, list[Any]]
"""Where the payloads are, and an object for each."""


class RayPayloads:
    """A `PayloadStore` on Ray, for one process of a board."""

    def __init__(self, namespace: str, *, gives_back: bool = False) -> None:
        """Work for a board.

        Args:
            namespace: Of the board.
            gives_back: What was read does not count as memory of this process any longer than it is read: for
                shards, which pass much on and use nothing of it.
        """
        self._namespace = namespace
        self._gives_back = gives_back
        _say_nothing_of_threads()
        self._node: str | None = None
        self._carriers: dict[str, Any] = {}
        self._lingering: dict[Any, float] = {}
        """References that were read lately, and when they go; the oldest first."""

    async def offer(self, payloads: Sequence[bytes]) -> Offer:
        """Put payloads into the object store of this node."""
        if self._node is None:
            self._node = ray.get_runtime_context().get_node_id()
        refs: list[Any] = await asyncio.to_thread(_put, [pickle.PickleBuffer(p) for p in payloads])
        return self._node, refs

    async def keep(self, payloads: Sequence[bytes]) -> list[Handle]:
        """Put payloads of this process, which owns them, into the object store of this node."""
        refs = await asyncio.to_thread(_put, [[pickle.PickleBuffer(p)] for p in payloads])
        if self._gives_back:
            await asyncio.to_thread(give_pages_back)
        return [(ref, 0) for ref in refs]

    async def adopt(self, offer: Offer, claims: Sequence[bytes]) -> list[Handle]:
        """Have payloads copied on the node where they are; the copies are owned by this process."""
        node, refs = offer
        packs = list(packs_of([payload_bytes(claim) for claim in claims]))
        try:
            objects = await self._carry(node, list(refs), list(claims), packs)
        except RayActorError:
            # Somebody killed the carrier, which holds nothing: the next one does it.
            self._carriers.pop(node, None)
            try:
                objects = await self._carry(node, list(refs), list(claims), packs)
            except RayActorError as error:
                self._carriers.pop(node, None)
                raise PayloadLostError(f"The node that holds the payload is gone ({error}).") from error
        return [(ref, place) for ref, count in zip(objects, packs, strict=True) for place in range(count)]

    async def _carry(self, node: str, refs: list[Any], claims: list[bytes], packs: list[int]) -> list[Any]:
        carrier = self._carriers.get(node)
        if carrier is None:
            carrier = self._carriers[node] = await asyncio.to_thread(_carrier, self._namespace, node)
        objects: list[Any]
        *objects, done = carrier.take.options(num_returns=len(packs) + 1).remote(refs, claims, packs)
        try:
            # Small, so it comes in the answer; the others stay where they are.
            await asyncio.wait_for(_value(done), ADOPT_S)
        except RayActorError:
            raise
        except (RayError, TimeoutError) as error:
            raise _known(error) from error
        return objects

    async def open(self, handles: Sequence[Handle], wait_s: float) -> list[bytes | None]:
        """Read payloads, from whatever node they are on."""
        self._linger(handles)
        payloads = await asyncio.to_thread(_read, list(handles), wait_s)
        if self._gives_back:
            await asyncio.to_thread(give_pages_back)
        return payloads

    def _linger(self, handles: Sequence[Handle]) -> None:
        """Keep references for a while; a timer lets them go, so that nothing stays because nobody reads any more."""
        until = time.monotonic() + LINGER_S
        for ref, _ in handles:
            self._lingering.pop(ref, None)
            self._lingering[ref] = until
        asyncio.get_running_loop().call_later(LINGER_S + 0.1, self._let_go)

    def _let_go(self) -> None:
        now = time.monotonic()
        for ref in [ref for ref, until in list(self._lingering.items()) if until <= now]:
            self._lingering.pop(ref, None)


def _say_nothing_of_threads() -> None:
    """Keep Ray from warning of calls that block: here they do so in threads, which Ray does not look at."""
    api.blocking_get_inside_async_warned = api.blocking_wait_inside_async_warned = True


def packs_of(sizes: Sequence[int]) -> Iterator[int]:
    """Yield how many payloads in a row share an object."""
    count = total = 0
    for size in sizes:
        count += 1
        total += size
        if total >= PACK_BYTES:
            yield count
            count = total = 0
    if count:
        yield count


async def _value(ref: Any) -> Any:
    return await ref


def _put(values: Sequence[Any]) -> list[Any]:
    try:
        return [ray.put(value) for value in values]
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise _full(error) from error


def _full(error: BaseException) -> BackpressureError:
    return BackpressureError(
        f"The object store of this node has no room for more payloads, and can't write any to disk ({error}). Give "
        "Ray a larger object store or more disk to spill to, lower max_artifacts, or publish again later."
    )


def _known(error: BaseException) -> Exception:
    """Return what a failed adoption stands for."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
        return _full(cause)
    if isinstance(cause, PayloadLostError):
        return cause
    return PayloadLostError(f"The payload is gone before the board had it ({cause}). It is made again.")


def _read(handles: list[Handle], wait_s: float) -> list[bytes | None]:
    """Read payloads with few calls; each becomes bytes of this process, for whoever decodes it."""
    refs = list(dict.fromkeys(ref for ref, _ in handles))
    packs: dict[Any, Any] = {}
    for start in range(0, len(refs), CHUNK):
        chunk = refs[start : start + CHUNK]
        ready, _ = ray.wait(chunk, num_returns=len(chunk), timeout=wait_s)
        try:
            packs.update(zip(ready, ray.get(ready), strict=True))
        except RayError:
            packs.update((ref, pack) for ref in ready if (pack := _pack(ref, wait_s)) is not None)
    return [None if ref not in packs else bytes(packs[ref][place]) for ref, place in handles]


def give_pages_back() -> None:
    """Take the pages of the object store that this process has read out of its memory; they stay in the store.

    A process maps the whole store once, and each page that it has ever read counts as resident. Reading a page again
    maps it again.
    """
    try:
        with open("/proc/self/maps") as maps:
            areas = [line.split()[0].split("-") for line in maps if "/plasma" in line]
        libc = ctypes.CDLL(None)
        for first, last in areas:
            start = int(first, 16)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(int(last, 16) - start), mmap.MADV_DONTNEED)
    except (OSError, AttributeError):
        logger.debug("pages of the object store stay mapped", exc_info=True)


def _pack(ref: Any, wait_s: float) -> Any:
    """Read one object of a chunk in which one is lost."""
    try:
        return ray.get(ref, timeout=wait_s)
    except (RayError, GetTimeoutError):
        return None


def _carrier(namespace: str, node: str) -> Any:
    """Find or start the carrier of a node."""
    return CarrierActor.options(
        name=actor_name(namespace, "carrier", node), namespace=namespace, lifetime="detached", get_if_exists=True,
        num_cpus=0, max_restarts=0, max_concurrency=1000,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    ).remote(namespace)  # fmt: skip


class Carrier:
    """Copies payloads for the shards of a board, within one node. Holds nothing; ends with its board."""

    def __init__(self, namespace: str) -> None:
        """Begin to work."""
        _say_nothing_of_threads()
        self._router = RayPeers(namespace).router()
        self._attached = asyncio.ensure_future(self._stay_attached())

    async def take(self, refs: list[Any], claims: list[bytes], packs: list[int]) -> tuple[Any, ...]:
        """Return objects with the payloads of others, so many in each, and at the end None.

        Raises:
            PayloadLostError: One is gone, or not what its claim says.
        """
        return await asyncio.to_thread(_copies, refs, claims, packs)

    async def _stay_attached(self) -> None:
        """Keep one call open to the router; when there is no router any more, the board is gone."""
        known, alone_since = "", 0.0
        while True:
            try:
                known = await self._router.attend(known)
                alone_since = 0.0
            except PeerGoneError as gone:
                alone_since = alone_since or time.monotonic()
                if gone.final or time.monotonic() - alone_since > GONE_AFTER_S:
                    os._exit(0)
                await asyncio.sleep(0.2)


def _copies(refs: list[Any], claims: list[bytes], packs: list[int]) -> tuple[Any, ...]:
    try:
        views = ray.get(refs)
    except RayError as error:
        raise PayloadLostError(f"The process that offered a payload is gone ({error}).") from error
    if not all(fits(claim, view) for claim, view in zip(claims, views, strict=True)):
        raise PayloadLostError("A payload is not the one that its claim stands for. Publish it again.")
    made: list[Any] = []
    for count in packs:
        pack, views = views[:count], views[count:]
        size = sum(len(view) for view in pack)
        padding = bytes(max(0, INLINE_BYTES + 1 - size))
        made.append([pickle.PickleBuffer(view) for view in (*pack, padding)])
    return (*made, None)


CarrierActor: Any = ray.remote(Carrier)
