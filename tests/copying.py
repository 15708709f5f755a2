"""Workers that use the sessions of a store while it is copied: for the tests of copying."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import SessionGone
from flask_hybridsession.core.mirror import RESERVED
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.testing import new_key

PATIENCE = 60.0
_context = multiprocessing.get_context("forkserver")

Open = Callable[[], Provider]


def fill(provider: Provider, count: int) -> list[str]:
    """That many sessions of all kinds, none of which expires soon."""
    now = clock.now()
    keys = [new_key() for _ in range(count)]
    for n, key in enumerate(keys):
        change = Change(
            {"n": b"%d" % n, "text": b"x" * (n % 200)},
            create=True,
            deadline=now + 3600 + n if n % 3 else None,
            touched=now + n / 1000,
            user=f"i:{n % 50}" if n % 2 else None,
            device="a browser" if n % 5 == 0 else None,
        )
        provider.commit(key, change, now - n)
    return keys


def records(provider: Any) -> dict[str, Record]:
    """All sessions, with their values as plain dicts."""
    now, found = clock.now(), {}
    for key in provider.keys(now):
        record = provider.load(key, now)
        if key not in RESERVED and record is not None:
            found[key] = record._replace(values=dict(record.values))
    return found


class Load:
    """What the workers did, once they have ended."""

    ended: set[str]
    made: set[str]


@contextmanager
def under_load(open_: Open, keys: list[str], workers: int = 2, rest: float = 0.0) -> Iterator[Load]:
    """Each worker has sessions of its own, and some are everybody's. ``rest``: between requests."""
    over = _context.Event()
    load, crew = Load(), []
    for n in range(workers):
        answer, theirs = _context.Pipe(duplex=False)
        args = (open_, keys[n::workers], keys[:20], n, rest, over, theirs)
        process = _context.Process(target=use, args=args, daemon=True)
        process.start()
        theirs.close()
        crew.append((process, answer))
    try:
        for _, answer in crew:
            assert answer.poll(PATIENCE)
            assert answer.recv() == "at work"
        yield load
    finally:
        over.set()
        done = [answer.recv() if answer.poll(PATIENCE) else (set(), set()) for _, answer in crew]
        for process, _ in crew:
            process.join(PATIENCE)
            assert process.exitcode == 0
        load.ended = set().union(*(ended for ended, _ in done))
        load.made = set().union(*(made for _, made in done))


def use(
    open_: Open, own: list[str], common: list[str], n: int, rest: float, over: Any, answer: Any
) -> None:
    """One worker: it changes, makes, renames and ends sessions, until it is over."""
    provider = open_()
    chance = random.Random(n)
    shared = set(common)
    mine = [key for key in own if key not in shared]
    ended: set[str] = set()
    made: set[str] = set()
    answer.send("at work")
    step = 0
    while not over.wait(rest):
        step, now = step + 1, clock.now()
        act = chance.randrange(10)
        key = chance.choice(mine)
        if act < 5:
            provider.commit(key, Change({"n": b"%d" % step, f"w{n}": b""}, touched=now), now)
        elif act < 7:
            provider.commit(chance.choice(common), Change({f"w{n}": b"%d" % step}), now)
        elif act == 7:
            new = new_key(key)
            provider.commit(new, Change({"new": b"1"}, create=True, deadline=now + 3600), now)
            mine.append(new)
            made.add(new)
        elif act == 8:
            new = new_key(key)
            provider.rename(key, new, now, now + 60 if step % 2 else None)
            mine[mine.index(key)] = new
            ended.add(key)
            made.add(new)
        elif len(mine) > 10:
            assert provider.destroy(key)
            mine.remove(key)
            ended.add(key)
    provider.close()
    answer.send((ended, made - ended))


def refuses(provider: Provider, keys: Iterable[str]) -> bool:
    """Nobody who shows one of these is let in."""
    now = clock.now()
    for key in keys:
        try:
            provider.commit(key, Change({"a": b""}), now)
        except SessionGone:
            continue
        return False
    return True
