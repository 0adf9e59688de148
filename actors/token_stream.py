"""What runs of this worker stream, on its way to the shards: collected, bundled, and dropped rather than in the way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

from flock_ray.core.ids import attempt_of, shard_of
from flock_ray.core.texts import KINDS, MAX_TEXT, Text, TextBatch, encode
from flock_ray.core.wire import Completion, Task
from flock_ray.ports import PeerGoneError

__all__ = ["TokenStream"]

logger = logging.getLogger(__name__)

FLUSH_S = 0.05
"""How long a piece waits for others: a screen that changes more often looks no faster."""

MAX_BATCH_BYTES = 256 * 1024
"""Of one message to a shard, about; bounds how long it keeps the shard from its work."""

MAX_WAITING_BYTES = 1024 * 1024
"""What waits for one shard; the oldest pieces go when it is more."""

MAX_RUNS = 20_000
"""Runs that are remembered until they end."""

GONE_S = 0.5
"""Pause after a shard could not be reached."""


class _Run:
    """One attempt that has said something."""

    __slots__ = ("missed", "shard", "spoke", "task", "waiting")

    def __init__(self, task: Task, shard: int) -> None:
        # Not the inputs: they may be large, and this may outlive the run.
        self.task = (task.id, attempt_of(task.attempt), task.agent, task.correlation_id)
        self.shard = shard
        self.waiting: deque[Text] = deque()
        """Its pieces that wait, in order."""
        self.missed = 0
        """Pieces that were dropped since the last one that was not."""
        self.spoke = False
        """Whether there were tokens."""


class _Lane:
    """What waits for one shard."""

    __slots__ = ("size", "turns")

    def __init__(self) -> None:
        self.turns: deque[_Run] = deque()
        """Whose piece is next, once for each piece that waits."""
        self.size = 0

    def put(self, run: _Run, kind: str, text: str) -> None:
        """Append a piece, or add it to the last one of its run."""
        last = run.waiting[-1] if run.waiting else None
        if last is not None and kind == last.kind == "token" and len(last.text) + len(text) <= MAX_TEXT:
            last.text += text
            self.size += 2 * len(text)
            return
        piece = Text(*run.task, kind, text, run.missed)
        run.missed = 0
        run.waiting.append(piece)
        self.turns.append(run)
        self.size += piece.size

    def drop(self) -> None:
        """Drop the oldest piece; the next one of its run says so."""
        run = self.turns.popleft()
        piece = run.waiting.popleft()
        self.size -= piece.size
        if run.waiting:
            run.waiting[0].missed += piece.missed + 1
        else:
            run.missed += piece.missed + 1

    def take(self, max_bytes: int) -> list[Text]:
        """Remove and return the oldest pieces."""
        taken: list[Text] = []
        size = 0
        while self.turns and size < max_bytes:
            piece = self.turns.popleft().waiting.popleft()
            taken.append(piece)
            size += piece.size
        self.size -= size
        return taken


class TokenStream:
    """A `TextSink`: call it from any thread. It never waits for a shard, never raises and keeps to its bounds."""

    def __init__(
        self,
        send: Callable[[int, bytes], Awaitable[bool | None]],
        num_shards: int,
        *,
        flush_s: float = FLUSH_S,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        max_runs: int = MAX_RUNS,
    ) -> None:
        """Stream to the shards of a board, once `begin` was called.

        Args:
            send: Gives a TextBatch to a shard; called on the control loop, one at a time per shard. Returns whether
                somebody reads them.
            num_shards: Shards of the board.
            flush_s: How long a piece waits for others, in seconds.
            max_waiting_bytes: What may wait for one shard.
            max_runs: How many runs are remembered.
        """
        self._send_to = send
        self._num_shards = num_shards
        self._flush_s = flush_s
        self._max_waiting_bytes = max_waiting_bytes
        self._max_runs = max_runs
        self._lanes: dict[int, _Lane] = {}
        self._runs: OrderedDict[tuple[bytes, int], _Run] = OrderedDict()
        self._unheard: set[int] = set()
        """Shards whose texts nobody reads."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._closed = False
        self.num_dropped = 0
        """Pieces that no reader will see."""

    def begin(self) -> None:
        """Send on the running loop, from now on; safe to repeat."""
        self._loop = self._loop or asyncio.get_running_loop()

    def heard(self, shard: int, listened: bool | None) -> None:
        """Learn from a shard whether somebody reads what runs of it say."""
        if listened is False:
            self._unheard.add(shard)
        elif listened:
            self._unheard.discard(shard)

    # -- any thread ----------------------------------------------------------------------------

    def listened(self, task: Task) -> bool:
        """Tell whether somebody may read what a run says, so that it is worth the trouble to say it in pieces."""
        return shard_of(task.slot, self._num_shards) not in self._unheard

    def __call__(self, task: Task, kind: str, text: str) -> None:
        """Take what a run says.

        Args:
            task: The run.
            kind: `token` (a piece of the answer), `status` (what it does now), `final` (its last word, and maybe
                the whole answer) or `failed`. Anything else is ignored.
            text: An empty token is ignored.
        """
        if self._closed or kind not in KINDS or (kind == "token" and not text):
            return
        if not text.isascii():
            # Half a surrogate pair, as JSON may hold it: nobody could encode the whole batch.
            text = text.encode("utf-8", "replace").decode()
        with self._lock:
            run = self._run_of(task)
            self._put(run, kind, text)
            if kind in ("final", "failed"):
                del self._runs[task.id, task.attempt]
        self._arm(run.shard)

    def _run_of(self, task: Task) -> _Run:
        key = (task.id, task.attempt)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(task, shard_of(task.slot, self._num_shards))
            if len(self._runs) > self._max_runs:
                self._runs.popitem(last=False)
        return run

    def _put(self, run: _Run, kind: str, text: str) -> None:
        lane = self._lanes.get(run.shard)
        if lane is None:
            lane = self._lanes[run.shard] = _Lane()
        for part_kind, part in _parts(kind, text, run.spoke):
            run.spoke = run.spoke or part_kind == "token"
            lane.put(run, part_kind, part)
        while lane.size > self._max_waiting_bytes:
            lane.drop()
            self.num_dropped += 1

    def _arm(self, shard: int) -> None:
        """See to it that the control loop sends what waits for a shard."""
        loop = self._loop
        if loop is None or shard in self._sending:
            return  # the sender looks again before it ends
        try:
            same = asyncio.get_running_loop() is loop
        except RuntimeError:
            same = False
        if same:
            self._start(shard)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._start, shard)

    # -- the control loop ----------------------------------------------------------------------

    def ended(self, batch: Iterable[tuple[int, Completion]]) -> None:
        """Say that attempts are over that did not say it themselves; takes what an executor reports."""
        if not self._runs:
            return
        for _, completion in batch:
            run = self._runs.get((completion.id, completion.attempt))
            if run is not None:
                error = completion.error
                self._end(completion.id, completion.attempt, "" if error is None else error.type)

    def cancelled(self, ids: Iterable[bytes]) -> None:
        """Say that activations were given up."""
        wanted = frozenset(ids)
        with self._lock:
            over = [key for key in self._runs if key[0] in wanted]
        for key in over:
            self._end(*key, "cancelled")

    def _end(self, activation: bytes, attempt: int, error: str) -> None:
        with self._lock:
            run = self._runs.pop((activation, attempt), None)
            if run is not None:
                self._put(run, "failed" if error else "final", error)
        if run is not None:
            self._arm(run.shard)

    def _start(self, shard: int) -> None:
        if shard not in self._sending and not self._closed:
            self._sending[shard] = asyncio.ensure_future(self._send(shard))

    async def _send(self, shard: int) -> None:
        """Send what waits for a shard, one message at a time, until nothing is left."""
        lane = self._lanes[shard]
        while True:
            await asyncio.sleep(self._flush_s)
            with self._lock:
                texts = lane.take(MAX_BATCH_BYTES)
                if not texts:
                    # Under the lock: who puts something from now on finds no sender and starts one.
                    del self._sending[shard]
                    return
            try:
                self.heard(shard, await self._send_to(shard, encode(TextBatch(texts))))
            except PeerGoneError:
                self._lost(texts)
                await asyncio.sleep(GONE_S)
            except Exception:  # a refusal, or a defect of ours: the next batch may be taken
                logger.exception("shard %d did not take what runs streamed", shard)
                self._lost(texts)

    def _lost(self, texts: list[Text]) -> None:
        """Count what a shard did not get against what its runs say next."""
        self.num_dropped += len(texts)
        with self._lock:
            open_runs = {(run.task[0], run.task[1]): run for run in self._runs.values()}
            for text in texts:
                run = open_runs.get((text.activation_id, text.attempt))
                if run is not None:
                    holder = run.waiting[0] if run.waiting else run
                    holder.missed += text.missed + 1

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything that waits now was sent, or the time is over."""
        if self._sending:
            await asyncio.wait(list(self._sending.values()), timeout=timeout_s)

    def close(self) -> None:
        """Stop; what waits is gone."""
        self._closed = True
        for task in self._sending.values():
            task.cancel()
        self._lanes.clear()


def _parts(kind: str, text: str, spoke: bool) -> Iterator[tuple[str, str]]:
    """Cut what is too long for one piece; what the tokens have said already is not said again at the end."""
    if len(text) <= MAX_TEXT:
        yield kind, text
        return
    if kind in ("status", "failed"):
        yield kind, text[: MAX_TEXT - 1] + "…"
        return
    if kind == "token" or not spoke:
        for start in range(0, len(text), MAX_TEXT):
            yield "token", text[start : start + MAX_TEXT]
    if kind == "final":
        yield "final", ""
