"""What an error of PostgreSQL or of the way there means: one of ours, with no word of the server's in it.

The texts of drivers and servers can hold a password or the content of a row, so none is passed on;
the SQLSTATE is.
"""

from __future__ import annotations

import ssl
from socket import gaierror

import asyncpg

from flock_ray.errors import (
    ConfigurationError,
    FlockError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)

_MISSING = ("3F000", "42P01", "42703", "42883")
"""invalid_schema_name, undefined_table, undefined_column, undefined_function."""

_REFUSED = ("28", "3D", "42501")
"""Classes of wrong settings: authentication, unknown database, lack of rights."""

_TEMPORARY = ("08", "25", "40", "53", "55", "57", "58", "26000", "0A000")
"""Connection, transaction state (a standby, an idle session), rollback, resources, object state, operator, system.

0A000 is a cached plan that a migration outdated, 26000 a statement that a connection pooler lost.
"""


DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)
"""What calls of the driver raise, timeouts included; anything else is an error in our own code."""

SETTINGS_ERRORS = (*DRIVER_ERRORS, ValueError)
"""What connecting raises besides, for a URL that the driver can't read."""


def store_error(error: Exception, where: str) -> FlockError:
    """Return what a failed call of a store means.

    Args:
        error: What the driver raised.
        where: The server, for the message; holds no secret.

    Returns:
        StoreUnavailableError (retryable) for what can pass without a change of the data; StoreCorruptError for
        damaged or missing tables; StoreError for the rest.
    """
    state = getattr(error, "sqlstate", None) or ""
    if state in _MISSING:
        return StoreCorruptError(
            f"{where} lacks a table of the board (SQLSTATE {state}). Restore the schema from a backup."
        )
    if state.startswith(_REFUSED):
        return StoreUnavailableError(
            f"{where} refuses the board's user (SQLSTATE {state}). Give back its rights and password; "
            "repeating the call is safe."
        )
    if state.startswith(_TEMPORARY) or (not state and _is_connection_trouble(error)):
        detail = f"SQLSTATE {state}" if state else type(error).__name__
        return StoreUnavailableError(
            f"{where} does not answer ({detail}). Check its address, health and disk; repeating the call is safe."
        )
    if state.startswith(("XX", "23")):
        return StoreCorruptError(
            f"{where} holds damaged data, or data that this board did not write (SQLSTATE {state}). "
            "Restore it from a backup; nothing was changed."
        )
    detail = f"SQLSTATE {state}" if state else type(error).__name__
    return StoreError(f"{where} refused what the board sent ({detail}). Look at the log of the server.")


def _is_connection_trouble(error: Exception) -> bool:
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.ClientConfigurationError):
        return False
    return isinstance(error, DRIVER_ERRORS)


def settings_error(error: Exception, where: str) -> FlockError:
    """Return what a failure of `prepare` means to who wrote the settings.

    Returns:
        ConfigurationError, with what to do; StoreUnavailableError (retryable) when the settings may be right.
    """
    text = _unfit_settings(error, where)
    if text:
        return ConfigurationError(text)
    meaning = store_error(error, where)
    if isinstance(meaning, StoreUnavailableError):
        return meaning
    return ConfigurationError(f"{meaning} Or name another schema with schema=.")


def _unfit_settings(error: Exception, where: str) -> str:
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("28"):
        return f"{where} refuses this user or password: correct them in connection=."
    if state == "3D000":
        return f"{where} has no such database: create it, or correct its name in connection=."
    if state == "25006":
        return f"{where} is a read-only standby: name the primary, or add target_session_attrs=primary to connection=."
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError | ValueError):
        return f"connection= does not fit ({where}): write postgresql://user:password@host:5432/database."
    if isinstance(error, ssl.SSLError):
        return f"{where} and this client find no common TLS: correct sslmode= or the certificates in connection=."
    if isinstance(error, gaierror):
        return f"{where} has a host name that nobody knows: correct it in connection=."
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return f"Nothing listens at {where}: start the server, or correct the address in connection=."
    return ""
