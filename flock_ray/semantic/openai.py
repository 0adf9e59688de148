"""Embeds behind an HTTP API in OpenAI's form, which most providers and local servers offer.

On a board its requests go through the model gateway: limits, budgets, cassettes and `flock.usage()` hold for them.
Elsewhere it makes them itself, with httpx: litellm would cost the process 2 s and 120 MB. Needs the extra `llm`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import SecretStr

from flock_ray.embeddings import embeddings_here
from flock_ray.errors import (
    ConfigurationError,
    ModelError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.model import Caller, ModelRequest, Timeouts, unpacked

__all__ = ["OpenAIEmbedder"]

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_PAUSE_S = 30.0


class _Provider(NamedTuple):
    url: str
    """Default address; empty: it must be given."""
    url_variable: str
    key_variable: str


_PROVIDERS = {
    "openai": _Provider("https://api.openai.com/v1", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "mistral": _Provider("https://api.mistral.ai/v1", "MISTRAL_API_BASE", "MISTRAL_API_KEY"),
    "voyage": _Provider("https://api.voyageai.com/v1", "VOYAGE_API_BASE", "VOYAGE_API_KEY"),
    "ollama": _Provider("http://localhost:11434/v1", "OLLAMA_API_BASE", "OLLAMA_API_KEY"),
    "lm_studio": _Provider("http://localhost:1234/v1", "LM_STUDIO_API_BASE", "LM_STUDIO_API_KEY"),
    "hosted_vllm": _Provider("", "HOSTED_VLLM_API_BASE", "HOSTED_VLLM_API_KEY"),
    "litellm_proxy": _Provider("", "LITELLM_PROXY_API_BASE", "LITELLM_PROXY_API_KEY"),
}


class OpenAIEmbedder:
    """A model behind `POST {base_url}/embeddings`. Safe to use from several threads; connections are reused."""

    def __init__(
        self,
        model: str = "openai/text-embedding-3-small",
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        dimensions: int | None = None,
        batch_size: int = 128,
        timeout_s: float = 30.0,
        tries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Name a model; nothing is connected to.

        Args:
            model: As `provider/model`: openai, mistral, voyage, ollama, lm_studio, hosted_vllm, litellm_proxy.
            base_url: Up to and including `/v1`; None: the provider's variable, else its default.
            api_key: None: the provider's variable, such as OPENAI_API_KEY, of each process that embeds. Given
                here, it travels to the workers with the agents.
            dimensions: Numbers of a vector, for models that can be asked for fewer; None is the model's own.
            batch_size: Texts of one request.
            timeout_s: Of one try, in seconds.
            tries: Of one request: what may pass (429, 5xx, lost connections) is tried again.
            sleep: Waits between tries; for tests.

        Raises:
            ConfigurationError: The provider is unknown and there is no `base_url`.
        """
        self.name = model if dimensions is None else f"{model}@{dimensions}"
        prefix, slash, rest = model.partition("/")
        provider = _PROVIDERS.get(prefix) if slash else None
        if provider is None and base_url is None:
            raise ConfigurationError(
                f"embedder {model!r}: write provider/model with one of {', '.join(_PROVIDERS)}, "
                "or give base_url= of a server with OpenAI's API."
            )
        self._model = rest if provider is not None else model
        self.gateway_model = model if provider is not None else f"openai/{model}"
        self._provider = provider or _PROVIDERS["openai"]
        self._base_url = base_url
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._dimensions = dimensions
        self._batch_size = max(1, batch_size)
        self._timeout_s = timeout_s
        self._tries = max(1, tries)
        self._sleep = sleep
        self._client: Any = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Show the model."""
        return f"OpenAIEmbedder({self.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Travel without connections."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_client", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive; connections are made here."""
        self.__dict__.update(state, _client=None, _lock=threading.Lock())

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text, in order. Blocks.

        Raises:
            ModelRequestError: The provider refuses: wrong key, unknown model, bad request. Not retryable.
            RateLimitError: It asks to wait, also after all tries; retryable.
            ModelTimeoutError: It did not answer in time; retryable.
            ModelError: It failed, or answered with garbage; retryable.
        """
        batches = [texts[at : at + self._batch_size] for at in range(0, len(texts), self._batch_size)]
        here = embeddings_here()
        if here.embeddings is not None:
            replies = here.embeddings.ask([self._asked(batch, here.agent) for batch in batches])
            return [unpacked(vector) for reply in replies for vector in reply.vectors]
        return [vector for batch in batches for vector in self._request(batch)]

    def _asked(self, texts: list[str], agent: str) -> ModelRequest:
        """Return the request for a gateway; what this embedder was given wins over its settings."""
        extra: dict[str, Any] = {"encoding_format": "float"}
        if self._dimensions is not None:
            extra["dimensions"] = self._dimensions
        if self._base_url is not None:
            # A server of one's own asks for no key, mostly; litellm does.
            extra |= {"api_base": self._base_url.rstrip("/"), "api_key": self._key() or "none"}
        if self._api_key is not None:
            extra["api_key"] = self._api_key.get_secret_value()
        return ModelRequest(
            model=self.gateway_model,
            embed=texts,
            extra=extra,
            timeouts=Timeouts(total_s=self._timeout_s * self._tries),
            caller=Caller(agent=agent),
        )

    def _request(self, texts: list[str]) -> list[list[float]]:
        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        for left in range(self._tries - 1, -1, -1):
            try:
                return _vectors(self._post(body), len(texts), self.name)
            except ModelError as error:
                if not error.retryable or not left:
                    raise
                pause = getattr(error, "retry_after_s", 0.0) or 0.5 * 2 ** (self._tries - 1 - left)
                if pause > MAX_PAUSE_S:
                    raise
                self._sleep(pause)
        raise AssertionError("unreachable")

    def _post(self, body: dict[str, Any]) -> bytes:
        client, httpx = self._connected()
        key = self._key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            with client.stream("POST", f"{self._url()}/embeddings", json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer.status_code, answer.headers.get("retry-after"))
                data = bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > MAX_ANSWER_BYTES:
                        raise ModelError(f"The embedder {self.name!r} answers without end. Check base_url.")
                return bytes(data)
        except httpx.TimeoutException:
            raise ModelTimeoutError(
                f"The embedder {self.name!r} did not answer within {self._timeout_s:g} s. "
                "Try again, or raise timeout_s."
            ) from None
        except httpx.InvalidURL:
            raise ModelRequestError(f"The base_url of the embedder {self.name!r} is no address.") from None
        except httpx.HTTPError as error:
            # Its text may name the URL, which may hold a password.
            raise ModelError(
                f"The embedder {self.name!r} can't be reached ({type(error).__name__}). Check base_url, and try again."
            ) from None

    def _refusal(self, status: int, retry_after: str | None) -> ModelError:
        at = f"The embedder {self.name!r} answered {status}"
        if status == 429:
            return RateLimitError(
                f"{at}: too many requests. Wait, and try again.", retry_after_s=_seconds(retry_after)
            )
        if status in (401, 403):
            return ModelRequestError(f"{at}: check the API key ({self._provider.key_variable}).")
        if status == 404:
            return ModelRequestError(f"{at}: check the model's name and base_url.")
        if status in (408, 409, 425) or status >= 500:
            return ModelError(f"{at}. Try again.")
        return ModelRequestError(
            f"{at}: it takes no such request. Check the model, its dimensions and base_url."
        )

    def _connected(self) -> tuple[Any, Any]:
        try:
            import httpx
        except ImportError as error:
            raise ConfigurationError(
                "OpenAIEmbedder needs httpx: install flock-ray[llm], on the workers too."
            ) from error
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(timeout=self._timeout_s)
            return self._client, httpx

    def _url(self) -> str:
        url = self._base_url or os.environ.get(self._provider.url_variable) or self._provider.url
        if not url:
            raise ConfigurationError(
                f"embedder {self.name!r}: give base_url=, or set {self._provider.url_variable}."
            )
        url = url.rstrip("/")
        # Others set Ollama's variable without the version; its API in OpenAI's form is below it.
        return f"{url}/v1" if self._provider is _PROVIDERS["ollama"] and not url.endswith("/v1") else url

    def _key(self) -> str | None:
        if self._api_key is not None:
            return self._api_key.get_secret_value()
        return os.environ.get(self._provider.key_variable) or None


def _vectors(data: bytes, count: int, name: str) -> list[list[float]]:
    """Read an answer; the vectors may come in any order."""
    try:
        entries = json.loads(data)["data"]
        by_index = {entry["index"]: [float(number) for number in entry["embedding"]] for entry in entries}
        return [by_index[index] for index in range(count)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(f"The embedder {name!r} did not answer with {count} vectors. Try again.") from None


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 1.0))
    except ValueError:
        return 1.0
