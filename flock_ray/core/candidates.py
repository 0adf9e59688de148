"""Candidates: artifacts whose `where=` did not hold when they were published, and that are offered again.

Each slot keeps, per subscription with `reevaluate=`, the ids of its candidates. At whole multiples of that time a
worker looks at them, some at once; what matches then is delivered, once, and is no candidate any more. Nothing else on
the board is looked at. A candidate does not keep its workflow from settling, nor its artifact in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from itertools import islice, takewhile
from typing import NamedTuple

from flock_ray.core.delivery import DeliveryDesk
from flock_ray.core.ids import activation_id
from flock_ray.core.records import Completed, Offered
from flock_ray.core.rows import ERASED
from flock_ray.core.state import MATCH_AGENT, Activation, Slot, Waiting, WaitingArtifact, Workflow
from flock_ray.core.wire import Envelope, Match, Posting, SubscriptionSpec

__all__ = ["MAX_CANDIDATES", "AtOnce", "CandidateDesk"]

MAX_CANDIDATES = 1_000_000
"""Per shard. What comes when there are so many is not offered again, and an event says so."""

AT_ONCE = 200
"""Candidates that a worker looks at in one go."""

MAX_NAMED = 100
"""Artifacts that one event names."""

_BOARD = ("board", "")


class AtOnce(NamedTuple):
    """Candidates of one slot and subscription that are due."""

    slot: int
    subscription: str
    ids: tuple[bytes, ...]


class CandidateDesk(DeliveryDesk):
    """Artifacts that subscriptions may still take later."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with no candidates."""
        self.num_candidates = 0
        self._offers: list[tuple[int, int, str]] = []
        """Heap of (due, slot, subscription). An entry that is not true any more does nothing."""
        self._offer_at: dict[tuple[int, str], int] = {}
        """The entry of the heap that counts; the others are passed over."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Offered] = self._on_offered

    # -- commands -------------------------------------------------------------------------------

    def offers_due(self, now_us: int, limit: int) -> list[AtOnce]:
        """Return candidates to look at now; the host brings their artifacts to `offer`."""
        found: list[AtOnce] = []
        while self._offers and self._offers[0][0] <= now_us and len(found) < limit:
            if _BOARD in self.pauses.by_place:
                break
            due_us, index, name = heappop(self._offers)
            if self._offer_at.get((index, name)) != due_us:
                continue
            del self._offer_at[index, name]
            waiting = self.slots[index].candidates.get(name)
            if waiting is None or waiting.offering:
                continue
            if waiting.first_us > now_us:  # those that were due are gone
                self._await_offer(index, name, waiting)
            elif not self._asks(name):
                found.append(AtOnce(index, name, ()))
            else:
                due = takewhile(lambda entry: entry[1].due_us <= now_us, waiting.entries.items())
                found.append(AtOnce(index, name, tuple(key for key, _ in islice(due, AT_ONCE))))
        return found

    def offer(self, due: AtOnce, envelopes: Sequence[Envelope], now_us: int) -> None:
        """Let a worker look at candidates, given those of their artifacts that the board still has."""
        inputs = tuple(envelope for envelope in envelopes if envelope.payload != ERASED)
        gone = tuple(set(due.ids) - {envelope.id for envelope in inputs})
        record = Offered(now_us, due.slot, due.subscription, inputs, tuple(sorted(gone)))
        self._log(record)
        self._on_offered(record)

    def next_offer_us(self) -> int | None:
        """Return when `offers_due` has something next; None: nothing, as far as time goes."""
        if not self._offers or _BOARD in self.pauses.by_place:
            return None
        return self._offers[0][0]

    # -- what the records do --------------------------------------------------------------------

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        super()._accept(slot, posting, now_us)
        if posting.candidates:
            self._keep_candidates(slot, posting, now_us)

    def _deliver_all(self, slot: Slot, posting: Posting, now_us: int) -> None:
        super()._deliver_all(slot, posting, now_us)
        if posting.candidates:
            self._keep_candidates(slot, posting, now_us)

    def _keep_candidates(self, slot: Slot, posting: Posting, now_us: int) -> None:
        envelope = posting.envelope
        workflow = slot.workflows.get(envelope.correlation_id)
        if workflow is not None and workflow.cancelled:
            return
        for name in posting.candidates:
            spec = self.subscriptions.get(name)
            if spec is None:
                self._unknown_subscription(Match(name), envelope, now_us)
            elif self.num_candidates >= MAX_CANDIDATES:
                self._note(
                    now_us, "dropped", spec, (envelope.id,), f"{name}: there are {MAX_CANDIDATES:,} already"
                )
            else:
                waiting = slot.candidates.get(name)
                if waiting is None:
                    waiting = slot.candidates[name] = Waiting(spec.reevaluate_us)
                due_us = waiting.next_round(slot.index, max(now_us, posting.not_before_us))
                waiting.entries[envelope.id] = WaitingArtifact(envelope.correlation_id, due_us)
                self.num_candidates += 1
                if len(waiting.entries) == 1:
                    self._await_offer(slot.index, name, waiting)

    def _retime_candidates(self, now_us: int) -> None:
        """Take what a new table says of how often candidates are offered."""
        for slot in self.slots.values():
            for name, waiting in slot.candidates.items():
                spec = self.subscriptions.get(name)
                if spec is None or spec.reevaluate_us in (0, waiting.every_us):
                    continue
                waiting.every_us = spec.reevaluate_us
                next_us = waiting.next_round(slot.index, now_us)
                for entry in waiting.entries.values():
                    entry.due_us = min(entry.due_us, next_us)
                if not waiting.offering:
                    self._await_offer(slot.index, name, waiting)

    def _on_offered(self, record: Offered) -> None:
        slot, now_us, name = self.slots[record.slot], record.at_us, record.subscription
        waiting = slot.candidates[name]
        spec = self.subscriptions.get(name)
        if spec is None or not spec.reevaluate_us:
            self._forget_subscription(slot, name, now_us)
            return
        if record.gone:
            for key in record.gone:
                self._pop(waiting, key)
            self._note(
                now_us, "gone", spec, record.gone, f"{name}: {len(record.gone)} left the board unmatched"
            )
        next_us = waiting.next_round(slot.index, now_us)
        for envelope in record.inputs:
            entry = waiting.entries.pop(envelope.id)
            entry.due_us = next_us
            waiting.entries[envelope.id] = entry  # behind all that are still to be looked at in this round
        if not record.inputs:
            self._go_on(slot, name, waiting)
            return
        waiting.rounds += 1
        key = activation_id(MATCH_AGENT, name, tuple(e.id for e in record.inputs), waiting.rounds)
        # No workflow counts it: one that has settled stays so unless something of it matches.
        activation = Activation(key, MATCH_AGENT, name, slot.index, "", record.inputs, now_us, charges=())
        waiting.offering = key
        slot.open[key] = activation
        self.num_open += 1
        self.activity += 1
        self.dispatch.push(activation)

    def _on_answered(self, slot: Slot, activation: Activation, record: Completed) -> None:
        """Deliver what a worker found to match by now; called after the activation has ended."""
        name, now_us = activation.subscription, record.at_us
        waiting, spec = slot.candidates.get(name), self.subscriptions.get(name)
        for kind, detail in record.completion.notes:
            self.events.note(now_us, kind, agent=name.partition("/")[0], detail=detail)
        if waiting is None:
            return
        inputs = {envelope.id: envelope for envelope in activation.inputs}
        for posting in record.completion.outputs:
            envelope = inputs.get(posting.envelope.id)
            if envelope is None or envelope.id not in waiting.entries or posting.candidates:
                continue  # cancelled meanwhile; or an older table took it and this one does not
            self._pop(waiting, envelope.id)
            self._note_refusals(posting, now_us)
            workflow = slot.workflows.get(envelope.correlation_id)
            if spec is None or workflow is None:
                self._note_gone(now_us, name, envelope)
            elif posting.matches and not workflow.cancelled:
                self._take(slot, workflow, spec, posting.matches[0], envelope, now_us)
        self._go_on(slot, name, waiting)

    def _take(
        self, slot: Slot, workflow: Workflow, spec: SubscriptionSpec, match: Match, envelope: Envelope, now_us: int
    ) -> None:  # fmt: skip
        """Deliver a candidate, and see to it that its agent gets it once."""
        if spec.kind == "single":
            for name in [name for name in slot.candidates if name != spec.id]:
                other = self.subscriptions.get(name)
                if other is not None and other.agent == spec.agent and other.kind == "single":
                    self._pop(slot.candidates[name], envelope.id)
        workflow.updated_us = now_us
        self._touch(workflow)
        self.activity += 1
        self.events.note(now_us, "candidate.matched", agent=spec.agent, correlation_id=workflow.id,
                         artifact_ids=(envelope.id,), detail=spec.id)  # fmt: skip
        self._deliver(slot, workflow, match, envelope, now_us)
        self._maybe_settled(workflow)

    def _end(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        super()._end(slot, activation, now_us, failed=failed)
        if activation.agent == MATCH_AGENT and activation.subscription:
            waiting = slot.candidates.get(activation.subscription)
            if waiting is not None and waiting.offering == activation.id:
                waiting.offering = b""
                if failed:  # what was not answered is asked again in the next round
                    self._await_offer(slot.index, activation.subscription, waiting)

    def _drop_candidates(self, slot: Slot, workflow: str) -> None:
        """Offer nothing of a workflow any more: it is cancelled."""
        for name, waiting in list(slot.candidates.items()):
            for key in [key for key, entry in waiting.entries.items() if entry.workflow == workflow]:
                self._pop(waiting, key)
            if not waiting.offering:
                self._go_on(slot, name, waiting)

    def adopt(self, slot: Slot) -> None:
        """Count what a slot restored from its snapshot holds."""
        super().adopt(slot)
        for name, waiting in slot.candidates.items():
            self.num_candidates += len(waiting.entries)
            if not waiting.offering:
                self._await_offer(slot.index, name, waiting)

    def candidates_by_subscription(self) -> dict[str, int]:
        """Count the candidates of each subscription that has some."""
        counts: dict[str, int] = {}
        for slot in self.slots.values():
            for name, waiting in slot.candidates.items():
                counts[name] = counts.get(name, 0) + len(waiting.entries)
        return counts

    # -- inside ---------------------------------------------------------------------------------

    def _asks(self, subscription: str) -> bool:
        spec = self.subscriptions.get(subscription)
        return spec is not None and spec.reevaluate_us > 0

    def _pop(self, waiting: Waiting, key: bytes) -> None:
        if waiting.entries.pop(key, None) is not None:
            self.num_candidates -= 1

    def _go_on(self, slot: Slot, name: str, waiting: Waiting) -> None:
        if waiting.entries:
            self._await_offer(slot.index, name, waiting)
        elif not waiting.offering:
            del slot.candidates[name]

    def _await_offer(self, slot: int, name: str, waiting: Waiting) -> None:
        if not waiting.entries:
            return
        due_us, known = waiting.first_us, self._offer_at.get((slot, name))
        if known is None or due_us < known:
            self._offer_at[slot, name] = due_us
            heappush(self._offers, (due_us, slot, name))

    def _forget_subscription(self, slot: Slot, name: str, now_us: int) -> None:
        waiting = slot.candidates.pop(name)
        self.num_candidates -= len(waiting.entries)
        self.events.note(
            now_us, "candidate.dropped", agent=name.partition("/")[0],
            artifact_ids=tuple(list(waiting.entries)[:MAX_NAMED]),
            detail=f"{name}: {len(waiting.entries)} in slot {slot.index}; it is gone, or has no reevaluate= any more",
        )  # fmt: skip

    def _note_gone(self, now_us: int, name: str, envelope: Envelope) -> None:
        self.events.note(
            now_us, "candidate.gone", agent=name.partition("/")[0], correlation_id=envelope.correlation_id,
            artifact_ids=(envelope.id,), detail=f"{name}: it left the board while it was looked at",
        )  # fmt: skip

    def _note(
        self, now_us: int, what: str, spec: SubscriptionSpec, ids: tuple[bytes, ...], detail: str
    ) -> None:
        self.events.note(
            now_us, f"candidate.{what}", agent=spec.agent, artifact_ids=ids[:MAX_NAMED], detail=detail
        )


def waiting_of(slot: Slot, artifact_id: bytes) -> list[tuple[str, int]]:
    """Return the subscriptions that an artifact is offered to again, and when next."""
    found: list[tuple[str, int]] = []
    for name, waiting in slot.candidates.items():
        entry = waiting.entries.get(artifact_id)
        if entry is not None:
            found.append((name, entry.due_us))
    return found
