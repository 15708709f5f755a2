"""The circuit breaker: when it opens, who finds out that it may close, what time is left."""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession import ConfigError, ProviderUnavailable, SessionGone
from flask_hybridsession.core.breaker import Breaker, begin_budget, end_budget, own_budgets
from tests.providers.hybrid.tools import run
from tests.remote import until

LONG = 30.0


class Server:
    """Answers or does not; ``breaker`` is what stands before it."""

    def __init__(self, **options: Any) -> None:
        self.away = False
        self.probes = 0
        self.asked = 0
        self.prober: threading.Thread | None = None
        self.breaker = Breaker(self.probe, **{"rest": 0.02, **options})

    def probe(self, seconds: float) -> None:
        self.probes += 1
        self.prober = threading.current_thread()
        if self.away:
            raise ProviderUnavailable("no pong")

    def work(self, seconds: float) -> str:
        self.asked += 1
        if self.away:
            raise ProviderUnavailable("no answer")
        return "an answer"

    def ask(self) -> str:
        return self.breaker.call(self.work)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(ProviderUnavailable, match="no answer"):
                self.breaker.call(lose)

    def open(self) -> None:
        """Away, and known to be."""
        self.away = True
        self.fail(5)
        assert self.breaker.is_open

    def come_back(self) -> None:
        """There again, and known to be: the next call is the one that is tried."""
        self.away = False
        until(lambda: not self.breaker.is_open, "the probe")


@pytest.fixture
def server() -> Any:
    server = Server()
    yield server
    server.breaker.close()


@pytest.fixture
def budget() -> Any:
    """A request's own."""
    begin_budget()
    yield
    end_budget()


def lose(seconds: float) -> None:
    raise ProviderUnavailable("no answer")


def refuses(server: Server) -> bool:
    asked = server.asked
    with pytest.raises(ProviderUnavailable):
        server.ask()
    return server.asked == asked


def in_a_new_context(call: Callable[[], object]) -> None:
    contextvars.Context().run(call)


# -- opening -------------------------------------------------------------------------------------


def test_what_work_returns_and_raises_comes_through(server: Server) -> None:
    assert server.ask() == "an answer"
    for error in (SessionGone("ab" * 32), ValueError("mine")):

        def work(seconds: float, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            server.breaker.call(work)
        assert caught.value is error


def test_five_failures_in_a_row_open_it(server: Server) -> None:
    server.away = True
    server.fail(4)
    assert not server.breaker.is_open
    server.fail()
    assert server.breaker.is_open
    assert refuses(server)


@pytest.mark.parametrize("answer", [None, SessionGone("ab" * 32), ValueError("mine")])
def test_any_other_outcome_is_an_answer(server: Server, answer: Exception | None) -> None:
    def work(seconds: float) -> None:
        if answer is not None:
            raise answer

    for _ in range(3):
        server.fail(4)
        if answer is None:
            server.breaker.call(work)
        else:
            with pytest.raises(type(answer)):
                server.breaker.call(work)
    assert not server.breaker.is_open


def test_failures_of_all_threads_count(server: Server) -> None:
    server.away = True
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: server.fail(), range(5)))
    assert server.breaker.is_open


def test_work_that_is_under_way_keeps_nothing_from_opening(server: Server) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.breaker.call, lambda seconds: go.wait(LONG))
        server.open()
        go.set()
        assert slow.result(LONG) is True
    assert server.breaker.is_open, "an answer from before says nothing"


def test_a_failure_from_before_does_not_count_afterwards(server: Server) -> None:
    go = threading.Event()

    def slow(seconds: float) -> None:
        go.wait(LONG)
        raise ProviderUnavailable("late")

    with ThreadPoolExecutor(5) as pool:
        late = [pool.submit(server.breaker.call, slow) for _ in range(5)]
        server.open()
        server.come_back()
        assert server.ask() == "an answer"
        go.set()
        for call in late:
            assert isinstance(call.exception(LONG), ProviderUnavailable)
    assert server.ask() == "an answer"


# -- closing -------------------------------------------------------------------------------------


