"""Find code that was copied, within a file and across files.

Each file is cut into overlapping windows of normalised lines; a window is known by its
hash. Hashes are all that crosses the wire: comparing files needs no text. Indentation,
blank lines, comments, docstrings, imports and lines of mere brackets don't count, so a
copy is found after it was moved into a class or given another docstring.
"""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from examples.review.syntax import walk_statements
from examples.review.types import DuplicateBlock, Fingerprint, Place

WINDOW_LINES = 6
MIN_DISTINCT_LINES = 4
"""A window of fewer different lines is a table or padding, not a copied thought."""
PADDING = "~"
"""Begins the digest of such a window: it can lie within a copy, but makes none."""

_Windows = Mapping[str, Sequence[Fingerprint]]
_Spot = tuple[str, int]


def fingerprint(text: str, tree: ast.Module) -> list[Fingerprint]:
    """Hash every window of a file, in line order."""
    kept = _normalised(text, _ignored_lines(tree))
    windows = (kept[at : at + WINDOW_LINES] for at in range(len(kept) - WINDOW_LINES + 1))
    return [Fingerprint(_digest([line for _, line in it]), it[0][0], it[-1][0]) for it in windows]


def _digest(contents: list[str]) -> str:
    digest = hashlib.blake2b("\n".join(contents).encode(), digest_size=8).hexdigest()
    return digest if len(set(contents)) >= MIN_DISTINCT_LINES else PADDING + digest


def _normalised(text: str, ignored: set[int]) -> list[tuple[int, str]]:
    kept: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = " ".join(line.split())
        if number in ignored or content.startswith("#"):
            continue
        if any(char.isalnum() for char in content):
            kept.append((number, content))
    return kept


def _ignored_lines(tree: ast.Module) -> set[int]:
    """Lines of imports and docstrings."""
    ignored: set[int] = set()
    for node in walk_statements(tree):
        is_string = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        if is_string or isinstance(node, ast.Import | ast.ImportFrom):
            ignored.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return ignored


def find_duplicates(files: _Windows) -> tuple[list[DuplicateBlock], dict[str, int]]:
    """Find all blocks that occur twice or more.

    Returns:
        The blocks, the most repeated text first, and for every file how many of its
        lines have a copy somewhere. A part of a block that occurs in more places than
        the whole is a block of its own; the counts of lines count it once.
    """
    index: dict[str, list[_Spot]] = defaultdict(list)
    for path in sorted(files):
        for at, window in enumerate(files[path]):
            if not window.digest.startswith(PADDING):
                index[window.digest].append((path, at))
    seen: set[_Spot] = set()
    blocks: list[DuplicateBlock] = []
    for spots in index.values():
        group = _apart(files, spots)
        if len(group) < 2 or seen.issuperset(group):
            continue
        length = _extend(files, group)
        seen.update((path, at + step) for path, at in group for step in range(length))
        blocks.append(_block(files, group, length))
    blocks.sort(key=lambda it: (-it.lines * (len(it.places) - 1), -it.lines, it.places[0].path))
    return blocks, _lines_covered(blocks)


def _apart(files: _Windows, spots: Iterable[_Spot]) -> list[_Spot]:
    """Drop spots that overlap the one before in the same file."""
    group: list[_Spot] = []
    for path, at in spots:
        if group and group[-1][0] == path:
            before = files[path][group[-1][1]]
            if files[path][at].start <= before.end:
                continue
        group.append((path, at))
    return group


def _extend(files: _Windows, group: list[_Spot]) -> int:
    """How many windows on all spots of the group stay equal, and apart."""
    length = 1
    while True:
        nexts = [(path, at + length) for path, at in group]
        if any(at >= len(files[path]) for path, at in nexts):
            return length
        if len({files[path][at].digest for path, at in nexts}) > 1:
            return length
        for (path, at), (following, start) in zip(nexts, group[1:], strict=False):
            if path == following and files[path][at].end >= files[path][start].start:
                return length
        length += 1


def _block(files: _Windows, group: list[_Spot], length: int) -> DuplicateBlock:
    places = [
        Place(path=path, start=files[path][at].start, end=files[path][at + length - 1].end)
        for path, at in group
    ]
    return DuplicateBlock(lines=max(place.end - place.start + 1 for place in places), places=places)


def _lines_covered(blocks: Iterable[DuplicateBlock]) -> dict[str, int]:
    covered: dict[str, set[int]] = defaultdict(set)
    for block in blocks:
        for place in block.places:
            covered[place.path].update(range(place.start, place.end + 1))
    return {path: len(lines) for path, lines in covered.items()}


def telling_blocks(blocks: Sequence[DuplicateBlock], limit: int) -> list[DuplicateBlock]:
    """Pick the blocks to show: not one whose places lie mostly inside blocks shown already."""
    shown: list[DuplicateBlock] = []
    inside: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for block in blocks:
        known = sum(
            any(start <= place.start and place.end <= end for start, end in inside[place.path])
            for place in block.places
        )
        if 2 * known > len(block.places):
            continue
        shown.append(block)
        for place in block.places:
            inside[place.path].append((place.start, place.end))
        if len(shown) == limit:
            break
    return shown
