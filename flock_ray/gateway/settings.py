"""What a user says about models: keys, limits, where answers are recorded. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import SecretStr

from flock_ray.core.model_limits import Rates
from flock_ray.core.wire import BreakerSpec
from flock_ray.engines.records import Capture
from flock_ray.errors import ConfigurationError

__all__ = [
    "CassetteMode",
    "GatewayPlan",
    "ModelBreaker",
    "ModelLimits",
    "ModelSettings",
    "full_name",
    "gateway_plan",
    "planned",
    "provider_of",
]

CassetteMode = Literal["off", "record", "replay", "auto"]

MAX_USUAL = 2
"""Gateways of a cluster of which nobody said how many it may have."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """How much a model, or all models of a provider together, may be used by the whole cluster; None: no limit.

    Limits that a provider tells in its answers are learned on top.
    """

    rpm: int | None = None
    """Calls started in any minute."""
    tpm: int | None = None
    """Tokens, input and output together, in any minute; estimated until the answer is there."""
    concurrency: int | None = None
    """Calls at the same time."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One is not positive.
        """
        for name in ("rpm", "tpm", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(
                    f"ModelLimits({name}={value}) would allow no call at all: give 1 or more."
                )

    @property
    def rates(self) -> Rates:
        """The same for the core."""
        return Rates(self.rpm, self.tpm, self.concurrency)


@dataclass(frozen=True, slots=True)
class ModelBreaker:
    """When a model that keeps failing is left alone: then calls fail at once, or go on to a fallback.

    Timeouts, failures of the provider and broken connections count; refusals (429) and refused requests do not.
    """

    failure_threshold: int = 5
    """Failed tries in a row, of any calls, that open it."""
    recovery_timeout: timedelta = timedelta(seconds=30)
    """How long the model is not asked then."""
    half_open_attempts: int = 1
    """Tries that may find out after that whether it works again; all have to succeed."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One makes no sense.
        """
        for name in ("failure_threshold", "half_open_attempts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"ModelBreaker({name}={value!r}) must be a whole number from 1.")
        wait: object = self.recovery_timeout
        if not isinstance(wait, timedelta) or not timedelta(0) < wait <= timedelta(days=1):
            raise ConfigurationError(
                f"ModelBreaker(recovery_timeout={wait!r}) must be a timedelta above 0 and up to a day."
            )

    def spec(self) -> BreakerSpec:
        """Return the same for the core."""
        recovery_us = self.recovery_timeout // timedelta(microseconds=1)
        return BreakerSpec(self.failure_threshold, recovery_us, self.half_open_attempts)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How to reach models, in `Flock(models={"openai/gpt-4.1-mini": ..., "openai/*": ..., "*": ...})`.

    What a call needs comes from the most specific entry that has it; the limits of every entry that fits hold.
    """

    api_key: SecretStr | str | None = field(default=None, repr=False)
    """None: the provider's variable in the environment of the gateway process, such as OPENAI_API_KEY."""
    api_base: str | None = None
    """URL of the API; None: the provider's own."""
    limits: ModelLimits | None = None
    fallbacks: Sequence[str] = ()
    """Models to try in turn when a call names none itself."""
    max_tries: int | None = None
    """Most tries of one call on this model when the provider fails; None: 4."""
    input_usd_per_mtok: float | None = None
    """Price of a million input tokens in US dollars; None: litellm's table, also when the other price is given."""
    output_usd_per_mtok: float | None = None
    breaker: ModelBreaker | None = None
    """Leaves the model alone for a while when it keeps failing; None: every call tries."""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """More parameters for litellm, such as `api_version` or `organization`; no part of what is asked."""

    def __post_init__(self) -> None:
        """Check the values, and hide the key.

        Raises:
            ConfigurationError: One makes no sense.
        """
        if isinstance(self.api_key, str):
            object.__setattr__(self, "api_key", SecretStr(self.api_key))
        if isinstance(self.fallbacks, str):
            raise ConfigurationError("ModelSettings(fallbacks=...) takes a list of models, not one string.")
        object.__setattr__(self, "fallbacks", tuple(self.fallbacks))
        if self.max_tries is not None and self.max_tries < 1:
            raise ConfigurationError("ModelSettings(max_tries=...) must be 1 or more.")
        if self.breaker is not None and not isinstance(self.breaker, ModelBreaker):
            raise ConfigurationError("ModelSettings(breaker=...) takes a ModelBreaker(...).")


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """What gateways and the workers that call them must know."""

    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    cassette: str | None = None
    """Absolute path of the folder; None: nothing is recorded."""
    cassette_mode: CassetteMode = "off"
    capture: Capture = "none"
    redact: tuple[str, ...] = ()
    max_gateways: int | None = None
    """Most gateway processes at the same time; None: one for every two CPUs of the cluster, at most two."""

    def matching(self, model: str) -> list[tuple[str, ModelSettings]]:
        """Return the entries that fit a model, the most specific first."""
        full = full_name(model)
        found = [(name, self.models[name]) for name in self.models if _fits(name, full)]
        return sorted(found, key=lambda entry: (_specificity(entry[0]), entry[0]), reverse=True)

    def settings(self, model: str) -> ModelSettings:
        """Return what holds for a model, each value from the most specific entry that has it; without limits."""
        entries = [settings for _, settings in self.matching(model)]

        def first(name: str) -> Any:
            return next((value for s in entries if (value := getattr(s, name)) not in (None, ())), None)

        extra: dict[str, Any] = {}
        for settings in reversed(entries):
            extra |= settings.extra
        return ModelSettings(
            api_key=first("api_key"), api_base=first("api_base"), fallbacks=first("fallbacks") or (),
            max_tries=first("max_tries"), input_usd_per_mtok=first("input_usd_per_mtok"),
            output_usd_per_mtok=first("output_usd_per_mtok"), breaker=first("breaker"), extra=extra,
        )  # fmt: skip

    def limits(self, model: str) -> list[tuple[str, ModelLimits]]:
        """Return the names and values of all limits that hold for a model, the widest first."""
        return [(name, s.limits) for name, s in reversed(self.matching(model)) if s.limits is not None]

    @property
    def num_gateways(self) -> int:
        """Most gateway processes at the same time; two as long as nobody knows the cluster."""
        return self.max_gateways or MAX_USUAL

    def fitted(self, cpus: int) -> GatewayPlan:
        """Return the plan for a cluster of so many CPUs: a second gateway takes 200 MB, and a core to be worth it."""
        if self.max_gateways is not None:
            return self
        return replace(self, max_gateways=min(MAX_USUAL, max(1, cpus // 2)))

    def home_key(self, model: str) -> str | None:
        """Return what decides which gateway all calls to a model must go to; None: any gateway will do."""
        limits = self.limits(model)
        if limits:
            return limits[0][0]
        # One gateway has to see all failures of a model, and to let exactly so many calls try.
        return full_name(model) if any(s.breaker is not None for _, s in self.matching(model)) else None


def planned(
    models: Mapping[str, ModelSettings] | GatewayPlan | None,
    cassette: str | Path | None,
    cassette_mode: str | None,
) -> GatewayPlan:
    """Return the plan of a Flock from what its user gave.

    Raises:
        ConfigurationError: Something makes no sense, or there is nothing to replay.
    """
    given = models if isinstance(models, GatewayPlan) else GatewayPlan(models=models or {})
    folder = cassette if cassette is not None else given.cassette
    mode = cassette_mode or (given.cassette_mode if given.cassette is not None else None)
    plan = gateway_plan(
        models=given.models, cassette=folder, cassette_mode=mode, capture=given.capture, redact=given.redact,
        max_gateways=given.max_gateways,
    )  # fmt: skip
    if plan.cassette_mode == "replay" and not Path(plan.cassette or "").is_dir():
        raise ConfigurationError(
            f"There is no cassette {plan.cassette}. Record one with FLOCK_CASSETTE_MODE=record."
        )
    return plan


def full_name(model: str) -> str:
    """Return a model's name with its provider; one without is OpenAI's, as for litellm."""
    return model if "/" in model else f"openai/{model}"


def provider_of(model: str) -> str:
    """Return the provider's part of a model's name."""
    return full_name(model).partition("/")[0]


def gateway_plan(
    *,
    models: Mapping[str, ModelSettings] | None = None,
    cassette: str | Path | None = None,
    cassette_mode: str | None = None,
    capture: str | None = None,
    redact: Sequence[str] = (),
    max_gateways: int | None = None,
) -> GatewayPlan:
    """Check what a user gave.

    Raises:
        ConfigurationError: Something makes no sense.
    """
    models = dict(models or {})
    for name, settings in models.items():
        if not isinstance(settings, ModelSettings):
            raise ConfigurationError(
                f"models[{name!r}] is a {type(settings).__name__}: give ModelSettings(...)."
            )
        if "*" in name[:-1]:
            raise ConfigurationError(
                f'models[{name!r}]: a "*" only stands at the end, as in "openai/*" or "*".'
            )
    folder = cassette
    mode = cassette_mode or ("auto" if folder else "off")
    if mode not in get_args(CassetteMode):
        raise ConfigurationError(
            f"cassette_mode={mode!r} is unknown. Choose one of {', '.join(get_args(CassetteMode))}."
        )
    if mode != "off" and not folder:
        raise ConfigurationError(f"cassette_mode={mode!r} needs a folder: cassette=... or FLOCK_CASSETTE.")
    if capture not in (None, "none", "full"):
        raise ConfigurationError(f'capture={capture!r} is unknown. Choose "none" or "full".')
    for pattern in redact:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"redact: {pattern!r} is no regular expression: {error}.") from None
    if max_gateways is not None and not 1 <= max_gateways <= 64:
        raise ConfigurationError("max_gateways must be from 1 to 64.")
    return GatewayPlan(
        models=models,
        cassette=None if mode == "off" else str(Path(cast(str, folder)).absolute()),
        cassette_mode=cast(CassetteMode, mode),
        capture="full" if capture == "full" else "none",
        redact=tuple(redact),
        max_gateways=max_gateways,
    )


def _fits(pattern: str, full: str) -> bool:
    if pattern.endswith("*"):
        return full.startswith(pattern[:-1])
    return full_name(pattern) == full


def _specificity(pattern: str) -> tuple[int, int]:
    return (0, len(pattern)) if pattern.endswith("*") else (1, len(pattern))
