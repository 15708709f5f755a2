"""``flask sessions copy``, and what it is made of. Live: workers use the sessions meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.copying import Copy, Pass
from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import ConfigError, CorruptData, ProviderUnavailable
from flask_hybridsession.core.mirror import COPYING, SHARDS, bring, put, same
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.tiered import TieredProvider
from flask_hybridsession.testing import new_key

from .copying import PATIENCE, fill, records, refuses, under_load
from .servers import Server

ROOT = Path(__file__).parents[1]


def quiet(number: int, keys: Iterable[str], count: int) -> Iterator[str]:
    yield from keys


def copy_all(source: Provider, target: Provider, **options: Any) -> list[Pass]:
    copy = Copy(source, target, **options)
    copy.begin()
    passes = [*copy.passes(quiet), copy.run(quiet, check=True)]
    copy.end()
    return passes


# One session


@pytest.fixture
def now() -> float:
    return clock.now()


def test_put_writes_all_of_it(now: float) -> None:
    provider = MemoryProvider()
    record = Record(new_key(), {"a": b"1"}, now - 9, now - 3, now + 60, "s:ann", "d")
    others = [
        record._replace(values={}, user=None, device=None),
        record._replace(touched=now, deadline=float("inf"), user="i:1"),
    ]
    for one in (record, *others, record):
        put(provider, one, now)
        assert provider.load(record.key, now) == one


def test_put_over_an_expired_one(now: float) -> None:
    """Its deadline is past, but not at the time at which the new one was created."""
    provider = MemoryProvider()
    key = new_key()
    provider.commit(key, Change({"old": b""}, create=True, deadline=now - 1), now - 99)
    record = Record(key, {"a": b"1"}, now - 9, now - 3, now + 60)
    put(provider, record, now)
    assert provider.load(key, now) == record


def test_bring(now: float) -> None:
    source, target = MemoryProvider(), MemoryProvider()
    (key,) = fill(source, 1)
    assert bring(source, target, key, now)
    assert not bring(source, target, key, now)
    assert same(source.load(key, now), target.load(key, now))
    target.destroy(key)
    target.commit(key, Change({"other": b""}, create=True), now)
    assert bring(source, target, key, now)
    assert target.load(key, now) == source.load(key, now)
    moved = new_key()
    source.rename(key, moved, now, now + 60)
    assert bring(source, target, key, now)  # an alias is no session
    assert target.load(key, now) is None
    assert bring(source, target, moved, now)
    assert target.load(moved, now) == source.load(moved, now)


def test_an_end_under_the_very_write(now: float) -> None:
    source = MemoryProvider()
    (key,) = fill(source, 1)

    class Target(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            source.destroy(key)
            super().commit(key, change, now)

    target = Target()
    assert bring(source, target, key, now)
    assert target.load(key, now) is None


# All of them


def test_equal_to_the_last_field(tmp_path: Path) -> None:
    source, target = MemoryProvider(), HybridProvider(tmp_path)
    fill(source, 500)
    first, second, last = copy_all(source, target)
    assert (first.sessions, first.written) == (500, 500)
    assert (second.changes, last.changes, last.bad) == (0, 0, ())
    assert records(target) == records(source)
    assert target.count(clock.now()) == 500
    target.close()


def test_changes_between_the_passes() -> None:
    source, target = MemoryProvider(), MemoryProvider()
    keys, now = fill(source, 100), clock.now()
    copy = Copy(source, target)
    copy.begin()
    assert copy.run(quiet)[1:4] == (100, 100, 0)
    for key in keys[:5]:
        source.destroy(key)
    for key in keys[5:8]:
        source.commit(key, Change({"a": b"2"}), now)
    source.commit(keys[8], Change(touched=now + 1), now)
    source.rename(keys[9], new_key(), now)
    fill(source, 2)
    assert copy.run(quiet)[1:4] == (97, 7, 6)
    copy.end()
    assert records(target) == records(source)


def test_who_is_already_there() -> None:
    source, target = MemoryProvider(), MemoryProvider()
    fill(source, 10)
    (other,) = fill(target, 1)
    with pytest.raises(ConfigError, match="holds sessions already"):
        copy_all(source, target)
    assert target.count(clock.now()) == 1
    copy_all(source, target, mirror=True)
    assert not target.exists(other, clock.now())
    assert records(target) == records(source)
    with pytest.raises(ConfigError, match="holds sessions already"):
        copy_all(source, target)


def test_an_empty_source_empties_nothing() -> None:
    """Somebody has mistyped its name."""
    source, target = MemoryProvider(), MemoryProvider()
    fill(target, 5)
    for mirror in (False, True):
        with pytest.raises(ConfigError, match="holds"):
            copy_all(source, target, mirror=mirror)
    copy = Copy(target, source)  # a copy that was begun, and goes on from the wrong place
    copy.begin()
    copy.run(quiet)
    with pytest.raises(ConfigError, match="the source holds no sessions"):
        copy_all(MemoryProvider(), source)
    assert records(source) == records(target)
    assert target.count(clock.now()) == 5


def test_an_interrupted_copy_is_taken_up() -> None:
    source, target = MemoryProvider(), MemoryProvider()
    keys = fill(source, 100)

    def interrupted(number: int, some: Iterable[str], count: int) -> Iterator[str]:
        for n, key in enumerate(some):
            if n == 50:
                raise KeyboardInterrupt
            yield key

    copy = Copy(source, target)
    copy.begin()
    with pytest.raises(KeyboardInterrupt):
        copy.run(interrupted)
    ended = [key for key in keys if target.exists(key, clock.now())][:10]
    for key in ended:
        source.destroy(key)
    passes = copy_all(source, target)
    assert passes[0].written == 50
    assert passes[0].destroyed == 10
    assert records(target) == records(source)
    assert refuses(target, ended)
    assert target.load(COPYING, clock.now()) is None


def test_both_must_be_able_to_list() -> None:
    for pair in [(FunctionsProvider(), MemoryProvider()), (MemoryProvider(), FunctionsProvider())]:
        with pytest.raises(ConfigError, match="FunctionsProvider cannot list"):
            Copy(*pair)


def test_what_is_no_session_is_not_copied() -> None:
    source, target = MemoryProvider(), MemoryProvider()
    tiered: Any = TieredProvider(source, MemoryProvider())
    one, two = fill(tiered, 2)
    tiered.destroy(two)
    assert source.count(clock.now()) == 2  # with a grave
    assert copy_all(source, target)[0].sessions == 1
    assert list(target.keys(clock.now())) == [one]
    assert not any(target.exists(key, clock.now()) for key in SHARDS)


def test_what_cannot_be_read_is_named() -> None:
    class Damaged(MemoryProvider):
        bad = ""

        def load(self, key: str, now: float) -> Record | None:
            if key == self.bad:
                raise CorruptData("damaged")
            return super().load(key, now)

    source, target = Damaged(), MemoryProvider()
    source.bad = fill(source, 5)[2]
    *_, last = copy_all(source, target)
    assert last.bad == (source.bad,)
    assert target.count(clock.now()) == 4


def test_a_target_that_does_not_keep_what_is_written() -> None:
    class Forgets(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            super().commit(key, change._replace(user=None), now)

    source = MemoryProvider()
    keys = fill(source, 4)
    *_, last = copy_all(source, Forgets())
    assert set(last.bad) == {keys[1], keys[3]}


def test_a_provider_that_is_away_for_a_moment() -> None:
    class Away(MemoryProvider):
        calls = 0

        def commit(self, key: str, change: Change, now: float) -> None:
            self.calls += 1
            if self.calls % 3 == 2:
                raise ProviderUnavailable("away")
            super().commit(key, change, now)

    source, target = MemoryProvider(), Away()
    fill(source, 10)
    copy_all(source, target)
    assert records(target) == records(source)


def test_live(tmp_path: Path) -> None:
    open_source = partial(HybridProvider, tmp_path / "one", durability="never")
    source, target = open_source(), HybridProvider(tmp_path / "two", durability="never")
    keys = fill(source, 3000)
    copy = Copy(source, target)
    copy.begin()
    with under_load(open_source, keys) as load:
        passes = list(copy.passes(quiet))
        assert passes[0].written >= 2000
        for _ in range(3):
            until(lambda: copy.run(quiet).changes)
    assert copy.run(quiet, check=True).bad == ()
    copy.end()
    assert len(load.ended) > 50
    assert load.made
    assert records(target) == records(source)
    assert set(keys) - load.ended <= set(records(target))
    assert load.made <= set(records(target))
    assert refuses(target, load.ended)
    source.close()
    target.close()


def open_tiered(path: Path) -> TieredProvider:
    one, two = (HybridProvider(path / name, durability="never") for name in ("one", "two"))
    return TieredProvider(one, two)


def test_tiered_then_copy_loses_nothing(tmp_path: Path) -> None:
    """No pass after the last change: the workers keep both in step, the copy brings the rest."""
    source, target = (
        HybridProvider(tmp_path / name, durability="never") for name in ("one", "two")
    )
    keys = fill(source, 1000)
    with under_load(partial(open_tiered, tmp_path), keys) as load:
        copy = Copy(source, target, mirror=True)
        copy.begin()
        copy.run(quiet)
        assert copy.run(quiet, check=True).bad == ()
        copy.end()
    assert load.ended
    assert records(target) == records(source)
    assert set(keys) - load.ended <= set(records(target))
    assert refuses(target, load.ended)
    source.close()
    target.close()


# As it is typed


APP = """
from flask import Flask, session
from flask_hybridsession import HybridSession

