"""Any calls in any order on four handles, two of them in other processes: see ``tests.model``."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from flask_hybridsession.providers.redis import RedisProvider
from tests.model import Handle, InProcess, InThread, WorkersMachine, machine_case
from tests.servers import Server

from .tools import BUDGET, check, new_prefix


class Redis(WorkersMachine):
    urls: Any
    cluster = False

    def open_handles(self) -> list[Handle]:
        open_ = partial(RedisProvider, self.urls, new_prefix(), cluster=self.cluster, budget=BUDGET)
        return [Handle(open_), InThread(open_), InProcess(open_), InProcess(open_)]

    def check_store(self, handle: Handle) -> None:
        handle.do(self.now, check)


class InCluster(Redis):
    cluster = True


@pytest.mark.usefixtures("_server")
class TestRedis(machine_case(Redis, steps=300)):  # type: ignore[misc]
    @pytest.fixture
    def _server(self, redis_server: Server) -> None:
        Redis.urls = f"redis://{redis_server.address}"


@pytest.mark.usefixtures("_server")
class TestCluster(machine_case(InCluster, steps=200)):  # type: ignore[misc]
    @pytest.fixture
    def _server(self, redis_cluster: list[Server]) -> None:
        InCluster.urls = [f"redis://{redis_cluster[0].address}"]
