"""Servers that a benchmark starts for itself and stops again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds within which a server must answer.
PATIENCE = 10.0


class Missing(Exception):
    """What a contestant needs is not installed."""


@contextmanager
def redis_server() -> Iterator[Any]:
    """A client of a Redis of our own, on a free port, that keeps nothing on disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is not installed")
    try:
        import redis
    except ImportError:
        raise Missing("the package redis is not installed") from None
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        server = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL
        )
        try:
            client = redis.Redis(port=port)
            _wait_for(client, server)
            yield client
            client.close()
        finally:
            server.terminate()
            server.wait()


def _wait_for(client: Any, server: subprocess.Popen[bytes]) -> None:
    import redis

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
