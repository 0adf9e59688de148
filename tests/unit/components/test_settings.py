"""What makes an agent be deployed again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from pydantic import BaseModel, SecretStr

from flock_ray.agent import AgentBuilder
from flock_ray.components import (
    AzurePromptShieldComponent,
    GuardComponent,
    GuardComponentConfig,
    OrchestratorComponent,
    OutputLengthComponent,
    RedactionComponent,
)
from flock_ray.components.orchestrator.gate import ComponentGate
from flock_ray.components.settings import settings_digest
from flock_ray.core.registry import TypeRegistry
from flock_ray.deployment import package
from flock_ray.testing.local import LocalCodec


def fingerprint(*utilities: Any, description: str = "d", gate: Any = None) -> str:
    registry = TypeRegistry()
    builder = AgentBuilder("a", registry=registry).description(description)
    if utilities:
        builder.with_utilities(*utilities)
    definition = builder.definition_checked()
    definition.gate = gate
    return package(definition, registry, LocalCodec(), "me").fingerprint


def test_a_component_that_is_set_differently_is_deployed_again() -> None:
    """Regression: only the classes of components counted, so a changed limit did not reach the workers."""
    assert fingerprint(OutputLengthComponent(max_chars=5)) == fingerprint(OutputLengthComponent(max_chars=5))
    assert fingerprint(OutputLengthComponent(max_chars=5)) != fingerprint(OutputLengthComponent(max_chars=6))
    block, warn = (
        GuardComponent(config=GuardComponentConfig(on_input_flagged=what)) for what in ("block", "warn")
    )
    assert fingerprint(block) != fingerprint(warn)


def test_so_is_an_agent_whose_description_or_flocks_components_change() -> None:
    class Blocks(OrchestratorComponent):
        async def on_before_schedule(self, orchestrator: Any, *rest: Any) -> Any: ...

    one, two = ComponentGate.of([Blocks(priority=1)]), ComponentGate.of([Blocks(priority=2)])
    assert (
        len({fingerprint(), fingerprint(gate=one), fingerprint(gate=two), fingerprint(description="e")}) == 4
    )


def test_functions_in_settings_count_by_their_code() -> None:
    class Holds(BaseModel):
        call: Any

    one, same, other = Holds(call=lambda: 1), Holds(call=lambda: 1), Holds(call=lambda: 2)

    assert settings_digest(one) != settings_digest(other)
    assert len({settings_digest(one), settings_digest(same)}) <= 2  # a line number may differ


def test_no_secret_is_part_of_a_fingerprint() -> None:
    one, two = (AzurePromptShieldComponent(api_key=SecretStr(key)) for key in ("one", "two"))

    assert settings_digest(one) == settings_digest(two)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """Sets have another order in every process: a script that is started twice must not deploy twice."""
    code = (
        "from flock_ray.components import LanguageComponent, RedactionComponent\n"
        "from flock_ray.components.settings import settings_digest\n"
        "parts = LanguageComponent(allowed={'en', 'de', 'fr', 'es', 'it'}), RedactionComponent()\n"
        "print(*(settings_digest(part).hex() for part in parts))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip

    assert len(runs) == 1
    assert settings_digest(RedactionComponent()).hex() in runs.pop()
