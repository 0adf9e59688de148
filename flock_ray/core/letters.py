"""Failures of one shard's activations: what is tried again, and what becomes a dead letter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from flock_ray.core.activations import ERROR_POSITION, iso
from flock_ray.core.ids import activation_id, derive_id, output_id, shown_id
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.pausing import PauseDesk
from flock_ray.core.records import LetterDiscarded, LetterEdited, LetterRedriven, Retried
from flock_ray.core.state import Activation, Lane, Letter, Slot
from flock_ray.core.usage import HOUR_US, added, book, rows_of
from flock_ray.core.wire import Attempt, Completion, Envelope, ErrorInfo, InputCheck

MAX_HISTORY = 20
"""Failed attempts that an activation remembers: the first one and the newest."""


class LetterDesk(PauseDesk):
    """Retries and dead letters."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with no failures."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays |= {
            Retried: self._on_retried,
            LetterRedriven: self._on_letter_redriven,
            LetterEdited: self._on_letter_edited,
            LetterDiscarded: self._on_letter_discarded,
        }

    # -- retries --------------------------------------------------------------------------------

    def _retry(self, activation: Activation, completion: Completion, now_us: int) -> bool:
        """Journal a failure after which another attempt is made; False: the failure is final."""
        ask, info = completion.retry, self.agents.get(activation.agent)
        if ask is None or info is None:
            return False
        if ask.counts:
            spec = info.retry
            if spec is None or activation.failures + 1 >= spec.max_attempts:
                return False
            # One that ran before its agent had a budget is counted nowhere yet.
            lane = self.slots[activation.slot].lanes.get(activation.agent) or Lane()
            if not lane.retries.allows(spec, now_us, more=not activation.failures):
                self.events.note(
                    now_us, "retry.refused", agent=activation.agent, activation_id=activation.id,
                    correlation_id=activation.correlation_id,
                    detail=f"the agent has used up its budget of retries ({spec.budget_ratio:.0%} of its runs)",
                )  # fmt: skip
                return False
        worker = activation.worker or ""
        self.dispatch.release(activation, completion.run_us or 1, completion.calls)
        due_us = now_us + max(0, ask.after_us)
        record = Retried(now_us, msgspec.structs.replace(completion, outputs=()), due_us, worker)
        self._log(record)
        self._on_retried(record)
        return True

    def _count_first(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """Count the first attempt of an activation that ended, for its agent's budget of retries."""
        info, lane = self.agents.get(activation.agent), slot.lanes.get(activation.agent)
        if info is not None and info.retry is not None and lane is not None and not activation.failures:
            lane.retries.note_first(info.retry, now_us)

    def _count_retry(self, slot: Slot, activation: Activation, now_us: int) -> None:
        info, lane = self.agents.get(activation.agent), slot.lanes.get(activation.agent)
        if info is not None and info.retry is not None and lane is not None:
            lane.retries.note_retry(info.retry, now_us)

    def _on_retried(self, record: Retried) -> None:
        completion, now_us = record.completion, record.at_us
        slot = self.slots[record.slot]
        activation, ask, error = slot.open[completion.id], completion.retry, completion.error
        if ask is None or error is None:
            return  # no such record is written
        if ask.counts:
            self._count_first(slot, activation, now_us)
            self._count_retry(slot, activation, now_us)
            activation.failures += 1
            self._remember(activation, completion, error, now_us, record.worker, record.due_us - now_us)
        if completion.calls:
            self._count_calls(slot, activation, completion.calls, now_us)
        if activation.agent in slot.lanes:
            self._leave(slot, activation, now_us, failed=(completion.trips or None) if ask.counts else None)
        for kind, detail in completion.notes:
            self.events.note(now_us, kind, agent=activation.agent, correlation_id=activation.correlation_id,
                             activation_id=activation.id, detail=detail)  # fmt: skip
        seconds = (record.due_us - now_us) / 1e6
        what = f"attempt {activation.failures} failed" if ask.counts else "it has to wait"
        self.events.note(
            now_us, "activation.retried", agent=activation.agent, activation_id=activation.id,
            correlation_id=activation.correlation_id,
            detail=f"{what}: {error.type}: {error.message}; again in {seconds:.3g} s",
        )  # fmt: skip
        activation.begun = True
        self._wait_until(slot, activation, record.due_us)

    def _remember(
        self, activation: Activation, completion: Completion, error: ErrorInfo, now_us: int, worker: str,
        delay_us: int,
    ) -> None:  # fmt: skip
        info = self.agents.get(activation.agent)
        if info is None or info.dead_letter is None or not info.dead_letter.include_trace:
            error = msgspec.structs.replace(error, traceback="")
        models = tuple(sorted({call.model for call in completion.calls}))
        self._add_attempt(activation, error, now_us, worker, completion.run_us, delay_us, models)

    def _add_attempt(
        self, activation: Activation, error: ErrorInfo, now_us: int, worker: str, run_us: int = 0,
        delay_us: int = 0, models: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        history = activation.history
        number = history[-1].number + 1 if history else 1
        attempt = Attempt(number, now_us, run_us, worker, error, delay_us, models)
        kept = history if len(history) < MAX_HISTORY else (history[0], *history[2:])
        activation.history = (*kept, attempt)

    def _count_calls(
        self, slot: Slot, activation: Activation, calls: tuple[ModelCall, ...], now_us: int
    ) -> None:
        book(slot.usage, rows_of(activation.agent, calls, now_us - now_us % HOUR_US))
        workflow = self._counting_record(slot, activation.correlation_id, now_us)
        workflow.usage = added([*(workflow.usage or ()), *rows_of(activation.agent, calls, 0)])

    # -- dead letters ---------------------------------------------------------------------------

    def _bury(
        self, slot: Slot, activation: Activation, error: ErrorInfo, now_us: int, checks: tuple[InputCheck, ...] = ()
    ) -> bool:  # fmt: skip
        """Publish the dead letter of an activation that failed for good; False: its agent has none."""
        info = self.agents.get(activation.agent)
        spec = None if info is None else info.dead_letter
        if spec is None:
            return False
        artifact = output_id(activation.id, ERROR_POSITION)
        envelope = self._publish_own(
            slot, "DeadLetter", _letter_payload(slot, activation, error, spec.queue, now_us, checks), artifact,
            activation.agent, activation.correlation_id, activation.inputs, activation.id, now_us, (spec.queue,),
            activation.gather,
        )  # fmt: skip
        slot.letters[artifact] = Letter(
            msgspec.structs.replace(envelope, payload=b""), spec.queue, activation.agent, activation.subscription,
            now_us, tuple(e.id for e in activation.inputs), activation.groups, activation.priority, activation.lane,
            error.type, activation.redrives, gather=activation.gather,
        )  # fmt: skip
        self.events.note(
            now_us, "dead_letter.created", agent=activation.agent, activation_id=activation.id,
            correlation_id=activation.correlation_id, artifact_ids=(artifact,),
            detail=f"{spec.queue}: {error.type}: {error.message}",
        )  # fmt: skip
        return True

    def redrive(self, slot: int, letter: bytes, inputs: tuple[Envelope, ...], by: str, now_us: int) -> str:
        """Run a dead letter's activation again, once.

        Args:
            slot: Where the letter is.
            letter: Id of its artifact.
            inputs: The inputs, edited ones in place of those that they replace.
            by: Who wants it.
            now_us: Now.

        Returns:
            `ok`; `gone` when it is not open (any more); `mismatch` when these are not its inputs; `cancelled` when
            its workflow is.
        """
        known = self.slots[slot].letters.get(letter) if slot in self.slots else None
        if known is None:
            return "gone"
        if tuple(e.id for e in inputs) != tuple(known.replaced.get(i, i) for i in known.inputs):
            return "mismatch"
        workflow = self.slots[slot].workflows.get(known.envelope.correlation_id)
        if known.cancelled or (workflow is not None and workflow.cancelled):
            return "cancelled"
        record = LetterRedriven(now_us, slot, letter, inputs, by)
        self._log(record)
        self._on_letter_redriven(record)
        return "ok"

    def edit_letter(self, slot: int, letter: bytes, old: bytes, new: bytes, by: str, now_us: int) -> str:
        """Have a redrive use an artifact in place of an input; returns `ok`, `gone` or `mismatch`."""
        known = self.slots[slot].letters.get(letter) if slot in self.slots else None
        if known is None:
            return "gone"
        if old not in known.inputs:
            return "mismatch"
        if known.replaced.get(old) != new:
            record = LetterEdited(now_us, slot, letter, old, new, by)
            self._log(record)
            self._on_letter_edited(record)
        return "ok"

    def discard(self, slot: int, letter: bytes, by: str, reason: str, now_us: int) -> str:
        """Give up a dead letter; returns `ok` or `gone`."""
        if slot not in self.slots or letter not in self.slots[slot].letters:
            return "gone"
        record = LetterDiscarded(now_us, slot, letter, by, reason)
        self._log(record)
        self._on_letter_discarded(record)
        return "ok"

    def _on_letter_redriven(self, record: LetterRedriven) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        letter = slot.letters.pop(record.letter)
        key = activation_id(letter.agent, "redrive", (record.letter,), letter.redrives)
        correlation = letter.envelope.correlation_id
        self._counting_record(slot, correlation, now_us)
        # The workflow must not leave memory before the outputs are there.
        home = letter.envelope.slot
        activation = Activation(
            key, letter.agent, letter.subscription, slot.index, correlation, _placed(record.inputs, letter), now_us,
            letter.priority, letter.groups, ((home, correlation, 1),), lane=letter.lane, redrives=letter.redrives + 1,
            gather=letter.gather,
        )  # fmt: skip
        # If the run fails again, that is a new letter, and a new error.
        self._tell(slot, home, correlation, 1, 0, now_us, errors=-1)
        for part in self._tokens(activation):
            self._take_up(slot, part, now_us)
        self._tell_of(slot, letter, "dead_letter.redriven", record.by, "", now_us, activation=key)
        self._open_limited(slot, activation, now_us)

    def _on_letter_edited(self, record: LetterEdited) -> None:
        slot = self.slots[record.slot]
        letter = slot.letters[record.letter]
        letter.replaced[record.old] = record.new
        letter.edits += 1
        slot.letters[record.letter] = letter
        detail = f"{shown_id(record.new)} for {shown_id(record.old)}"
        self._tell_of(slot, letter, "dead_letter.edited", record.by, detail, record.at_us)

    def _on_letter_discarded(self, record: LetterDiscarded) -> None:
        slot = self.slots[record.slot]
        letter = slot.letters.pop(record.letter)
        self._tell_of(slot, letter, "dead_letter.discarded", record.by, record.reason, record.at_us)

    def _tell_of(
        self,
        slot: Slot,
        letter: Letter,
        kind: str,
        by: str,
        detail: str,
        now_us: int,
        *,
        activation: bytes = b"",
    ) -> None:
        """Publish what was done with a letter, and note it."""
        action = kind.removeprefix("dead_letter.")
        self._counting_record(slot, letter.envelope.correlation_id, now_us)
        artifact = derive_id(letter.envelope.id, action.encode(), b"%d" % letter.edits)
        payload = {
            "letter": shown_id(letter.envelope.id), "action": action, "by": by, "detail": detail,
            "at": iso(now_us), "activation_id": activation.hex() or None,
        }  # fmt: skip
        self._publish_own(
            slot, "DeadLetterAction", payload, artifact, letter.agent, letter.envelope.correlation_id,
            (letter.envelope,), None, now_us,
        )  # fmt: skip
        self.events.note(
            now_us, kind, agent=letter.agent, correlation_id=letter.envelope.correlation_id,
            artifact_ids=(letter.envelope.id,), detail=f"by {by or 'somebody'}{': ' if detail else ''}{detail}",
        )  # fmt: skip
        self._decide(now_us, kind, shown_id(letter.envelope.id), by, detail)


def _placed(inputs: tuple[Envelope, ...], letter: Letter) -> tuple[Envelope, ...]:
    """Give an edited input the places in fan-outs of the one that it replaces."""
    places = letter.envelope.scatter
    if not places or letter.gather is not None:
        return inputs
    return tuple(e if e.scatter else msgspec.structs.replace(e, scatter=places) for e in inputs)


def _letter_payload(
    slot: Slot, activation: Activation, error: ErrorInfo, queue: str, now_us: int, checks: tuple[InputCheck, ...]
) -> dict[str, Any]:  # fmt: skip
    inputs = [shown_id(e.id) for e in activation.inputs]
    return {
        "queue": queue, "agent": activation.agent, "subscription": activation.subscription,
        "activation_id": activation.id.hex(), "correlation_id": activation.correlation_id, "slot": slot.index,
        "error_type": error.type, "error_message": error.message, "failed_at": iso(now_us),
        "redrives": activation.redrives, "crashes": activation.crashes,
        "inputs": [{"id": shown_id(e.id), "type": e.type, "version": e.version} for e in activation.inputs],
        "conditions": [
            {"input": inputs[c.input], "condition": c.condition, "passed": c.passed, "value": c.value, "error": c.error}
            for c in checks if c.input < len(inputs)
        ],
        "attempts": [
            {
                "number": a.number, "ended_at": iso(a.ended_us), "run_s": a.run_us / 1e6, "worker": a.worker,
                "error_type": a.error.type, "error_message": a.error.message, "traceback": a.error.traceback,
                "delay_s": a.delay_us / 1e6, "models": list(a.models),
            }
            for a in activation.history
        ],
    }  # fmt: skip
