from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from flock_ray.core.ids import slot_of
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import (
    CONFLICT,
    DUPLICATE,
    NOT_RUN,
    PUBLISHED,
    WRONG_SLOT,
    Completion,
    Envelope,
    ErrorInfo,
    Forward,
    GrantBatch,
    Match,
    Posting,
    SubscriptionSpec,
    TableSpec,
    Task,
)
from tests.unit.core.permits import permit

ALL = range(256)
SINGLE = SubscriptionSpec("one/A", "one", ("A",), "single")
BATCH = SubscriptionSpec("two/A", "two", ("A",), "batch", "board", batch_size=9, batch_timeout_us=50)


def posting(
    identity: str, spec: SubscriptionSpec, workflow: str = "w", name: str = "A", key: bytes = b""
) -> Posting:
    envelope = Envelope(
        identity.encode().ljust(16), name, 1, b"{}", workflow, slot_of(workflow), "external", 0
    )
    return Posting(envelope, (Match(spec.id, key),))


def core_with(*specs: SubscriptionSpec) -> ShardCore:
    core = ShardCore(ALL)
    assert core.install(TableSpec(1, (), specs), 0)
    core.dispatch.grant(GrantBatch(1, 1000.0, [permit(s.agent, "worker", 99, 99) for s in specs]), 0)
    return core


def taken(core: ShardCore) -> list[Task]:
    return [task for tasks in core.dispatch.take(1, 1).values() for task in tasks]


def done(task: Task, error: ErrorInfo | None = None, attempt: int | None = None) -> Completion:
    return Completion(task.id, attempt or task.attempt, task.slot, error=error)


def test_an_id_is_accepted_once_and_the_answer_says_what_became_of_a_repetition() -> None:
    core = ShardCore([slot_of("w")])
    core.install(TableSpec(1, (), (SINGLE,)), 0)
    first = posting("a", SINGLE)
    other = msgspec.structs.replace(first, envelope=msgspec.structs.replace(first.envelope, payload=b"[]"))
    elsewhere = posting("b", SINGLE, next(f"w{n}" for n in range(99) if slot_of(f"w{n}") != slot_of("w")))
    keyed = msgspec.structs.replace(other, idempotent=True)
    answers = [core.publish(p, 1) for p in (first, first, other, keyed, elsewhere)]
    assert answers == [PUBLISHED, DUPLICATE, CONFLICT, DUPLICATE, WRONG_SLOT]
    assert core.num_open == 1


def test_first_result_wins_and_a_late_one_is_only_an_event() -> None:
    # Given an activation that was handed out twice, because its first worker was lost
    core = core_with(SINGLE)
    core.publish(posting("a", SINGLE), 1)
    [old] = taken(core)
    core.worker_lost("worker", 2)
    core.dispatch.grant(GrantBatch(2, 1000.0, [permit("one", "other", 9, 9)]), 2)
    [new] = taken(core)
    # When the lost one answers after all, then its result counts, once, and the other attempt is stopped
    assert core.complete(done(old), 3)
    assert core.cancels == [("other", old.id)]
    assert not core.complete(done(new), 4)
    assert core.idle
    assert core.dispatch.running() == {}


def test_a_late_refusal_of_a_former_attempt_does_not_run_an_activation_twice() -> None:
    # Given an attempt that its worker did not know the agent for, reported twice
    core = core_with(SINGLE)
    core.publish(posting("a", SINGLE), 1)
    [first] = taken(core)
    refusal = done(first, ErrorInfo(NOT_RUN, "one"))
    assert not core.complete(refusal, 2)
    assert not core.complete(refusal, 2)
    [second] = taken(core)
    assert not core.complete(refusal, 3)
    # Then one attempt runs, and its end leaves no permit in use
    assert taken(core) == []
    assert core.complete(done(second), 4)
    assert core.dispatch.running() == {}
    assert not any(core.dispatch.leases.values())


def test_an_exception_of_user_code_is_never_taken_for_a_run_that_was_refused() -> None:
    """An agent that asked for an agent that is not there raised what workers said of agents they do not have."""
    core = core_with(SINGLE)
    core.publish(posting("a", SINGLE), 1)
    [task] = taken(core)
    assert core.complete(done(task, ErrorInfo("UnknownAgentError", "no agent 'x'")), 2)
    assert core.idle


