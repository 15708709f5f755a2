"""Servers that a benchmark starts for itself, on free ports, and stops again."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds within which a server must answer.
PATIENCE = 30.0


class Missing(Exception):
    """What a contestant needs is not installed."""


@contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk."""
    program = _program("redis-server")
    _package("redis")
    import redis

    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        url = f"redis://127.0.0.1:{port}/0"
        command += ["--save", "", "--appendonly", "no"]
        with redis.Redis.from_url(url) as client, _running(command, client.ping):
            yield url


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The SQLAlchemy URL of a PostgreSQL with its settings of delivery, so it syncs each commit."""
    initdb, postgres = _program("initdb"), _program("postgres")
    _package("psycopg")
    import psycopg

    user, port = _not_root(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, user)
        data = str(Path(directory) / "data")
        _run([initdb, "-D", data, "-U", "sessions", "--auth=trust", "--no-sync"], user)
        command = [postgres, "-D", data, "-p", str(port), "-k", directory, "-h", "127.0.0.1"]
        address = f"sessions@127.0.0.1:{port}/postgres"

        def asked() -> None:
            psycopg.connect(f"postgresql://{address}").close()

        with _running(_as(user, command), asked):
            yield f"postgresql+psycopg://{address}"


@contextmanager
def _running(command: list[str], ask: Callable[[], object]) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                ask()
                break
            except Exception:  # each driver has errors of its own for "not yet"
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait()


def _program(name: str) -> str:
    """Where it is; Debian keeps PostgreSQL's out of the way."""
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *debian]))
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def _package(name: str) -> None:
    try:
        __import__(name)
    except ImportError:
        raise Missing(f"the package {name} is not installed") from None


def _not_root() -> str:
    """PostgreSQL refuses to run as root."""
    return "nobody" if os.geteuid() == 0 else getpass.getuser()


def _as(user: str, command: list[str]) -> list[str]:
    if user == getpass.getuser():
        return command
    return [_program("setpriv"), f"--reuid={user}", "--regid=nogroup", "--clear-groups", *command]


def _run(command: list[str], user: str) -> None:
    subprocess.run(_as(user, command), check=True, capture_output=True, cwd="/")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
