"""Deciding: `flock.approvals`. Whoever has it is an operator, and says for whom it decides."""

from __future__ import annotations

import builtins
import heapq
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel, SecretStr
from pydantic_core import from_json

from flock_ray.approvals.calls import (
    amount_of,
    ask,
    checked_name,
    fetch,
    find,
    hash_of,
    opened_us,
    refused,
    uuid_of,
)
from flock_ray.approvals.links import LinkDecision, make_token, read_token, with_token
from flock_ray.approvals.principals import roles_of
from flock_ray.approvals.views import (
    Agreement,
    Approval,
    approval_id,
    closed_view,
    open_view,
    unknown_approval,
)
from flock_ray.artifact import Artifact
from flock_ray.core.approval_desk import outcome_id, request_id
from flock_ray.core.approval_orders import (
    MAX_PAGE,
    ApprovalOrder,
    ApprovalQuery,
    ApprovalRow,
    decode_rows,
    decode_shadows,
    encode,
)
from flock_ray.core.approval_types import ApprovalOutcome
from flock_ray.core.approvals import DecisionKind, shown_hash
from flock_ray.core.ids import derive_id
from flock_ray.core.registry import TypeRegistry, to_json
from flock_ray.core.wire import Envelope, Posting
from flock_ray.editing import edited_payload
from flock_ray.engines.approving import request_model
from flock_ray.errors import (
    ApprovalExpiredError,
    ConfigurationError,
)
from flock_ray.letters.views import checked_text
from flock_ray.ports import PrincipalDirectory

if TYPE_CHECKING:
    from flock_ray.board import Board

__all__ = ["Approvals"]

MAX_COMMENT = 4_000


