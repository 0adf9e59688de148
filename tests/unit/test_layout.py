from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE_LIMIT = 500

# Written in pieces, so that this file does not hold what it forbids.
REGISTRY_HOSTS = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("python" + "hosted", "org"),
        ("pypi", "python", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("repo", "maven", "apache", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
    )
)
MACHINE_PATHS = tuple("/" + "/".join(parts) for parts in (("work", "main"), ("work", "shared"), ("root", "")))


def project_files() -> list[Path]:
    """The files that are, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def holding(needles: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {needle}"
        for path in project_files()
        for text in [path.read_text(errors="ignore")]
        for needle in needles
        if needle in text
    ]


@pytest.mark.parametrize("name", ["actors", "serve"])
def test_link_in_the_package_resolves_to_the_root_folder(name: str) -> None:
    link = ROOT / "flock_ray" / name
    if not (ROOT / ".git").exists() and not link.exists():
        pytest.skip("an unpacked sdist has no links")

    assert link.is_dir(), "links are off: see CONTRIBUTING.md about Windows"
    assert link.resolve() == (ROOT / name).resolve()


def test_no_module_is_over_the_line_limit() -> None:
    modules = [path for path in project_files() if path.suffix == ".py"]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}

    assert {} == {name: size for name, size in sizes.items() if size > LINE_LIMIT}


def test_no_file_names_a_package_registry() -> None:
    assert [] == holding(REGISTRY_HOSTS)


def test_no_file_names_a_path_of_one_machine() -> None:
    assert [] == holding(MACHINE_PATHS)