app = Flask("shop", instance_path={instance!r})
app.config.update({config!r})
HybridSession(app)

@app.get("/visit")
def visit():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])
"""


class Shop:
    """An app in a folder, and its command line."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self.one, self.two = folder / "instance" / "sessions", folder / "two"
        self.configure(**config)

    def configure(self, **config: Any) -> None:
        text = APP.format(instance=str(self.folder / "instance"), config=config)
        (self.folder / "shop.py").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "flask", "--app", "shop", "sessions", "copy", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, list[str], str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=2 * PATIENCE)
        return process.returncode, out.splitlines(), err

    def to_two(self, *words: str) -> tuple[str, ...]:
        return "--from", "hybrid", "--to", "hybrid", "--to-option", f"directory={self.two}", *words


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def source(shop: Shop) -> Iterator[HybridProvider]:
    provider = HybridProvider(shop.one, durability="never")
    yield provider
    provider.close()


@pytest.fixture
def target(shop: Shop) -> Iterator[HybridProvider]:
    provider = HybridProvider(shop.two, durability="never")
    yield provider
    provider.close()


def test_the_command(shop: Shop, source: HybridProvider, target: HybridProvider) -> None:
    fill(source, 300)
    code, out, err = shop.run(*shop.to_two())
    assert (code, out) == (
        0,
        [
            "pass 1: 300 sessions, 300 written, 0 destroyed",
            "pass 2: 300 sessions, 0 written, 0 destroyed",
            "pass 3: 300 sessions, 0 written, 0 destroyed",
            "300 sessions, all equal",
        ],
    ), err
    assert records(target) == records(source)
    code, out, err = shop.run(*shop.to_two())
    assert (code, out) == (2, [])
    assert "holds sessions already. --mirror makes it equal" in err
    assert shop.run(*shop.to_two("--mirror"))[0] == 0


