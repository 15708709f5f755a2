from __future__ import annotations

from math import inf

import pytest

from flask_hybridsession.core.change import Change, Record, apply, decide
from flask_hybridsession.core.errors import Conflict, KeyTaken, SessionGone

KEY = "f" * 64
RECORD = Record(KEY, {"a": b"1", "b": b"2"}, 10.0, 11.0, 100.0, "s:bob", "phone")


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (Change(), {"a": b"1", "b": b"2"}),
        (Change(puts={"a": b"3"}), {"a": b"3", "b": b"2"}),
        (Change(puts={"c": b""}), {"a": b"1", "b": b"2", "c": b""}),
        (Change(drops=["a"]), {"b": b"2"}),
        (Change(drops=["missing"]), {"a": b"1", "b": b"2"}),
        (Change(drops=["a"], puts={"a": b"3"}), {"a": b"3", "b": b"2"}),
        (Change(wipe=True), {}),
        (Change(wipe=True, puts={"c": b"3"}), {"c": b"3"}),
        (Change(wipe=True, drops=["c"], puts={"c": b"3"}), {"c": b"3"}),
    ],
)
def test_values(change: Change, values: dict[str, bytes]) -> None:
    before = dict(RECORD.values)
    assert apply(RECORD, change) == RECORD._replace(values=values)
    assert RECORD.values == before, "a record is never changed in place"


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (Change(), {}),
        (Change(deadline=inf), {"deadline": inf}),
        (Change(deadline=0.0), {"deadline": 0.0}),
        (Change(touched=0.0), {"touched": 0.0}),
        (Change(user=None), {"user": None}),
        (Change(user="i:1"), {"user": "i:1"}),
        (Change(device=None), {"device": None}),
        (Change(device="tv"), {"device": "tv"}),
    ],
)
def test_the_rest(change: Change, fields: dict[str, object]) -> None:
    assert apply(RECORD, change) == RECORD._replace(**fields)  # type: ignore[arg-type]


def test_a_create() -> None:
    change = Change(puts={"a": b"1"}, create=True, deadline=50.0, touched=40.0, user="i:1")
    made = Record(KEY, {"a": b"1"}, 40.0, 40.0, 50.0, "i:1")
    assert decide(None, KEY, change, 40.0) == made
    assert decide(RECORD, KEY, change, 100.0) == made._replace(created=100.0)
    with pytest.raises(KeyTaken):
        decide(RECORD, KEY, change, 99.0)


def test_a_change_needs_a_session_alive() -> None:
    assert decide(RECORD, KEY, Change(), 99.9) == RECORD
    for current, now in [(None, 0.0), (RECORD, 100.0), (RECORD, 101.0)]:
        with pytest.raises(SessionGone):
            decide(current, KEY, Change(puts={"a": b"9"}), now)


@pytest.mark.parametrize("expects", [{}, {"a": b"1"}, {"c": None}, {"a": b"1", "c": None}])
def test_what_was_expected(expects: dict[str, bytes | None]) -> None:
    assert decide(RECORD, KEY, Change(expects=expects), 0.0) == RECORD


@pytest.mark.parametrize("expects", [{"a": b"2"}, {"a": None}, {"c": b""}, {"a": b"1", "b": None}])
def test_what_was_not(expects: dict[str, bytes | None]) -> None:
    with pytest.raises(Conflict) as caught:
        decide(RECORD, KEY, Change(expects=expects, wipe=True), 0.0)
    assert caught.value.current is RECORD


def test_nothing_secret_is_shown() -> None:
    secret = Record(KEY, {"name": b"secret"}, 0, 0, 0)
    shown = [repr(secret), repr(Change(puts={"name": b"secret"}, expects={"name": b"secret"}))]
    shown += [str(SessionGone(KEY)), repr(KeyTaken(KEY)), str(Conflict(secret))]
    assert not any("secret" in text or KEY in text for text in shown)
