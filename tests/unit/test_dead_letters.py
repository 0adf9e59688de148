"""Dead letters on a virtual board: what gets there, and what operators do with it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Flock, PrivateVisibility, flock_type
from flock_ray.core.system_types import DeadLetter, WorkflowError
from flock_ray.dead_letters import DeadLetterQueue, DeadLetters
from flock_ray.errors import ArtifactNotFoundError, ArtifactSchemaError, ConfigurationError
from flock_ray.letters.alerts import LetterAlert
from flock_ray.testing import VirtualFlock, run_virtual
from flock_ray.webhooks import Webhook

QUEUE = DeadLetterQueue("failed_orders")


def declare(flock: Flock, queue: Any = QUEUE, *, max_attempts: int = 1) -> tuple[type[BaseModel], list[int]]:
    """An agent that fails for negative amounts; returns its input's type and the amounts that it has seen."""

    @flock_type(name="Order")
    class Order(BaseModel):
        amount: int

    @flock_type(name="Receipt")
    class Receipt(BaseModel):
        amount: int

    seen: list[int] = []

    def process(order: Order) -> Receipt:
        seen.append(order.amount)
        if order.amount < 0:
            raise ConnectionError(f"{order.amount} is not to be had")
        return Receipt(amount=order.amount)

    builder = flock.agent("processor").consumes(Order).publishes(Receipt).runs(process)
    builder.retry(max_attempts=max_attempts, dead_letter=queue)
    return Order, seen


def on_board(test: Callable[[VirtualFlock], Any], **options: Any) -> None:
    async def main() -> None:
        async with VirtualFlock(**options) as flock:
            await test(flock)

    run_virtual(main())


async def idle(flock: Flock) -> None:
    await flock.run_until_idle(include_timers=True)


async def only(letters: DeadLetters) -> Any:
    [letter] = await letters.list()
    return letter


def test_a_run_that_failed_for_good_becomes_a_dead_letter_in_place_of_an_error() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock, max_attempts=3)

        sent = await flock.publish(order(amount=-1), correlation_id="w1", tags={"tenant:a"})
        await idle(flock)

        letter = await only(flock.dead_letters)
        assert (letter.queue, letter.agent, letter.error_type, letter.workflow, letter.redrives) == (
            "failed_orders", "processor", "ConnectionError", "w1", 0
        )  # fmt: skip
        assert letter.inputs == (sent.id,)
        details = await flock.dead_letters.get(letter.id)
        assert details.open
        assert details.models() == [order(amount=-1)]
        assert [a.number for a in details.letter.attempts] == [1, 2, 3]
        assert {a.error_message for a in details.letter.attempts} == {"-1 is not to be had"}
        assert [a.traceback for a in details.letter.attempts] == [""] * 3
        assert details.artifact.tags == {"failed_orders", "tenant:a"}
        assert details.artifact.parents == (sent.id,)
        assert [check.condition for check in details.conditions[sent.id]] == ["not own output"]
        assert details.history == ()
        assert seen == [-1, -1, -1]
        assert await flock.store.count(WorkflowError) == 0

    on_board(test)


def test_tracebacks_are_kept_only_when_asked_for() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock, DeadLetterQueue("q", include_trace=True))
        await flock.publish(order(amount=-1))
        await idle(flock)

        details = await flock.dead_letters.get((await only(flock.dead_letters)).id)
        assert "in process" in details.letter.attempts[0].traceback

    on_board(test)


def test_a_letter_is_redriven_once_and_a_new_failure_is_a_new_letter() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await flock.publish(order(amount=-1))
        await idle(flock)
        first = await only(flock.dead_letters)

        answers = await asyncio.gather(*(flock.dead_letters.redrive(first.id, by=f"op{n}") for n in range(5)))
        await idle(flock)

        assert sorted(answers) == [False] * 4 + [True]
        assert seen == [-1, -1]
        second = await only(flock.dead_letters)
        assert (second.redrives, second.inputs) == (1, first.inputs)
        assert second.id != first.id
        details = await flock.dead_letters.get(first.id)
        assert not details.open
        assert [(a.action, a.letter) for a in details.history] == [("redriven", str(first.id))]
        assert details.history[0].by.startswith("op")

    on_board(test, shards=2)


