"""C8, a power cut: with "always" all that was acknowledged is there; with "interval" and "never"
what is there is the state after some commit, with "interval" no older than that. No hole, nothing
invented."""

from __future__ import annotations

import bisect
import random
import shutil
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest

from flask_hybridsession.providers.hybrid import HybridProvider, frame

from .powercut import Disk, Record, read_trace
from .shim import Shim
from .workers import NOW, Crew, Entry, Seen, State, Story, after, keys_of, seen

INTERVAL = 0.2


class Commit:
    """One step, as the trace tells of it: which line's, where acknowledged, and when."""

    def __init__(self, line: str, acknowledged: float = inf, moment: float = inf) -> None:
        self.line = line
        self.acknowledged = acknowledged  # place in the trace
        self.moment = moment


class Past:
    """A finished run: all commits in the order of the log, and each line's states."""

    def __init__(self, path: Path, records: list[Record], story: Story) -> None:
        self.records = records
        self.states: dict[str, list[State | None]] = {}
        self.keys: dict[str, set[str]] = {}
        for name, entries in story.lines.items():
            self.states[name] = [None]
            for entry in entries:
                self.states[name].append(after(self.states[name][-1], entry))
            self.keys[name] = keys_of(entries)
        self.commits = self._commits(path, story)
        self.acknowledged = sorted((c.acknowledged, n) for n, c in enumerate(self.commits, 1))

    def _commits(self, path: Path, story: Story) -> list[Commit]:
        lines = {key: name for name, keys in self.keys.items() for key in keys}
        answers = {name: iter(found) for name, found in self._answers(path, story).items()}
        logged = frames(self.records, path / "store")
        assert sorted(logged) == list(range(1, len(logged) + 1))
        commits = []
        for number in sorted(logged):
            line = lines[logged[number]]
            commits.append(Commit(line, *next(answers[line], (inf, inf))))
        return commits

    def _answers(self, path: Path, story: Story) -> dict[str, list[tuple[int, float]]]:
        """Where in the trace each line's steps were acknowledged, and when."""
        journals: dict[str, list[Entry]] = {}
        for entry in story.entries:
            journals.setdefault(entry.worker, []).append(entry)
        entries = {name: iter(found) for name, found in journals.items()}
        answers: dict[str, list[tuple[int, float]]] = {name: [] for name in self.states}
        for place, record in enumerate(self.records):
            name = Path(record.path)
            if name.parent == path / "journals" and record.data.startswith(b'["!"'):
                entry = next(entries[name.stem])
                if entry.acknowledged:
                    answers[entry.line].append((place, record.seconds))
        return answers

    def needed(self, place: int, since: float = inf) -> int:
        """The last commit that must be there after a cut at ``place``."""
        acknowledged = self.acknowledged[: bisect.bisect(self.acknowledged, (place, 0))]
        return max(
            (number for _, number in acknowledged if self.commits[number - 1].moment <= since),
            default=0,
        )

    def prefixes(self, found: dict[str, Seen]) -> Iterator[int]:
        """After which commits the state was the one that was found."""
        steps = dict.fromkeys(self.states, 0)

        def differs(line: str) -> bool:
            state = self.states[line][steps[line]]
            return any(
                found[key] != (state.seen(key) if state else None) for key in self.keys[line]
            )

        different = {line for line in self.states if differs(line)}
        for number in range(len(self.commits) + 1):
            if number:
                line = self.commits[number - 1].line
                steps[line] += 1
                (different.add if differs(line) else different.discard)(line)
            if not different:
                yield number


def frames(records: list[Record], directory: Path) -> dict[int, str]:
    """The key of each commit that ever stood in a log."""
    headers: dict[int, frame.Header] = {}
    found: dict[int, str] = {}
    for record in records:
        if record.op != "W" or not record.path.startswith(f"{directory}/log"):
            continue
        if not record.offset:
            header = frame.parse_header(record.data)
            assert header is not None
            headers[record.inode] = header
            continue
        header, at = headers[record.inode], 0
        while entry := frame.parse(record.data, at, header.generation, header.salt):
            if entry.op != frame.SNAPSHOT:
                found[entry.sequence] = entry.key.hex()
            at += entry.size
    return found


def run(path: Path, shim: Shim, seed: int, workers: int, fault: str = "", **orders: object) -> Past:
    """Let workers work, the first of them with a fault, and note what the disk was told."""
    trace = path / "trace"
    with Crew(path, seed, shared=False, purges=False, **orders) as crew:
        for number in range(workers):
            crew.start(shim.environment(path, "" if number else fault, trace=trace))
        for worker in crew.workers:
            crew.join(worker)
        story = crew.story()
    assert not story.failures(*(["ProviderUnavailable"] if fault else []))
    return Past(path, read_trace(trace), story)