def test_cookies_go_on_working(shop: Shop, target: HybridProvider) -> None:
    visit = """
import sys
from shop import app
client = app.test_client()
if len(sys.argv) > 1:
    client.set_cookie("session", sys.argv[1])
print(client.get("/visit").text, client.get_cookie("session").value)
"""

    def visited(*sid: str) -> list[str]:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{shop.folder}"}
        command = [sys.executable, "-c", visit, *sid]
        return subprocess.check_output(command, text=True, env=env).split()

    n, sid = visited()
    assert (n, *visited(sid)) == ("1", "2", sid)
    assert shop.run(*shop.to_two())[0] == 0
    shop.configure(SESSION_DIR=str(shop.two))
    assert visited(sid) == ["3", sid]


def test_what_cannot_be_copied_at_all(shop: Shop) -> None:
    for words, said in [
        (("--from", "hybrid", "--to", "nonsense"), "there is no provider 'nonsense'"),
        (("--from", "hybrid", "--to", "functions"), "cannot list"),
        (("--from", "hybrid", "--to", "hybrid", "--to-option", "directory"), "NAME=VALUE"),
        (("--from", "hybrid", "--to", "memory", "--to-option", "wrong=1"), "It takes: max_sess"),
        (shop.to_two("--to-option", "SESSION_DIRECTORY=/x"), "SESSION_DIRECTORY is not a setting"),
        (("--to", "memory"), "--from"),
    ]:
        code, out, err = shop.run(*words)
        assert (code, out) == (2, []), err
        assert said in err
        assert "Traceback" not in err


