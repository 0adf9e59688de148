"""Join the reports on a file, and sum up all files into one report, by rules alone.

It adds up, ranks and quotes; it states nothing that is not counted from the reports. Where a model
is configured, `editor` rewrites the headline and the advice, and `TreeReport.summariser` says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from examples.review.advice import give_advice, headline, plural
from examples.review.duplication import find_duplicates, telling_blocks
from examples.review.types import (
    SEVERITIES,
    ComplexityReport,
    DocsReport,
    DuplicationReport,
    FileReview,
    Hotspot,
    LanguageTotal,
    LocatedFinding,
    NotAnalysed,
    RankedFile,
    RiskReport,
    RuleTotal,
    Severity,
    Totals,
    TreeReport,
)

COMPLEX_FROM = 11
"""McCabe's own limit is 10: from here on a function is worth splitting."""
LONG_FROM = 61
DEEP_FROM = 5

MAX_RANKED = 12
MAX_FINDINGS = 60
MAX_DUPLICATES = 12
MAX_NOT_ANALYSED = 40

_WEIGHTS: dict[Severity, float] = {"high": 10.0, "medium": 4.0, "low": 0.5}
_MAX_LOW_POINTS = 5.0


def join_reports(
    complexity: ComplexityReport, risks: RiskReport, docs: DocsReport, duplication: DuplicationReport
) -> FileReview:
    """Put the four reports on one file together."""
    return FileReview(
        path=complexity.path, complexity=complexity, risks=risks, docs=docs, duplication=duplication
    )


def summarise(reviews: list[FileReview]) -> TreeReport:
    """Sum up all files. The same reviews in any order give the same report."""
    reviews = sorted(reviews, key=lambda review: review.path)
    duplicates, copied = find_duplicates({review.path: review.duplication.fingerprints for review in reviews})
    findings = sorted(_located(reviews), key=lambda it: (SEVERITIES.index(it.severity), it.path, it.line))
    hotspots = _hotspots(reviews)
    totals = _totals(reviews, findings, sum(copied.values()))
    ranked = _rank(reviews, copied)
    not_analysed = _not_analysed(reviews)
    report = TreeReport(
        headline="",
        advice=[],
        totals=totals,
        languages=_languages(reviews),
        worst=ranked[:MAX_RANKED],
        hotspots=hotspots[:MAX_RANKED],
        rules=_rules(findings),
        findings=findings[:MAX_FINDINGS],
        finding_count=len(findings),
        duplicates=telling_blocks(duplicates, MAX_DUPLICATES),
        duplicate_count=len(duplicates),
        not_analysed=not_analysed[:MAX_NOT_ANALYSED],
        not_analysed_count=len(not_analysed),
    )
    return report.model_copy(update={"headline": headline(report), "advice": give_advice(report, ranked)})


def _located(reviews: Iterable[FileReview]) -> list[LocatedFinding]:
    return [
        LocatedFinding(path=review.path, **finding.model_dump())
        for review in reviews
        for finding in review.risks.findings
    ]


def _hotspots(reviews: Iterable[FileReview]) -> list[Hotspot]:
    """Functions worth splitting, the most complex first."""
    found = [
        Hotspot(path=review.path, **metric.model_dump())
        for review in reviews
        for metric in review.complexity.functions
        if metric.complexity >= COMPLEX_FROM or metric.length >= LONG_FROM or metric.nesting >= DEEP_FROM
    ]
    return sorted(found, key=lambda spot: (-spot.complexity, -spot.length, spot.path, spot.line))


def _totals(reviews: Sequence[FileReview], findings: Iterable[LocatedFinding], copied: int) -> Totals:
    complexities = [metric.complexity for review in reviews for metric in review.complexity.functions]
    severities = Counter(finding.severity for finding in findings)
    return Totals(
        files=len(reviews),
        analysed=sum(review.complexity.analysed for review in reviews),
        lines=sum(review.complexity.lines for review in reviews),
        analysed_lines=sum(review.complexity.lines for review in reviews if review.complexity.analysed),
        functions=len(complexities),
        mean_complexity=round(sum(complexities) / len(complexities), 2) if complexities else 0.0,
        max_complexity=max(complexities, default=0),
        high=severities["high"],
        medium=severities["medium"],
        low=severities["low"],
        acknowledged=sum(review.risks.acknowledged for review in reviews),
        public_names=sum(review.docs.public for review in reviews),
        undocumented=sum(len(review.docs.missing) for review in reviews),
        duplicated_lines=copied,
    )


