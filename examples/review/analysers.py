"""The four analysers as the agents run them: a SourceFile in, a report out.

They are pure functions, never raise, and say in `note` why a file was not analysed.
"""

from __future__ import annotations

from examples.review.complexity import measure_functions
from examples.review.docstrings import public_names
from examples.review.duplication import fingerprint
from examples.review.risks import find_risks
from examples.review.syntax import is_test_path, parse_python
from examples.review.types import (
    ComplexityReport,
    DocsReport,
    DuplicationReport,
    RiskReport,
    SourceFile,
)


def analyse_complexity(source: SourceFile) -> ComplexityReport:
    """Measure complexity, nesting and length of every function."""
    tree = parse_python(source)
    report = ComplexityReport(
        path=source.path,
        note=source.note,
        language=source.language,
        lines=source.lines,
        is_read=source.is_read,
        is_test=is_test_path(source.path),
    )
    if isinstance(tree, str):
        return report.model_copy(update={"analysed": False, "note": tree})
    return report.model_copy(update={"functions": measure_functions(tree)})


def analyse_risks(source: SourceFile) -> RiskReport:
    """Find calls and habits that tend to end in an incident."""
    tree = parse_python(source)
    if isinstance(tree, str):
        return RiskReport(path=source.path, analysed=False, note=tree)
    findings, acknowledged = find_risks(source.text, tree, source.path)
    return RiskReport(path=source.path, note=source.note, findings=findings, acknowledged=acknowledged)


def analyse_docs(source: SourceFile) -> DocsReport:
    """Find public names without a docstring; test code needs none."""
    tree = parse_python(source)
    if isinstance(tree, str):
        return DocsReport(path=source.path, analysed=False, note=tree)
    if is_test_path(source.path):
        return DocsReport(path=source.path, note="test code: docstrings not asked for")
    names = list(public_names(tree, source.path))
    missing = sorted((name for name, has_doc in names if not has_doc), key=lambda name: name.line)
    return DocsReport(path=source.path, note=source.note, public=len(names), missing=missing)


def analyse_duplication(source: SourceFile) -> DuplicationReport:
    """Fingerprint the file, for the comparison with all others at the end."""
    tree = parse_python(source)
    if isinstance(tree, str):
        return DuplicationReport(path=source.path, analysed=False, note=tree)
    found = fingerprint(source.text, tree)
    return DuplicationReport(path=source.path, note=source.note, fingerprints=found)
