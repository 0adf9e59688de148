"""Which errors somebody means: by class, by name or by a predicate. Retries and circuit breakers ask it. Pure."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from flock_ray import errors
from flock_ray.errors import (
    ConfigurationError,
    ModelError,
    ModelTimeoutError,
    RateLimitError,
    safe_error_text,
)

__all__ = ["ErrorFilter", "error_filter", "leaves"]

MAX_LEAVES = 100
"""Errors of one exception group that are looked at."""

_PROVIDERS = ("litellm", "openai")
_OURS: dict[str, type[ModelError]] = {
    "RateLimitError": RateLimitError,
    "Timeout": ModelTimeoutError,
    "APITimeoutError": ModelTimeoutError,
    "APIConnectionError": ModelError,
    "APIError": ModelError,
    "BadGatewayError": ModelError,
    "InternalServerError": ModelError,
    "ServiceUnavailableError": ModelError,
}
"""Classes of the libraries that call models, by name, and what the gateway raises in their place."""


@dataclass(frozen=True, slots=True)
class ErrorFilter:
    """Which errors are meant. Travels to the workers with its agent."""

    classes: tuple[type[BaseException], ...] = ()
    provided: tuple[tuple[str, str], ...] = ()
    """(package, class name) of classes of model libraries: those are slow to import, and no worker needs to."""
    predicates: tuple[Callable[[BaseException], Any], ...] = ()

    def matches(self, error: BaseException) -> bool:
        """Say whether an error is meant; of an exception group, whether all its errors are.

        Raises:
            BaseException: What a predicate raised.
        """
        return all(self._matches(leaf) for leaf in leaves(error))

    def digest(self) -> bytes:
        """Return what tells filters apart, but for the code of the predicates."""
        names = sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in self.classes)
        return repr((names, sorted(self.provided), len(self.predicates))).encode()

    def _matches(self, error: BaseException) -> bool:
        if isinstance(error, self.classes):
            return True
        if self.provided and any(self._is_provided(error, package, name) for package, name in self.provided):
            return True
        return any(predicate(error) for predicate in self.predicates)

    @staticmethod
    def _is_provided(error: BaseException, package: str, name: str) -> bool:
        if type(error) is _OURS.get(name):
            return True
        return any(
            cls.__name__ == name and cls.__module__.partition(".")[0] == package
            for cls in type(error).__mro__
        )


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of an exception group, at any depth, or the one error that is none; bounded."""
    waiting, count = [error], 0
    while waiting and count < MAX_LEAVES:
        last = waiting.pop()
        if isinstance(last, BaseExceptionGroup):
            waiting.extend(last.exceptions)
        else:
            count += 1
            yield last


def error_filter(on: Any, at: str) -> ErrorFilter:
    """Check and return what `on=` says.

    Args:
        on: An exception class, the name of one, a predicate of the exception, or a list of these.
        at: Where it is declared, for messages.

    Raises:
        ConfigurationError: It is nothing of the kind, or a name is of no known exception.
    """
    given = list(on) if isinstance(on, Iterable) and not isinstance(on, str | type) else [on]
    if not given:
        raise ConfigurationError(f"{at} on=[] means no error at all; leave `on` out, or name exceptions")
    classes: list[type[BaseException]] = []
    provided: list[tuple[str, str]] = []
    predicates: list[Callable[[BaseException], Any]] = []
    for one in given:
        meant = _named(one, at) if isinstance(one, str) else one
        if isinstance(meant, type):
            _add_class(meant, classes, provided, at)
        elif callable(meant):
            predicates.append(meant)
        else:
            raise ConfigurationError(
                f"{at} on= takes exception classes, names of them, or a predicate of the exception, got {one!r}"
            )
    return ErrorFilter(tuple(classes), tuple(provided), tuple(predicates))


def _add_class(
    meant: type, classes: list[type[BaseException]], provided: list[tuple[str, str]], at: str
) -> None:
    if not issubclass(meant, BaseException):
        raise ConfigurationError(f"{at} on= names {meant.__qualname__}, which is no exception")
    package = meant.__module__.partition(".")[0]
    if package in _PROVIDERS:
        provided.append((package, meant.__name__))
    else:
        classes.append(meant)


def _named(name: str, at: str) -> type:
    """Return the exception of a name: one of ours, a built-in one, or any by its full path."""
    module, _, attribute = name.rpartition(".")
    try:
        home = import_module(module) if module else errors if hasattr(errors, name) else builtins
        found = getattr(home, attribute)
    except Exception as error:  # importing runs whatever the module does
        kind, text = safe_error_text(error)
        raise ConfigurationError(
            f"{at} on= names {name!r}, and there is no such exception ({kind}: {text}). Use a name of "
            "flock_ray.errors, of a built-in exception, or a full path such as 'httpx.ReadTimeout'."
        ) from None
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise ConfigurationError(f"{at} on= names {name!r}, which is no exception")
    return found
