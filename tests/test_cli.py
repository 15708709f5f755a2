"""``flask sessions ...``, as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest

from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.hybrid.frame import HEADER_SIZE
from flask_hybridsession.providers.hybrid.store import Turn

ROOT = Path(__file__).parents[1]
APP = """
from flask import Flask
from flask_hybridsession import HybridSession

def create_app():
    app = Flask("shop", instance_path={instance!r})
    HybridSession(app)
    return app
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP.format(instance=str(tmp_path / "instance")))
    return tmp_path


def flask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def key(number: int) -> str:
    return f"{number:064x}"


def fill(folder: Path, *lives: float) -> None:
    provider = HybridProvider(str(folder / "instance" / "sessions"))
    now = clock.now()
    for number, life in enumerate(lives):
        change = Change(create=True, puts={"a": b"\x01"}, deadline=now + life, touched=now)
        provider.commit(key(number), change, now)
    provider.close()


@pytest.mark.parametrize(
    ("lives", "said"),
    [
        ([], "0 expired sessions destroyed\n"),
        ([-1, 1000], "1 expired session destroyed\n"),
        ([-1] * 250 + [1000, 2000], "250 expired sessions destroyed\n"),
    ],
)
def test_purge(folder: Path, lives: list[float], said: str) -> None:
    fill(folder, *lives)
    done = flask(folder, "sessions", "purge")
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert flask(folder, "sessions", "purge").stdout == "0 expired sessions destroyed\n"
    provider = HybridProvider(str(folder / "instance" / "sessions"))
    assert provider.count(clock.now()) == sum(life > 0 for life in lives)
    provider.close()


def test_stats(folder: Path) -> None:
    fill(folder, 1000, 1000, 1000)
    done = flask(folder, "sessions", "stats")
    assert done.returncode == 0, done.stderr
    figures = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert figures["provider"] == "HybridProvider"
    assert figures["sessions"] == "3"
    assert "0" * 64 not in done.stdout


def test_help(folder: Path) -> None:
    text = flask(folder, "sessions", "--help").stdout
    assert "purge" in text
    assert "stats" in text
    assert "sessions" in flask(folder, "--help").stdout


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.splitlines()


def test_check_of_a_sound_store(folder: Path) -> None:
    fill(folder, 1000, 1000, -1)
    provider = HybridProvider(str(folder / "instance" / "sessions"))
    done = flask(folder, "sessions", "check")
    assert (done.returncode, done.stdout) == (0, "no damage found\n"), done.stderr
    provider._check()
    provider.close()


