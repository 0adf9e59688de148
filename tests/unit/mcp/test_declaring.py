from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from flock_ray import Flock
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.registry import type_registry
from flock_ray.deployment import CloudpickleCodec, package
from flock_ray.errors import ConfigurationError
from flock_ray.mcp import (
    SseServerParameters,
    StdioServerParameters,
    StreamableHttpServerParameters,
)

SERVER = StdioServerParameters(command="server")


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


def flock_with(*names: str, **options: Any) -> Flock:
    flock = Flock()
    for name in names:
        flock.add_mcp(name, SERVER, **options)
    return flock


def deployed(flock: Flock) -> AgentDefinition:
    [definition] = flock._definitions()
    return definition


def fingerprint(**options: Any) -> str:
    flock = Flock()
    flock.add_mcp("fs", options.pop("params", SERVER), **options)
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"])
    return package(deployed(flock), type_registry, CloudpickleCodec(), "me").fingerprint


def test_an_agent_is_deployed_with_the_servers_that_it_names() -> None:
    flock = flock_with("fs", "web", "unused")
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["web", "fs"])

    uses = deployed(flock).mcp_servers

    assert ["web", "fs"] == [use.name for use in uses]
    assert [SERVER, SERVER] == [use.server.params for use in uses]


def test_servers_may_be_added_after_the_agents_that_use_them() -> None:
    flock = Flock()
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"])
    flock.add_mcp("fs", SERVER)

    assert "fs" == deployed(flock).mcp_servers[0].server.name


@pytest.mark.parametrize(
    ("given", "roots", "whitelist"),
    [
        (["fs"], None, None),
        ({"fs": {}}, None, None),
        ({"fs": None}, None, None),
        ({"fs": {"roots": ["/data"], "tool_whitelist": ["read"]}}, ("file:///data",), {"read"}),
        ({"fs": ["/data"]}, ("file:///data",), None),
        (["web", {"fs": {"tool_whitelist": ["read"]}}], None, {"read"}),
    ],
)
def test_every_form_of_upstream_is_understood(given: Any, roots: Any, whitelist: Any) -> None:
    flock = flock_with("fs", "web")
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(given)

    use = deployed(flock).mcp_servers[-1]

    assert ("fs", roots, whitelist) == (use.name, use.roots, use.tool_whitelist)


def test_a_server_that_is_named_again_is_used_as_said_last() -> None:
    flock = flock_with("fs")
    agent = flock.agent("a").consumes(Question).publishes(Answer)
    agent.with_mcps({"fs": {"tool_whitelist": ["read"]}})
    agent.with_mcps({"fs": {"tool_whitelist": ["write"]}})

    assert [{"write"}] == [use.tool_whitelist for use in deployed(flock).mcp_servers]


def test_relative_directories_are_those_of_the_declaring_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flock = flock_with("fs", mount_points=["data dir", "file:///shared"])
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"])

    points = deployed(flock).mcp_servers[0].server.mount_points

    assert ((tmp_path / "data dir").as_uri(), "file:///shared") == points


def test_an_agent_that_names_an_unknown_server_is_refused_at_deploy() -> None:
    flock = flock_with("fs", "web")
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["sf"])

    with pytest.raises(ConfigurationError, match=r"'sf'.*it has: fs, web"):
        deployed(flock)


def test_an_agent_that_runs_a_function_has_no_use_for_tools() -> None:
    flock = flock_with("fs")
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"]).runs(answer)

    with pytest.raises(ConfigurationError, match="runs a function"):
        deployed(flock)


def answer(question: Question) -> Answer:
    return Answer(text=question.text)


def test_parameters_of_the_sdk_are_taken_as_ours() -> None:
    class OfTheSdk:
        command = "npx"
        args = ("-y", "server")
        env: ClassVar = {"TOKEN": "1"}
        cwd = None

    flock = Flock()
    flock.add_mcp("fs", OfTheSdk())  # type: ignore[arg-type]
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"])

    expected = StdioServerParameters(command="npx", args=["-y", "server"], env={"TOKEN": "1"})
    assert expected == deployed(flock).mcp_servers[0].server.params


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "a__b"}, "single '_'"),
        ({"name": "a_"}, "single '_'"),
        ({"name": "x" * 33}, "at most 32"),
        ({"name": "fs", "connection_params": "npx"}, "StdioServerParameters"),
        ({"enable_prompts_feature": True}, "prompts"),
        ({"enable_sampling_feature": True}, "your models"),
        ({"max_retries": -1}, "max_retries"),
        ({"read_timeout_seconds": 0}, "read_timeout_seconds"),
        ({"tool_whitelist": []}, "tool_whitelist"),
        ({"tool_whitelist": "read"}, "tool_whitelist"),
        ({"mount_points": "/data"}, "mount_points"),
        ({"mount_points": ["http://x/data"]}, "file://"),
        (
            {"connection_params": SseServerParameters(url="http://x/", auth=("me", "word"))},
            "httpx2.Auth",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    flock = Flock()

    with pytest.raises(ConfigurationError, match=says):
        flock.add_mcp(**{"name": "fs", "connection_params": SERVER, **options})

    assert not flock._mcp_servers


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigurationError, match="already"):
        flock_with("fs", "fs")


@pytest.mark.parametrize(
    "given", ["fs", [], {}, [3], {"fs": {"root": ["/"]}}, {"fs": {"tool_whitelist": []}}]
)
def test_a_selection_that_makes_no_sense_is_refused(given: Any) -> None:
    agent = flock_with("fs").agent("a")

    with pytest.raises(ConfigurationError, match=r"agent 'a': with_mcps\(\)"):
        agent.with_mcps(given)

    assert () == agent.definition.mcp_servers


def test_an_agent_whose_servers_changed_is_deployed_again() -> None:
    changed = {
        fingerprint(),
        fingerprint(tool_whitelist=["read"]),
        fingerprint(mount_points=["/data"]),
        fingerprint(read_timeout_seconds=1),
        fingerprint(params=StdioServerParameters(command="server", args=["-v"])),
        fingerprint(params=StdioServerParameters(command="server", env={"TOKEN": "old"})),
        fingerprint(params=StdioServerParameters(command="server", env={"TOKEN": "new"})),
        fingerprint(params=StreamableHttpServerParameters(url="http://x/mcp")),
    }

    assert 8 == len(changed)
    assert fingerprint(tool_whitelist=["a", "b"]) == fingerprint(tool_whitelist=["b", "a"])


def test_a_token_is_in_no_repr_of_what_travels() -> None:
    flock = Flock()
    flock.add_mcp("fs", StdioServerParameters(command="server", env={"TOKEN": "sk-very-secret"}))
    flock.agent("a").consumes(Question).publishes(Answer).with_mcps(["fs"])

    assert "sk-very-secret" not in repr(deployed(flock))
