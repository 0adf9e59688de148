from __future__ import annotations

import random

import pytest

from examples.review.analysers import (
    analyse_complexity,
    analyse_docs,
    analyse_duplication,
    analyse_risks,
)
from examples.review.summary import (
    MAX_FINDINGS,
    MAX_NOT_ANALYSED,
    MAX_RANKED,
    join_reports,
    summarise,
)
from examples.review.tree import count_lines, language_of
from examples.review.types import RULE_BASED, FileReview, SourceFile, TreeReport

DOC = '"""Documented."""\n'
BRANCHES = "".join(f"    if x == {number}: pass\n" for number in range(19))
COPIED = "".join(f"name{number} = {number}\n" for number in range(20))


def review(path: str, text: str, **fields: object) -> FileReview:
    file = SourceFile.model_validate(
        {"path": path, "language": language_of(path), "text": text, "lines": count_lines(text), **fields}
    )
    return join_reports(
        analyse_complexity(file), analyse_risks(file), analyse_docs(file), analyse_duplication(file)
    )


def summary(**files: str) -> TreeReport:
    return summarise([review(name.replace("__", "."), text) for name, text in files.items()])


def test_a_clean_tree_is_told_so_and_who_says_it() -> None:
    report = summary(a__py=DOC + "x = 1\n")

    assert RULE_BASED == report.summariser
    assert ["Nothing stands out"] == [it.partition(" by")[0] for it in report.advice]
    assert (
        "1 file, 2 lines; of these 1 Python file analysed: no risky calls, "
        "100% of public names documented, 0.0% of the code duplicated."
    ) == report.headline
    assert [] == report.worst


def test_totals_add_up_over_all_files() -> None:
    report = summary(
        a__py=DOC + "def f(x):\n" + BRANCHES,
        b__py="eval(x)\nimport pickle; pickle.loads(x)\nassert x\nexec(y)  # nosec\n",
        c__md="# Title\n\ntext\n",
        d__py="def broken(:\n",
    )

    totals = report.totals
    assert (4, 2, 29, 25) == (totals.files, totals.analysed, totals.lines, totals.analysed_lines)
    assert (1, 20, 20.0) == (totals.functions, totals.max_complexity, totals.mean_complexity)
    assert (1, 1, 1, 1) == (totals.high, totals.medium, totals.low, totals.acknowledged)
    assert (3, 2) == (totals.public_names, totals.undocumented)
    assert [("Python", 3, 26), ("Markdown", 1, 3)] == [
        (it.language, it.files, it.lines) for it in report.languages
    ]


def test_files_of_other_languages_are_not_complained_about() -> None:
    report = summary(a__md="# x\n", b__py="def broken(:\n")

    assert [("b.py", "does not parse: line 1: invalid syntax")] == [
        (it.path, it.note) for it in report.not_analysed
    ]


def test_unread_files_of_any_language_are_listed() -> None:
    report = summarise([review("a.md", "", is_read=False, note="skipped: binary content")])

    assert ["skipped: binary content"] == [it.note for it in report.not_analysed]
    assert "none of them Python that parses" in report.headline


def test_the_worst_file_comes_first_with_its_reasons() -> None:
    report = summary(
        calm__py=DOC + "def f(): ...\n",
        risky__py=DOC + "eval(x)\nexec(x)\n",
        tangled__py=DOC + "def f(x):\n" + BRANCHES,
    )

    assert ["risky.py", "tangled.py", "calm.py"] == [it.path for it in report.worst]
    assert ["2 high-risk findings"] == report.worst[0].reasons
    assert ["f has complexity 20", "1 undocumented name"] == report.worst[1].reasons
    assert ["1 undocumented name"] == report.worst[2].reasons
    assert [20.0, 7.2, 0.2] == [it.score for it in report.worst]


def test_a_flood_of_small_findings_does_not_outrank_one_large() -> None:
    report = summary(many__py=DOC + "assert x\n" * 500, one__py=DOC + "eval(x)\n")

    assert ["one.py", "many.py"] == [it.path for it in report.worst]


