"""What providers store around the values: any text that Python can hold, in one fixed form."""

from __future__ import annotations

import pytest

from flask_hybridsession.core.packing import dumps, loads


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, None, True, "é", b"\xff", {"name": b"1"}],
        ["\ud800", {"\udfff": b"1", "plain": b"2"}, ["\ud800"]],
    ],
    ids=["plain", "lone surrogates"],
)
def test_it_comes_back(value: object) -> None:
    assert loads(dumps(value)) == value


def test_tuples_become_lists() -> None:
    assert loads(dumps((1, ("\ud800",)))) == [1, ["\ud800"]]


def test_the_form_stays() -> None:
    assert dumps(["a", {"b": b"c"}]).hex() == "92a16181a162c40163"
    assert dumps(["\ud800", {"\ud800": b"c"}]).hex() == "92c70301eda080c70b029192c70301eda080c40163"
