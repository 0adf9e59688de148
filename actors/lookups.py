"""What a shard fetches from its store before it applies a micro-batch: what the batch refers to and memory has not."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from flock_ray.actors.approvals import approved_postings, approved_workflows
from flock_ray.actors.keeping import Keeper
from flock_ray.actors.letters import postings_of, workflows_of
from flock_ray.core import wire
from flock_ray.core.claims import claim_for, is_claim
from flock_ray.core.shard import ShardCore

__all__ = ["ShardLookups"]


MAX_OFFERS = 8
"""Slots and subscriptions of which one micro-batch offers candidates: what is in the inbox must not wait for more."""


class ShardLookups:
    """Finds out what a micro-batch needs."""

    core: ShardCore
    _keeper: Keeper | None

    async def _offer_candidates(self, now_us: int) -> None:
        """Have workers look at candidates that are due; artifacts that have left memory come from the store."""
        core, keeper = self.core, self._keeper
        for due in core.offers_due(now_us, MAX_OFFERS):
            held = {key: envelope for key in due.ids if (envelope := core.index.get(key)) is not None}
            missing = {key for key in due.ids if key not in held}
            if keeper is not None and missing:
                found = await keeper.patiently(partial(keeper.store.get, missing))
                held |= {envelope.id: self._as_held(envelope) for _, envelope in found}
            core.offer(due, [held[key] for key in due.ids if key in held], now_us)

    def _as_held(self, envelope: wire.Envelope) -> wire.Envelope:
        """Return a stored artifact as a shard has it: a large payload stays in the store, and is only claimed."""
        if len(envelope.payload) <= self.core.inline_limit or is_claim(envelope.payload):
            return envelope
        return msgspec.structs.replace(envelope, payload=claim_for(envelope.payload))

    async def _look_up(self, keeper: Keeper, box: list[Any], now_us: int) -> None:
        """Have at hand what the batch refers to and memory no longer has."""
        postings: list[wire.Posting] = []
        made: list[wire.Posting] = []
        workflows: set[str] = set()
        for kind, subject, _, _ in box:
            if kind == "publish":
                postings += subject.postings
            elif kind == "forward":
                made += [f.posting for f in subject.forwards if f.kind == "publish" and f.posting]
                workflows |= self._reopened(subject.forwards)
            elif kind == "complete":
                made += [posting for completion in subject.completions for posting in completion.outputs]
                workflows |= self._charged(subject.completions)
            elif kind == "cancel":
                workflows.add(subject)
            elif kind == "spent":
                slots = self.core.slots
                workflows |= {
                    of.workflow
                    for of in subject
                    if of.workflow and of.slot in slots and of.workflow not in slots[of.slot].workflows
                }
            elif kind == "letters":
                postings += postings_of(subject)
                workflows |= workflows_of(self.core, subject)
            elif kind == "approval":
                postings += approved_postings(subject)
                workflows |= approved_workflows(self.core, subject)
        workflows |= self._due_at_gates(now_us)
        if postings or made or workflows:
            await keeper.look_up(postings, made, workflows, now_us)

    def _reopened(self, forwards: list[wire.Forward]) -> set[str]:
        """Return the workflows of which something runs or is collected again, and whose record is not in memory."""
        slots = self.core.slots
        return {
            f.workflow
            for f in forwards
            if f.kind == "settle" and f.delta[0] > 0
            and f.target in slots and f.workflow not in slots[f.target].workflows
        } | {
            f.posting.envelope.correlation_id
            for f in forwards
            if f.kind == "match" and f.posting is not None
            and f.target in slots and f.posting.envelope.correlation_id not in slots[f.target].workflows
        }  # fmt: skip

    def _due_at_gates(self, now_us: int) -> set[str]:
        """Return the workflows of what waits in gates whose time has come, and whose record is not in memory.

        Inputs of another partition of a workflow do not keep its record here; what becomes of the group may be
        published here.
        """
        found: set[str] = set()
        due_us = self.core.next_timer_us()
        if due_us is None or due_us > now_us:
            return found
        for slot in self.core.slots.values():
            if not slot.timers or slot.timers[0][0] > now_us:
                continue
            for timer_us, _, kind, key, subscription in slot.timers:
                gate = (
                    slot.gate(subscription.decode(), key) if kind == "gate" and timer_us <= now_us else None
                )
                if gate is not None:
                    names = {item.envelope.correlation_id for item in gate.items()}
                    found |= names - slot.workflows.keys()
        return found

    def _charged(self, completions: list[wire.Completion]) -> set[str]:
        """Return the workflows whose use of models grows and whose record is not in memory."""
        found: set[str] = set()
        for completion in completions:
            slot = self.core.slots.get(completion.slot) if completion.calls else None
            run = None if slot is None else slot.open.get(completion.id)
            if slot is not None and run is not None and run.correlation_id not in slot.workflows:
                found.add(run.correlation_id)
        return found