def test_an_edited_letter_runs_on_the_new_payload_and_the_input_stays_as_it_was() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        only_auditor = PrivateVisibility(agents=frozenset({"processor"}))
        sent = await flock.publish(order(amount=-1), correlation_id="w1", visibility=only_auditor)
        await idle(flock)
        letter = await only(flock.dead_letters)

        edited = await flock.dead_letters.edit(letter.id, order(amount=1), by="ann")
        again = await flock.dead_letters.edit(letter.id, {"amount": 1}, by="ann")
        await idle(flock)

        assert edited.id == again.id != sent.id
        assert (edited.correlation_id, edited.parents, edited.visibility) == ("w1", (sent.id,), only_auditor)
        assert seen == [-1]  # nobody was matched with it
        assert (await only(flock.dead_letters)).edits == 1
        details = await flock.dead_letters.get(letter.id)
        assert list(details.edited.values()) == [edited]

        await flock.dead_letters.edit(letter.id, order(amount=2))
        assert await flock.dead_letters.redrive(letter.id)
        await idle(flock)

        assert seen == [-1, 2]
        assert (await flock.dead_letters.list()).letters == ()
        history = (await flock.dead_letters.get(letter.id)).history
        assert [a.action for a in history] == ["edited", "edited", "redriven"]
        assert await flock.store.get_by_type(order) == [order(amount=-1), order(amount=1), order(amount=2)]

    on_board(test)


def test_an_edit_that_does_not_fit_is_refused() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock)

        @flock_type(name="Other")
        class Other(BaseModel):
            amount: int

        sent = await flock.publish(order(amount=-1))
        await idle(flock)
        letter = await only(flock.dead_letters)
        letters = flock.dead_letters

        for wrong in ({"amount": "many"}, {}, order.model_construct(amount="many"), Other(amount=1)):
            with pytest.raises(ArtifactSchemaError):
                await letters.edit(letter.id, wrong)
        with pytest.raises(ArtifactSchemaError, match="give a model of type 'Order'"):
            await letters.edit(letter.id, 7)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="which input"):
            await letters.edit(letter.id, {"amount": 1}, input=uuid.uuid4())
        assert (await only(letters)).edits == 0
        assert (await letters.edit(letter.id, {"amount": 1}, input=sent)).parents == (sent.id,)

    on_board(test)


def test_a_discarded_letter_is_gone_and_says_who_and_why() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await flock.publish(order(amount=-1))
        await idle(flock)
        letter = await only(flock.dead_letters)

        assert await flock.dead_letters.discard(letter.id, by="ann", reason="a test order")
        assert not await flock.dead_letters.discard(letter.id)
        assert not await flock.dead_letters.redrive(letter.id)
        with pytest.raises(ArtifactNotFoundError, match="not open any more"):
            await flock.dead_letters.edit(letter.id, {"amount": 1})

        [action] = (await flock.dead_letters.get(letter.id)).history
        assert (action.action, action.by, action.detail) == ("discarded", "ann", "a test order")
        assert seen == [-1]

    on_board(test)


def test_what_is_no_letter_is_not_found() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock)
        sent = await flock.publish(order(amount=1))
        await idle(flock)

        for key in (sent.id, uuid.uuid4()):
            with pytest.raises(ArtifactNotFoundError, match="no dead letter"):
                await flock.dead_letters.get(key)
            with pytest.raises(ArtifactNotFoundError, match="no dead letter"):
                await flock.dead_letters.redrive(key)
            with pytest.raises(ArtifactNotFoundError, match="no dead letter"):
                await flock.dead_letters.discard(key)
        for wrong in ("x", "", "../../etc/passwd"):
            with pytest.raises(ConfigurationError, match="no id"):
                await flock.dead_letters.get(wrong)
        with pytest.raises(ConfigurationError):
            await flock.dead_letters.discard(uuid.uuid4(), reason="x" * 10_000)

    on_board(test)


def test_letters_of_cancelled_workflows_can_only_be_discarded() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await flock.publish(order(amount=-1), correlation_id="w1")
        await idle(flock)
        await flock.cancel("w1")
        letter = await only(flock.dead_letters)

        with pytest.raises(ConfigurationError, match="was cancelled"):
            await flock.dead_letters.redrive(letter.id)
        report = await flock.dead_letters.redrive_all()
        assert (report.matched, report.redriven, report.cancelled, report.unable) == (1, 0, 1, (letter.id,))
        assert await flock.dead_letters.discard(letter.id)
        assert seen == [-1]

    on_board(test)


