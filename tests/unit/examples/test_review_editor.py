"""Who writes the summary of `make demo`: a model where one is configured, else the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.review import cli
from examples.review.editor import Editorial, who_sums_up
from examples.review.types import RULE_BASED
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

WORDS = Editorial(headline="One file is dangerous.", advice=["Remove the eval in risky.py."])


def review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ScriptedModel | None) -> tuple[int, str]:
    """Run the demo as `make demo` does, in this process; returns its exit code and its report as text."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "risky.py").write_text("def risky(text):\n    return eval(text)\n")
    out = tmp_path / "out"

    def flock(**options: Any) -> VirtualFlock:
        return VirtualFlock(None if model is None else "some/model", language_model=model, **options)

    monkeypatch.setattr(cli, "Flock", flock)
    monkeypatch.setattr("examples.review.cli.asyncio.run", run_virtual)
    monkeypatch.delenv("FLOCK_MODEL", raising=False)
    code = cli.main(["--input", str(tree), "--out", str(out)])
    return code, (out / "report.html").read_text()


def test_without_a_model_the_rules_write_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, page = review(tmp_path, monkeypatch, None)

    assert code == 0
    assert RULE_BASED in page


def test_with_a_model_it_writes_the_summary_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ScriptedModel(WORDS)

    code, page = review(tmp_path, monkeypatch, model)

    assert code == 0
    assert "summary by some/model, numbers by rules" in page
    assert "One file is dangerous." in page
    assert "Remove the eval in risky.py." in page
    assert "summary by some/model" in capsys.readouterr().out
    assert '"path":"risky.py"' in model.requests[0].messages[1]["content"]


def test_when_the_model_fails_the_rules_write_it_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, page = review(tmp_path, monkeypatch, ScriptedModel("I would rather not."))

    assert "rule-based summary, some/model failed: ModelAnswerError" in page


def test_who_sums_up_is_known_before() -> None:
    assert who_sums_up(VirtualFlock("a/b")) == "summary by a/b, numbers by rules"
