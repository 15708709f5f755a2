"""Locks that an interrupted thread does not take with it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import proxy, ref

import pytest

from flask_hybridsession.core import locks
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.core.locks import Bell, Lock, clear_frames, wait_until_gone


def test_one_at_a_time() -> None:
    lock = Lock()
    inside: list[int] = []

    def work() -> None:
        for _ in range(300):
            with lock.take():
                inside.append(1)
                assert len(inside) == 1
                time.sleep(0)
                inside.pop()

    with ThreadPoolExecutor(4) as threads:
        for task in [threads.submit(work) for _ in range(4)]:
            task.result(60)
    assert lock.is_free()


def test_as_many_as_one_says() -> None:
    lock = Lock(2, busy="all are in use")
    with lock.take(), lock.take():
        assert lock.try_take() is None
        with pytest.raises(ProviderUnavailable, match="all are in use"):
            lock.take(0.01)
    assert lock.is_free()


def test_a_hold_that_is_lost_is_given_back() -> None:
    ended: list[int] = []
    lock = Lock(after=lambda: ended.append(1))
    for number in range(1, 4):
        with lock.take():
            assert not lock.is_free()
        assert len(ended) == number
    lock.take()
    assert len(ended) == 4
    assert lock.is_free()


def test_a_hold_outlives_its_lock() -> None:
    ended: list[int] = []
    lock = Lock(after=lambda: ended.append(1))
    hold = lock.take()
    del lock
    with hold:
        pass
    del hold
    assert not ended


def test_what_fails_when_a_hold_is_lost_keeps_nobody_out(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    lock = Lock(after=lambda: 1 / 0)
    lock.take()
    assert lock.is_free()
    assert len(told) == 1


def test_the_thread_that_has_it_does_not_wait_for_itself() -> None:
    lock = Lock()
    begun = time.monotonic()
    with lock.take(), pytest.raises(ProviderUnavailable, match="this very thread"):
        lock.take(30)
    assert time.monotonic() - begun < 10
    with lock.take():
        pass


def test_nobody_is_kept_out_by_threads_in_a_loop() -> None:
    lock = Lock()
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            with lock.take():
                sum(range(200))

    with ThreadPoolExecutor(3) as threads:
        tasks = [threads.submit(loop) for _ in range(3)]
        try:
            for _ in range(30):
                with lock.take(20):
                    pass
        finally:
            over.set()
        for task in tasks:
            task.result(60)


def test_a_frame_that_a_traceback_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of code of the package, as this file is made to be."""
    monkeypatch.setattr(locks, "_HERE", __file__)
    lock = Lock()

    def work() -> None:
        hold = lock.take()
        assert hold is not None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        work()
    assert not lock.is_free()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock.take, 20).result(20) is not None
    assert kept.value is not None


def test_weak_proxies_of_what_is_gone_are_passed_by() -> None:
    gone = proxy(Lock())
    clear_frames()
    with pytest.raises(ReferenceError):
        gone.is_free()


def test_a_call_that_goes_on_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_HERE", __file__)
    lock = Lock()

    def stopped() -> Any:
        hold = lock.take()
        yield hold

    def running() -> None:
        hold = lock.take()
        clear_frames()
        assert not lock.is_free()
        with hold:
            pass

    running()
    generator = stopped()
    next(generator)
    clear_frames()
    assert not lock.is_free()
    generator.close()
    assert lock.is_free()


def test_to_wait_until_nobody_has_a_thing() -> None:
    class Thing:
        pass

    thing = Thing()
    there = ref(thing)
    with pytest.raises(ProviderUnavailable):
        wait_until_gone([there], 0.01)
    wait_until_gone([ref(Thing())], 0.0)
    del thing
    wait_until_gone([there], 0.0)


def test_a_bell() -> None:
    bell = Bell()
    assert not bell.wait(0)
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)
    with ThreadPoolExecutor(1) as other:
        task = other.submit(bell.wait, 30)
        bell.ring()
        assert task.result(30)
    assert not bell.wait(-1)


def test_one_who_was_to_be_next_and_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock()
    kept = []
    with lock.take(), ThreadPoolExecutor(1) as other:
        kept.append(other.submit(lock.take, 0.2).exception(20))
    begun = time.monotonic()
    with lock.take(20):
        assert time.monotonic() - begun < 10
    assert "Unavailable" in repr(kept)
