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
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    #: What makes it end soon, whoever is connected.
    end: signal.Signals = signal.SIGTERM


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
        assert self._process is not None
        give_up = time.monotonic() + LIMIT
        # The signal is on its way to each thread when ``kill`` returns.
        while not all(map(is_stopped, [self._process.pid, *children(self._process.pid)])):
            assert time.monotonic() < give_up, "it does not stop"
            time.sleep(0.001)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """What a crash does. ``start`` begins again with what is on the disk."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(LIMIT)
        self._process = None

    def _signal(self, which: signal.Signals) -> None:
        """To the process and its children: PostgreSQL has one for each connection."""
        assert self._process is not None
        self._process.send_signal(which)
        for child in children(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, which)

    def stop(self) -> None:
        if self._process is None:
            return
        self.thaw()
        process, self._process = self._process, None
        process.send_signal(self._program.end)
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
    needs(program)
    with tempfile.TemporaryDirectory(prefix=f"{Path(program.binary).name}-") as folder:
        server = Server(program, Path(folder))
        try:
            yield server
        finally:
            server.stop()


def needs(program: Program) -> None:
    """Skip the test without it, or fail where ``CI`` is set."""
    if shutil.which(program.binary) is None:
        how = program.package if " " in program.package else f"apt-get install {program.package}"
        missing = f"{program.binary} is not installed: {how}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


def is_stopped(process: int) -> bool:
    """Whether none of its threads does anything, which is so once it has ended, too."""
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "TtZX":
                return False
    return True


def children(pid: int) -> list[int]:
    """The process ids of its children."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, tasks.read_text().split())
    return found


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


# Debian keeps PostgreSQL's programs out of the way. It refuses to run as root.
_POSTGRESQL = max(map(str, Path("/usr/lib/postgresql").glob("*/bin")), default="")
_STARTUP = b"\0\3\0\0user\0sessions\0database\0postgres\0\0"


def _postgresql(port: int, folder: Path) -> list[str]:
    data = folder / "data"
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    if not data.exists():
        initdb = shutil.which("initdb", path=f"{_POSTGRESQL}:{os.environ['PATH']}") or "initdb"
        subprocess.run(
            [*as_user, initdb, "-D", data, "-U", "sessions", "-A", "trust", "-N", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
        )
    return [
        *(*as_user, POSTGRESQL.binary, "-D", str(data), "-h", HOST, "-p", str(port)),
        *("-k", str(folder), "-c", "fsync=off", "-c", "max_connections=200"),
    ]


def _mariadb(port: int, folder: Path) -> list[str]:
    data, script, user = folder / "data", folder / "init.sql", getpass.getuser()
    if not data.exists():
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        script.write_text(
            "CREATE DATABASE IF NOT EXISTS sessions;\n"
            f"CREATE USER IF NOT EXISTS sessions@'{HOST}';\n"
            f"GRANT ALL ON *.* TO sessions@'{HOST}';\n"
        )
    return [
        *(MARIADB.binary, "--no-defaults", f"--datadir={data}", f"--user={user}"),
        *(f"--bind-address={HOST}", f"--port={port}", f"--socket={folder / 'socket'}"),
        *(f"--init-file={script}", "--skip-name-resolve", "--max-connect-errors=1000000"),
        *("--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M"),
    ]


POSTGRESQL = Program(
    f"{_POSTGRESQL}/postgres" if _POSTGRESQL else "postgres",
    "postgresql",
    _postgresql,
    lambda port: says(port, struct.pack(">i", len(_STARTUP) + 4) + _STARTUP, b"R"),
    signal.SIGINT,
)

MARIADB = Program("mariadbd", "mariadb-server", _mariadb, lambda port: says(port, b"", b""))


def postgresql_url(server: Server) -> str:
    """The address of its one database, for SQLAlchemy."""
    return f"postgresql+psycopg://sessions@{server.address}/postgres"


def mariadb_url(server: Server) -> str:
    return f"mariadb+pymysql://sessions@{server.address}/sessions"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    with running(POSTGRESQL) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    with running(MARIADB) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with running(REDIS) as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[Server]:
    with running(MEMCACHED) as server:
        yield server
