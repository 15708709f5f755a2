"""Worker processes that do a job at the same time, and the seconds that each of its steps took.

They are started afresh, not forked, as the workers of a server that loads its app in each of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

_context = get_context("spawn")


class Job:
    """What one worker does, over and over. It travels to the worker before it is opened."""

    #: Seconds of rest after each step.
    pause = 0.0

    def open(self) -> None:
        """Prepare, before the clock runs."""

    def begin(self, stop: Any) -> None:
        """The clock runs. Who sets ``stop.value`` ends it for the whole crew."""

    def step(self) -> None:
        """What is timed."""

    def close(self) -> object:
        """Clean up, and say what else is to be told."""


class Shift(NamedTuple):
    """What a worker did: seconds per step, seconds in all, those of the processor, and the rest."""

    steps: array[float]
    seconds: float
    cpu: float
    told: Any


class Crew:
    """The workers, ready and waiting until they start."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._stop = _context.RawValue("b", 0)
        self._lines: list[Connection] = []
        self._workers = []
        for job in jobs:
            line, far = _context.Pipe()
            worker = _context.Process(target=_work, args=(job, far, self._stop), daemon=True)
            worker.start()
            far.close()
            self._lines.append(line)
            self._workers.append(worker)
        for line in self._lines:
            line.recv()

    @property
    def pids(self) -> list[int]:
        return [worker.pid or 0 for worker in self._workers]

    def start(self) -> None:
        for line in self._lines:
            line.send(None)

    def run(self, seconds: float) -> list[Shift]:
        """Work until the time is up."""
        self.start()
        sleep(seconds)
        return self.finish()

    def finish(self) -> list[Shift]:
        """Stop after the steps that are being made."""
        self._stop.value = 1
        return self._wait()

    def run_until_done(self) -> list[Shift]:
        """Work until one of the jobs ends it."""
        self.start()
        return self._wait()

    def _wait(self) -> list[Shift]:
        shifts = [line.recv() for line in self._lines]
        for worker in self._workers:
            worker.join()
        return shifts

    def kill(self) -> None:
        """As the kernel does it when memory is short: nobody can clean up."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()


def _work(job: Job, line: Connection, stop: Any) -> None:
    job.open()
    line.send(None)
    line.recv()
    job.begin(stop)
    steps = array("d")
    pause = job.pause
    begin = before = perf_counter()
    cpu = process_time()
    while not stop.value:
        job.step()
        after = perf_counter()
        steps.append(after - before)
        before = after
        if pause:
            sleep(pause)
            before = perf_counter()
    seconds, cpu = perf_counter() - begin, process_time() - cpu
    told = job.close()
    line.send(Shift(steps, seconds, cpu, told))


def rate(shifts: Sequence[Shift]) -> float:
    """Steps per second of all together."""
    return sum(len(shift.steps) / shift.seconds for shift in shifts)


def part(steps: Sequence[float], share: float) -> float:
    """The time within which that share of the steps was done: 0.5 is the median, 1 the longest."""
    return sorted(steps)[min(len(steps) - 1, int(len(steps) * share))]
