"""What a runner asks of its shard when an attempt fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from flock_ray.core.definition import AgentDefinition
from flock_ray.core.retries import FixedDelay, RetryBudget, RetryPolicy
from flock_ray.core.wire import Completion, ErrorInfo, RetryAsk, Task
from flock_ray.engines.context import Context, RunHooks
from flock_ray.engines.failures import MAX_ASKED_S, asked_s, describe, error_of
from flock_ray.engines.services import Services
from flock_ray.engines.wiring import hooks_of, services_for
from flock_ray.errors import (
    AgentTimeoutError,
    BackpressureError,
    ModelAnswerError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.retrying import retry_policy
from tests.unit.engines.runner_models import Order, Receipt

if TYPE_CHECKING:
    from tests.unit.engines.conftest import Host

SECOND = timedelta(seconds=1)


def policy(**options: Any) -> RetryPolicy:
    options.setdefault("strategy", FixedDelay(SECOND))
    return retry_policy(options.pop("strategy"), at="agent 'a': retry()", **options)


def failed(host: Host, error: BaseException, *, failures: int = 0, **fields: Any) -> Completion:
    def fail(order: Order) -> NoReturn:
        raise error

    runner = host.runner(Receipt, consumes=[Order], function=fail, **fields)
    return runner.run_sync(host.task(Order(), failures=failures))


@pytest.mark.parametrize(
    "error", [RateLimitError(retry_after_s=0.5), ModelTimeoutError(), TimeoutError(), ConnectionResetError()]
)
def test_errors_that_may_pass_are_tried_again(host: Host, error: Exception) -> None:
    assert failed(host, error, retry=policy()).retry == RetryAsk(1_000_000)


@pytest.mark.parametrize("error", [ValueError(), ModelAnswerError(), KeyError("x"), SystemExit(1)])
def test_other_errors_are_not(host: Host, error: BaseException) -> None:
    assert failed(host, error, retry=policy()).retry is None


def test_an_agent_without_retries_never_asks(host: Host) -> None:
    assert failed(host, RateLimitError()).retry is None


def test_on_says_which_errors_are_meant(host: Host) -> None:
    mine = policy(on=[ValueError])

    assert failed(host, ValueError(), retry=mine).retry is not None
    assert failed(host, TimeoutError(), retry=mine).retry is None


async def test_async_functions_are_tried_again_too(host: Host) -> None:
    async def fail(order: Order) -> NoReturn:
        raise TimeoutError

    runner = host.runner(Receipt, consumes=[Order], function=fail, retry=policy())

    completion = await runner.run_async(host.task(Order()))

    assert (completion.retry, completion.outputs) == (RetryAsk(1_000_000), ())


def test_a_timeout_from_outside_is_an_error_like_others(host: Host) -> None:
    def runner(**options: Any) -> Any:
        return host.runner(Receipt, consumes=[Order], function=lambda o: o, retry=policy(**options))

    task = host.task(Order())
    by_class = runner(on=[TimeoutError]).failure(task, "AgentTimeoutError", "too long")
    by_itself = runner().failure(task, "AgentTimeoutError", "too long")
    not_meant = runner(on=[RateLimitError]).failure(task, "AgentTimeoutError", "too long")

    assert by_class.retry == by_itself.retry == RetryAsk(1_000_000)
    assert not_meant.retry is None


def test_a_predicate_that_raises_says_no_and_is_noted(host: Host) -> None:
    completion = failed(host, TimeoutError(), retry=policy(on=lambda error: error.status == 429))

    assert completion.retry is None
    (kind, detail), *_ = completion.notes
    assert kind == "retry.undecided"
    assert "retry(on=...) raised AttributeError" in detail


def test_a_strategy_that_raises_or_returns_nonsense_says_no_and_is_noted(host: Host) -> None:
    strategy = SimpleNamespace(delay=lambda attempt, error: 5, max_attempts=3)

    completion = failed(host, TimeoutError(), retry=policy(strategy=strategy))

    assert completion.retry is None
    assert completion.notes[0][0] == "retry.undecided"
    assert "is no timedelta" in completion.notes[0][1]


def test_a_strategy_hears_the_number_of_the_attempt_and_the_error(host: Host) -> None:
    heard: list[Any] = []
    strategy = SimpleNamespace(delay=lambda *args: heard.append(args), max_attempts=9)
    error = TimeoutError("x")

    assert failed(host, error, failures=4, retry=policy(strategy=strategy)).retry is None

    assert [(5, error)] == heard


def test_no_workflow_error_is_made_for_an_attempt_that_is_certainly_followed_by_another(host: Host) -> None:
    certain = failed(host, TimeoutError(), failures=1, retry=policy(max_attempts=3))
    last = failed(host, TimeoutError(), failures=2, retry=policy(max_attempts=3))
    budgeted = failed(host, TimeoutError(), retry=policy(max_attempts=3, budget=RetryBudget()))
    final = failed(host, ValueError(), retry=policy(max_attempts=3))

    assert [0, 1, 1, 1] == [len(completion.outputs) for completion in (certain, last, budgeted, final)]


def test_no_workflow_error_is_made_where_failures_become_dead_letters(host: Host) -> None:
    completion = failed(host, ValueError("bad"), dead_letter=object())

    assert completion.outputs == ()
    assert completion.error is not None


def test_the_context_counts_attempts_also_those_before_a_recovery(host: Host) -> None:
    seen: list[int] = []

    def look(ctx: Context, order: Order) -> Receipt:
        seen.append(ctx.attempt)
        return Receipt()

    runner = host.runner(Receipt, consumes=[Order], function=look)
    for attempt, failures in ((1, 0), (3, 0), (1, 4), (5, 4)):
        task = host.task(Order(), failures=failures)
        runner.run_sync(Task(task.id, attempt, *list(task_fields(task))))

    assert [1, 3, 5, 5] == seen


def task_fields(task: Task) -> list[Any]:
    names = task.__struct_fields__
    return [getattr(task, name) for name in names[2:]]


# --- how long a server asks to wait ---------------------------------------------------------------


class Cursed(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError

    response = SimpleNamespace(headers={"retry-after": "7"})


def odd(**attributes: Any) -> Exception:
    error = Exception("odd")
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimitError(retry_after_s=12), 12),
        (BackpressureError(retry_after_s=0.25), 0.25),
        (odd(retry_after=3), 3),
        (odd(retry_after=timedelta(minutes=1)), 60),
        (odd(retry_after_s=1e9), MAX_ASKED_S),
        (odd(retry_after_s=10**400), MAX_ASKED_S),
        (odd(retry_after=-5), None),
        (odd(retry_after=float("nan")), None),
        (odd(retry_after=True), None),
        (odd(retry_after="soon"), None),
        (odd(response=SimpleNamespace(headers={"Retry-After": "9"})), 9),
        (odd(response=SimpleNamespace(headers={"retry-after": "9" * 5000})), MAX_ASKED_S),
        (odd(response=SimpleNamespace(headers={"retry-after": "tomorrow"})), None),
        (odd(response=SimpleNamespace(headers=5)), None),
        (Cursed(), 7),
        (ExceptionGroup("g", [RateLimitError(retry_after_s=2), RateLimitError(retry_after_s=4)]), 4),
        (ValueError(), None),
    ],
)
def test_how_long_an_error_asks_to_wait(error: Exception, seconds: float | None) -> None:
    assert asked_s(error) == seconds


def test_the_longer_wait_wins(host: Host) -> None:
    long = failed(host, RateLimitError(retry_after_s=30), retry=policy())
    short = failed(host, RateLimitError(retry_after_s=0.1), retry=policy())

    assert (long.retry, short.retry) == (RetryAsk(30_000_000), RetryAsk(1_000_000))


def test_groups_may_pass_when_all_their_errors_may() -> None:
    assert describe(ExceptionGroup("g", [TimeoutError(), RateLimitError()])).retryable
    assert not describe(ExceptionGroup("g", [TimeoutError(), ValueError()])).retryable


@pytest.mark.parametrize("name", ["UnicodeDecodeError", "Unheard", "print", "FlockRayThing"])
def test_an_error_that_is_known_by_name_only_is_still_an_error(name: str) -> None:
    error = error_of(ErrorInfo(name, "what happened"))

    assert str(error) == "what happened"
    assert type(error).__name__ == name


def test_a_timeout_by_name_is_one_of_ours() -> None:
    assert isinstance(error_of(ErrorInfo("AgentTimeoutError", "x")), AgentTimeoutError)


# --- signs of life --------------------------------------------------------------------------------


def context(**hooks: Any) -> Context:
    from uuid import UUID

    from flock_ray.core.visibility import AgentIdentity

    return Context(AgentIdentity(name="a"), "wf", "0" * 32, UUID(int=0), 1, hooks=RunHooks(**hooks))


async def test_a_heartbeat_is_told_at_once_awaited_or_not() -> None:
    told: list[int] = []
    ctx = context(heartbeat=lambda: told.append(1))

    ctx.heartbeat()
    await ctx.heartbeat()
    await context().heartbeat()

    assert [1, 1] == told


def test_a_heartbeat_of_a_run_that_was_given_up_ends_it() -> None:
    with pytest.raises(asyncio.CancelledError, match="nobody waits"):
        context(heartbeat=lambda: False).heartbeat()


def test_a_stream_is_a_sign_of_life_for_agents_with_an_idle_limit() -> None:
    beats: list[Task] = []
    said: list[str] = []
    task = Task(b"t" * 16, 1, "a", "s", 0, "wf", ())

    def wired(**fields: Any) -> RunHooks:
        services = Services(stream=lambda task, kind, text: said.append(text), heartbeat=beats.append)
        return hooks_of(services_for(AgentDefinition("a", **fields), services), task)

    for fields in ({}, {"idle_timeout_s": 1.0}, {"idle_timeout_s": 1.0, "best_of": (2, len)}):
        hooks = wired(**fields)
        assert hooks.stream is not None
        hooks.stream("token", "x")

    assert (len(beats), said) == (2, ["x", "x"])
