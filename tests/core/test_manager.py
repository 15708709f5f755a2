"""Sessions of one provider, without Flask: what two requests at once do to each other."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from flask_hybridsession import CodecError, ConfigError, KeyTaken, ProviderUnavailable
from flask_hybridsession.core import clock, ids, saving
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.codec import encode
from flask_hybridsession.core.cookies import Action
from flask_hybridsession.core.manager import MOST_DENIED, Manager
from flask_hybridsession.core.session import Session
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.site import Counting

__all__ = ["fake_clock"]

FLASK = {"PERMANENT_SESSION_LIFETIME": 1000, "SESSION_REFRESH_EACH_REQUEST": True}


class Desk(Manager):
    """A manager on a provider of its own."""

    provider: Counting

    def __init__(self, merges: Any = None, **settings: Any) -> None:
        super().__init__(Counting(), Settings(**settings), dict(FLASK), merges=merges)

    def session(self, sid: str | None = None) -> Session:
        """A request's session, with this sid in its cookie."""
        return Session(self, () if sid is None else (sid,))

    def stored(self, values: dict[str, Any]) -> str:
        """The sid of a session that holds these values."""
        session = self.session()
        session.update(values)
        self.save(session)
        return session.sid

    def values(self, sid: str) -> dict[str, Any]:
        return dict(self.session(sid))


@pytest.fixture
def desk() -> Desk:
    return Desk()


START: dict[str, Any] = {"a": 1, "b": [1], "c": {"x": {1}}, "n": 1, "z": 0}
CHANGES: dict[str, tuple[str, Callable[[Session], Any], Any]] = {
    # what a request does: (the key, how, what is there afterwards; ... for nothing)
    "set": ("new", lambda s: s.update(new=(1, [2])), (1, [2])),
    "overwrite": ("a", lambda s: s.update(a="other"), "other"),
    "delete": ("a", lambda s: s.pop("a"), ...),
    "nested list": ("b", lambda s: s["b"].append(2), [1, 2]),
    "nested set": ("c", lambda s: s["c"]["x"].add(2), {"x": {1, 2}}),
    "increment": ("n", lambda s: s.increment("n"), 2),
    "flash": ("_flashes", lambda s: s.update(_flashes=[("message", "hi")]), [("message", "hi")]),
}


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(CHANGES, 2)])
def test_two_requests_that_change_different_keys(desk: Desk, first: str, second: str) -> None:
    sid = desk.stored(START)
    sessions = [desk.session(sid), desk.session(sid)]
    for session in sessions:
        assert session["z"] == 0
    expected = dict(START)
    keys = set()
    for session, name in zip(sessions, (first, second), strict=True):
        key, change, after = CHANGES[name]
        change(session)
        keys.add(key)
        expected.pop(key, None)
        if after is not ...:
            expected[key] = after
    for session in sessions:
        desk.save(session)
    if len(keys) == 2:
        assert desk.values(sid) == expected
    else:
        last = CHANGES[second]
        assert desk.values(sid).get(last[0], ...) == last[2], "the later one wins"


def test_only_what_changed_is_sent(desk: Desk) -> None:
    sid = desk.stored(START)
    for key, change, after in CHANGES.values():
        session = desk.session(sid)
        dict(session)
        change(session)
        desk.save(session)
        sent = desk.provider.changes[-1]
        assert ([*sent.puts], [*sent.drops], sent.wipe, sent.create) == (
            ([key], [], False, False) if after is not ... else ([], [key], False, False)
        )
        desk.destroy(ids.key_of(sid))
        sid = desk.stored(START)


def test_a_save_of_what_was_only_looked_at_sends_nothing(desk: Desk) -> None:
    session = desk.session(desk.stored(START))
    dict(session)
    desk.provider.new_calls()
    desk.save(session)
    assert desk.provider.new_calls() == []
    assert session._cookie is Action.LEAVE


