"""Small defects, one at a time: the simulator has to find each of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.simulation.approving import run_approvals
from tests.simulation.mutants import (
    aggregating,
    approving,
    dispatching,
    failing,
    fanning,
    journaling,
    promises,
    recovering,
    silence,
    spending,
    storing,
    timing,
)
from tests.simulation.world import World

Mutant = Callable[[], AbstractContextManager[object]]

MUTANTS: dict[str, Mutant] = {
    mutant.__name__: mutant
    for module in (
        storing,
        journaling,
        promises,
        dispatching,
        recovering,
        silence,
        failing,
        fanning,
        aggregating,
        approving,
        timing,
        spending,
    )
    for mutant in module.ALL
}

RUN_OF: dict[str, Callable[[int], World]] = {mutant.__name__: run_approvals for mutant in approving.ALL}
"""What has to find a mutant, when it is another scenario than that of all kinds of agents."""

FIRST: dict[str, int] = {
    "skip_the_epoch_check": 10,
    "skip_the_epoch_check_of_snapshots": 4,
    "older_snapshots_overwrite_newer_ones": 12,
    "truncate_too_far": 4,
    "truncate_before_the_snapshot": 1,
    "forget_recent_ids": 4,
    "lose_workflow_rows": 0,
    "forget_to_journal_what_was_brought_back": 2,
    "leave_settled_workflows_in_the_store": 6,
    "evict_within_a_batch": 6,
    "evict_never": 9,
    "snapshot_without_all_gate_items": 0,
    "snapshot_without_held_inputs": 1,
    "snapshot_without_inbox": 1,
    "snapshot_keeps_settled_workflows": 2,
    "follow_the_wall_clock": 1,
    "acknowledge_before_append": 0,
    "send_forwards_before_they_are_durable": 0,
    "forget_inbox_dedupe": 4,
    "commit_a_late_attempt_again": 1,
    "accept_stale_tables": 8,
    "leak_a_permit": 6,
    "leak_permits_of_ended_runs": 0,
    "forget_work_of_a_lost_worker": 5,
    "count_the_unreachable_as_delivered": 7,
    "drop_timers_of_delays": 0,
    "drop_timers_of_gates": 21,
    "forget_the_outbox": 4,
    "forget_delayed_matches": 1,
    "replay_what_a_snapshot_has_seen": 1,
    "forget_the_time": 18,
    "restore_without_waking": 4,
    "leave_open_work_alone": 30,
    "expire_in_silence": 0,
    "lose_workers_in_silence": 9,
    "refuse_in_silence": 1,
    "widen_outputs": 8,
    "forget_breakers": 0,
    "count_retries_twice": 1,
    "forget_retries": 1,
    "retry_at_once": 1,
    "leak_a_lane": 0,
    "redrive_twice": 16,
    "let_one_too_many_start": 1,
    "let_one_too_many_try": 1,
    "forget_pauses": 58,
    "forget_a_chunk_after_a_restart": 2,
    "count_a_chunk_twice": 2,
    "forget_open_chunks_after_a_restart": 2,
    "hurry": 2,
    "begin_a_split_anew": 2,
    "forget_redriven_chunks": 5,
    "merge_in_order_of_arrival": 2,
    "leave_fan_outs_open": 2,
    "decide_aggregates_twice": 13,
    "forget_a_vote_in_a_restart": 0,
    "forget_what_was_voted": 0,
    "forget_decisions_in_a_restart": 0,
    "never_notice_rest": 0,
    "forget_rest_in_a_restart": 21,
    "take_work_for_rest": 0,
    "withdraw_what_others_want": 0,
    "forget_watermarks": 7,
    "count_an_approval_twice": 0,
    "forget_approvals": 0,
    "forget_votes": 0,
    "let_timeout_and_vote_both_win": 0,
    "drop_timers_of_approvals": 0,
    "show_to_everybody": 0,
    "lose_timers_of_schedules": 5,
    "fire_the_last_time_again": 1,
    "match_candidates_twice": 1,
    "snapshot_without_candidates": 1,
    "lose_deadlines": 4,
    "forget_who_was_late": 4,
    "settle_twice": 0,
    "forget_reservations": 0,
    "reserve_without_a_record": 0,
    "give_back_what_a_dead_gateway_held": 0,
    "reserve_again_what_was_settled": 15,
    "forget_edits": 17,
}
"""The seed that found a mutant last time and fast, tried before all others."""
