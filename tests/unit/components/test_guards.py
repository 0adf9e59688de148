from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from flock_ray.components import GuardComponent, GuardComponentConfig, GuardVerdict, RedactionComponent
from flock_ray.engines.component import AgentComponentConfig, EvalInputs
from flock_ray.engines.outputs import MAX_NOTES, bounded_notes
from flock_ray.errors import GuardBlockedError, GuardUnavailableError, RateLimitError
from tests.unit.components.board import AGENT, Answer, Ask, Replies, artifact, context, detail, kinds, run_one


class Watches(GuardComponent):
    """Flags texts with the word "evil"; keeps what it saw."""

    saw: Any = None
    fails: Any = None

    async def scan_input(self, text: str, documents: list[str]) -> GuardVerdict:
        self.saw.append((text, documents))
        return self._verdict(text + "".join(documents))

    def scan_output(self, text: str) -> GuardVerdict:  # type: ignore[override]  # a guard need not be async
        self.saw.append(text)
        return self._verdict(text)

    def _verdict(self, text: str) -> GuardVerdict:
        if self.fails is not None:
            raise self.fails
        if "evil" not in text:
            return GuardVerdict(safe=True)
        return GuardVerdict(safe=False, reason="a bad word", details={"text": text}, provider="words")


def guard(**config: Any) -> Watches:
    return Watches(config=GuardComponentConfig(**config), saw=[])


EVIL = Ask(text="do evil things")


def test_a_flagged_input_blocks_the_run_before_the_engine_sees_it() -> None:
    engine = Replies()
    texts, log = run_one(guard(), ask=EVIL, engine=engine)

    assert (texts, engine.seen) == ([], [])
    assert json.loads(detail(log, "guard.flagged")) == {
        "guard": "Watches", "stage": "input", "action": "block", "reason": "a bad word", "provider": "words"
    }  # fmt: skip
    assert detail(log, "activation.failed").startswith("GuardBlockedError: Guard 'Watches' blocked the input")


def test_no_event_and_no_error_quotes_the_text() -> None:
    _, log = run_one(guard(), ask=EVIL)

    assert not [event for event in log if "things" in event.detail or "things" in event.traceback]


def test_warn_leaves_an_event_and_lets_the_run_go_on() -> None:
    engine = Replies()
    texts, log = run_one(guard(on_input_flagged="warn"), ask=EVIL, engine=engine)

    assert texts == ["re: do evil things"]
    assert json.loads(detail(log, "guard.flagged"))["action"] == "warn"
    assert engine.seen[0].state == {}


def test_annotate_tells_the_engine_by_the_state() -> None:
    engine = Replies()
    _, log = run_one(guard(on_input_flagged="annotate"), ask=EVIL, engine=engine)

    [verdict] = engine.seen[0].state["guard"]
    assert (verdict["stage"], verdict["safe"], verdict["provider"]) == ("input", False, "words")
    assert kinds(log).count("guard.flagged") == 1


def test_outputs_are_scanned_when_asked_and_by_default_only_warned_about() -> None:
    answer = Replies(reply=lambda inputs: Answer(text="evil"))
    silent, _ = run_one(guard(), engine=answer)
    warned, log = run_one(guard(scan_output=True), engine=answer)
    blocked, blocked_log = run_one(guard(scan_output=True, on_output_flagged="block"), engine=answer)

    assert (silent, warned, blocked) == (["evil"], ["evil"], [])
    assert json.loads(detail(log, "guard.flagged"))["stage"] == "output"
    assert "GuardBlockedError" in detail(blocked_log, "activation.failed")


def test_what_is_in_the_context_is_scanned_as_documents_unless_switched_off() -> None:
    async def scan(watches: Watches) -> None:
        ctx = context(artifacts=[artifact(Ask(text="evil"))])
        await watches.on_pre_evaluate(AGENT, ctx, EvalInputs(artifacts=[artifact(Ask(text="fine"))]))

    with pytest.raises(GuardBlockedError):
        asyncio.run(scan(guard()))
    off = guard(scan_context_artifacts=False)
    asyncio.run(scan(off))

    assert off.saw == [("text: fine", [])]


