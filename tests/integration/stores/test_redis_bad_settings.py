from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.redis_store import RedisStore
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.core.rows import ArtifactQuery
from flock_ray.errors import (
    ConfigurationError,
    FlockError,
    StoreCorruptError,
    StoreUnavailableError,
)
from tests.redis_server import RedisServer, free_port, redis_server
from tests.unit.adapters.store_rows import activation, artifact, batch, key, workflow

SECRET = "s3cr3t/p@ss"
QUOTED = "s3cr3t%2Fp%40ss"
TAG = "flock:{board:0}:"
EVERYTHING = ArtifactQuery()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), SECRET, appendfsync="always") as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> Iterator[RedisServer]:
    yield running
    with running.client() as client:
        client.flushall()
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    async with opened(server) as store:
        await store.append(batch(1, [artifact("a"), artifact("b")], workflows=[workflow()]))
        yield store


@contextlib.asynccontextmanager
async def opened(server: RedisServer) -> AsyncIterator[RedisStore]:
    persistence = good(server)
    await persistence.prepare("board", 1)
    store = persistence.store("board", 0, range(256))
    try:
        await store.acquire()
        yield store
    finally:
        await store.close()


def good(server: RedisServer) -> RedisPersistence:
    return RedisPersistence(f"redis://:{QUOTED}@127.0.0.1:{server.port}")


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith(".") and ". " not in text, text
    return without_secrets(error)


