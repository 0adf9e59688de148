"""Who people are: the roles of each, as far as a program declares them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flock_ray.errors import ConfigurationError, ForbiddenError
from flock_ray.ports import PrincipalDirectory

__all__ = ["StaticPrincipals", "directory_of", "roles_of"]


class StaticPrincipals:
    """A directory that is a mapping: `{"ann": ["risk_manager"], "bob": []}`."""

    def __init__(self, people: Mapping[str, Collection[str]]) -> None:
        """Take the roles of each person.

        Raises:
            ConfigurationError: It is not such a mapping.
        """
        given: Any = people
        if not isinstance(given, Mapping) or any(
            not isinstance(person, str) or not person or isinstance(roles, str) or not isinstance(roles, Collection)
            or any(not isinstance(role, str) or not role for role in roles)
            for person, roles in given.items()
        ):  # fmt: skip
            raise ConfigurationError(
                'principals= takes the roles of each person, as in {"ann": ["risk_manager"], "bob": []}.'
            )
        self._roles = {person: frozenset(roles) for person, roles in given.items()}

    def roles_of(self, person: str) -> Collection[str] | None:
        """Return a person's roles; None for somebody who is not known."""
        return self._roles.get(person)


def directory_of(given: Any, path: str | None = None) -> PrincipalDirectory | None:
    """Return the directory that a program gave: a mapping, an object with `roles_of`, or None.

    Args:
        given: What the program gave.
        path: JSON file that is read when it gave none.

    Raises:
        ConfigurationError: It is no directory, or the file can't be read.
    """
    if given is None and path is not None:
        try:
            given = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"FLOCK_PRINCIPALS: {path} can't be read as JSON: {error}.") from None
    if given is None or callable(getattr(given, "roles_of", None)):
        directory: PrincipalDirectory | None = given
        return directory
    return StaticPrincipals(given)


async def roles_of(directory: PrincipalDirectory | None, person: str) -> tuple[str, ...]:
    """Return a person's roles, sorted; without a directory everybody is who they say, with no roles.

    Raises:
        ForbiddenError: The directory does not know the person.
    """
    if directory is None:
        return ()
    found: Any = directory.roles_of(person)
    if inspect.isawaitable(found):
        found = await found
    if found is None:
        raise ForbiddenError(
            f"{person!r} is not in the directory of principals, so may not decide. Add them: Flock(principals={{...}})."
        )
    return tuple(sorted(found))
