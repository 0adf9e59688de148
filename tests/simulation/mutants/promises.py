"""Shards that promise too early, or apply too often."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

from flock_ray.actors.shard import Shard
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import CompleteBatch, Completion, Forward, PublishBatch


def acknowledge_before_append() -> AbstractContextManager[object]:
    """Answer as soon as a batch is applied."""
    take, answer, append = Shard._take_box, Shard._answer, Shard._append
    open_: dict[Shard, tuple[list[Any], list[Any]]] = {}

    def take_box(self: Shard) -> Any:
        box = take(self)
        open_[self] = [future for *_, future in box], []
        return box

    def note_answer(self: Shard, kind: str, subject: Any, now_us: int) -> Any:
        made = answer(self, kind, subject, now_us)
        open_[self][1].append(made)
        return made

    async def answer_first(self: Shard, now_us: int) -> None:
        self._give(list(zip(*open_[self], strict=True)))
        await append(self, now_us)

    return mock.patch.multiple(Shard, _take_box=take_box, _answer=note_answer, _append=answer_first)


def send_forwards_before_they_are_durable() -> AbstractContextManager[object]:
    """Tell other shards while the append is still on its way."""
    append = Shard._append

    async def send_first(self: Shard, now_us: int) -> None:
        self._send_forwards()
        await append(self, now_us)

    return mock.patch.object(Shard, "_append", send_first)


def forget_inbox_dedupe() -> AbstractContextManager[object]:
    """A forward that comes twice is applied twice."""
    forward_in = ShardCore.forward_in

    def always_new(self: ShardCore, forward: Forward, now_us: int) -> bool:
        if forward.target in self.slots:
            inbox = self.slots[forward.target].inbox
            inbox[forward.source] = min(inbox.get(forward.source, 0), forward.seq - 1)
        return forward_in(self, forward, now_us)

    return mock.patch.object(ShardCore, "forward_in", always_new)


def commit_a_late_attempt_again() -> AbstractContextManager[object]:
    """The second result of an activation counts too."""
    complete = ShardCore.complete
    ended: dict[tuple[ShardCore, bytes], Any] = {}

    def again(self: ShardCore, completion: Completion, now_us: int) -> bool:
        slot = self.slots[completion.slot]
        key = (self, completion.id)
        if completion.id in slot.open:
            ended[key] = slot.open[completion.id]
        elif key in ended:
            slot.open[completion.id] = ended[key]
            self.num_open += 1
        return complete(self, completion, now_us)

    return mock.patch.object(ShardCore, "complete", again)


def accept_stale_tables() -> AbstractContextManager[object]:
    """Take what was matched with an older version of the table."""
    apply_publish, apply_complete = Shard._apply_publish, Shard._apply_complete

    def publish(self: Shard, batch: PublishBatch, now_us: int) -> Any:
        batch.table_version = self.core.table.version
        return apply_publish(self, batch, now_us)

    def complete(self: Shard, batch: CompleteBatch, now_us: int) -> Any:
        batch.table_version = self.core.table.version
        return apply_complete(self, batch, now_us)

    stack = ExitStack()
    stack.enter_context(mock.patch.object(Shard, "_apply_publish", publish))
    stack.enter_context(mock.patch.object(Shard, "_apply_complete", complete))
    return stack


ALL = (
    acknowledge_before_append,
    send_forwards_before_they_are_durable,
    forget_inbox_dedupe,
    commit_a_late_attempt_again,
    accept_stale_tables,
)
