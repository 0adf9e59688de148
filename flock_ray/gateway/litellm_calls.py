"""Calls litellm without what nobody here needs: its books, and a thread for each call.

Its logs, prices and callbacks are a third of what a call costs: copies of the whole conversation, the price three
times over. Only our calls are without them: a program that uses litellm itself, in the same process, has its callbacks
as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import inspect
import logging
import socket
import uuid
from typing import Any
from urllib.request import getproxies, proxy_bypass

__all__ = ["completed", "rehearse", "without_books"]

logger = logging.getLogger(__name__)

ASIDE = ("fallbacks", "mock_", "prompt_", "deployment_id", "custom_llm_provider")
"""Parameters that only `acompletion` itself understands begin so."""

REHEARSAL_S = 5.0

_keeper: Any = None
"""The class of the objects that keep no books; None: not made yet, False: this litellm has no place for it."""


async def completed(litellm: Any, parameters: dict[str, Any]) -> Any:
    """Make one call of `acompletion`; raises what it raises.

    Args:
        litellm: The module.
        parameters: What the call is made with; not changed.
    """
    made = without_books(litellm, parameters)
    if made is parameters or not _is_plain(parameters):
        return await litellm.acompletion(**made)
    try:
        # What `acompletion` does in a thread: others may read files or ask for credentials first, OpenAI's may not.
        pending = litellm.completion(**made, acompletion=True)
        return await pending if inspect.isawaitable(pending) else pending
    except Exception as error:
        raise litellm.exception_type(
            model=parameters["model"], custom_llm_provider="openai", original_exception=error,
            completion_kwargs=parameters, extra_kwargs={},
        ) from error  # fmt: skip


async def rehearse(litellm: Any) -> None:
    """Make a call that reaches nobody, so that the first real one need not import what calls use. Never raises."""
    if getproxies() and not proxy_bypass("127.0.0.1"):
        return  # the proxy would get it
    with socket.socket() as deaf:
        # Nothing listens there: connections are refused, and nobody else can get them.
        deaf.bind(("127.0.0.1", 0))
        parameters = {
            "model": "openai/gpt-4.1-mini", "messages": [{"role": "user", "content": "nobody hears this"}],
            "api_base": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", "api_key": "none", "num_retries": 0,
            "max_retries": 0, "timeout": REHEARSAL_S,
        }  # fmt: skip
        with contextlib.suppress(Exception):
            async with asyncio.timeout(REHEARSAL_S):
                await completed(litellm, parameters)


def _is_plain(parameters: dict[str, Any]) -> bool:
    """Tell whether preparing the call can't block the event loop."""
    return parameters["model"].startswith("openai/") and not any(
        name.startswith(ASIDE) for name in parameters
    )


def without_books(litellm: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of `acompletion` for a call of which litellm keeps no books.

    A version of litellm that does not allow it gets the parameters as they are: its calls work, and cost more.

    Args:
        litellm: The module.
        parameters: What the call is made with; not changed.
    """
    global _keeper
    if _keeper is None:
        try:
            _keeper = _class_of_keepers(litellm.utils)
        except Exception as error:
            _keeper = False
            logger.warning("litellm keeps books of every call, which costs CPU: %s", type(error).__name__)
    if _keeper is False:
        return parameters
    made = {**parameters, "litellm_call_id": uuid.uuid4().hex}
    utils = litellm.utils
    try:
        # litellm's clock is naive, too: it subtracts this from its own.
        keeper, kept = utils.function_setup("acompletion", utils.Rules(), datetime.datetime.now(), **made)
        keeper.__class__ = _keeper
    except Exception:  # a request that makes no sense: the call says so itself
        return parameters
    return {**kept, "litellm_logging_obj": keeper}


def _class_of_keepers(utils: Any) -> type:
    from litellm.litellm_core_utils.litellm_logging import Logging

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    async def nothing_later(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    def no_claim(self: Any) -> bool:
        return False

    later = (
        "async_success_handler", "async_failure_handler", "dispatch_success_handlers", "dispatch_failure_handlers",
    )  # fmt: skip
    # The price is ours to find: see `LitellmProvider`.
    at_once = (
        "pre_call", "post_call", "success_handler", "failure_handler", "handle_sync_success_callbacks_for_async_calls",
        "response_cost_calculator",
    )  # fmt: skip
    body: dict[str, Any] = {}
    body.update(dict.fromkeys(later, nothing_later))
    body.update(dict.fromkeys(at_once, nothing))
    if hasattr(Logging, "claim_async_success_log"):
        body["claim_async_success_log"] = no_claim
    missing = [name for name in (*later[:2], *at_once[:4]) if not hasattr(Logging, name)]
    missing += [name for name in ("function_setup", "Rules") if not hasattr(utils, name)]
    if missing:
        raise AttributeError(missing[0])
    return type("NoBooks", (Logging,), body)