def test_a_session_is_saved_in_several_steps(desk: Desk) -> None:
    session = desk.session()
    for number in range(5):
        session[f"k{number}"] = [number]
        session.setdefault("all", []).append(number)
        session.commit()
    desk.save(session)
    assert desk.provider.new_calls() == ["commit"] * 5
    assert desk.values(session.sid) == {"all": [0, 1, 2, 3, 4]} | {f"k{n}": [n] for n in range(5)}


def test_a_merge_is_worked_out_again_from_where_it_began() -> None:
    calls: list[tuple[Any, Any, Any]] = []

    def add(base: Any, mine: Any, theirs: Any) -> Any:
        calls.append((base, mine, theirs))
        return theirs + (mine - base)

    desk = Desk({"n": add})
    sid = desk.stored({"n": 10})
    left = [100, 100, 100]

    def faster() -> None:
        if left:
            overtake(desk, sid, left.pop())
            desk.provider.before_commit = faster

    session = desk.session(sid)
    session["n"] += 1
    desk.provider.before_commit = faster
    desk.save(session)
    assert desk.values(sid) == {"n": 311}
    assert calls == [(10, 11, 110), (10, 11, 210), (10, 11, 310)]


def overtake(desk: Desk, sid: str, by: int) -> None:
    """Another request adds to ``n``."""
    change = Change(puts={"n": encode(desk.values(sid)["n"] + by)})
    desk.provider.commit(ids.key_of(sid), change, clock.now())


def test_a_merge_that_makes_what_cannot_be_stored() -> None:
    desk = Desk({"n": lambda base, mine, theirs: object()})
    sid = desk.stored({"n": 1})
    session, other = desk.session(sid), desk.session(sid)
    session["n"], other["n"] = 2, 3
    desk.save(other)
    with pytest.raises(CodecError, match=r"session\['n'\]"):
        desk.save(session)
    assert desk.values(sid) == {"n": 3}


def test_a_merge_that_is_never_fast_enough_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "MOST_TRIES", 5)
    desk = Desk({"n": lambda base, mine, theirs: theirs + 1})
    sid = desk.stored({"n": 1})

    def faster() -> None:
        overtake(desk, sid, 1)
        desk.provider.before_commit = faster

    session = desk.session(sid)
    session["n"] = 7
    desk.provider.before_commit = faster
    with pytest.raises(ProviderUnavailable, match="too many requests"):
        desk.save(session)


def test_a_sid_that_is_always_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sid = desk.stored({"a": 1})
    monkeypatch.setattr(ids, "mint", lambda length: sid)
    session = desk.session()
    session["a"] = 2
    with pytest.raises(KeyTaken):
        desk.save(session)
    monkeypatch.undo()
    assert desk.values(sid) == {"a": 1}


@pytest.mark.parametrize("presented", [["x"], ["A" * 43], ["A" * 44, "x", "B" * 43], [""]])
def test_open_adopts_nothing(desk: Desk, presented: list[str]) -> None:
    assert desk.open(presented) is None
    shaped = [sid for sid in presented if ids.is_sid(sid)]
    assert desk.provider.new_calls() == ["load"] * len(shaped)
    session = Session(desk, presented)
    session["a"] = 1
    desk.save(session)
    assert session.sid not in presented


def test_the_first_sid_that_has_a_session_counts(desk: Desk) -> None:
    one, two = desk.stored({"a": 1}), desk.stored({"a": 2})
    for presented, found in [([one, two], one), ([two, one], two), (["A" * 43, two, one], two)]:
        opened = desk.open(presented)
        assert opened is not None
        assert opened[0] == found


def test_users_that_nobody_can_load(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="user_loader"):
        desk.load_user("bob")


def test_purge_takes_many(desk: Desk, fake_clock: FakeClock) -> None:
    for number in range(450):
        change = Change(create=True, deadline=clock.now() + 10)
        desk.provider.commit(f"{number:064x}", change, clock.now())
    assert desk.purge() == 0
    fake_clock.advance(10)
    assert desk.sweep(clock.now(), 7) == 7
    assert desk.purge() == 443


