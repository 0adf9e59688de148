from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from examples.review.measure import RunFacts
from examples.review.page import render_html
from examples.review.report import render_text, timing_line, write_reports
from examples.review.types import (
    DuplicateBlock,
    Hotspot,
    LanguageTotal,
    LocatedFinding,
    NotAnalysed,
    Place,
    RankedFile,
    RuleTotal,
    Totals,
    TreeReport,
)

HOSTILE = "<script>alert('x')</script>[bold]&\"' onload=\"y.py"
VOID = frozenset({"meta", "br", "wbr"})

FACTS = RunFacts(
    root="/srv/project",
    listed=3,
    started_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    setup_s=4.2,
    work_s=2.0,
    counts={"ReviewRequest": 1, "SourceFile": 3, "FileReview": 3, "TreeReport": 1},
    latency_p50_s=0.25,
    latency_p95_s=1.5,
)

TOTALS = Totals(
    files=3,
    analysed=2,
    lines=3000,
    analysed_lines=2000,
    functions=40,
    mean_complexity=2.5,
    max_complexity=21,
    high=1,
    medium=0,
    low=61,
    acknowledged=2,
    public_names=50,
    undocumented=5,
    duplicated_lines=90,
)


def tree_report(path: str = "src/app.py") -> TreeReport:
    finding = LocatedFinding(
        path=path,
        rule="eval",
        severity="high",
        line=7,
        message=f"eval runs text as code: {path}",
        snippet=path,
    )
    low = finding.model_copy(update={"rule": "assert", "severity": "low", "line": 9})
    places = [Place(path=path, start=at, end=at + 9) for at in range(1, 90, 10)]
    return TreeReport(
        headline=f"3 files, among them {path}.",
        advice=[f"Check {path}."],
        totals=TOTALS,
        languages=[LanguageTotal(language="Python", files=2, lines=2000)]
        + [LanguageTotal(language=f"L{at}", files=1, lines=125) for at in range(8)],
        worst=[
            RankedFile(
                path=path,
                score=12.5,
                lines=100,
                max_complexity=21,
                findings=1,
                missing_docs=5,
                duplicated_lines=90,
                reasons=["1 high-risk finding", f"{path} has complexity 21"],
            )
        ],
        hotspots=[Hotspot(path=path, name=path, line=3, length=80, complexity=21, nesting=5)],
        rules=[RuleTotal(rule="eval", severity="high", count=1)],
        findings=[finding, low],
        finding_count=62,
        duplicates=[DuplicateBlock(lines=10, places=places)],
        duplicate_count=4,
        not_analysed=[NotAnalysed(path=path, note=f"does not parse: {path}")],
        not_analysed_count=1,
    )


def empty_report() -> TreeReport:
    return TreeReport(
        headline="0 files.",
        advice=["Nothing stands out."],
        totals=Totals(**dict.fromkeys(Totals.model_fields, 0)),
        languages=[],
        worst=[],
        hotspots=[],
        rules=[],
        findings=[],
        finding_count=0,
        duplicates=[],
        duplicate_count=0,
        not_analysed=[],
        not_analysed_count=0,
    )


class Page(HTMLParser):
    """Collects what a browser would make of a page, and fails on tags out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert [] == self._open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def test_the_page_is_well_formed_and_tells_all() -> None:
    page = Page(render_html(tree_report(), FACTS))

    for part in (
        "rule-based summary, no model configured",
        "3 files, among them src/app.py.",
        "src/app.py:7",
        "eval runs text as code",
        "src/app.py:1-10",
        "and 3 more",
        "The first 2 of 62 findings.",
        "The first 1 of 4 blocks.",
        "does not parse: src/app.py",
        "3 SourceFile",
        "90%",
        "4.5%",
        "2026-01-02 03:04 UTC",
    ):
        assert part in page.text


def test_the_page_loads_and_runs_nothing() -> None:
    text = render_html(tree_report(), FACTS)
    page = Page(text)

    assert set() == {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert set() == {"src", "href", "action"} & {name for name, _ in page.attributes}
    assert "default-src 'none'; style-src 'unsafe-inline'" in [value for _, value in page.attributes]
    assert all(word not in text for word in ("http:", "https:", "@import", "url("))
    assert "prefers-color-scheme: dark" in text


def test_hostile_text_stays_text() -> None:
    report = tree_report(HOSTILE)
    plain = Page(render_html(tree_report(), FACTS))

    page = Page(render_html(report, replace(FACTS, root=HOSTILE, left_out=(HOSTILE,))))
    with_note = Page(render_html(tree_report(), replace(FACTS, left_out=("x",))))

    assert with_note.tags == page.tags
    assert len(with_note.attributes) == len(page.attributes)
    assert HOSTILE in page.text
    assert "script" not in plain.tags


def test_an_empty_review_makes_a_page_and_a_text_too() -> None:
    page = Page(render_html(empty_report(), replace(FACTS, counts={})))
    text = render_text(empty_report(), replace(FACTS, counts={}))

    assert "None of the rules fired." in page.text
    assert "No block of six lines occurs twice." in page.text
    assert "Nothing stands out." in text


def test_the_text_tells_all_within_its_width() -> None:
    text = render_text(tree_report(), FACTS)

    for part in (
        "Review of /srv/project",
        "rule-based summary, no model configured",
        "1. Check src/app.py.",
        "[eval] eval runs text as code",
        "src/app.py:7",
        "and 60 more findings",
        "and 3 more blocks",
        "does not parse: src/app.py",
    ):
        assert part in text
    assert all(len(line) <= 110 and line == line.rstrip() for line in text.split("\n"))
    assert "\x1b" not in text


def test_markup_in_the_tree_is_not_markup_in_the_text() -> None:
    text = render_text(tree_report("[bold red]x[/].py"), FACTS)

    assert "[bold red]x[/].py:7" in text


def test_what_was_left_out_is_said() -> None:
    facts = replace(FACTS, left_out=("7 more files",))

    assert "7 more files" in render_text(empty_report(), facts)
    assert "7 more files" in render_html(empty_report(), facts)


def test_timing_tells_throughput_and_latency() -> None:
    assert (
        "3 files, 8 artifacts in 2.0 s (1.5 files/s, 4 artifacts/s); "
        "read to joined p50 250 ms, p95 1.5 s; set-up 4.2 s"
    ) == timing_line(FACTS)


def test_reports_are_written_as_page_text_and_data(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"

    page = write_reports(folder, tree_report(HOSTILE), FACTS)

    assert folder.resolve() / "report.html" == page
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "Review of /srv/project" in (folder / "report.txt").read_text(encoding="utf-8")
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert tree_report(HOSTILE) == TreeReport.model_validate(data)


@pytest.mark.parametrize(("tone", "high"), [("bad", 1), ("good", 0)])
def test_tiles_are_toned_by_what_they_say(tone: str, high: int) -> None:
    report = tree_report()
    totals = report.totals.model_copy(update={"high": high})

    assert f'<div class="tile {tone}"><span class="value">{high}</span>' in render_html(
        report.model_copy(update={"totals": totals}), FACTS
    )
