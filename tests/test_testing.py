"""The suite is judged by providers that each break one promise: it must fail them for that."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fcntl import LOCK_EX, LOCK_UN, flock
from functools import partialmethod
from math import ceil, inf, nextafter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from xml.etree import ElementTree

import pytest

from flask_hybridsession.core import clock
from flask_hybridsession.core.change import Change, Record, decide
from flask_hybridsession.core.errors import Conflict, KeyTaken, SessionGone
from flask_hybridsession.core.provider import Lists, Promise, Provider, Users
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.testing import FakeClock, ProviderSuite, create, fake_clock, load

__all__ = ["fake_clock"]


class Judged(ProviderSuite):
    """A suite that is run by a pytest of its own, below: its name does not begin with Test."""

    rounds = 20
    #: The test that is run of it, if not all are.
    only = ""

    class Provider(MemoryProvider):
        pass

    def make_provider(self) -> Provider:
        return self.Provider()


class SoundMemory(Judged):
    """Keeps every promise that is made by the threads of one process."""


class Filed(Provider, Lists, Users):
    """A memory provider in a file, read and written as a whole by each call."""

    sound = True

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._path.open("r+b") as file:
            flock(file, LOCK_EX)
            data = file.read()
            if not self.sound:
                flock(file, LOCK_UN)
                breather()
                flock(file, LOCK_EX)
            inside = MemoryProvider()
            if data:
                vars(inside).update(pickle.loads(data))
            result = getattr(inside, name)(*args, **kwargs)
            state = vars(inside)
            file.seek(0)
            file.truncate()
            file.write(pickle.dumps(state))
        return result

    load: Any = partialmethod(_call, "load")
    commit: Any = partialmethod(_call, "commit")
    rename: Any = partialmethod(_call, "rename")
    destroy: Any = partialmethod(_call, "destroy")
    next_deadline: Any = partialmethod(_call, "next_deadline")
    purge: Any = partialmethod(_call, "purge")
    keys: Any = partialmethod(_call, "keys")
    count: Any = partialmethod(_call, "count")
    keys_of: Any = partialmethod(_call, "keys_of")


class SoundFiled(Judged):
    """Keeps every promise, for processes too."""

    shared = "process"
    rounds = 10

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return Filed(self.path / "store")


class SoundSpawned(SoundFiled):
    start_method = "spawn"
    only = "::test_counting_is_exact"


class SoundAsDeclared(Judged):
    """Breaks promises that it does not make."""

    class Provider(MemoryProvider):
        promises = frozenset({Promise.DESTROY_ONCE, Promise.ATOMIC_RENAME})

        def commit(self, key: str, change: Change, now: float) -> None:
            commit_late(self, key, change, now)

        def next_deadline(self) -> float | None:
            return None

        def purge(self, now: float, limit: int) -> list[Record]:
            return []


class Broken(Judged):
    #: The tests that must fail.
    fails: ClassVar[tuple[str, ...]]
    #: What may fail beside them; None: whatever follows from it.
    also: ClassVar[tuple[str, ...] | None] = ()


def breather() -> None:
    """Between two steps that should have been one: let the others in."""
    time.sleep(1e-5)


def commit_late(provider: MemoryProvider, key: str, change: Change, now: float) -> None:
    """Look, think, then write without looking again."""
    current = provider._records.get(provider._resolve(key, now))
    record = decide(current, key, change, now)
    if change.create:
        provider._vacate(key)
    breather()
    provider._store(record)


class BrokenByRevival(Broken):
    fails = (
        "test_commit_after_destroy",
        "test_commit_after_expiry_leaves_no_trace",
        "test_commit_after_rename",
        "test_nothing_comes_back",
        "test_unknown_is_not_found",
    )
    also = None

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            create = change.create or not self.exists(key, now)
            super().commit(key, change._replace(create=create), now)


class BrokenByLateRevival(Broken):
    fails = (
        "test_changes_at_once_all_survive",
        "test_counting_is_exact",
        "test_nothing_comes_back",
        "test_one_of_many_creates",
    )
    also = ("test_purge_or_touch_at_once",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            commit_late(self, key, change, now)


class BrokenByOverwriting(Broken):
    fails = (
        "test_changes_at_once_all_survive",
        "test_changes_in_a_row_all_survive",
        "test_commit_changes_what_it_names",
        "test_touch",
    )
    also = None

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            super().commit(key, change._replace(wipe=True), now)


class BrokenByHalves(Broken):
    fails = ("test_nobody_reads_half_a_commit",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            first, *others = change.puts or [None]
            if others and not change.create:
                half = change._replace(puts={first: change.puts[first]})
                super().commit(key, half, now)
                breather()
                change = Change(puts=change.puts)
            super().commit(key, change, now)


class BrokenByIgnoringExpects(Broken):
    fails = (
        "test_a_commit_through_an_alias",
        "test_conflict",
        "test_conflict_carries_what_another_wrote",
    )
    also = ("test_counting_is_exact",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            super().commit(key, change._replace(expects={}), now)


class BrokenByTakingAbsentForEmpty(Broken):
    fails = ("test_conflict",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            record = self.load(key, now)
            expects = {
                name: None if record and not record.values.get(name) else value
                for name, value in change.expects.items()
                if value or not record or record.values.get(name)
            }
            super().commit(key, change._replace(expects=expects), now)


class BrokenByAStaleConflict(Broken):
    fails = (
        "test_conflict",
        "test_conflict_carries_what_another_wrote",
    )
    also = ("test_counting_is_exact",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            try:
                super().commit(key, change, now)
            except Conflict as conflict:
                values = {**conflict.current.values, **change.expects}
                raise Conflict(conflict.current._replace(values=values)) from None


class BrokenByServingTheExpired(Broken):
    fails = (
        "test_alive_until_the_very_edge",
        "test_expired_is_not_found",
        "test_touch",
    )
    also = None

    class Provider(MemoryProvider):
        def load(self, key: str, now: float) -> Record | None:
            return self._records.get(self._resolve(key, now))


class BrokenAtTheEdge(Broken):
    fails = (
        "test_alive_until_the_very_edge",
        "test_an_alias_ends_on_time",
        "test_expired_is_not_found",
        "test_there_and_back",
    )
    also = None

    class Provider(MemoryProvider):
        def _alive(self, key: str, now: float) -> Record | None:
            return super()._alive(key, nextafter(now, -inf))


class BrokenByWholeSeconds(Broken):
    fails = (
        "test_alive_until_the_very_edge",
        "test_next_deadline",
        "test_purge_knows_the_latest_deadline",
    )
    also = None

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            if change.deadline not in (None, inf):
                change = change._replace(deadline=float(ceil(change.deadline)))
            super().commit(key, change, now)


class BrokenByDestroyingAlways(Broken):
    fails = (
        "test_commit_after_destroy",
        "test_destroy_is_true_for_one_of_many",
        "test_destroy_is_true_once",
        "test_destroy_takes_aliases_along",
        "test_destroy_through_an_alias",
        "test_destroy_through_an_ended_alias",
        "test_purge_or_destroy",
        "test_purge_or_destroy_at_once",
        "test_purge_returns_what_is_due",
        "test_unknown_is_not_found",
    )

    class Provider(MemoryProvider):
        def destroy(self, key: str) -> bool:
            super().destroy(key)
            return True


class BrokenByDestroyingTwice(Broken):
    fails = ("test_destroy_is_true_for_one_of_many",)
    also = ("test_purge_or_destroy_at_once",)

    class Provider(MemoryProvider):
        def destroy(self, key: str) -> bool:
            there = self._resolve(key, clock.now()) in self._records
            breather()
            super().destroy(key)
            return there


class BrokenByPurgingTwice(Broken):
    fails = ("test_each_is_purged_for_one_of_many",)
    also = (
        "test_purge_or_destroy_at_once",
        "test_purge_or_touch_at_once",
    )

    class Provider(MemoryProvider):
        def purge(self, now: float, limit: int) -> list[Record]:
            due = [record for record in list(self._records.values()) if record.deadline <= now]
            breather()
            for record in due[:limit]:
                self.destroy(record.key)
            return due[:limit]


class BrokenByPurgingWithoutLimit(Broken):
    fails = ("test_purge_honours_its_limit", "test_purge_is_not_held_up_by_aliases")
    also = (
        "test_each_is_purged_for_one_of_many",
        "test_purge_or_destroy_at_once",
    )

    class Provider(MemoryProvider):
        def purge(self, now: float, limit: int) -> list[Record]:
            return super().purge(now, sys.maxsize)


class BrokenByForgettingTouches(Broken):
    """Its timers keep the deadline that a session had first."""

    fails = (
        "test_next_deadline",
        "test_purge_knows_the_latest_deadline",
    )
    also = ("test_purge_or_touch_at_once",)

    class Provider(MemoryProvider):
        def _store(self, record: Record) -> None:
            known = record.key in self._records
            super()._store(record)
            if known:
                self._due.set(record.key, self._first[record.key])
            else:
                self._first = {**getattr(self, "_first", {}), record.key: record.deadline}


class BrokenByCopyingToRename(Broken):
    fails = ("test_rename_happens_at_one_moment",)
    also = (
        "test_aliases_follow_further_renames",
        "test_nothing_comes_back",
        "test_one_of_many_renames",
    )

    class Provider(MemoryProvider):
        def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
            record = self.load(old, now)
            if record is None:
                raise SessionGone(old)
            if self.exists(new, now):
                raise KeyTaken(new)
            self._vacate(new)
            self._store(record._replace(key=new))
            breather()
            super().destroy(record.key)
            if alias_until is not None and now < alias_until:
                self._add_alias(record.key, new, alias_until)


class BrokenByRemovingToRename(Broken):
    fails = ("test_rename_happens_at_one_moment",)
    also = ("test_nothing_comes_back",)

    class Provider(MemoryProvider):
        def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
            super().rename(old, new, now, alias_until)
            record = self._records.pop(new)
            breather()
            self._records[new] = record


class BrokenByLosingAliases(Broken):
    fails = (
        "test_a_commit_through_an_alias",
        "test_an_alias_answers_with_the_new_key",
        "test_create_collides_with_a_live_alias",
        "test_rename_to_a_live_alias",
    )
    also = None

    class Provider(MemoryProvider):
        def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
            super().rename(old, new, now)


class BrokenByAliasesThatStay(Broken):
    fails = (
        "test_aliases_follow_further_renames",
        "test_an_alias_ends_on_time",
        "test_an_alias_that_ends_at_once",
        "test_create_over_an_ended_alias",
        "test_destroy_through_an_ended_alias",
        "test_there_and_back",
    )

    class Provider(MemoryProvider):
        def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
            super().rename(old, new, now, alias_until and inf)


class BrokenByAliasesForReadingOnly(Broken):
    fails = (
        "test_a_commit_through_an_alias",
        "test_aliases_follow_further_renames",
        "test_an_alias_ends_on_time",
        "test_users_of_renamed_sessions",
    )

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            if key in self._targets and not change.create:
                raise SessionGone(key)
            super().commit(key, change, now)


class BrokenBySharingDicts(Broken):
    fails = ("test_what_was_passed_may_change",)
    also = ("test_nothing_comes_back",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            super().commit(key, change, now)
            record = self._records[self._resolve(key, now)]
            if change.create or change.wipe:
                self._records[record.key] = record._replace(values=change.puts)


class BrokenByMutatingRecords(Broken):
    fails = ("test_what_was_loaded_stays",)
    also = None

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            before = self.load(key, now)
            super().commit(key, change, now)
            after = self.load(key, now)
            if before is not None and after is not None:
                assert isinstance(before.values, dict)
                before.values.clear()
                before.values.update(after.values)


class BrokenByNormalizing(Broken):
    fails = ("test_names_of_any_text",)

    class Provider(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            puts = {unicodedata.normalize("NFC", name): change.puts[name] for name in change.puts}
            super().commit(key, change._replace(puts=puts), now)


class BrokenByBuffers(Broken):
    fails = ("test_values_of_any_size",)

    class Provider(MemoryProvider):
        def load(self, key: str, now: float) -> Record | None:
            record = super().load(key, now)
            if record is None:
                return None
            views: Any = {name: memoryview(value) for name, value in record.values.items()}
            return record._replace(values=views)


class BrokenByForgettingUsers(Broken):
    fails = (
        "test_logins_at_once",
        "test_users_come_and_go",
        "test_users_of_expired_sessions",
        "test_users_of_purged_sessions",
        "test_users_of_renamed_sessions",
    )

    class Provider(MemoryProvider):
        def _forget_user(self, record: Record) -> None:
            pass

        def keys_of(self, user: str, now: float) -> list[str]:
            return list(self._users.get(user, ()))


class BrokenByPrefixesOfUsers(Broken):
    fails = (
        "test_users_are_told_apart",
        "test_users_of_expired_sessions",
    )

    class Provider(MemoryProvider):
        def keys_of(self, user: str, now: float) -> list[str]:
            records = list(self._records.values())
            return [record.key for record in records if (record.user or "?").startswith(user)]


class BrokenByListingAliases(Broken):
    fails = ("test_lists",)

    class Provider(MemoryProvider):
        def keys(self, now: float) -> list[str]:
            return [*super().keys(now), *self._targets]


class BrokenByLocksThatDoNot(Broken):
    fails = (
        "test_a_lock_is_held_by_one",
        "test_a_lock_is_lost_with_its_lease",
        "test_a_lock_is_waited_for_no_longer_than_asked",
    )

    class Provider(MemoryProvider):
        def lock(self, key: str, timeout: float, lease: float) -> Any:
            return nullcontext()

        def commit(self, key: str, change: Change, now: float) -> None:
            breather()
            super().commit(key, change, now)


class BrokenByEndlessLeases(Broken):
    fails = ("test_a_lock_is_lost_with_its_lease",)

    class Provider(MemoryProvider):
        def lock(self, key: str, timeout: float, lease: float) -> Any:
            return super().lock(key, min(timeout, 1), inf)


class BrokenByReleasingForOthers(Broken):
    fails = ("test_a_lock_is_lost_with_its_lease",)
    also = ("test_a_lock_is_held_by_one",)

    class Provider(MemoryProvider):
        @contextmanager
        def lock(self, key: str, timeout: float, lease: float) -> Iterator[None]:
            with super().lock(key, timeout, lease):
                yield
            self._locks.pop(key, None)


class BrokenByTalking(Broken):
    fails = ("test_reports_names_and_numbers",)

    class Provider(MemoryProvider):
        def stats(self) -> dict[str, int | float | str]:
            return {"last": next(iter(self._records))}


class BrokenByClosingTwice(Broken):
    fails = ("test_close_twice",)

    class Provider(MemoryProvider):
        def close(self) -> None:
            self.__dict__.pop("_records")


class BrokenByCopies(Broken):
    """Says that processes share it, and gives each a copy."""

    fails = (
        "test_changes_at_once_all_survive[processes]",
        "test_everyone_reads_what_was_committed[processes]",
        "test_logins_at_once[processes]",
        "test_a_lock_is_held_by_one[processes]",
        "test_what_a_killed_process_stored_is_there",
    )
    also = None
    shared = "process"
    rounds = 5
    patience = 1.0

    def open_again(self) -> Provider:
        return self._handle


class BrokenBetweenWorkers(Broken, SoundFiled):
    """Reads, lets go, then writes."""

    fails = (
        "test_changes_at_once_all_survive[processes]",
        "test_counting_is_exact[processes]",
        "test_destroy_is_true_for_one_of_many[processes]",
        "test_each_is_purged_for_one_of_many[processes]",
        "test_nothing_comes_back[processes-destroy]",
        "test_one_of_many_creates[processes]",
    )
    also = None
    patience = 1.0

    class Unsound(Filed):
        sound = False

    def open_again(self) -> Provider:
        return self.Unsound(self.path / "store")


class Verdict(NamedTuple):
    """What became of one test; ``why`` it was skipped."""

    kind: str
    why: str


Verdicts = dict[str, dict[str, Verdict]]
BROKEN = Broken.__subclasses__()
AMONG_PROCESSES = [SoundFiled, SoundSpawned, BrokenByCopies, BrokenBetweenWorkers]
AMONG_THREADS = [
    suite for suite in (SoundMemory, SoundAsDeclared, *BROKEN) if suite not in AMONG_PROCESSES
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Each suite's tests and what became of them."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [
        start_pytest(folder / "threads.xml", AMONG_THREADS, "not process"),
        start_pytest(folder / "processes.xml", AMONG_PROCESSES, "process or reports"),
    ]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == pytest.ExitCode.TESTS_FAILED, output
    return {**read_report(folder / "threads.xml"), **read_report(folder / "processes.xml")}


def start_pytest(report: Path, suites: list[type[Judged]], which: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-o", "python_classes=Broken Sound", f"--junitxml={report}", "-k", which]
    command += [f"{__file__}::{suite.__name__}{suite.only}" for suite in suites]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )


def read_report(report: Path) -> Verdicts:
    found: Verdicts = {}
    for case in ElementTree.parse(report).iter("testcase"):
        suite = case.get("classname", "").rpartition(".")[2]
        verdict = Verdict("passed", "")
        for element in case:
            verdict = Verdict(element.tag, element.get("message", ""))
        # A test that fails and whose fixture then fails too has two entries.
        found.setdefault(suite, {}).setdefault(case.get("name", ""), verdict)
    return found


def failed(verdicts: Verdicts, suite: type[Judged]) -> set[str]:
    return {name for name, verdict in verdicts[suite.__name__].items() if verdict.kind == "failure"}


def base(names: set[str]) -> set[str]:
    """The names of the tests without their parameters."""
    return {name.partition("[")[0] for name in names}


@pytest.mark.parametrize("suite", BROKEN, ids=lambda suite: suite.__name__)
def test_the_suite_fails_a_provider_that_is(verdicts: Verdicts, suite: type[Broken]) -> None:
    names = failed(verdicts, suite)
    assert set(suite.fails) <= names | base(names)
    if suite.also is not None:
        assert base(names) <= {*suite.fails, *suite.also}


@pytest.mark.parametrize("suite", [SoundMemory, SoundFiled, SoundSpawned, SoundAsDeclared])
def test_the_suite_passes_what_is_sound(verdicts: Verdicts, suite: type[Judged]) -> None:
    kinds = {name: verdict.kind for name, verdict in verdicts[suite.__name__].items()}
    assert set(kinds.values()) <= {"passed", "skipped"}
    assert "passed" in kinds.values()


def test_what_is_not_promised_is_not_asked(verdicts: Verdicts) -> None:
    tests = verdicts["SoundAsDeclared"]
    assert tests["test_counting_is_exact[threads]"] == Verdict(
        "skipped", "declared: does not promise: conditional commits"
    )
    assert tests["test_next_deadline"].why == "declared: does not promise: expiry is announced"
    assert tests["test_conflict_carries_what_another_wrote"].kind == "passed"
    assert verdicts["SoundFiled"]["test_reports_names_and_numbers"] == Verdict(
        "skipped", "declared: has not the ability Reports"
    )


def test_what_is_promised_is_asked(verdicts: Verdicts) -> None:
    skipped = {verdict.why for verdict in verdicts["SoundMemory"].values() if verdict.why}
    assert skipped == {"declared: shared by threads only"}


def test_fake_clock() -> None:
    real = clock.now
    with FakeClock(1000.0) as outer:
        assert clock.now() == 1000.0
        outer.advance(0.5)
        assert clock.now() == 1000.5
        outer.advance(-100)
        with FakeClock() as inner:
            assert inner.now() == 900.5
            inner.set(7.0)
            assert clock.now() == 7.0
        assert clock.now() == 900.5
    assert clock.now is real
    assert abs(FakeClock().now() - time.time()) < 60


def test_fake_clock_is_taken_out_on_an_error() -> None:
    real = clock.now
    with pytest.raises(ZeroDivisionError), FakeClock():
        raise ZeroDivisionError
    assert clock.now is real


def test_fake_clock_as_a_fixture(fake_clock: FakeClock) -> None:
    provider = MemoryProvider()
    key = create(provider, clock.now(), deadline=clock.now() + 60)
    fake_clock.advance(59)
    assert load(provider, key, clock.now()).key == key
    fake_clock.advance(1)
    assert provider.load(key, clock.now()) is None
