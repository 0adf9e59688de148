"""A hostile OpenAI-compatible server on localhost, for tests and benches.

In a test, on its loop:

    async with LLMServer() as server:
        server.script(rate_limited(0.1), text("hello"))      # the next two requests
        server.on(lambda seen: "Paris" in seen.prompt, text("Ooh la la"))
        ...  # base_url=server.url, api_key=server.key
        assert server.count("rate_limited") == 1

From code without a loop (`with in_thread() as server`), or as a process of its own:

    python -m tests.llm_server --port 8099 --latency 2 --faults 0.2

Without script and rules a request with a JSON schema gets an answer that fits it, a request with tools
calls the first one until a tool message is there, and everything else is echoed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import resource
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

from tests import llm_answers as answers
from tests.llm_answers import Answer
from tests.llm_http import Connection, Exchange, listen
from tests.llm_wire import Seen, embedding, send_stream, send_whole, text_of, tokens

KEEP = 10_000
"""Requests that are remembered; counts go on."""

FAULTS = (
    "rate_limited", "error_500", "error_503", "cut", "dropped", "garbage", "wrong_schema", "broken_json",
    "whitespace", "refusal",
)  # fmt: skip

_FAULT: dict[str, Callable[[], Answer]] = {
    "rate_limited": lambda: answers.rate_limited(0.05),
    "error_500": lambda: answers.server_error(500),
    "error_503": lambda: answers.server_error(503),
    "cut": answers.cut,
    "dropped": answers.dropped,
    "garbage": answers.garbage,
    "wrong_schema": answers.wrong_schema,
    "broken_json": answers.broken_json,
    "whitespace": lambda: answers.whitespace(repeats=512),
    "refusal": answers.refusal,
    "content_filter": answers.content_filter,
    "stall": answers.stall,
    "silent": answers.silent,
    "slow": lambda: answers.slow_first_token(1.0),
    "bad_arguments": lambda: answers.bad_arguments("no_such_tool"),
}


Choice = Answer | str | dict[str, Any] | None
"""An answer; text; an object that goes out as JSON; None: somebody else decides."""
Respond = Answer | Callable[[Seen], Choice]


def default_answer(seen: Seen) -> Answer:
    """Answer what was asked for: the schema, a tool call, or an echo."""
    if seen.schema is not None:
        return answers.json_answer(answers.instance(seen.schema))
    tools = seen.body.get("tools")
    if tools and not any(message.get("role") == "tool" for message in seen.messages):
        function = tools[0]["function"]
        return answers.tool_calls((function["name"], answers.instance(function.get("parameters") or {})))
    last = seen.messages[-1] if seen.messages else {}
    return answers.text(f"echo: {text_of(last.get('content'))}")


class LLMServer:
    """Serves /v1/chat/completions, /v1/embeddings and /v1/models."""

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        faults: float = 0.0,
        fault_kinds: tuple[str, ...] = FAULTS,
        seed: int = 1,
        key: str = "sk-test-0123456789abcdef",
        any_key: bool = False,
        models: tuple[str, ...] | None = None,
        context_tokens: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        max_concurrent: int | None = None,
        dimensions: int = 32,
        keep: int = KEEP,
        respond: Respond = default_answer,
    ) -> None:
        """Prepare a server.

        Args:
            latency_s: Seconds before each good answer of its own making.
            faults: Share of requests, 0 to 1, that get one of `fault_kinds` instead of an answer. The choice
                hangs on the seed, the request's body and how often it came, never on the order of arrival.
            fault_kinds: Which faults; there are also content_filter, stall, silent, slow and bad_arguments.
            seed: Of the faults.
            key: The one API key that is accepted.
            any_key: Accept every key.
            models: What exists; None: everything.
            context_tokens: Longer prompts (at 4 characters a token) get context_length_exceeded; None: no limit.
            rpm: Requests in any 60 s, past which 429 is answered; rate-limit headers say what is left.
            tpm: Tokens in any 60 s, of prompts and at most `max_tokens` of answers; the same.
            max_concurrent: Requests at a time, past which 429 is answered.
            dimensions: Of embeddings.
            keep: Requests that are remembered.
            respond: The answer when neither script nor rule has one.
        """
        self.key = key
        self.requests: deque[Seen] = deque(maxlen=keep)
        self.kinds: Counter[str] = Counter()
        self.num_requests = self.num_cancelled = self.num_done = self.open = self.max_open = 0
        self.rpm = rpm
        self.tpm = tpm
        self.max_concurrent = max_concurrent
        self.models = models
        self.context_tokens = context_tokens
        self.latency_s = latency_s
        self.faults = faults
        self._fault_kinds, self._seed, self._any_key = fault_kinds, seed, any_key
        self._dimensions, self._respond = dimensions, respond
        self._script: deque[Respond] = deque()
        self._rules: list[tuple[Callable[[Seen], bool], Respond]] = []
        self._times: Counter[bytes] = Counter()
        self._recent: deque[tuple[float, int]] = deque()
        """(time, tokens) of the requests of the last 60 s that were let in."""
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self.port = 0

    # -- what it answers -----------------------------------------------------------------------

    def script(self, *responses: Respond | str | dict[str, Any]) -> None:
        """Give the next requests to /chat/completions these answers, in turn."""
        self._script.extend(_respond(response) for response in responses)

    def on(self, when: Callable[[Seen], bool], respond: Respond | str | dict[str, Any]) -> None:
        """Give requests that a function picks this answer; later rules go first, the script before them."""
        self._rules.insert(0, (when, _respond(respond)))

    def _choose(self, seen: Seen) -> Answer:
        if refused := self._refused(seen):
            return refused
        if self._script:
            chosen = self._made(self._script.popleft(), seen)
            if chosen is not None:
                return chosen
        for when, respond in self._rules:
            if when(seen) and (chosen := self._made(respond, seen)) is not None:
                return chosen
        if self.faults and (fault := self._fault(seen)) is not None:
            return fault
        return self._made(self._respond, seen) or default_answer(seen)

    @staticmethod
    def _made(respond: Respond, seen: Seen) -> Answer | None:
        made = respond if isinstance(respond, Answer) else respond(seen)
        if isinstance(made, str):
            return answers.text(made)
        return answers.json_answer(made) if isinstance(made, dict) else made

    def _refused(self, seen: Seen) -> Answer | None:
        if seen.key != self.key and not self._any_key:
            return answers.wrong_key()
        if self.models is not None and seen.model not in self.models:
            return answers.unknown_model(seen.model)
        wait_s = round(self._window_s(), 3)
        cost = tokens(seen.prompt) + (seen.body.get("max_tokens") or 0)
        if self.rpm is not None and len(self._recent) >= self.rpm:
            return answers.rate_limited(wait_s, kind="over_rpm")
        if self.tpm is not None and sum(used for _, used in self._recent) + cost > self.tpm:
            return answers.rate_limited(wait_s, kind="over_tpm")
        if self.max_concurrent is not None and self.open > self.max_concurrent:
            return answers.rate_limited(0.05, kind="over_concurrency")
        if self.rpm is not None or self.tpm is not None:
            self._recent.append((time.monotonic(), cost))
        asked = tokens(seen.prompt)
        if self.context_tokens is not None and asked > self.context_tokens:
            return answers.context_too_long(self.context_tokens, asked)
        return None

    def _fault(self, seen: Seen) -> Answer | None:
        body = hashlib.blake2b(json.dumps(seen.body, sort_keys=True).encode(), digest_size=16).digest()
        self._times[body] += 1
        mark = hashlib.blake2b(
            body + struct.pack("<qq", self._seed, self._times[body]), digest_size=8
        ).digest()
        share, choice = struct.unpack("<II", mark)
        if share / 2**32 >= self.faults:
            return None
        return _FAULT[self._fault_kinds[choice % len(self._fault_kinds)]]()

    # -- what it saw ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Base URL for clients, with /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def count(self, kind: str) -> int:
        """Return how many requests were answered with a kind."""
        return self.kinds[kind]

    def stats(self) -> dict[str, Any]:
        """Return all counts."""
        names = ("num_requests", "num_done", "num_cancelled", "num_connections", "open", "max_open")
        return {**{name: getattr(self, name) for name in names}, "kinds": dict(self.kinds)}

    async def until(self, holds: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Wait until something is so, such as `lambda s: s.num_cancelled == 1`; TimeoutError when it never is."""
        async with asyncio.timeout(timeout_s):
            while not holds(self):
                self._changed.clear()
                await self._changed.wait()

    # -- life ----------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> Self:
        """Listen on localhost; 0: a free port."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._server = await listen(self._handle, self._connections, port=port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Break every connection and stop to listen."""
        if self._server is not None:
            self._server.close()
        leaving = list(self._connections)
        for connection in leaving:
            connection.abort()
        await asyncio.gather(*(connection.gone.wait() for connection in leaving))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- requests ------------------------------------------------------------------------------

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.path == "/stats":
            return exchange.reply(200, self.stats())
        if exchange.path == "/v1/models":
            listed = [{"id": model, "object": "model"} for model in self.models or ("test-model",)]
            return exchange.reply(200, {"object": "list", "data": listed})
        if exchange.method != "POST" or exchange.path not in ("/v1/chat/completions", "/v1/embeddings"):
            return exchange.reply(404, {"error": {"message": f"no such path: {exchange.path}"}})
        try:
            body = json.loads(exchange.body)
        except ValueError:
            return exchange.reply(400, {"error": {"message": "the body is no JSON"}})
        self.num_requests += 1
        seen = Seen(self.num_requests, exchange.path, exchange.headers, body)
        self.requests.append(seen)
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        self._changed.set()
        try:
            await self._answer(exchange, seen)
            seen.done = True
            self.num_done += 1
        except asyncio.CancelledError:
            seen.cancelled = True
            self.num_cancelled += 1
            raise
        finally:
            self.open -= 1
            seen.status = exchange.status
            self._changed.set()

    async def _answer(self, exchange: Exchange, seen: Seen) -> None:
        answer = self._embedded(seen) if exchange.path == "/v1/embeddings" else self._choose(seen)
        self.kinds[answer.kind] += 1
        seen.kind = answer.kind
        delay_s = answer.latency_s or (self.latency_s if answer.status == 200 and not answer.drop else 0.0)
        if delay_s:
            await asyncio.sleep(delay_s)
        if answer.drop:
            return exchange.cut()
        headers = {"x-request-id": f"req-{seen.number}", **self._limits(), **answer.headers}
        if answer.error is not None:
            return exchange.reply(answer.status, {"error": answer.error}, headers)
        if seen.body.get("stream") and exchange.path != "/v1/embeddings":
            return await send_stream(exchange, seen, answer, headers)
        await send_whole(exchange, seen, answer, headers)

    def _window_s(self) -> float:
        """Return the seconds until the oldest request is 60 s old, and forget those that are."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] <= now - 60:
            self._recent.popleft()
        return self._recent[0][0] + 60 - now if self._recent else 0.0

    def _limits(self) -> dict[str, str]:
        wait_s = self._window_s()
        headers = {}
        used = sum(cost for _, cost in self._recent)
        for what, limit, taken in (("requests", self.rpm, len(self._recent)), ("tokens", self.tpm, used)):
            if limit is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(max(0, limit - taken))
                headers[f"x-ratelimit-reset-{what}"] = f"{wait_s:.3f}s"
        return headers

    def _embedded(self, seen: Seen) -> Answer:
        if refused := self._refused(seen):
            return refused
        if self.faults and (fault := self._fault(seen)) is not None and fault.status != 200:
            return fault
        given = seen.body.get("input", [])
        texts = [given] if isinstance(given, str) else [str(item) for item in given]
        dimensions = seen.body.get("dimensions") or self._dimensions
        rows = []
        for index, item in enumerate(texts):
            vector: Any = embedding(item, dimensions)
            if seen.body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            rows.append({"object": "embedding", "index": index, "embedding": vector})
        num_tokens = sum(map(tokens, texts))
        body = {
            "object": "list", "data": rows, "model": seen.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }  # fmt: skip
        return Answer(kind="embedding", body=json.dumps(body).encode())


def _respond(response: Respond | str | dict[str, Any]) -> Respond:
    if isinstance(response, str):
        return answers.text(response)
    return answers.json_answer(response) if isinstance(response, dict) else response


# -- other ways to run it ----------------------------------------------------------------------


@contextlib.contextmanager
def in_thread(**options: Any) -> Iterator[LLMServer]:
    """Serve from a thread of its own: for code without a loop, or whose loop is busy."""
    server = LLMServer(**options)
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        await server.start()
        ready.set()

    def run() -> None:
        started = loop.create_task(serve())
        loop.run_forever()
        started.cancel()

    thread = threading.Thread(target=run, name="llm-server", daemon=True)
    thread.start()
    try:
        if not ready.wait(10):
            raise TimeoutError("the test server did not start")
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[LLMServer]:
    """Serve on the running loop."""
    async with LLMServer(**options) as server:
        yield server


def main() -> None:
    """Serve until killed; prints the address."""
    parser = argparse.ArgumentParser(description="A hostile OpenAI-compatible server on localhost.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of broken answers, 0 to 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rpm", type=int, default=None)
    parser.add_argument("--tpm", type=int, default=None)
    parser.add_argument("--context-tokens", type=int, default=None)
    options = parser.parse_args()

    async def serve() -> None:
        server = LLMServer(
            latency_s=options.latency, faults=options.faults, seed=options.seed, rpm=options.rpm, tpm=options.tpm,
            context_tokens=options.context_tokens, any_key=True, keep=0,
        )  # fmt: skip
        await server.start(options.port)
        print(server.url, flush=True)
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