@pytest.mark.parametrize("lifetime", [None, 0, 500, -1])
@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("idle", [None, 200.0])
def test_the_stored_deadline_is_that_of_the_terms(
    fake_clock: FakeClock, lifetime: float | None, permanent: bool, idle: float | None
) -> None:
    fake_clock.set(1_800_000_000.0)
    desk = Desk(idle_timeout=idle)
    session = desk.session()
    session["a"] = 1
    if permanent:
        session.permanent = True
    if lifetime is not None:
        session.lifetime = lifetime
    desk.save(session)
    sid = session.sid
    for _ in range(6):
        fake_clock.advance(60)
        now = clock.now()
        session = desk.session(sid)
        session["n"] = now
        desk.save(session)
        record = desk.provider.load(ids.key_of(sid), now)
        assert record is not None
        slides = idle or (1000.0 if lifetime in (None, -1) else float("inf"))
        absolute = 1_800_000_500.0 if lifetime == 500 else float("inf")
        assert record.deadline == min(absolute, now + slides)


def test_a_deadline_follows_a_clock_that_is_set_back(fake_clock: FakeClock) -> None:
    desk = Desk(idle_timeout=100.0)
    sid = desk.stored({"a": 1})
    fake_clock.advance(-3600)
    session = desk.session(sid)
    session["a"] = 2
    desk.save(session)
    fake_clock.advance(3600)
    assert desk.values(sid) in ({"a": 2}, {})
    fake_clock.advance(100)
    assert desk.values(sid) == {}


# -- what was to end while the provider could not answer -----------------------------------------


def denied(desk: Desk, sid: str) -> None:
    """A destroy that fails; by now, the provider answers again."""
    desk.provider.down = {"destroy"}
    with pytest.raises(ProviderUnavailable):
        desk.session(sid).destroy()
    desk.provider.down = set()


def test_a_denied_session_ends_before_it_is_loaded(desk: Desk) -> None:
    sid = desk.stored({"a": 1})
    denied(desk, sid)
    desk.provider.new_calls()
    assert desk.values(sid) == {}
    assert desk.provider.new_calls() == ["destroy", "load"]
    assert desk.values(sid) == {}
    assert desk.provider.new_calls() == ["load"], "it is confirmed, once"


def test_an_alias_leads_to_no_denied_session(desk: Desk) -> None:
    old, sid = desk.mint(), desk.mint()
    now = clock.now()
    desk.provider.commit(ids.key_of(old), Change({"a": encode(1)}, create=True), now)
    desk.provider.rename(ids.key_of(old), ids.key_of(sid), now, now + 100)
    denied(desk, sid)
    desk.provider.down = {"destroy"}
    with pytest.raises(ProviderUnavailable):
        desk.values(old)
    desk.provider.down = set()
    assert desk.values(old) == {}


def test_who_shows_an_alias_is_nobody(desk: Desk) -> None:
    old, sid = desk.mint(), desk.mint()
    now = clock.now()
    desk.provider.commit(ids.key_of(old), Change({"a": encode(1)}, create=True), now)
    desk.provider.rename(ids.key_of(old), ids.key_of(sid), now, now + 100)
    assert desk.values(old) == {}
    assert desk.values(sid) == {"a": 1}


def test_who_shows_an_alias_ends_its_session(desk: Desk) -> None:
    old, sid = desk.mint(), desk.mint()
    now = clock.now()
    desk.provider.commit(ids.key_of(old), Change({"a": encode(1)}, create=True), now)
    desk.provider.rename(ids.key_of(old), ids.key_of(sid), now, now + 100)
    desk.provider.down = {"load"}
    with pytest.raises(ProviderUnavailable):
        desk.session(old).logout()
    desk.provider.down = set()
    assert desk.values(old) == {}
    assert desk.values(sid) == {}


