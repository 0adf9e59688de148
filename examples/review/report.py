"""The review as a text for the terminal, and all reports as files.

Everything that comes from the reviewed tree is shown as plain `Text`: a file name or a
line of code that looks like markup is just that, a name or a line of code.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from examples.review.advice import duplicated_share, plural
from examples.review.duplication import WINDOW_LINES
from examples.review.measure import RunFacts
from examples.review.page import render_html
from examples.review.types import Severity, TreeReport

TEXT_WIDTH = 110
SEVERITY_STYLE: dict[Severity, str] = {"high": "bold red", "medium": "yellow", "low": "dim"}
MAX_TEXT_FINDINGS = 12
MAX_TEXT_ROWS = 8


def write_reports(folder: Path, report: TreeReport, facts: RunFacts) -> Path:
    """Write `report.html`, `report.txt` and `report.json` into `folder`.

    Returns:
        The absolute path of the HTML page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder.resolve() / "report.html"
    page.write_text(render_html(report, facts), encoding="utf-8")
    (folder / "report.txt").write_text(render_text(report, facts), encoding="utf-8")
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return page


def render_text(report: TreeReport, facts: RunFacts) -> str:
    """Render the report as plain text, without colours."""
    out = io.StringIO()
    console = Console(file=out, width=TEXT_WIDTH, color_system=None, force_terminal=False, highlight=False)
    console.print(text_report(report, facts))
    console.print(Text(timing_line(facts)))
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def timing_line(facts: RunFacts) -> str:
    """Say how fast it went, in one line."""
    return (
        f"{facts.files:,} files, {facts.artifacts:,} artifacts in {facts.work_s:.1f} s "
        f"({facts.files_per_s:,.1f} files/s, {facts.artifacts_per_s:,.0f} artifacts/s); "
        f"read to joined p50 {_duration(facts.latency_p50_s)}, p95 {_duration(facts.latency_p95_s)}; "
        f"set-up {facts.setup_s:.1f} s"
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def text_report(report: TreeReport, facts: RunFacts) -> Group:
    """Lay the report out for a terminal."""
    parts: list[RenderableType] = [
        "",
        Rule(Text(f"Review of {facts.root}"), style="cyan"),
        Text(report.headline, style="bold"),
        Text(f"Written by: {report.summariser}", style="dim"),
        "",
        _advice(report),
        _numbers(report),
    ]
    parts += [part for part in (_worst(report), _hotspots(report), _findings(report)) if part]
    parts += [part for part in (_duplicates(report), _not_analysed(report, facts)) if part]
    return Group(*parts)


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(
        title=Text(title),
        title_style="bold cyan",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="dim",
    )
    for name, kind in columns:
        if kind == "number":
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", ratio=1 if kind == "wide" else None)
    return table


def _row(table: Table, *cells: object, style: str = "") -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells), style=style)


def _more(shown: int, total: int, noun: str) -> Text:
    return Text(f"  and {total - shown:,} more {noun}\n" if total > shown else "", style="dim")


def _with_more(table: Table, shown: int, total: int, noun: str) -> Group:
    return Group(table, _more(shown, total, noun)) if total > shown else Group(table)


def _advice(report: TreeReport) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for number, advice in enumerate(report.advice, start=1):
        _row(table, f"{number}.", advice)
    return Group(Text("What to do next", style="bold cyan"), Padding(table, (1, 0, 1, 1)))


def _numbers(report: TreeReport) -> RenderableType:
    totals = report.totals
    table = _table("In numbers", ("", ""), ("", "number"), ("", ""))
    table.show_header = False
    languages = ", ".join(f"{it.language} {it.files:,}" for it in report.languages[:6])
    rows: Iterable[tuple[str, str, str]] = (
        ("files", f"{totals.files:,}", languages),
        ("lines", f"{totals.lines:,}", f"{totals.analysed_lines:,} of them in analysed Python files"),
        (
            "functions",
            f"{totals.functions:,}",
            f"complexity {totals.mean_complexity:.1f} on average, {totals.max_complexity} at most",
        ),
        (
            "risk findings",
            f"{report.finding_count:,}",
            f"{totals.high} high, {totals.medium} medium, {totals.low} low; "
            f"{totals.acknowledged} more acknowledged in the code",
        ),
        (
            "documented",
            f"{totals.documented_share:.0%}",
            f"{totals.undocumented:,} of {totals.public_names:,} public names have no docstring",
        ),
        (
            "duplicated",
            f"{duplicated_share(report):.1%}",
            f"{totals.duplicated_lines:,} lines in {plural(report.duplicate_count, 'block')}, each of "
            f"{WINDOW_LINES} lines or more",
        ),
    )
    for row in rows:
        _row(table, *row)
    return table


def _worst(report: TreeReport) -> RenderableType | None:
    if not report.worst:
        return None
    columns = (("score", "number"), ("file", ""), ("lines", "number"), ("because", "wide"))
    table = _table("Files that need attention first", *columns)
    for ranked in report.worst[:MAX_TEXT_ROWS]:
        _row(table, f"{ranked.score:.1f}", ranked.path, f"{ranked.lines:,}", ", ".join(ranked.reasons[:3]))
    return table


def _hotspots(report: TreeReport) -> RenderableType | None:
    if not report.hotspots:
        return None
    columns = (("complexity", "number"), ("lines", "number"), ("nesting", "number"))
    table = _table("Functions worth splitting", *columns, ("function", ""), ("where", ""))
    for spot in report.hotspots[:MAX_TEXT_ROWS]:
        _row(table, spot.complexity, spot.length, spot.nesting, spot.name, f"{spot.path}:{spot.line}")
    return table


def _findings(report: TreeReport) -> RenderableType | None:
    if not report.findings:
        return None
    table = _table("Risk findings", ("severity", ""), ("where", ""), ("what", "wide"))
    for finding in report.findings[:MAX_TEXT_FINDINGS]:
        _row(
            table,
            Text(finding.severity, style=SEVERITY_STYLE[finding.severity]),
            f"{finding.path}:{finding.line}",
            f"[{finding.rule}] {finding.message}",
        )
    shown = min(len(report.findings), MAX_TEXT_FINDINGS)
    return _with_more(table, shown, report.finding_count, "findings")


def _duplicates(report: TreeReport) -> RenderableType | None:
    if not report.duplicates:
        return None
    table = _table("Duplicated code", ("lines", "number"), ("places", "number"), ("where", "wide"))
    for block in report.duplicates[:MAX_TEXT_ROWS]:
        places = [f"{place.path}:{place.start}-{place.end}" for place in block.places[:3]]
        if len(block.places) > 3:
            places.append(f"and {len(block.places) - 3} more")
        _row(table, block.lines, len(block.places), "\n".join(places))
    shown = min(len(report.duplicates), MAX_TEXT_ROWS)
    return _with_more(table, shown, report.duplicate_count, "blocks")


def _not_analysed(report: TreeReport, facts: RunFacts) -> RenderableType | None:
    if not report.not_analysed and not facts.left_out:
        return None
    table = _table("Not analysed", ("file", ""), ("why", "wide"))
    for item in report.not_analysed[:MAX_TEXT_ROWS]:
        _row(table, item.path, item.note)
    for note in facts.left_out:
        _row(table, "-", note)
    shown = min(len(report.not_analysed), MAX_TEXT_ROWS)
    return _with_more(table, shown, report.not_analysed_count, "files")
