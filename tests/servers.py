"""Real servers for the tests, each on a free port, in a folder of its own, stopped afterwards.

``redis_server`` and ``memcached_server`` live as long as the test run; a test that stops its server
takes ``with running(REDIS) as server``. A program that is missing skips the test, or fails it where
the environment says ``CI``. Another server is a ``Program`` and a fixture.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

HOST = "127.0.0.1"
#: Seconds after which a server that does not answer, or does not stop, is given up.
LIMIT = 30.0


class Program(NamedTuple):
    """A server to run. ``package`` is Debian's, or says how to get it: ``pip install ...``."""

    binary: str
    package: str
    #: The command line for a port and an empty folder, which it may prepare.
    command: Callable[[int, Path], list[str]]
    #: Whether it serves by now.
    answers: Callable[[int], bool]


class Server:
    """One running server, at ``host`` and ``port``."""

    host = HOST

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(5):  # somebody may take the free port first
            self.port = free_port()
            if self._started():
                return
        pytest.fail(f"{program.binary} does not start: {self.output()}")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Again, on the same port, after ``stop``."""
        assert self._process is None
        assert self._started(), self.output()

    def freeze(self) -> None:
        """It answers nobody until ``thaw``; connections to it stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """What a crash does. ``start`` begins again with what is on the disk."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(LIMIT)
        self._process = None

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def output(self) -> str:
        return (self._folder / "output").read_text(errors="replace")[-2000:]

    def _started(self) -> bool:
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._program.command(self.port, self._folder),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        give_up = time.monotonic() + LIMIT
        while self._process.poll() is None and time.monotonic() < give_up:
            # A server that was there before makes ours end by itself.
            if self._program.answers(self.port) and self._process.poll() is None:
                return True
            time.sleep(0.01)
        self.stop()
        return False


@contextmanager
def running(program: Program) -> Iterator[Server]:
    """A server of one's own, for the length of a ``with`` block."""
    if shutil.which(program.binary) is None:
        how = program.package if " " in program.package else f"apt-get install {program.package}"
        missing = f"{program.binary} is not installed: {how}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix=f"{Path(program.binary).name}-") as folder:
        server = Server(program, Path(folder))
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def says(port: int, question: bytes, answer: bytes) -> bool:
    """Whether what listens there answers so."""
    try:
        with socket.create_connection((HOST, port), 1) as connection:
            connection.sendall(question)
            return connection.recv(64).startswith(answer)
    except OSError:
        return False


REDIS = Program(
    "redis-server",
    "redis-server",
    lambda port, folder: [
        *("redis-server", "--bind", HOST, "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "no"),
    ],
    lambda port: says(port, b"PING\r\n", b"+PONG"),
)

MEMCACHED = Program(
    "memcached",
    "memcached",
    lambda port, folder: [
        *("memcached", "-l", HOST, "-p", str(port), "-U", "0", "-m", "256", "-I", "4m"),
        *("-u", getpass.getuser()),
    ],
    lambda port: says(port, b"version\r\n", b"VERSION"),
)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with running(REDIS) as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[Server]:
    with running(MEMCACHED) as server:
        yield server
