"""Find the files of a tree and read them, whatever their names and contents are."""

from __future__ import annotations

import fnmatch
import io
import os
import stat
import tokenize
import urllib.parse
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from examples.review.types import SourceFile

MAX_FILE_BYTES = 1_000_000
"""Larger files are data or generated: they are listed with a note and not read."""

LANGUAGES = {
    ".py": "Python",
    ".pyi": "Python",
    ".c": "C",
    ".cfg": "INI",
    ".cpp": "C++",
    ".css": "CSS",
    ".go": "Go",
    ".h": "C",
    ".html": "HTML",
    ".ini": "INI",
    ".java": "Java",
    ".js": "JavaScript",
    ".lua": "Lua",
    ".md": "Markdown",
    ".rs": "Rust",
    ".rst": "reStructuredText",
    ".sh": "Shell",
    ".sql": "SQL",
    ".toml": "TOML",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".yaml": "YAML",
    ".yml": "YAML",
}
DEFAULT_GLOBS = (*(f"*{suffix}" for suffix in LANGUAGES), "Dockerfile", "Makefile")

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "build", "dist", "env", "htmlcov", "node_modules", "site-packages", "target", "venv"}
)
KEPT_HIDDEN_FOLDERS = frozenset({".github"})


@dataclass(frozen=True)
class Listing:
    """The files to review, and how many were left out so that the report can say so."""

    root: Path
    paths: tuple[str, ...]
    over_limit: int = 0
    unreadable_folders: tuple[str, ...] = ()

    def slices(self, size: int) -> Iterator[tuple[str, ...]]:
        """Cut the paths into runs of at most `size`."""
        for start in range(0, len(self.paths), size):
            yield self.paths[start : start + size]

    def left_out(self) -> tuple[str, ...]:
        """Say in words what is not among the paths although it is in the tree."""
        notes = []
        if self.over_limit:
            notes.append(f"{self.over_limit:,} more files, beyond the limit that was asked for")
        if self.unreadable_folders:
            notes.append(f"folders that can't be read: {', '.join(self.unreadable_folders)}")
        return tuple(notes)


def encode_path(path: str) -> str:
    """Write a file name as printable text.

    `%` and whatever is not printable (newlines, escapes, invisible marks that reverse
    text, bytes that are no text at all) become `%XX`; ordinary names stay as they are.
    """
    return "".join(
        char
        if char.isprintable() and char != "%"
        else "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in path
    )


def decode_path(path: str) -> str:
    """Give back the file name that `encode_path` wrote."""
    return urllib.parse.unquote_to_bytes(path).decode("utf-8", "surrogateescape")


def list_tree(
    root: Path,
    *,
    globs: Sequence[str] = DEFAULT_GLOBS,
    max_files: int | None = None,
    skip: Container[str] = (),
) -> Listing:
    """List the files below `root` whose name matches one of `globs`, sorted.

    Symbolic links are not followed, so a loop ends and nothing is counted twice.
    Environments, caches and build output are passed over.

    Args:
        root: A folder, or a single file, which is then reviewed alone.
        globs: Patterns for the file name, as in `fnmatch`.
        max_files: Keep only the first ones; None keeps all.
        skip: Folders to pass over, as paths relative to `root`.

    Raises:
        FileNotFoundError: There is nothing at `root`.
    """
    root = root.resolve(strict=True)
    if root.is_file():
        return Listing(root.parent, (encode_path(root.name),))
    unreadable: list[str] = []
    found = sorted(_walk(root, tuple(globs), skip, unreadable))
    kept = found if max_files is None else found[:max_files]
    return Listing(root, tuple(kept), len(found) - len(kept), tuple(sorted(unreadable)))


def _walk(root: Path, globs: tuple[str, ...], skip: Container[str], unreadable: list[str]) -> Iterator[str]:
    def note(error: OSError) -> None:
        unreadable.append(encode_path(os.path.relpath(os.fsdecode(error.filename), root)))

    for folder, folders, files in os.walk(root, onerror=note, followlinks=False):
        folders[:] = [
            name
            for name in folders
            if _is_wanted(folder, name) and os.path.relpath(os.path.join(folder, name), root) not in skip
        ]
        for name in _matching(files, globs):
            full = os.path.join(folder, name)
            if _is_regular(full):
                yield encode_path(PurePosixPath(os.path.relpath(full, root)).as_posix())


def _matching(names: Iterable[str], globs: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in globs))


def _is_wanted(parent: str, name: str) -> bool:
    if name.startswith(".") and name not in KEPT_HIDDEN_FOLDERS:
        return False
    if name in SKIPPED_FOLDERS or name.endswith(".egg-info"):
        return False
    return not os.path.lexists(os.path.join(parent, name, "pyvenv.cfg"))


def _is_regular(full: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(full).st_mode)
    except OSError:
        return False


def read_source(root: str, path: str) -> SourceFile:
    """Read one listed file.

    Whatever is wrong with the file ends in a note, so that every listed path comes out
    as exactly one SourceFile; what joins and counts downstream relies on that.
    """
    full = os.path.join(root, decode_path(path))
    try:
        size = os.stat(full).st_size
        if size > MAX_FILE_BYTES:
            note = f"skipped: {size / 1e6:.1f} MB, more than {MAX_FILE_BYTES / 1e6:.0f} MB"
            return _unread(path, note)
        data = Path(full).read_bytes()
    except OSError as error:
        note = f"could not be read: {error.strerror or type(error).__name__}"
        return _unread(path, note)
    if b"\0" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _unread(path, "skipped: binary content")
    language = language_of(path)
    text, note = decode_text(data, python=language == "Python")
    return SourceFile(path=path, language=language, text=text, lines=count_lines(text), note=note)


def _unread(path: str, note: str) -> SourceFile:
    return SourceFile(path=path, language=language_of(path), text="", lines=0, is_read=False, note=note)


def language_of(path: str) -> str:
    """Name the language of a file by its suffix, or its name where it has none."""
    name = PurePosixPath(path)
    return LANGUAGES.get(name.suffix.lower(), name.name if not name.suffix else "other")


def decode_text(data: bytes, *, python: bool) -> tuple[str, str]:
    """Decode a file: as declared (Python's coding line), else UTF-8, else Latin-1.

    Returns:
        The text, with all line ends as newlines, and a note when it had to be guessed.
    """
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif python:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        except SyntaxError:
            encoding = "utf-8-sig"
    note = ""
    try:
        text = data.decode(encoding)
    except (ValueError, LookupError):
        text = data.decode("latin-1")
        note = f"not valid {encoding.removesuffix('-sig').upper()}: read as Latin-1"
    # Some codecs that a coding line can name give lone surrogates, which no JSON can carry.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def count_lines(text: str) -> int:
    """Count lines as an editor does: a last line without a newline counts."""
    return text.count("\n") + (not text.endswith("\n") and bool(text))