def places(records: list[Record], dice: random.Random, count: int) -> list[int]:
    """Where to cut: anywhere, and every other time soon after a log took another's place."""
    total = len(records)
    switched = [place for place, record in enumerate(records) if record.op == "R"] or [0]
    return sorted(
        min(dice.choice(switched) + dice.randint(1, 20), total) if n % 2 else dice.randint(1, total)
        for n in range(count)
    )


def cut(
    past: Past,
    path: Path,
    ruins: Path,
    dice: random.Random,
    count: int,
    needed: Callable[[int], int],
) -> None:
    """Cut the power ``count`` times and judge what can be read then."""
    disk = Disk(path / "store")
    print(f"{count} cuts among {len(past.commits)} commits")
    played = 0
    for place in places(past.records, dice, count):
        for record in past.records[played:place]:
            disk.play(record)
        played = place
        disk.ruins(ruins, dice)
        least = needed(place)
        found, rest = read_back(past, ruins)
        prefixes = list(past.prefixes(found))
        assert not rest, f"cut at {place}: sessions that nobody made"
        assert prefixes, f"cut at {place}: not the state after any commit"
        assert prefixes[-1] >= least, (
            f"cut at {place}: the state after commit {prefixes[-1]}, {least} is promised"
        )
        shutil.rmtree(ruins)


def read_back(past: Past, ruins: Path) -> tuple[dict[str, Seen], set[str]]:
    provider = HybridProvider(ruins, durability="never")
    names = {key for keys in past.keys.values() for key in keys}
    found = {key: seen(provider, key) for key in names}
    rest = set(provider.keys(NOW)) - names
    provider.close()
    return found, rest


OPTIONS = {"compact_bytes": 12_000}


def test_always_loses_nothing(
    tmp_path: Path,
    fast_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    minutes: float,
) -> None:
    for seed in rounds(1):
        path = tmp_path / str(seed)
        options = {**OPTIONS, "durability": "always"}
        past = run(path, shim, seed, 3, steps=80, lines=4, options=options)
        assert any(record.op == "R" for record in past.records)
        cut(
            past,
            path,
            fast_path / "ruins",
            random.Random(seed),
            6_000 if minutes else 250,
            past.needed,
        )
        shutil.rmtree(path)


@pytest.mark.parametrize("times", [1, 2])
def test_always_loses_nothing_to_a_disk_that_forgets_what_it_failed_to_sync(
    tmp_path: Path,
    fast_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    minutes: float,
    times: int,
) -> None:
    for seed in rounds(1):
        path = tmp_path / str(seed)
        options = {**OPTIONS, "durability": "always"}
        fault = f"fdatasync:EIO:{5 + seed % 20}:{times}"
        past = run(path, shim, seed, 3, fault, steps=60, lines=4, options=options)
        assert any(record.op == "E" and record.offset for record in past.records)
        cut(
            past,
            path,
            fast_path / "ruins",
            random.Random(seed),
            1_000 if minutes else 100,
            past.needed,
        )
        shutil.rmtree(path)


def test_interval_leaves_a_prefix_no_older_than_the_interval(
    tmp_path: Path,
    fast_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    minutes: float,
) -> None:
    for seed in rounds(1):
        path = tmp_path / str(seed)
        # In one log: a new generation would be synced before the keeper comes to it.
        options = {"sync_interval": INTERVAL}
        past = run(path, shim, seed, 2, steps=150, lines=4, pause=0.01, options=options)
        late = lateness(past.records)

        def needed(place: int, past: Past = past, late: float = late) -> int:
            return past.needed(place, past.records[place - 1].seconds - INTERVAL - late)

        cut(past, path, fast_path / "ruins", random.Random(seed), 2_000 if minutes else 150, needed)
        shutil.rmtree(path)


def test_never_leaves_a_prefix(
    tmp_path: Path,
    fast_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    minutes: float,
) -> None:
    for seed in rounds(1):
        path = tmp_path / str(seed)
        options = {**OPTIONS, "durability": "never"}
        past = run(path, shim, seed, 3, steps=80, lines=4, options=options)
        # A new generation is brought to the disk whole, whoever waits for it.
        assert any(record.op == "R" for record in past.records)
        count = 2_000 if minutes else 150
        cut(past, path, fast_path / "ruins", random.Random(seed), count, lambda place: 0)
        shutil.rmtree(path)


def lateness(records: list[Record]) -> float:
    """How late this machine was, in seconds: no thread can be asked to wake up earlier.

    The longest time between two steps of a worker, of which nearly all is its pause, and the
    longest sync: the keeper wakes up twice and syncs once.
    """
    latest: dict[str, float] = {}
    begun: dict[tuple[int, int], float] = {}
    pause = sync = 0.0
    for record in records:
        if record.op == "B":
            begun[record.thread, record.inode] = record.seconds
        elif record.op == "E":
            sync = max(sync, record.seconds - begun[record.thread, record.inode])
        elif record.path.endswith(".jsonl"):
            pause = max(pause, record.seconds - latest.get(record.path, record.seconds))
            latest[record.path] = record.seconds
    return 2 * pause + sync
