"""Small defects, one at a time: the simulator has to find each of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.simulation.mutants import dispatching, journaling, promises, recovering, silence, storing

Mutant = Callable[[], AbstractContextManager[object]]

MUTANTS: dict[str, Mutant] = {
    mutant.__name__: mutant
    for module in (storing, journaling, promises, dispatching, recovering, silence)
    for mutant in module.ALL
}

FIRST: dict[str, int] = {
    "skip_the_epoch_check": 10,
    "skip_the_epoch_check_of_snapshots": 12,
    "older_snapshots_overwrite_newer_ones": 14,
    "truncate_too_far": 4,
    "truncate_before_the_snapshot": 0,
    "forget_recent_ids": 4,
    "lose_workflow_rows": 1,
    "forget_to_journal_what_was_brought_back": 22,
    "leave_settled_workflows_in_the_store": 7,
    "evict_within_a_batch": 23,
    "evict_never": 11,
    "snapshot_without_all_gate_items": 0,
    "snapshot_without_held_inputs": 1,
    "snapshot_without_inbox": 1,
    "snapshot_keeps_settled_workflows": 1,
    "follow_the_wall_clock": 0,
    "acknowledge_before_append": 0,
    "send_forwards_before_they_are_durable": 0,
    "forget_inbox_dedupe": 4,
    "commit_a_late_attempt_again": 1,
    "accept_stale_tables": 41,
    "leak_a_permit": 6,
    "leak_permits_of_ended_runs": 3,
    "forget_work_of_a_lost_worker": 4,
    "count_the_unreachable_as_delivered": 7,
    "drop_timers_of_delays": 4,
    "drop_timers_of_gates": 2,
    "forget_the_outbox": 4,
    "forget_delayed_matches": 9,
    "replay_what_a_snapshot_has_seen": 1,
    "forget_the_time": 0,
    "restore_without_waking": 10,
    "leave_open_work_alone": 7,
    "expire_in_silence": 1,
    "lose_workers_in_silence": 4,
    "refuse_in_silence": 1,
    "widen_outputs": 22,
}
"""The seed that found a mutant last time and fast, tried before all others."""
