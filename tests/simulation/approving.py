"""What waits for people on a cluster under faults: who decides, and what must have become of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flock_ray import (
    ApprovalRejected,
    ApprovalRequest,
    ApprovalSpec,
    ApprovalTimeout,
    StaticPrincipals,
    flock_type,
)
from flock_ray.core.approvals import Vote
from flock_ray.core.records import ApprovalDecided, Completed, ForwardedIn, Published, Record
from flock_ray.core.wire import Envelope, Posting
from flock_ray.errors import ApprovalError, ArtifactNotFoundError, ConfigurationError, ForbiddenError
from tests.simulation.audit import Audit, check_quiet
from tests.simulation.checks import may_see
from tests.simulation.scenario import check_shard, restart_and_repeat, run, settle, unless_broken
from tests.simulation.simulator import SimFlock, persist
from tests.simulation.workload import Done, Keyed, Story, make_trouble
from tests.simulation.world import World

PEOPLE = {"ann": ["risk"], "bob": ["risk"], "cid": ["legal"], "dan": ["legal", "risk"], "cfo": [], "eve": []}


@flock_type(name="SimPlan")
class Plan(Keyed):
    pass


@flock_type(name="SimDeed")
class Deed(Keyed):
    pass


@flock_type(name="SimSketch")
class Sketch(Keyed):
    """What is made of a plan and published without waiting."""


def declare_approving(flock: SimFlock, world: World) -> None:
    """Put agents on the board whose outputs wait for people, and those who get what comes of it."""
    rng = world.rng
    seconds = rng.choice((1.0, 8.0, 40.0))
    ending = rng.choice(list(ApprovalTimeout))
    spec = ApprovalSpec(
        timeout=timedelta(seconds=seconds),
        approvers=rng.choice((["ann", "cid"], ["risk", "legal"], ["risk"])),
        quorum=rng.choice((1, 2, 2)),
        on_timeout=ending,
        escalate_to=["cfo"] if ending is ApprovalTimeout.ESCALATE else (),
        allow_edit=rng.random() < 0.5,
        remind_every=rng.choice((None, timedelta(seconds=seconds / 3))),
        when=lambda deed: deed.key != 2,
    )  # fmt: skip
    shadow = ApprovalSpec(timeout=timedelta(seconds=seconds), shadow=True)
    flock.agent("planner").consumes(Plan).publishes(Deed, approval=spec).runs(
        lambda plan: Deed(uid=rng.getrandbits(30), key=plan.key)
    )
    flock.agent("sketcher").consumes(Plan).publishes(Sketch, approval=shadow).runs(
        lambda plan: Sketch(uid=rng.getrandbits(30), key=plan.key)
    )
    flock.agent("doer").consumes(Deed).publishes(Done).runs(lambda deed: Done(uid=deed.uid, key=0))
    flock.agent("hearer").consumes(ApprovalRejected).publishes(Done).runs(lambda told: Done(uid=0, key=0))
    flock.agent("ann").consumes(ApprovalRequest).runs(lambda request: None)
    flock.principals = StaticPrincipals(PEOPLE)


async def publish_plans(world: World, story: Story, publisher: int, count: int) -> None:
    rng = world.rng
    for number in range(count):
        await asyncio.sleep(rng.random() * 0.4)
        plan = Plan(uid=rng.getrandbits(30), key=rng.randrange(3))
        options: dict[str, Any] = {"correlation_id": f"workflow-{rng.randrange(8)}"}
        if rng.random() < 0.3:
            options["partition_key"] = f"partition-{rng.randrange(2)}"
        options["idempotency_key"] = f"plan-{publisher}-{number}"
        artifact = await persist(lambda p=plan, o=options: story.flock.publish(p, **o))  # type: ignore[misc]  # bound now
        story.accepted.append(artifact.id.bytes)


async def decide_some(world: World, story: Story, count: int) -> None:
    """Decide like people whose calls fail: again and again with the same decision until they are answered."""
    rng = world.rng
    for number in range(count):
        await asyncio.sleep(rng.random() * 0.6)
        waiting = await persist(lambda: story.flock.approvals.pending(shadow=rng.random() < 0.2, limit=50))
        if waiting:
            one = rng.choice(waiting)
            people = [rng.choice(list(PEOPLE)) for _ in range(rng.choice((1, 1, 2, 3)))]
            await asyncio.gather(
                *(decide(world, story, one, by, f"{number}-{i}") for i, by in enumerate(people))
            )


async def decide(world: World, story: Story, one: Any, by: str, key: str) -> None:
    rng = world.rng
    what = rng.choices(("approve", "reject", "abstain", "delegate", "edit"), (12, 1, 1, 1, 2))[0]
    said: dict[str, Any] = {"by": by, "decision_id": key}
    if what == "delegate":
        said["to"] = rng.choice(list(PEOPLE))
    elif what == "edit":
        said["model"] = {"uid": rng.getrandbits(30), "key": 7}
    # Who may not, comes late or has decided is told so.
    with contextlib.suppress(ApprovalError, ForbiddenError, ArtifactNotFoundError, ConfigurationError):
        await persist(lambda: getattr(story.flock.approvals, what)(one, **said))


@dataclass
class Seen:
    """What the journals say of one approval."""

    posting: Posting
    votes: list[Vote] = field(default_factory=list)
    decided: Counter[bytes] = field(default_factory=Counter)
    """By decision: how often it was taken."""
    edits: int = 0


def asked(records: list[Record]) -> Iterator[Posting]:
    """Iterate over the requests that records have accepted."""
    for record in records:
        postings: tuple[Posting | None, ...] = ()
        if isinstance(record, Published):
            postings = (record.posting,)
        elif isinstance(record, Completed):
            postings = record.completion.outputs
        elif isinstance(record, ForwardedIn) and record.forward.kind == "publish":
            postings = (record.forward.posting,)
        yield from (posting for posting in postings if posting is not None and posting.approval is not None)


def check_approvals(world: World, audit: Audit) -> None:
    """Every approval ended once, as people and time have it, and nobody else has seen what it was about."""
    cases: dict[bytes, Seen] = {}
    records = [record for disk in world.disks.values() for record in disk.records()]
    for posting in asked(records):
        assert posting.approval is not None
        cases.setdefault(posting.approval.artifact, Seen(posting))
    decided: dict[bytes, list[ApprovalDecided]] = defaultdict(list)
    for record in records:
        if isinstance(record, ApprovalDecided):
            decided[record.order.case].append(record)
    told = {(e.type, _case_of(e)): e for e in audit.board.values() if e.type.startswith("Approval")}
    for key, seen in cases.items():
        check_case(key, seen, decided.get(key, []), audit, told)


def check_case(
    key: bytes,
    seen: Seen,
    decided: list[ApprovalDecided],
    audit: Audit,
    told: dict[tuple[str, bytes], Envelope],
) -> None:
    ask = seen.posting.approval
    assert ask is not None
    keys = Counter(record.order.key for record in decided)
    assert set(keys.values()) <= {1}, "a decision was taken twice"
    for envelope in audit.board.values():
        if envelope.type == "ApprovalRequest" and _case_of(envelope) == key:
            names = set(ask.terms.approvers)
            seers = {name for name in (*PEOPLE, "planner", "sketcher", "doer") if may_see(envelope, name)}
            assert seers <= names, f"{seers} see what only {names} may"
    released, rejected = key in audit.board, ("ApprovalRejected", key) in told
    cancelled = seen.posting.envelope.correlation_id in audit.cancelled
    if ask.terms.shadow:
        assert released or cancelled
        assert not rejected, "a shadow was rejected"
        return
    assert not (released and rejected), "it was released and rejected"
    assert released or rejected or cancelled, "an approval came to no end"
    # What people said since the last edit or escalation, by whom
    last_edit = max((i for i, r in enumerate(decided) if r.order.kind == "edit"), default=-1)
    current = decided[last_edit + 1 :]
    yes = Counter(r.order.by for r in current if r.order.kind == "approve")
    assert set(yes.values()) <= {1} or ask.terms.on_timeout == "escalate", "an approval was counted twice"
    if released:
        quorum = min(ask.terms.quorum, 1) if ask.terms.on_timeout == "escalate" else ask.terms.quorum
        assert len(yes) >= quorum or ask.terms.on_timeout == "approve", (
            f"{dict(yes)} are no quorum of {quorum}"
        )
        assert not any(r.order.kind == "reject" for r in current), "it was released against a rejection"


def _case_of(envelope: Envelope) -> bytes:
    import json
    from uuid import UUID

    return UUID(json.loads(envelope.payload)["artifact_id"]).bytes


async def scenario(world: World) -> None:
    """Let people decide while everything dies."""
    flock = SimFlock(world, shards=world.rng.choice((1, 2, 3)))
    declare_approving(flock, world)
    story = Story(flock)
    await unless_broken(world, story, live(world, story))
    shards = story.flock.sim.alive()
    check_quiet([shard.core for shard in shards])
    cores = [await check_shard(world, shard) for shard in shards]
    audit = Audit(cores, story.cancelled)
    audit.check_artifacts(story.accepted)
    audit.check_effects()
    audit.check_singles()
    check_approvals(world, audit)
    await story.flock.shutdown(flush_batches=False)


async def live(world: World, story: Story) -> None:
    rng = world.rng
    await persist(story.flock.start)
    count = rng.choice((4, 10))
    jobs = [publish_plans(world, story, i, count) for i in range(rng.choice((1, 2)))]
    people = [decide_some(world, story, rng.choice((4, 12, 24))) for _ in range(rng.choice((1, 2)))]
    trouble = make_trouble(world, story, rng.choice((0, 3, 8)))
    await asyncio.gather(*jobs, *people, trouble)
    if rng.random() < 0.5:
        await restart_and_repeat(world, story)
        await decide_some(world, story, 6)
    await settle(world, story)
    await asyncio.sleep(120)  # until the last shadow has expired, for which nothing waits
    await settle(world, story)


def run_approvals(seed: int) -> World:
    """Run a seed of it."""
    return run(seed, scenario)
