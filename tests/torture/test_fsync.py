"""C7: a sync fails once, and the next one succeeds. Nothing is acknowledged on that file any more,
by no worker. (That what is acknowledged on the next file is there after a power cut is shown with
the power cuts.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .powercut import Record, read_trace
from .shim import Shim
from .workers import Crew


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("durability", ["always", "interval"])
def test_a_file_that_failed_to_sync_once(
    tmp_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    durability: str,
    times: int,
) -> None:
    """Syncs of the log that takes its place fail too when they fail more than once."""
    options = {"durability": durability, "sync_interval": 0.02}
    steps = 60 if durability == "always" else 240  # with an interval one sync is for many
    for seed in rounds(1):
        path = tmp_path / str(seed)
        trace = path / "trace"
        with Crew(path, seed, shared=False, steps=steps, pause=0.002, options=options) as crew:
            # The log's first generation is synced by whoever makes it.
            fault = f"fdatasync:EIO:{crew.dice.randint(2, 4)}:{times}"
            crew.start(shim.environment(path, fault, trace=trace))
            for _ in range(2):
                crew.start(shim.environment(path, trace=trace))
            for worker in crew.workers:
                crew.join(worker)
            story = crew.judge("ProviderUnavailable")
        records = read_trace(trace)
        failed = [place for place, record in enumerate(records) if is_failure(record)]
        assert 0 < len(failed) <= times  # another worker may be the one who mends it
        for place in failed:
            check_given_up(records[place:], path / "journals")
        assert not story.failures(*(["ProviderUnavailable"] if times > 1 else []))


def is_failure(record: Record) -> bool:
    return record.op == "E" and record.offset != 0


def check_given_up(records: list[Record], journals: Path) -> None:
    """No step that begins after the failure leaves a write on that file before its answer.

    Writes of steps that were under way are there, and are not acknowledged before the next log.
    """
    inode = records[0].inode
    fresh: set[int] = set()
    wrote: dict[int, bool] = {}
    for record in records[1:]:
        if record.op == "W" and record.inode == inode and not record.offset:
            return  # another file by now: the number is used again
        if record.path.startswith(str(journals)):
            if record.data.startswith(b'["?"'):
                fresh.add(record.thread)
                wrote[record.thread] = False
            else:
                assert not wrote.get(record.thread), "acknowledged on a file that failed to sync"
        elif record.op == "W" and record.inode == inode and record.thread in fresh:
            wrote[record.thread] = True
