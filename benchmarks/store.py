"""How fast the hybrid store is, and how well it bears a million sessions.

Commits are compared with those of SQLite and of a bare file, taking turns. Everything else is done
to one store: filling, opening after a stop, a kill and a power cut, reading and writing beside
compaction, expiry at a steady rate and all at once. Workers are processes of their own.

    python benchmarks/store.py [--quick] [--sessions N] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# Not this directory: a package that imports "requests" shall not get that file.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.crew import Crew, Shift, part, rate
from benchmarks.jobs import (
    Compacting,
    Idle,
    Rambler,
    Reader,
    Sweeper,
    Waiting,
    Writer,
    apart,
    compacted,
    cut_power,
    fill_store,
    own_memory,
    seconds_to_open,
)
from benchmarks.plot import chart
from benchmarks.population import changes
from benchmarks.sample import SIZE
from flask_hybridsession.providers.hybrid.frame import OVERHEAD, pack_change

WORKERS = 4
#: Sessions that the contestants of a commit have.
FEW = 10_000
#: Sessions that never expire, beside those that do.
STAYING = 100
DAY = 86_400.0
#: Sessions that expire in a second: a million within an hour.
STEADY = 278


class Effort(NamedTuple):
    """How long it may take."""

    rounds: int
    seconds: float
    sessions: int


LONG, QUICK = Effort(5, 2.0, 1_000_000), Effort(3, 0.5, 30_000)


class Figure(NamedTuple):
    """One number of the report. Without a target it is there to be known."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None

    def __str__(self) -> str:
        bound = self.least if self.most is None else self.most
        if bound is None:
            target = verdict = ""
        else:
            target = f"{'at least' if self.most is None else 'at most'} {bound:,g}{self.unit}"
            met = self.value >= bound if self.most is None else self.value <= bound
            verdict = "met" if met else "**not met**"
        return f"| {self.name} | {target} | {_short(self.value)}{self.unit} | {verdict} |"


def main() -> None:
    options = _options()
    effort = QUICK if options.quick else LONG
    if options.sessions:
        effort = effort._replace(sessions=options.sessions)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        bench = Bench(Path(directory), effort)
        print(
            f"Python {platform.python_version()}, {os.cpu_count()} processors; "
            f"{effort.sessions:,} sessions of {SIZE} bytes as JSON; {WORKERS} workers.\n\n"
            "| figure | target | here | |\n|---|--:|--:|---|",
            flush=True,
        )
        bench.run()
    if options.json:
        Path(options.json).write_text(json.dumps(bench.result(), indent=1) + "\n")
    if options.plot:
        Path(options.plot).write_text(bench.plot())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less exact, few sessions")
    parser.add_argument("--sessions", type=int, metavar="N", help="how many there are")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--plot", metavar="FILE", help="write the costs as a chart to FILE (SVG)")
    parser.add_argument("--directory", help="where to work: a disk, if syncs shall be real")
    return parser.parse_args()


