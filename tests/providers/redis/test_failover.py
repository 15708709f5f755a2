"""What a sentinel and a cluster do when a server fails."""

from __future__ import annotations

import itertools
import logging
import threading
from binascii import crc_hqx
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import pytest
from flask import Flask, session

from flask_hybridsession import HybridSession
from flask_hybridsession.core import ids
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable
from flask_hybridsession.providers.redis import RedisProvider
from tests.redis_servers import redis_cluster_of, redis_says, redis_watched
from tests.servers import Server

from .tools import BUDGET, NOW, check, create, key, new_prefix, wait_for


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")


def answers(provider: RedisProvider, name: str) -> bool:
    with suppress(ProviderUnavailable):
        return provider.load(name, NOW) is not None
    return False


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_another_master(how: str) -> None:
    with redis_watched() as servers:
        url = f"redis://{servers.sentinel.address}"
        provider = RedisProvider(url, service=servers.service, budget=1.0)
        for n in range(10):
            create(provider, n, user="s:ann")
        provider.rename(key(0), key("new"), NOW, alias_until=NOW + 60)
        wait_for(
            lambda: redis_says(servers.replica, "EXISTS", f"session:{key('new')}") == "1\n",
            "the replica to have it all",
        )
        if how == "killed":
            servers.master.kill()
        else:
            servers.master.freeze()
        wait_for(lambda: answers(provider, key(1)), "the replica to take over")
        assert redis_says(servers.replica, "ROLE").startswith("master")
        for n in range(10):
            assert provider.load(key(n), NOW) is not None
            provider.commit(key(n), Change(puts={"n": b"%d" % n}), NOW)
        assert len(provider.keys_of("s:ann", NOW)) == 10
        if how == "killed":
            servers.master.start()
        else:
            servers.master.thaw()
        # Whatever the old one believes that it is: it is not asked.
        for n in range(10):
            record = provider.load(key(n), NOW)
            assert record is not None
            assert record.values["n"] == b"%d" % n
        assert provider.destroy(key("new"))
        check(provider)
        provider.close()


class Worker:
    """Writes all the time. What was acknowledged is what it knows."""

    def __init__(self, url: str, service: str, number: int, **options: Any) -> None:
        self.provider = RedisProvider(url, service=service, budget=1.0, **options)
        self.number = number
        self.written: dict[int, int] = {}
        self.ended: list[str] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def start(self) -> None:
        for n in range(20):
            create(self.provider, (self.number, n))
        self._thread.start()

    def _work(self) -> None:
        for count in itertools.count(1):
            if self.stop.is_set():
                return
            n = count % 20
            with suppress(ProviderUnavailable):
                name = create(self.provider, (self.number, "short", count))
                if self.provider.destroy(name):
                    self.ended.append(name)
                change = Change(puts={"n": b"%d" % count})
                self.provider.commit(key((self.number, n)), change, NOW)
                self.written[n] = count

    def finish(self) -> None:
        self.stop.set()
        self._thread.join()


