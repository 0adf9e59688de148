"""Declaring approvals: `.publishes(T, approval=ApprovalSpec(...))`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from flock_ray.core.approval_terms import ApprovalTerms
from flock_ray.core.definition import OutputSpec
from flock_ray.errors import ConfigurationError

__all__ = ["ApprovalSpec", "ApprovalTimeout", "with_approval"]

MAX_APPROVERS = 100
MAX_NAME = 200
DEFAULT_TIMEOUT = timedelta(days=7)
LONGEST = timedelta(days=3650)

_MICROSECOND = timedelta(microseconds=1)


class ApprovalTimeout(StrEnum):
    """What becomes of an artifact about which nobody has decided in time."""

    REJECT = "reject"
    APPROVE = "approve"
    ESCALATE = "escalate"
    """Others decide, with as much time again; after that it is rejected."""


@dataclass(frozen=True, slots=True)
class ApprovalSpec:
    """Who decides whether an output is published. Until then nobody sees it but the approvers."""

    timeout: timedelta = DEFAULT_TIMEOUT
    """How long there is to decide, from the commit of the run that made it; up to ten years."""
    approvers: Sequence[str] = ()
    """People and roles (`Flock(principals=)`), at most 100. One rejection of any of them rejects."""
    quorum: int = 1
    """How many people must approve, from 1; up to as many as there are approvers, each for another of these."""
    on_timeout: ApprovalTimeout = ApprovalTimeout.REJECT
    escalate_to: Sequence[str] = ()
    """Who decides after the timeout, for ESCALATE: anew, with the same quorum or one of all of them."""
    allow_edit: bool = False
    """Whether approvers may change what would be published: checked against its type, and approvals begin anew."""
    require_comment: bool = False
    """Whether approvals, rejections and edits have to say why."""
    separation_of_duties: bool = True
    """Who made it, asked for it (tag `principal:<name>`) or edited it may not approve it."""
    when: Callable[[Any], bool] | None = None
    """Only outputs for which it is true have to be approved; None: all. It runs on the worker; if it raises, so did
    the run."""
    remind_every: timedelta | None = None
    """Remind approvers so often until the timeout, at most 100 times; None: never."""
    summary: Callable[[Any], str] | None = None
    """Says of an output in one line what it is, for lists and messages: these may be seen by more than approvers.
    None: nothing."""
    shadow: bool = False
    """Publish at once, and only record what approvers would have said: training mode."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One makes no sense.
        """
        at = "ApprovalSpec:"
        for name in ("approvers", "escalate_to"):
            object.__setattr__(self, name, _names(getattr(self, name), name, at))
        if not self.approvers and not self.shadow:
            raise ConfigurationError(f'{at} who decides? Give approvers=["risk_manager"].')
        quorum: object = self.quorum
        if type(quorum) is not int or quorum < 1:
            raise ConfigurationError(f"{at} quorum={quorum!r}: give a whole number from 1.")
        _check_time(self.timeout, "timeout", at)
        if self.remind_every is not None:
            _check_time(self.remind_every, "remind_every", at)
        try:
            object.__setattr__(self, "on_timeout", ApprovalTimeout(self.on_timeout))
        except ValueError:
            raise ConfigurationError(
                f"{at} on_timeout={self.on_timeout!r}: give ApprovalTimeout.REJECT, APPROVE or ESCALATE."
            ) from None
        if (self.on_timeout is ApprovalTimeout.ESCALATE) != bool(self.escalate_to):
            raise ConfigurationError(
                f'{at} ApprovalTimeout.ESCALATE and escalate_to=["..."] go together: give both, or none.'
            )
        for name in ("when", "summary"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise ConfigurationError(f"{at} {name}={given!r}: give a function of the output, or None.")
        for name in ("allow_edit", "require_comment", "separation_of_duties", "shadow"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{at} {name}={getattr(self, name)!r}: give True or False.")
        if self.shadow and (self.allow_edit or self.on_timeout is not ApprovalTimeout.REJECT):
            raise ConfigurationError(
                f"{at} with shadow=True nothing waits: leave allow_edit and on_timeout out."
            )

    def is_needed(self, model: Any) -> bool:
        """Say whether an output has to be approved."""
        return self.when is None or bool(self.when(model))

    def terms(self) -> ApprovalTerms:
        """Return what shards must know of it."""
        remind_us = 0 if self.remind_every is None else self.remind_every // _MICROSECOND
        return ApprovalTerms(
            tuple(self.approvers), self.quorum, self.timeout // _MICROSECOND, str(self.on_timeout),
            tuple(self.escalate_to), remind_us, self.allow_edit, self.require_comment, self.separation_of_duties,
            self.shadow,
        )  # fmt: skip


def with_approval(
    outputs: tuple[OutputSpec, ...], approval: ApprovalSpec | Literal["shadow"] | None, at: str
) -> tuple[OutputSpec, ...]:
    """Return declared outputs with who approves them.

    Raises:
        ConfigurationError: It is neither a spec nor "shadow".
    """
    given: object = approval
    if given is None:
        return outputs
    if given == "shadow":
        given = ApprovalSpec(shadow=True)
    if not isinstance(given, ApprovalSpec):
        raise ConfigurationError(
            f'{at} approval={given!r}: give ApprovalSpec(approvers=["..."]), or "shadow" for training mode.'
        )
    return tuple(dataclasses.replace(output, approval=given) for output in outputs)


def _names(given: object, parameter: str, at: str) -> tuple[str, ...]:
    names = () if isinstance(given, str) or not isinstance(given, Sequence) else tuple(given)
    fits = all(
        isinstance(n, str) and n.strip() == n != "" and n.isprintable() and len(n) <= MAX_NAME for n in names
    )
    if not fits or len(names) > MAX_APPROVERS or (given and not names) or len(set(names)) != len(names):
        raise ConfigurationError(
            f'{at} {parameter}={given!r}: give a list of up to {MAX_APPROVERS} different names, as in ["risk_manager"].'
        )
    return names


def _check_time(value: object, parameter: str, at: str) -> None:
    if not isinstance(value, timedelta) or not timedelta(0) < value <= LONGEST:
        raise ConfigurationError(
            f"{at} {parameter}={value!r}: give a timedelta above zero and up to ten years, as in timedelta(hours=4)."
        )