def test_text_is_not_escaped_and_keys_of_dicts_are_shown() -> None:
    watches = guard()
    run_one(watches, ask=Ask(text='one\ntwo "three" \u00e9', notes={"key": "value"}))

    [(text, _)] = watches.saw
    assert text == 'text: one\ntwo "three" \u00e9\nkey: value'


def test_a_guard_sees_what_earlier_components_made_of_the_input() -> None:
    watches = guard()
    run_one(watches, RedactionComponent(inputs=True, outputs=False), ask=Ask(text="mail me@example.com"))

    assert watches.saw[0][0] == "text: mail [email]"


def test_a_guard_that_fails_blocks_the_run_and_leaves_an_event() -> None:
    watches = guard()
    watches.fails = ValueError("broken")
    texts, log = run_one(watches)

    assert texts == []
    assert json.loads(detail(log, "guard.failed")) == {
        "guard": "Watches", "stage": "input", "action": "block", "error": "ValueError"
    }  # fmt: skip
    assert detail(log, "activation.failed").startswith("GuardBlockedError")


def test_a_guard_that_fails_may_be_passed_over_when_its_config_says_so() -> None:
    watches = guard(on_error="allow")
    watches.fails = ValueError("broken")
    texts, log = run_one(watches)

    assert texts == ["re: hello"]
    assert json.loads(detail(log, "guard.failed"))["action"] == "allow"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionError("gone"), GuardUnavailableError),
        (RateLimitError(), GuardUnavailableError),
        (KeyError("x"), GuardBlockedError),
    ],
)
async def test_an_error_that_may_pass_is_retryable(error: Exception, raised: type[Exception]) -> None:
    watches = guard()
    watches.fails = error

    with pytest.raises(raised) as caught:
        await watches.on_pre_evaluate(AGENT, context(), EvalInputs(artifacts=[artifact(Ask())]))

    assert type(caught.value) is raised
    assert caught.value.retryable is (raised is GuardUnavailableError)  # type: ignore[attr-defined]


async def test_a_scan_that_answers_nothing_is_no_verdict() -> None:
    class Silent(GuardComponent):
        async def scan_input(self, text: str, documents: list[str]) -> Any:
            return None

    with pytest.raises(GuardBlockedError, match="has to return a GuardVerdict"):
        await Silent().on_pre_evaluate(AGENT, context(), EvalInputs(artifacts=[artifact(Ask())]))


async def test_a_cancelled_scan_is_cancelled_and_not_an_answer() -> None:
    watches = guard(on_error="allow")
    watches.fails = asyncio.CancelledError()

    with pytest.raises(asyncio.CancelledError):
        await watches.on_pre_evaluate(AGENT, context(), EvalInputs(artifacts=[artifact(Ask())]))


def test_a_payload_too_deep_to_look_at_is_blocked() -> None:
    deep: Any = "evil"
    for _ in range(300):
        deep = [deep]
    item = artifact(Ask())
    item.payload["text"] = deep

    with pytest.raises(GuardBlockedError, match="nested deeper"):
        asyncio.run(guard().on_pre_evaluate(AGENT, context(), EvalInputs(artifacts=[item])))


def test_a_plain_config_keeps_the_defaults_of_guards() -> None:
    made = Watches(config=AgentComponentConfig(enabled=False))

    assert (made.settings.enabled, made.settings.on_input_flagged) == (False, "block")


def test_a_disabled_guard_is_not_asked() -> None:
    watches = guard(enabled=False)
    assert run_one(watches, ask=EVIL)[0] == ["re: do evil things"]
    assert watches.saw == []


def test_what_a_guard_found_is_kept_when_an_engine_fills_the_log() -> None:
    notes = [("engine.log", "line")] * (MAX_NOTES + 50) + [("guard.flagged", "{}")]

    kept = bounded_notes(notes)

    assert ("guard.flagged", "{}") in kept
    assert kept[-1] == ("notes.cut", "51 more notes")
