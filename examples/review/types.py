"""The artifacts of the review: what the agents say to each other.

A file is followed through the flock by its `path`, which is what the join is keyed by.
It is the text form made by `tree.encode_path`: relative, printable, and reversible even
for names that are not valid text.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from flock_ray import flock_type

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")

RULE_BASED = "rule-based summary, no model configured"


@flock_type
class ReviewRequest(BaseModel):
    """Read these files of one tree. A large tree is asked for in several requests."""

    root: str
    globs: list[str] = Field(default_factory=list)
    paths: list[str]


@flock_type
class SourceFile(BaseModel):
    """One file; when it could not be read, `text` is empty and `note` says why."""

    path: str
    language: str
    text: str
    lines: int
    is_read: bool = True
    note: str = ""


class FileReport(BaseModel):
    """What the four reports on a file have in common."""

    path: str
    analysed: bool = True
    note: str = ""


class FunctionMetric(BaseModel):
    """One function or method, measured without the functions nested in it."""

    name: str
    line: int
    length: int
    complexity: int
    nesting: int


@flock_type
class ComplexityReport(FileReport):
    """How hard the functions of one file are to follow."""

    language: str
    lines: int
    is_read: bool = True
    is_test: bool = False
    functions: list[FunctionMetric] = Field(default_factory=list)


class Finding(BaseModel):
    """One risky construct, with the line it is on."""

    rule: str
    severity: Severity
    line: int
    message: str
    snippet: str = ""


@flock_type
class RiskReport(FileReport):
    """Calls and habits of one file that tend to end in an incident."""

    findings: list[Finding] = Field(default_factory=list)
    acknowledged: int = 0
    """Findings on lines marked `# nosec` or `# noqa: S...`, which are not listed."""


class MissingDoc(BaseModel):
    """A public name without a docstring."""

    kind: Literal["module", "class", "function", "method"]
    name: str
    line: int


@flock_type
class DocsReport(FileReport):
    """How many public names of one file there are, and which have no docstring."""

    public: int = 0
    missing: list[MissingDoc] = Field(default_factory=list)


class Fingerprint(NamedTuple):
    """The hash of a window of normalised lines, and the lines it spans."""

    digest: str
    start: int
    end: int


@flock_type
class DuplicationReport(FileReport):
    """Every window of one file, so that copies can be found across files."""

    fingerprints: list[Fingerprint] = Field(default_factory=list)


@flock_type
class FileReview(BaseModel):
    """The four reports on one file, joined."""

    path: str
    complexity: ComplexityReport
    risks: RiskReport
    docs: DocsReport
    duplication: DuplicationReport


class Place(BaseModel):
    """A range of lines, both ends included."""

    path: str
    start: int
    end: int


class DuplicateBlock(BaseModel):
    """The same code in two or more places; `lines` is the length of the longest one."""

    lines: int
    places: list[Place]


class LocatedFinding(Finding):
    """A finding with the file it is in."""

    path: str


class Hotspot(FunctionMetric):
    """A function with the file it is in."""

    path: str


class RankedFile(BaseModel):
    """A file that deserves attention, its score, and what the score is made of."""

    path: str
    score: float
    lines: int
    max_complexity: int
    findings: int
    missing_docs: int
    duplicated_lines: int
    reasons: list[str]


class LanguageTotal(BaseModel):
    """The share of one language in the tree."""

    language: str
    files: int
    lines: int


class RuleTotal(BaseModel):
    """How often one rule fired."""

    rule: str
    severity: Severity
    count: int


class NotAnalysed(BaseModel):
    """A file that the analysers could not look into, and why."""

    path: str
    note: str


class Totals(BaseModel):
    """The tree in numbers."""

    files: int
    analysed: int
    lines: int
    analysed_lines: int
    functions: int
    mean_complexity: float
    max_complexity: int
    high: int
    medium: int
    low: int
    acknowledged: int
    public_names: int
    undocumented: int
    duplicated_lines: int

    @property
    def documented_share(self) -> float:
        """The share of public names with a docstring, 0 to 1; 1 when there are none."""
        if not self.public_names:
            return 1.0
        return (self.public_names - self.undocumented) / self.public_names


@flock_type
class TreeReport(BaseModel):
    """The review of the whole tree. Lists are cut; the counts beside them are not."""

    summariser: str = RULE_BASED
    headline: str
    advice: list[str]
    totals: Totals
    languages: list[LanguageTotal]
    worst: list[RankedFile]
    hotspots: list[Hotspot]
    rules: list[RuleTotal]
    findings: list[LocatedFinding]
    finding_count: int
    duplicates: list[DuplicateBlock]
    duplicate_count: int
    not_analysed: list[NotAnalysed]
    not_analysed_count: int
