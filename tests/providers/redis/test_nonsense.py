"""A server that answers what it likes: each answer is right, an outage, or a damaged session."""

from __future__ import annotations

import logging
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any

import pytest
import redis

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import (
    Conflict,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.providers.redis import RedisProvider
from tests.servers import Server

from .tools import BUDGET, NOW, check, create, key, new_prefix, wait_for

#: What makes of an answer what is sent instead; None: nothing more is said.
Garble = Callable[[bytes, bytes], "bytes | None"]


class Liar:
    """Stands in front of a server. What it greets with is true."""

    def __init__(self, port: int, garble: Garble) -> None:
        self.garble = garble
        self.connections = 0
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._behind)) as server,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.settimeout(0.05)
            while True:
                try:
                    asked = client.recv(1 << 20)
                except OSError:
                    return
                if not asked:
                    return
                server.sendall(asked)
                answer = self._hear(server)
                said = answer if _is_greeting(asked) else self.garble(asked, answer)
                if said is None:
                    return
                client.sendall(said)

    def _hear(self, server: socket.socket) -> bytes:
        """A whole answer, of however many packets."""
        heard = b""
        while not _is_whole(heard):
            with suppress(TimeoutError):
                heard += server.recv(1 << 20)
        return heard


def _is_greeting(asked: bytes) -> bool:
    return any(word in asked for word in (b"HELLO", b"SETINFO", b"SELECT", b"INFO"))


def _is_whole(heard: bytes) -> bool:
    try:
        return bool(heard) and _end(heard, 0) <= len(heard)
    except ValueError:
        return False


def _end(heard: bytes, at: int) -> int:
    end = heard.index(b"\r\n", at) + 2
    if heard[at : at + 1] == b"$":
        size = int(heard[at + 1 : end])
        return end if size < 0 else end + size + 2
    if heard[at : at + 1] in (b"*", b">"):
        for _ in range(int(heard[at + 1 : end])):
            end = _end(heard, end)
    return end


@pytest.fixture
def liar(redis_server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Liar]:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")
    made = Liar(redis_server.port, lambda asked, answer: answer)
    yield made
    made.close()


@pytest.fixture
def provider(liar: Liar) -> Iterator[RedisProvider]:
    made = RedisProvider(liar.url, new_prefix(), budget=BUDGET)
    made.breaker._failures = 10**9
    yield made
    made.close()


NONSENSE = [
    *(b":abc\r\n", b"$abc\r\n", b"*x\r\n", b":1.5\r\n", b"*-5\r\n", b"$-5\r\n", b"\r\n", b"?\r\n"),
    *(b"+OK\r\n", b"+\r\n", b":1\r\n", b":-1\r\n", b"*1\r\n:1\r\n", b"*2\r\n+a\r\n:1\r\n"),
    *(b"*1\r\n+a\r\n", b"*2\r\n+a\r\n-ERR x\r\n", b"*2\r\n*0\r\n*0\r\n", b"*1\r\n*-1\r\n"),
    *(b"*1\r\n" * 5000, b">2\r\n+invalidate\r\n*0\r\n", b"$3\r\nabcdef\r\n", b"%1\r\n+a\r\n+b\r\n"),
    *(b"+" + b"a" * 200_000 + b"\r\n", b":" + b"1" * 5000 + b"\r\n", b"x" * 200_000),
]

CALLS: dict[str, Callable[[RedisProvider], object]] = {
    "load": lambda provider: provider.load(key(), NOW),
    "load an alias": lambda provider: provider.load(key("old"), NOW),
    "commit": lambda provider: provider.commit(key(), Change({"a": b"2"}), NOW),
    "expect": lambda provider: provider.commit(key(), Change({"a": b"2"}, expects={"a": b""}), NOW),
    "create": lambda provider: provider.commit(key("new"), Change(create=True), NOW),
    "rename": lambda provider: provider.rename(key(), key("new"), NOW, NOW + 9),
    "destroy": lambda provider: provider.destroy(key()),
    "purge": lambda provider: provider.purge(NOW + 2000, 9),
    "next_deadline": lambda provider: provider.next_deadline(),
    "keys_of": lambda provider: provider.keys_of("s:ann", NOW),
    "keys": lambda provider: list(provider.keys(NOW)),
    "count": lambda provider: provider.count(NOW),
    "lock": lambda provider: _lock(provider),
    "stats": lambda provider: provider.stats(),
}
#: What is an answer to these, though not to others.
FINE = {b":1\r\n": "count", b"*1\r\n:1\r\n": "purge", b"+OK\r\n": "lock"}


