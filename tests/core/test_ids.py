from __future__ import annotations

import enum
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from flask_hybridsession.core import ids


@pytest.mark.parametrize("length", [16, 17, 18, 31, 32, 33, 64, 256])
def test_a_minted_sid_has_the_shape_of_its_length_only(length: int) -> None:
    sid = ids.mint(length)
    assert ids.is_sid(sid, length)
    for other in (length - 1, length + 1, 2 * length):
        assert not ids.is_sid(sid, other)
    for text in (sid[:-1], sid + "A", sid + "\n", "\n" + sid[1:], sid[:-1] + "=", sid[:-1] + "."):
        assert not ids.is_sid(text, length)
    for bad in "é+/ \x00%\ud800٣":
        assert not ids.is_sid(bad + sid[1:], length)


def test_sids_are_many_and_long() -> None:
    sids = {ids.mint() for _ in range(1000)}
    assert len(sids) == 1000
    assert {len(sid) for sid in sids} == {43}
    # Each place takes many letters: nothing in it stands still.
    assert all(len({sid[place] for sid in sids}) > 10 for place in range(43))


def test_a_key_is_a_hash() -> None:
    key = ids.key_of("A" * 43)
    assert key == "0f007385b6f9d4b7eeb2748605afe1a984a0a3bfa3f014d09e2a784ce9e5cd1a"
    assert ids.key_of("A" * 42 + "B") != key


USERS = [
    *("", "1", "bob", "é 😀", "i:1", "s:1", "u:" + "0" * 32, "a:b:c", " ", "a\0b", "x" * 5000),
    *(0, 1, -1, 2**100, UUID(int=0), UUID(int=1), uuid4()),
]


@pytest.mark.parametrize("user", USERS, ids=range(len(USERS)))
def test_a_user_id_comes_back_as_it_went_in(user: ids.UserId) -> None:
    again = ids.user_id(ids.user_token(user))
    assert (type(again), again) == (type(user), user)


def test_user_ids_stay_apart() -> None:
    users = [*USERS, str(USERS[-1]), USERS[-1].hex, "0", "-1"]  # type: ignore[union-attr]
    assert len({ids.user_token(user) for user in users}) == len(users)


class Kind(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "user", [None, True, 1.0, b"bob", ("bob",), Kind.ONE, Markup("x"), object()]
)
def test_other_types_are_refused(user: object) -> None:
    with pytest.raises(TypeError, match="a user id is a str, an int or a UUID, not"):
        ids.user_token(user)  # type: ignore[arg-type]


def test_text_that_no_provider_can_keep_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        ids.user_token("\ud800")


@pytest.mark.parametrize("token", ["", "bob", "x:1", ":1"])
def test_what_is_no_user_token(token: str) -> None:
    with pytest.raises(ValueError, match="not a user token"):
        ids.user_id(token)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.uuids())
def test_any_user_id_comes_back(user: ids.UserId) -> None:
    assert ids.user_id(ids.user_token(user)) == user