@pytest.mark.parametrize("options", [{}, {"near_cache": 0.2}], ids=["plain", "near"])
def test_a_planned_failover(options: dict[str, Any]) -> None:
    """The former master is a master for ten seconds more. Nothing is written there."""
    with redis_watched() as servers, ExitStack() as ended:
        url = f"redis://{servers.sentinel.address}"
        workers = [Worker(url, servers.service, number, **options) for number in range(3)]
        for worker in workers:
            ended.callback(worker.provider.close)
            worker.start()
            ended.callback(worker.finish)
        wait_for(lambda: all(len(worker.written) == 20 for worker in workers), "all to be written")
        before = [worker.written[0] for worker in workers]
        # In its first second a replica is told nothing.
        names = [f"session:{key((w.number, n))}" for w in workers for n in range(20)]
        wait_for(lambda: redis_says(servers.replica, "EXISTS", *names) == "60\n", "a replica")
        plan = partial(redis_says, servers.sentinel, "SENTINEL", "FAILOVER", servers.service)
        wait_for(lambda: plan() == "OK\n", "the sentinel to know a good replica")
        wait_for(lambda: redis_says(servers.replica, "ROLE").startswith("master"), "another master")
        wait_for(
            lambda: all(w.written[0] > b + 100 for w, b in zip(workers, before, strict=True)),
            "all to go on",
        )
        assert redis_says(servers.master, "ROLE").startswith("master"), "it knows of nothing yet"
        for worker in workers:
            worker.finish()
        for worker in workers:
            with suppress(ProviderUnavailable):
                worker.provider.load(key(), NOW)
        with closing(RedisProvider(f"redis://{servers.replica.address}")) as now_master:
            for worker in workers:
                for n, count in worker.written.items():
                    for provider in (now_master, worker.provider):
                        record = provider.load(key((worker.number, n)), NOW)
                        assert record is not None
                        # What nobody acknowledged may have been done all the same.
                        assert int(record.values["n"]) >= count
                assert worker.ended
                assert not [name for name in worker.ended if now_master.exists(name, NOW)]


def test_a_failover_while_nobody_listens() -> None:
    """A worker whose listeners had no connection learns of it when they have."""
    with redis_watched() as servers:
        provider = RedisProvider(
            f"redis://{servers.sentinel.address}", service=servers.service, budget=BUDGET
        )
        create(provider)
        watch = provider._servers._watch  # type: ignore[attr-defined]
        wait_for(lambda: watch._wires, "it to listen")
        # As if it had connected before.
        watch._known = (servers.master.host, 1)
        for wire in list(watch._wires):
            wire.close()
        wait_for(lambda: provider._servers.term == 1, "it to compare")
        assert provider.load(key(), NOW) is not None
        provider.close()


# A cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    with redis_cluster_of(3) as nodes:
        yield nodes


@pytest.fixture
def provider(nodes: list[Server]) -> Iterator[RedisProvider]:
    provider = RedisProvider(
        [f"redis://{node.address}" for node in nodes], new_prefix(), cluster=True, budget=BUDGET
    )
    yield provider
    provider.close()


def node_of(provider: RedisProvider, nodes: list[Server], part: str) -> Server:
    provider.load(part * 64, NOW)
    _, port = provider._servers._owner(part)  # type: ignore[attr-defined]
    return next(node for node in nodes if node.port == port)


def test_the_parts_are_spread(provider: RedisProvider, nodes: list[Server]) -> None:
    counts = [0, 0, 0]
    for part in provider._servers.parts:
        counts[nodes.index(node_of(provider, nodes, part))] += 1
    assert sum(counts) == 16
    assert min(counts) >= 3


def test_a_session_stays_in_its_part(provider: RedisProvider) -> None:
    old = create(provider)
    new = ("0" if old[0] != "0" else "1") + old[1:]
    for until in (None, NOW + 9):
        with pytest.raises(ValueError, match="must begin like the old one"):
            provider.rename(old, new, NOW, until)
    assert provider.load(old, NOW) is not None
    assert provider.load(new, NOW) is None


def test_a_new_id_stays_in_its_part(nodes: list[Server]) -> None:
    app = Flask(__name__)
    app.config.update(
        SESSION_TYPE="redis",
        SESSION_REDIS=[f"redis://{nodes[0].address}"],
        SESSION_KEY_PREFIX=new_prefix(),
        SESSION_OPTIONS={"cluster": True, "budget": BUDGET},
    )
    sessions = HybridSession(app)
    keys: list[str] = []

    @app.get("/<action>")
    def act(action: str) -> Any:
        if action == "login":
            session.login(7)  # type: ignore[attr-defined]
        elif action == "regenerate":
            session.regenerate()  # type: ignore[attr-defined]
        session["n"] = session.get("n", 0) + 1
        return {"n": session["n"], "key": ids.key_of(session.sid)}  # type: ignore[attr-defined]

    for _ in range(5):
        browser = app.test_client()
        seen = [browser.get(f"/{what}").json for what in ("begin", *("regenerate", "login") * 3)]
        assert [answer["n"] for answer in seen] == list(range(1, 8))
        assert len({answer["key"] for answer in seen}) == 7
        assert len({answer["key"][0] for answer in seen}) == 1
        keys.append(seen[-1]["key"])
    assert sorted(sessions.provider.keys_of("i:7", 0.0)) == sorted(keys)  # type: ignore[attr-defined]
    sessions.close()


