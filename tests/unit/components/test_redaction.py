from __future__ import annotations

import json
import random
import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.components import RedactionComponent
from flock_ray.components.patterns import BUILT_IN, custom, is_card_number, spans
from flock_ray.engines.component import EvalInputs, EvalResult
from flock_ray.errors import ConfigurationError
from tests.unit.components.board import AGENT, Answer, Ask, Replies, artifact, context, detail, kinds, run_one

redacted = RedactionComponent().redacted
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128\nMIIEpAIB\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ada.lovelace+x@mail.example.co.uk!", "write to [email]!"),
        ("J\u00fcrgen: j\u00fcrgen@b\u00fccher.example", "J\u00fcrgen: [email]"),
        ("card 4111 1111 1111 1111 ok", "card [credit_card] ok"),
        ("card 4111-1111-1111-1111", "card [credit_card]"),
        ("amex 3782 822463 10005", "amex [credit_card]"),
        ("5500005555555559", "[credit_card]"),
        ("call +49 (30) 1234-5678 now", "call [phone] now"),
        ("call (212) 555-0123", "call [phone]"),
        ("call 030 1234567", "call [phone]"),
        ("0049 30 1234567", "[phone]"),
        ("key sk-proj_abcdefghijklmnop1234", "key [api_key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[api_key]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[api_key]"),
        ("Authorization: Bearer abc.def-ghi_123", "Authorization: [bearer]"),
        (f"token {JWT}.", "token [jwt]."),
        (f"a {PEM} b", "a [private_key] b"),
        ("password = hunter2hunter2", "[assigned_secret]"),
        ('"api_key": "zzzzzzzzzz"', '"[assigned_secret]"'),
    ],
)
def test_what_is_found(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The meeting is on 2026-11-23 at 05:20:22.",
        "Due 05/20/2026, order 12345678, page 4111.",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "version 1.2.3.4, 10.0.0.1, pi 3.14159265358979",
        "user@localhost is no address, a @ b neither",
        "the secret of success is a token of trust",
        "sk-short",
        "sk-learn-is-a-library-and-no-key",
        "uuid 123e4567-e89b-42d3-a456-426614174000",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_a_card_number_behind_another_group_of_digits_is_found() -> None:
    assert redacted("1234 4111 1111 1111 1111") == "1234 [credit_card]"


def test_a_key_without_an_end_takes_the_rest() -> None:
    assert redacted("-----BEGIN PRIVATE KEY-----\nMIIE\nmore") == "[private_key]"


def luhn(digits: str) -> str:
    return next(digits + check for check in string.digits if is_card_number(digits + check))


@given(st.text(alphabet=string.digits, min_size=14, max_size=14))
def test_every_number_with_a_check_digit_is_found_and_no_neighbour_of_it(middle: str) -> None:
    number = luhn("4" + middle)
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)

    assert is_card_number(number) and not is_card_number(wrong)
    assert redacted(f"n {number}.") == "n [credit_card]."


@given(st.text(alphabet="aB1@.-_+ ()/:=\n\u00e9", max_size=60))
def test_redacting_again_changes_nothing(text: str) -> None:
    once = redacted(text)

    assert redacted(once) == once


