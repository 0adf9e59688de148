from __future__ import annotations

import ast
from itertools import chain, pairwise
from textwrap import indent

from hypothesis import given, settings
from hypothesis import strategies as st

from examples.review.duplication import PADDING, WINDOW_LINES, find_duplicates, fingerprint, telling_blocks
from examples.review.types import DuplicateBlock, Fingerprint, Place


def lines(count: int, name: str = "x") -> str:
    return "".join(f"{name}{number} = {number}\n" for number in range(count))


def prints(text: str) -> list[Fingerprint]:
    return fingerprint(text, ast.parse(text))


def duplicates(**files: str) -> tuple[list[DuplicateBlock], dict[str, int]]:
    return find_duplicates({name: prints(text) for name, text in files.items()})


def places(block: DuplicateBlock) -> list[tuple[str, int, int]]:
    return [(place.path, place.start, place.end) for place in block.places]


def test_a_file_shorter_than_a_window_has_no_fingerprint() -> None:
    assert [] == prints(lines(WINDOW_LINES - 1))
    assert 1 == len(prints(lines(WINDOW_LINES)))


def test_a_copied_block_is_found_with_its_exact_lines() -> None:
    blocks, copied = duplicates(a=lines(3, "a") + lines(10), b=lines(10) + lines(5, "b"))

    assert [[("a", 4, 13), ("b", 1, 10)]] == [places(block) for block in blocks]
    assert [10] == [block.lines for block in blocks]
    assert {"a": 10, "b": 10} == copied


def test_indentation_comments_docstrings_imports_and_blank_lines_do_not_hide_a_copy() -> None:
    plain = lines(8)
    dressed = '"""Doc.\n\nMore.\n"""\nimport os\nclass A:\n    """Doc."""\n\n    # why\n' + indent(
        plain, "    "
    )

    blocks, _ = duplicates(a=plain, b=dressed.replace("x3 =", "# so\n    x3  ="))

    assert [[("a", 1, 8), ("b", 10, 18)]] == [places(block) for block in blocks]


def test_imports_shared_by_two_files_are_no_copies() -> None:
    imports = "from a import (\n" + "".join(f"    name{number},\n" for number in range(12)) + ")\n"

    assert ([], {}) == duplicates(a=imports, b=imports)


def test_tables_of_the_same_few_lines_are_no_copies() -> None:
    table = "x = [\n" + "    None,\n" * 40 + "]\n"

    assert ([], {}) == duplicates(a=table, b=table)


def test_a_copy_within_one_file_is_found() -> None:
    blocks, copied = duplicates(a=lines(7) + lines(4, "gap") + lines(7))

    assert [[("a", 1, 7), ("a", 12, 18)]] == [places(block) for block in blocks]
    assert {"a": 14} == copied


def test_copies_that_would_overlap_are_kept_apart() -> None:
    blocks, _ = duplicates(a=lines(5) * 4)

    assert blocks
    for block in blocks:
        assert all(before[2] < after[1] for before, after in pairwise(places(block)))


def test_copies_that_touch_do_not_overlap() -> None:
    blocks, copied = duplicates(a=lines(6) * 3)

    for block in blocks:
        spans = places(block)
        assert all(before[2] < after[1] for before, after in pairwise(spans))
    assert {"a": 18} == copied


def test_a_part_with_more_copies_is_a_block_of_its_own() -> None:
    whole = lines(8, "p") + lines(7, "q") + lines(8, "r")

    blocks, copied = duplicates(a=whole, b=whole, c=lines(7, "q"))

    assert [("a", 1, 23), ("b", 1, 23)] in [places(block) for block in blocks]
    assert [("a", 9, 15), ("b", 9, 15), ("c", 1, 7)] in [places(block) for block in blocks]
    assert {"a": 23, "b": 23, "c": 7} == copied


def test_a_file_between_two_long_copies_does_not_cut_them() -> None:
    whole = lines(8, "p") + lines(7, "q") + lines(8, "r")

    blocks, _ = duplicates(a=lines(7, "q"), b=whole, c=whole)

    assert [("b", 1, 23), ("c", 1, 23)] == places(blocks[0])


def test_the_most_repeated_text_comes_first() -> None:
    blocks, _ = duplicates(
        a=lines(10), b=lines(10), c=lines(6, "y"), d=lines(6, "y") + lines(2), e=lines(6, "y")
    )

    assert [3, 2] == [len(block.places) for block in blocks]


def test_blocks_mostly_inside_shown_ones_are_not_shown() -> None:
    def block(*spans: tuple[str, int, int]) -> DuplicateBlock:
        spots = [Place(path=path, start=start, end=end) for path, start, end in spans]
        return DuplicateBlock(lines=spans[0][2] - spans[0][1] + 1, places=spots)

    whole = block(("a", 1, 50), ("b", 1, 50))
    inside = block(("a", 10, 30), ("b", 10, 30), ("c", 1, 21))
    other = block(("a", 60, 70), ("c", 60, 70))

    assert [whole, other] == telling_blocks([whole, inside, other], 5)
    assert [whole] == telling_blocks([whole, inside, other], 1)


CHUNKS = (range(7), range(4, 12), range(20, 23), range(30, 36), [40, 41] * 4)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(CHUNKS), max_size=6).map(lambda it: list(chain(*it))), max_size=4))
def test_whatever_the_files_the_counts_hold_together(files: list[list[int]]) -> None:
    texts = {f"f{at}": "".join(f"v{number} = 1\n" for number in file) for at, file in enumerate(files)}

    blocks, copied = find_duplicates({path: prints(text) for path, text in texts.items()})

    for block in blocks:
        contents = {tuple(texts[p.path].split("\n")[p.start - 1 : p.end]) for p in block.places}
        assert len(block.places) >= 2
        assert 1 == len(contents)
    for path, count in copied.items():
        assert 0 < count <= texts[path].count("\n")
    prints_of = {path: prints(text) for path, text in texts.items()}
    assert {path for path in texts if _has_copy(path, prints_of)} == set(copied)


def _has_copy(path: str, files: dict[str, list[Fingerprint]]) -> bool:
    """Whether some window of a file occurs again, not overlapping itself."""
    others = [(other, it) for other, found in files.items() for it in found]
    return any(
        mine.digest == it.digest and (path != other or mine.end < it.start or it.end < mine.start)
        for mine in files[path]
        if not mine.digest.startswith(PADDING)
        for other, it in others
    )
