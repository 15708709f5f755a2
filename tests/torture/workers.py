"""Workers that change sessions and write down what they do; a judge that reads the store back.

A worker writes every step into its journal before it begins (the intent) and when the call has
returned (the answer), so whoever kills it knows what was acknowledged. It works on *lines*: a line
is one session of its own under all the keys that it ever has. Besides, all workers change *shared*
sessions, each worker its own name in them, and purge what is due.

``Story`` reads the journals and ``Story.wrongs`` says what a store holds that it must not hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable, SessionGone
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.hybrid.frame import Gap

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
#: The workers' clock stands still: sessions that are due were so from the beginning of LATER.
NOW, DUE, LATER = 1_000.0, 1_005.0, 1_010.0
#: How many sessions there are at the beginning that all workers change, one after the other.
SHARED = 100

Values = dict[str, bytes]
#: What ``load`` says of a key: the session's own key and values, or nothing.
Seen = tuple[str, Values] | None


def key(name: object) -> str:
    return hashlib.sha256(repr(name).encode()).hexdigest()


def value(number: int, size: int) -> bytes:
    """Bytes that only this number gives."""
    digest = hashlib.sha256(b"%d" % number).digest()
    return b"%d " % number + (digest * (size // 32 + 1))[:size]


# The journal


class Entry(NamedTuple):
    """One step. ``answer`` is None while it is under way, ``[error]`` when it was refused."""

    worker: str
    line: str
    kind: str
    key: str
    arg: Any
    begun: float
    ended: float = inf
    answer: Any = None

    @property
    def acknowledged(self) -> bool:
        return self.ended < inf and not self.failed

    @property
    def failed(self) -> str:
        """The name of the error that the call raised, or nothing."""
        return str(self.answer[0]) if isinstance(self.answer, list) and self.answer else ""


class Journal:
    """A file that only grows: what was written to it stays when the writer is killed."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *what: object) -> None:
        os.write(self.fd, json.dumps(what).encode() + b"\n")


def read_journal(path: Path) -> list[Entry]:
    """The steps in the order in which they began. Half a line at the end was never written."""
    return parse_journal(path.stem, path.read_bytes())


def parse_journal(worker: str, data: bytes) -> list[Entry]:
    entries: list[Entry] = []
    for text in data.split(b"\n")[:-1]:
        mark, moment, *rest = json.loads(text)
        if mark == "?":
            entries.append(Entry(worker, *rest, begun=moment))
        else:
            entries[-1] = entries[-1]._replace(ended=moment, answer=rest[0])
    return entries


# The worker


@dataclass
class Orders:
    """What a worker is told. ``name`` is unique to each life of each worker."""

    directory: str
    journal: str
    name: str
    seed: int
    steps: int = sys.maxsize
    lines: int = 8
    sizes: tuple[int, int] = (0, 300)
    shared: bool = True
    purges: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds between two steps.
    pause: float = 0.0


@dataclass
class _Line:
    name: str
    key: str
    keys: int = 1
    alias: str = ""


