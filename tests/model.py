"""The storage contract as a machine that hypothesis drives: any calls in any order, on several
handles, and after each of them every handle must see what a plain dict says.

    class Mine(StoreMachine):
        def open_handles(self):
            return [Handle(open), InThread(open), InProcess(open), InProcess(open)]

    TestMine = machine_case(Mine, steps=300)
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import traceback
import unittest
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from math import inf, nextafter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import Conflict, KeyTaken, SessionGone
from flask_hybridsession.core.provider import Lists, Promise, Provider, Users
from flask_hybridsession.testing import FakeClock

PATIENCE = 60.0
START = 1_000_000.0

#: Three that begin alike, and three more that do.
KEYS = [sha256(b"%d" % number).hexdigest() for number in (1, 12, 21, 5, 6, 15)]
#: The empty name, a name that is not valid Unicode, and one in another script.
NAMES = ["a", "", "\ud800", "ключ"]
#: Among them what begins a frame of the log, and more than a page.
VALUES = [b"", b"1", b"2", b"\xf1HS\x0a" * 3, b"\x00" * 200, b"large" * 1000]
OWNERS = ["s:ann", "s:bob", "i:1"]
SPANS = [0.5, 1.0, 60.0, 3600.0]
WAITS = [0.5, 0.5, 1.0, 1.0, 60.0, 3600.0]

#: How many steps are taken in one store.
STEPS_A_STORE = 40

Open = Callable[[], Provider]
Answer = tuple[str, Any]


# The model


class Session(NamedTuple):
    """What the model knows of a session."""

    values: dict[str, bytes]
    created: float
    touched: float
    deadline: float
    user: str | None
    device: str | None

    def record(self, key: str) -> Record:
        return Record(key, *self)


class Model:
    """The contract, by the book: two dicts and no cleverness."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.aliases: dict[str, tuple[str, float]] = {}

    def resolve(self, key: str, now: float) -> str:
        target, until = self.aliases.get(key, (key, inf))
        return target if now < until else key

    def load(self, key: str, now: float) -> Record | None:
        key = self.resolve(key, now)
        session = self.sessions.get(key)
        return session.record(key) if session is not None and now < session.deadline else None

    def commit(self, key: str, change: Change, now: float) -> Answer:
        there = self.load(key, now)
        if change.create:
            if there is not None:
                return "KeyTaken", key
            self.remove(key)
            session = Session({}, now, now, inf, None, None)
        else:
            if there is None:
                return "SessionGone", key
            for name, expected in change.expects.items():
                if there.values.get(name) != expected:
                    return "Conflict", there
            key = there.key
            session = self.sessions[key]
        values = {} if change.wipe else dict(session.values)
        for name in change.drops:
            values.pop(name, None)
        values.update(change.puts)
        self.sessions[key] = Session(
            values,
            session.created,
            session.touched if change.touched is None else change.touched,
            session.deadline if change.deadline is None else change.deadline,
            session.user if change.user is ... else change.user,
            session.device if change.device is ... else change.device,
        )
        return "done", None

    def rename(self, old: str, new: str, now: float, alias_until: float | None) -> Answer:
        there = self.load(old, now)
        if there is None:
            return "SessionGone", old
        if self.load(new, now) is not None:
            return "KeyTaken", new
        source, session = there.key, self.sessions[there.key]
        earlier = {} if alias_until is None else self.aliases_of(source)
        self.remove(new)
        self.remove(source)
        self.sessions[new] = session
        for alias, until in earlier.items():
            if alias != new:
                self.aliases[alias] = (new, until)
        if alias_until is not None:
            self.aliases[source] = (new, alias_until)
        return "done", None

    def destroy(self, key: str, now: float) -> Answer:
        key = self.resolve(key, now)
        there = key in self.sessions
        if there:
            self.remove(key)
        return "done", there

    def remove(self, key: str) -> None:
        """Take away what is under ``key``, be it a session with its aliases or an alias."""
        self.sessions.pop(key, None)
        self.aliases.pop(key, None)
        for alias in self.aliases_of(key):
            del self.aliases[alias]

    def aliases_of(self, key: str) -> dict[str, float]:
        return {alias: until for alias, (target, until) in self.aliases.items() if target == key}

    def due(self, now: float) -> dict[str, Record]:
        return {k: s.record(k) for k, s in self.sessions.items() if s.deadline <= now}

    def forget_ended_aliases(self, now: float) -> None:
        self.aliases = {a: entry for a, entry in self.aliases.items() if now < entry[1]}

    def moments(self) -> set[float]:
        """When something ends."""
        ends = {session.deadline for session in self.sessions.values()}
        return (ends | {until for _, until in self.aliases.values()}) - {inf}