def test_only_functions_worth_splitting_are_hotspots() -> None:
    long = "def long():\n" + "    x = 1\n" * 60
    deep = "def deep():\n" + "".join("    " * at + "if x:\n" for at in range(1, 6)) + "    " * 6 + "pass\n"
    report = summary(a__py=f"def f(x):\n{BRANCHES}\n{long}\n{deep}\ndef small(): ...\n")

    assert [("f", 20), ("deep", 6), ("long", 1)] == [(it.name, it.complexity) for it in report.hotspots]


def test_findings_are_listed_by_severity_and_place() -> None:
    report = summary(b__py="eval(x)\n", a__py="assert x\neval(x)\n", c__py="import pickle; pickle.load(x)\n")

    assert ["a.py:2", "b.py:1", "c.py:1", "a.py:1"] == [f"{it.path}:{it.line}" for it in report.findings]
    assert [("eval", "high", 2), ("unpickling", "medium", 1), ("assert", "low", 1)] == [
        (it.rule, it.severity, it.count) for it in report.rules
    ]


def test_copies_across_files_are_found_and_counted() -> None:
    report = summary(a__py=DOC + COPIED, b__py=COPIED, c__py=DOC)

    [block] = report.duplicates
    assert [("a.py", 2, 21), ("b.py", 1, 20)] == [(it.path, it.start, it.end) for it in block.places]
    assert (40, 1) == (report.totals.duplicated_lines, report.duplicate_count)


def test_advice_names_places_and_puts_urgent_things_first() -> None:
    report = summary(
        a__py="def broken(:\n",
        b__py="eval(x)\n",
        c__py="def f(x):\n" + BRANCHES,
        d__py=COPIED,
        e__py=COPIED + "exec(x)  # nosec\n",
    )

    assert [
        "Look at a.py first: it does not parse: line 1: invalid syntax.",
        "Check the 1 high-risk finding, begin with b.py:1: eval runs text as code.",
        "Split f (c.py:1): complexity 20 in 20 lines.",
        "Extract what is written 2 times: 20 lines at d.py:1.",
        "5 public names without a docstring; begin with the 2 in c.py.",
        "1 finding waved through by a `noqa` or `nosec` comment: are the reasons still true?",
    ] == report.advice


def test_the_barest_file_is_named_even_when_it_is_not_among_the_worst() -> None:
    files = [review(f"{number}.py", DOC + "eval(x)\n") for number in range(MAX_RANKED)]

    report = summarise([*files, review("bare.py", "def f(): ...\n")])

    assert "2 public names without a docstring; begin with the 2 in bare.py." in report.advice


def test_without_high_risks_the_medium_ones_come_up() -> None:
    report = summary(a__py=DOC + "import pickle; pickle.load(x)\n")

    assert report.advice[0].startswith("No high-risk findings; of the 1 of medium risk, begin with a.py:2")


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_reviews_does_not_matter(seed: int) -> None:
    reviews = [
        review(f"{number}.py", f"eval({number})\n" * (number % 3) + COPIED[: number * 9])
        for number in range(20)
    ]
    shuffled = random.Random(seed).sample(reviews, len(reviews))

    assert summarise(reviews) == summarise(shuffled)


def test_lists_are_cut_and_their_counts_are_not() -> None:
    broken = [review(f"broken{number}.py", "def (\n") for number in range(MAX_NOT_ANALYSED + 5)]
    risky = [review(f"{number}.py", "eval(x)\n" * 10) for number in range(MAX_FINDINGS)]

    report = summarise(broken + risky)

    assert (MAX_FINDINGS, 10 * MAX_FINDINGS) == (len(report.findings), report.finding_count)
    assert (MAX_NOT_ANALYSED, MAX_NOT_ANALYSED + 5) == (len(report.not_analysed), report.not_analysed_count)
    assert MAX_RANKED == len(report.worst)


def test_no_reviews_at_all_make_a_report_too() -> None:
    assert "0 files, none of them Python that parses: lines were counted only." == summarise([]).headline


def test_the_report_survives_the_wire() -> None:
    report = summary(a__py="eval(x)\n" + COPIED, b__py=COPIED, c__py="def (\n")

    assert report == TreeReport.model_validate_json(report.model_dump_json())
