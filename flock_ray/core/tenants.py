"""Whose an artifact is: the tag `tenant:<id>`, which everything made from it inherits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flock_ray.errors import ConfigurationError

__all__ = ["MAX_TENANT_CHARS", "TENANT_TAG", "tenant_of", "tenant_tag"]

TENANT_TAG = "tenant:"
MAX_TENANT_CHARS = 100

_PLAIN = re.compile(r"[A-Za-z0-9_.@-]{1,100}")


def tenant_tag(tenant: object) -> str:
    """Return the tag that says whose an artifact is.

    Args:
        tenant: 1 to 100 letters, digits or any of `_ . @ -`: it becomes part of tags, accounts and metrics.

    Raises:
        ConfigurationError: It is anything else. Not retryable.
    """
    if not isinstance(tenant, str) or _PLAIN.fullmatch(tenant) is None:
        shown = repr(tenant) if len(repr(tenant)) <= 60 else repr(tenant)[:60] + "..."
        raise ConfigurationError(
            f"A tenant's id is 1 to {MAX_TENANT_CHARS} of the characters A-Z a-z 0-9 _ . @ -: not {shown}."
        )
    return TENANT_TAG + tenant


def tenant_of(tags: Iterable[str]) -> str:
    """Return the tenant that tags name, the first in sorted order of several; "" when they name none."""
    first = ""
    for tag in tags:
        if tag.startswith(TENANT_TAG) and (not first or tag < first):
            first = tag
    return first[len(TENANT_TAG) :]
