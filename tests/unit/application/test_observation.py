"""What a workflow is found to be depends on its artifacts and their order, and on nothing else."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flock_ray import Until, WorkflowError
from flock_ray.application import CompletionPolicy, FailureCode, WorkflowContext, WorkflowStatus
from flock_ray.application.contract import ANY_WORKFLOW
from flock_ray.application.observation import Observation, Terms, default_access_policy
from flock_ray.core.conditions import bind_correlation
from flock_ray.core.ids import slot_of
from flock_ray.core.registry import to_json, type_registry
from flock_ray.core.wire import Envelope
from tests.unit.application.declared import Answer, Part

MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)


def envelope(model: BaseModel, by: str = "agent") -> Envelope:
    name = type_registry.ensure(type(model)).name
    return Envelope(uuid.uuid4().bytes, name, 1, to_json(model), "w", slot_of("w"), by, 1)


def error(kind: str) -> WorkflowError:
    return WorkflowError(
        failed_agent="agent", error_type=kind, error_message="", timestamp=MADE_AT, task_id="0"
    )


def terms(policy: CompletionPolicy, max_outputs: int = 4) -> Terms:
    until = None if policy.until is None else bind_correlation(policy.until, ANY_WORKFLOW, strict=True)
    for model in (Answer, Part, WorkflowError):
        type_registry.ensure(model)
    return Terms(
        type_registry, {"app.Answer": Answer}, ("app.Answer",), default_access_policy, policy, until,
        max_outputs, lambda: {"agent"},
    )  # fmt: skip


artifacts = st.lists(
    st.sampled_from(["answer", "part", "outside", "error", "loop", "erased"]), max_size=12
).map(tuple)
policies = st.builds(
    CompletionPolicy,
    until=st.sampled_from([None, Until.artifact_count(Answer).at_least(2), Until.exists(Part)]),
    on_condition=st.sampled_from(["stop", "drain"]),
    on_error=st.sampled_from(["stop", "continue"]),
)


def made(kind: str) -> Envelope:
    if kind == "erased":
        return msgspec.structs.replace(envelope(Answer(text="x")), payload=b"null")
    model: Any = {
        "part": Part(text="x", number=1),
        "error": error("ValueError"),
        "loop": error("LoopGuardError"),
    }
    return envelope(model.get(kind, Answer(text="x")), "external" if kind == "outside" else "agent")


def observed(policy: CompletionPolicy, envelopes: list[Envelope]) -> Observation:
    observation = Observation(terms(policy), WorkflowContext("w"))
    for item in envelopes:
        observation.see(item)
    return observation


@given(policies, artifacts)
def test_a_second_reader_of_the_same_artifacts_comes_to_the_same_result(
    policy: CompletionPolicy, kinds: tuple[str, ...]
) -> None:
    envelopes = [made(kind) for kind in kinds]
    one, two = observed(policy, envelopes), observed(policy, envelopes)
    assert [(e.sequence, e.artifact.id) for e in one.outputs] == [
        (e.sequence, e.artifact.id) for e in two.outputs
    ]
    assert one.verdict(cancelled=False, due=False, settled=True) == two.verdict(
        cancelled=False, due=False, settled=True
    )


@given(policies, artifacts, st.integers(0, 12))
def test_what_comes_behind_the_end_changes_nothing(
    policy: CompletionPolicy, kinds: tuple[str, ...], extra: int
) -> None:
    envelopes = [made(kind) for kind in kinds]
    before = observed(policy, envelopes)
    after = observed(policy, envelopes + [made("answer") for _ in range(extra)] + [made("error")])
    if before.closed:
        first = before.verdict(cancelled=False, due=False, settled=False)
        second = after.verdict(cancelled=False, due=False, settled=False)
        assert first is not None and second is not None
        assert (first.status, first.failure, first.condition_met) == (
            second.status, second.failure, second.condition_met
        )  # fmt: skip
        assert [e.artifact.id for e in before.outputs] == [e.artifact.id for e in after.outputs]


@given(policies, artifacts)
def test_outputs_are_what_agents_made_without_gaps_and_within_the_limit(
    policy: CompletionPolicy, kinds: tuple[str, ...]
) -> None:
    observation = observed(policy, [made(kind) for kind in kinds])
    assert [event.sequence for event in observation.outputs] == list(range(len(observation.outputs)))
    assert len(observation.outputs) <= min(4, kinds.count("answer"))
    verdict = observation.verdict(cancelled=False, due=False, settled=True)
    assert verdict is not None
    if verdict.status is WorkflowStatus.SUCCEEDED:
        assert observation.outputs and "error" not in kinds[: len(kinds) if not observation.closed else 0]
    else:
        assert verdict.failure is not None and verdict.failure.message


def test_the_first_reason_counts() -> None:
    def status(kinds: str, **ends: bool) -> Any:
        given_ = {"cancelled": False, "due": False, "settled": False, **ends}
        policy = CompletionPolicy(on_error="continue")
        verdict = observed(policy, [made(kind) for kind in kinds.split()]).verdict(**given_)
        return verdict and (verdict.status.value, verdict.failure and verdict.failure.code)

    assert status("answer") is None
    assert status("answer", settled=True) == ("succeeded", None)
    assert status("answer", due=True) == ("timed_out", None)
    assert status("answer", cancelled=True, due=True) == ("cancelled", None)
    assert status("error", due=True) == ("failed", FailureCode.AGENT_FAILED)
    assert status("answer loop", settled=True) == ("failed", FailureCode.ITERATION_LIMIT_EXCEEDED)
    assert status("loop error", settled=True) == ("failed", FailureCode.AGENT_FAILED)
    assert status("part", settled=True) == ("failed", FailureCode.REQUIRED_OUTPUT_MISSING)
    assert status("answer " * 5) == ("failed", FailureCode.OUTPUT_LIMIT_EXCEEDED)