def _lock(provider: RedisProvider) -> None:
    with provider.lock(key(), 0.01, 1):
        pass


def prepare(provider: RedisProvider) -> None:
    create(provider, user="s:ann")
    create(provider, "was", user="s:ann")
    provider.rename(key("was"), key("is"), NOW, NOW + 99)
    create(provider, "old")
    provider.rename(key("old"), key("now"), NOW, NOW + 99)


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"stats"}))
def test_nonsense_is_an_outage(liar: Liar, provider: RedisProvider, call: str) -> None:
    prepare(provider)
    for nonsense in NONSENSE:
        if call == FINE.get(nonsense):
            continue
        liar.garble = lambda asked, answer, nonsense=nonsense: nonsense  # type: ignore[misc]
        with pytest.raises(ProviderUnavailable):
            CALLS[call](provider)
        # Whoever said that is not asked again.
        assert not provider._servers._pool._idle  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        *("READONLY You can't", "OOM command not allowed", "NOSCRIPT No matching", "LOADING", ""),
        *("MOVED", "MOVED x y", "MOVED 1 nowhere:99999999", "ASK 1", "ERR", "\x00", "NOPERM"),
        *("EXECABORT", "TRYAGAIN", "MISCONF", "x" * 60_000, "CLUSTERDOWN"),
    ],
)
def test_errors_are_an_outage(liar: Liar, provider: RedisProvider, error: str) -> None:
    prepare(provider)
    liar.garble = lambda asked, answer: f"-{error}\r\n".encode()
    for call in CALLS.keys() - {"stats"}:
        with pytest.raises(ProviderUnavailable) as caught:
            CALLS[call](provider)
        assert len(str(caught.value)) < 300


#: Maps of a cluster that lead nowhere.
SLOTS = (b"*1\r\n:1\r\n", b"*0\r\n", b"+OK\r\n", b"*1\r\n*3\r\n:0\r\n:1\r\n*0\r\n")


@pytest.mark.parametrize("cluster", [False, True])
def test_redirections_to_nowhere(redis_server: Server, cluster: bool) -> None:
    """Of a node of a cluster."""
    said = slots = b""
    liar = Liar(redis_server.port, lambda asked, answer: slots if b"SLOTS" in asked else said)
    port = liar.url.rpartition(":")[2].encode()
    slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:" + port + b"\r\n"
    provider = RedisProvider(liar.url, new_prefix(), cluster=cluster, budget=BUDGET)
    provider.breaker._failures = 10**9
    for kind in (b"MOVED", b"ASK"):
        for where in (b"", b"1", b"1 x", b"1 :", b"1 a:b", b"1 h:0", b"1 h:-1", b"1 h:70000"):
            said = b"-" + kind + b" " + where + b"\r\n"
            with pytest.raises(ProviderUnavailable):
                provider.load(key(), NOW)
    for nowhere in SLOTS if cluster else ():
        slots = nowhere
        provider._servers._stale = True  # type: ignore[attr-defined]
        with pytest.raises(ProviderUnavailable):
            provider.load(key(), NOW)
    provider.close()
    liar.close()


# At random

ROUNDS = 1_200


