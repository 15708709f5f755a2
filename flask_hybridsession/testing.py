"""For whoever writes a provider: a suite that holds it to the contract, and a clock to set by hand.

    from flask_hybridsession.testing import ProviderSuite

    class TestMine(ProviderSuite):
        shared = "process"

        def make_provider(self):
            return MyProvider(self.path / "store")

        def open_again(self):
            return MyProvider(self.path / "store")

Needs pytest. ``pytest.register_assert_rewrite("flask_hybridsession.testing")`` in ``conftest.py``
makes its failures tell more.
"""

# ruff: noqa: S101  (these are tests)

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, nextafter
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import pytest

from .core import clock, ids
from .core.change import Change, Record
from .core.errors import Conflict, KeyTaken, SessionGone
from .core.provider import Lists, Locks, Promise, Provider, Reports, Users

Need: TypeAlias = Promise | type[Lists] | type[Users] | type[Locks] | type[Reports]
Test = TypeVar("Test", bound=Callable[..., None])

__all__ = ["FakeClock", "ProviderSuite", "fake_clock"]

#: Seconds that nobody waits in a test that passes.
LONG = 60.0
#: The digits that a session's keys have in common, for providers whose ``kinship`` asks for that.
KIN = 4


def needs(*what: Need) -> Callable[[Test], Test]:
    """The test is about these promises and abilities: a provider without them is not asked."""

    def mark(test: Test) -> Test:
        test.__dict__["needs"] = what
        return test

    return mark


