from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from flock_ray.mcp.names import MAX_NAME, tool_names

ACCEPTED = re.compile(r"[A-Za-z0-9_-]{1,64}")
TOOLS = st.lists(st.text(st.sampled_from("aB9_-. /:äß\n"), min_size=1, max_size=80), unique=True, max_size=12)


def test_a_tool_is_called_by_its_server_and_its_name() -> None:
    assert {"read_file": "fs__read_file"} == tool_names("fs", ["read_file"])


def test_characters_that_models_refuse_become_underscores() -> None:
    assert {"list.files/all": "fs__list_files_all"} == tool_names("fs", ["list.files/all"])


def test_of_two_tools_with_one_name_the_plain_one_keeps_it() -> None:
    names = tool_names("fs", ["list.files", "list_files", "list/files"])

    assert "fs__list_files" == names["list_files"]
    assert 3 == len(set(names.values()))


def test_a_name_that_is_too_long_is_cut_and_still_its_own() -> None:
    names = tool_names("fs", ["x" * 70 + "a", "x" * 70 + "b"])

    assert {64} == {len(name) for name in names.values()}
    assert 2 == len(set(names.values()))


@given(TOOLS, st.randoms())
def test_names_are_accepted_distinct_and_independent_of_order(tools: list[str], random: object) -> None:
    names = tool_names("server-1", tools)
    shuffled = sorted(tools, reverse=True)

    assert all(ACCEPTED.fullmatch(name) and len(name) <= MAX_NAME for name in names.values())
    assert len(set(names.values())) == len(tools)
    assert names == tool_names("server-1", shuffled)


@given(TOOLS, TOOLS)
def test_tools_of_two_servers_never_share_a_name(ours: list[str], theirs: list[str]) -> None:
    # `a` is a prefix of `a_b`: only their separators tell them apart.
    assert not set(tool_names("a", ours).values()) & set(tool_names("a-b", theirs).values())