class Garbler:
    """Does to an answer one thing or another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = False

    def __call__(self, asked: bytes, answer: bytes) -> bytes | None:
        if self.calm or self.random.random() < 0.2:
            return answer
        ways = (self.flip, self.cut, self.nest, self.swap, self.repeat, self.drop, self.other)
        return self.random.choice((*ways, self.damage))(answer)

    def damage(self, answer: bytes) -> bytes:
        """A well-formed answer about what is stored wrongly."""
        return answer.replace(b"\r\nm\r\n", b"\r\nx\r\n")

    def flip(self, answer: bytes) -> bytes:
        said = bytearray(answer)
        for _ in range(self.random.randint(1, 4)):
            said[self.random.randrange(len(said))] = self.random.choice(
                b"$*:+-_>%\r\n01259ax\xff\0"
            )
        return bytes(said)

    def cut(self, answer: bytes) -> bytes | None:
        if self.random.random() < 0.5:
            return None
        return answer[: self.random.randrange(len(answer))]

    def nest(self, answer: bytes) -> bytes:
        return b"*1\r\n" * self.random.choice((1, 2, 50, 5000)) + answer

    def swap(self, answer: bytes) -> bytes:
        signs = [found.start() for found in re.finditer(rb"(?m)^[$*:+-]", answer)]
        at = self.random.choice(signs or [0])
        return answer[:at] + self.random.choice((b"$", b"*", b":", b"+", b"-")) + answer[at + 1 :]

    def repeat(self, answer: bytes) -> bytes:
        return answer * self.random.choice((2, 3))

    def drop(self, answer: bytes) -> bytes:
        lines = answer.split(b"\r\n")
        del lines[self.random.randrange(len(lines))]
        return b"\r\n".join(lines) or b"\r\n"

    def other(self, answer: bytes) -> bytes:
        return self.random.choice(NONSENSE)


def expected(call: str, result: Any) -> bool:
    if call.startswith("load"):
        return result is None or is_record(result)
    if call in ("keys_of", "keys"):
        return all(len(name) == 64 for name in result)
    if call == "purge":
        return all(map(is_record, result))
    kinds = {"destroy": bool, "count": int, "next_deadline": float | None}
    return isinstance(result, kinds.get(call, object))


def is_record(result: Any) -> bool:
    return (
        isinstance(result, Record)
        and all(type(n) is str and type(v) is bytes for n, v in result.values.items())
        and isinstance(result.user, str | None)
        and all(-inf < at < inf for at in (result.created, result.touched))
    )


@pytest.mark.parametrize("seed", range(3))
def test_at_random(liar: Liar, seed: int) -> None:
    """Truncated answers cost the whole budget, which is therefore short."""
    provider = RedisProvider(liar.url, new_prefix(), budget=0.02)
    provider.breaker._failures = 10**9
    liar.garble = garbler = Garbler(seed)
    calls = random.Random(seed)
    outcomes: dict[str, int] = {}
    for number in range(ROUNDS):
        if number % 20 == 0:
            garbler.calm = True
            provider.breaker.budget = BUDGET
            for name in ("", "new", "was", "is", "old", "now"):
                provider.destroy(key(name))
            prepare(provider)
            provider.breaker.budget = 0.02
            garbler.calm = False
        call = calls.choice(sorted(CALLS))
        start = time.monotonic()
        try:
            result: object = CALLS[call](provider)
            assert expected(call, result), (call, result)
            outcome = "answered"
        except (ProviderUnavailable, CorruptData) as error:
            outcome = type(error).__name__
        except (SessionGone, KeyTaken, Conflict, TimeoutError):
            outcome = "answered"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert time.monotonic() - start < 2.0, call
    assert len(outcomes) == 3, outcomes
    garbler.calm = True
    provider.breaker.budget = BUDGET
    assert provider.load(key("is"), NOW) is None or provider.destroy(key("is"))
    check(provider)
    provider.close()


def test_invalidations_at_random(liar: Liar, caplog: pytest.LogCaptureFixture) -> None:
    """The near cache listens on: what it does not understand ends a connection, not the thread."""
    provider = RedisProvider(liar.url, new_prefix(), near_cache=0.1, budget=BUDGET)
    provider.breaker._failures = 10**9
    create(provider)
    provider.breaker.budget = 0.02
    liar.garble = garbler = Garbler(7)
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        with suppress(ProviderUnavailable, CorruptData):
            provider.load(key(), NOW)
    garbler.calm = True
    provider.breaker.budget = BUDGET
    near: Any = provider._near
    wait_for(lambda: near.get(key()) or not provider.load(key(), NOW), "it to be kept")
    assert "does not understand" not in caplog.text
    provider.close()


# What else may lie beside the sessions


def test_a_list_of_another_type_stops_no_end(redis_server: Server) -> None:
    """What is the user's list goes its own way."""
    prefix = new_prefix()
    provider = RedisProvider(f"redis://{redis_server.address}", prefix, budget=BUDGET)
    for n in range(4):
        create(provider, n, user="s:ann", deadline=NOW + n)
    with redis.Redis(port=redis_server.port) as client:
        client.set(f"{prefix}@user:s:ann", "text")
    assert provider.destroy(key(3))
    provider.commit(key(2), Change(user=None), NOW)
    assert len(provider.purge(NOW + 9, 9)) == 3
    provider.close()


