from __future__ import annotations

import multiprocessing
import os
import pickle
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

import cachelib
import freezegun
import pymemcache
import pytest
import redis

from flask_hybridsession.core.blob import MARK, pack
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import (
    ConfigError,
    CorruptData,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.core.provider import Lists, Locks, Promise, Provider, Remote, Users
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import (
    ProviderSuite,
    create,
    load,
    new_key,
)
from tests.overlap.web import wait_for
from tests.servers import MEMCACHED, REDIS, Server, running

NOW = 1_700_000_000.0
#: Seconds that are enough on a machine that does much else.
BUSY = 30.0


def made(**options: Any) -> CachelibProvider:
    return CachelibProvider.from_settings(Settings(options=options))


# The contract


class OfOneProcess(CachelibProvider):
    """What the docstring says of the threads of one process."""

    promises = frozenset({Promise.FINAL, Promise.CONDITIONAL, Promise.DESTROY_ONCE})


class TestSimpleCache(ProviderSuite):
    def make_provider(self) -> Provider:
        return OfOneProcess.from_settings(Settings(options={"type": "SimpleCache"}))


class OfManyProcesses(ProviderSuite):
    shared = "process"

    def make_provider(self) -> Provider:
        return self.open_again()


class TestFileSystemCache(OfManyProcesses):
    def open_again(self) -> Provider:
        return made(type="FileSystemCache", cache_dir=str(self.path / "sessions"))


class TestRedisCache(OfManyProcesses):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server) -> None:
        self.port = redis_server.port

    def open_again(self) -> Provider:
        prefix = f"{self.path}:".replace(" ", "")[-80:]
        return CachelibProvider(cachelib.RedisCache("127.0.0.1", self.port), prefix, BUSY)


class TestMemcachedCache(OfManyProcesses):
    @pytest.fixture(autouse=True)
    def _server(self, memcached_server: Server) -> None:
        self.address = memcached_server.address

    def open_again(self) -> Provider:
        cache = cachelib.MemcachedCache(pymemcache.Client(self.address))
        return CachelibProvider(cache, f"{self.path}:"[-80:], BUSY)


# One store of each kind, and what lies in it


class Store:
    """A cache of the user's own, a provider on it, and a back door to the bytes."""

    def __init__(self, cache: cachelib.BaseCache) -> None:
        self.cache = cache
        self.provider = CachelibProvider(cache, "s:")

    def plant(self, name: str, value: bytes) -> None:
        raise NotImplementedError

    def bytes_of(self, name: str) -> bytes | None:
        raise NotImplementedError


class Memory(Store):
    def __init__(self) -> None:
        super().__init__(cachelib.SimpleCache(threshold=sys.maxsize))

    def plant(self, name: str, value: bytes) -> None:
        self.cache._cache[name] = 0, value

    def bytes_of(self, name: str) -> bytes | None:
        return self.cache._cache.get(name, (0, None))[1]


class Files(Store):
    def __init__(self, path: Path) -> None:
        super().__init__(cachelib.FileSystemCache(str(path), threshold=0))

    def path(self, name: str) -> Path:
        return Path(self.cache._get_filename(name))

    def plant(self, name: str, value: bytes) -> None:
        self.path(name).write_bytes(struct.pack("I", 0) + value)

    def bytes_of(self, name: str) -> bytes | None:
        return self.path(name).read_bytes()[4:] if self.path(name).exists() else None


class Redis(Store):
    def __init__(self, server: Server) -> None:
        self.client = redis.Redis(server.host, server.port)
        self.client.flushall()
        super().__init__(cachelib.RedisCache(self.client))

    def plant(self, name: str, value: bytes) -> None:
        self.client.set(name, b"!" + value)

    def bytes_of(self, name: str) -> bytes | None:
        return self.client.get(name)


