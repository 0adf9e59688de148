"""Recorded answers: a folder with one readable JSON file per request, to run offline and always alike.

A file is replaced in one step, so several processes may write to a folder; what two of them record for the
same request at the same moment is not added up: one of them wins. Answers to equal requests are replayed in the
order in which they were recorded, then the last one again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from flock_ray.engines.records import redacted
from flock_ray.errors import CassetteMissError, ConfigurationError
from flock_ray.gateway.requests import asked, differences
from flock_ray.gateway.settings import CassetteMode
from flock_ray.model import ModelReply, ModelRequest, ToolCall, Usage

__all__ = ["Cassette"]

FORMAT = 1
MAX_COMPARED = 1000
"""Recorded requests that a missing one is compared with."""
MAX_DATA_URL = 256
"""Longer data URLs are kept as a hash."""
PIECE_CHARS = 16
"""Length of the pieces in which a recorded answer is streamed, when its own are not known."""
MAX_PIECES = 2000

_STEP = 65_536

_DATA_URL = re.compile(rf"data:[\w/+.-]*;base64,[A-Za-z0-9+/=\s]{{{MAX_DATA_URL},}}")


class _Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer in a file."""

    text: str = ""
    tool_calls: list[dict[str, str]] = []
    finish_reason: str = "stop"
    refusal: str = ""
    model: str = ""
    usage: Usage = Usage()
    latency_s: float = 0.0
    first_token_s: float | None = None
    pieces: list[int] = []
    """Lengths of the streamed pieces of `text`."""
    vectors: list[str] = []
    """Of the texts of `embed`, in base64: `struct.unpack("<384f", b64decode(vector))` for 384 numbers."""


class _File(msgspec.Struct, frozen=True):
    """What a file holds."""

    format: int
    hash: str
    request: dict[str, Any]
    answers: list[_Recorded]


