"""Turn the numbers of a tree report into a headline and a few next steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from examples.review.types import RankedFile, TreeReport

COMPLEX_ENOUGH_TO_NAME = 15
DOCUMENTED_ENOUGH = 0.95
LARGE_BLOCK_LINES = 15


def headline(report: TreeReport) -> str:
    """Say in one sentence what was looked at and what stands out."""
    totals = report.totals
    if not totals.analysed:
        return f"{plural(totals.files, 'file')}, none of them Python that parses: lines were counted only."
    risks = [f"{count} {name}" for name, count in _severities(report) if count]
    return (
        f"{plural(totals.files, 'file')}, {plural(totals.lines, 'line')}; of these "
        f"{plural(totals.analysed, 'Python file')} analysed: "
        f"{', '.join(risks) + ' risk findings' if risks else 'no risky calls'}, "
        f"{totals.documented_share:.0%} of public names documented, "
        f"{duplicated_share(report):.1%} of the code duplicated."
    )


def duplicated_share(report: TreeReport) -> float:
    """The share of analysed lines that have a copy elsewhere, 0 to 1."""
    return report.totals.duplicated_lines / max(1, report.totals.analysed_lines)


def give_advice(report: TreeReport, ranked: Sequence[RankedFile]) -> list[str]:
    """List what to do next, most urgent first; every item names a place to begin.

    Args:
        report: All but its headline and advice.
        ranked: All files with anything to say about them; those in the report are cut.
    """
    return list(_advice(report, ranked)) or [
        "Nothing stands out by these rules. They see patterns, not design: have it read by a person too."
    ]


def _advice(report: TreeReport, ranked: Sequence[RankedFile]) -> Iterator[str]:
    yield from _on_broken_files(report)
    yield from _on_risks(report)
    yield from _on_structure(report)
    yield from _on_docs(report, ranked)
    if report.totals.acknowledged:
        yield (
            f"{plural(report.totals.acknowledged, 'finding')} waved through by a `noqa` or `nosec` comment: "
            "are the reasons still true?"
        )


def _on_broken_files(report: TreeReport) -> Iterator[str]:
    broken = [it for it in report.not_analysed if it.note.startswith("does not parse")]
    if broken:
        others = f"; {len(broken) - 1} more like it" if len(broken) > 1 else ""
        yield f"Look at {broken[0].path} first: it {broken[0].note}{others}."


def _on_risks(report: TreeReport) -> Iterator[str]:
    totals = report.totals
    if not totals.high + totals.medium:
        return
    first = report.findings[0]
    what = plural(totals.high, "high-risk finding") if totals.high else f"{totals.medium} of medium risk"
    lead = f"Check the {what}" if totals.high else f"No high-risk findings; of the {what}"
    yield f"{lead}, begin with {first.path}:{first.line}: {first.message}."


def _on_structure(report: TreeReport) -> Iterator[str]:
    if report.hotspots and report.hotspots[0].complexity >= COMPLEX_ENOUGH_TO_NAME:
        spot = report.hotspots[0]
        yield (
            f"Split {spot.name} ({spot.path}:{spot.line}): complexity {spot.complexity} "
            f"in {plural(spot.length, 'line')}."
        )
    blocks = [block for block in report.duplicates if block.lines >= LARGE_BLOCK_LINES]
    if blocks:
        place = blocks[0].places[0]
        yield (
            f"Extract what is written {len(blocks[0].places)} times: {plural(blocks[0].lines, 'line')} "
            f"at {place.path}:{place.start}."
        )


def _on_docs(report: TreeReport, ranked: Sequence[RankedFile]) -> Iterator[str]:
    if report.totals.documented_share >= DOCUMENTED_ENOUGH:
        return
    barest = max(ranked, key=lambda it: it.missing_docs)
    yield (
        f"{plural(report.totals.undocumented, 'public name')} without a docstring; "
        f"begin with the {barest.missing_docs} in {barest.path}."
    )


def _severities(report: TreeReport) -> list[tuple[str, int]]:
    return [("high", report.totals.high), ("medium", report.totals.medium), ("low", report.totals.low)]


def plural(number: int, noun: str) -> str:
    """Count things in words: `1 line`, `2,000 lines`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