HOSTILE = {
    "letters": "a",
    "an address that never ends": "a.",
    "addresses without a host": "a@",
    "hosts without a top level": "a@b",
    "hosts": "@a.",
    "digits": "1",
    "groups of digits": "1111 ",
    "dashes between digits": "1-",
    "phone numbers": "+1 ",
    "plus signs": "+",
    "long phone numbers": "+11111111111111111111 ",
    "tokens": "eyJaaaaaaaa-",
    "tokens with dots": "eyJaaaaaaaa.",
    "token starts": "-eyJaaaaaaaa",
    "keys": "sk-",
    "key starts": "-----BEGIN ",
    "private keys": "-----BEGIN PRIVATE KEY-----",
    "bearers": "bearer ",
    "assignments": "token:",
    "spaces": "token= ",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_built_in_pattern_takes_time_in_proportion_to_the_text(kind: str, name: str) -> None:
    """CPU time of 16 times the text: a quadratic pattern needs 256 times as much."""
    pattern = BUILT_IN[kind]

    def cpu_s(size: int) -> float:
        text = (HOSTILE[name] * size)[:size] + "! @"
        started = time.process_time()
        for _ in spans(pattern, text):
            pass
        return time.process_time() - started

    short, long = max(cpu_s(4_000) for _ in range(2)), min(cpu_s(64_000) for _ in range(2))
    assert long < max(64 * short, 0.25)


def test_inputs_are_redacted_for_the_engine_and_kept_on_the_board() -> None:
    engine = Replies()
    ask = Ask(text="mail ada@example.com", notes={"k": "+49 30 1234567", "bob@example.com": "v"})
    texts, log = run_one(RedactionComponent(inputs=True, outputs=False), ask=ask, engine=engine)

    assert engine.seen[0].artifacts[0].payload == {
        "text": "mail [email]", "notes": {"k": "[phone]", "[email]": "v"}
    }  # fmt: skip
    assert texts == ["re: mail [email]"]
    assert json.loads(detail(log, "redaction.applied")) == {
        "stage": "input",
        "found": {"email": 2, "phone": 1},
    }


def test_the_context_is_redacted_too() -> None:
    import asyncio

    ctx = context(artifacts=[artifact(Ask(text="ada@example.com"))])
    component = RedactionComponent(inputs=True)
    asyncio.run(component.on_pre_evaluate(AGENT, ctx, EvalInputs()))

    assert ctx.artifacts[0].payload["text"] == "[email]"


def test_the_board_never_gets_an_output_that_is_redacted() -> None:
    answer = Answer(text="4111111111111111", extra=["x", "ada@example.com"])
    engine = Replies(reply=lambda _: EvalResult.from_object(answer, errors=["ada@example.com is gone"]))
    texts, log = run_one(RedactionComponent(), engine=engine)

    assert texts == ["[credit_card]"]
    assert detail(log, "engine.error") == "[email] is gone"
    assert not [event for event in log if "ada@" in event.detail]


def test_nothing_found_leaves_no_event_and_the_same_artifact() -> None:
    import asyncio

    item = artifact(Ask(text="fine"))
    result = asyncio.run(
        RedactionComponent(inputs=True).on_pre_evaluate(AGENT, context(), EvalInputs(artifacts=[item]))
    )
    _, log = run_one(RedactionComponent())

    assert result.artifacts[0] is item
    assert "redaction.applied" not in kinds(log)


def test_patterns_of_ones_own_come_first() -> None:
    component = RedactionComponent(custom={"ticket": r"TICKET-\d+"}, kinds=("email",), replacement="<{kind}>")

    text = component.redacted("TICKET-12 of ada@example.com, 4111111111111111")
    assert text == "<ticket> of <email>, 4111111111111111"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        (r"(a+)+", "repeats something"),
        (r"(?:x|(\d*a)*)b", "repeats something"),
        (r"(a?){50}b", "repeats something"),
        (r"(a{1,20}){20}", "repeats something"),
        (r"(", "no regular expression"),
        (r"a*", "fits the empty text"),
        ("", "needs 1 to"),
        ("a" * 2000, "needs 1 to"),
    ],
)
def test_a_pattern_that_could_take_for_ever_is_refused(expression: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        RedactionComponent(custom={"mine": expression})


@pytest.mark.parametrize("expression", [r"(?:\d{4}[ -]?){3}\d{4}", r"\b[A-Z]{2}\d{6,9}\b", r"(?i)abc|de+f"])
def test_usual_patterns_are_taken(expression: str) -> None:
    assert custom("mine", expression).regex.pattern == expression


@pytest.mark.parametrize("bad", [{"kinds": ("e-mail",)}, {"outputs": False}, {"custom": {"email": "x"}}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RedactionComponent(**bad)


def test_letters_alone_are_never_taken_for_anything() -> None:
    chance = random.Random(7)
    for _ in range(200):
        text = "".join(chance.choices(string.ascii_letters + " \n", k=80))
        assert redacted(text) == text