def put_back(client: Any, names: list[str], dumps: list[Any]) -> None:
    for name, dump in zip(names, dumps, strict=True):
        client.delete(name)
        if dump is not None:
            client.restore(name, 0, dump)


@pytest.mark.parametrize("beside", ["@due", "@ends", "@user:s:ann"])
def test_lists_of_another_type(redis_server: Server, beside: str) -> None:
    """All of a call is done, or nothing."""
    prefix = new_prefix()
    provider = RedisProvider(f"redis://{redis_server.address}", prefix, budget=BUDGET)
    prepare(provider)
    with redis.Redis(port=redis_server.port) as client:
        names = [prefix + key(name) for name in ("", "was", "is", "old", "now")]
        before = [client.dump(name) for name in names]
        client.delete(prefix + beside)
        client.set(prefix + beside, "text")
        outages = []
        for call in sorted(CALLS.keys() - {"lock", "stats", "destroy"}):
            try:
                CALLS[call](provider)
            except ProviderUnavailable as error:
                outages.append(str(error))
                assert [client.dump(name) for name in names] == before
            except (Conflict, KeyTaken):
                pass
            else:
                put_back(client, names, before)
        assert len(outages) >= 2
        assert all("SESSION_KEY_PREFIX" in said for said in outages)
        for change in (Change(user="s:ann", deadline=NOW + 5), Change(create=True, user="s:ann")):
            with suppress(ProviderUnavailable):
                provider.commit(key("x" if change.create else ""), change, NOW)
        with suppress(ProviderUnavailable):
            provider.destroy(key("is"))
    provider.close()


def test_an_alias_of_another_type(redis_server: Server) -> None:
    prefix = new_prefix()
    provider = RedisProvider(f"redis://{redis_server.address}", prefix, budget=BUDGET)
    prepare(provider)
    with redis.Redis(port=redis_server.port) as client:
        client.delete(prefix + key("was"))
        client.set(prefix + key("was"), "text")
    provider.commit(key("is"), Change({"a": b"2"}, deadline=NOW + 5), NOW)
    provider.rename(key("is"), key("then"), NOW, NOW + 9)
    with pytest.raises(CorruptData):
        provider.load(key("was"), NOW)
    assert provider.destroy(key("then"))
    provider.close()


def test_a_purge_tells_of_what_it_cannot_read(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")
    prefix = new_prefix()
    provider = RedisProvider(f"redis://{redis_server.address}", prefix, budget=BUDGET)
    names = {create(provider, n, deadline=NOW + 1) for n in range(3)}
    with redis.Redis(port=redis_server.port) as client:
        client.hset(prefix + key(1), "u", b"\xff")
    assert {record.key for record in provider.purge(NOW + 2, 9)} == names
    provider.close()
