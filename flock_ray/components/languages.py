# ruff: noqa: RUF001  # words in Cyrillic letters
"""A small language detector: by script, and among languages in Latin or Cyrillic letters by their frequent words."""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["LANGUAGES", "detect_language"]

_SCRIPTS: tuple[tuple[str, str, str], ...] = (
    ("ja", "\u3040", "\u30ff"),
    ("ko", "\uac00", "\ud7af"),
    ("zh", "\u4e00", "\u9fff"),
    ("el", "\u0370", "\u03ff"),
    ("he", "\u0590", "\u05ff"),
    ("ar", "\u0600", "\u06ff"),
    ("hi", "\u0900", "\u097f"),
    ("th", "\u0e00", "\u0e7f"),
    ("cyrillic", "\u0400", "\u04ff"),
)

_WORDS = {
    "en": "the of and to in is that it for was with as are this be have not you from they which but were has",
    "de": "der die das und ist nicht ein eine mit den von zu auf für dem des sich auch wird sind ich wir oder aber",
    "fr": "le la les des est et une du que dans pour pas qui sur avec au sont cette nous vous mais elle il ne",
    "es": "el la los las de que y en un una por con para es no se del al como más pero su está esta",
    "it": "il di che la è e per un una non sono con del della le gli si come anche nel questo più ma alla",
    "pt": "o a de que e do da em um uma para com não os no se na por mais as dos como mas foi são",
    "nl": "de het een en van is dat op te in met voor niet zijn aan ook er maar door ze wordt bij naar",
    "pl": "i w nie na się z do jest to że o jak ale po od za przez są dla oraz tym był tylko",
    "sv": "och att det som en på är av för med den till inte ett om har de jag men var kan vi från",
    "ru": "и в не на что с по как это он но из у за от его к мы для так все она был",
    "uk": "і в не на що з як це до та у за від але його ми для так є й про або також",
}
_VOCABULARY = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_CYRILLIC = frozenset({"ru", "uk"})
_UKRAINIAN = re.compile("[іїєґІЇЄҐ]")
_RUSSIAN = re.compile("[ыэъёЫЭЪЁ]")

LANGUAGES = frozenset({code for code, _, _ in _SCRIPTS if code != "cyrillic"} | _VOCABULARY.keys())
"""ISO 639-1 codes that it knows. Others in the same scripts (Persian, Marathi, Bulgarian) are taken for these."""

_WORD = re.compile(r"[^\W\d_]+")
"""A run of letters."""

MIN_SHARE = 0.5
"""Share of the letters that a script needs."""
MIN_FREQUENT = 0.12
"""Share of frequent words that a language needs; sentences have 0.3 to 0.5."""
MIN_WORDS = 2
"""Frequent words that a language needs."""
MIN_LEAD = 1.15
"""How much more than the next language."""


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None when it can't tell."""
    script = _script(text)
    if script == "latin":
        return _by_words(text, _VOCABULARY.keys() - _CYRILLIC)
    if script == "cyrillic":
        ukrainian, russian = len(_UKRAINIAN.findall(text)), len(_RUSSIAN.findall(text))
        if ukrainian != russian:
            return "uk" if ukrainian > russian else "ru"
        return _by_words(text, _CYRILLIC)
    return script


def _script(text: str) -> str | None:
    counts: Counter[str] = Counter()
    for char in text:
        if char.isalpha():
            counts[_script_of(char)] += 1
    total = counts.total()
    if not total:
        return None
    # Japanese is written with Chinese characters between its own.
    if counts["ja"] >= 0.1 * (counts["ja"] + counts["zh"]) > 0:
        counts["ja"] += counts.pop("zh", 0)
    [(script, most)] = counts.most_common(1)
    return script if most >= MIN_SHARE * total and script != "other" else None


def _script_of(char: str) -> str:
    if char < "\u0250" or "\u1e00" <= char <= "\u1eff":
        return "latin"
    return next((code for code, first, last in _SCRIPTS if first <= char <= last), "other")


def _by_words(text: str, codes: frozenset[str] | set[str]) -> str | None:
    words = _WORD.findall(text.lower())
    if not words:
        return None
    found = sorted(((sum(word in _VOCABULARY[code] for word in words), code) for code in codes), reverse=True)
    (best, code), (second, _) = found[:2]
    sure = best >= MIN_WORDS and best >= MIN_FREQUENT * len(words) and best >= MIN_LEAD * second
    return code if sure else None
