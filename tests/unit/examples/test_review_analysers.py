from __future__ import annotations

import threading
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from examples.review.analysers import (
    analyse_complexity,
    analyse_docs,
    analyse_duplication,
    analyse_risks,
)
from examples.review.tree import count_lines
from examples.review.types import DuplicationReport, FileReport, SourceFile

ANALYSERS = (analyse_complexity, analyse_risks, analyse_docs, analyse_duplication)


def source(text: str, path: str = "app.py", language: str = "Python", **fields: object) -> SourceFile:
    return SourceFile.model_validate(
        {"path": path, "language": language, "text": text, "lines": count_lines(text), **fields}
    )


def reports(file: SourceFile) -> list[FileReport]:
    return [analyse(file) for analyse in ANALYSERS]


def test_a_good_file_is_analysed_by_all() -> None:
    found = reports(source("def f(): ...\n"))

    assert [("app.py", True, "")] * 4 == [(it.path, it.analysed, it.note) for it in found]


@pytest.mark.parametrize(
    ("expected", "file"),
    [
        ("not analysed: Markdown is only counted", source("# x", "a.md", "Markdown")),
        ("skipped: binary content", source("", is_read=False, note="skipped: binary content")),
        ("does not parse: line 2: '(' was never closed", source("x = 1\nf(\n")),
        ("does not parse: line 1: expected ':'", source("class A\n")),
    ],
)
def test_what_is_not_analysed_says_why(expected: str, file: SourceFile) -> None:
    assert [(False, expected)] * 4 == [(it.analysed, it.note) for it in reports(file)]


@pytest.mark.parametrize("text", ["x\0y", "(" * 5000, "-" * 200_000 + "1", "\x00"])
def test_text_that_breaks_parsers_breaks_nothing(text: str) -> None:
    assert {False} == {it.analysed for it in reports(source(text))}
    assert all(it.note.startswith("does not parse") for it in reports(source(text)))


def test_long_expressions_are_walked_without_recursion() -> None:
    found = reports(source("x = " + " + ".join(["a.b"] * 800) + "\n"))

    assert {True} == {it.analysed for it in found}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "\ufeff"])
def test_empty_files_are_fine(text: str) -> None:
    found = reports(source(text))

    assert [] == analyse_complexity(source(text)).functions
    assert 4 == len(found)


def test_a_note_of_the_reader_is_kept() -> None:
    file = source("x = 1\n", note="not valid UTF-8: read as Latin-1")

    assert [file.note] * 4 == [it.note for it in reports(file)]


def test_test_code_is_not_asked_for_docstrings() -> None:
    report = analyse_docs(source("def test_x(): ...\n", "tests/test_app.py"))

    assert (True, 0, []) == (report.analysed, report.public, report.missing)
    assert analyse_complexity(source("", "tests/test_app.py")).is_test


def test_warnings_of_the_reviewed_code_stay_with_it() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        [*_] = reports(source("x = '\\d' is 1\n"))

    assert [] == seen


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    file = source("x = '\\d'\n" * 200)
    threads = [threading.Thread(target=lambda: [reports(file) for _ in range(5)]) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert before == list(warnings.filters)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_raises_and_all_reports_survive_the_wire(text: str) -> None:
    for report in reports(source(text)):
        assert report == round_trip(report)


WORDS = (
    "if",
    "for",
    "while",
    "def",
    "class",
    "lambda",
    "match",
    "(",
    ")",
    "[",
    ":",
    "=",
    "x",
    "1",
    ",",
    "\n",
    "\t",
)


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_nothing_that_looks_like_python_raises(words: list[str]) -> None:
    assert 4 == len(reports(source(" ".join(words))))


def test_fingerprints_are_small_on_the_wire() -> None:
    text = "".join(f"value_{number} = {number}\n" for number in range(100))

    report = analyse_duplication(source(text))

    assert 95 == len(report.fingerprints)
    assert len(report.model_dump_json()) < 40 * 95
    assert report == DuplicationReport.model_validate_json(report.model_dump_json())


def round_trip(report: BaseModel) -> BaseModel:
    return type(report).model_validate_json(report.model_dump_json())