async def fail_many(flock: VirtualFlock, order: Any, count: int) -> None:
    await asyncio.gather(*(flock.publish(order(amount=-1 - n), correlation_id=f"w{n}") for n in range(count)))
    await idle(flock)


@pytest.mark.parametrize("shards", [1, 3])
def test_pages_over_all_shards_hold_each_letter_once_in_order(shards: int) -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock)
        await fail_many(flock, order, 23)

        found: list[Any] = []
        cursor, pages = None, 0
        while True:
            page = await flock.dead_letters.list(limit=5, cursor=cursor)
            found += page.letters
            pages += 1
            cursor = page.cursor
            if cursor is None:
                break
        assert pages == 5
        assert {letter.workflow for letter in found} == {f"w{n}" for n in range(23)}
        assert len(found) == 23
        assert [(x.failed_at, x.id.bytes) for x in found] == sorted((x.failed_at, x.id.bytes) for x in found)
        assert await flock.dead_letters.count() == 23

    on_board(test, shards=shards)


def test_filters_select_by_everything_that_a_letter_says() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock)
        await flock.publish(order(amount=-1), correlation_id="old")
        await idle(flock)
        await asyncio.sleep(3600)
        await flock.publish(order(amount=-2), correlation_id="new")
        await idle(flock)
        letters = flock.dead_letters

        async def workflows(**selector: Any) -> list[str]:
            found = [letter.workflow for letter in await letters.list(**selector)]
            assert await letters.count(**selector) == len(found)
            return found

        assert await workflows(queue="failed_orders", agent="processor", error_type="ConnectionError") == [
            "old", "new"
        ]  # fmt: skip
        for name in ("queue", "agent", "error_type", "workflow"):
            assert await workflows(**{name: "x"}) == []
        assert await workflows(workflow="new") == ["new"]
        assert await workflows(since=timedelta(minutes=30)) == ["new"]
        assert await workflows(before=timedelta(minutes=30)) == ["old"]
        assert await workflows(since=datetime(2020, 1, 1, tzinfo=UTC), before=timedelta(0)) == ["old"]
        wrongs: list[dict[str, Any]] = [
            {"limit": 0}, {"limit": 10_000}, {"limit": True}, {"cursor": "x"}, {"since": datetime(2020, 1, 1)},
            {"before": 5}, {"queue": ""},
        ]  # fmt: skip
        for wrong in wrongs:
            with pytest.raises(ConfigurationError):
                await letters.list(**wrong)

    on_board(test)


def test_redriving_all_takes_each_letter_once_and_none_that_fails_again() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await fail_many(flock, order, 250)

        dry = await flock.dead_letters.redrive_all(dry_run=True)
        report = await flock.dead_letters.redrive_all(queue="failed_orders", by="ann")
        await idle(flock)

        assert (dry.matched, dry.redriven, dry.dry_run) == (250, 0, True)
        assert (report.matched, report.redriven, report.gone, report.unable) == (250, 250, 0, ())
        assert sorted(seen) == sorted(2 * [-1 - n for n in range(250)])
        assert {letter.redrives for letter in await flock.dead_letters.list(limit=1000)} == {1}

    on_board(test, shards=3)


def test_two_who_redrive_all_share_the_letters() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await fail_many(flock, order, 150)

        one, two = await asyncio.gather(flock.dead_letters.redrive_all(), flock.dead_letters.redrive_all())
        await idle(flock)

        assert one.redriven + two.redriven == 150
        assert len(seen) == 300

    on_board(test, shards=2)


def test_a_rate_is_kept() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, seen = declare(flock)
        await fail_many(flock, order, 40)
        loop = asyncio.get_running_loop()

        begun = loop.time()
        report = await flock.dead_letters.redrive_all(rate=10)
        assert report.redriven == 40
        assert 3.8 <= loop.time() - begun <= 4.1
        await idle(flock)
        assert len(seen) == 80
        for wrong in (0, -1, float("nan"), float("inf"), True, "fast"):
            with pytest.raises(ConfigurationError, match="rate"):
                await flock.dead_letters.redrive_all(rate=wrong)  # type: ignore[arg-type]

    on_board(test)