# Handles


class Handle:
    """One user of the store, in this very thread."""

    def __init__(self, open_: Open) -> None:
        self._open = open_
        self._provider = open_()

    def do(self, now: float, work: Callable[..., Any], *args: Any) -> Any:
        """``work(provider, *args)`` at the time ``now``."""
        with FakeClock(now):
            return work(self._provider, *args)

    def close(self) -> None:
        self._provider.close()
        self._provider.close()  # harmless twice

    def reopen(self) -> None:
        self._provider = self._open()

    def end(self) -> None:
        """After ``close``, for good."""


class InThread(Handle):
    """The same from a thread of its own."""

    def __init__(self, open_: Open) -> None:
        self._thread = ThreadPoolExecutor(1)
        super().__init__(open_)

    def do(self, now: float, work: Callable[..., Any], *args: Any) -> Any:
        return self._thread.submit(super().do, now, work, *args).result(PATIENCE)

    def end(self) -> None:
        self._thread.shutdown()


class InProcess(Handle):
    """The same from another process, which knows only how to open the store."""

    def __init__(self, open_: Open) -> None:
        self._open = open_
        self.reopen()

    def do(self, now: float, work: Callable[..., Any], *args: Any) -> Any:
        self._pipe.send((now, work, args))
        assert self._pipe.poll(PATIENCE), "no answer"
        worked, result = self._pipe.recv()
        if not worked:
            raise AssertionError(f"in another process: {result}")
        return result

    def close(self) -> None:
        self.do(0.0, Provider.close)
        self.do(0.0, Provider.close)
        self._leave()

    def kill(self) -> None:
        """What a crash does."""
        self._process.kill()
        self._leave()

    def _leave(self) -> None:
        self._pipe.close()
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, "it does not end"

    def reopen(self) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, self._open), daemon=True)
        self._process.start()
        theirs.close()
        worked, result = self._pipe.recv()
        assert worked, result


# A server that forks: its children inherit nothing of what is open here.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["flask_hybridsession", "tests.model"])


def _serve(pipe: Connection, open_: Open) -> None:
    def answered(work: Callable[..., Any], *args: Any) -> Any:
        try:
            result = True, work(*args)
        except Exception:
            result = False, traceback.format_exc()
        pipe.send(result)

    handle: list[Handle] = []
    answered(lambda: handle.append(Handle(open_)))
    with suppress(EOFError):
        while True:
            now, work, args = pipe.recv()
            answered(handle[0].do, now, work, *args)


# What a handle is asked for


def ask(provider: Provider, name: str, *args: Any) -> Answer:
    """Call a method; the errors of the contract are answers."""
    try:
        return "done", getattr(provider, name)(*args)
    except Conflict as error:
        return "Conflict", plain(error.current)
    except (SessionGone, KeyTaken) as error:
        return type(error).__name__, error.key


def plain(record: Record | None) -> Record | None:
    return record and record._replace(values=dict(record.values))


class View(NamedTuple):
    """Everything that can be seen through a handle at one moment."""

    records: dict[str, Record | None]
    exists: dict[str, bool]
    keys: list[str] | None
    count: int | None
    users: dict[str, list[str]] | None
    next_deadline: float | None


def look(provider: Provider, now: float) -> View:
    return View(
        {key: plain(provider.load(key, now)) for key in KEYS},
        {key: provider.exists(key, now) for key in KEYS},
        sorted(provider.keys(now)) if isinstance(provider, Lists) else None,
        provider.count(now) if isinstance(provider, Lists) else None,
        {user: sorted(provider.keys_of(user, now)) for user in OWNERS}
        if isinstance(provider, Users)
        else None,
        provider.next_deadline(),
    )


def promises(provider: Provider) -> Collection[Promise]:
    return provider.promises


def kinship(provider: Provider) -> int:
    return provider.kinship


def compact(provider: Any) -> None:
    provider.compact()


def is_able_to_compact(provider: Any) -> bool:
    return hasattr(provider, "compact")


# The machine

#: See ``StoreMachine.key``.
some_key = st.integers(0, 4 * len(KEYS) - 1)
some_values = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from(VALUES), min_size=1, max_size=3
)
some_names = st.lists(st.sampled_from(NAMES), max_size=2)
#: Seconds from now; None says nothing.
some_end = st.sampled_from([None, inf, 3600.0, *SPANS, *(None, inf, 3600.0), 0.0, -1.0])
#: How long the old key is an alias.
some_grace = st.sampled_from([None, inf, 60.0, None, inf, *SPANS])
some_user = st.sampled_from([..., None, *OWNERS])
some_device = st.sampled_from([..., None, "telephone"])
#: "right" is what the session holds, "wrong" is something else.
some_expects = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from(["right", "right", "wrong"]), max_size=2
)
which = st.integers(0, 3)


