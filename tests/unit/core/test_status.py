"""What a shard answers about workflows and artifacts, from its state alone."""

from __future__ import annotations

from flock_ray.core.ids import slot_of
from flock_ray.core.shard import ShardCore
from flock_ray.core.status import artifact_fate, workflow_part
from flock_ray.core.wire import (
    AgentInfo,
    Completion,
    Envelope,
    ErrorInfo,
    GrantBatch,
    Match,
    Posting,
    SubscriptionSpec,
    TableSpec,
)
from tests.unit.core.permits import permit

TABLE = TableSpec(
    1,
    (AgentInfo("one"), AgentInfo("pair")),
    (
        SubscriptionSpec("one/A", "one", ("A",), "single"),
        SubscriptionSpec("pair/A+B", "pair", ("A", "B"), "and"),
    ),
)


def board() -> ShardCore:
    core = ShardCore(range(256))
    core.install(TABLE, 0)
    return core


def artifact(name: str, type_name: str = "A", **options: object) -> Envelope:
    given = {"produced_by": "external", "created_us": 1, "correlation_id": "w"}
    fields = {**given, **options}
    return Envelope(
        name.encode().ljust(16),
        type_name,
        1,
        b"{}",
        slot=slot_of(str(fields["correlation_id"])),
        **fields,  # type: ignore[arg-type]  # of several types
    )


def test_counts_follow_an_activation_from_ready_over_running_to_done() -> None:
    core = board()
    source = artifact("a")
    core.publish(Posting(source, (Match("one/A"),)), 10)
    part = workflow_part(core, "w")
    assert part is not None and (part.artifacts, part.open, part.waiting) == (1, 1, 0)
    assert artifact_fate(core, source.id).ready == ["one/A"]

    core.dispatch.grant(GrantBatch(1, 100.0, [permit("one", "shared:1", 5)]), 10)
    (task,) = core.dispatch.take(11, 1)["shared:1"]
    assert artifact_fate(core, source.id).running == ["one/A"]

    made = artifact("b", "B", parents=(source.id,), produced_by="one")
    core.complete(Completion(task.id, 1, task.slot, (Posting(made),)), 20)
    done = workflow_part(core, "w")
    assert done is not None and (done.artifacts, done.open, done.updated_us) == (2, 0, 20)
    assert done.counts == {"A": 1, "B": 1}
    assert artifact_fate(core, source.id).children == [(made.id, "B", "one")]


def test_a_gate_says_what_it_holds_and_what_it_needs() -> None:
    core = board()
    source = artifact("a")
    core.publish(Posting(source, (Match("pair/A+B"),)), 10)
    part = workflow_part(core, "w")
    assert part is not None and (part.open, part.waiting) == (0, 1)
    assert part.waiting_for == ["pair/A+B: holds 1, waits for 1 x B"]
    assert artifact_fate(core, source.id).waiting == [("pair/A+B", "waits for 1 x B")]


def test_a_match_that_is_due_later_counts_as_delayed_and_its_delivery_is_an_event() -> None:
    core = board()
    source = artifact("a")
    core.publish(Posting(source, (Match("one/A", b"", 5000),)), 10)
    part = workflow_part(core, "w")
    assert part is not None and (part.open, part.delayed) == (0, 1)
    assert artifact_fate(core, source.id).delayed == [("one/A", 5000)]
    assert core.next_timer_us() == 5000
    core.tick(5000)
    after = workflow_part(core, "w")
    assert after is not None and (after.open, after.delayed) == (1, 0)
    assert [e.agent for e in core.events.read(0, 10, kinds=frozenset({"match.due"}))[0]] == ["one"]


def test_errors_and_cancelling_show_and_nothing_stays_open() -> None:
    core = board()
    core.publish(Posting(artifact("a"), (Match("one/A"), Match("pair/A+B"))), 10)
    core.publish(Posting(artifact("d"), (Match("one/A", b"", 9_000_000),)), 11)
    core.publish(Posting(artifact("e", "WorkflowError")), 12)
    assert core.cancel("w", 20) == 1
    part = workflow_part(core, "w")
    assert part is not None
    assert (part.cancelled, part.errors, part.open, part.waiting, part.delayed) == (True, 1, 0, 0, 0)
    assert core.idle
    core.tick(9_000_000)
    assert core.idle


def test_an_unknown_workflow_or_artifact_is_not_made_up() -> None:
    core = board()
    assert workflow_part(core, "nobody") is None
    assert artifact_fate(core, b"x" * 16).envelope is None


def test_a_late_result_changes_nothing_and_is_an_event() -> None:
    core = board()
    late = Completion(b"x" * 16, 1, 0, error=ErrorInfo("ValueError", "late"))
    assert core.complete(late, 5) is False
    assert [e.kind for e in core.events.read(0, 10)[0]] == ["activation.late"]