class Bench:
    """Does one thing after the other, and tells each figure as soon as it is known."""

    def __init__(self, root: Path, effort: Effort) -> None:
        self._root = root
        self._effort = effort
        self._figures: list[Figure] = []
        self._rounds: dict[str, list[float]] = {}
        self._costs: dict[int, tuple[float, float]] = {}
        self._store = self._directory("store")

    def run(self) -> None:
        self.commits()
        self.growth()
        self.opening()
        self.memory()
        self.compaction()
        self.steady()
        self.power_cut()
        self.burst()

    def result(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "session_bytes": SIZE,
            **self._effort._asdict(),
            "figures": [figure._asdict() for figure in self._figures],
            "commits": self._rounds,
            "microseconds": {
                sessions: {"read": read, "write": write}
                for sessions, (read, write) in self._costs.items()
            },
        }

    def plot(self) -> str:
        reads, writes = zip(*self._costs.values(), strict=True)
        return chart(
            "What a session costs beside how many others",
            "sessions in the store",
            "µs, median",
            list(self._costs),
            {"write": writes, "read": reads},
        )

    def _tell(self, name: str, value: float, unit: str = "", **target: float) -> None:
        self._figures.append(Figure(name, value, unit, **target))
        print(self._figures[-1], flush=True)

    def _directory(self, name: str) -> str:
        path = self._root / name
        path.mkdir()
        return str(path)

    def _writers(self) -> list[Writer]:
        sessions = self._effort.sessions
        return [Writer("hybrid-interval", self._store, sessions, seed) for seed in range(WORKERS)]

    # What is measured

    def commits(self) -> None:
        """From four workers, against others that promise the same."""
        size = OVERHEAD + len(pack_change(next(changes())))
        kinds = [
            *("hybrid-interval", "sqlite-normal"),
            *("hybrid-always", "sqlite-full", f"bare-{size}"),
        ]
        self._rounds = rates = self._rates(kinds)
        ours, normal, always, full, bare = (rates[kind] for kind in kinds)
        for kind, rounds in rates.items():
            self._tell(f"commits: {kind}", median(rounds), " / s")
        self._tell("`interval` as a multiple of SQLite (NORMAL)", _ratio(ours, normal), least=2)
        self._tell("`always` as a multiple of SQLite (FULL)", _ratio(always, full), least=3)
        self._tell("bare shared fdatasync as a multiple of `always`", _ratio(bare, always), most=2)

    def _rates(self, kinds: list[str]) -> dict[str, list[float]]:
        """Commits per second of each, one number a round."""
        directories = {kind: self._directory(kind) for kind in kinds}
        for kind, directory in directories.items():
            relaxed = kind.replace("always", "never").replace("full", "normal")
            if not kind.startswith("bare"):
                apart(fill_store, relaxed, directory, 0, FEW)
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(self._effort.rounds):
            for kind in kinds[turn % 2 :] + kinds[: turn % 2]:
                seeds = range(turn * WORKERS, (turn + 1) * WORKERS)
                crew = Crew([Writer(kind, directories[kind], FEW, seed) for seed in seeds])
                rates[kind].append(rate(crew.run(self._effort.seconds)))
        return rates

    def growth(self) -> None:
        """What a read and a write cost while the store fills."""
        start = -STAYING
        apart(fill_store, "hybrid-never", self._store, start, 0)
        start, due = 0, time.time() + DAY
        began = time.perf_counter()
        for sessions in sorted({1000, 30_000, self._effort.sessions}):
            if sessions > self._effort.sessions:
                break
            apart(fill_store, "hybrid-never", self._store, start, sessions, due)
            start = sessions
            jobs = (
                Reader(self._store, sessions, 0),
                Writer("hybrid-never", self._store, sessions, 0),
            )
            read, write = (
                part(Crew([job]).run(self._effort.seconds)[0].steps, 0.5) * 1e6 for job in jobs
            )
            self._costs[sessions] = read, write
            self._tell(f"read beside {sessions:,} sessions, median", read, " µs")
            self._tell(f"write beside {sessions:,} sessions, median", write, " µs")
        self._tell("filling it", time.perf_counter() - began, " s")
        stats = apart(compacted, self._store)
        image, log = (stats[name] / stats["sessions"] for name in ("image_bytes", "log_bytes"))
        self._tell("image after compaction, per session", image, " bytes", most=SIZE + 300)
        self._tell("log after compaction, per session", log, " bytes")

    def opening(self) -> None:
        self._tell("open after a clean stop", self._opened(lambda: None), " s", most=0.1)
        self._tell("open after `kill -9` of all writers", self._opened(self._kill), " s", most=0.1)

    def _opened(self, stop: Callable[[], None]) -> float:
        seconds = []
        for _ in range(self._effort.rounds):
            stop()
            seconds.append(float(apart(seconds_to_open, self._store)))
        return median(seconds)

    def _kill(self) -> None:
        crew = Crew(self._writers())
        crew.start()
        time.sleep(0.3)
        crew.kill()

    def memory(self) -> None:
        """Two workers have read all over the store: what has each of them to itself?"""
        crew = Crew([Rambler(self._store, self._effort.sessions, seed) for seed in range(2)])
        crew.start()
        own = max(map(own_memory, crew.pids))
        crew.finish()
        self._tell("memory that a worker has to itself", own / 2**20, " MiB", most=30)

    def compaction(self) -> None:
        """Reads and writes, at rest and beside a compaction in one of the same workers."""
        first, second = (Reader(self._store, self._effort.sessions, seed) for seed in range(2))
        rest = _steps(Crew([first, second]).run(self._effort.seconds))
        shifts = Crew([Compacting(first), second]).run_until_done()
        busy = _steps(shifts)
        for name, steps in (("at rest", rest), ("while compacting", busy)):
            for share in (0.5, 0.99, 1):
                self._tell(f"read {name}, {_share(share)}", part(steps, share) * 1e6, " µs")
        times = part(busy, 0.99) / part(rest, 0.99)
        self._tell("read p99 while compacting as a multiple of at rest", times, most=5)
        worst = part(shifts[0].steps, 0.99) / part(rest, 0.99)
        self._tell("the same, in the worker that compacts", worst)
        self._tell("compaction beside two readers", shifts[0].told, " s")

        writers = self._writers()
        shifts = Crew(writers).run(self._effort.seconds)
        self._tell("commits at rest", rate(shifts), " / s")
        self._tell("write at rest, p99", part(_steps(shifts), 0.99) * 1e6, " µs")
        shifts = Crew([Compacting(writers[0]), *writers[1:]]).run_until_done()
        self._tell("commits while compacting", rate(shifts), " / s")
        self._tell("write while compacting, p99", part(_steps(shifts), 0.99) * 1e6, " µs")
        self._tell("write while compacting, longest", max(_steps(shifts)) * 1e3, " ms")
        self._tell("compaction beside four writers", shifts[0].told, " s")

        size = os.path.getsize(os.path.join(self._store, "image")) / self._effort.sessions
        self._tell("image after all that, per session", size, " bytes")

    def power_cut(self) -> None:
        apart(cut_power, self._store)
        self._tell("rebuild after a power cut", apart(seconds_to_open, self._store), " s", most=15)

    def steady(self) -> None:
        """Sessions that expire one after the other, beside all the others."""
        seconds = 4 * self._effort.seconds
        count = int(STEADY * seconds)
        first = self._effort.sessions
        crew = Crew([Idle(self._store) for _ in range(WORKERS)])
        due = time.time() + 2
        apart(fill_store, "hybrid-never", self._store, first, first + count, due, 1 / STEADY)
        time.sleep(max(0.0, due - time.time()))
        shifts = crew.run(seconds + 1)
        gone = sum(shift.told for shift in shifts)
        if gone != count:
            raise AssertionError(f"{gone} of {count} sessions were destroyed on time")
        cpu = sum(shift.cpu for shift in shifts) / seconds * 100
        self._tell(f"{STEADY} expiries a second, {WORKERS} workers", cpu, " % of a core", most=2)

    def burst(self) -> None:
        """All sessions that can expire do, at once, and every worker's clockwork wakes."""
        sweepers = [Sweeper(self._store, 2 * DAY) for _ in range(WORKERS)]
        visitor = Waiting("hybrid-interval", self._store, STAYING, 0, -STAYING)
        *swept, visits = Crew([*sweepers, visitor]).run_until_done()
        gone = sum(shift.told[0] for shift in swept)
        if gone != self._effort.sessions:
            raise AssertionError(f"{gone} of {self._effort.sessions} sessions were destroyed")
        slices, holds = (
            [seconds for shift in swept for seconds in shift.told[what]] for what in (1, 2)
        )
        cpu = sum(shift.cpu for shift in swept) / gone * 1e6
        self._tell("all expire at once: gone within", visits.seconds, " s", most=10)
        self._tell("processor time for each, of all workers", cpu, " µs")
        self._tell("a slice holds the writers for, median", part(holds, 0.5) * 1e3, " ms")
        self._tell("a slice holds the writers for, p99", part(holds, 0.99) * 1e3, " ms")
        self._tell("a slice holds the writers for, longest", max(holds) * 1e3, " ms", most=10)
        self._tell("a slice meanwhile, median", part(slices, 0.5) * 1e3, " ms")
        self._tell("a slice meanwhile, longest, with its wait", max(slices) * 1e3, " ms")
        self._tell("a write meanwhile, median", part(visits.steps, 0.5) * 1e3, " ms")
        self._tell("a write meanwhile, p99", part(visits.steps, 0.99) * 1e3, " ms")
        self._tell("a write meanwhile, longest", max(visits.steps) * 1e3, " ms")


def _ratio(some: list[float], others: list[float]) -> float:
    """Of each round's rates: whatever slowed the machine for a while has slowed both."""
    return median(one / other for one, other in zip(some, others, strict=True))


def _steps(shifts: list[Shift]) -> list[float]:
    return [seconds for shift in shifts for seconds in shift.steps]


def _share(share: float) -> str:
    return "longest" if share == 1 else f"p{share * 100:.0f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
