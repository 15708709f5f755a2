from __future__ import annotations

import multiprocessing
import threading
import time

import pytest

from flask_hybridsession.core.keylocks import held


def test_who_holds_a_key_is_alone() -> None:
    counts = {"a": 0, "b": 0}

    def count(key: str) -> None:
        for _ in range(500):
            with held(key):
                before = counts[key]
                time.sleep(0)  # now the others could
                counts[key] = before + 1

    threads = [threading.Thread(target=count, args=(key,)) for key in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == {"a": 1000, "b": 1000}


def test_two_keys_in_any_order() -> None:
    done = []

    def swap(*keys: str) -> None:
        for _ in range(500):
            with held(*keys):
                pass
        done.append(keys)

    pairs = [("a", "b"), ("b", "a"), ("a", "a")]
    threads = [threading.Thread(target=swap, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted(pairs)


def test_an_error_lets_go() -> None:
    with pytest.raises(ZeroDivisionError), held("a"):
        raise ZeroDivisionError
    with held("a"):
        pass


def test_a_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    def take() -> None:
        with held("a"):
            pass

    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with held("a"):
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert inside.wait(60)
    child = multiprocessing.get_context("fork").Process(target=take, daemon=True)
    child.start()
    child.join(30)
    go_on.set()
    thread.join(60)
    assert child.exitcode == 0