def without_secrets(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        for word in (SECRET, QUOTED, "s3cr3t"):
            assert word not in str(seen) and word not in repr(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return str(error)


# settings


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("redis://127.0.0.1:{port}", "password"),
        ("redis://:wrong-s3cr3t@127.0.0.1:{port}", "password"),
        ("redis://nobody:s3cr3t@127.0.0.1:{port}", "password"),
        ("redis://:{secret}@127.0.0.1:{port}/99", "database"),
        ("redis://:{secret}@127.0.0.1:{free}", "nothing listens"),
        ("redis://:{secret}@no-such-host.invalid:{port}", "host name"),
        ("unix:///no/such/socket?password={secret}", "no such socket"),
        ("redis+sentinel://:{secret}@127.0.0.1:{port}/board", "no Sentinel"),
        ("redis+sentinel://127.0.0.1:{port}/board?sentinel_password={secret}", "no Sentinel"),
        ("redis+cluster://:{secret}@127.0.0.1:{port}", "cluster"),
    ],
)
async def test_prepare_says_in_one_sentence_what_to_correct(server: RedisServer, url: str, hint: str) -> None:
    text = url.format(port=server.port, free=free_port(), secret=QUOTED)
    persistence = RedisPersistence(text, timeout=5)

    with pytest.raises(ConfigurationError, match=hint) as caught:
        await persistence.prepare("board", 1)

    one_sentence(caught.value)
    assert "s3cr3t" not in repr(persistence)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://u:s3cr3t@localhost",
        "redis://u:s3cr3t@localhost:s3cr3t",
        "redis://u:s3cr3t@localhost:99999",
        "redis://u:s3cr3t@[::1",
        "redis://u:s3cr3t@localhost/s3cr3t",
        "redis://u:s3cr3t@",
        "unix://",
        "redis+sentinel://u:s3cr3t@localhost:26379",
        "redis+sentinel://u:s3cr3t@/service",
        "redis+cluster://u:s3cr3t@,",
        "redis://u:s3cr3t@localhost?db=s3cr3t",
    ],
)
def test_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisPersistence(url)

    one_sentence(caught.value)


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"timeout": float("inf")}, {"wait_replicas": -1}])
def test_numbers_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RedisPersistence(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_nothing_shows_the_password() -> None:
    persistence = RedisPersistence(f"redis://me:{QUOTED}@127.0.0.1:6390/3?client_name=s3cr3t")

    shown = repr(persistence) + str(persistence) + repr(persistence.__dict__["_target"])

    assert "s3cr3t" not in shown
    assert "redis://127.0.0.1:6390" in repr(persistence)
    assert repr(persistence) == repr(pickle.loads(pickle.dumps(persistence)))


async def test_server_that_is_not_redis_is_refused() -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(ConfigurationError, match="not Redis") as caught:
            await RedisPersistence(f"redis://127.0.0.1:{port}").prepare("board", 1)

    one_sentence(caught.value)


async def test_server_without_tls_is_refused() -> None:
    async with answering(b"-ERR unknown command\r\n") as port:
        with pytest.raises(ConfigurationError, match="TLS") as caught:
            await RedisPersistence(f"rediss://:{QUOTED}@127.0.0.1:{port}").prepare("board", 1)

    one_sentence(caught.value)


async def test_redis_that_waits_for_the_end_of_a_tls_greeting_is_explained(server: RedisServer) -> None:
    persistence = RedisPersistence(f"rediss://127.0.0.1:{server.port}", timeout=0.5)

    with pytest.raises(StoreUnavailableError, match="rediss:// against redis://"):
        await persistence.prepare("board", 1)


async def test_server_that_never_answers_is_unavailable_after_the_timeout() -> None:
    async with answering(b"") as port:
        persistence = RedisPersistence(f"redis://127.0.0.1:{port}", timeout=0.2)
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailableError):
                await persistence.prepare("board", 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("NOAUTH Authentication required. s3cr3t", ConfigurationError),
        ("WRONGPASS invalid username-password pair s3cr3t", ConfigurationError),
        ("NOPERM this user has no permissions s3cr3t", ConfigurationError),
        ("ERR unknown command 'EVALSHA', with args beginning with: s3cr3t", ConfigurationError),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailableError),
        ("READONLY You can't write against a read only replica.", StoreUnavailableError),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailableError),
        ("CLUSTERDOWN The cluster is down", StoreUnavailableError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailableError),
        ("ASK 3999 127.0.0.1:6381", StoreUnavailableError),
        ("BUSY Redis is busy running a script.", StoreUnavailableError),
        ("MISCONF Errors writing to the AOF file: No space left on device", StoreUnavailableError),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailableError),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailableError),
        ("ERR max number of clients reached", StoreUnavailableError),
    ],
)
async def test_error_replies_say_whether_to_try_again(answer: str, kind: type[FlockError]) -> None:
    async with answering(f"-{answer}\r\n".encode()) as port:
        store = RedisPersistence(f"redis://127.0.0.1:{port}", timeout=5).store("board", 0, range(256))
        try:
            with pytest.raises(kind) as caught:
                await store.append(batch(1))
        finally:
            await store.close()

    without_secrets(caught.value)
    assert caught.value.retryable is (kind is StoreUnavailableError)


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Run a server that gives one answer to everything but a greeting, and none when it is empty."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while data := await reader.read(65536):
                greetings = data.count(b"CLIENT")
                writer.write(b"+OK\r\n" * greetings)
                if answer.startswith(b"-") and b"HELLO" in data:
                    writer.write(b"*0\r\n")
                elif not greetings:
                    writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# what a server's settings mean for what is accepted


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_server_that_throws_keys_away_is_refused(server: RedisServer, policy: str) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)

    with pytest.raises(ConfigurationError, match=policy) as caught:
        await good(server).prepare("board", 1)

    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("appendfsync", "always", None),
        ("appendfsync", "everysec", "about a second"),
        ("appendfsync", "no", "appendfsync no"),
        ("appendonly", "no", "appendonly no"),
        ("maxmemory-policy", "volatile-lru", "volatile-lru"),
    ],
)
async def test_settings_by_which_artifacts_could_be_lost_are_warned_of(
    server: RedisServer, name: str, value: str, warning: str | None
) -> None:
    with server.client() as client:
        client.config_set(name, value)
    persistence = good(server)

    await persistence.prepare("board", 1)

    assert (warning is not None) == bool(persistence.warnings())
    assert all(warning and warning in text and text.endswith(".") for text in persistence.warnings())


async def test_server_that_does_not_tell_its_settings_is_warned_of(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+s3cr3t"], keys=["flock:*"], categories=["+@all", "-@dangerous"]
        )
    persistence = RedisPersistence(f"redis://app:s3cr3t@127.0.0.1:{server.port}")

    assert 1 == await persistence.prepare("board", 1)

    (warning,) = persistence.warnings()
    assert "could not be checked" in warning
    store = persistence.store("board", 0, range(256))
    try:
        await store.acquire()
        await store.append(batch(1, [artifact("a")], activations=[activation("run", inputs=["a"])]))
        assert 1 == await store.erase([key("a")])
        assert 1 == len((await store.load()).frames)
    finally:
        await store.close()