class Memcached(Store):
    def __init__(self, server: Server) -> None:
        serde = pymemcache.serde.pickle_serde
        self.client = pymemcache.PooledClient(server.address, serde=serde)
        self.client.flush_all(noreply=False)
        super().__init__(cachelib.MemcachedCache(self.client))

    def plant(self, name: str, value: bytes) -> None:
        self.client.set(name, value, flags=pymemcache.serde.FLAG_PICKLE, noreply=False)

    def bytes_of(self, name: str) -> bytes | None:
        with closing(pymemcache.Client(self.client.server)) as raw:
            return raw.get(name)


@pytest.fixture(params=["memory", "files", "redis", "memcached"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield Memory()
    elif request.param == "files":
        yield Files(tmp_path)
    else:
        server = request.getfixturevalue(f"{request.param}_server")
        store = (Redis if request.param == "redis" else Memcached)(server)
        yield store
        store.provider.close()
        store.client.close()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_planted_pickle_is_never_run(store: Store, tmp_path: Path) -> None:
    sign = tmp_path / "it was run"
    bomb = pickle.dumps(Bomb(sign))
    record, mark = new_key(), create(store.provider, NOW)
    store.plant(f"s:{record}", bomb)
    store.plant(f"s:gone:{mark}", bomb)
    for key in record, mark:
        with pytest.raises(CorruptData):
            store.provider.load(key, NOW)
        with pytest.raises(CorruptData):
            store.provider.commit(key, Change(puts={"a": b"1"}), NOW)
        with pytest.raises(CorruptData):
            store.provider.rename(key, new_key(), NOW)
        assert store.provider.destroy(key)
        assert store.provider.load(key, NOW) is None
        assert not store.provider.destroy(key)
    assert not sign.exists()

    store.plant("s:other", bomb)
    store.cache.get("s:other")
    assert sign.is_dir(), "the bomb is a dud: the test shows nothing"


def test_what_is_stored_is_bytes_of_ours(store: Store) -> None:
    key = create(store.provider, NOW, {"a": b"1"})
    record = store.bytes_of(f"s:{key}")
    store.provider.destroy(key)
    mark = store.bytes_of(f"s:gone:{key}")
    assert record is not None
    assert mark is not None
    assert record.startswith(MARK)
    assert mark.startswith(MARK)
    assert store.bytes_of(f"s:{key}") is None


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_the_users_own_cache_stays_as_it_was(store: Store) -> None:
    create(store.provider, NOW)
    for value in ({"a": (1, 2.5)}, b"bytes", 7):
        store.cache.set("theirs", value)
        assert store.cache.get("theirs") == value


def test_damaged_bytes_are_not_served(store: Store) -> None:
    key, other = create(store.provider, NOW, {"a": b"1"}), create(store.provider, NOW)
    whole = store.bytes_of(f"s:{key}")
    assert whole is not None
    strangers = store.bytes_of(f"s:{other}")
    for damaged in (b"", whole[:-1], whole[:5], whole[:-1] + b"?", b"hs2" + whole[3:], strangers):
        store.plant(f"s:{key}", damaged)
        with pytest.raises(CorruptData):
            store.provider.load(key, NOW)


def test_prefixes_keep_apps_apart(store: Store) -> None:
    other = CachelibProvider(store.cache, "t:")
    key = create(store.provider, NOW)
    assert not other.exists(key, NOW)
    assert not other.destroy(key)
    assert store.provider.exists(key, NOW)
    other.close()


# Nothing comes back


def test_what_a_killed_process_wrote_late_is_dead(store: Store) -> None:
    # It read the session, was overtaken by a logout, wrote, and died before it looked again.
    provider = store.provider
    for end in (provider.destroy, lambda key: provider.rename(key, new_key(), NOW)):
        key = create(provider, NOW, {"a": b"1"}, deadline=NOW + 60)
        late = load(provider, key, NOW)._replace(deadline=NOW + 9000)
        end(key)
        provider._put(provider._name(key), late, inf)
        assert provider.load(key, NOW) is None
        with pytest.raises(SessionGone):
            provider.commit(key, Change(), NOW)
        with pytest.raises(SessionGone):
            provider.rename(key, new_key(), NOW)
        assert not provider.destroy(key)


def test_who_wrote_late_takes_it_back(store: Store) -> None:
    provider = store.provider
    key = create(provider, NOW, {"a": b"1"})
    record = load(provider, key, NOW)
    assert provider.destroy(key)
    assert provider._write(record, NOW) is not None
    assert store.bytes_of(f"s:{key}") is None


def test_a_rename_takes_along_what_was_committed_meanwhile(store: Store) -> None:
    provider = store.provider
    key, new = create(provider, NOW, {"a": b"1"}), new_key()
    read_before = load(provider, key, NOW)
    provider.commit(key, Change(puts={"b": b"2"}), NOW)
    assert provider._move(read_before, new, NOW, None) is None
    assert load(provider, new, NOW).values == {"a": b"1", "b": b"2"}
    assert not provider.exists(key, NOW)


def test_a_rename_overtaken_by_a_logout(store: Store) -> None:
    provider = store.provider
    key, new = create(provider, NOW), new_key()
    read_before = load(provider, key, NOW)
    assert provider.destroy(key)
    assert provider._move(read_before, new, NOW, None) is not None
    assert not provider.exists(new, NOW)
    assert not provider.exists(key, NOW)


# How long the cache keeps what


def expiry(store: Store, name: str) -> float:
    """The seconds for which the cache still keeps it; ``inf`` for ever."""
    if isinstance(store, Redis):
        left = store.client.ttl(name)
        assert left != -2, "it is not there"
        return inf if left == -1 else left
    if isinstance(store, Memory):
        until = store.cache._cache[name][0]
    else:
        assert isinstance(store, Files)
        (until,) = struct.unpack("I", store.path(name).read_bytes()[:4])
    return until - time.time() if until else inf


@pytest.mark.parametrize("life", [0.2, 60.0, 40 * 86400.0])
def test_the_cache_keeps_a_session_a_little_longer_than_it_lives(store: Store, life: float) -> None:
    key = create(store.provider, NOW, {"a": b"1"}, deadline=NOW + life)
    assert load(store.provider, key, NOW).values == {"a": b"1"}
    if not isinstance(store, Memcached):  # it does not tell
        assert life + 30 < expiry(store, f"s:{key}") < life + 90


@pytest.mark.parametrize("life", [None, inf, 30 * 366 * 86400.0, 1e15])
def test_for_ever(store: Store, life: float | None) -> None:
    key = create(store.provider, NOW, deadline=None if life is None else NOW + life)
    assert store.provider.exists(key, NOW)
    store.provider.destroy(key)
    assert not store.provider.exists(key, NOW)
    if not isinstance(store, Memcached):
        assert expiry(store, f"s:gone:{key}") == inf


def test_a_mark_outlasts_whatever_a_late_commit_may_write(store: Store) -> None:
    # A session that slides by an hour, and was touched half an hour ago.
    key = create(store.provider, NOW - 1800, deadline=NOW + 1800)
    assert store.provider.destroy(key)
    if not isinstance(store, Memcached):
        assert expiry(store, f"s:gone:{key}") > 3600 + 1800


def test_an_alias_is_kept_to_its_end(store: Store) -> None:
    key, new = create(store.provider, NOW, deadline=NOW + 1), new_key()
    store.provider.rename(key, new, NOW, alias_until=NOW + 40 * 86400)
    assert load(store.provider, key, NOW).key == new
    if not isinstance(store, Memcached):
        assert expiry(store, f"s:gone:{key}") > 40 * 86400


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_expired_sessions_are_removed(kind: str, tmp_path: Path) -> None:
    options = {"type": "FileSystemCache", "cache_dir": str(tmp_path)}
    provider = made(**(options if kind == "files" else {"type": "SimpleCache"}))

    def stored() -> int:
        return len(list(tmp_path.iterdir()) if kind == "files" else provider._cache._cache)

    with freezegun.freeze_time() as frozen:
        now = time.time()
        for n in range(5):
            create(provider, now, deadline=now + n * 3600)
        stays = create(provider, now)
        assert provider.purge(now, 10) == []
        assert stored() == 6
        frozen.tick(2.5 * 3600)
        assert provider.purge(time.time(), 10) == []
        assert stored() == 3
        assert provider.exists(stays, time.time())
        frozen.tick(3600)
        provider.close()


# Evicting by number


@pytest.mark.parametrize("kind", ["SimpleCache", "FileSystemCache"])
def test_none_of_700_logins_is_thrown_away(kind: str, tmp_path: Path) -> None:
    folder = {"cache_dir": str(tmp_path / "a")} if kind == "FileSystemCache" else {}
    cache = getattr(cachelib, kind)(**folder)
    with pytest.warns(UserWarning, match="up to 500 entries"):
        of_the_users = CachelibProvider(cache)
    if folder:
        folder["cache_dir"] = str(tmp_path / "b")
    for provider in of_the_users, made(type=kind, **folder):
        keys = [create(provider, NOW, deadline=NOW + 60) for _ in range(700)]
        assert all(provider.exists(key, NOW) for key in keys)
    with pytest.warns(UserWarning, match="up to 900 entries"):
        made(type=kind, threshold=900, **folder)


# Failures are not misses


def calls(provider: Provider, key: str) -> Iterator[Any]:
    yield lambda: provider.load(key, NOW)
    yield lambda: provider.exists(key, NOW)
    yield lambda: provider.commit(key, Change(puts={"a": b"2"}), NOW)
    yield lambda: provider.commit(new_key(), Change(create=True), NOW)
    yield lambda: provider.rename(key, new_key(), NOW)
    yield lambda: provider.destroy(key)


def answers(provider: Provider, key: str) -> bool:
    try:
        provider.exists(key, NOW)
    except ProviderUnavailable:
        return False
    return True


@pytest.mark.parametrize("program", [REDIS, MEMCACHED], ids=["redis", "memcached"])
def test_a_server_that_is_down(program: Any) -> None:
    with running(program) as server:
        if program is REDIS:
            provider = made(type="RedisCache", host=server.host, port=server.port)
        else:
            provider = made(type="MemcachedCache", servers=[server.address])
        key = create(provider, NOW, {"a": b"1"})
        server.stop()
        for call in calls(provider, key):
            with pytest.raises(ProviderUnavailable) as error:
                call()
            assert key not in str(error.value)
            if isinstance(provider, Remote) and not provider.breaker.is_open:
                assert error.value.__cause__ is not None
        server.start()
        wait_for(lambda: answers(provider, key), "an answer of a server that is back")
        assert provider.load(key, NOW) is None  # it kept nothing, and says so
        key = create(provider, NOW, {"a": b"1"})
        assert load(provider, key, NOW).values == {"a": b"1"}
        provider.close()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    store = Files(tmp_path)
    key = create(store.provider, NOW)
    path = store.path(f"s:{key}")
    path.unlink()
    path.mkdir()  # not even root can read that
    for call in list(calls(store.provider, key))[:3]:
        with pytest.raises(ProviderUnavailable, match="cannot be read"):
            call()
    path.rmdir()
    path.write_bytes(b"\0\0")
    with pytest.raises(CorruptData):
        store.provider.load(key, NOW)
    path.unlink()
    assert store.provider.load(key, NOW) is None


def test_a_mark_that_cannot_be_read(tmp_path: Path) -> None:
    store = Files(tmp_path)
    key = create(store.provider, NOW)
    store.path(f"s:gone:{key}").mkdir()
    for call in list(calls(store.provider, key))[:3]:
        with pytest.raises(ProviderUnavailable):
            call()


def test_files_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    provider = made(type="FileSystemCache", cache_dir=str(tmp_path / "sessions"))
    provider._cache._path = str(tmp_path / "nowhere")
    with pytest.raises(ProviderUnavailable, match="did not store"):
        create(provider, NOW)


def test_the_folder_made_here_is_private(tmp_path: Path) -> None:
    provider = made(type="FileSystemCache", cache_dir=str(tmp_path / "a" / "b"))
    create(provider, NOW)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (file,) = (tmp_path / "a" / "b").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("size", [4 * 2**20 - 900, 4 * 2**20 + 1, 8 * 2**20])
def test_a_session_that_memcached_refuses_stays_as_it_was(
    memcached_server: Server, size: int
) -> None:
    provider = made(type="MemcachedCache", servers=memcached_server.address)
    key = create(provider, NOW, {"a": b"1"})
    with pytest.raises(ProviderUnavailable, match="larger"):
        provider.commit(key, Change(puts={"b": bytes(size)}), NOW)
    assert load(provider, key, NOW).values == {"a": b"1"}
    provider.close()


def test_no_connection_is_shared_with_a_child(memcached_server: Server) -> None:
    provider = made(type="MemcachedCache", servers=memcached_server.address)
    keys = [create(provider, NOW, {"n": b"%d" % n}) for n in range(4)]
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(len(keys))

    def read_own(n: int) -> None:
        start.wait(60)
        for _ in range(300):
            assert load(provider, keys[n], NOW).values == {"n": b"%d" % n}

    children = [fork.Process(target=read_own, args=(n,), daemon=True) for n in range(len(keys))]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * len(keys)
    assert provider.exists(keys[0], NOW)
    provider.close()


def test_a_fork_in_the_middle_of_a_call(memcached_server: Server) -> None:
    # The lock of that session, and the connection, were in use by a thread that the child has not.
    provider = made(type="MemcachedCache", servers=memcached_server.address)
    key = create(provider, NOW, {"n": b"0"})
    inside, go_on = threading.Event(), threading.Event()
    look = provider._look

    def slow(key: str) -> Any:
        found = look(key)
        inside.set()
        assert go_on.wait(60)
        return found

    provider._look = slow  # type: ignore[method-assign]
    thread = threading.Thread(
        target=provider.commit, args=(key, Change(puts={"n": b"1"}), NOW), daemon=True
    )
    thread.start()
    assert inside.wait(60)
    provider._look = look  # type: ignore[method-assign]
    child = multiprocessing.get_context("fork").Process(
        target=provider.commit, args=(key, Change(puts={"m": b"2"}), NOW), daemon=True
    )
    child.start()
    child.join(60)
    go_on.set()
    thread.join(60)
    assert child.exitcode == 0
    provider.close()


# What it takes and refuses


def test_what_it_declares() -> None:
    provider = made(type="SimpleCache")
    assert provider.promises == {Promise.FINAL}
    assert not isinstance(provider, (Lists, Users, Locks))


def test_two_apps_share_nothing_by_accident() -> None:
    one, other = made(type="SimpleCache"), made(type="SimpleCache")
    assert not other.exists(create(one, NOW), NOW)


def test_the_cache_may_be_given_in_three_ways(tmp_path: Path) -> None:
    cache = cachelib.FileSystemCache(str(tmp_path), threshold=0)
    ours = {"type": "FileSystemCache", "cache_dir": str(tmp_path)}
    key = create(CachelibProvider(cache, "p:"), NOW)
    for settings in (
        Settings(cachelib=cache, key_prefix="p:"),
        Settings(cachelib=ours, key_prefix="p:"),
        Settings(options={"cache": cache}, key_prefix="p:"),
        Settings(options={"cache": ours}, key_prefix="p:"),
        Settings(options=ours, key_prefix="p:"),
    ):
        assert CachelibProvider.from_settings(settings).exists(key, NOW)
    assert not CachelibProvider.from_settings(Settings(cachelib=cache)).exists(key, NOW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            Settings(),
            r"one of SimpleCache, .*ValkeyCache, MemcachedCache, UWSGICache, MongoDbCache, Dynamo",
        ),
        (Settings(options={"type": "Nonsense"}), "one of SimpleCache"),
        (Settings(options={"type": ["SimpleCache"]}), "one of SimpleCache"),
        (Settings(cachelib="redis://localhost"), "needs a cache of cachelib"),
        (Settings(cachelib=cachelib.SimpleCache), "needs a cache of cachelib"),
        (
            Settings(cachelib={"type": "SimpleCache"}, options={"type": "SimpleCache"}),
            "remove type",
        ),
        (Settings(options={"cache": {"type": "SimpleCache"}, "port": 1}), "remove port"),
        (Settings(options={"type": "SimpleCache"}, key_prefix="a b"), "SESSION_KEY_PREFIX"),
        (Settings(options={"type": "SimpleCache"}, key_prefix="é"), "SESSION_KEY_PREFIX"),
        (Settings(options={"type": "SimpleCache"}, key_prefix="x" * 81), "SESSION_KEY_PREFIX"),
        (Settings(options={"type": "SimpleCache", "treshold": 1}), "know treshold.*threshold"),
        (Settings(options={"type": "FileSystemCache"}), "needs cache_dir"),
        (
            Settings(options={"type": "FileSystemCache", "cache_dir": "/dev/null/x"}),
            "cannot be made",
        ),
        (Settings(options={"type": "FileSystemCache", "cache_dir": 5}), "must be a path"),
        (
            Settings(options={"type": "MemcachedCache", "servers": "host:s3cret"}),
            "cannot be made: ValueError. Look at server",
        ),
        (
            Settings(options={"type": "SimpleCache", "budget": 1}),
            "waits for no server: remove budget",
        ),
        (Settings(options={"type": "RedisCache", "budget": 0}), "budget must be more than 0"),
        (Settings(options={"type": "ValkeyCache", "hots": "x"}), "know hots.*host.*socket_timeout"),
        (Settings(options={"type": "UWSGICache"}), "run the app in it"),
        (
            Settings(options={"type": "MongoDbCache", "hots": "x"}),
            "MongoDbCache cannot be made: look at hots",
        ),
        (Settings(options={"type": "MongoDbCache", "client": "mongo://s3cret"}), "InvalidURI"),
        (
            Settings(options={"type": "DynamoDbCache", "tabel": "x"}),
            "know tabel.*table_name.*endpoint_url",
        ),
        (Settings(options={"type": "NullCache"}), "one of SimpleCache"),
        (Settings(options={"type": "RedisCache", "hots": "x"}), "know hots.*host.*socket_timeout"),
        (Settings(options={"type": "MemcachedCache", "time": 1}), "know time.*timeout"),
        (Settings(options={"type": "MemcachedCache", "servers": ["a:1", "b:1"]}), "one server"),
    ],
)
def test_settings_that_cannot_work(settings: Settings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CachelibProvider.from_settings(settings)


class Homemade(cachelib.BaseCache):
    """Does with its values what it likes."""


REFUSED = {
    "a cache that keeps nothing": lambda: cachelib.NullCache(),
    "a cache without a serializer": lambda: Homemade(),
    "a client that decodes": lambda: cachelib.RedisCache(redis.Redis(decode_responses=True)),
    "a client that hides failures": lambda: cachelib.MemcachedCache(
        pymemcache.HashClient(["127.0.0.1:1"])
    ),
    "a client of another kind": lambda: cachelib.MemcachedCache(object()),
    "a prefix that memcached refuses": lambda: cachelib.MemcachedCache(
        pymemcache.Client("127.0.0.1:1"), key_prefix="x" * 200
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_caches_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        CachelibProvider(REFUSED[name]())


def test_no_secret_is_shown() -> None:
    record = Record("k" * 64, {"a": b"secret"}, NOW, NOW, inf, "s:ann")
    store = Memory()
    store.plant(f"s:{'k' * 64}", pack(record)[:-1])
    with pytest.raises(CorruptData) as error:
        store.provider.load("k" * 64, NOW)
    assert "secret" not in f"{error.value!r} {store.provider!r}"
    assert "k" * 13 not in str(error.value)