class Cassette:
    """Plays and records answers. Not thread-safe; several processes may use one folder."""

    def __init__(self, folder: str | Path, mode: CassetteMode) -> None:
        """Use a folder; it is made when the first answer is recorded.

        Args:
            folder: Where the files are.
            mode: `record`: every answer comes from the provider, and replaces what was recorded before.
                `replay`: none does. `auto`: those that are missing do.

        Raises:
            ConfigurationError: `replay`, and there is no such folder; or it is a file.
        """
        self._folder = Path(folder)
        self._mode = mode
        if self._folder.is_file():
            raise ConfigurationError(f"The cassette {self._folder} is a file: name a folder.")
        if mode == "replay" and not self._folder.is_dir():
            raise ConfigurationError(
                f"There is no cassette {self._folder}. Record one with FLOCK_CASSETTE_MODE=record."
            )
        self._played: dict[str, int] = {}
        self._written: set[str] = set()
        self._files: dict[str, tuple[int, _File]] = {}

    def play(self, request: ModelRequest, key: str) -> tuple[ModelReply, list[str]] | None:
        """Return the recorded answer and the pieces of its text; None: ask the provider.

        Raises:
            CassetteMissError: `replay`, and the request was never recorded; says what is different.
            ConfigurationError: The file can't be read.
        """
        if self._mode == "record":
            return None
        file = self._read(key)
        if file is None or not file.answers:
            if self._mode == "auto":
                return None
            raise CassetteMissError(self._miss(request))
        number = self._played.get(key, 0)
        self._played[key] = number + 1
        recorded = file.answers[min(number, len(file.answers) - 1)]
        reply = ModelReply(
            text=recorded.text,
            tool_calls=[ToolCall(c["id"], c["name"], c["arguments"]) for c in recorded.tool_calls],
            finish_reason=recorded.finish_reason,
            refusal=recorded.refusal,
            model=recorded.model or request.model,
            usage=recorded.usage,
            latency_s=recorded.latency_s,
            first_token_s=recorded.first_token_s,
            source="cassette",
            request_hash=key,
            vectors=[base64.b64decode(vector) for vector in recorded.vectors],
        )
        return reply, _cut(recorded.text, recorded.pieces)

    def record(self, request: ModelRequest, key: str, reply: ModelReply, pieces: Iterable[str] = ()) -> None:
        """Keep an answer of the provider.

        Raises:
            ConfigurationError: The file can't be written.
        """
        before = self._read(key) if self._mode == "auto" or key in self._written else None
        sizes = [len(piece) for piece in pieces]
        text = redacted_answer(reply.text)
        if len(sizes) > MAX_PIECES or sum(sizes) != len(text):
            sizes = []
        recorded = _Recorded(
            text=text,
            tool_calls=[
                {"id": c.id, "name": c.name, "arguments": redacted_answer(c.arguments)}
                for c in reply.tool_calls
            ],
            finish_reason=reply.finish_reason,
            refusal=redacted_answer(reply.refusal),
            model=reply.model,
            usage=reply.usage,
            latency_s=round(reply.latency_s, 4),
            first_token_s=None if reply.first_token_s is None else round(reply.first_token_s, 4),
            pieces=sizes,
            vectors=[base64.b64encode(vector).decode() for vector in reply.vectors],
        )
        answers = [*(before.answers if before is not None else []), recorded]
        self._write(key, _File(FORMAT, key, _readable(asked(request)), answers))
        self._written.add(key)
        if self._mode == "auto":
            # It was given out just now: what is played next is the answer after it.
            self._played[key] = len(answers)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _read(self, key: str) -> _File | None:
        path = self._path(key)
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return None
        known = self._files.get(key)
        if known is not None and known[0] == changed:
            return known[1]
        file = _load(path)
        if len(self._files) > 10_000:
            self._files.clear()
        self._files[key] = (changed, file)
        return file

    def _write(self, key: str, file: _File) -> None:
        data = json.dumps(msgspec.to_builtins(file), indent=2, ensure_ascii=False) + "\n"
        name = ""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=".new-", suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(data)
            os.replace(name, self._path(key))
        except OSError as error:
            with contextlib.suppress(OSError):
                if name:
                    os.unlink(name)
            raise ConfigurationError(
                f"The cassette {self._folder} can't be written: {error}. Choose a folder that can."
            ) from error
        self._files.pop(key, None)

    def _miss(self, request: ModelRequest) -> str:
        new = _readable(asked(request))
        found: list[tuple[str, Any, Any]] | None = None
        for path in sorted(self._folder.glob("*.json"))[:MAX_COMPARED]:
            try:
                file = _load(path)
            except ConfigurationError:
                continue
            changed = list(differences(file.request, new))
            if found is None or _distance(changed) < _distance(found):
                found = changed
        start = f"The cassette {self._folder} does not have this request"
        if found is None:
            return f"{start}: it is empty. Record it with FLOCK_CASSETTE_MODE=record."
        if not found:
            return (
                f"{start}: it differs from a recorded one only in what was redacted. "
                "Record it again with FLOCK_CASSETTE_MODE=record."
            )
        told = "; ".join(_told(*change) for change in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return (
            f"{start}. Against the nearest recorded one, {told}{more} changed. Undo that, or record it again "
            "with FLOCK_CASSETTE_MODE=record."
        )


def redacted_answer(text: str) -> str:
    """Return a text without what looks like a secret; of any length."""
    return "".join(redacted(text[start : start + _STEP]) for start in range(0, len(text), _STEP))


def _load(path: Path) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"The cassette file {path} can't be read: {error}. Delete it and record it again."
        ) from error
    if file.format != FORMAT:
        raise ConfigurationError(
            f"The cassette file {path} has format {file.format}, this version knows {FORMAT}. Record it again."
        )
    return file


def _readable(value: Any) -> Any:
    """Return JSON without secrets and without the bytes of files."""
    if isinstance(value, dict):
        return {str(k): _readable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    if isinstance(value, str):
        return redacted_answer(_DATA_URL.sub(_hashed, value))
    return value


def _hashed(found: re.Match[str]) -> str:
    head, _, body = found.group().partition(",")
    return f"{head},<{len(body)} characters, blake2b {hashlib.blake2b(body.encode(), digest_size=8).hexdigest()}>"


def _distance(changed: list[tuple[str, Any, Any]]) -> tuple[int, int]:
    """Order differences: another model is far away, then by how many fields, then by how much text."""
    far = 100 if any(path == "model" for path, _, _ in changed) else 0
    return far + len(changed), sum(_apart(old, new) for _, old, new in changed)


def _apart(old: Any, new: Any) -> int:
    left, right = str(old), str(new)
    same = _common(left, right)
    return max(len(left), len(right)) - same


def _told(path: str, old: Any, new: Any) -> str:
    if old is None:
        return f"{path} (new: {_short(new)})"
    if new is None:
        return f"{path} (was {_short(old)}, is gone)"
    if isinstance(old, str) and isinstance(new, str):
        same = max(0, _common(old, new) - 20)
        return f"{path} (at character {same}: {_short(old[same:])} became {_short(new[same:])})"
    return f"{path} ({_short(old)} became {_short(new)})"


def _common(left: str, right: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _cut(text: str, sizes: list[int]) -> list[str]:
    if not sizes or sum(sizes) != len(text):
        return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
    made, place = [], 0
    for size in sizes:
        made.append(text[place : place + size])
        place += size
    return made