class ProviderSuite:
    """Every promise of ``core.provider``, as tests. A provider's author makes a subclass.

    A provider is asked for what it declares: a test that needs another promise or ability is
    skipped and says so. What holds for calls one after the other is asked of every provider.
    No test sleeps: each call is told the time.
    """

    #: Who shares one store: the threads of one process, or processes too.
    shared: ClassVar[Literal["thread", "process"]] = "thread"
    #: How the processes of the tests are started. With "spawn" the suite is pickled without its
    #: provider: what ``open_again`` needs must be a picklable attribute.
    start_method: ClassVar[Literal["fork", "spawn"]] = "fork"
    #: How often each race is run.
    rounds: ClassVar[int] = 40
    #: Seconds after which a race, which should take moments, counts as stuck.
    patience: ClassVar[float] = LONG

    #: A folder of this test alone.
    path: Path

    def make_provider(self) -> Provider:
        """A provider with an empty store. Called once in a test."""
        raise NotImplementedError

    def open_again(self) -> Provider:
        """Another handle on the store that ``make_provider`` made; called in any thread.

        Also in a child process, if processes share the store: there it must not use what the
        parent has open. By default threads share the one handle.
        """
        assert self.shared == "thread", "say in open_again how another process opens the store"
        return self._handle

    @pytest.fixture
    def provider(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provider]:
        self.path = tmp_path
        self._handle = self.make_provider()
        try:
            for need in getattr(request.function, "needs", ()):
                self._skip_unless(need)
            yield self._handle
        finally:
            self._handle.close()

    @pytest.fixture
    def again(self, provider: Provider) -> Iterator[Provider]:
        """A second handle on the same store."""
        handle = self.open_again()
        yield handle
        if handle is not provider:
            handle.close()

    @pytest.fixture(params=["threads", "processes"])
    def crew(self, request: pytest.FixtureRequest, provider: Provider) -> Crew:
        """Those who work on the store at once."""
        if request.param == "threads":
            return Crew(self, Thread)
        if self.shared != "process":
            pytest.skip("declared: shared by threads only")
        return Crew(self, Process)

    @pytest.fixture
    def now(self) -> float:
        return clock.now()

    def _skip_unless(self, need: Need) -> None:
        if isinstance(need, Promise):
            if need not in self._handle.promises:
                pytest.skip(f"declared: does not promise: {need.value}")
        elif not isinstance(self._handle, need):
            pytest.skip(f"declared: has not the ability {need.__name__}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    # What is not there

    def test_unknown_is_not_found(self, provider: Provider, now: float) -> None:
        key, other = new_key(), new_key()
        assert_refuses_all(provider, key, now)
        assert provider.destroy(key) is False
        assert provider.load(key, now) is None
        assert provider.load(other, now) is None

    @needs(Lists)
    def test_asking_for_the_unknown_makes_nothing(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Lists)
        assert_refuses_all(provider, new_key(), now)
        assert provider.count(now) == 0
        assert list(provider.keys(now)) == []

    def test_expired_is_not_found(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60)
        assert_refuses_all(provider, key, now + 60)
        assert_refuses_all(provider, key, now + 1e6)

    @pytest.mark.parametrize("offset", [0.0, 0.1, 60.0, 1 / 3])
    def test_alive_until_the_very_edge(self, provider: Provider, now: float, offset: float) -> None:
        deadline = now + 3600 + offset
        key = create(provider, now, deadline=deadline)
        last = nextafter(deadline, -inf)
        assert provider.exists(key, last)
        assert load(provider, key, last).deadline == deadline
        provider.commit(key, Change(puts={"a": b"late"}), last)
        assert provider.load(key, deadline) is None
        assert not provider.exists(key, deadline)
        with pytest.raises(SessionGone):
            provider.commit(key, Change(puts={"a": b"too late"}), deadline)
        with pytest.raises(SessionGone):
            provider.rename(key, new_key(key), deadline)
        assert load(provider, key, last).values == {"a": b"late"}

    def test_without_a_deadline_it_lives_for_ever(self, provider: Provider, now: float) -> None:
        key = create(provider, now)
        assert load(provider, key, now + 1e12).deadline == inf

    # Create

    def test_create(self, provider: Provider, now: float) -> None:
        key = new_key()
        provider.commit(key, Change(create=True), now)
        assert provider.exists(key, now)
        assert plain(load(provider, key, now)) == Record(key, {}, now, now, inf, None, None)

    def test_create_with_everything(self, provider: Provider, now: float) -> None:
        key = new_key()
        change = Change(
            create=True,
            puts={"a": b"1", "b": b"2"},
            deadline=now + 60,
            touched=now - 1,
            user="i:7",
            device="a browser",
        )
        provider.commit(key, change, now)
        expected = Record(key, {"a": b"1", "b": b"2"}, now, now - 1, now + 60, "i:7", "a browser")
        assert plain(load(provider, key, now)) == expected

    def test_create_collides_with_a_live_session(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, user="s:ann", deadline=now + 60)
        before = load(provider, key, now)
        for _ in range(2):
            with pytest.raises(KeyTaken):
                create(provider, now + 1, {"b": b"2"}, key=key, user="s:bob")
        assert plain(load(provider, key, now)) == plain(before)

    def test_create_collides_with_a_live_alias(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        with pytest.raises(KeyTaken):
            create(provider, now, {"b": b"2"}, key=old)
        assert load(provider, old, now).key == new
        assert load(provider, new, now).values == {"a": b"1"}

    def test_create_over_an_ended_alias(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        create(provider, now + 60, {"b": b"2"}, key=old)
        assert load(provider, old, now + 60).values == {"b": b"2"}
        assert provider.destroy(new)
        assert load(provider, old, now + 60).values == {"b": b"2"}

    def test_create_over_an_expired_session(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60, user="s:ann", device="d")
        create(provider, now + 60, {"b": b"2"}, key=key, deadline=now + 999)
        expected = Record(key, {"b": b"2"}, now + 60, now + 60, now + 999, None, None)
        assert plain(load(provider, key, now + 60)) == expected

    def test_create_after_destroy(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60, user="s:ann", device="d")
        assert provider.destroy(key)
        create(provider, now + 1, key=key)
        assert plain(load(provider, key, now + 1)) == Record(key, {}, now + 1, now + 1, inf)

    @needs(Promise.CONDITIONAL)
    def test_one_of_many_creates(self, provider: Provider, now: float, crew: Crew) -> None:
        keys = [new_key() for _ in range(self.rounds)]
        winners = crew.run(create_each, keys, now)
        assert sorted(key for won in winners for key in won) == sorted(keys)
        for index, won in enumerate(winners):
            for key in won:
                assert load(provider, key, now).values == {"by": b"%d" % index}

    # Commit

    def test_commit_changes_what_it_names(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1", "b": b"2", "c": b"3"}, deadline=now + 60)
        provider.commit(key, Change(puts={"b": b"two", "d": b"4"}, drops=("c",)), now + 1)
        expected = Record(key, {"a": b"1", "b": b"two", "d": b"4"}, now, now, now + 60)
        assert plain(load(provider, key, now + 1)) == expected

    def test_wipe_then_drops_then_puts(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1", "b": b"2"})
        change = Change(wipe=True, drops={"a", "c"}, puts={"b": b"two", "c": b"3"})
        provider.commit(key, change, now)
        assert load(provider, key, now).values == {"b": b"two", "c": b"3"}
        provider.commit(key, Change(drops=["b", "never there"], puts={"b": b"kept"}), now)
        assert load(provider, key, now).values == {"b": b"kept", "c": b"3"}
        provider.commit(key, Change(wipe=True), now)
        assert load(provider, key, now).values == {}

    def test_empty_commit(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60, user="s:ann")
        before = load(provider, key, now)
        provider.commit(key, Change(), now + 1)
        assert plain(load(provider, key, now)) == plain(before)

    def test_touch(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60, user="s:ann", device="d")
        for deadline in (now + 90, now + 30, inf, now + 45):
            provider.commit(key, Change(deadline=deadline), now + 1)
            expected = Record(key, {"a": b"1"}, now, now, deadline, "s:ann", "d")
            assert plain(load(provider, key, now + 1)) == expected
        provider.commit(key, Change(touched=now + 2), now + 3)
        assert load(provider, key, now + 3).touched == now + 2
        assert provider.load(key, now + 45) is None

    def test_a_commit_can_end_a_session(self, provider: Provider, now: float) -> None:
        key = create(provider, now, deadline=now + 60)
        provider.commit(key, Change(deadline=now), now)
        assert_refuses_all(provider, key, now)

    def test_user_and_device(self, provider: Provider, now: float) -> None:
        def who() -> tuple[str | None, str | None]:
            record = load(provider, key, now)
            return record.user, record.device

        key = create(provider, now)
        assert who() == (None, None)
        provider.commit(key, Change(user="s:ann"), now)
        assert who() == ("s:ann", None)
        provider.commit(key, Change(device="d"), now)
        assert who() == ("s:ann", "d")
        provider.commit(key, Change(puts={"a": b"1"}, wipe=True), now)
        assert who() == ("s:ann", "d")
        provider.commit(key, Change(user="s:", device=""), now)
        assert who() == ("s:", "")
        provider.commit(key, Change(user=None), now)
        assert who() == (None, "")
        provider.commit(key, Change(device=None), now)
        assert who() == (None, None)

    def test_commit_after_destroy(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"})
        assert provider.destroy(key)
        assert_refuses_all(provider, key, now)
        assert provider.load(key, now) is None
        assert provider.destroy(key) is False

    def test_commit_after_rename(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now)
        assert_refuses_all(provider, old, now)
        assert load(provider, new, now).values == {"a": b"1"}

    @needs(Promise.PURGE)
    def test_commit_after_expiry_leaves_no_trace(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60, user="s:ann")
        before = load(provider, key, now)
        assert_refuses_all(provider, key, now + 60)
        assert list(map(plain, provider.purge(now + 60, 10))) == [plain(before)]

    def test_changes_in_a_row_all_survive(
        self, provider: Provider, again: Provider, now: float
    ) -> None:
        key = create(provider, now, {"a": b"1", "b": b"2"})
        assert load(provider, key, now) == load(again, key, now)
        provider.commit(key, Change(puts={"a": b"mine"}), now)
        again.commit(key, Change(puts={"b": b"theirs"}), now)
        provider.commit(key, Change(puts={"c": b"3"}), now)
        expected = {"a": b"mine", "b": b"theirs", "c": b"3"}
        assert load(provider, key, now).values == expected
        assert load(again, key, now).values == expected

    @needs(Promise.CONDITIONAL)
    def test_changes_at_once_all_survive(self, provider: Provider, now: float, crew: Crew) -> None:
        key = create(provider, now, {"here": b"before"})
        crew.run(put_own_names, key, now, self.rounds)
        names = {f"{index}.{n}" for index in range(crew.size) for n in range(self.rounds)}
        assert set(load(provider, key, now).values) == {"here", *names}

    def test_sessions_do_not_meet(self, provider: Provider, now: float, crew: Crew) -> None:
        keys = crew.run(keep_own_session, now, self.rounds)
        for index, key in enumerate(keys):
            assert load(provider, key, now).values == {"n": b"%d.%d" % (index, self.rounds - 1)}

    def test_everyone_reads_what_was_committed(
        self, provider: Provider, now: float, crew: Crew
    ) -> None:
        crew.run(read_what_another_wrote, create(provider, now), now, self.rounds)

    def test_nobody_reads_half_a_commit(self, provider: Provider, now: float, crew: Crew) -> None:
        key = create(provider, now, {"a": b"", "b": b""})
        crew.run(write_or_read_pairs, key, now, self.rounds * 5)

    # Expects

    def test_expects_what_is_there(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1", "b": b""})
        change = Change(puts={"a": b"2"}, expects={"a": b"1", "b": b"", "c": None})
        provider.commit(key, change, now)
        assert load(provider, key, now).values == {"a": b"2", "b": b""}

    @pytest.mark.parametrize(
        "expects",
        [
            {"a": b"0"},
            {"a": None},
            {"a": b""},
            {"empty": None},
            {"empty": b"0"},
            {"missing": b""},
            {"a": b"1", "empty": b"", "missing": b"1"},
        ],
        ids=str,
    )
    def test_conflict(
        self, provider: Provider, now: float, expects: Mapping[str, bytes | None]
    ) -> None:
        key = create(provider, now, {"a": b"1", "empty": b""}, deadline=now + 60, user="s:ann")
        before = load(provider, key, now)
        change = Change(
            puts={"a": b"2"},
            drops=("empty",),
            wipe=True,
            expects=expects,
            deadline=now + 99,
            touched=now + 1,
            user=None,
            device="d",
        )
        with pytest.raises(Conflict) as conflict:
            provider.commit(key, change, now)
        assert plain(conflict.value.current) == plain(before)
        assert plain(load(provider, key, now)) == plain(before)

    def test_gone_comes_before_conflict(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"}, deadline=now + 60)
        change = Change(expects={"a": b"0"})
        with pytest.raises(SessionGone):
            provider.commit(key, change, now + 60)
        assert provider.destroy(key) in (True, False)
        with pytest.raises(SessionGone):
            provider.commit(key, change, now)

    def test_conflict_carries_what_another_wrote(
        self, provider: Provider, again: Provider, now: float
    ) -> None:
        key = create(provider, now, {"n": b"1"})
        again.commit(key, Change(puts={"n": b"2", "b": b"new"}), now)
        with pytest.raises(Conflict) as conflict:
            provider.commit(key, Change(puts={"n": b"2"}, expects={"n": b"1"}), now)
        assert conflict.value.current.values == {"n": b"2", "b": b"new"}

    @needs(Promise.CONDITIONAL)
    def test_counting_is_exact(self, provider: Provider, now: float, crew: Crew) -> None:
        key = create(provider, now, {"n": b"0"})
        crew.run(count_up, key, now, self.rounds)
        assert load(provider, key, now).values == {"n": b"%d" % (crew.size * self.rounds)}

    # Rename

    def test_rename(self, provider: Provider, again: Provider, now: float) -> None:
        old = new_key()
        new = new_key(old)
        create(provider, now, {"a": b"1"}, key=old, deadline=now + 60, user="s:ann", device="d")
        provider.rename(old, new, now + 1)
        expected = Record(new, {"a": b"1"}, now, now, now + 60, "s:ann", "d")
        for handle in (provider, again):
            assert handle.load(old, now + 1) is None
            assert not handle.exists(old, now + 1)
            assert plain(load(handle, new, now + 1)) == expected
        assert provider.load(new, now + 60) is None

    def test_rename_to_a_taken_key(self, provider: Provider, now: float) -> None:
        one = create(provider, now, {"a": b"1"})
        other = create(provider, now, {"b": b"2"}, key=new_key(one))
        for taken in (other, one):
            with pytest.raises(KeyTaken):
                provider.rename(one, taken, now, alias_until=now + 60)
        assert load(provider, one, now).values == {"a": b"1"}
        assert load(provider, other, now).values == {"b": b"2"}

    def test_rename_to_a_live_alias(self, provider: Provider, now: float) -> None:
        one = create(provider, now)
        alias, moved = create(provider, now, {"b": b"2"}, key=new_key(one)), new_key(one)
        provider.rename(alias, moved, now, alias_until=now + 60)
        for key in (one, moved):
            with pytest.raises(KeyTaken):
                provider.rename(key, alias, now)
        assert load(provider, one, now).key == one
        assert load(provider, alias, now).key == moved

    def test_rename_onto_an_expired_session(self, provider: Provider, now: float) -> None:
        expired = create(provider, now, {"b": b"2"}, deadline=now + 60, user="s:bob")
        key = create(provider, now, {"a": b"1"}, key=new_key(expired))
        provider.rename(key, expired, now + 60)
        expected = Record(expired, {"a": b"1"}, now, now, inf)
        assert plain(load(provider, expired, now + 60)) == expected

    def test_the_old_key_is_free_after_a_rename(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now)
        create(provider, now, {"b": b"2"}, key=old)
        assert load(provider, old, now).values == {"b": b"2"}
        assert provider.destroy(old)
        assert load(provider, new, now).values == {"a": b"1"}

    @needs(Promise.ATOMIC_RENAME)
    @pytest.mark.parametrize("aliased", [False, True], ids=["plain", "aliased"])
    def test_rename_happens_at_one_moment(
        self, provider: Provider, now: float, crew: Crew, aliased: bool
    ) -> None:
        keys = [create(provider, now, {"a": b"1"}) for _ in range(self.rounds)]
        pairs = [(key, new_key(key)) for key in keys]
        crew.run(watch_renames, pairs, now, now + 60 if aliased else None)

    @needs(Promise.ATOMIC_RENAME)
    def test_one_of_many_renames(self, provider: Provider, now: float, crew: Crew) -> None:
        keys = [create(provider, now, {"n": b"%d" % n}) for n in range(self.rounds)]
        wins = crew.run(rename_each, keys, now)
        for n, key in enumerate(keys):
            (new,) = [won[key] for won in wins if key in won]
            assert load(provider, new, now).values == {"n": b"%d" % n}
            assert provider.load(key, now) is None
            losers = {renamed(key, index) for index in range(crew.size)} - {new}
            assert not any(provider.exists(loser, now) for loser in losers)

    # Aliases

    def test_an_alias_answers_with_the_new_key(
        self, provider: Provider, again: Provider, now: float
    ) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        for handle in (provider, again):
            assert handle.exists(old, now)
            assert load(handle, old, now) == load(handle, new, now)
            assert load(handle, old, now).key == new

    def test_a_commit_through_an_alias(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"})
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        provider.commit(old, Change(puts={"a": b"2"}, expects={"a": b"1"}), now)
        assert load(provider, new, now).values == {"a": b"2"}
        with pytest.raises(Conflict) as conflict:
            provider.commit(old, Change(puts={"a": b"3"}, expects={"a": b"1"}), now)
        assert conflict.value.current.key == new
        assert load(provider, new, now).values == {"a": b"2"}

    def test_an_alias_ends_on_time(self, provider: Provider, now: float) -> None:
        old, end = create(provider, now, {"a": b"1"}), now + 60.3
        new = new_key(old)
        provider.rename(old, new, now, alias_until=end)
        last = nextafter(end, -inf)
        assert load(provider, old, last).key == new
        provider.commit(old, Change(puts={"a": b"2"}), last)
        assert_refuses_all(provider, old, end)
        assert load(provider, new, end).values == {"a": b"2"}

    def test_an_alias_that_ends_at_once(self, provider: Provider, now: float) -> None:
        old = create(provider, now)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now)
        assert_refuses_all(provider, old, now)
        assert provider.exists(new, now)

    def test_an_alias_for_ever(self, provider: Provider, now: float) -> None:
        old = create(provider, now)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=inf)
        assert load(provider, old, now + 1e12).key == new

    def test_an_alias_lives_no_longer_than_its_session(
        self, provider: Provider, now: float
    ) -> None:
        old = create(provider, now, deadline=now + 30)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        assert_refuses_all(provider, old, now + 30)
        create(provider, now + 30, {"b": b"2"}, key=old)
        assert load(provider, old, now + 30).values == {"b": b"2"}

    def test_aliases_follow_further_renames(self, provider: Provider, now: float) -> None:
        a = create(provider, now, {"n": b"1"})
        b, c, d = new_key(a), new_key(a), new_key(a)
        provider.rename(a, b, now, alias_until=now + 60)
        provider.rename(b, c, now, alias_until=now + 30)
        provider.rename(c, d, now, alias_until=now + 90)
        assert [load(provider, key, now).key for key in (a, b, c, d)] == [d] * 4
        provider.commit(a, Change(puts={"n": b"2"}), now)
        assert load(provider, d, now).values == {"n": b"2"}
        at = {now + 30: [a, c, d], now + 60: [c, d], now + 90: [d]}
        for moment, alive in at.items():
            assert [key for key in (a, b, c, d) if provider.exists(key, moment)] == alive

    def test_a_rename_without_an_alias_ends_the_earlier_ones(
        self, provider: Provider, now: float
    ) -> None:
        # The new key alone works afterwards: nobody who knew the session before a login is in it.
        a = create(provider, now)
        b, c = new_key(a), new_key(a)
        provider.rename(a, b, now, alias_until=now + 60)
        provider.rename(b, c, now)
        assert_refuses_all(provider, a, now)
        assert_refuses_all(provider, b, now)
        assert provider.exists(c, now)

    def test_a_rename_through_an_alias(self, provider: Provider, now: float) -> None:
        a = create(provider, now, {"n": b"1"})
        b, c = new_key(a), new_key(a)
        provider.rename(a, b, now, alias_until=now + 60)
        provider.rename(a, c, now)
        assert_refuses_all(provider, a, now)
        assert_refuses_all(provider, b, now)
        assert load(provider, c, now).values == {"n": b"1"}

    def test_there_and_back(self, provider: Provider, now: float) -> None:
        a = create(provider, now, {"n": b"1"})
        b = new_key(a)
        provider.rename(a, b, now, alias_until=now + 30)
        provider.rename(b, a, now + 30, alias_until=now + 60)
        assert load(provider, a, now + 30).key == a
        assert load(provider, b, now + 30).key == a
        assert load(provider, a, now + 60).key == a
        assert_refuses_all(provider, b, now + 60)

    def test_destroy_takes_aliases_along(self, provider: Provider, now: float) -> None:
        a = create(provider, now)
        b, c = new_key(a), new_key(a)
        provider.rename(a, b, now, alias_until=now + 60)
        provider.rename(b, c, now, alias_until=now + 60)
        assert provider.destroy(c) is True
        for key in (a, b, c):
            assert_refuses_all(provider, key, now)
            assert provider.destroy(key) is False
            create(provider, now, {"b": b"2"}, key=key)
        assert load(provider, a, now).key == a

    def test_destroy_through_an_alias(self, provider: Provider, now: float) -> None:
        old = create(provider, now)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 600)
        assert provider.destroy(old) is True
        assert provider.destroy(old) is False
        assert provider.destroy(new) is False
        assert_refuses_all(provider, old, now)
        assert_refuses_all(provider, new, now)

    def test_destroy_through_an_ended_alias(self, provider: Provider, now: float) -> None:
        old = create(provider, now - 100)
        new = new_key(old)
        provider.rename(old, new, now - 100, alias_until=now - 50)
        assert provider.destroy(old) is False
        assert provider.exists(new, now)

    def test_an_alias_never_opens_a_later_session(self, provider: Provider, now: float) -> None:
        old = create(provider, now, deadline=now + 30)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        create(provider, now + 30, {"secret": b"1"}, key=new)
        assert_refuses_all(provider, old, now + 30)
        assert load(provider, new, now + 30).values == {"secret": b"1"}

    # Destroy

    def test_destroy_is_true_once(self, provider: Provider, again: Provider, now: float) -> None:
        key = create(provider, now)
        other = create(provider, now)
        assert provider.destroy(key) is True
        assert again.destroy(key) is False
        assert provider.destroy(key) is False
        assert again.load(key, now) is None
        assert again.exists(other, now)

    @needs(Promise.DESTROY_ONCE)
    def test_destroy_is_true_for_one_of_many(
        self, provider: Provider, now: float, crew: Crew
    ) -> None:
        keys = [create(provider, now) for _ in range(self.rounds)]
        destroyed = [key for some in crew.run(destroy_each, keys) for key in some]
        assert sorted(destroyed) == sorted(keys)
        assert not any(provider.exists(key, now) for key in keys)

    @needs(Promise.FINAL)
    @pytest.mark.parametrize("end", ["destroy", "rename", "expire"])
    def test_nothing_comes_back(self, provider: Provider, now: float, crew: Crew, end: str) -> None:
        keys = [create(provider, now, deadline=now + 60) for _ in range(self.rounds)]
        acknowledged = crew.run(commit_until_gone, keys, now, end)
        for n, key in enumerate(keys):
            assert provider.load(key, now) is None
            # Which commits a rename took along is a matter of conditional commits.
            if end == "rename" and Promise.CONDITIONAL in provider.promises:
                values = load(provider, renamed(key), now).values
                for index, last in enumerate(acknowledged):
                    assert values.get(str(index)) == last[n]

    # Deadlines and purge

    @needs(Promise.PURGE)
    def test_next_deadline(self, provider: Provider, now: float) -> None:
        assert provider.next_deadline() is None
        for_ever = create(provider, now)
        assert provider.next_deadline() is None
        late = create(provider, now, deadline=now + 60.125)
        assert provider.next_deadline() == now + 60.125
        early = create(provider, now, deadline=now + 30.7)
        assert provider.next_deadline() == now + 30.7
        provider.commit(early, Change(deadline=now + 90.1), now)
        assert provider.next_deadline() == now + 60.125
        provider.commit(for_ever, Change(deadline=now + 10.3), now)
        assert provider.next_deadline() == now + 10.3
        provider.commit(for_ever, Change(deadline=inf), now)
        assert provider.next_deadline() == now + 60.125
        moved = new_key(late)
        provider.rename(late, moved, now)
        assert provider.next_deadline() == now + 60.125
        assert provider.destroy(moved)
        assert provider.next_deadline() == now + 90.1
        assert [record.key for record in provider.purge(now + 91, 10)] == [early]
        assert provider.next_deadline() is None

    @needs(Promise.PURGE)
    def test_next_deadline_is_what_is_due_too(self, provider: Provider, now: float) -> None:
        key = create(provider, now - 100, deadline=now - 50)
        assert provider.load(key, now) is None
        assert provider.next_deadline() == now - 50

    @needs(Promise.PURGE)
    def test_purge_returns_what_is_due(
        self, provider: Provider, again: Provider, now: float
    ) -> None:
        keys = [create(provider, now, {"n": b"%d" % n}, deadline=now + n) for n in range(1, 9)]
        create(provider, now)
        provider.commit(keys[0], Change(user="s:ann", device="d", touched=now + 0.5), now)
        whole = [load(provider, key, now) for key in keys]
        assert provider.purge(nextafter(now + 1, -inf), 10) == []
        first = Record(keys[0], {"n": b"1"}, now, now + 0.5, now + 1, "s:ann", "d")
        assert list(map(plain, provider.purge(now + 1, 10))) == [first]
        assert provider.purge(now + 1, 10) == []
        assert again.purge(now + 1, 10) == []
        due = again.purge(now + 5, 10)
        assert in_order(due) == in_order(whole[1:5])
        assert provider.purge(now + 5, 10) == []
        for key in keys[:5]:
            assert_refuses_all(provider, key, now)
            assert provider.destroy(key) is False
        assert all(provider.exists(key, now) for key in keys[5:])

    @needs(Promise.PURGE)
    def test_purge_honours_its_limit(self, provider: Provider, now: float) -> None:
        keys = {create(provider, now, deadline=now + 1 + n % 3) for n in range(25)}
        slices = [provider.purge(now + 10, 10) for _ in range(4)]
        assert [len(part) for part in slices] == [10, 10, 5, 0]
        assert {record.key for part in slices for record in part} == keys

    @needs(Promise.PURGE)
    def test_purge_knows_the_latest_deadline(self, provider: Provider, now: float) -> None:
        key = create(provider, now, deadline=now + 10)
        for deadline in (now + 60, now + 20, now + 40):
            provider.commit(key, Change(deadline=deadline), now)
        assert provider.purge(nextafter(now + 40, -inf), 10) == []
        assert provider.exists(key, now + 39)
        assert [record.key for record in provider.purge(now + 40, 10)] == [key]
        assert provider.purge(now + 99, 10) == []

    @needs(Promise.PURGE)
    def test_purge_knows_the_latest_key(self, provider: Provider, now: float) -> None:
        old = create(provider, now, {"a": b"1"}, deadline=now + 10)
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 99)
        (record,) = provider.purge(now + 10, 10)
        assert plain(record) == Record(new, {"a": b"1"}, now, now, now + 10)
        assert_refuses_all(provider, old, now)
        assert provider.purge(now + 99, 10) == []

    @needs(Promise.PURGE)
    def test_purge_is_not_held_up_by_aliases(self, provider: Provider, now: float) -> None:
        # Fewer than asked for means that no more are due: whoever purges stops there.
        stays = create(provider, now)
        for n in range(9):
            provider.rename(stays, renamed(stays), now, alias_until=now + 1 + n % 2)
            stays = renamed(stays)
        keys = {create(provider, now, deadline=now + 5 + n % 2) for n in range(5)}
        slices = [provider.purge(now + 10, 2) for _ in range(4)]
        assert [len(part) for part in slices] == [2, 2, 1, 0]
        assert {record.key for part in slices for record in part} == keys
        assert provider.exists(stays, now + 10)

    @needs(Promise.PURGE)
    def test_purge_spares_what_took_the_place(self, provider: Provider, now: float) -> None:
        again = new_key()
        moved, alias = new_key(again), new_key(again)
        for key in (again, moved):
            create(provider, now, key=key, deadline=now + 10)
        create(provider, now + 10, key=again)
        provider.rename(create(provider, now, key=new_key(moved)), moved, now + 10)
        create(provider, now, key=alias, deadline=now + 20)
        provider.rename(alias, new_key(alias), now, inf)
        create(provider, now + 20, key=alias)
        for record in provider.purge(now + 99, 10):
            assert record.key not in (again, moved, alias)
        assert all(provider.exists(key, now + 99) for key in (again, moved, alias))

    @needs(Promise.PURGE)
    def test_purge_or_destroy(self, provider: Provider, now: float) -> None:
        # A destroy is not told the time, so either may claim a session that is due: one does.
        key = create(provider, now - 100, deadline=now - 50)
        destroyed = provider.destroy(key)
        assert len(provider.purge(now, 10)) == (0 if destroyed else 1)
        assert provider.destroy(key) is False

    @needs(Promise.PURGE)
    def test_each_is_purged_for_one_of_many(
        self, provider: Provider, now: float, crew: Crew
    ) -> None:
        keys = [create(provider, now, deadline=now + n % 7) for n in range(self.rounds * 5)]
        stays = create(provider, now, deadline=now + 7)
        purged = [key for some in crew.run(purge_all, now + 6) for key in some]
        assert sorted(purged) == sorted(keys)
        assert provider.exists(stays, now)

    @needs(Promise.PURGE, Promise.DESTROY_ONCE)
    def test_purge_or_destroy_at_once(self, provider: Provider, now: float, crew: Crew) -> None:
        keys = [create(provider, now - 9, deadline=now - 1) for _ in range(self.rounds)]
        claimed = [key for some in crew.run(purge_or_destroy, keys, now) for key in some]
        assert sorted(claimed) == sorted(keys)

    @needs(Promise.PURGE, Promise.FINAL, Promise.CONDITIONAL)
    def test_purge_or_touch_at_once(self, provider: Provider, now: float, crew: Crew) -> None:
        keys = [new_key() for _ in range(self.rounds)]
        claimed = [key for some in crew.run(purge_or_touch, keys, now, size=2) for key in some]
        assert sorted(claimed) == sorted(keys)

    def test_purge_takes_nothing_that_lives(self, provider: Provider, now: float) -> None:
        key = create(provider, now, deadline=now + 60)
        for_ever = create(provider, now)
        assert provider.purge(now, 10) == []
        assert provider.exists(key, now)
        assert provider.exists(for_ever, now)
        assert provider.next_deadline() in (now + 60, None)

    # Data

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 1_048_576])
    def test_values_of_any_size(
        self, provider: Provider, again: Provider, now: float, size: int
    ) -> None:
        value = os.urandom(size)
        key = create(provider, now, {"small": b"1"})
        provider.commit(key, Change(puts={"value": value}), now)
        found = load(again, key, now).values
        assert type(found["value"]) is bytes
        assert found == {"small": b"1", "value": value}
        provider.commit(key, Change(puts={"small": b"2"}, expects={"value": value}), now)
        assert load(again, key, now).values == {"small": b"2", "value": value}

    def test_values_of_any_bytes(self, provider: Provider, now: float) -> None:
        values = {f"{n}": bytes([n]) for n in range(256)}
        key = create(provider, now, values)
        assert load(provider, key, now).values == values

    def test_a_thousand_names(self, provider: Provider, again: Provider, now: float) -> None:
        values = {f"name {n}": b"value %d" % n for n in range(1000)}
        key = create(provider, now, values)
        assert load(again, key, now).values == values
        provider.commit(key, Change(puts={"name 500": b"other"}), now)
        assert load(again, key, now).values == {**values, "name 500": b"other"}
        provider.commit(key, Change(drops=values.keys()), now)
        assert load(again, key, now).values == {}

    def test_names_of_any_text(self, provider: Provider, again: Provider, now: float) -> None:
        values = {name: f"<{name}>".encode() for name in NAMES}
        assert len(values) == len(NAMES)
        key = create(provider, now, values)
        assert load(again, key, now).values == values
        left = dict(values)
        for name in NAMES:
            provider.commit(key, Change(drops=[name], expects={name: left.pop(name)}), now)
            assert load(again, key, now).values == left

    def test_users_and_devices_of_any_text(self, provider: Provider, now: float) -> None:
        for text in NAMES:
            record = load(provider, create(provider, now, user=text, device=f"{text}!"), now)
            assert (record.user, record.device) == (text, f"{text}!")

    def test_what_was_loaded_stays(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1", "b": b"2"}, deadline=now + 60)
        record = load(provider, key, now)
        expected = Record(key, {"a": b"1", "b": b"2"}, now, now, now + 60)
        change = Change(puts={"a": b"x"}, drops=["b"], deadline=now + 9, user="s:ann")
        provider.commit(key, change, now)
        provider.rename(key, new_key(key), now)
        assert plain(record) == expected

    def test_what_was_passed_may_change(self, provider: Provider, now: float) -> None:
        for wipe in (False, True):
            puts, drops = {"a": b"1"}, ["b"]
            key = create(provider, now, puts)
            puts["a"] = b"2"
            assert load(provider, key, now).values == {"a": b"1"}
            provider.commit(key, Change(puts=puts, drops=drops, wipe=wipe), now)
            puts["a"] = b"3"
            puts["c"] = b"4"
            drops.append("a")
            assert load(provider, key, now).values == {"a": b"2"}

    def test_many_sessions(self, provider: Provider, again: Provider, now: float) -> None:
        keys = [create(provider, now, {"n": b"%d" % n}, deadline=now + 60) for n in range(500)]
        for n, key in enumerate(keys):
            assert load(again, key, now).values == {"n": b"%d" % n}
        for key in keys[::2]:
            assert again.destroy(key)
        assert [provider.exists(key, now) for key in keys] == [False, True] * 250

    # Abilities

    @needs(Lists)
    def test_lists(self, provider: Provider, again: Provider, now: float) -> None:
        assert isinstance(provider, Lists)
        assert isinstance(again, Lists)
        assert provider.count(now) == 0
        kept, destroyed, old = create(provider, now), create(provider, now), create(provider, now)
        due, new = create(provider, now, deadline=now + 60), new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        provider.destroy(destroyed)
        assert sorted(provider.keys(now)) == sorted([kept, due, new])
        assert sorted(again.keys(now + 60)) == sorted([kept, new])
        assert provider.count(now) == 3
        provider.purge(now + 60, 10)
        assert again.count(now + 60) in (2, 3)

    @needs(Lists, Promise.PURGE)
    def test_what_is_purged_is_not_counted(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Lists)
        for n in range(5):
            create(provider, now, deadline=now + n)
        assert len(provider.purge(now + 2, 10)) == 3
        assert provider.count(now + 2) == 2

    @needs(Lists)
    def test_lists_while_sessions_come_and_go(
        self, provider: Provider, now: float, crew: Crew
    ) -> None:
        stay = {create(provider, now) for _ in range(10)}
        crew.run(list_or_change, stay, now, self.rounds)
        assert isinstance(provider, Lists)
        assert set(provider.keys(now)) == stay

    @needs(Users)
    def test_users(self, provider: Provider, again: Provider, now: float) -> None:
        assert isinstance(provider, Users)
        assert isinstance(again, Users)
        ann = [create(provider, now, user="s:ann") for _ in range(3)]
        bob = create(provider, now, user="s:bob")
        create(provider, now)
        assert sorted(provider.keys_of("s:ann", now)) == sorted(ann)
        assert sorted(again.keys_of("s:ann", now)) == sorted(ann)
        assert list(provider.keys_of("s:bob", now)) == [bob]
        assert list(provider.keys_of("s:cy", now)) == []

    @needs(Users)
    def test_users_come_and_go(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Users)

        def found() -> list[int]:
            return [len(list(provider.keys_of(user, now))) for user in ("s:ann", "s:bob")]

        key = create(provider, now)
        assert found() == [0, 0]
        provider.commit(key, Change(user="s:ann"), now)
        assert found() == [1, 0]
        provider.commit(key, Change(user="s:ann", puts={"a": b"1"}, wipe=True), now)
        assert found() == [1, 0]
        provider.commit(key, Change(user="s:bob"), now)
        assert found() == [0, 1]
        provider.commit(key, Change(user=None), now)
        assert found() == [0, 0]
        provider.commit(key, Change(user="s:ann"), now)
        assert provider.destroy(key)
        assert found() == [0, 0]
        create(provider, now, key=key)
        assert found() == [0, 0]

    @needs(Users)
    def test_users_of_renamed_sessions(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Users)
        old = create(provider, now, user="s:ann")
        new = new_key(old)
        provider.rename(old, new, now, alias_until=now + 60)
        assert list(provider.keys_of("s:ann", now)) == [new]
        provider.commit(old, Change(user="s:bob"), now)
        assert list(provider.keys_of("s:ann", now)) == []
        assert list(provider.keys_of("s:bob", now)) == [new]

    @needs(Users)
    def test_users_of_expired_sessions(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Users)
        key = create(provider, now, user="s:ann", deadline=now + 60)
        assert list(provider.keys_of("s:ann", nextafter(now + 60, -inf))) == [key]
        assert list(provider.keys_of("s:ann", now + 60)) == []
        create(provider, now + 60, key=key, user="s:bob")
        assert list(provider.keys_of("s:ann", now + 60)) == []
        assert list(provider.keys_of("s:bob", now + 60)) == [key]

    @needs(Users, Promise.PURGE)
    def test_users_of_purged_sessions(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Users)
        key = create(provider, now, user="s:ann", deadline=now + 60)
        stays = create(provider, now, user="s:ann")
        assert [record.key for record in provider.purge(now + 60, 10)] == [key]
        assert list(provider.keys_of("s:ann", now)) == [stays]

    @needs(Users)
    def test_users_are_told_apart(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Users)
        tokens = ["s:1", "i:1", "s:", "s:a", "s:ab", "s:a\0", "s:a\0b", "s:A", "s:é", "s:e\u0301"]
        tokens += ["s:" + "x" * 700, "s:" + "x" * 700 + "y", "s:*", "s:%", "s:_", "s:[a]", *NAMES]
        keys = {token: create(provider, now, user=token) for token in tokens}
        for token, key in keys.items():
            assert list(provider.keys_of(token, now)) == [key]

    @needs(Users)
    def test_logins_at_once(self, provider: Provider, now: float, crew: Crew) -> None:
        assert isinstance(provider, Users)
        keys = [key for some in crew.run(log_in, now, self.rounds) for key in some]
        assert sorted(provider.keys_of("s:ann", now)) == sorted(keys)
        assert list(provider.keys_of("s:bob", now)) == []

    @needs(Locks)
    def test_a_lock_is_held_by_one(self, provider: Provider, now: float, crew: Crew) -> None:
        key = create(provider, now, {"n": b"0"})
        crew.run(count_up_locked, key, now, self.rounds)
        assert load(provider, key, now).values == {"n": b"%d" % (crew.size * self.rounds)}

    @needs(Locks)
    def test_a_lock_is_waited_for_no_longer_than_asked(self, crew: Crew) -> None:
        crew.run(hold_or_give_up, new_key(), new_key(), size=2)

    @needs(Locks)
    def test_a_lock_is_lost_with_its_lease(self, crew: Crew) -> None:
        crew.run(outstay_or_take_over, new_key(), size=2)

    @needs(Locks)
    def test_a_lock_is_released_on_an_error(self, provider: Provider, again: Provider) -> None:
        assert isinstance(provider, Locks)
        assert isinstance(again, Locks)
        key = new_key()
        with pytest.raises(ZeroDivisionError), provider.lock(key, 0, LONG):
            raise ZeroDivisionError
        with again.lock(key, 0, LONG):
            pass

    @needs(Locks)
    def test_a_lock_is_lost_with_its_process(self, provider: Provider) -> None:
        assert isinstance(provider, Locks)
        if self.shared != "process":
            pytest.skip("declared: shared by threads only")
        key = new_key()
        Crew(self, Process).die(die_locked, key)
        with provider.lock(key, LONG, LONG):
            pass

    @needs(Reports)
    def test_reports_names_and_numbers(self, provider: Provider, now: float) -> None:
        assert isinstance(provider, Reports)
        key = create(provider, now, {"a name": b"a value"}, user="s:a user", device="a device")
        stats = provider.stats()
        assert all(type(value) in (int, float, str) for value in stats.values())
        for secret in (key, "a name", "a value", "a user", "a device"):
            assert secret not in repr(stats)

    # Close

    def test_close_twice(self, provider: Provider, now: float) -> None:
        create(provider, now)
        provider.close()
        provider.close()

    def test_closing_one_handle_leaves_the_others(self, provider: Provider, now: float) -> None:
        key = create(provider, now, {"a": b"1"})
        other = self.open_again()
        assert load(other, key, now).values == {"a": b"1"}
        if other is not provider:
            other.close()
        assert load(provider, key, now).values == {"a": b"1"}

    def test_what_is_stored_outlives_its_handles(self, provider: Provider, now: float) -> None:
        if self.shared != "process":
            pytest.skip("declared: shared by threads only")
        values = {"a": b"1"}
        key = create(provider, now, values, deadline=now + 60, user="s:ann", device="d")
        gone, old = create(provider, now), create(provider, now)
        new = new_key(old)
        provider.destroy(gone)
        provider.rename(old, new, now, alias_until=now + 30)
        provider.close()
        again = self.open_again()
        try:
            expected = Record(key, values, now, now, now + 60, "s:ann", "d")
            assert plain(load(again, key, now)) == expected
            assert again.load(key, now + 60) is None
            assert_refuses_all(again, gone, now)
            assert load(again, old, nextafter(now + 30, -inf)).key == new
            assert_refuses_all(again, old, now + 30)
        finally:
            again.close()

    def test_what_a_killed_process_stored_is_there(self, provider: Provider, now: float) -> None:
        if self.shared != "process":
            pytest.skip("declared: shared by threads only")
        keys = [new_key() for _ in range(self.rounds)]
        Crew(self, Process).die(create_and_die, keys, now)
        assert [load(provider, key, now).values for key in keys] == [{"a": b"1"}] * len(keys)


NAMES = [
    "",
    "\0",
    "\0\0",
    "a\0b",
    "a",
    "A",
    "a ",
    " a",
    "\n",
    "\x7f",
    "\ufeff",
    "\uffff",
    "\xe9",
    "e\u0301",
    "\u212b",
    "\xc5",
    "A\u030a",
    "\ufb01",
    "fi",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u202eabc",
    "\u0130",
    "\u0131",
    "\xdf",
    "ss",
    "\u2060",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0010ffff",
    "%s {} $x ' \" \\ ; -- *?[]",
    "../../etc/passwd",
    "_flashes",
    "n" * 5000,
]


def new_key(beside: str = "") -> str:
    """The key of a session that nobody has; one that the session ``beside`` may be renamed to."""
    return beside[:KIN] + ids.key_of(ids.mint())[len(beside[:KIN]) :]


def renamed(key: str, index: int = 0) -> str:
    """The key that a test gives to the session of ``key``; known to all who are told ``key``."""
    return key[:KIN] + ids.key_of(f"{key} {index}")[KIN:]


def create(
    provider: Provider,
    now: float,
    values: Mapping[str, bytes] | None = None,
    *,
    key: str | None = None,
    deadline: float | None = None,
    user: str | None = None,
    device: str | None = None,
) -> str:
    """Make a session and return its key."""
    key = key or new_key()
    change = Change(create=True, puts=values or {}, deadline=deadline, user=user, device=device)
    provider.commit(key, change, now)
    return key


def load(provider: Provider, key: str, now: float) -> Record:
    """What the provider holds under the key: there must be something."""
    record = provider.load(key, now)
    assert record is not None, "a live session was not found"
    return record


def plain(record: Record) -> Record:
    """The record with its values as a dict, so that its repr and comparison are plain."""
    return record._replace(values=dict(record.values))


def in_order(records: list[Record]) -> list[Record]:
    return sorted(map(plain, records), key=lambda record: record.key)


def assert_refuses_all(provider: Provider, key: str, now: float) -> None:
    """The key is "not found", whatever is asked, and stays so."""
    new = new_key(key)
    assert provider.load(key, now) is None
    assert provider.exists(key, now) is False
    for change in (
        Change(),
        Change(puts={"a": b"back"}),
        Change(deadline=inf),
        Change(deadline=now + 9, touched=now),
        Change(wipe=True, user="s:back"),
        Change(expects={"a": None}),
    ):
        with pytest.raises(SessionGone):
            provider.commit(key, change, now)
    for alias_until in (None, now + 60):
        with pytest.raises(SessionGone):
            provider.rename(key, new, now, alias_until)
    assert provider.load(new, now) is None
    assert provider.load(key, now) is None


# The work of threads and processes. Each gets a handle of its own, who it is, and the arguments.


def create_each(provider: Provider, me: Member, keys: list[str], now: float) -> list[str]:
    won = []
    for key in keys:
        me.meet()
        try:
            create(provider, now, {"by": b"%d" % me.index}, key=key)
            won.append(key)
        except KeyTaken:
            assert provider.exists(key, now)
    return won


def put_own_names(provider: Provider, me: Member, key: str, now: float, rounds: int) -> None:
    me.meet()
    for n in range(rounds):
        name = f"{me.index}.{n}"
        provider.commit(key, Change(puts={name: b"x", f"passing {name}": b"x"}), now)
        provider.commit(key, Change(drops=[f"passing {name}"]), now)


def keep_own_session(provider: Provider, me: Member, now: float, rounds: int) -> str:
    key = create(provider, now)
    me.meet()
    for n in range(rounds):
        value = b"%d.%d" % (me.index, n)
        provider.commit(key, Change(puts={"n": value}), now)
        assert load(provider, key, now).values == {"n": value}
    return key


def read_what_another_wrote(
    provider: Provider, me: Member, key: str, now: float, rounds: int
) -> None:
    for n in range(rounds):
        if n % me.size == me.index:
            provider.commit(key, Change(puts={"n": b"%d" % n}, deadline=now + n + 1), now)
        me.meet()
        record = load(provider, key, now)
        assert record.values == {"n": b"%d" % n}
        assert record.deadline == now + n + 1
        me.meet()


def write_or_read_pairs(provider: Provider, me: Member, key: str, now: float, rounds: int) -> None:
    me.meet()
    for n in range(rounds):
        if me.index % 2:
            value = b"%d.%d " % (me.index, n) * (1 + n % 500)
            provider.commit(key, Change(puts={"a": value, "b": value}, wipe=n % 3 == 0), now)
        else:
            values = load(provider, key, now).values
            assert values.keys() == {"a", "b"}
            assert values["a"] == values["b"]


def count_up(provider: Provider, me: Member, key: str, now: float, rounds: int) -> None:
    me.meet()
    for _ in range(rounds):
        before = load(provider, key, now).values["n"]
        while True:
            assert me.has_time(), "no progress"
            change = Change(puts={"n": b"%d" % (int(before) + 1)}, expects={"n": before})
            try:
                provider.commit(key, change, now)
                break
            except Conflict as conflict:
                after = conflict.current.values["n"]
                assert after != before, "Conflict carries what was expected"
                before = after


def watch_renames(
    provider: Provider,
    me: Member,
    pairs: list[tuple[str, str]],
    now: float,
    alias_until: float | None,
) -> None:
    for old, new in pairs:
        me.meet()
        if me.index == 0:
            provider.rename(old, new, now, alias_until)
            continue
        there = False
        while not there:
            before = provider.load(old, now)
            there = provider.load(new, now) is not None
            assert there or before is not None, "neither key worked"
            if alias_until is not None:
                assert before is not None, "the alias did not work at once"
            assert me.has_time(), "the new key never worked"
        after = provider.load(old, now)
        if alias_until is None:
            assert after is None, "both keys worked"
        else:
            assert after is not None, "the alias ended early"
            assert after.key == new, "both keys had a session"


def rename_each(provider: Provider, me: Member, keys: list[str], now: float) -> dict[str, str]:
    won = {}
    for key in keys:
        new = renamed(key, me.index)
        me.meet()
        try:
            provider.rename(key, new, now)
            won[key] = new
        except SessionGone:
            pass
    return won


def destroy_each(provider: Provider, me: Member, keys: list[str]) -> list[str]:
    won = []
    for key in keys:
        me.meet()
        if provider.destroy(key):
            won.append(key)
    return won


def commit_until_gone(
    provider: Provider, me: Member, keys: list[str], now: float, end: str
) -> list[bytes | None]:
    """The first ends each session; the others commit until they are refused.

    Returns, for each session, the last value that was accepted.
    """
    accepted: list[bytes | None] = []
    for key in keys:
        me.meet()
        last = None
        if me.index == 0:
            while not load(provider, key, now).values:
                assert me.has_time(), "nobody committed"
            end_session(provider, key, now, end)
            create(provider, now, key=mark_of_end(key))
        else:
            last = commit_on_and_on(provider, me, key, now)
        me.meet()
        assert provider.load(key, now) is None
        accepted.append(last)
    return accepted


def end_session(provider: Provider, key: str, now: float, end: str) -> None:
    if end == "destroy":
        assert provider.destroy(key)
    elif end == "rename":
        provider.rename(key, renamed(key), now)
    else:
        provider.commit(key, Change(deadline=now), now)


def commit_on_and_on(provider: Provider, me: Member, key: str, now: float) -> bytes | None:
    last = None
    while me.has_time():
        ended = provider.exists(mark_of_end(key), now)
        value = b"%f" % time.monotonic()
        try:
            provider.commit(key, Change(puts={str(me.index): value}), now)
        except SessionGone:
            return last
        assert not ended, "a commit was accepted after the end"
        last = value
    raise AssertionError("nobody ended the session")


def mark_of_end(key: str) -> str:
    """The key of a session that is made as soon as the one of ``key`` has ended."""
    return ids.key_of(f"{key} has ended")


def purge_all(provider: Provider, me: Member, now: float) -> list[str]:
    claimed: list[str] = []
    me.meet()
    while due := provider.purge(now, 3):
        assert len(due) <= 3
        claimed += [record.key for record in due]
    return claimed


def purge_or_destroy(provider: Provider, me: Member, keys: list[str], now: float) -> list[str]:
    if me.index % 2:
        return purge_all(provider, me, now)
    me.meet()
    return [key for key in keys if provider.destroy(key)]


def purge_or_touch(provider: Provider, me: Member, keys: list[str], now: float) -> list[str]:
    claimed: list[str] = []
    for key in keys:
        if me.index == 0:
            create(provider, now - 9, key=key, deadline=now)
        me.meet()
        if me.index == 0:
            claimed += [record.key for record in provider.purge(now, 10)]
        else:
            try:
                provider.commit(key, Change(deadline=now + 60), now - 1)
                claimed.append(key)
            except SessionGone:
                pass
        me.meet()
    return claimed


def list_or_change(provider: Provider, me: Member, stay: set[str], now: float, rounds: int) -> None:
    assert isinstance(provider, Lists)
    me.meet()
    for _ in range(rounds):
        if me.index % 2:
            key = create(provider, now)
            provider.rename(key, renamed(key), now)
            assert provider.destroy(renamed(key))
        else:
            found = list(provider.keys(now))
            assert stay <= set(found)
            assert len(found) == len(set(found))
            assert provider.count(now) >= len(stay)


def log_in(provider: Provider, me: Member, now: float, rounds: int) -> list[str]:
    keys = []
    me.meet()
    for _ in range(rounds):
        key = create(provider, now, user="s:bob")
        provider.commit(key, Change(user="s:ann"), now)
        provider.rename(key, renamed(key), now)
        keys.append(renamed(key))
    return keys


def count_up_locked(provider: Provider, me: Member, key: str, now: float, rounds: int) -> None:
    """Reads and writes with nothing but the lock between it and the others."""
    assert isinstance(provider, Locks)
    me.meet()
    for _ in range(rounds):
        with provider.lock(key, LONG, LONG):
            n = int(load(provider, key, now).values["n"])
            provider.commit(key, Change(puts={"n": b"%d" % (n + 1)}), now)


def hold_or_give_up(provider: Provider, me: Member, key: str, other: str) -> None:
    assert isinstance(provider, Locks)
    if me.index == 0:
        with provider.lock(key, 0, LONG):
            me.meet()
            me.meet()
        me.meet()
        return
    me.meet()
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError), provider.lock(key, timeout, LONG):
            raise AssertionError("two held the lock")
    with provider.lock(other, 0, LONG):
        me.meet()
    me.meet()
    with provider.lock(key, 0, LONG):
        pass


def outstay_or_take_over(provider: Provider, me: Member, key: str) -> None:
    assert isinstance(provider, Locks)
    if me.index == 0:
        with provider.lock(key, 0, 0.1):
            me.meet()
            me.meet()
        # It let go of a lock that was no longer its own: the other still has it.
        with pytest.raises(TimeoutError), provider.lock(key, 0, LONG):
            raise AssertionError("two held the lock")
        me.meet()
    else:
        me.meet()
        with provider.lock(key, LONG, LONG):
            me.meet()
            me.meet()


def die_locked(provider: Provider, me: Member, key: str) -> None:
    assert isinstance(provider, Locks)
    with provider.lock(key, 0, 0.1):
        os._exit(DEAD)


def create_and_die(provider: Provider, me: Member, keys: list[str], now: float) -> None:
    for key in keys:
        create(provider, now, {"a": b"1"}, key=key)
    os._exit(DEAD)


#: The exit code of a process that ends itself without a word.
DEAD = 77
#: Seconds that somebody who is late gets to say so.
GRACE = 5.0

Work = Callable[..., Any]


@dataclass(frozen=True)
class Member:
    """One of those who work at once."""

    index: int
    size: int
    #: Wait here until all are here.
    meet: Callable[[], object]
    #: On the monotonic clock, the moment when all should be done.
    give_up: float

    def has_time(self) -> bool:
        return time.monotonic() < self.give_up


class Thread:
    """Work in a thread: on the suite's own handle, or, for each second one, on another."""

    @staticmethod
    def barrier(suite: ProviderSuite, size: int) -> threading.Barrier:
        return threading.Barrier(size)

    def __init__(self, suite: ProviderSuite, work: Work, index: int, barrier: Any) -> None:
        self._result: tuple[bool, Any] = (False, "the thread is stuck")
        self._suite, self._work, self._index, self._barrier = suite, work, index, barrier
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        handle = self._suite._handle
        open_handle = self._suite.open_again if self._index % 2 else lambda: handle
        self._result = attempt(self._work, open_handle, self._barrier, keep=handle)

    def result(self, give_up: float) -> tuple[bool, Any]:
        self._thread.join(max(0, give_up - time.monotonic()))
        return self._result

    def end(self) -> None:
        """A thread cannot be ended: as a daemon it does not outlive the process."""


class Process:
    """Work in a child process, which opens a handle of its own."""

    @staticmethod
    def barrier(suite: ProviderSuite, size: int) -> Any:
        return multiprocessing.get_context(suite.start_method).Barrier(size)

    def __init__(self, suite: ProviderSuite, work: Work, index: int, barrier: Any) -> None:
        context: Any = multiprocessing.get_context(suite.start_method)
        self._answer, question = context.Pipe(duplex=False)
        self._process = context.Process(
            target=answer, args=(question, suite, work, barrier), daemon=True
        )
        with warnings.catch_warnings():
            # A provider may have a thread of its own when a server forks: so it may here.
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            self._process.start()
        question.close()

    def result(self, give_up: float) -> tuple[bool, Any]:
        if not self._answer.poll(max(0, give_up - time.monotonic())):
            return False, "the process is stuck"
        try:
            ok, value = self._answer.recv()
        except EOFError:
            self._process.join(GRACE)
            return False, f"the process died, exit code {self._process.exitcode}"
        return ok, value

    def end(self) -> None:
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._answer.close()


class Crew:
    """Runs one piece of work at once in several threads or processes."""

    size = 4

    def __init__(self, suite: ProviderSuite, kind: type[Thread] | type[Process]) -> None:
        self._suite = suite
        self._kind = kind

    def run(self, work: Work, *args: Any, size: int = size) -> list[Any]:
        """What each of them returned. ``work(provider, member, *args)`` is picklable."""
        barrier = self._kind.barrier(self._suite, size)
        patience = self._suite.patience
        give_up = time.monotonic() + patience
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        members: list[Thread | Process] = []
        try:
            for index in range(size):
                member = Member(index, size, partial(barrier.wait, patience), give_up)
                job = partial(started, work, member, args)
                members.append(self._kind(self._suite, job, index, barrier))
            results = [member.result(give_up + GRACE) for member in members]
        finally:
            for ending in members:
                ending.end()
            sys.setswitchinterval(interval)
        failures = [text for ok, text in results if not ok]
        # Who only waited in vain for another one tells less than that other one.
        failures.sort(key=lambda text: "BrokenBarrierError" in text)
        assert not failures, failures[0]
        return [value for _, value in results]

    def die(self, work: Work, *args: Any) -> None:
        """Run the work in a process that it ends with the exit code ``DEAD``."""
        give_up = time.monotonic() + self._suite.patience
        job = partial(started, work, Member(0, 1, bool, give_up), args)
        process = Process(self._suite, job, 0, None)
        try:
            _, text = process.result(give_up)
            assert text == f"the process died, exit code {DEAD}", text
        finally:
            process.end()


def started(work: Work, member: Member, args: tuple[Any, ...], provider: Provider) -> Any:
    return work(provider, member, *args)


def answer(pipe: Connection, suite: ProviderSuite, work: Work, barrier: Any) -> None:
    """What a child process does."""
    pipe.send(attempt(work, suite.open_again, barrier))
    pipe.close()


def attempt(
    work: Work, open_handle: Callable[[], Provider], barrier: Any, keep: Provider | None = None
) -> tuple[bool, Any]:
    """True and the result of the work on a handle, or False and the traceback."""
    try:
        provider = open_handle()
        try:
            return True, work(provider)
        finally:
            if provider is not keep:
                provider.close()
    except BaseException:
        if barrier is not None:
            barrier.abort()
        return False, traceback.format_exc()


class FakeClock:
    """Takes the place of ``core.clock.now`` within a ``with`` block; moves when it is told to.

    ``at`` is where it starts, in seconds since the epoch; by default the present moment.
    """

    def __init__(self, at: float | None = None) -> None:
        self._now = clock.now() if at is None else at
        self._replaced: list[Callable[[], float]] = []

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move by so many seconds; back, if they are negative."""
        self._now += seconds

    def set(self, t: float) -> None:
        self._now = t

    def __enter__(self) -> FakeClock:
        self._replaced.append(clock.now)
        clock.now = self.now
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clock.now = self._replaced.pop()


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A ``FakeClock`` for the length of a test. Import it where it is used, or in a conftest."""
    with FakeClock() as fake:
        yield fake