def test_no_request_pays_for_a_probe(server: Server) -> None:
    server.open()
    until(lambda: server.probes >= 3, "three probes")
    assert refuses(server)
    assert server.prober is not threading.current_thread()
    server.come_back()
    assert server.ask() == "an answer"
    probes = server.probes
    until(lambda: server.prober is not None and not server.prober.is_alive(), "the probing to end")
    assert server.probes == probes


def test_one_call_at_a_time_until_one_is_answered(server: Server) -> None:
    server.open()
    server.come_back()
    inside, go = threading.Event(), threading.Event()

    def work(seconds: float) -> None:
        inside.set()
        go.wait(LONG)

    server.breaker.budget = LONG  # the one that is tried may take its time
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(server.breaker.call, work)
        assert inside.wait(LONG)
        with ThreadPoolExecutor(4) as others:
            assert all(others.map(lambda _: refuses(server), range(20)))
        go.set()
        tried.result(LONG)
    assert server.ask() == "an answer"


def test_the_call_that_is_tried_opens_it_again(server: Server) -> None:
    server.open()
    server.come_back()
    server.away = True
    server.fail()
    assert server.breaker.is_open
    assert refuses(server)
    server.come_back()
    assert server.ask() == "an answer"


def test_a_call_that_is_tried_and_vanishes_does_not_block_for_ever() -> None:
    server = Server(budget=0.05)
    server.open()
    server.come_back()

    def vanish(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.breaker.call(vanish)
    assert refuses(server)

    def answered() -> bool:
        try:
            return server.ask() == "an answer"
        except ProviderUnavailable:
            return False

    until(answered)


def test_what_is_to_be_done_on_recovery_comes_first(server: Server) -> None:
    order: list[str] = []
    refused: list[bool] = []

    def recover() -> None:
        with ThreadPoolExecutor(1) as pool:
            refused.append(pool.submit(refuses, server).result(LONG))
        order.append(f"recovery has {server.ask()}")

    server.breaker.on_recovery(recover)
    server.open()
    server.come_back()
    order.append(server.ask())
    assert order == ["recovery has an answer", "an answer"]
    assert refused == [True]


def test_a_recovery_that_meets_another_outage_keeps_it_open(server: Server) -> None:
    tries: list[int] = []

    def recover() -> None:
        tries.append(1)
        if len(tries) < 3:
            server.breaker.call(lose)

    server.breaker.on_recovery(recover)
    server.open()
    server.come_back()
    assert len(tries) == 3


def test_calls_of_a_recovery_that_fail_start_no_second_probing(server: Server) -> None:
    def recover() -> None:
        if server.away:
            server.ask()

    server.breaker.on_recovery(recover)
    probers: set[threading.Thread | None] = set()

    def probe(seconds: float) -> None:
        probers.add(threading.current_thread())

    server.breaker._probe = probe
    server.open()
    until(lambda: server.asked >= 10, "ten tries")
    assert server.breaker.is_open
    server.come_back()
    assert len(probers) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), ProviderUnavailable("refused")])
