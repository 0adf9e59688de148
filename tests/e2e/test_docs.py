"""The documentation is executed: its Python runs, its output is real, its paths, commands and tables exist."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import flock_ray
from flock_ray import errors
from flock_ray.config import FlockSettings, RayConfig
from flock_ray.core.measures import HELP
from flock_ray.core.registry import type_registry
from tests.e2e.conftest import REPOSITORY, AsAUser

pytestmark = pytest.mark.timeout(120)

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
README = REPOSITORY / "README.md"
REFERENCE = REPOSITORY / "docs/reference.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETUP = re.compile(r"^<!-- setup:\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
DECLARING = {"errors.py", "store_errors.py"}
"""Where errors are declared: that is no use of them."""
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
OWN_PATH = re.compile(r"`((?:flock_ray|actors|examples|tests|bench|docs|scripts|requirements)/[\w./-]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block, or a hidden setup (language `setup`)."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [(m.start(), m.group(1), m.group(2), m.start(2)) for m in FENCE.finditer(text)]
    found += [(m.start(), "setup", m.group(1), m.start(1)) for m in SETUP.finditer(text)]
    return [Block(lang, body, text.count("\n", 0, start)) for _, lang, body, start in sorted(found)]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def named(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@contextlib.contextmanager
def module(name: str) -> Iterator[ModuleType]:
    """A fresh module that pydantic finds, in a registry that forgets its types afterwards."""
    made = ModuleType(name)
    sys.modules[name] = made
    try:
        with type_registry.isolated():
            yield made
    finally:
        del sys.modules[name]


WITH_PYTHON = [p for p in PAGES if p != README and any(b.language == "python" for b in blocks(p))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_python_of_a_page_runs_in_order_and_prints_what_the_page_says(page: Path) -> None:
    printed: str | None = None
    with module(f"docs_{page.stem.replace('-', '_')}") as namespace:
        for block in blocks(page):
            if block.language in ("python", "setup"):
                # Line numbers of the page, so that a traceback points into it.
                tree = ast.parse(block.text, named(page))
                ast.increment_lineno(tree, block.line)
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(tree, str(page), "exec"), namespace.__dict__)
                printed = out.getvalue()
            elif block.language == "text" and printed is not None:
                assert printed.strip() == block.text.strip(), f"{named(page)}:{block.line}"
                printed = None


def test_the_pages_that_teach_have_python_to_run() -> None:
    assert {p.name for p in WITH_PYTHON} >= {
        "subscriptions.md", "functions.md", "testing.md", "operating.md", "events-and-why.md", "errors.md"
    }  # fmt: skip
    assert not [named(p) for p in PAGES if "# not run" in p.read_text()]


def test_the_program_in_the_readme_runs_on_ray_and_prints_its_result(
    as_a_user: AsAUser, tmp_path: Path
) -> None:
    [program] = [block for block in blocks(README) if block.language == "python"]
    script = tmp_path / "smallest.py"
    script.write_text(program.text)

    run = as_a_user(str(script), cwd=tmp_path)

    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    [expected] = [block.text for block in blocks(README) if block.language == "text"]
    assert run.stdout.strip() == expected.strip()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_and_paths_of_this_repository_resolve(page: Path) -> None:
    missing = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            missing.append(target)
    missing += [path for path in OWN_PATH.findall(prose(page)) if not (REPOSITORY / path).exists()]
    assert not missing


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def flock_commands() -> set[str]:
    sources = [(REPOSITORY / "flock_ray" / name).read_text() for name in ("cli.py", "commands/stored.py")]
    return set(re.findall(r"add_parser\(\"(\w+)\"", "".join(sources)))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    shell = [line for b in blocks(page) if b.language in ("bash", "sh") for line in b.text.splitlines()]
    wrong = []
    for command in [*shell, *re.findall(r"`([^`\n]+)`", prose(page))]:
        words = command.split("#")[0].split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        match words:
            case ["make", target, *_] if target not in make_targets() and not target.startswith("-"):
                wrong.append(command)
            case ["flock", name, *_] if name not in flock_commands():
                wrong.append(command)
            case ["python" | ".venv/bin/python", "-m", name, *_]:
                path = REPOSITORY / name.replace(".", "/")
                if not (path.exists() or path.with_suffix(".py").exists()):
                    wrong.append(command)
            case ["python" | ".venv/bin/python", path, *_] if not (REPOSITORY / path).exists():
                wrong.append(command)
    assert not wrong


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under a heading of the reference, by first cell."""
    section = REFERENCE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [c.strip(" `") for c in line[1:-1].split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in rows[2:]}


def test_the_reference_lists_every_public_name() -> None:
    assert list(table("Names")) == sorted(flock_ray.__all__)


def test_the_reference_lists_every_setting_with_its_default() -> None:
    expected = {}
    for cls in (FlockSettings, RayConfig):
        for field, info in cls.model_fields.items():
            expected[f"{cls.model_config.get('env_prefix')}{field}".upper()] = str(info.default).replace(
                "None", "-"
            )
    listed = table("Settings")
    assert {name: cells[0] for name, cells in listed.items()} == expected


def test_the_reference_lists_every_error_with_code_status_and_retryability() -> None:
    classes = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    expected = {c.__name__: [c.code, str(c.http_status), "yes" if c.retryable else ""] for c in classes}
    listed = table("Errors")
    assert {name: cells[:3] for name, cells in listed.items()} == expected
    # And it says which ones nothing raises yet, neither themselves nor a subclass.
    sources = [p.read_text() for p in (REPOSITORY / "flock_ray").rglob("*.py") if p.name not in DECLARING]
    sources += [p.read_text() for p in (REPOSITORY / "actors").glob("*.py")]
    made = re.compile(r"raise (\w+)\b|\"(\w+)\"|\b(\w+Error)\(")
    raised = {
        name for source in sources for groups in made.findall(source) for name in groups if name in expected
    }
    live = {c.__name__ for c in classes if any(issubclass(getattr(errors, name), c) for name in raised)}
    assert {name for name, cells in listed.items() if cells[3].endswith("(later)")} == expected.keys() - live


def test_the_reference_lists_every_number_that_is_measured() -> None:
    assert set(table("Metrics")) == HELP.keys()


KIND = re.compile(r"\"([a-z_]+\.[a-z_]+)\"")


def test_the_reference_lists_every_event_kind_of_the_code() -> None:
    sources = [
        p
        for folder in ("core", "engines", "actors", "mcp", "components")
        for p in (REPOSITORY / "flock_ray" / folder).rglob("*.py")
    ]
    kinds = {kind for source in sources for kind in KIND.findall(source.read_text())}
    assert set(table("Events")) == kinds | {"gap"}