class Worker:
    """Does random steps until it has done as many as it was told, or is killed."""

    def __init__(self, orders: Orders, provider: HybridProvider) -> None:
        self.orders = orders
        self.provider = provider
        self.dice = random.Random(orders.seed)
        self.journal = Journal(Path(orders.journal))
        self.lines: list[_Line] = []
        self.count = 0
        self.shared = 0

    def run(self) -> None:
        for _ in range(self.orders.steps):
            self.step()
            if self.orders.pause:
                time.sleep(self.orders.pause)

    def step(self) -> None:
        self.count += 1
        throw = self.dice.random()
        if self.orders.shared and throw < 0.2:
            self.work_on_shared()
        elif self.orders.purges and throw < 0.25:
            self.purge()
        elif len(self.lines) < self.orders.lines and throw < 0.6:
            self.create()
        elif self.lines:
            line = self.dice.choice(self.lines)
            what = self.dice.choices((self.modify, self.rename, self.destroy), (7, 3, 1))[0]
            if not what(line):
                self.lines.remove(line)
        else:
            self.create()

    def call(self, line: str, kind: str, key: str, arg: Any, *expected: type[Exception]) -> Any:
        """Do a step; True or what it returned, ``[name]`` of an error."""
        self.journal.note("?", time.monotonic(), line, kind, key, arg)
        answer: Any
        try:
            answer = perform(self.provider, kind, key, arg)
        except (ProviderUnavailable, *expected) as error:
            answer = [type(error).__name__]
        except Exception as error:
            self.journal.note("!", time.monotonic(), [f"{type(error).__name__}: {error}"])
            raise
        self.journal.note("!", time.monotonic(), answer)
        return answer

    def size(self) -> int:
        return self.dice.randint(*self.orders.sizes)

    def create(self) -> None:
        name = f"{self.orders.name}.{self.count}"
        due = self.orders.purges and self.dice.random() < 0.3
        arg = [self.count, self.size(), due]
        if self.call(name, "create", key((name, 0)), arg) is True and not due:
            self.lines.append(_Line(name, key((name, 0))))

    def modify(self, line: _Line) -> bool:
        how = self.dice.choice(("put", "put", "drop", "wipe"))
        name = line.alias if line.alias and self.dice.random() < 0.3 else line.key
        return self.call(line.name, "modify", name, [self.count, self.size(), how]) is True

    def rename(self, line: _Line) -> bool:
        new, alias = key((line.name, line.keys)), self.dice.random() < 0.5
        if self.call(line.name, "rename", line.key, [new, alias]) is not True:
            return False
        line.alias = line.key if alias else ""
        line.key, line.keys = new, line.keys + 1
        return True

    def destroy(self, line: _Line) -> bool:
        self.call(line.name, "destroy", line.key, None)
        return False

    def purge(self) -> None:
        self.call("", "purge", "", 10)

    def work_on_shared(self) -> None:
        name = f"shared.{self.shared}"
        if self.dice.random() < 0.01:
            self.call(name, "destroy", key(name), None)
        arg = [self.orders.name, self.count]
        answer = self.call(name, "share", key(name), arg, SessionGone)
        if answer == ["SessionGone"]:
            self.shared = min(self.shared + 1, SHARED - 1)


def perform(provider: HybridProvider, kind: str, key: str, arg: Any) -> Any:
    """One step on a provider."""
    if kind == "create":
        number, size, due = arg
        deadline = DUE if due else inf
        puts = {"first": value(number, size)}
        provider.commit(key, Change(puts, create=True, deadline=deadline, user="u"), NOW)
    elif kind == "modify":
        provider.commit(key, changed(*arg), NOW)
    elif kind == "rename":
        provider.rename(key, arg[0], NOW, inf if arg[1] else None)
    elif kind == "destroy":
        return provider.destroy(key)
    elif kind == "purge":
        return {"claimed": [record.key for record in provider.purge(LATER, arg)]}
    else:
        provider.commit(key, Change({arg[0]: b"%d" % arg[1]}), NOW)
    return True


def changed(number: int, size: int, how: str) -> Change:
    puts = {f"n{number % 4}": value(number, size)}
    return Change(puts, drops=("first", "n0") if how == "drop" else (), wipe=how == "wipe")


def work(orders: Orders) -> None:
    """A worker's life, in a process of its own."""
    provider = HybridProvider(orders.directory, **orders.options)
    Worker(orders, provider).run()
    with suppress(ProviderUnavailable):  # a log that failed a moment ago is not tried again yet
        provider.close()


# The model


class State(NamedTuple):
    """A line's session: its key, values and the keys that are aliases of it."""

    key: str
    values: Values
    aliases: frozenset[str] = frozenset()

    def seen(self, name: str) -> Seen:
        """What ``load`` must say of one of the line's keys."""
        return (self.key, self.values) if name == self.key or name in self.aliases else None


def after(state: State | None, entry: Entry) -> State | None:
    """A line's state after a step that happened."""
    if entry.kind == "create":
        return State(entry.key, {"first": value(*entry.arg[:2])})
    assert state is not None
    if entry.kind == "modify":
        change = changed(*entry.arg)
        kept = (
            {} if change.wipe else {n: v for n, v in state.values.items() if n not in change.drops}
        )
        return state._replace(values={**kept, **change.puts})
    if entry.kind == "rename":
        new, alias = entry.arg
        return State(new, state.values, state.aliases | {state.key} if alias else frozenset())
    return None


def keys_of(line: list[Entry]) -> set[str]:
    """All keys that a line ever had."""
    return {entry.key for entry in line} | {e.arg[0] for e in line if e.kind == "rename"}


