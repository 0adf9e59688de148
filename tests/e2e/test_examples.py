"""Every example is run as a user runs it, and says what its text promises."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, AsAUser

pytestmark = pytest.mark.timeout(240)

EXAMPLES = REPOSITORY / "examples"
AT_ONCE = 3

TYPED = {
    "approval": """eve yes
ann yes
ann yes
cleo edit 90000
cleo yes
ann yes prices are fine
bob yes
""",
}
"""What somebody types while an example runs."""

PRINTS = {
    "approval": [
        "at once: bought SMALL for 500",
        "waiting: buy ACME for 250,000; 2 of risk_manager, compliance_officer",
        "ForbiddenError: 'eve' is not one of the approvers .*",
        r"pending: \{'symbol': 'ACME', 'amount': 250000.0\}, approved by ann",
        "ApprovalError: 'ann' has decided about .* already; a second decision does not count.",
        r"pending: \{'symbol': 'ACME', 'amount': 90000.0\}, approved by nobody",
        "ForbiddenError: 'cleo' made, asked for or edited what .* is about, so may not approve it: .*",
        "pending: .*, approved by ann",
        "approved: .*, approved by ann, bob",
        "in the end: bought ACME for 90,000",
    ],
    "batch": ["25 readings, mean 22.0", "10 readings, mean 22.0"],
    "best_of": [r"[equation]{8} \d"],
    "budget": [
        r"9 slogans by openai/dear, .*",
        r"tenant:acme: spent \$0.00\d+ of \$0.002",
        "after a raise: openai/dear",
    ],
    "circuit_breaker": [
        r"breaker\.opened after 3 failures in a row",
        "waiting: 7",
        r"breaker\.closed all attempts succeeded",
        "charged: 7",
        "biller: open, since .*, until it is closed by hand, 1 wait",
        "charged: 8",
    ],
    "conditions": ["arguments: 2", "arguments: 4", r"verdict: True .*'Verdict': 1.*"],
    "custom_engine": ["😀 😐 😢"],
    "dead_letters": [
        r"booked: \[0, 1, 3\]",
        "accountant failed 2 times: no rate for 'EURO'",
        r"booked: \[0, 1, 2, 3\]",
        "history: edited by ann, redriven by ann",
    ],
    "gates": [r"Bob: .*XRay.*", "Ada: pneumonia", "3 log lines"],
    "hello": [r"Bonjour, Ada!", r"Bonjour, Grace!"],
    "join": [r"shipped: \[1, 3\]"],
    "map_reduce": [
        r"\[cutter\] scatter.started: \d\d chunks, to adder",
        r"\[cutter\] scatter.progress: \d+/\d+ chunks, about .* s left",
        r"\[adder\] fan_in.fired: \d\d chunks",
        "all passages counted: True",
        "most common: the, a, is",
        "no word lost: True",
    ],
    "moderation": [
        r"content 0: safe, decided by [567] of 9 votes",
        r"content 1: unsafe, decided by 5 of 9 votes",
        r"reviews made: 1[012] of 18",
    ],
    "own_pool": [r"9592 primes below 100000, counted by [12] process\(es\)"],
    "retry": ["label: Main Street 1, at attempt 3", "failed: no such address"],
    "schedule": [
        "published: report 0, report 1, report 2, report 3",
        "reporter: 3 fires by itself, over: True",
    ],
    "ticket_triage": [
        r"billing: I was charged twice, .*",
        r"tech: The app shows an error .*",
        r"sales: Is there an offer .*",
        r"front: Your office plants .*",
        r"NO  semantic 'app error crash login problem': similarity 0.\d+, threshold 0.25",
    ],
    "visibility": [
        r"the canteen is closed -> \['analyst', 'intern'\]",
        r"we sell the company -> \['analyst'\]",
    ],
}
"""Lines, as regular expressions, that an example prints besides others, in this order."""

Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def runs(as_a_user: AsAUser) -> Iterator[dict[str, Future[Run]]]:
    """All examples, started a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            name: pool.submit(as_a_user, f"examples/{name}.py", typed=TYPED.get(name, "")) for name in PRINTS
        }


def test_every_example_has_an_expected_output() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"} == PRINTS.keys()


@pytest.mark.parametrize("name", PRINTS)
def test_example_ends_well_and_prints_its_result(name: str, runs: dict[str, Future[Run]]) -> None:
    run = runs[name].result()

    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    lines = iter(run.stdout.splitlines())
    for pattern in PRINTS[name]:
        assert any(re.fullmatch(f".*{pattern}", line) for line in lines), (
            f"no line {pattern!r} in\n{run.stdout}"
        )


def test_review_writes_a_report_about_every_file_with_names_escaped(
    as_a_user: AsAUser, tmp_path: Path
) -> None:
    # Given a small tree with a file name that is markup, a risky call and broken syntax
    tree = tmp_path / "my code"
    tree.mkdir()
    (tree / "plain.py").write_text('"""Doc."""\n\n\ndef f(x):\n    return x\n')
    (tree / "<b>bold&.py").write_text("def risky(text):\n    return eval(text)\n")
    (tree / "broken.py").write_text("def (:\n")

    # When it is reviewed
    out = tmp_path / "out"
    run = as_a_user("-m", "examples.review", "--input", str(tree), "--out", str(out))

    # Then it ends well, and the report names all three files and the risk, as text
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert str(out / "report.html") in run.stdout.replace("\n", "")
    page = (out / "report.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&amp;.py" in page
    assert "plain.py" in page
    assert "broken.py" in page
    assert "eval" in page


def test_review_of_an_empty_tree_says_so_and_starts_nothing(as_a_user: AsAUser, tmp_path: Path) -> None:
    run = as_a_user("-m", "examples.review", "--input", str(tmp_path), "--out", str(tmp_path / "out"))

    assert run.returncode == 2
    assert "no file in" in run.stdout
