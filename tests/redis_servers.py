"""Several Redis servers that belong together: a cluster, a master with its replica and a sentinel.

``redis_cluster`` and ``redis_sentinels`` live as long as the test run, for tests that leave them as
they are; a test that stops one of them takes ``with redis_cluster_of(3)`` or ``redis_watched()``.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from .servers import HOST, LIMIT, REDIS, Program, Server, free_port, running

MASTER = REDIS._replace(
    command=lambda port, folder: [
        *(*REDIS.command(port, folder), "--repl-diskless-sync-delay", "0"),
    ]
)


def redis_replica(master: Server) -> Program:
    """A replica of ``master``."""
    return REDIS._replace(
        command=lambda port, folder: [
            *(*REDIS.command(port, folder), "--replicaof", master.host, str(master.port)),
            *("--repl-diskless-sync-delay", "0"),
        ]
    )


def redis_sentinel(master: Server, service: str) -> Program:
    """A sentinel that decides alone, and soon, that ``master`` is down."""

    def command(port: int, folder: Path) -> list[str]:
        conf = folder / "sentinel.conf"
        conf.write_text(
            f"bind {HOST}\nport {port}\ndir {folder}\n"
            f"sentinel monitor {service} {master.host} {master.port} 1\n"
            f"sentinel down-after-milliseconds {service} 500\n"
            f"sentinel failover-timeout {service} 2000\n"
        )
        return ["redis-server", str(conf), "--sentinel"]

    return REDIS._replace(command=command)


def redis_node(port: int, folder: Path) -> list[str]:
    """A node that keeps its sessions on the disk."""
    return [
        *("redis-server", "--bind", HOST, "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
        *("--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"),
    ]


NODE = REDIS._replace(command=redis_node)


def redis_says(server: Server, *words: object) -> str:
    """What ``redis-cli`` prints."""
    command = ["redis-cli", "-h", server.host, "-p", str(server.port), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True).stdout


@contextmanager
def redis_cluster_of(size: int) -> Iterator[list[Server]]:
    """A cluster of so many masters."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(running(NODE)) for _ in range(size)]
        for number, node in enumerate(nodes):
            first, last = 16384 * number // size, 16384 * (number + 1) // size - 1
            redis_says(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            for other in nodes[:number]:
                bus = redis_says(other, "CONFIG", "GET", "cluster-port").split()[1]
                redis_says(node, "CLUSTER", "MEET", other.host, other.port, bus)
        _wait_until(
            lambda: all(_knows_all(node, size) for node in nodes),
            "the nodes do not find each other",
        )
        yield nodes


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    give_up = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < give_up, otherwise
        time.sleep(0.02)


def _knows_all(node: Server, size: int) -> bool:
    slots = json.loads(redis_says(node, "--json", "CLUSTER", "SLOTS"))
    return len(slots) == size and "cluster_state:ok" in redis_says(node, "CLUSTER", "INFO")


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[list[Server]]:
    """Three masters, for tests that leave them running."""
    with redis_cluster_of(3) as nodes:
        yield nodes


class Watched(NamedTuple):
    """A master with a replica, and a sentinel that knows them as ``service``."""

    master: Server
    replica: Server
    sentinel: Server
    service: str


@contextmanager
def redis_watched() -> Iterator[Watched]:
    with (
        running(MASTER) as master,
        running(redis_replica(master)) as replica,
        running(redis_sentinel(master, "sessions")) as sentinel,
    ):
        redis_says(sentinel, "SENTINEL", "DEBUG", "info-period", 300)  # milliseconds
        _wait_until(
            lambda: (
                "master_link_status:up" in redis_says(replica, "INFO", "replication")
                and str(replica.port) in redis_says(sentinel, "SENTINEL", "REPLICAS", "sessions")
            ),
            "the sentinel does not find the replica",
        )
        yield Watched(master, replica, sentinel, "sessions")


@pytest.fixture(scope="session")
def redis_sentinels() -> Iterator[Watched]:
    """For tests that leave the master where it is."""
    with redis_watched() as watched:
        yield watched
