"""What is asked of a shard about approvals: decisions, and pages of what waits."""

from __future__ import annotations

import msgspec

from flock_ray.core.approvals import Case, DecisionKind, ShadowCount
from flock_ray.core.wire import Posting

__all__ = [
    "ApprovalAnswer",
    "ApprovalOrder",
    "ApprovalQuery",
    "ApprovalRow",
    "ShadowRow",
    "decode_answer",
    "decode_order",
    "decode_query",
    "decode_rows",
    "decode_shadows",
    "encode",
]

MAX_PAGE = 1_000

Place = tuple[int, bytes]
"""(when it was opened, id): the order of cases on the whole board."""


class ApprovalOrder(msgspec.Struct, array_like=True, frozen=True):
    """A decision of one person about one case."""

    slot: int
    case: bytes
    kind: DecisionKind
    by: str
    roles: tuple[str, ...]
    """Those of the person, as the directory of principals says; the journal keeps them."""
    shown: bytes
    """Hash of what they saw."""
    key: bytes
    """Identity of the decision."""
    comment: str = ""
    to: str = ""
    """Of a delegation: the person who decides now."""
    edited: Posting | None = None
    """Of an edit: the new request, with what is shown from now on in `Posting.approval`."""
    amount: int = 0
    """Of an approval of more budget: how much, in nano-dollars, tokens or calls; 0: what was asked for."""
    one_time: bool = False
    """It comes from a link, which works once: the same decision again is refused."""


class ApprovalAnswer(msgspec.Struct, array_like=True, frozen=True):
    """What became of an order: `ok`, or why it was refused (`core.approvals.refusal`); `gone`: no such case is open."""

    status: str
    outcome: str = ""
    """How the case has ended by it; empty when it goes on."""


class ApprovalQuery(msgspec.Struct, array_like=True, frozen=True):
    """Which open cases, oldest first."""

    approvers: tuple[str, ...] = ()
    """Only those for one of them; empty: all."""
    agent: str | None = None
    workflow: str | None = None
    type: str | None = None
    shadow: bool = False
    """Those for which nothing waits, or the others."""
    after: Place = (0, b"")
    limit: int = 100

    def selects(self, case: Case) -> bool:
        """Say whether a case is meant, its place aside."""
        ask = case.ask
        return (
            ask.terms.shadow == self.shadow
            and (self.agent is None or ask.agent == self.agent)
            and (self.workflow is None or case.correlation_id == self.workflow)
            and (self.type is None or ask.type == self.type)
            and (not self.approvers or self._is_for(case))
        )

    def _is_for(self, case: Case) -> bool:
        wanted = set(self.approvers)
        if any(source in wanted for source, _, _ in case.delegations):
            return False
        return (
            not case.approvers
            or not wanted.isdisjoint(case.approvers)
            or any(target in wanted for _, target, _ in case.delegations)
        )


class ApprovalRow(msgspec.Struct, array_like=True, frozen=True):
    """An open case and where it is kept."""

    slot: int
    case: Case

    @property
    def place(self) -> Place:
        """Its place in the order of cases."""
        return self.case.opened_us, self.case.id


class ShadowRow(msgspec.Struct, array_like=True, frozen=True):
    """What people would have said, in one slot."""

    agent: str
    type: str
    count: ShadowCount


encode = msgspec.msgpack.Encoder().encode
decode_query = msgspec.msgpack.Decoder(ApprovalQuery).decode
decode_rows = msgspec.msgpack.Decoder(list[ApprovalRow]).decode
decode_order = msgspec.msgpack.Decoder(ApprovalOrder).decode
decode_answer = msgspec.msgpack.Decoder(ApprovalAnswer).decode
decode_shadows = msgspec.msgpack.Decoder(list[ShadowRow]).decode