async def test_user_without_rights_is_refused(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser(
            "reader", enabled=True, passwords=["+s3cr3t"], keys=["other:*"], categories=["+@read"]
        )

    with pytest.raises(ConfigurationError, match="forbids") as caught:
        await RedisPersistence(f"redis://reader:s3cr3t@127.0.0.1:{server.port}").prepare("board", 1)

    one_sentence(caught.value)


# what is not ours


@pytest.mark.parametrize("kind", ["string", "hash", "list"])
async def test_key_of_somebody_else_is_left_alone(server: RedisServer, kind: str) -> None:
    name = "flock:{board}:board"
    with server.client() as client:
        if kind == "string":
            client.set(name, "theirs")
        elif kind == "hash":
            client.hset(name, "field", "theirs")
        else:
            client.rpush(name, "theirs")
        before = client.dump(name)

        with pytest.raises(ConfigurationError, match="not written by flock_ray") as caught:
            await good(server).prepare("board", 1)

        one_sentence(caught.value)
        assert [name.encode()] == list(client.scan_iter())
        assert before == client.dump(name)


async def test_head_of_somebody_else_is_left_alone(server: RedisServer) -> None:
    with server.client() as client:
        client.hset(f"{TAG}head", "i", "theirs")

        with pytest.raises(ConfigurationError, match="something else"):
            await good(server).prepare("board", 1)

        assert {b"i": b"theirs"} == client.hgetall(f"{TAG}head")


async def test_board_of_a_newer_version_is_refused(server: RedisServer, store: RedisStore) -> None:
    with server.client() as client:
        client.hset("flock:{board}:board", "v", "2")
        client.hset(f"{TAG}head", "v", "2")

    with pytest.raises(ConfigurationError, match="newer") as caught:
        await good(server).prepare("board", 1)
    one_sentence(caught.value)
    with pytest.raises(StoreCorruptError, match="newer"):
        await store.acquire()


async def test_prepare_that_died_halfway_is_completed_by_the_next(server: RedisServer) -> None:
    await good(server).prepare("board", 3)
    with server.client() as client:
        client.hset("flock:{board}:board", "ready", "0")
        client.delete("flock:{board:2}:head")

    assert 3 == await good(server).prepare("board", None)

    with server.client() as client:
        assert client.exists("flock:{board:2}:head")
        assert b"1" == client.hget("flock:{board}:board", "ready")


async def test_prepare_notices_a_lost_shard(server: RedisServer, store: RedisStore) -> None:
    with server.client() as client:
        client.delete(f"{TAG}head")

    with pytest.raises(ConfigurationError, match="lost shard 0") as caught:
        await good(server).prepare("board", 1)

    one_sentence(caught.value)


async def test_find_reads_a_board_and_makes_none(server: RedisServer) -> None:
    persistence = good(server)
    assert await persistence.find("board") is None
    with server.client() as client:
        assert [] == list(client.scan_iter())
        await persistence.prepare("board", 3)
        assert 3 == await persistence.find("board")
        client.hset("flock:{board}:board", "ready", "0")
        assert await persistence.find("board") is None
        client.hset("flock:{board}:board", "v", "2")
        with pytest.raises(ConfigurationError, match="newer"):
            await persistence.find("board")
        client.delete("flock:{board}:board")
        client.set("flock:{board}:board", "theirs")
        with pytest.raises(ConfigurationError, match="not written by flock_ray"):
            await persistence.find("board")


# retention is only kept here


def test_retention_is_kept_on_the_persistence() -> None:
    persistence = RedisPersistence(
        ttl=timedelta(days=1),
        retention_policy=RetentionPolicy.DELETE_COMPLETED,
        per_type={"Order": timedelta(days=30)},
    )

    kept = pickle.loads(pickle.dumps(persistence)).retention

    expected = Retention(timedelta(days=1), RetentionPolicy.DELETE_COMPLETED, {"Order": timedelta(days=30)})
    assert expected == kept


@pytest.mark.parametrize(
    "arguments",
    [
        (timedelta(days=-1), "delete_completed", {}),
        (60, "delete_completed", {}),
        (None, "delete_completed", {"Order": 60}),
        (None, "delete_completed", {"Order": timedelta(-1)}),
        (None, "sometimes", {}),
        (timedelta(days=1), "keep_all", {}),
        (None, "keep_all", {"Order": timedelta(1)}),
    ],
)
def test_retention_that_makes_no_sense_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigurationError):
        Retention(*arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_retention_may_be_given_by_name() -> None:
    assert RetentionPolicy.ARCHIVE_COMPLETED is Retention(None, "archive_completed").policy  # type: ignore[arg-type]