def seen(provider: HybridProvider, name: str, now: float = NOW) -> Seen:
    record = provider.load(name, now)
    return None if record is None else (record.key, dict(record.values))


class Story:
    """All that the workers have done, read from their journals.

    ``uncertain`` names the errors after which a step may have happened or not.
    """

    def __init__(self, journals: Iterable[Path], uncertain: tuple[str, ...] = ()) -> None:
        self.uncertain = uncertain
        self.lines: dict[str, list[Entry]] = {}
        self.shared: dict[str, list[Entry]] = {}
        self.purges: list[Entry] = []
        self.entries = [entry for path in sorted(journals) for entry in read_journal(path)]
        for entry in self.entries:
            if entry.kind == "purge":
                self.purges.append(entry)
            elif entry.line.startswith("shared"):
                self.shared.setdefault(entry.line, []).append(entry)
            else:
                self.lines.setdefault(entry.line, []).append(entry)

    def count(self) -> int:
        """Steps that were acknowledged."""
        return sum(entry.acknowledged for entry in self.entries)

    def maybe(self, entry: Entry) -> bool:
        """Whether the step may have happened although it was not acknowledged."""
        return entry.ended == inf or entry.failed in self.uncertain

    def keys(self) -> set[str]:
        """All keys that anybody ever used."""
        shared = {key(f"shared.{number}") for number in range(SHARED)}
        return shared.union(*map(keys_of, self.lines.values()))

    def failures(self, *expected: str) -> list[str]:
        """What callers got besides what they had to expect."""
        usual = {"", *expected}
        return [
            f"{entry.line} {entry.kind}: {entry.failed}"
            for entry in self.entries
            if entry.failed not in usual
            and not (entry.kind == "share" and entry.failed == "SessionGone")
        ]

    def wrongs(self, provider: HybridProvider) -> list[str]:
        """What the store holds that it must not hold, or lacks. Nobody else may write meanwhile."""
        found = (
            *self._wrong_lines(provider),
            *self._wrong_shared(provider),
            *self._wrong_purges(),
        )
        return list(dict.fromkeys(found))

    def states(self, line: list[Entry]) -> list[State | None]:
        """What a line may be now: one state, or two if its last step was not acknowledged."""
        state: State | None = None
        for entry in line:
            if entry.acknowledged:
                state = after(state, entry)
            elif self.maybe(entry):
                return [state, after(state, entry)]
        return [state]

    def _wrong_lines(self, provider: HybridProvider) -> Iterator[str]:
        claimed = {name for purge in self.purges for name in claims(purge)}
        cut_short = any(map(self.maybe, self.purges))
        for name, line in self.lines.items():
            keys = keys_of(line)
            found = {each: seen(provider, each) for each in keys}
            states = self.states(line)
            if line[0].kind == "create" and line[0].arg[2]:
                if line[0].key in claimed:
                    states = [None]
                elif cut_short:
                    states = [*states, None]
                if seen(provider, line[0].key, LATER) is not None:
                    yield f"{name}: served when it was due"
            if not any(found == expectation(state, keys) for state in states):
                yield f"{name}: {verdict(found, states)} after {[e.kind for e in line[-4:]]}"

    def _wrong_shared(self, provider: HybridProvider) -> Iterator[str]:
        for name, entries in self.shared.items():
            ends = [e for e in entries if e.kind == "destroy" and e.answer is not False]
            ends = [e for e in ends if e.acknowledged or self.maybe(e)]
            done = [e for e in ends if e.acknowledged]
            first = min((e.begun for e in ends), default=inf)
            last = min((e.ended for e in done), default=inf)
            if len(done) > 1:
                yield f"{name}: destroyed {len(done)} times"
            record = provider.load(entries[0].key, NOW)
            if record is not None and done:
                yield f"{name}: came back"
            if record is None and not ends:
                yield f"{name}: lost"
            yield from self._wrong_shares(name, entries, first, last, record)

    def _wrong_shares(
        self, name: str, entries: list[Entry], first: float, last: float, record: Any
    ) -> Iterator[str]:
        shares: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.kind != "share":
                continue
            if entry.acknowledged and entry.begun > last:
                yield f"{name}: changed after its end"
            elif entry.failed == "SessionGone":
                if entry.ended < first:
                    yield f"{name}: gone before its end"
            elif entry.acknowledged or self.maybe(entry):
                shares.setdefault(entry.arg[0], []).append(entry)
        if record is None:
            return
        for worker, steps in shares.items():
            allowed: set[bytes | None] = {None}
            for step in steps:
                said = b"%d" % step.arg[1]
                allowed = {said} if step.acknowledged else allowed | {said}
            if record.values.get(worker) not in allowed:
                yield f"{name}: the share of {worker} is {record.values.get(worker)!r}"

    def _wrong_purges(self) -> Iterator[str]:
        known: set[str] = set()
        for purge in self.purges:
            for name in claims(purge):
                if name in known:
                    yield "a session expired twice"
                known.add(name)