def test_without_a_queue_a_failure_is_an_error_as_before() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock, None)
        await flock.publish(order(amount=-1))
        await idle(flock)

        assert await flock.store.count(WorkflowError) == 1
        assert await flock.dead_letters.count() == 0

    on_board(test)


def test_letters_are_no_more_visible_than_their_inputs() -> None:
    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock)
        got: dict[str, list[str]] = {"processor": [], "curious": []}

        def reader(name: str) -> Callable[[DeadLetter], None]:
            def read(letter: DeadLetter) -> None:
                got[name].append(letter.correlation_id)

            return read

        flock.agent("curious").consumes(DeadLetter).runs(reader("curious"))
        private = PrivateVisibility(agents=frozenset({"processor"}))
        await flock.publish(order(amount=-1), correlation_id="private", visibility=private)
        await flock.publish(order(amount=-1), correlation_id="public")
        await idle(flock)

        assert got["curious"] == ["public"]
        assert await flock.dead_letters.count() == 2

    on_board(test)


# -- alerts ----------------------------------------------------------------------------------------


def test_alerts_come_in_batches_and_keep_private_what_is() -> None:
    told: list[LetterAlert] = []
    queue = DeadLetterQueue("q", alert_webhook=Webhook("https://alerts.example.com/x"), alert=told.append)

    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock, queue)
        await fail_many(flock, order, 120)
        private = PrivateVisibility(agents=frozenset({"processor"}))
        await flock.publish(order(amount=-7), correlation_id="private", visibility=private)
        await idle(flock)

        assert sorted(len(alert.letters) for alert in told) == [1, 20, 50, 50]
        assert len({alert.key for alert in told}) == 4
        lines = {letter.workflow: letter for alert in told for letter in alert.letters}
        assert len(lines) == 121
        assert lines["w0"].error_message == "-1 is not to be had"
        assert lines["private"].error_message == ""
        assert {letter.id for letter in lines.values()} == {
            letter.id for letter in await flock.dead_letters.list(limit=1000)
        }
        assert [webhook.label for webhook, _ in flock.alerts] == ["https://alerts.example.com"] * 4
        assert sum(message["count"] for _, message in flock.alerts) == 121
        assert "not to be had" not in str([m for _, m in flock.alerts if m["count"] == 1])

    on_board(test)


def test_an_alert_that_fails_is_given_again() -> None:
    told: list[str] = []

    async def tell(alert: LetterAlert) -> None:
        told.append(alert.key)
        if len(told) < 4:
            raise ConnectionError("the receiver is away")

    async def test(flock: VirtualFlock) -> None:
        order, _ = declare(flock, DeadLetterQueue("q", alert=tell))
        await flock.publish(order(amount=-1))
        await idle(flock)

        assert len(told) == 4
        assert len(set(told)) == 1
        assert await flock.dead_letters.count() == 1  # an alert makes no letters

    on_board(test)


def test_agents_that_share_a_queue_agree_on_its_alerts() -> None:
    async def test(flock: VirtualFlock) -> None:
        declare(flock, DeadLetterQueue("q", alert=print))
        flock.agent("other").consumes(WorkflowError).runs(lambda error: None).retry(
            dead_letter=DeadLetterQueue("q", alert=repr)
        )
        with pytest.raises(ConfigurationError, match="different alerts"):
            await flock.start()

    async def main() -> None:
        await test(VirtualFlock())

    run_virtual(main())


def test_agents_carry_neither_addresses_nor_secrets_of_alerts() -> None:
    flock = VirtualFlock()
    declare(flock, DeadLetterQueue("q", alert_webhook=Webhook("https://alerts.example.com", secret="s" * 32)))
    [agent, alerts] = flock._definitions()

    assert agent.dead_letter == DeadLetterQueue("q")
    assert alerts.name == "dead-letter-alerts-q"
    assert "s" * 32 not in repr(alerts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"destination": ""}, {"destination": "a b"}, {"destination": "x" * 101}, {"destination": 3},
        {"include_trace": 1}, {"alert": 5}, {"alert_webhook": 5}, {"alert_webhook": "https://10.0.0.1/x"},
        {"alert_webhook": "ftp://alerts.example.com"},
    ],
)  # fmt: skip
def test_a_queue_that_makes_no_sense_is_refused_at_its_declaration(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DeadLetterQueue(**wrong)
