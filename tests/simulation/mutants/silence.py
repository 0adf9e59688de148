"""Things that happen without a word, and things that are seen by more than they should be."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from flock_ray.core.delivery import DeliveryDesk
from flock_ray.core.events import EventLog
from flock_ray.core.visibility import PublicVisibility
from flock_ray.core.wire import Posting
from flock_ray.engines import posting


def _without(kind: str) -> AbstractContextManager[object]:
    note = EventLog.note

    def silent(self: EventLog, at_us: int, noted: str, **about: Any) -> None:
        if noted != kind:
            note(self, at_us, noted, **about)

    return mock.patch.object(EventLog, "note", silent)


def expire_in_silence() -> AbstractContextManager[object]:
    """A window ends, and nobody hears of it."""
    return _without("gate.expired")


def lose_workers_in_silence() -> AbstractContextManager[object]:
    """A worker dies, and its activations do not say so."""
    return _without("activation.worker_lost")


def refuse_in_silence() -> AbstractContextManager[object]:
    """A predicate raises, and nobody hears of it."""

    def quiet(self: DeliveryDesk, refused: Posting, now_us: int) -> None:
        pass

    return mock.patch.object(DeliveryDesk, "_note_refusals", quiet)


def widen_outputs() -> AbstractContextManager[object]:
    """What is made of restricted inputs is for everybody."""
    return mock.patch.object(posting, "_narrowest", return_value=PublicVisibility())


ALL = (expire_in_silence, lose_workers_in_silence, refuse_in_silence, widen_outputs)