def test_a_node_is_killed_and_back(provider: RedisProvider, nodes: list[Server]) -> None:
    made = [create(provider, n, user="s:ann") for n in range(64)]
    node = nodes[1]
    mine = [k for k in made if node_of(provider, nodes, k[0]) is node]
    others = [k for k in made if k not in mine]
    assert mine
    assert others
    node.kill()
    with pytest.raises(ProviderUnavailable):
        provider.load(mine[0], NOW)
    for k in others:
        assert provider.load(k, NOW) is not None
        provider.commit(k, Change(puts={"a": b"2"}), NOW)
    for call in (lambda: provider.count(NOW), provider.next_deadline):
        with pytest.raises(ProviderUnavailable):
            call()
    node.start()
    wait_for(lambda: answers(provider, mine[0]), "the node to serve")
    for k in made:
        assert provider.load(k, NOW) is not None
    assert sorted(provider.keys_of("s:ann", NOW)) == sorted(made)
    assert provider.count(NOW) == 64
    check(provider)


def test_a_slot_on_its_way(provider: RedisProvider, nodes: list[Server]) -> None:
    """Half of what a script needs is here, half there: it is refused as a whole."""
    part = "a"
    slot = crc_hqx(part.encode(), 0) % 16384
    old, new = part * 64, part * 63 + "0"
    user = new_prefix()
    provider.commit(old, Change({"n": b"1"}, create=True, user=user, deadline=NOW + 9), NOW)
    source = node_of(provider, nodes, part)
    target = next(node for node in nodes if node is not source)
    there, here = (redis_says(n, "CLUSTER", "MYID").strip() for n in (target, source))
    redis_says(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", here)
    redis_says(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", there)
    space = provider._spaces[part].decode()

    def move(*names: str) -> None:
        keys = [space + name for name in names]
        moved = redis_says(source, "MIGRATE", target.host, target.port, "", 0, 9000, "KEYS", *keys)
        assert moved.strip() == "OK", moved

    def refused() -> None:
        for call in (
            lambda: provider.commit(old, Change({"n": b"2"}, deadline=NOW + 99), NOW),
            lambda: provider.commit(old, Change({"n": b"2"}, user=None), NOW),
            lambda: provider.rename(old, new, NOW, NOW + 9),
            lambda: provider.destroy(old),
        ):
            with pytest.raises(ProviderUnavailable, match="moving these keys"):
                call()
        record = provider.load(old, NOW)
        assert record is not None
        assert (record.values, record.deadline) == ({"n": b"1"}, NOW + 9)

    refused()
    move(f"@user:{user}")
    refused()
    move(old)
    refused()
    move("@due")
    for node, owner in ((target, there), (source, there)):
        redis_says(node, "CLUSTER", "SETSLOT", slot, "NODE", owner)
    provider.commit(old, Change({"n": b"2"}, deadline=NOW + 99), NOW)
    wait_for(lambda: node_of(provider, nodes, part) is target, "a new map")
    provider.rename(old, new, NOW, NOW + 9)
    assert provider.keys_of(user, NOW) == [new]
    check(provider)


def test_a_prefix_that_says_where_keys_go(nodes: list[Server]) -> None:
    with pytest.raises(ConfigError, match=r"no \{ in a cluster"):
        RedisProvider(f"redis://{nodes[0].address}", "{x}:", cluster=True)
