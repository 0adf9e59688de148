"""The review as one HTML page: no scripts, nothing loaded from elsewhere.

All text from the reviewed tree goes through `html.escape`, and a content policy in the
page forbids it to run or load anything even if that were forgotten.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.review.advice import duplicated_share, plural
from examples.review.measure import RunFacts
from examples.review.types import SEVERITIES, DuplicateBlock, LocatedFinding, TreeReport

STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
PIPELINE = (
    (("splitter", "SourceFile"),),
    (
        ("complexity", "ComplexityReport"),
        ("risks", "RiskReport"),
        ("docs", "DocsReport"),
        ("duplication", "DuplicationReport"),
    ),
    (("reviewer", "FileReview"),),
    (("summariser", "TreeReport"),),
)
LANGUAGE_COLOURS = 6


def render_html(report: TreeReport, facts: RunFacts) -> str:
    """Render the whole page."""
    sections = (
        _header(report, facts),
        _tiles(report),
        _advice(report),
        _languages(report),
        _worst(report),
        _hotspots(report),
        _findings(report),
        _duplicates(report),
        _not_analysed(report, facts),
        _run(facts),
    )
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>Review of {_text(facts.root)}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
            "</head>",
            "<body>",
            *(section for section in sections if section),
            "</body>",
            "</html>",
            "",
        )
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _code(value: object) -> str:
    """Mark up a name or place; long paths may break after a slash."""
    return f"<code>{_text(value).replace('/', '/<wbr>')}</code>"


def _section(title: str, body: str, *, note: str = "") -> str:
    lead = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{lead}{body}\n</section>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """Build a table from cells that are HTML already; `numeric` columns align right."""

    def cell(tag: str, at: int, content: str) -> str:
        return f'<{tag} class="n">{content}</{tag}>' if at in numeric else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", at, heading) for at, heading in enumerate(headings))
    body = "\n".join(
        f"<tr>{''.join(cell('td', at, content) for at, content in enumerate(row))}</tr>" for row in rows
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cut(shown: int, total: int, noun: str) -> str:
    return f"The first {shown:,} of {total:,} {noun}." if total > shown else ""


def _header(report: TreeReport, facts: RunFacts) -> str:
    when = facts.started_at.strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<header>\n<p class="kicker">flock_ray code review</p>\n<h1>{_text(facts.root)}</h1>\n'
        f'<p class="headline">{_text(report.headline)}</p>\n'
        f'<p class="note">{when} · {_text(report.summariser)}</p>\n</header>'
    )


def _tiles(report: TreeReport) -> str:
    totals = report.totals
    tiles = (
        (f"{totals.files:,}", "files", f"{totals.analysed:,} analysed", ""),
        (f"{totals.lines:,}", "lines", f"{totals.analysed_lines:,} analysed", ""),
        (
            f"{totals.high + totals.medium:,}",
            "risks to check",
            f"{totals.high} high, {totals.medium} medium; not counting {totals.low:,} low",
            "bad" if totals.high else "warn" if totals.medium else "good",
        ),
        (
            f"{totals.max_complexity}",
            "top complexity",
            f"{totals.mean_complexity:.1f} on average",
            "warn" if totals.max_complexity > 20 else "good",
        ),
        (
            f"{totals.documented_share:.0%}",
            "documented",
            f"{totals.undocumented:,} of {totals.public_names:,} names without",
            "good" if totals.documented_share >= 0.9 else "warn",
        ),
        (
            f"{duplicated_share(report):.1%}",
            "duplicated",
            f"{totals.duplicated_lines:,} lines",
            "good" if duplicated_share(report) < 0.05 else "warn",
        ),
    )
    return '<div class="tiles">\n' + "\n".join(_tile(*tile) for tile in tiles) + "\n</div>"


def _tile(value: str, label: str, detail: str, tone: str) -> str:
    return (
        f'<div class="tile {tone}"><span class="value">{value}</span>'
        f'<span class="label">{label}</span><span class="detail">{detail}</span></div>'
    )


def _advice(report: TreeReport) -> str:
    items = "\n".join(f"<li>{_text(advice)}</li>" for advice in report.advice)
    return _section("What to do next", f'<ol class="advice">\n{items}\n</ol>')


def _languages(report: TreeReport) -> str:
    """Draw one bar, a piece for each language, and say the shares below it in words."""
    total = sum(it.lines for it in report.languages)
    if not total:
        return ""
    pieces, legend = [], []
    for at, language in enumerate(report.languages):
        colour = f"c{min(at, LANGUAGE_COLOURS)}"
        share = language.lines / total
        pieces.append(f'<span class="{colour}" style="width:{share:.3%}"></span>')
        legend.append(
            f'<li><span class="dot {colour}"></span>{_text(language.language)} '
            f"<b>{share:.1%}</b> <small>{plural(language.lines, 'line')}, "
            f"{plural(language.files, 'file')}</small></li>"
        )
    bar = f'<div class="bar" aria-hidden="true">{"".join(pieces)}</div>'
    return _section("Languages", f'{bar}\n<ul class="legend">\n{"".join(legend)}\n</ul>', note=ONLY_PYTHON)


ONLY_PYTHON = "Python is analysed; of other languages the lines are counted."
SCORE_NOTE = (
    "The score adds up risks (10 for high, 4 for medium, 0.5 for low), complexity above 10, length above "
    "60 lines, deep nesting, copied lines and missing docstrings. It ranks; it does not grade."
)


def _worst(report: TreeReport) -> str:
    if not report.worst:
        return ""
    top = report.worst[0].score
    rows = (
        (
            f'<span class="score"><span style="width:{ranked.score / top:.1%}"></span></span>'
            f"<b>{ranked.score:.1f}</b>",
            _code(ranked.path),
            f"{ranked.lines:,}",
            _text(", ".join(ranked.reasons)),
        )
        for ranked in report.worst
    )
    table = _table(("score", "file", "lines", "because"), rows, numeric=(0, 2))
    return _section("Files that need attention first", table, note=SCORE_NOTE)


def _hotspots(report: TreeReport) -> str:
    if not report.hotspots:
        return ""
    rows = (
        (
            f"<b>{spot.complexity}</b>",
            f"{spot.length}",
            f"{spot.nesting}",
            _code(spot.name),
            _code(f"{spot.path}:{spot.line}"),
        )
        for spot in report.hotspots
    )
    headings = ("complexity", "lines", "nesting", "function", "where")
    return _section("Functions worth splitting", _table(headings, rows, numeric=(0, 1, 2)))


def _findings(report: TreeReport) -> str:
    """Group the findings by severity; only the mildest group starts folded."""
    if not report.findings:
        return _section("Risk findings", '<p class="none">None of the rules fired.</p>')
    rules = "".join(
        f'<li class="chip {total.severity}">{_text(total.rule)} <b>{total.count}</b></li>'
        for total in report.rules
    )
    groups = []
    for severity in SEVERITIES:
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            unfolded = "" if severity == "low" else " open"
            rows = "\n".join(_finding(finding) for finding in found)
            groups.append(
                f'<details{unfolded}><summary><span class="chip {severity}">{severity}</span> '
                f'{len(found)} shown</summary>\n<ul class="findings">\n{rows}\n</ul></details>'
            )
    note = _cut(len(report.findings), report.finding_count, "findings")
    return _section("Risk findings", f'<ul class="chips">{rules}</ul>\n' + "\n".join(groups), note=note)


def _finding(finding: LocatedFinding) -> str:
    quote = f"<pre>{_text(finding.snippet)}</pre>" if finding.snippet else ""
    return (
        f'<li>{_code(f"{finding.path}:{finding.line}")} <span class="rule">{_text(finding.rule)}</span> '
        f"{_text(finding.message)}{quote}</li>"
    )


def _duplicates(report: TreeReport) -> str:
    if not report.duplicates:
        return _section("Duplicated code", '<p class="none">No block of six lines occurs twice.</p>')
    rows = ((f"<b>{block.lines}</b>", f"{len(block.places)}", _places(block)) for block in report.duplicates)
    note = _cut(len(report.duplicates), report.duplicate_count, "blocks")
    return _section("Duplicated code", _table(("lines", "places", "where"), rows, numeric=(0, 1)), note=note)


def _places(block: DuplicateBlock, *, limit: int = 6) -> str:
    shown = [_code(f"{place.path}:{place.start}-{place.end}") for place in block.places[:limit]]
    if len(block.places) > limit:
        shown.append(f"and {len(block.places) - limit} more")
    return "<br>".join(shown)


def _not_analysed(report: TreeReport, facts: RunFacts) -> str:
    if not report.not_analysed and not facts.left_out:
        return ""
    rows = [(_code(item.path), _text(item.note)) for item in report.not_analysed]
    rows += [("", _text(note)) for note in facts.left_out]
    note = _cut(len(report.not_analysed), report.not_analysed_count, "files")
    return _section("Not analysed", _table(("file", "why"), rows), note=note)


def _run(facts: RunFacts) -> str:
    """Draw who published how much, and say how long it took."""
    stages = '<span class="arrow" aria-hidden="true">→</span>'.join(
        '<div class="stage">' + "".join(_agent(name, kind, facts) for name, kind in stage) + "</div>"
        for stage in PIPELINE
    )
    rates = (
        ("artifacts per second", f"{facts.artifacts_per_s:,.0f}"),
        ("files per second", f"{facts.files_per_s:,.1f}"),
        ("read to joined, median", f"{facts.latency_p50_s:.2f} s"),
        ("read to joined, 95 %", f"{facts.latency_p95_s:.2f} s"),
        ("work", f"{facts.work_s:.1f} s"),
        ("set-up", f"{facts.setup_s:.1f} s"),
    )
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rates)
    note = (
        "Agents on a blackboard: each says which artifacts it consumes and publishes, and nobody wires "
        "the graph. All files are asked for at once, so the times include queueing."
    )
    body = f'<div class="pipeline">{stages}</div>\n<dl class="rates">{numbers}</dl>'
    return _section("How this report was made", body, note=note)


def _agent(name: str, kind: str, facts: RunFacts) -> str:
    return f'<div class="agent"><b>{name}</b><span>{facts.counts.get(kind, 0):,} {kind}</span></div>'
