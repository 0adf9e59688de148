# ruff: noqa: RUF001  # sentences of many languages
from __future__ import annotations

from typing import Any

import pytest

from flock_ray.components import LanguageComponent
from flock_ray.components.languages import LANGUAGES, detect_language
from flock_ray.errors import ConfigurationError
from tests.unit.components.board import Answer, Ask, Replies, detail, kinds, run_one

# One sentence each, of the kind that agents write; none is from the word lists.
SENTENCES = {
    "en": "The customer wrote that the parcel was not delivered, and that he would like to have his money back.",
    "de": "Der Kunde hat geschrieben, dass das Paket nicht angekommen ist, und er möchte sein Geld zurück.",
    "fr": "Le client a écrit que le colis n'est pas arrivé et qu'il voudrait être remboursé par la boutique.",
    "es": "El cliente escribió que el paquete no ha llegado y que le gustaría recibir su dinero de vuelta.",
    "it": "Il cliente ha scritto che il pacco non è arrivato e che vorrebbe avere indietro i soldi della spesa.",
    "pt": "O cliente escreveu que a encomenda não chegou e que gostaria de ter o seu dinheiro de volta.",
    "nl": "De klant heeft geschreven dat het pakket niet is aangekomen en dat hij zijn geld terug wil.",
    "pl": "Klient napisał, że paczka nie dotarła, i że chciałby dostać z powrotem swoje pieniądze od sklepu.",
    "sv": "Kunden skrev att paketet inte har kommit fram och att han vill ha sina pengar tillbaka av butiken.",
    "ru": "Клиент написал, что посылка не была доставлена и что он хотел бы вернуть свои деньги.",
    "uk": "Клієнт написав, що посилку не доставили і що він хотів би повернути свої гроші.",
    "el": "Ο πελάτης έγραψε ότι το δέμα δεν παραδόθηκε και ότι θα ήθελε πίσω τα χρήματά του.",
    "he": "הלקוח כתב שהחבילה לא נמסרה ושהוא היה רוצה לקבל את כספו בחזרה.",
    "ar": "كتب العميل أن الطرد لم يتم تسليمه وأنه يود استعادة أمواله.",
    "hi": "ग्राहक ने लिखा कि पार्सल नहीं पहुँचा और वह अपना पैसा वापस चाहता है।",
    "th": "ลูกค้าเขียนว่ายังไม่ได้รับพัสดุและต้องการเงินคืน",
    "zh": "客户写道包裹没有送达，他希望拿回他的钱。",
    "ja": "お客様は荷物が届かなかったので返金してほしいと書きました。",
    "ko": "고객은 소포가 배달되지 않았으며 돈을 돌려받고 싶다고 썼습니다.",
}


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_a_sentence_of_every_language_is_told(code: str) -> None:
    assert detect_language(SENTENCES[code]) == code


@pytest.mark.parametrize(
    "text",
    ["", "1234 5678 !!", "foo bar baz qux", "SELECT id, name FROM users WHERE age > 3;", "Lorem ipsum dolor sit amet",
     SENTENCES["en"] + SENTENCES["ru"] + SENTENCES["el"]],
)  # fmt: skip
def test_it_says_when_it_can_not_tell(text: str) -> None:
    assert detect_language(text) is None


GERMAN = Replies(reply=lambda _: Answer(text=SENTENCES["de"]))


def test_an_output_in_another_language_fails_the_run() -> None:
    texts, log = run_one(LanguageComponent(allowed={"en"}), engine=GERMAN)

    assert texts == []
    assert detail(log, "activation.failed").startswith(
        "OutputContractError: Agent 'a': the output 'Answer' is in de, allowed are en."
    )
    assert run_one(LanguageComponent(allowed={"en", "de"}), engine=GERMAN)[0] == [SENTENCES["de"]]


def test_warn_leaves_an_event() -> None:
    texts, log = run_one(LanguageComponent(allowed={"en"}, on_violation="warn"), engine=GERMAN)

    assert texts == [SENTENCES["de"]]
    assert detail(log, "language.mismatch") == "the output 'Answer' is in de"


def test_short_and_unclear_texts_pass_unless_told_otherwise() -> None:
    unclear = Replies(reply=lambda _: Answer(text="foo bar baz qux " * 9))

    assert "activation.completed" in kinds(run_one(LanguageComponent(allowed={"en"}))[1])
    assert "activation.completed" in kinds(run_one(LanguageComponent(allowed={"en"}), engine=unclear)[1])
    strict = LanguageComponent(allowed={"en"}, on_unknown="fail")
    assert "an unknown language" in detail(run_one(strict, engine=unclear)[1], "activation.failed")


def test_inputs_are_checked_before_the_engine() -> None:
    engine = Replies()
    inputs = LanguageComponent(allowed={"en"}, check_inputs=True, check_outputs=False)
    texts, _ = run_one(inputs, ask=Ask(text=SENTENCES["fr"]), engine=engine)

    assert (texts, engine.seen) == ([], [])


async def always_klingon(text: str) -> str:
    return "tlh"


def test_a_detector_of_ones_own_decides() -> None:
    own = LanguageComponent(allowed={"tlh"}, detect=always_klingon)

    assert run_one(own, engine=GERMAN)[0] == [SENTENCES["de"]]


@pytest.mark.parametrize(
    "bad", [{"allowed": {"tlh"}}, {"allowed": set()}, {"allowed": {"en"}, "check_outputs": False}]
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        LanguageComponent(**bad)