class StoreMachine(RuleBasedStateMachine):
    """Make a subclass with ``open_handles``, and a test of it with ``machine_case``."""

    path: Path

    def open_handles(self) -> list[Handle]:
        """Four handles on one new store; ``self.path`` is an empty folder of this store."""
        raise NotImplementedError

    def check_store(self, handle: Handle) -> None:
        """What else must hold after each step: an invariant of the provider's own."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="model-"))
        self.now = START
        self.model = Model()
        self.steps = 0
        self.handles = self.open_handles()
        self.announces = Promise.PURGE in self.handles[0].do(self.now, promises)
        self.compacts = self.handles[0].do(self.now, is_able_to_compact)
        self.kinship = self.handles[0].do(self.now, kinship)

    def teardown(self) -> None:
        try:
            for handle in self.handles:
                handle.close()
        finally:
            for handle in self.handles:
                handle.end()
            shutil.rmtree(self.path)

    def call(self, handle: int, name: str, *args: Any) -> Answer:
        answer: Answer = self.handles[handle].do(self.now, ask, name, *args)
        return answer

    def key(self, number: int) -> str:
        """Three times out of four one that opens something, if there is one."""
        which, any_ = divmod(number, 4)
        known = [key for key in KEYS if self.model.load(key, self.now)]
        return known[which % len(known)] if any_ and known else KEYS[which]

    def moment(self, span: float | None) -> float | None:
        return None if span is None else self.now + span

    # Calls

    @initialize()
    def fill(self) -> None:
        for handle, key in enumerate(KEYS[:3]):
            change = Change({"a": b"1"}, expects={}, create=True, user=OWNERS[handle])
            self.commits(handle, key, change)

    @rule(
        handle=which,
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        puts=some_values,
        end=some_end,
        user=some_user,
        device=some_device,
    )
    def create(
        self, handle: int, keys: Any, puts: Any, end: float | None, user: Any, device: Any
    ) -> None:
        for key in keys:
            change = Change(
                puts, expects={}, create=True, deadline=self.moment(end), user=user, device=device
            )
            self.commits(handle, key, change)

    @rule(
        handle=which,
        key=some_key,
        puts=some_values,
        drops=some_names,
        wipe=st.booleans(),
        create=st.booleans(),
        expects=some_expects,
        end=some_end,
        touch=st.booleans(),
        user=some_user,
        device=some_device,
    )
    def commit(
        self,
        handle: int,
        key: int,
        puts: Any,
        drops: Any,
        wipe: bool,
        create: bool,
        expects: dict[str, str],
        end: float | None,
        touch: bool,
        user: Any,
        device: Any,
    ) -> None:
        change = Change(
            puts,
            drops,
            wipe,
            create,
            self.values(key, expects),
            self.moment(end),
            self.now if touch else None,
            user,
            device,
        )
        self.commits(handle, self.key(key), change)

    def values(self, key: int, expects: dict[str, str]) -> dict[str, bytes | None]:
        there = self.model.load(self.key(key), self.now)
        held = {} if there is None else there.values
        return {n: held.get(n) if what == "right" else b"wrong" for n, what in expects.items()}

    @rule(handle=which, key=some_key, puts=some_values, drops=some_names)
    def edit(self, handle: int, key: int, puts: Any, drops: Any) -> None:
        self.commits(handle, self.key(key), Change(puts, drops, expects={}))

    @rule(handle=which, key=some_key, puts=some_values, expects=some_expects)
    def compare_and_set(self, handle: int, key: int, puts: Any, expects: Any) -> None:
        self.commits(handle, self.key(key), Change(puts, expects=self.values(key, expects)))

    @rule(handle=which, key=some_key, end=some_end)
    def touch(self, handle: int, key: int, end: float | None) -> None:
        change = Change({}, expects={}, deadline=self.moment(end), touched=self.now)
        self.commits(handle, self.key(key), change)

    def commits(self, handle: int, key: str, change: Change) -> None:
        assert self.call(handle, "commit", key, change, self.now) == self.model.commit(
            key, change, self.now
        )

    def kin(self, key: str) -> list[str]:
        """What a session of ``key`` may be renamed to: see ``Provider.kinship``."""
        return [other for other in KEYS if other.startswith(key[: self.kinship])]

    @rule(
        handle=which,
        old=some_key,
        moves=st.lists(
            st.tuples(st.integers(0, len(KEYS) - 1), some_grace), min_size=1, max_size=3
        ),
    )
    def rename(self, handle: int, old: int, moves: Any) -> None:
        key = self.key(old)
        for number, grace in moves:
            kin = self.kin(key)
            new = kin[number % len(kin)]
            until = self.moment(grace)
            assert self.call(handle, "rename", key, new, self.now, until) == self.model.rename(
                key, new, self.now, until
            )
            key = new

    @rule(handle=which, key=some_key)
    def destroy(self, handle: int, key: int) -> None:
        name = self.key(key)
        assert self.call(handle, "destroy", name) == self.model.destroy(name, self.now)

    @rule(handle=which, limit=st.sampled_from([0, 1, 2, 100]))
    def purge(self, handle: int, limit: int) -> None:
        due = self.model.due(self.now)
        _, claimed = self.call(handle, "purge", self.now, limit)
        gone = {record.key: plain(record) for record in claimed}
        if self.announces:
            assert len(gone) == len(claimed) == min(limit, len(due))
            assert gone.items() <= due.items()
        for key in gone:
            self.model.remove(key)
        if len(gone) < limit:
            self.model.forget_ended_aliases(self.now)

    # Time

    @rule(span=st.sampled_from(WAITS))
    def wait(self, span: float) -> None:
        self.now += span

    @rule(early=st.booleans())
    def wait_for_the_next_end(self, early: bool) -> None:
        """Until the very moment when something ends, or the last one before it."""
        ends = [end for end in self.model.moments() if end > self.now]
        if ends:
            self.now = nextafter(min(ends), 0.0) if early else min(ends)

    @rule(handle=which, span=st.sampled_from(SPANS))
    def clock_goes_back(self, handle: int, span: float) -> None:
        # Whether an alias that has ended is still stored is the provider's affair.
        self.purge(handle, 100)
        self.now -= span

    # Those who use the store

    @rule(handle=which)
    def reopen(self, handle: int) -> None:
        self.handles[handle].close()
        self.handles[handle].reopen()

    @rule(handle=which)
    @precondition(lambda self: isinstance(self, StoreMachine) and self.compacts)
    def compact(self, handle: int) -> None:
        self.handles[handle].do(self.now, compact)

    # What holds always

    @invariant()
    def all_see_what_the_model_says(self) -> None:
        self.steps += 1
        for handle in self.handles:
            self.compare(handle.do(self.now, look, self.now))
        self.check_store(self.handles[self.steps % len(self.handles)])

    def compare(self, view: View) -> None:
        model, now = self.model, self.now
        expected = {key: model.load(key, now) for key in KEYS}
        assert view.records == expected
        assert view.exists == {key: record is not None for key, record in expected.items()}
        live = {record.key: record for record in expected.values() if record is not None}
        if view.keys is not None:
            assert view.keys == sorted(live)
            assert view.count is not None
            assert len(live) <= view.count <= len(model.sessions)
        if view.users is not None:
            assert view.users == {
                user: sorted(key for key, record in live.items() if record.user == user)
                for user in OWNERS
            }
        if self.announces:
            first = min((s.deadline for s in model.sessions.values()), default=inf)
            ends = {until for _, until in model.aliases.values() if until < first}
            assert (inf if view.next_deadline is None else view.next_deadline) in {first} | ends


class WorkersMachine(StoreMachine):
    """Two handles of this process, then two of workers, which may be killed."""

    @rule(which=st.sampled_from([2, 3]))
    def a_worker_is_killed(self, which: int) -> None:
        worker = self.handles[which]
        assert isinstance(worker, InProcess)
        worker.kill()
        worker.reopen()


def machine_case(machine: type[StoreMachine], steps: int) -> type[unittest.TestCase]:
    """The test of a machine: so many steps, always the same, or ``TORTURE_STEPS`` random ones."""
    longer = int(os.environ.get("TORTURE_STEPS", "0"))
    case: type[unittest.TestCase] = machine.TestCase
    case.settings = settings(  # type: ignore[attr-defined]
        derandomize=not longer,
        database=None,
        deadline=None,
        # The short run fails fast, a long one also looks for the shortest way to fail.
        phases=(Phase.generate, Phase.shrink) if longer else (Phase.generate,),
        max_examples=-(-(longer or steps) // STEPS_A_STORE),
        stateful_step_count=STEPS_A_STORE,
        suppress_health_check=list(HealthCheck),
    )
    return case
