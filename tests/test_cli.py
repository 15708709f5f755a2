"""``flask sessions ...``, as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider

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


def fill(folder: Path, *lives: float) -> None:
    provider = HybridProvider(str(folder / "instance" / "sessions"))
    now = clock.now()
    for number, life in enumerate(lives):
        change = Change(create=True, puts={"a": b"\x01"}, deadline=now + life, touched=now)
        provider.commit(f"{number:064x}", change, now)
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
