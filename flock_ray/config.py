"""Settings: one object, read once at the edge. Every field is also an environment variable `FLOCK_<NAME>`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from flock_ray.errors import ConfigurationError

__all__ = ["FlockSettings", "RayConfig", "load_ray_config", "load_settings"]


class _Environment(PydanticBaseSettingsSource):
    """What the environment says; looked for again only after it has changed, as that takes milliseconds."""

    _known: ClassVar[dict[type[BaseSettings], tuple[list[tuple[str, str]], dict[str, Any]]]] = {}

    def __init__(self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the environment says of one field."""
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        """Return what it says of all of them."""
        now = [(name, value) for name, value in os.environ.items() if name.upper().startswith("FLOCK_")]
        known = self._known.get(self.settings_cls)
        if known is None or known[0] != now:
            known = self._known[self.settings_cls] = (now, self._source())
        return dict(known[1])


class _Settings(BaseSettings):
    """Reads arguments and the environment, and nothing else."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say where values come from, the first that has one first."""
        return init_settings, _Environment(settings_cls, env_settings)


class RayConfig(_Settings):
    """How to reach Ray. Environment: `FLOCK_RAY_ADDRESS`, `FLOCK_RAY_NUM_CPUS`, ..."""

    model_config = SettingsConfigDict(env_prefix="FLOCK_RAY_", frozen=True)

    address: str | None = None
    """Of a running cluster; None: `RAY_ADDRESS`, and without that a local Ray of this process's own."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray; None: the machine's."""
    log_to_driver: bool = True
    """Whether what agents print in workers appears in the driver's output."""


class FlockSettings(_Settings):
    """Settings of a Flock."""

    model_config = SettingsConfigDict(env_prefix="FLOCK_", frozen=True)

    model: str | None = None
    """Default language model of agents without an engine."""
    embedder: str | None = None
    """Compares meanings for `semantic_match`: `onnx:/path/to/model` or `provider/model`; None: nothing does."""
    cassette: str | None = None
    """Folder of recorded answers of models; None: nothing is recorded."""
    cassette_mode: Literal["off", "record", "replay", "auto"] | None = None
    """What is done with it; None: `auto` when there is a folder, else `off`."""
    namespace: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,100}$")
    """Name of the board; None: a board of this Flock's own."""
    persistence: SecretStr | None = None
    """Where the board is kept, as a URL: `sqlite:///dir`, `redis://...`, `postgresql://...`; None: in memory."""
    shards: int | None = Field(default=None, ge=1, le=256)
    """Shard actors of a new board; None: 1, or what a stored board has."""
    detached: bool = False
    """Whether the board goes on without its driver."""
    max_agent_iterations: int = Field(default=1000, ge=1)
    """Runs of one agent on its own descendants, per workflow, before the loop is stopped."""
    max_payload_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Largest payload, in bytes of JSON."""
    inline_payload_bytes: int = Field(default=100_000, ge=1024)
    """Larger payloads, in bytes of JSON, are held in the object store of the node that made them, not in shards."""
    max_artifacts: int | None = Field(default=1_000_000, ge=1000)
    """Artifacts a memory board keeps over all shards; past it the oldest settled workflows go. None: no limit."""
    max_open: int = Field(default=200_000, ge=1)
    """Open activations per shard past which publishers wait."""
    max_workers: int | None = Field(default=None, ge=1)
    """Shared worker processes; None: as many as the cluster has CPUs."""
    publish_timeout: timedelta = timedelta(seconds=30)
    """How long `publish` waits on a full board before it raises BackpressureError."""
    heartbeat_deadline: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(seconds=1))
    """A worker that is stopped or cut off is declared dead after so long; a dead process is noticed at once."""
    webhook_secret: SecretStr | None = None
    """Signs the requests of webhooks that have no secret of their own; None: those are not signed."""
    approval_secret: SecretStr | None = None
    """Signs links to decide about approvals with, at least 32 bytes; None: there are no links."""
    principals: str | None = None
    """JSON file with the roles of people: `{"ann": ["risk_manager"]}`; None: everybody is who they say."""
    replace_agents: bool = False
    """Whether agents that another driver deployed under the same name may be replaced."""


def load_settings(**given: Any) -> FlockSettings:
    """Return settings from arguments (None means not given), the environment and defaults, in this order.

    Raises:
        ConfigurationError: A value is out of range or of the wrong type.
    """
    try:
        return FlockSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise _unfit(error) from error


def load_ray_config() -> RayConfig:
    """Return how to reach Ray according to the environment.

    Raises:
        ConfigurationError: A value is out of range or of the wrong type.
    """
    try:
        return RayConfig()
    except ValidationError as error:
        raise _unfit(error) from error


def _unfit(error: ValidationError) -> ConfigurationError:
    problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return ConfigurationError(f"Settings don't fit: {problems}.")