def test_check_says_where_and_changes_nothing(folder: Path) -> None:
    fill(folder, *[1000.0] * 9)
    directory = folder / "instance" / "sessions"
    log = bytearray((directory / "log").read_bytes())
    size = (len(log) - HEADER_SIZE) // 9
    start = HEADER_SIZE + 4 * size
    log[start + size // 2] ^= 1
    (directory / "log").write_bytes(log)
    found = flask(folder, "sessions", "check")
    assert found.returncode == 1, found.stderr
    text = lines(found)[0]
    assert text.startswith(f"log: bytes {start} to {start + size} hold no sound frame")
    assert f"commit 5 of session {key(4)[:12]}..." in text
    assert key(4) not in found.stdout
    assert (directory / "log").read_bytes() == log
    assert lines(flask(folder, "sessions", "check")) == lines(found)
    # The image still has all of it: a new log is made from that.
    assert flask(folder, "sessions", "compact").returncode == 0
    assert flask(folder, "sessions", "check").returncode == 0


def test_check_tells_of_a_log_that_a_recovery_kept(folder: Path) -> None:
    fill(folder, *[1000.0] * 9)
    directory = folder / "instance" / "sessions"
    log = bytearray((directory / "log").read_bytes())
    log[HEADER_SIZE + (len(log) - HEADER_SIZE) // 2] ^= 1
    (directory / "log").write_bytes(log)
    (directory / "image").unlink()
    found = flask(folder, "sessions", "check")
    assert found.returncode == 1
    assert "log: bytes " in found.stdout
    assert list(directory.glob("damaged-*")) == [], "who looks recovers nothing"
    assert flask(folder, "sessions", "purge").returncode == 0
    (kept,) = directory.glob("damaged-*")
    found = flask(folder, "sessions", "check")
    assert found.returncode == 1
    assert f"{kept.name}: bytes " in found.stdout
    assert f"session {key(4)[:12]}..." in found.stdout
    kept.unlink()
    assert flask(folder, "sessions", "check").returncode == 0


def test_check_of_an_image_that_is_not_what_the_log_says(folder: Path) -> None:
    fill(folder, 1000, 1000)
    provider = HybridProvider(str(folder / "instance" / "sessions"))

    def spoil(turn: Turn) -> None:
        turn.txn.delete(bytes.fromhex(key(1)), b"", turn.image.sessions)
        turn.dirty = True

    provider._store.write(False, spoil)
    found = flask(folder, "sessions", "check")
    provider.close()
    assert found.returncode == 1
    assert lines(found) == [f"image: session {key(1)[:12]}... is missing"]


def test_compact_says_the_sizes(folder: Path) -> None:
    fill(folder, *[-1.0] * 100, 1000)
    directory = folder / "instance" / "sessions"
    flask(folder, "sessions", "purge")
    before = (directory / "log").stat().st_size
    done = flask(folder, "sessions", "compact")
    after = (directory / "log").stat().st_size
    assert done.returncode == 0, done.stderr
    assert f"log: {before} -> {after} bytes" in lines(done)
    assert after < before / 50
    assert flask(folder, "sessions", "check").returncode == 0


def test_compact_while_another_worker_does(folder: Path) -> None:
    fill(folder, 1000)
    with (folder / "instance" / "sessions" / "compact").open("w") as held:
        flock(held, LOCK_EX)
        done = flask(folder, "sessions", "compact")
    assert (done.returncode, done.stdout) == (1, "")
    assert "another worker" in done.stderr


def configure(folder: Path, config: str) -> None:
    source = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(
        source.replace("HybridSession(app)", f"app.config.update({config}); HybridSession(app)")
    )


def test_init_of_another_provider(folder: Path) -> None:
    """As a copy into it needs: the app is still on its old one."""
    done = flask(folder, "sessions", "init")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HybridProvider has nothing to make" in done.stderr
    words = ("--type", "sql", "--option", f"SESSION_SQLALCHEMY=sqlite:///{folder / 'two.db'}")
    done = flask(folder, "sessions", "init", "--print", *words)
    assert done.stdout.count("CREATE TABLE") == 2
    done = flask(folder, "sessions", "init", *words)
    assert (done.returncode, done.stdout) == (0, "the tables are there\n")
    fill(folder, 1000)
    words = ("--from", "hybrid", "--to", *words[1:2], "--to-option", words[3])
    done = flask(folder, "sessions", "copy", *words)
    assert done.stdout.endswith("1 session, all equal\n"), done.stderr


def test_init_of_one_of_several(folder: Path) -> None:
    tiers = {"authority": "hybrid", "others": ["memory", {"type": "sql"}]}
    url = f"sqlite:///{folder / 'two.db'}"
    configure(folder, f"SESSION_TYPE='tiered', SESSION_OPTIONS={tiers}, SESSION_SQLALCHEMY={url!r}")
    for words, said in (("--print",), "CREATE TABLE"), ((), "the tables are there"):
        done = flask(folder, "sessions", "init", *words)
        assert done.returncode == 0
        assert said in done.stdout


@pytest.mark.parametrize("command", ["stats", "purge"])
def test_a_server_that_is_away_is_one_line(folder: Path, command: str) -> None:
    configure(folder, "SESSION_TYPE='redis', SESSION_REDIS='redis://:secret@127.0.0.1:1'")
    done = flask(folder, "sessions", command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Redis at 127.0.0.1:1 cannot be reached")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "compact"])
def test_a_provider_without_that_ability(folder: Path, command: str) -> None:
    configure(folder, "SESSION_TYPE='memory'")
    done = flask(folder, "sessions", command)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"MemoryProvider has nothing to {command}" in done.stderr