def test_a_killed_copy_is_started_again(
    shop: Shop, source: HybridProvider, target: HybridProvider
) -> None:
    keys = fill(source, 5000)
    process = shop.start(*shop.to_two())
    until(lambda: target.count(clock.now()) > 100)
    process.kill()
    process.communicate()
    there = [key for key in target.keys(clock.now()) if key in set(keys)]
    assert len(there) < 5000
    for key in there[:50]:
        assert source.destroy(key)
    code, out, err = shop.run(*shop.to_two())
    assert code == 0, err
    assert out[-1] == "4950 sessions, all equal"
    assert records(target) == records(source)
    assert refuses(target, there[:50])


def test_follow(shop: Shop, source: HybridProvider, target: HybridProvider) -> None:
    keys = fill(source, 200)
    process = shop.start(*shop.to_two("--follow"))
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    until(lambda: any("following" in line for line in lines))
    assert source.destroy(keys[0])
    source.commit(keys[1], Change({"late": b"1"}), clock.now())
    until(lambda: not target.exists(keys[0], clock.now()))
    assert source.destroy(keys[2])
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    reader.join()
    process.communicate()
    assert lines[-1] == "198 sessions, all equal\n"
    assert records(target) == records(source)


def until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, "it does not come true"
        time.sleep(0.005)


def test_damage_is_said(shop: Shop, source: HybridProvider) -> None:
    fill(source, 3)
    shop.configure(SESSION_TYPE="broken")
    (shop.folder / "shop.py").write_text(
        """
from flask import Flask
from flask_hybridsession import HybridSession, CorruptData, register_provider
from flask_hybridsession.providers.memory import MemoryProvider

@register_provider("broken")
class Broken(MemoryProvider):
    def __init__(self):
        super().__init__()
        from flask_hybridsession.core.change import Change
        self.commit("0" * 64, Change(create=True), 1.0)

    def load(self, key, now):
        raise CorruptData("damaged")

app = Flask("shop")
HybridSession(app, provider="memory")
"""
    )
    code, _, err = shop.run("--from", "broken", "--to", "memory")
    assert code == 1
    assert f"session {'0' * 12}... cannot be read" in err
    assert "0" * 13 not in err
    assert "1 of 1 sessions are not copied" in err


def test_options_of_one_of_several_databases(
    shop: Shop, source: HybridProvider, target: HybridProvider
) -> None:
    fill(source, 20)
    others = [{"type": "hybrid", "directory": str(shop.two)}]
    shop.configure(SESSION_TYPE="tiered", SESSION_OPTIONS={"authority": "memory", "others": others})
    here = f"directory={shop.one}"
    code, out, err = shop.run("--from", "hybrid", "--from-option", here, "--to", "hybrid")
    assert code == 0, err
    assert out[-1] == "20 sessions, all equal"
    assert records(target) == records(source)


def test_to_redis_and_back(
    shop: Shop, source: HybridProvider, target: HybridProvider, redis_server: Server
) -> None:
    keys = fill(source, 1000)
    prefix = f"copy-{os.getpid()}-{time.monotonic_ns()}:"
    url = f"redis://{redis_server.address}/5"
    shop.configure(SESSION_REDIS=url, SESSION_KEY_PREFIX=prefix)
    open_source = partial(HybridProvider, shop.one, durability="never")
    with under_load(open_source, keys) as load:
        code, out, err = shop.run("--from", "hybrid", "--to", "redis")
        assert code == 0, err
    copied = len(records(source))
    code, out, err = shop.run("--from", "hybrid", "--to", "redis", "--mirror")
    assert (code, out[-1]) == (0, f"{copied} sessions, all equal"), err
    back = shop.run(
        *("--from", "redis", "--from-option", f"SESSION_REDIS={url}", "--to", "hybrid"),
        *("--to-option", f"directory={shop.two}"),
    )
    assert (back[0], back[1][-1]) == (0, f"{copied} sessions, all equal"), back
    assert records(target) == records(source)
    assert refuses(target, load.ended)
