"""A child begins anew once, however it was forked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SETUP = """
import ctypes, os, sys, threading
from flask_hybridsession.core import forks

def bare():
    return ctypes.PyDLL(None).fork()

def ended(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

begun = []
forks.in_child(lambda: begun.append(os.getpid()))
"""


def run(code: str) -> None:
    """In a process of its own: forks are noticed by what is made when it begins."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", SETUP + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.returncode, found.stderr) == (0, "")


BY_PID = "forks.ours = forks._ByPid(); forks.ours[0] = 1\n"


@pytest.mark.parametrize("setup", ["", BY_PID], ids=["by the page", "by pid"])
@pytest.mark.parametrize("fork", ["bare", "os.fork"])
def test_once_in_each_child(fork: str, setup: str) -> None:
    run(
        f"""
{setup}
forks.look()
assert begun == []
for generation in range(3):
    pid = {fork}()
    if pid:
        ended(pid)
        assert forks.ours[0] and len(begun) == generation
        os._exit(0)
    assert forks.ours[0] == ({fork} is os.fork)
    forks.look()
    forks.look()
    assert len(begun) == generation + 1 and begun[-1] == os.getpid()
"""
    )


def test_threads_wait_for_the_one_that_begins_anew() -> None:
    run(
        """
import time
forks.in_child(lambda: time.sleep(0.05))
forks.in_child(lambda: begun.append("whole"))
pid = bare()
if pid:
    ended(pid)
    sys.exit()
seen = []
def one():
    forks.look()
    seen.append(list(begun))
threads = [threading.Thread(target=one) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert seen == [[os.getpid(), "whole"]] * 8, seen
os._exit(0)
"""
    )


def test_what_fails_is_tried_again() -> None:
    run(
        """
failures = [OSError("not now")]
def fail():
    if failures:
        raise failures.pop()
forks.in_child(fail)
pid = bare()
if pid:
    ended(pid)
    sys.exit()
try:
    forks.look()
except OSError:
    forks.look()
    assert forks.ours[0] and len(begun) == 2
    os._exit(0)
"""
    )


HELD = {
    "key locks": """
from flask_hybridsession.core import keylocks
def hold(): return keylocks.held("a")
def use():
    with keylocks.held("a"): pass
""",
    "memory": """
from flask_hybridsession.providers import memory
provider = memory.MemoryProvider()
def hold(): return memory._alone()
def use(): assert provider.count(0) == 0 and provider.load("a", 0.0) is None
""",
    "breaker": """
from flask_hybridsession.core.breaker import Breaker
breaker = Breaker(lambda seconds: None)
def hold(): return breaker._lock.take()
def use():
    breaker.call(lambda seconds: None)
    breaker.close()
""",
    "clockwork": """
from flask_hybridsession.core.timers import clockwork
import time
def runs():
    give_up = time.monotonic() + 60
    while not clockwork.runs:
        assert time.monotonic() < give_up
        time.sleep(0.001)
clockwork.start()
runs()
def hold(): return threading.Lock()  # it has none itself
def use():
    clockwork.notice(0.0)
    assert not clockwork.runs
    clockwork.start()
    runs()
""",
}


@pytest.mark.parametrize("name", HELD)
def test_a_lock_that_another_thread_held(name: str) -> None:
    """It is nobody's in the child: the thread is not there to release it."""
    run(
        f"""
import logging
logging.disable()
{HELD[name]}
inside, go = threading.Event(), threading.Event()
def work():
    with hold():
        inside.set()
        go.wait(60)
thread_ = threading.Thread(target=work)
thread_.start()
inside.wait()
pid = bare()
if not pid:
    use()
    os._exit(0)
ended(pid)
go.set()
thread_.join()
"""
    )


def test_python_is_not_asked_for_the_process_at_each_look() -> None:
    from flask_hybridsession.core import forks

    assert isinstance(forks.ours, memoryview) == (sys.platform == "linux")