@pytest.mark.parametrize("how", ["write", "regenerate", "commit"])
def test_a_request_under_way_does_not_save_what_is_denied(desk: Desk, how: str) -> None:
    sid = desk.stored({"a": 1})
    slow = desk.session(sid)
    slow["a"] = 2
    if how == "regenerate":
        slow.regenerate()
    denied(desk, sid)
    desk.provider.down = {"destroy"}
    with pytest.raises(ProviderUnavailable):
        slow.commit() if how == "commit" else desk.save(slow)
    desk.provider.down = set()
    desk.save(slow)
    assert slow._cookie is Action.LEAVE
    assert desk.values(sid) == desk.values(slow.sid) == {}
    assert desk.provider.count(0) == 0


def test_one_at_a_time_does_not_work_on_what_is_denied(desk: Desk) -> None:
    sid = desk.stored({"a": 1})
    session = desk.session(sid)
    assert session["a"] == 1
    denied(desk, sid)
    with session.exclusive():
        assert dict(session) == {}
        session["a"] = 2
    assert desk.values(sid) == {}


def test_an_outage_within_a_block_is_never_an_empty_session() -> None:
    desk = Desk(on_outage="ephemeral")
    sid = desk.stored({"a": 1})
    session = desk.session(sid)
    assert session["a"] == 1
    desk.provider.down = {"load"}
    with pytest.raises(ProviderUnavailable), session.exclusive():
        raise AssertionError("not to be reached")
    assert not session.ephemeral
    assert session["a"] == 1


def test_an_ephemeral_session_is_no_ground_for_a_block() -> None:
    desk = Desk(on_outage="ephemeral")
    session = desk.session(desk.stored({"a": 1}))
    desk.provider.down = {"load"}
    with pytest.raises(ProviderUnavailable), session.exclusive():
        raise AssertionError("not to be reached")
    assert session.ephemeral
    desk.provider.down = set()
    with pytest.raises(ProviderUnavailable), session.exclusive():
        raise AssertionError("not to be reached")


def test_the_sweep_destroys_what_is_denied(desk: Desk) -> None:
    sids = [desk.stored({"a": number}) for number in range(5)]
    for sid in sids[:4]:
        denied(desk, sid)
    desk.provider.down = {"destroy"}
    assert desk.sweep(clock.now(), 10) == 0
    assert len(desk._denied) == 4
    desk.provider.down = set()
    assert desk.purge() == 0, "none of them had expired"
    assert not desk._denied
    assert desk.provider.count(0) == 1
    assert desk.values(sids[4]) == {"a": 4}


def test_of_several_that_are_to_end_all_are_denied(desk: Desk) -> None:
    sids = []
    for number in range(4):
        session = desk.session()
        session["a"] = number
        session.login("ada")
        desk.save(session)
        sids.append(session.sid)
    keep = ids.key_of(sids[1])
    desk.provider.down = {"destroy"}
    with pytest.raises(ProviderUnavailable):
        desk.destroy_user(ids.user_token("ada"), keep)
    for sid in sids:
        if ids.key_of(sid) != keep:
            with pytest.raises(ProviderUnavailable):
                desk.values(sid)
    assert desk.values(sids[1]) == {"a": 1}
    desk.provider.down = set()
    assert [desk.values(sid) for sid in sids] == [{}, {"a": 1}, {}, {}]


def test_what_is_denied_takes_no_more_than_so_much_memory(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    first = desk.stored({"a": 1})
    denied(desk, first)
    desk.provider.down = {"load"}
    for number in range(MOST_DENIED + 10):
        desk.deny(f"{number:064x}")
    assert len(desk._denied) == MOST_DENIED
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    desk.provider.down = set()
    assert desk.values(first) == {}, "the first ones are kept"


def test_only_what_could_be_a_session_is_denied(desk: Desk) -> None:
    desk.deny_presented(["", "junk", "../../etc/passwd", "é" * 43])
    assert not desk._denied
    desk.deny_presented([desk.mint(), desk.mint()])
    assert len(desk._denied) == 2