def _languages(reviews: Iterable[FileReview]) -> list[LanguageTotal]:
    lines: dict[str, list[int]] = defaultdict(list)
    for review in reviews:
        lines[review.complexity.language].append(review.complexity.lines)
    totals = [LanguageTotal(language=name, files=len(each), lines=sum(each)) for name, each in lines.items()]
    return sorted(totals, key=lambda total: (-total.lines, total.language))


def _rules(findings: Iterable[LocatedFinding]) -> list[RuleTotal]:
    counts: dict[tuple[str, Severity], int] = defaultdict(int)
    for finding in findings:
        counts[finding.rule, finding.severity] += 1
    totals = [RuleTotal(rule=rule, severity=level, count=n) for (rule, level), n in counts.items()]
    return sorted(totals, key=lambda total: (SEVERITIES.index(total.severity), -total.count, total.rule))


def _not_analysed(reviews: Iterable[FileReview]) -> list[NotAnalysed]:
    """Files that were expected to be analysed: text of other languages is only counted."""
    return [
        NotAnalysed(path=review.path, note=review.complexity.note)
        for review in reviews
        if not review.complexity.analysed
        and (review.complexity.language == "Python" or not review.complexity.is_read)
    ]


def _rank(reviews: Iterable[FileReview], copied: dict[str, int]) -> list[RankedFile]:
    """Files with anything to say about them, those that need attention most first."""
    ranked = [_score(review, copied.get(review.path, 0)) for review in reviews]
    return sorted((it for it in ranked if it.score > 0), key=lambda it: (-it.score, it.path))


def _score(review: FileReview, copied: int) -> RankedFile:
    """Score one file: each part that adds to the score is named among the reasons."""
    metrics = review.complexity.functions
    severities = Counter(finding.severity for finding in review.risks.findings)
    most = max(metrics, key=lambda metric: metric.complexity, default=None)
    missing = len(review.docs.missing)
    broken = review.complexity.note.startswith("does not parse")
    low_points = min(severities["low"] * _WEIGHTS["low"], _MAX_LOW_POINTS)
    complex_points = 0.7 * sum(max(0, metric.complexity - COMPLEX_FROM + 1) for metric in metrics)
    length_points = 0.05 * sum(max(0, metric.length - LONG_FROM + 1) for metric in metrics)
    deep = sum(metric.nesting >= DEEP_FROM for metric in metrics)
    parts: list[tuple[float, str]] = [
        (8.0 * broken, "does not parse"),
        (severities["high"] * _WEIGHTS["high"], plural(severities["high"], "high-risk finding")),
        (severities["medium"] * _WEIGHTS["medium"], plural(severities["medium"], "medium-risk finding")),
        (complex_points, f"{most.name} has complexity {most.complexity}" if most else ""),
        (length_points, plural(sum(it.length >= LONG_FROM for it in metrics), "long function")),
        (1.0 * deep, plural(deep, "deeply nested function")),
        (0.05 * copied, plural(copied, "duplicated line")),
        (0.2 * missing, plural(missing, "undocumented name")),
        (low_points, plural(severities["low"], "low-risk finding")),
    ]
    parts.sort(key=lambda part: -part[0])
    return RankedFile(
        path=review.path,
        score=round(sum(points for points, _ in parts), 1),
        lines=review.complexity.lines,
        max_complexity=most.complexity if most else 0,
        findings=len(review.risks.findings),
        missing_docs=missing,
        duplicated_lines=copied,
        reasons=[reason for points, reason in parts if points > 0],
    )
