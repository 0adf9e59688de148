"""The embedder behind an HTTP API, against a provider that behaves and one that does not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from flock_ray.errors import (
    ConfigurationError,
    ModelError,
    ModelRequestError,
    ModelTimeoutError,
    RateLimitError,
)
from flock_ray.semantic import OpenAIEmbedder
from flock_ray.semantic.openai import MAX_ANSWER_BYTES

Handler = Callable[[httpx.Request], httpx.Response]
SECRET = "sk-very-secret"


class Provider:
    """Answers with vectors [index, 1], in reverse order; `script` comes first."""

    def __init__(self, *script: Handler | httpx.Response | Exception) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []
        self.paused: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else self.good
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, httpx.Response) else step(request)

    @staticmethod
    def good(request: httpx.Request) -> httpx.Response:
        count = len(json.loads(request.content)["input"])
        data = [{"index": n, "embedding": [n, 1.0]} for n in reversed(range(count))]
        return httpx.Response(200, json={"data": data})

    def embedder(self, model: str = "openai/small", **options: Any) -> OpenAIEmbedder:
        made = OpenAIEmbedder(model, **{"api_key": SECRET, "sleep": self.paused.append, **options})
        made._client = httpx.Client(transport=httpx.MockTransport(self))
        return made


def test_texts_go_in_batches_and_vectors_come_back_in_order() -> None:
    provider = Provider()

    vectors = provider.embedder(batch_size=2, dimensions=2).embed(["a", "b", "c"])

    assert vectors == [[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    first = provider.requests[0]
    assert str(first.url) == "https://api.openai.com/v1/embeddings"
    assert first.headers["authorization"] == f"Bearer {SECRET}"
    assert json.loads(first.content) == {
        "model": "small", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "variables", "url", "key"),
    [
        ("openai/m", {"OPENAI_API_KEY": "k"}, "https://api.openai.com/v1/embeddings", "Bearer k"),
        ("openai/m", {"OPENAI_BASE_URL": "http://proxy/v1/"}, "http://proxy/v1/embeddings", None),
        ("ollama/m", {"OLLAMA_API_BASE": "http://box:11434"}, "http://box:11434/v1/embeddings", None),
        ("mistral/m", {"MISTRAL_API_KEY": "k"}, "https://api.mistral.ai/v1/embeddings", "Bearer k"),
        ("hosted_vllm/m", {"HOSTED_VLLM_API_BASE": "http://gpu/v1"}, "http://gpu/v1/embeddings", None),
    ],
)
def test_the_provider_decides_address_and_key(
    monkeypatch: pytest.MonkeyPatch, model: str, variables: dict[str, str], url: str, key: str | None
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider = Provider()

    provider.embedder(model, api_key=None).embed(["x"])

    assert str(provider.requests[0].url) == url
    assert provider.requests[0].headers.get("authorization") == key


def test_any_model_name_will_do_with_an_address_of_ones_own() -> None:
    provider = Provider()

    provider.embedder("BAAI/bge-small", base_url="http://tei/v1").embed(["x"])

    assert json.loads(provider.requests[0].content)["model"] == "BAAI/bge-small"


@pytest.mark.parametrize("model", ["nobody/m", "plain"])
def test_an_unknown_provider_is_refused_at_once(model: str) -> None:
    with pytest.raises(ConfigurationError, match=r"provider/model.*base_url="):
        OpenAIEmbedder(model)


def test_a_server_without_address_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTED_VLLM_API_BASE", raising=False)
    with pytest.raises(ConfigurationError, match="HOSTED_VLLM_API_BASE"):
        Provider().embedder("hosted_vllm/m").embed(["x"])


TRANSIENT = [
    httpx.Response(500),
    httpx.Response(503, text="<html>"),
    httpx.Response(200, text="garbage"),
    httpx.Response(200, json={"data": []}),
    httpx.Response(200, json={"data": [{"index": 0, "embedding": "zip"}]}),
    httpx.Response(200, json={"data": [{"index": 7, "embedding": [1.0]}]}),
    httpx.Response(200, json=[1]),
    httpx.Response(200, text="[" * 100_000),
    httpx.ConnectError("no route"),
    httpx.RemoteProtocolError("cut"),
]


@pytest.mark.parametrize("trouble", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(trouble: httpx.Response | Exception) -> None:
    provider = Provider(trouble)

    assert provider.embedder().embed(["x"]) == [[0.0, 1.0]]
    assert len(provider.requests) == 2
    assert provider.paused == [0.5]


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (lambda: httpx.Response(500), ModelError),
        (lambda: httpx.ReadTimeout("slow"), ModelTimeoutError),
        (lambda: httpx.Response(429, headers={"retry-after": "2"}), RateLimitError),
    ],
)
def test_after_all_tries_the_error_is_typed_and_retryable(
    trouble: Callable[[], Any], kind: type[ModelError]
) -> None:
    provider = Provider(*(trouble() for _ in range(3)))

    with pytest.raises(kind) as raised:
        provider.embedder(tries=3).embed(["private text"])

    assert raised.value.retryable
    assert len(provider.requests) == 3
    assert provider.paused == ([2.0, 2.0] if kind is RateLimitError else [0.5, 1.0])
    assert SECRET not in str(raised.value)
    assert "private" not in str(raised.value)


@pytest.mark.parametrize("asked", ["3600", "soon"])
def test_a_long_pause_is_the_callers_decision(asked: str) -> None:
    provider = Provider(*(httpx.Response(429, headers={"retry-after": asked}) for _ in range(3)))

    with pytest.raises(RateLimitError) as raised:
        provider.embedder().embed(["x"])

    assert raised.value.retry_after_s == (3600.0 if asked == "3600" else 1.0)
    assert len(provider.requests) == (1 if asked == "3600" else 3)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "OPENAI_API_KEY"),
        (403, "API key"),
        (404, "model's name"),
        (400, "no such request"),
        (302, "no such"),
    ],
)
def test_a_refusal_is_not_tried_again_and_quotes_nothing(status: int, says: str) -> None:
    body = {"error": {"message": f"Incorrect API key {SECRET} for private text"}}
    provider = Provider(httpx.Response(status, json=body, headers={"location": "http://evil"}))

    with pytest.raises(ModelRequestError, match=says) as raised:
        provider.embedder().embed(["private text"])

    assert not raised.value.retryable
    assert len(provider.requests) == 1
    assert SECRET not in str(raised.value)
    assert "private" not in str(raised.value)


def test_an_endless_answer_is_cut_off() -> None:
    def endless(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, content=(b" " * 1_000_000 for _ in range(2 * MAX_ANSWER_BYTES // 1_000_000))
        )

    provider = Provider(endless)

    with pytest.raises(ModelError, match="without end"):
        provider.embedder(tries=1).embed(["x"])


def test_it_travels_without_connections_and_shows_no_key() -> None:
    embedder = OpenAIEmbedder("openai/small", api_key=SECRET)
    embedder._connected()

    arrived = pickle.loads(pickle.dumps(embedder))

    assert arrived._client is None
    assert arrived._key() == SECRET
    assert SECRET not in repr(embedder)
    assert SECRET not in repr(embedder.__dict__)
    embedder._client.close()