def test_a_batch_of_a_subscription_that_is_gone_still_runs_when_its_time_comes() -> None:
    core = core_with(BATCH)
    core.publish(posting("a", BATCH), 1)
    core.settle_local_forwards(1)
    core.install(TableSpec(2, (), ()), 2)
    core.tick(51)
    core.settle_local_forwards(51)
    [task] = taken(core)
    assert task.agent == "two"


def test_cancelling_one_workflow_leaves_what_others_have_in_the_same_gates() -> None:
    # Given a join then batch over the board: one complete pair of two workflows, and a half of each
    spec = SubscriptionSpec("j/A+B", "j", ("A", "B"), "join_batch", "board", within_us=10**9, batch_size=5)
    core = core_with(spec)
    for workflow, name, key in (("u", "A", b"1"), ("v", "B", b"1"), ("u", "A", b"2"), ("v", "A", b"3")):
        core.publish(posting(workflow + name + key.decode(), spec, workflow, name, key), 1)
    core.settle_local_forwards(1)
    # When one workflow is cancelled
    core.cancel("u", 2)
    core.settle_local_forwards(2)
    # Then the pair stays, the other's half stays, and every workflow counts what the gates hold of it
    gates = [gate for slot in core.slots.values() for gate in slot.gates.get(spec.id, {}).values()]
    held = sorted(item.envelope.id.strip() for gate in gates for item in gate.items())
    assert held == [b"uA1", b"vA3", b"vB1"]
    waiting = {w: core.slots[slot_of(w)].workflows[w].waiting for w in "uv"}
    assert waiting == {"u": 1, "v": 2}


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(1, 7)), st.lists(st.integers(1, 6), max_size=6))
def test_forwards_of_one_source_apply_in_order_and_once_however_they_arrive(
    order: list[int], again: list[int]
) -> None:
    # Given six artifacts of another slot, sent in any order and some of them twice
    core = ShardCore([slot_of("w")])
    core.install(TableSpec(1, (), (SINGLE,)), 0)

    def forward(seq: int) -> Forward:
        return Forward(300, slot_of("w"), seq, "publish", posting(str(seq), SINGLE))

    # When the sender repeats what was refused
    waiting = list(order)
    while waiting:
        waiting = [seq for seq in waiting if not core.forward_in(forward(seq), 1)]
    assert all(core.forward_in(forward(seq), 2) for seq in again)
    # Then they are in the feed in the sender's order, once
    ids: list[Any] = [int(e.id.strip()) for _, e in core.index.read(0)]
    assert ids == [1, 2, 3, 4, 5, 6]
    assert core.num_open == 6


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["publish", "take", "complete", "lose", "cancel", "fail"]), max_size=40),
    st.data(),
)
def test_open_counts_always_agree_with_what_is_open(steps: list[str], data: st.DataObject) -> None:
    core = core_with(SINGLE, BATCH)
    running: list[Task] = []
    for now, step in enumerate(steps, 1):
        if step == "publish":
            spec = data.draw(st.sampled_from((SINGLE, BATCH)))
            core.publish(posting(f"p{now}", spec, data.draw(st.sampled_from("uvw"))), now)
        elif step == "take":
            running += [task for tasks in core.dispatch.take(now, 1).values() for task in tasks]
        elif step in ("complete", "fail") and running:
            task = running.pop(data.draw(st.integers(0, len(running) - 1)))
            core.complete(done(task, ErrorInfo("E", "") if step == "fail" else None), now)
        elif step == "lose":
            core.worker_lost("worker", now)
            grants = [permit("one", "worker", 9, 9), permit("two", "worker", 9, 9)]
            core.dispatch.grant(GrantBatch(now + 1, 1000.0, grants), now)
        elif step == "cancel":
            core.cancel(data.draw(st.sampled_from("uvw")), now)
        core.tick(now)
        core.settle_local_forwards(now)
        workflows = [w for s in core.slots.values() for w in s.workflows.values()]
        assert core.num_active == sum(w.open for w in workflows)
        assert core.num_open == sum(len(s.open) for s in core.slots.values())
        assert all(min(w.open, w.waiting, w.delayed) >= 0 for w in workflows)
        assert sum(w.waiting for w in workflows) == sum(
            len(g.items()) for s in core.slots.values() for keys in s.gates.values() for g in keys.values()
        )
        assert core.num_outbox == 0
