from __future__ import annotations

import pickle
from math import inf
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_hybridsession.core import codec
from flask_hybridsession.core.blob import MARK, Gone, Trail, pack, unpack
from flask_hybridsession.core.change import Record
from flask_hybridsession.core.errors import CorruptData

KEY = "k" * 64
RECORD = Record(KEY, {"a": b"1", "": b""}, 1.5, 2.5, inf, "s:ann", None)

text = st.text(st.characters(exclude_categories=()), max_size=20)
time = st.floats(allow_nan=False)
records = st.builds(
    Record,
    key=text,
    values=st.dictionaries(text, st.binary(max_size=50), max_size=5),
    created=time,
    touched=time,
    deadline=time,
    user=st.none() | text,
    device=st.none() | text,
)
marks = st.builds(Gone, key=text, to=st.none() | text, until=time, created=time)


@given(records | marks)
def test_there_and_back(entry: Record | Gone) -> None:
    found = unpack(pack(entry), entry.key)
    assert found == entry
    assert type(found) is type(entry)


def blob(parts: object, mark: bytes = MARK) -> bytes:
    body = codec.encode(parts)
    return mark + crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "other",
    [
        None,
        "text",
        bytearray(pack(RECORD)),
        b"",
        MARK,
        MARK + bytes(4),
        b"!" + pickle.dumps(RECORD),
        pickle.dumps(RECORD),
        pack(RECORD) + b"\0",
        blob(["record", *RECORD], mark=b"hs2"),
        blob(["record", *RECORD._replace(key="x" * 64)]),
        blob(["record", *RECORD][:-1]),
        blob(["record", *RECORD, None]),
        blob(["other", *RECORD]),
        blob(["record", *RECORD._replace(values={"a": "text"})]),
        blob(["record", *RECORD._replace(values={1: b"1"})]),
        blob(["record", *RECORD._replace(deadline="soon")]),
        blob(["record", *RECORD._replace(user=7)]),
        blob(["gone", KEY, 7, 1.0, 1.0]),
        blob({"record": RECORD.key}),
        blob(b"record"),
    ],
)
def test_other_bytes(other: object) -> None:
    with pytest.raises(CorruptData) as error:
        unpack(other, KEY)
    assert KEY not in str(error.value)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    whole = pack(RECORD)
    damaged = [whole[:n] for n in range(len(whole))]
    for n in range(len(whole) * 8):
        damaged.append(bytearray(whole))
        damaged[-1][n // 8] ^= 1 << n % 8
    for other in damaged:
        with pytest.raises(CorruptData):
            unpack(bytes(other), KEY)


def test_no_key_in_a_repr() -> None:
    assert KEY not in repr(Gone(KEY, "n" * 64))
    assert "n" * 13 not in repr(Gone(KEY, "n" * 64))


def test_a_trail() -> None:
    trail = Trail("a", 10.0)
    assert trail.own(RECORD) is RECORD
    assert trail.own(None) is None
    assert trail.follow(Gone("a", "b", 11.0, 1.5))
    assert trail.at == "b"
    assert trail.follow(Gone("b", "c", 5.0, 1.5)), "only the first alias has an end"
    assert trail.at == "c"
    assert trail.own(RECORD) is RECORD
    assert trail.own(RECORD._replace(created=7.0)) is None, "a later session of that key"


@pytest.mark.parametrize(
    "gone", [Gone("a"), Gone("a", "b", 10.0), Gone("a", "b", 9.0), Gone("a", None, 11.0)]
)
def test_a_trail_that_ends(gone: Gone) -> None:
    trail = Trail("a", 10.0)
    assert not trail.follow(gone)
    assert trail.at == "a"


def test_a_trail_through_another_session() -> None:
    trail = Trail("a", 10.0)
    assert trail.follow(Gone("a", "b", 11.0, 1.0))
    assert not trail.follow(Gone("b", "c", 11.0, 2.0))


def test_a_trail_in_a_circle_ends() -> None:
    trail = Trail("a", 10.0)
    steps = 0
    while trail.follow(Gone(trail.at, "b" if trail.at == "a" else "a", 11.0, 1.0)):
        steps += 1
        assert steps < 1000