def test_a_recovery_that_fails_though_the_server_answers_is_reported(
    server: Server, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        server.ask()
        raise error

    done: list[int] = []
    server.breaker.on_recovery(broken)
    server.breaker.on_recovery(lambda: done.append(1))
    server.open()
    server.come_back()
    assert done == [1]
    assert any(record.exc_info for record in caplog.records)


def test_a_probe_that_is_broken_is_reported_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    probes: list[int] = []

    def probe(seconds: float) -> None:
        probes.append(1)
        if len(probes) < 3:
            raise ZeroDivisionError

    breaker = Breaker(probe, rest=0.01)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(5):
            with pytest.raises(ProviderUnavailable):
                breaker.call(lose)
        until(lambda: not breaker.is_open)
    assert len(probes) == 3


def test_closing_ends_the_probing(server: Server) -> None:
    server.breaker.close()
    server.open()
    until(lambda: server.prober is not None, "a probe")
    assert server.prober is not None
    server.breaker.close()
    server.breaker.close()
    server.prober.join(LONG)
    assert not server.prober.is_alive()
    assert refuses(server)
    server.come_back()  # who goes on using it is served


def test_a_breaker_that_nobody_has_is_let_go() -> None:
    probers: list[threading.Thread] = []

    def probe(seconds: float) -> None:
        probers.append(threading.current_thread())
        raise ProviderUnavailable("no pong")

    breaker = Breaker(probe, rest=0.01)
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            breaker.call(lose)
    until(lambda: probers)
    gone = weakref.ref(breaker)
    del breaker

    def collected() -> bool:
        gc.collect()
        return gone() is None

    until(collected)
    probers[0].join(LONG)
    assert not probers[0].is_alive()


# -- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -1, float("nan"), True, "1", None])
def test_what_is_no_budget(budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Breaker(lambda seconds: None, budget=budget)


def test_without_a_request_each_call_has_a_whole_budget(server: Server) -> None:
    given: list[float] = []

    def work(seconds: float) -> None:
        given.append(seconds)
        time.sleep(0.002)

    for _ in range(3):
        server.breaker.call(work)
    assert given == [0.25] * 3


@pytest.mark.usefixtures("budget")
def test_calls_of_a_request_share_one(server: Server) -> None:
    given: list[float] = []

    def work(seconds: float) -> None:
        given.append(seconds)
        time.sleep(0.01)

    for _ in range(3):
        server.breaker.call(work)
        time.sleep(0.1)  # the view's own time does not count
    assert given[0] == 0.25
    assert given[1] <= 0.24
    assert 0.1 < given[2] <= given[1] - 0.01


@pytest.mark.usefixtures("budget")
def test_failures_use_it_up_too(server: Server) -> None:
    def work(seconds: float) -> None:
        time.sleep(seconds)
        raise ProviderUnavailable("no answer")

    with pytest.raises(ProviderUnavailable, match="no answer"):
        server.breaker.call(work)
    for _ in range(10):  # none of these is the server's fault
        with pytest.raises(ProviderUnavailable, match="used up"):
            server.ask()
    assert server.asked == 0
    assert not server.breaker.is_open
    in_a_new_context(server.ask)
    with own_budgets():
        server.ask()
    with pytest.raises(ProviderUnavailable, match="used up"):
        server.ask()
    end_budget()
    server.ask()


@pytest.mark.usefixtures("budget")
def test_who_has_no_time_left_is_not_the_one_that_is_tried(server: Server) -> None:
    begin_budget(0.001)
    server.breaker.call(lambda seconds: time.sleep(0.002))
    with own_budgets():
        server.open()
        server.come_back()
    with pytest.raises(ProviderUnavailable, match="used up"):
        server.ask()
    with own_budgets():
        assert server.ask() == "an answer"


@pytest.mark.usefixtures("budget")
def test_a_budget_of_its_own_length(server: Server) -> None:
    begin_budget(7)
    assert server.breaker.call(lambda seconds: seconds) == 7


# -- forks and greenlets -------------------------------------------------------------------------


def test_a_forked_child_probes_by_itself(server: Server) -> None:
    server.open()
    until(lambda: server.prober is not None, "the parent's probe")
    parents = server.prober

    def child() -> None:
        assert server.breaker.is_open
        assert refuses(server)
        server.come_back()
        assert server.prober is not parents
        assert server.ask() == "an answer"

    run(child)
    assert server.breaker.is_open


def test_a_lock_held_at_the_fork_is_not_held_in_the_child(server: Server) -> None:
    with server.breaker._lock.take():
        run(server.open)


GREENLETS = """
from flask_hybridsession.core.breaker import Breaker
from flask_hybridsession import ProviderUnavailable
away = True
def probe(seconds):
    gevent.sleep(0.001)
    if away: raise ProviderUnavailable("no pong")
breaker = Breaker(probe, rest=0.01)
from gevent import monkey; monkey.patch_all()
import gevent, threading
def lose(seconds):
    raise ProviderUnavailable("no answer")
for _ in range(5):
    try: breaker.call(lose)
    except ProviderUnavailable: pass
assert breaker.is_open
ticks = 0
while ticks < 20:
    gevent.sleep(0.005)
    ticks += 1
away = False
while breaker.is_open: gevent.sleep(0.005)
assert breaker.call(lambda seconds: 1) == 1
assert "probe" not in " ".join(t.name for t in threading.enumerate())
print("done")
"""


def test_made_before_gevent_takes_over() -> None:
    """As in a preloaded app: the probing is a greenlet, which keeps nobody waiting."""
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr
