"""Processes that work on the same sessions of a provider, and note what they ask and are told.

A stretch of time has its own session: whoever comes by then works on it, so that operations meet.
"""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import inf
from pathlib import Path

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import Conflict, KeyTaken, ProviderUnavailable, SessionGone
from flask_hybridsession.core.provider import Provider

from .history import UNKNOWN, Op

#: The app's clock stands still: nothing expires.
NOW = 1_700_000_000.0
KINDS = ["put"] * 3 + ["add"] * 3 + ["drop"] * 2 + ["read"] * 5 + ["create", "logout"]
#: Operations on one session by one thread, at most: to judge more takes ever longer.
MOST = 12


def key_of(number: int) -> str:
    return f"{number:064x}"


class Clerk:
    """One thread of a process, until that is killed."""

    def __init__(self, provider: Provider, journal: Path, stretch: float, seed: str) -> None:
        self._provider = provider
        self._random = random.Random(seed)
        self._stretch = stretch
        self._fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def work(self, until: float) -> None:
        session, done = 0, 0
        while (now := time.monotonic()) < until:
            number = int(now / self._stretch)
            if number != session:
                session, done = number, 0
            if done == MOST:
                time.sleep(max(0.0, (number + 1) * self._stretch - now))
                continue
            done += 1
            kind = "create" if done == 1 else self._random.choice(KINDS)
            if not self._ask(session, kind):
                done = MOST  # what nobody knows of may have come at any time: ever longer to judge

    def _ask(self, session: int, kind: str) -> bool:
        """Whether there was an answer."""
        name, number = self._random.choice("xy"), self._random.randrange(1000)
        args = {"put": [name, number], "add": [name, number], "drop": [name]}.get(kind, [])
        self._note("?", time.monotonic(), session, kind, *args)
        try:
            answer = getattr(self, f"_{kind}")(key_of(session), *args)
        except (SessionGone, KeyTaken):
            answer = False
        except ProviderUnavailable:
            return False  # who knows what was done
        self._note("!", time.monotonic(), answer)
        return True

    def _note(self, *what: object) -> None:
        os.write(self._fd, json.dumps(what).encode() + b"\n")

    def _create(self, key: str) -> bool:
        self._provider.commit(key, Change(create=True, deadline=inf), NOW)
        return True

    def _put(self, key: str, name: str, number: int) -> bool:
        self._provider.commit(key, Change({name: b"%d" % number}), NOW)
        return True

    def _add(self, key: str, name: str, by: int) -> bool:
        while True:
            record = self._provider.load(key, NOW)
            if record is None:
                return False
            there = record.values.get(name)
            change = Change({name: b"%d" % (int(there or 0) + by)}, expects={name: there})
            try:
                self._provider.commit(key, change, NOW)
            except Conflict:
                continue
            return True

    def _drop(self, key: str, name: str) -> bool:
        self._provider.commit(key, Change(drops=frozenset((name,))), NOW)
        return True

    def _read(self, key: str) -> tuple[dict[str, int], None] | None:
        record = self._provider.load(key, NOW)
        return record and ({name: int(record.values[name]) for name in record.values}, None)

    def _logout(self, key: str) -> bool:
        return self._provider.destroy(key)


def hire(
    make: Callable[[], Provider], folder: Path, name: str, stretch: float, until: float
) -> int:
    """A process with two threads that work; its number. It ends at ``until``, with 0 if all
    that went wrong was an outage."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        provider = _opened(make, until)
        clerks = [Clerk(provider, folder / f"{name}-{n}", stretch, f"{name}-{n}") for n in range(2)]
        with ThreadPoolExecutor(len(clerks)) as pool:
            for work in [pool.submit(clerk.work, until) for clerk in clerks]:
                work.result()
        provider.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _opened(make: Callable[[], Provider], until: float) -> Provider:
    """Made as soon as it can be: a disk may be full, a server frozen."""
    while True:
        try:
            return make()
        except ProviderUnavailable:
            if time.monotonic() > until:
                os._exit(0)
            time.sleep(0.01)


def read_journals(folder: Path) -> Iterator[list[Op]]:
    """What was noted of each session."""
    sessions: defaultdict[int, list[Op]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for (mark, *asked), (answered, *told) in pairwise([*lines, ["?"]]):
            if mark == "?":
                began, session, kind, *args = asked
                ended, answer = told if answered == "!" else (inf, UNKNOWN)
                if kind == "read" and isinstance(answer, list):
                    answer = tuple(answer)
                op = Op(kind, key_of(session), tuple(args), began, ended, answer)
                sessions[session].append(op)
    yield from sessions.values()
