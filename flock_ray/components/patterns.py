"""Finds what should not be passed on in texts: addresses, numbers, keys. Each pattern takes linear time.

A pattern may begin only where a word of its own characters begins, and inside it no character fits two parts:
so the regular expressions never go back far. What counting can't say (check digits) is decided in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flock_ray.core.secrets import API_KEY, ASSIGNED, BEARER, JWT, PRIVATE_KEY
from flock_ray.errors import ConfigurationError

__all__ = ["BUILT_IN", "Pattern", "Span", "custom", "replaced", "spans"]

Span = tuple[int, int]

MAX_CUSTOM_CHARS = 1_000
"""Longest regular expression of a user."""


class Pattern(NamedTuple):
    """Something to find."""

    name: str
    regex: re.Pattern[str]
    is_real: Callable[[str], bool] | None = None
    """Looks closer at what the expression found; None: that is all."""
    hint: str = ""
    """A character that must be in the text; empty: no such shortcut."""


def spans(pattern: Pattern, text: str) -> Iterator[Span]:
    """Yield where a pattern is in a text, from left to right, without overlaps."""
    if pattern.hint and pattern.hint not in text:
        return
    at = 0
    while (found := pattern.regex.search(text, at)) is not None:
        start, end = found.span()
        if end > start and (pattern.is_real is None or pattern.is_real(found.group())):
            yield start, end
            at = end
        else:
            # What it stands for may still begin a little further on.
            at = start + 1


def replaced(text: str, patterns: list[Pattern], mark: Callable[[str], str]) -> tuple[str, dict[str, int]]:
    """Replace what patterns find, the first pattern first.

    Args:
        text: Where.
        patterns: What.
        mark: Makes the replacement of the pattern's name.

    Returns:
        The text, and how often each pattern was found.
    """
    counts: dict[str, int] = {}
    for pattern in patterns:
        pieces: list[str] = []
        at = 0
        for start, end in spans(pattern, text):
            pieces += (text[at:start], mark(pattern.name))
            at = end
            counts[pattern.name] = counts.get(pattern.name, 0) + 1
        if pieces:
            text = "".join(pieces) + text[at:]
    return text, counts


def custom(name: str, expression: str) -> Pattern:
    """Make a pattern of a user's regular expression.

    Raises:
        ConfigurationError: It is none, it fits the empty text, or it repeats a repetition, as `(a+)+` does, which
            takes exponential time on some texts.
    """
    if not expression or len(expression) > MAX_CUSTOM_CHARS:
        raise ConfigurationError(f"Pattern {name!r} needs 1 to {MAX_CUSTOM_CHARS} characters.")
    try:
        regex = re.compile(expression)
    except re.error as error:
        raise ConfigurationError(f"Pattern {name!r} is no regular expression: {error}.") from None
    if regex.match("") is not None:
        raise ConfigurationError(f"Pattern {name!r} fits the empty text: it would be found everywhere.")
    if _repeats_a_repetition(_parsed(expression), inside=False):
        raise ConfigurationError(
            f"Pattern {name!r} repeats something that is repeated itself: on some texts that takes for ever. "
            "Write it with one repetition, or with fixed counts inside."
        )
    return Pattern(name, regex)


def _parsed(expression: str) -> Any:
    # `re` has no public name for its parser.
    from re import _parser  # type: ignore[attr-defined]  # typeshed leaves it out

    return _parser.parse(expression)


def _repeats_a_repetition(tree: Any, *, inside: bool) -> bool:
    for name, argument in tree:
        if str(name) in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = (*map(int, argument[:2]), argument[2])
            # A fixed count has one way to fit; so has an optional part behind something that has to be there.
            if inside and most > 1 and least != most:
                return True
            if most > 1 and int(body.getwidth()[0]) == 0:
                return True
            if _repeats_a_repetition(body, inside=inside or most > 1):
                return True
        elif any(_repeats_a_repetition(part, inside=inside) for part in _parts(argument)):
            return True
    return False


def _parts(argument: Any) -> Iterator[Any]:
    """Yield the expressions inside an operation of a parsed regular expression."""
    if type(argument).__name__ == "SubPattern":
        yield argument
    elif isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _parts(part)


def _digits(text: str) -> str:
    return "".join(char for char in text if "0" <= char <= "9")


def is_card_number(text: str) -> bool:
    """Tell whether the digits in a text have the check digit (Luhn) and length of a payment card."""
    digits = _digits(text)
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456" or len(set(digits)) == 1:
        return False
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_phone_number(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15


def _has_digit(text: str) -> bool:
    """Tell a key from words with dashes between them."""
    return any(char.isdigit() for char in text)


BUILT_IN: dict[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern("private_key", re.compile(PRIVATE_KEY)),
        Pattern("jwt", re.compile(JWT)),
        Pattern("bearer", re.compile(BEARER)),
        Pattern("api_key", re.compile(API_KEY), _has_digit),
        Pattern("assigned_secret", re.compile(ASSIGNED)),
        Pattern("email", re.compile(r"(?<![\w.%+'-])[\w.%+'-]+@[\w-]+(?:\.[\w-]+)+"), hint="@"),
        Pattern(
            "credit_card",
            re.compile(
                r"(?<!\d)(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}[ -]\d{6}[ -]\d{4,5})(?!\d)",
                re.ASCII,
            ),
            is_card_number,
        ),
        Pattern(
            "phone",
            re.compile(
                r"(?:(?<![\w+])(?:\+|00)[1-9][\d .()/-]{6,20}\d(?!\d)"
                r"|(?<![\d.-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\d)"
                r"|(?<![\w.,/-])0[1-9]\d{1,3}[ /]\d{2,4}[ ]?\d{2,4}[ ]?\d{0,4}(?!\w))",
                re.ASCII,
            ),
            _is_phone_number,
        ),
    )
}
"""By name, in the order in which they are applied: keys first, as other patterns could take parts of them."""
