"""The checker of histories finds what must not be, and lets everything else pass."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest

from .history import UNKNOWN, Op, State, apply, explains, smallest, story

A = State("a")


def op(kind: str, *args: Any, at: tuple[float, float], sid: str = "a", gives: Any = True) -> Op:
    return Op(kind, sid, args, *at, gives)


def read(began: float, ended: float, sid: str = "a", user: str | None = None, **values: int) -> Op:
    return Op("read", sid, (), began, ended, (values, user))


RIGHT = {
    "one after the other": [
        op("put", "n", 1, at=(0, 1)),
        op("add", "n", 2, at=(2, 3)),
        read(4, 5, n=3),
    ],
    "two at once, either first": [
        op("put", "n", 1, at=(0, 3)),
        op("put", "n", 2, at=(1, 2)),
        read(4, 5, n=1),
    ],
    "read while it is written": [op("put", "n", 1, at=(0, 9)), read(1, 2), read(3, 4, n=1)],
    "not answered, and there": [op("put", "n", 1, at=(0, inf), gives=UNKNOWN), read(5, 6, n=1)],
    "not answered, and not there": [op("put", "n", 1, at=(0, inf), gives=UNKNOWN), read(5, 6)],
    "not answered, and there later": [
        op("add", "n", 1, at=(0, inf), gives=UNKNOWN),
        read(5, 6),
        read(7, 8, n=1),
    ],
    "gone after a logout": [
        op("put", "n", 1, at=(0, 1)),
        op("logout", at=(2, 3)),
        Op("read", "a", (), 4, 5, None),
        op("put", "n", 2, at=(6, 7), gives=False),
    ],
    "a write that a logout overtook": [
        op("put", "n", 1, at=(0, 5), gives=False),
        op("logout", at=(1, 2)),
    ],
    "a new id": [
        op("put", "n", 1, at=(0, 1)),
        op("rename", at=(2, 3), gives="b"),
        Op("read", "a", (), 4, 5, None),
        read(6, 7, sid="b", n=1),
    ],
    "a login, and one over another user": [
        op("put", "n", 1, at=(0, 1)),
        op("login", "ada", at=(2, 3), gives="b"),
        read(4, 5, sid="b", user="ada", n=1),
        op("login", "bob", at=(6, 7), sid="b", gives="c"),
        read(8, 9, sid="c", user="bob"),
    ],
    "a logout by the id of a moment ago": [
        op("rename", at=(0, 2), gives="b"),
        op("logout", at=(1, 3)),
        Op("read", "b", (), 4, 5, None),
    ],
    "a rename without an answer": [
        op("rename", at=(0, inf), gives=UNKNOWN),
        Op("read", "a", (), 4, 5, None),
    ],
}

WRONG = {
    "an acknowledged increment is lost": [
        op("add", "n", 1, at=(0, 1)),
        op("add", "n", 1, at=(2, 3)),
        read(4, 5, n=1),
    ],
    "a lost update of two at once": [
        op("add", "n", 1, at=(0, 2)),
        op("add", "n", 1, at=(1, 3)),
        read(4, 5, n=1),
    ],
    "a session comes back after its logout": [
        op("put", "n", 1, at=(0, 1)),
        op("logout", at=(2, 3)),
        read(4, 5, n=1),
    ],
    "a logout in one worker is unknown to another": [
        op("logout", at=(0, 1)),
        op("add", "n", 1, at=(2, 3)),
    ],
    "a session is gone without a cause": [
        op("put", "n", 1, at=(0, 1)),
        Op("read", "a", (), 2, 3, None),
    ],
    "gone by the logout of another session": [
        op("logout", at=(0, 1), sid="z"),
        Op("read", "a", (), 2, 3, None),
    ],
    "an older value returns": [
        op("put", "n", 1, at=(0, 1)),
        op("put", "n", 2, at=(2, 3)),
        read(4, 5, n=2),
        read(6, 7, n=1),
    ],
    "an old id still works": [op("rename", at=(0, 1), gives="b"), read(2, 3)],
    "a rename lost a value": [
        op("put", "n", 1, at=(0, 1)),
        op("rename", at=(2, 3), gives="b"),
        read(4, 5, sid="b"),
    ],
    "bob sees alice's": [
        op("login", "alice", at=(0, 1), gives="b"),
        op("put", "n", 1, at=(2, 3), sid="b"),
        op("login", "bob", at=(4, 5), sid="b", gives="c"),
        read(6, 7, sid="c", user="bob", n=1),
    ],
    "seen, then unseen": [
        op("put", "n", 1, at=(0, 9)),
        read(1, 2, n=1),
        read(3, 4),
    ],
    "what nobody wrote": [read(0, 1, n=7)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_an_order_explains(name: str) -> None:
    assert explains(A, RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_no_order_explains(name: str) -> None:
    assert not explains(A, WRONG[name])
    assert not explains(A, [*WRONG[name], op("put", "other", 1, at=(0, inf), gives=UNKNOWN)])


def test_the_smallest_history_is_told() -> None:
    noise = [op("put", f"m{n}", n, at=(10 + n, 11 + n), gives=False) for n in range(5)]
    lost = WRONG["a session comes back after its logout"]
    told = smallest(A, [*lost, *noise])
    assert len(told) <= 3
    assert "logout" in story(told)
    assert "n': 1" in story(told)


def random_history(seed: int, wrong: bool) -> list[Op]:
    """What a right session answers to overlapping requests; or with one answer falsified."""
    random_ = random.Random(seed)
    state, now, ops = A, 0.0, []
    for number in range(30):
        now += random_.random()
        kind = random_.choice(["put", "add", "read", "read", "rename", "login"])
        args: tuple[Any, ...] = {
            "put": ("n", number),
            "add": ("n", 1),
            "login": (random_.choice(["ada", "bob"]),),
        }.get(kind, ())
        answer: Any = f"s{number}" if kind in ("rename", "login") else UNKNOWN
        asked = Op(kind, state.sid or "", args, 0, 0, answer)
        (after,) = apply(state, asked)
        if kind == "read":
            asked = asked._replace(answer=(dict(state.values), state.user))
        elif answer is UNKNOWN:
            asked = asked._replace(answer=True)
        early, late = random_.random(), random_.random()
        ops.append(asked._replace(began=now - early, ended=now + late))
        state = after
    if wrong:
        reads = [i for i, one in enumerate(ops) if one.kind == "read"]
        at = random_.choice(reads)
        ops[at] = ops[at]._replace(answer=({"n": -1}, None))
    return ops


@pytest.mark.parametrize("seed", range(50))
def test_histories_at_random(seed: int) -> None:
    assert explains(A, random_history(seed, wrong=False))
    assert not explains(A, random_history(seed, wrong=True))
