"""Finds JSON in what a model wrote: strictly first, then with the mistakes that models make.

Nothing is invented: an answer that was cut in the middle is not JSON. Time is linear in the length of
the text, which is bounded, whatever is in it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["MAX_ANSWER_CHARS", "find_json"]

MAX_ANSWER_CHARS = 2_000_000
"""Longer answers are not read at all."""
MAX_STARTS = 64
"""So many brackets are tried as the beginning of a value."""
MAX_TOLERANT_CHARS = 400_000
"""So many characters are read by the slow reader before no further start is tried."""
MAX_DEPTH = 100
MAX_FOUND = 5

_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_SPACE = re.compile(r"[\s\ufeff]*")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
_LITERALS = {"true": True, "false": False, "null": None, "none": None, "nan": None}
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "\n": ""}


def _float(literal: str) -> float | None:
    """Return a number; None for one that is too large: like NaN, infinity would be null in an artifact."""
    number = float(literal)
    return None if math.isinf(number) else number


_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None, parse_float=_float)


def find_json(text: str) -> list[Any]:
    """Return the JSON values in a text, the most likely answer first; empty when there is none.

    Read are: the whole text; fenced code blocks; objects and arrays in prose; trailing commas,
    comments, single and typographic quotes, bare keys, Python's literals, raw line ends in strings.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return []
    text = _without_thoughts(text).strip().lstrip("\ufeff")
    if not text:
        return []
    whole = _strict(text)
    if whole is not None:
        return [whole[0]] if whole[1] == len(text) else _from_parts(text)
    return _from_parts(text)


def _from_parts(text: str) -> list[Any]:
    """Look into code blocks, then for brackets in prose."""
    found: list[tuple[int, Any]] = []
    for match in list(_FENCE.finditer(text))[:MAX_STARTS]:
        block = match.group(1).strip()
        parsed = _strict(block) or _tolerant(block, 0)
        if parsed is not None and isinstance(parsed[0], (dict, list)):
            found.append((parsed[1] - parsed[2], parsed[0]))
    if not found:
        found = _scan(text)
    if not found:
        whole = _tolerant(text, 0)
        # A bare word or number in prose is no answer; alone, it may be.
        if whole is not None and whole[1] == len(text):
            found = [(len(text), whole[0])]
    found.sort(key=lambda item: -item[0])
    return [value for _, value in found[:MAX_FOUND]]


def _scan(text: str) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    position, left = 0, MAX_TOLERANT_CHARS
    for _ in range(MAX_STARTS):
        start = _next_bracket(text, position)
        if start < 0 or left <= 0:
            break
        parsed = _strict(text, start)
        if parsed is None:
            reader = _Reader(text, start)
            parsed = _read_by(reader, start)
            left -= reader.position - start
        if parsed is None:
            position = start + 1
            continue
        found.append((parsed[1] - start, parsed[0]))
        position = parsed[1]
    return found


def _next_bracket(text: str, position: int) -> int:
    places = [place for place in (text.find("{", position), text.find("[", position)) if place >= 0]
    return min(places, default=-1)


def _without_thoughts(text: str) -> str:
    """Drop what a reasoning model thought aloud before its answer."""
    start = text.find("<think>")
    if start < 0 or text[:start].strip():
        return text
    end = text.find("</think>", start)
    return text if end < 0 else text[end + len("</think>") :]


def _strict(text: str, start: int = 0) -> tuple[Any, int, int] | None:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value, end, start


def _tolerant(text: str, start: int) -> tuple[Any, int, int] | None:
    return _read_by(_Reader(text, start), start)


def _read_by(reader: _Reader, start: int) -> tuple[Any, int, int] | None:
    try:
        value = reader.value(0)
    except (_NotJsonError, ValueError):
        return None
    return value, reader.position, start


class _NotJsonError(Exception):
    """Not a value, even so."""


class _Reader:
    """Reads one value, forgiving what models get wrong."""

    def __init__(self, text: str, position: int) -> None:
        self.text = text
        self.position = position

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _NotJsonError
        self._skip()
        char = self._char()
        if char == "{":
            return self._object(depth)
        if char == "[":
            return self._array(depth)
        if char in _QUOTES:
            return self._string()
        number = _NUMBER.match(self.text, self.position)
        if number is not None:
            self.position = number.end()
            literal = number.group()
            return _float(literal) if any(mark in literal for mark in ".eE") else int(literal)
        word = self._word().lower()
        if word not in _LITERALS:
            raise _NotJsonError
        return _LITERALS[word]

    def _object(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        self.position += 1
        while not self._closes("}"):
            key = self._string() if self._char() in _QUOTES else self._word()
            self._skip()
            if self._char() not in (":", "="):
                raise _NotJsonError
            self.position += 1
            made[key] = self.value(depth + 1)
            self._separator("}")
        return made

    def _array(self, depth: int) -> list[Any]:
        made: list[Any] = []
        self.position += 1
        while not self._closes("]"):
            made.append(self.value(depth + 1))
            self._separator("]")
        return made

    def _closes(self, bracket: str) -> bool:
        self._skip()
        if self._char() != bracket:
            return False
        self.position += 1
        return True

    def _separator(self, bracket: str) -> None:
        self._skip()
        char = self._char()
        if char == ",":
            self.position += 1
        elif char != bracket:
            raise _NotJsonError

    def _string(self) -> str:
        text, end = self.text, _QUOTES[self._char()]
        parts: list[str] = []
        position = start = self.position + 1
        stops = re.compile(rf"[\\{re.escape(end)}]")
        while (stop := stops.search(text, position)) is not None:
            parts.append(text[position : stop.start()])
            if stop.group() == end:
                self.position = stop.end()
                return "".join(parts)
            char, position = self._escape(stop.end())
            parts.append(char)
        self.position = start
        raise _NotJsonError

    def _escape(self, position: int) -> tuple[str, int]:
        """Return what an escape stands for, and where it ends; `position` is behind its backslash."""
        char = self.text[position : position + 1]
        if char != "u":
            return _ESCAPES.get(char, char), position + 1
        digits = self.text[position + 1 : position + 5]
        if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
            raise _NotJsonError
        code, position = int(digits, 16), position + 5
        low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.text, position)
        if 0xD800 <= code < 0xDC00 and low is not None:
            code = 0x10000 + ((code - 0xD800) << 10) + (int(low.group(1), 16) - 0xDC00)
            position = low.end()
        return chr(code), position

    def _word(self) -> str:
        word = _WORD.match(self.text, self.position)
        if word is None:
            raise _NotJsonError
        self.position = word.end()
        return word.group()

    def _char(self) -> str:
        return self.text[self.position : self.position + 1]

    def _skip(self) -> None:
        """Pass over space and comments."""
        while True:
            space = _SPACE.match(self.text, self.position)
            self.position = self.position if space is None else space.end()
            if self.text.startswith("//", self.position):
                end = self.text.find("\n", self.position)
            elif self.text.startswith("/*", self.position):
                end = self.text.find("*/", self.position)
                end = end if end < 0 else end + 2
            else:
                return
            if end < 0:
                raise _NotJsonError
            self.position = end
