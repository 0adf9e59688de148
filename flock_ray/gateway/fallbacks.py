"""Tries models in turn. The same on workers, where each model has its own gateway, and in one process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from flock_ray.errors import ModelAnswerError, ModelError, ModelRequestError, ModelTimeoutError
from flock_ray.model import ModelReply, ModelRequest

__all__ = ["OneModel", "with_fallbacks"]

OneModel = Callable[[ModelRequest, "Callable[[str], None] | None", bool], Awaitable[ModelReply]]
"""Asks the one model that a request names; True: another one waits, so don't be patient."""

MAX_FALLBACKS = 10


async def with_fallbacks(
    ask: OneModel,
    request: ModelRequest,
    on_text: Callable[[str], None] | None,
    fallbacks: tuple[str, ...],
    monotonic: Callable[[], float],
) -> ModelReply:
    """Ask the model of a request, then its fallbacks, until one answers.

    A request that is refused for what it is (`ModelRequestError`), or answered, is not asked elsewhere.

    Args:
        ask: Asks one model.
        request: The call; `total_s` is for all models together.
        on_text: Takes text; "" says that it starts again.
        fallbacks: When the request names none itself.
        monotonic: A clock in seconds that never goes back.

    Raises:
        ModelError: The last model failed, too.
    """
    models = list(dict.fromkeys([request.model, *(request.fallbacks or fallbacks)]))[: MAX_FALLBACKS + 1]
    if len(models) == 1 or request.embed:  # vectors of two models can't be compared
        return await ask(request, on_text, False)
    started, tries = monotonic(), 0
    told = _Told(on_text) if on_text is not None else None
    for position, model in enumerate(models):
        last = position == len(models) - 1
        total = request.timeouts.total_s
        if total is not None:
            total -= monotonic() - started
            if total <= 0:
                raise ModelTimeoutError(
                    f"{request.model} and its fallbacks have not answered within {request.timeouts.total_s:g} s. "
                    "Raise the timeout."
                )
        one = msgspec.structs.replace(
            request,
            model=model,
            fallbacks=[],
            timeouts=msgspec.structs.replace(request.timeouts, total_s=total),
        )
        try:
            reply = await ask(one, told, not last)
        except ModelError as error:
            tries += int(getattr(error, "tries", 1))
            error.tries = tries  # type: ignore[attr-defined]  # for the record of the call
            if last or isinstance(error, (ModelRequestError, ModelAnswerError)):
                raise
            if told is not None:
                told.restart()
            continue
        return msgspec.structs.replace(reply, tries=reply.tries + tries) if tries else reply
    raise AssertionError("the last model either answers or raises")


class _Told:
    """Hands text on, and remembers whether there was any."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._any = False

    def __call__(self, text: str) -> None:
        self._any = bool(text)
        self._on_text(text)

    def restart(self) -> None:
        if self._any:
            self("")