class Approvals:
    """What waits for people on a board, and what they say of it."""

    def __init__(
        self,
        ready: Callable[[], Awaitable[Board]],
        registry: TypeRegistry,
        principals: PrincipalDirectory | None = None,
        secret: SecretStr | None = None,
    ) -> None:
        """Use the board that `ready` opens; roles of people come from `principals`, and `secret` signs links."""
        self._ready = ready
        self._registry = registry
        self._principals = principals
        self._secret = secret

    # -- looking --------------------------------------------------------------------------------

    async def pending(
        self,
        *,
        by: str | None = None,
        agent: str | None = None,
        workflow: Artifact | str | None = None,
        artifact_type: type[BaseModel] | str | None = None,
        shadow: bool = False,
        limit: int = 100,
        after: Approval | None = None,
    ) -> builtins.list[Approval]:
        """Return what waits for people, oldest first.

        Args:
            by: Only what this person may decide about; None: everything.
            agent: Only what this agent made.
            workflow: Only of this workflow: a correlation id, or an artifact.
            artifact_type: Only of this type.
            shadow: What training mode asks about, in place of what really waits.
            limit: At most so many, from 1 to 1000.
            after: The last one of the page before; None: the first page.

        Raises:
            ForbiddenError: The directory of principals does not know the person.
            StoreUnavailableError: A shard does not answer; retryable.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise ConfigurationError(
                f"approvals.pending(limit={limit!r}): give a number from 1 to {MAX_PAGE}."
            )
        who = () if by is None else (by, *await roles_of(self._principals, by))
        name = (
            artifact_type
            if artifact_type is None or isinstance(artifact_type, str)
            else self._registry.ensure(artifact_type).name
        )
        place = (0, b"")
        if after is not None and after.opened_at is not None:
            place = (opened_us(after), after.id.bytes)
        only = workflow.correlation_id if isinstance(workflow, Artifact) else workflow
        query = ApprovalQuery(who, agent, only, name, shadow, place, limit)
        board = await self._ready()
        found = [decode_rows(blob) for blob in await board.each("approvals", encode(query))]
        rows = list(heapq.merge(*found, key=lambda row: row.place))[:limit]
        requests = await fetch(board, [row.case.request for row in rows])
        return [open_view(row, requests.get(row.case.request)) for row in rows]

    async def get(self, approval: Approval | Artifact | uuid.UUID | str) -> Approval:
        """Return one, also when it is decided.

        Raises:
            ArtifactNotFoundError: There is none.
        """
        key = approval_id(approval)
        board = await self._ready()
        row = await find(board, key)
        if row is not None:
            return open_view(row, (await fetch(board, [row.case.request])).get(row.case.request))
        found = await self._outcome(board, key)
        if found is None:
            raise unknown_approval(key)
        envelope, outcome = found
        [shown] = envelope.parents
        return closed_view(outcome, envelope.correlation_id, (await fetch(board, [shown])).get(shown))

    async def agreement(self, *, agent: str | None = None) -> builtins.list[Agreement]:
        """Return, by agent and type, what approvers said of outputs in training mode; it counts for ever."""
        board = await self._ready()
        counts: dict[tuple[str, str], builtins.list[int]] = {}
        for blob in await board.each("shadow_counts"):
            for row in decode_shadows(blob):
                total = counts.setdefault((row.agent, row.type), [0, 0, 0, 0])
                one = row.count
                for at, number in enumerate((one.asked, one.approved, one.rejected, one.expired)):
                    total[at] += number
        return [Agreement(*key, *total) for key, total in sorted(counts.items()) if agent in (None, key[0])]

    # -- deciding -------------------------------------------------------------------------------

    async def approve(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        comment: str = "",
        shown: str | None = None,
        decision_id: str | None = None,
        amount: float | Decimal | None = None,
    ) -> Approval:
        """Say yes. When the quorum is reached, the artifact is published.

        Args:
            approval: What about: an `Approval`, its request, or its id.
            by: Who decides.
            comment: Why, for the audit log; up to 4,000 characters.
            shown: `Approval.shown` of what was looked at: if something else is shown by now, nothing is decided.
                None: that of an `Approval` that is given, else what is shown now.
            decision_id: Identity of the decision: the same one again changes nothing. None: a new one.

            amount: Of more budget: how many dollars, tokens or calls; the least that approvers name is given. None:
                as much again as the limit.

        Returns:
            The approval as it is now.

        Raises:
            ForbiddenError: This person may not decide about it.
            ApprovalExpiredError: It was decided before, or the time is over.
            ApprovalError: This person has decided already, or something else is shown by now.
            ArtifactNotFoundError: There is no such approval.
            StoreUnavailableError: A shard or its store is away: ask again with the same `decision_id`; retryable.
        """
        return await self._say("approve", approval, by, comment, shown, decision_id, amount=amount)

    async def reject(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        comment: str = "",
        shown: str | None = None,
        decision_id: str | None = None,
    ) -> Approval:
        """Say no: it is not published, and an `ApprovalRejected` says so. Otherwise like `approve`."""
        return await self._say("reject", approval, by, comment, shown, decision_id)

    async def abstain(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        comment: str = "",
        shown: str | None = None,
        decision_id: str | None = None,
    ) -> Approval:
        """Say that others have to decide. When nobody is left who could, it is rejected. Otherwise like `approve`."""
        return await self._say("abstain", approval, by, comment, shown, decision_id)

    async def request_changes(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        comment: str,
        shown: str | None = None,
        decision_id: str | None = None,
    ) -> Approval:
        """Send it back: an `ApprovalRejected` with the comment is published, whose `outcome` says so.

        An agent that consumes it can do better. Otherwise like `approve`.
        """
        if not comment.strip():
            raise ConfigurationError("approvals.request_changes() needs a comment=: which changes?")
        return await self._say("changes", approval, by, comment, shown, decision_id)

    async def delegate(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        to: str,
        comment: str = "",
        decision_id: str | None = None,
    ) -> Approval:
        """Have another person decide in one's place, for this approval alone. Otherwise like `approve`.

        Raises:
            ForbiddenError: As for `approve`, or the directory of principals does not know the other person.
        """
        to = checked_name(to, "to")
        await roles_of(self._principals, to)
        return await self._say("delegate", approval, by, comment, None, decision_id, to=to)

    async def edit(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        model: BaseModel | Mapping[str, Any],
        *,
        by: str,
        comment: str = "",
        shown: str | None = None,
        decision_id: str | None = None,
    ) -> Approval:
        """Change what would be published. Approvals begin anew: nobody has approved the new content yet.

        Args:
            approval: As for `approve`, like the rest.
            model: The new content: an instance of the artifact's type, or a mapping that fits it.
            by: Who changes it; under separation of duties they may not approve it.
            comment: Why.
            shown: See `approve`.
            decision_id: See `approve`.

        Raises:
            ArtifactSchemaError: The content does not fit the type.
            ForbiddenError: As for `approve`, or the declaration does not allow edits.
        """
        return await self._say("edit", approval, by, comment, shown, decision_id, model=model)

    # -- links ----------------------------------------------------------------------------------

    async def link(
        self,
        approval: Approval | Artifact | uuid.UUID | str,
        *,
        by: str,
        decision: LinkDecision,
        base: str = "",
        expires: timedelta = timedelta(days=1),
    ) -> str:
        """Return a link, or its token, with which this person can take this decision, once.

        It is signed with `FLOCK_APPROVAL_SECRET` and bound to person, decision and exactly what is shown now. Whoever
        has it decides as that person, so send it to them alone. A page behind it should ask before it redeems:
        mail programs open links by themselves.

        Args:
            approval: What about.
            by: Who will decide; that they may is checked when it is redeemed.
            decision: approve, reject or abstain.
            base: Address to which `?token=` is added; empty: the token alone is returned.
            expires: How long it works, up to 30 days; never longer than the approval waits.

        Raises:
            ArtifactNotFoundError: There is no such approval.
            ApprovalExpiredError: It was decided before.
            ConfigurationError: There is no `FLOCK_APPROVAL_SECRET`, or an argument makes no sense.
        """
        by, board = checked_name(by, "by"), await self._ready()
        one = await self.get(approval)
        if one.state != "pending":
            raise ApprovalExpiredError(f"{one.id} was {one.state} already.", approval_id=str(one.id))
        token = make_token(
            self._secret, case=one.id.bytes, shown=hash_of(one.shown), by=by, decision=decision,
            now_s=board.clock.now_us() / 1e6, expires=expires,
        )  # fmt: skip
        return with_token(base, token) if base else token

    async def redeem(self, token: str, *, comment: str = "") -> Approval:
        """Take the decision that a token stands for, as the person it names; it works once.

        Args:
            token: What `link` returned: the token, not the whole address.
            comment: Why.

        Raises:
            ForbiddenError: It is none of ours, was changed, or the person may not decide (any more).
            ApprovalExpiredError: Its time is over, or the approval was decided.
            ApprovalError: It was used, the person has decided in another way, or something else is shown by now.
        """
        board = await self._ready()
        read = read_token(self._secret, token.strip(), now_s=board.clock.now_us() / 1e6)
        return await self._say(
            read.decision,
            uuid_of(read.case),
            read.by,
            comment,
            read.shown.hex(),
            read.nonce.hex(),
            one_time=True,
        )

    # -- inside ---------------------------------------------------------------------------------

    async def _say(
        self,
        kind: DecisionKind,
        approval: Approval | Artifact | uuid.UUID | str,
        by: str,
        comment: str,
        shown: str | None,
        decision_id: str | None,
        *,
        to: str = "",
        model: BaseModel | Mapping[str, Any] | None = None,
        one_time: bool = False,
        amount: float | Decimal | None = None,
    ) -> Approval:
        by, comment = checked_name(by, "by"), checked_text("comment", comment, MAX_COMMENT)
        seen = approval.shown if shown is None and isinstance(approval, Approval) else shown
        key = approval_id(approval)
        board = await self._ready()
        roles = await roles_of(self._principals, by)
        row = await find(board, key)
        decision = derive_id(b"decision", key, by.encode(), (decision_id or uuid.uuid4().hex).encode())
        if row is None:
            late = ApprovalOrder(0, key, kind, by, roles, b"", decision, comment, to)
            return await self._too_late(board, late, one_time=one_time)
        seen_hash = row.case.ask.shown if seen is None else hash_of(seen)
        edited = None if model is None else await self._edited(board, row, model, by)
        order = ApprovalOrder(
            row.slot,
            key,
            kind,
            by,
            roles,
            seen_hash,
            decision,
            comment,
            to,
            edited,
            amount_of(row, amount),
            one_time,
        )
        answer = await ask(board, order)
        if answer.status == "gone":
            return await self._too_late(board, order, one_time=one_time)
        if answer.status != "ok":
            raise refused(answer.status, kind, by, key)
        return await self.get(uuid_of(key))

    async def _too_late(self, board: Board, order: ApprovalOrder, *, one_time: bool) -> Approval:
        """Answer for a case that is not open: the very decision may have been the last one."""
        key = order.case
        found = await self._outcome(board, key)
        if found is None:
            raise unknown_approval(key)
        envelope, outcome = found
        if any(known.key == order.key.hex() for known in outcome.decisions):
            if one_time:
                raise refused("known", order.kind, order.by, key)
            return await self.get(uuid_of(key))
        await ask(board, msgspec.structs.replace(order, slot=envelope.slot, edited=None))  # an event says so
        raise ApprovalExpiredError(
            f"Approval {uuid_of(key)} ended at {outcome.decided_at:%Y-%m-%d %H:%M} UTC as "
            f"{outcome.outcome.replace('_', ' ')}: this decision came too late and was not taken.",
            approval_id=str(uuid_of(key)),
        )

    async def _outcome(self, board: Board, key: bytes) -> tuple[Envelope, ApprovalOutcome] | None:
        found = (await fetch(board, [outcome_id(key)])).get(outcome_id(key))
        if found is None or found.type != "ApprovalOutcome":
            return None
        return found, ApprovalOutcome.model_validate_json(found.payload)

    async def _edited(
        self, board: Board, row: ApprovalRow, model: BaseModel | Mapping[str, Any], by: str
    ) -> Posting:
        """Return the request that shows the new content."""
        case, ask = row.case, row.case.ask
        old = (await fetch(board, [case.request])).get(case.request)
        if old is None:
            raise unknown_approval(case.id)
        version, payload = edited_payload(self._registry, ask.type, model, board.edge.max_payload_bytes)
        content = from_json(payload)
        ask = msgspec.structs.replace(ask, version=version, shown=shown_hash(ask.type, version, content))
        envelope = msgspec.structs.replace(
            old, id=request_id(case.id, case.round + 1), payload=to_json(request_model(ask, content, edited_by=by)),
            created_us=board.clock.now_us(), parents=(old.id,),
        )  # fmt: skip
        return Posting(envelope, approval=ask)
