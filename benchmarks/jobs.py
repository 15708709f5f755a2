"""What the workers of ``store`` do, and what is measured in a fresh process of its own."""

from __future__ import annotations

import itertools
import os
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Record
from flask_hybridsession.core.manager import Manager
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.hybrid.words import Words

from .crew import Job
from .population import Store, changes, fill, key, visitors
from .rivals import BareLog, Sqlite

T = TypeVar("T")
#: Keys that a worker has at hand, so that making them takes no time of a step.
_KEYS = 50_000


def open_store(kind: str, directory: str) -> Any:
    """``hybrid-interval``, ``sqlite-full``, ``bare-300`` and so on."""
    name, _, how = kind.partition("-")
    if name == "sqlite":
        return Sqlite(directory, how.upper())
    if name == "bare":
        return BareLog(directory, int(how))
    return HybridProvider(directory, durability=how)


class Writer(Job):
    """Changes a key of a session."""

    def __init__(self, kind: str, directory: str, sessions: int, seed: int, first: int = 0) -> None:
        self._how = kind, directory
        self._who = sessions, seed, first

    def open(self) -> None:
        self._store: Store = open_store(*self._how)
        self._keys = itertools.cycle(itertools.islice(visitors(*self._who), _KEYS))
        self._changes = changes()
        self._now = clock.now()
        for _ in range(100):
            self.step()

    def step(self) -> None:
        self._store.commit(next(self._keys), next(self._changes), self._now)

    def close(self) -> None:
        self._store.close()  # type: ignore[attr-defined]


class Reader(Job):
    """Loads a session."""

    def __init__(self, directory: str, sessions: int, seed: int) -> None:
        self._directory = directory
        self._who = sessions, seed

    def open(self) -> None:
        self._store = HybridProvider(self._directory)
        self._keys = itertools.cycle(list(itertools.islice(visitors(*self._who), _KEYS)))
        self._now = clock.now()
        for _ in range(_KEYS):
            self.step()

    def step(self) -> None:
        if self._store.load(next(self._keys), self._now) is None:
            raise AssertionError("a session is missing")

    def close(self) -> None:
        self._store.close()


class Rambler(Job):
    """Loads sessions all over the store, and keeps nothing of its own that grows with them."""

    def __init__(self, directory: str, sessions: int, seed: int) -> None:
        self._directory = directory
        self._who = sessions, seed

    def open(self) -> None:
        self._store = HybridProvider(self._directory)
        self._keys = visitors(*self._who)
        self._now = clock.now()
        for _ in range(self._who[0]):
            self._load()

    def _load(self) -> None:
        self._store.load(next(self._keys), self._now)

    def step(self) -> None:
        for _ in range(10_000):
            self._load()

    def close(self) -> None:
        self._store.close()


class Compacting(Job):
    """Does a job, and compacts the log in a thread beside it, once."""

    def __init__(self, job: Reader | Writer) -> None:
        self._job = job

    def open(self) -> None:
        self._job.open()
        self.step = self._job.step  # type: ignore[method-assign]

    def begin(self, stop: Any) -> None:
        self._thread = threading.Thread(target=self._compact, args=(stop,))
        self._thread.start()

    def _compact(self, stop: Any) -> None:
        start = perf_counter()
        self._done: bool = self._job._store.compact()  # type: ignore[attr-defined]
        self._seconds = perf_counter() - start
        stop.value = 1

    def close(self) -> float:
        self._thread.join()
        self._job.close()
        if not self._done:
            raise AssertionError("another worker has compacted")
        return self._seconds


class _Timed(HybridProvider):
    """Knows how long each slice took, and how long it held up the writers."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.slices: list[float] = []
        self.holds: list[float] = []
        self._write, self._store.write = self._store.write, self._timed  # type: ignore[method-assign]

    def _timed(self, wait: bool, work: Any, *args: Any) -> Any:
        began = 0.0

        def timed(turn: Any, *args: Any) -> Any:
            nonlocal began
            began = perf_counter()
            return work(turn, *args)

        result = self._write(wait, timed, *args)
        self.holds.append(perf_counter() - began)
        return result

    def purge(self, now: float, limit: int) -> list[Record]:
        start = perf_counter()
        gone = super().purge(now, limit)
        self.slices.append(perf_counter() - start)
        return gone


class Sweeper(Job):
    """The clockwork of a worker whose clock is ``ahead``: sweeps all that is due, once."""

    def __init__(self, directory: str, ahead: float) -> None:
        self._directory, self._ahead = directory, ahead
        self._gone = 0

    def open(self) -> None:
        clock.now = lambda: time.time() + self._ahead
        self._store = _Timed(self._directory)
        self._manager = Manager(self._store, Settings(), {}, self._announce)

    def _announce(self, event: str, **details: Any) -> None:
        self._gone += 1

    def begin(self, stop: Any) -> None:
        self._stop = stop

    def step(self) -> None:
        clockwork.tick()
        deadline = self._store.next_deadline()
        if deadline is None or deadline > clock.now():
            self._stop.value = 1

    def close(self) -> tuple[int, list[float], list[float]]:
        self._manager.close()
        return self._gone, self._store.slices, self._store.holds


class Waiting(Writer):
    """A visitor's write every millisecond."""

    pause = 0.001


class Idle(Job):
    """A worker that nobody visits: only its clockwork has something to do."""

    pause = 0.5

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._gone = 0

    def open(self) -> None:
        self._manager = Manager(HybridProvider(self._directory), Settings(), {}, self._announce)
        clockwork.notice(0.0)

    def _announce(self, event: str, **details: Any) -> None:
        self._gone += 1

    def close(self) -> int:
        self._manager.close()
        return self._gone


# In a process of its own


def apart(work: Any, *args: Any) -> Any:
    """Call ``work`` in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def fill_store(kind: str, directory: str, start: int, end: int, *due: float) -> None:
    """Make sessions, see ``fill``."""
    store = open_store(kind, directory)
    fill(store, start, end, clock.now(), *due)
    store.close()


def seconds_to_open(directory: str) -> float:
    """Until the first session is read."""
    start = perf_counter()
    store = HybridProvider(directory)
    found = store.load(key(0), clock.now())
    seconds = perf_counter() - start
    if found is None:
        raise AssertionError("the first session is missing")
    store.close()
    return seconds


def cut_power(directory: str) -> None:
    """Another boot of the machine, as far as the store can tell, and nothing of it in memory."""
    words = Words(os.path.join(directory, "sync"))
    words.new_boot(b"another boot id.")
    for path in Path(directory).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compacted(directory: str) -> dict[str, Any]:
    """What the store says of itself afterwards."""
    store = HybridProvider(directory)
    store.compact()
    stats = store.stats()
    store.close()
    return stats


def own_memory(pid: int) -> int:
    """Bytes that this process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