def claims(purge: Entry) -> list[str]:
    """The keys that a purge returned."""
    return list(purge.answer["claimed"]) if purge.acknowledged else []


def expectation(state: State | None, keys: Iterable[str]) -> dict[str, Seen]:
    return {name: None if state is None else state.seen(name) for name in keys}


def verdict(found: dict[str, Seen], states: list[State | None]) -> str:
    """In a few words, without the values."""
    held = {name[:6]: sorted(have[1]) for name, have in found.items() if have is not None}
    wanted = [
        state and (state.key[:6], sorted(state.values), len(state.aliases)) for state in states
    ]
    return f"holds {held}, not one of {wanted}"


def gaps(provider: HybridProvider) -> list[Gap]:
    """Where the log holds bytes that are no frames."""
    return [entry for _, entry in provider._store.log.entries() if isinstance(entry, Gap)]


# Crews of workers


class Crew:
    """Workers in processes of their own, each with a journal in ``journals``."""

    def __init__(self, path: Path, seed: int, **orders: Any) -> None:
        self.path = path
        self.directory = path / "store"
        self.journals = path / "journals"
        self.journals.mkdir(parents=True)
        self.dice = random.Random(seed)
        self.orders = orders
        if orders.get("shared", True):
            provider = HybridProvider(self.directory)
            for number in range(SHARED):
                provider.commit(key(f"shared.{number}"), Change(create=True), NOW)
            provider.close()
        self.lives = 0
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, env: Mapping[str, str] | None = None, **orders: Any) -> subprocess.Popen[bytes]:
        """One more worker: a new interpreter, with ``env`` besides ours."""
        self.lives += 1
        name = f"w{self.lives}"
        told = Orders(
            str(self.directory),
            str(self.journals / f"{name}.jsonl"),
            name,
            self.dice.getrandbits(32),
            **{**self.orders, **orders},
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(told))],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stderr=subprocess.PIPE,
        )
        self.workers.append(worker)
        return worker

    def journal(self, worker: subprocess.Popen[bytes]) -> Path:
        return self.journals / f"w{self.workers.index(worker) + 1}.jsonl"

    def wait_until_busy(self, worker: subprocess.Popen[bytes], size: int = 1) -> None:
        """Until it has written ``size`` bytes of its journal, or has ended."""
        path, deadline = self.journal(worker), time.monotonic() + PATIENCE
        while not (path.exists() and path.stat().st_size >= size) and worker.poll() is None:
            assert time.monotonic() < deadline, "the worker did not begin"
            time.sleep(0.002)

    def join(self, worker: subprocess.Popen[bytes], *expected: int) -> None:
        """Wait for its end; what it said is shown when it did not end as expected."""
        _, text = worker.communicate(timeout=PATIENCE)
        assert worker.returncode in (expected or (0,)), text.decode()

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            assert worker.stderr is not None
            worker.stderr.close()

    def story(self, *uncertain: str) -> Story:
        return Story(self.journals.iterdir(), uncertain)

    def judge(self, *uncertain: str) -> Story:
        """Read the store back, then again from its log alone. Nobody may be at work.

        After these errors a step may have happened or not.
        """
        story = self.story(*uncertain)
        for name in ("", "image"):
            if name:
                (self.directory / name).unlink()
            provider = HybridProvider(self.directory)
            try:
                # One more write: no garbage may be left before it.
                provider.commit(key("judge"), Change(create=True), NOW)
                assert provider.destroy(key("judge"))
                assert not gaps(provider)
                assert story.wrongs(provider) == []
                assert set(provider.keys(NOW)) <= story.keys()
                provider._check()
            finally:
                provider.close()
        return story

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()


if __name__ == "__main__":
    work(Orders(**json.loads(sys.argv[1])))
