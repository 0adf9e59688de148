"""Azure AI Content Safety's Prompt Shields as a guard."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import msgspec
from pydantic import Field, PrivateAttr, SecretStr

from flock_ray.components.guards import GuardComponent, GuardVerdict
from flock_ray.errors import ConfigurationError, ModelError, ModelRequestError, ModelTimeoutError

__all__ = ["AzurePromptShieldComponent"]

ENDPOINT_VARIABLE = "AZURE_CONTENT_SAFETY_ENDPOINT"
KEY_VARIABLE = "AZURE_CONTENT_SAFETY_KEY"

MAX_CALL_CHARS = 10_000
"""What the service takes of a prompt, and of all documents of a call together."""
MAX_CALL_DOCUMENTS = 5
OVERLAP_CHARS = 500
"""Neighbouring pieces of a longer text share this much: an attack is not cut in two."""
MAX_ANSWER_BYTES = 1_000_000

Call = tuple[str, list[str]]


class _Analysis(msgspec.Struct):
    detected: bool = msgspec.field(name="attackDetected")


class _Answer(msgspec.Struct):
    prompt: _Analysis | None = msgspec.field(name="userPromptAnalysis", default=None)
    documents: list[_Analysis] | None = msgspec.field(name="documentsAnalysis", default=None)


class AzurePromptShieldComponent(GuardComponent):
    """Asks Azure's Prompt Shields whether inputs try to take over the model.

    Texts longer than one call takes are looked at in overlapping pieces. The service scans prompts, not answers:
    with `scan_output` an answer is looked at as if it were a document.
    """

    endpoint: str | None = None
    """Such as https://name.cognitiveservices.azure.com; None: `AZURE_CONTENT_SAFETY_ENDPOINT` of the worker."""
    api_key: SecretStr | None = None
    """None: `AZURE_CONTENT_SAFETY_KEY` of the worker, which keeps the key out of what is sent to workers."""
    api_version: str = "2024-09-01"
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that one call may take."""
    max_chars: int = Field(default=200_000, gt=0)
    """Longest text that is scanned, documents included; a longer one counts as a scan that failed."""
    max_parallel: int = Field(default=4, gt=0)
    """Calls of one scan at the same time."""

    _client: Any = PrivateAttr(default=None)
    _loop: Any = PrivateAttr(default=None)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the connections behind: workers open their own."""
        state = super().__getstate__()
        private = {**(state.get("__pydantic_private__") or {}), "_client": None, "_loop": None}
        return {**state, "__pydantic_private__": private}

    async def scan_input(self, text: str, documents: list[str]) -> GuardVerdict:
        """Look at the inputs as the prompt, and at the context as documents."""
        return await self._scan(text, documents)

    async def scan_output(self, text: str) -> GuardVerdict:
        """Look at an answer as a document."""
        return await self._scan("", [text])

    async def aclose(self) -> None:
        """Close the connections; the next scan opens new ones."""
        client, self._client, self._loop = self._client, None, None
        if client is not None:
            await client.aclose()

    async def _scan(self, text: str, documents: list[str]) -> GuardVerdict:
        size = len(text) + sum(len(document) for document in documents)
        if size > self.max_chars:
            raise ConfigurationError(
                f"the text has {size} characters and max_chars is {self.max_chars}: raise it, or split the input."
            )
        limit = asyncio.Semaphore(self.max_parallel)

        async def one(call: Call) -> list[str]:
            async with limit:
                return await self._ask(*call)

        found: list[str] = []
        for flagged in await asyncio.gather(*(one(call) for call in _calls(text, documents))):
            found += flagged
        if not found:
            return GuardVerdict(safe=True, provider="azure-prompt-shield")
        where = sorted(set(found))
        reason = f"an attack was detected in the {' and the '.join(where)}"
        return GuardVerdict(
            safe=False, reason=reason, details={"detected_in": where}, provider="azure-prompt-shield"
        )

    async def _ask(self, prompt: str, documents: list[str]) -> list[str]:
        """Make one call and return where an attack was found.

        Raises:
            ModelRequestError: The key or the request is refused; it would be refused again.
            ModelTimeoutError: No answer in time; retryable.
            ModelError: The service failed, or its answer has no verdict; retryable.
        """
        httpx = _httpx()
        client = self._connected(httpx)
        body = {"userPrompt": prompt, "documents": documents}
        url, headers = self._address()
        try:
            async with asyncio.timeout(self.timeout_s):
                async with client.stream("POST", url, json=body, headers=headers) as answer:
                    status, data = answer.status_code, await _read(answer)
        except TimeoutError:
            raise ModelTimeoutError(
                f"Prompt Shields did not answer within {self.timeout_s:g} s. Raise timeout_s, or try again."
            ) from None
        except httpx.HTTPError as error:
            raise ModelError(
                f"Prompt Shields can't be reached: {type(error).__name__}. Check the endpoint and try again."
            ) from None
        if status in (400, 401, 403, 404):
            raise ModelRequestError(
                f"Prompt Shields refused the call with HTTP {status}. Check {KEY_VARIABLE}, the endpoint and "
                "api_version."
            )
        if status != 200:
            raise ModelError(f"Prompt Shields failed with HTTP {status}. Try again later.")
        return _detected(data, bool(prompt), len(documents))

    def _connected(self, httpx: Any) -> Any:
        """Return the client of the running loop; connections can't be used from another one."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = httpx.AsyncClient(timeout=None, follow_redirects=False), loop
        return self._client

    def _address(self) -> tuple[str, dict[str, str]]:
        endpoint = (self.endpoint or os.environ.get(ENDPOINT_VARIABLE, "")).rstrip("/")
        key = self.api_key.get_secret_value() if self.api_key else os.environ.get(KEY_VARIABLE, "")
        if not endpoint or not key:
            missing = f"endpoint= or {ENDPOINT_VARIABLE}" if not endpoint else f"api_key= or {KEY_VARIABLE}"
            raise ConfigurationError(f"Prompt Shields needs {missing} where the agent runs.")
        parts = urlsplit(endpoint)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigurationError(
                "The endpoint of Prompt Shields must begin with https://: it gets the key."
            )
        url = f"{endpoint}/contentsafety/text:shieldPrompt?api-version={self.api_version}"
        return url, {"Ocp-Apim-Subscription-Key": key}


def _httpx() -> Any:
    try:
        return import_module("httpx")
    except ImportError:
        raise ConfigurationError(
            "AzurePromptShieldComponent needs httpx where the agent runs: pip install httpx."
        ) from None


def _pieces(text: str) -> list[str]:
    step = MAX_CALL_CHARS - OVERLAP_CHARS
    last = max(1, len(text) - OVERLAP_CHARS)
    return [text[start : start + MAX_CALL_CHARS] for start in range(0, last, step)] if text else []


def _calls(text: str, documents: list[str]) -> list[Call]:
    """Split a scan into calls that the service takes; nothing is left out."""
    calls: list[Call] = [(piece, []) for piece in _pieces(text)]
    batch: list[str] = []
    room = 0
    for piece in (piece for document in documents for piece in _pieces(document)):
        if not batch or len(batch) == MAX_CALL_DOCUMENTS or len(piece) > room:
            batch, room = [], MAX_CALL_CHARS
            calls.append(("", batch))
        batch.append(piece)
        room -= len(piece)
    return calls


async def _read(answer: Any) -> bytes:
    data = bytearray()
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise ModelError("Prompt Shields sent an endless answer. Check the endpoint.")
    return bytes(data)


def _detected(data: bytes, has_prompt: bool, num_documents: int) -> list[str]:
    """Read the verdicts; one that is missing is an error, never a yes."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except msgspec.MsgspecError:
        answer = _Answer()
    verdicts = [("documents", one.detected) for one in answer.documents or ()]
    if (has_prompt and answer.prompt is None) or len(verdicts) != num_documents:
        raise ModelError(
            "Prompt Shields sent an answer without a verdict. Check the endpoint and api_version."
        )
    if answer.prompt is not None:
        verdicts.append(("prompt", answer.prompt.detected))
    return [where for where, detected in verdicts if detected]
