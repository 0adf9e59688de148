from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.review.tree import (
    MAX_FILE_BYTES,
    count_lines,
    decode_path,
    decode_text,
    encode_path,
    list_tree,
    read_source,
)


def write(root: Path, name: str, data: bytes | str = b"x = 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_the_files_of_a_tree_are_listed_sorted_and_relative(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/README.md", "Makefile", "a/data.bin", ".github/ci.yml"):
        write(tmp_path, name)

    listing = list_tree(tmp_path)

    assert (".github/ci.yml", "Makefile", "a/README.md", "a/z.py", "b.py") == listing.paths
    assert tmp_path.resolve() == listing.root
    assert () == listing.left_out()


def test_environments_caches_and_build_output_are_passed_over(tmp_path: Path) -> None:
    for name in (
        ".venv/a.py",
        ".git/a.py",
        "__pycache__/a.py",
        "build/a.py",
        "node_modules/a.js",
        "x.egg-info/a.py",
    ):
        write(tmp_path, name)
    write(tmp_path, "my_env/pyvenv.cfg")
    write(tmp_path, "my_env/lib/a.py")
    write(tmp_path, "src/a.py")

    assert ("src/a.py",) == list_tree(tmp_path).paths


def test_folders_to_skip_are_named_by_their_path(tmp_path: Path) -> None:
    for name in ("a/copy/x.py", "copy/x.py", "a/x.py"):
        write(tmp_path, name)

    assert ("a/x.py", "copy/x.py") == list_tree(tmp_path, skip={"a/copy"}).paths


def test_symbolic_links_are_not_followed_so_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "a/x.py")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.py").symlink_to(tmp_path / "a" / "x.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")

    assert ("a/x.py",) == list_tree(tmp_path).paths


def test_only_regular_files_are_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()

    assert () == list_tree(tmp_path).paths


def test_a_single_file_is_reviewed_alone(tmp_path: Path) -> None:
    write(tmp_path, "other.py")
    file = write(tmp_path, "only.py")

    listing = list_tree(file)

    assert (tmp_path.resolve(), ("only.py",)) == (listing.root, listing.paths)


def test_a_tree_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_tree(tmp_path / "nowhere")


def test_what_is_beyond_the_limit_is_said(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"{number}.py")

    listing = list_tree(tmp_path, max_files=2)

    assert ("0.py", "1.py") == listing.paths
    assert ("3 more files, beyond the limit that was asked for",) == listing.left_out()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_can_not_be_read_are_said(tmp_path: Path) -> None:
    write(tmp_path, "shut/a.py")
    (tmp_path / "shut").chmod(0)
    try:
        assert ("folders that can't be read: shut",) == list_tree(tmp_path).left_out()
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_paths_are_cut_into_slices(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"{number}.py")

    assert [2, 2, 1] == [len(paths) for paths in list_tree(tmp_path).slices(2)]


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("plain-name_1.py", "plain-name_1.py"),
        ("ünïcode 文.py", "ünïcode 文.py"),
        ("100%25.py", "100%.py"),
        ("a%0Ab.py", "a\nb.py"),
        ("%1B[31m.py", "\x1b[31m.py"),
        ("%E2%80%AEyp.py", "\u202eyp.py"),
        ("caf%E9.py", os.fsdecode(b"caf\xe9.py")),
        ("<b>&.py", "<b>&.py"),
    ],
)
def test_hostile_names_become_printable_and_come_back(expected: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, name, "x = 1\n")

    [path] = list_tree(tmp_path).paths
    source = read_source(str(tmp_path), path)

    assert expected == path
    assert name == decode_path(path)
    assert ("x = 1\n", "") == (source.text, source.note)


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_any_name_survives_being_written_as_text(data: bytes) -> None:
    name = os.fsdecode(data)

    path = encode_path(name)

    assert path.isprintable()
    assert name == decode_path(path)
    path.encode("utf-8")


@pytest.mark.parametrize(
    ("expected", "data", "python"),
    [
        (("x = 'é'\n", ""), "x = 'é'\n".encode(), True),
        (("x\n", ""), b"\xef\xbb\xbfx\n", True),
        (("# coding: latin-1\n'é'", ""), b"# coding: latin-1\n'\xe9'", True),
        (("'é'", "not valid UTF-8: read as Latin-1"), b"'\xe9'", True),
        (("'é'", "not valid UTF-8: read as Latin-1"), b"'\xe9'", False),
        (("# coding: nonsense\n", ""), b"# coding: nonsense\n", True),
        (("# coding: hex\n", "not valid HEX: read as Latin-1"), b"# coding: hex\n", True),
        (("# coding: raw_unicode_escape\n'?'", ""), b"# coding: raw_unicode_escape\n'\\ud800'", True),
        (("a\nb\nc\n", ""), b"a\r\nb\rc\n", True),
        (("hé", ""), "hé".encode("utf-16"), False),
        (("", ""), b"", True),
    ],
)
def test_text_is_decoded_as_declared_or_as_best_can_be(
    expected: tuple[str, str], data: bytes, python: bool
) -> None:
    assert expected == decode_text(data, python=python)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_text_that_json_can_carry(data: bytes, python: bool) -> None:
    text, _ = decode_text(data, python=python)

    text.encode("utf-8")
    assert "\r" not in text


def test_a_huge_file_is_noted_and_not_read(tmp_path: Path) -> None:
    write(tmp_path, "big.py", b"#" * (MAX_FILE_BYTES + 1))

    source = read_source(str(tmp_path), "big.py")

    assert (False, "", 0) == (source.is_read, source.text, source.lines)
    assert "skipped: 1.0 MB, more than 1 MB" == source.note


def test_a_binary_file_is_noted_and_not_read(tmp_path: Path) -> None:
    write(tmp_path, "x.py", b"x\0y")

    assert (False, "skipped: binary content") == (
        read_source(str(tmp_path), "x.py").is_read,
        read_source(str(tmp_path), "x.py").note,
    )


def test_a_file_that_went_away_is_noted(tmp_path: Path) -> None:
    source = read_source(str(tmp_path), "gone.py")

    assert (False, "could not be read: No such file or directory") == (source.is_read, source.note)


@pytest.mark.parametrize(("expected", "text"), [(0, ""), (1, "a"), (1, "a\n"), (2, "a\nb"), (3, "\n\n\n")])
def test_lines_are_counted_as_an_editor_does(expected: int, text: str) -> None:
    assert expected == count_lines(text)
