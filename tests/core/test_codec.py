from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import os
import pickle
import subprocess
import sys
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from werkzeug.datastructures import CombinedMultiDict, ImmutableMultiDict, MultiDict
from werkzeug.local import LocalProxy

from flask_hybridsession.core.codec import IMMUTABLE, decode, encode
from flask_hybridsession.core.errors import CodecError
from tests.same import same

UTC = dt.timezone.utc
PARIS = ZoneInfo("Europe/Paris")
ODD_ZONE = dt.timezone(-dt.timedelta(hours=3, minutes=30, seconds=15))
SHIFT = dt.datetime(2026, 10, 25, 2, 30, tzinfo=PARIS)  # this wall-clock time happens twice

PLAIN: list[Any] = [
    *("", "text", "a\0b", "é 😀 \u202e", "x" * 70_000, "\ud800", "a\udfffb"),
    *(b"", b"\x00\xff", b"x" * 70_000),
    *(True, False, None),
    *(0, 1, -1, 127, 128, -32, -33, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63),
    *(-(2**63), -(2**63) - 1, 2**64 - 1, 2**64, -(2**64), 10**30, -(10**30), 3**12_345),
    *(0.0, -0.0, 1.5, 1e-320, 1.7976931348623157e308, math.inf, -math.inf, math.nan),
    *(1 + 2j, complex(-0.0, math.inf), complex(math.nan, -0.0)),
    *(Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity")),
    *(Decimal("1e-999999"), Decimal(2) ** 80),
    *(Fraction(1, 3), Fraction(-7), Fraction(3**300, 2**301)),
    *(UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"), UUID(int=2**128 - 1)),
    *(dt.datetime(2026, 1, 2), dt.datetime.min, dt.datetime.max),
    *(dt.datetime(2026, 1, 2, 3, 4, 5, 678901), dt.datetime(2026, 1, 2, 3, tzinfo=UTC)),
    *(dt.datetime(2026, 1, 2, 3, 4, tzinfo=ODD_ZONE), dt.datetime(2026, 7, 2, 3, tzinfo=PARIS)),
    *(SHIFT, SHIFT.replace(fold=1), dt.datetime(2026, 1, 2, fold=1)),
    *(dt.datetime(2026, 1, 2, tzinfo=UTC, fold=1), dt.date(2026, 1, 2), dt.date.max),
    *(dt.time(1, 2), dt.time(1, 2, 3, 4), dt.time(1, 2, fold=1), dt.time(1, tzinfo=UTC)),
    *(dt.time(1, tzinfo=ODD_ZONE), dt.time(1, tzinfo=PARIS), dt.time.max),
    *(dt.timedelta(0), dt.timedelta(-1, 5, 7), dt.timedelta.max, dt.timedelta.min),
    *(Markup(""), Markup("<b>é</b>"), Markup("\ud800")),
    *([], (), set(), frozenset(), {}),
]


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "list": lambda value: [value, [value]],
    "tuple": lambda value: (value, (value, [value])),
    "dict": lambda value: {"k": value, "d": {"k": [value]}},
    "beside a key that is no text": lambda value: {1: value, "k": (value,)},
    "deep": lambda value: [({"a": [({2: (value,)},)]},)],
}
HASHABLE_WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "set": lambda value: {value},
    "frozenset": lambda value: frozenset([value, (value,)]),
    "set of frozensets": lambda value: {frozenset([value]), (frozenset([value]), 1)},
    "key": lambda value: {value: 1},
    "key in a tuple": lambda value: {(value, 1): [value]},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_comes_back_as_it_went_in(value: Any, wrapping: str) -> None:
    whole = WRAPPINGS[wrapping](value)
    assert same(decode(encode(whole)), whole)


@pytest.mark.parametrize("wrapping", HASHABLE_WRAPPINGS)
@pytest.mark.parametrize("value", [v for v in PLAIN if hashable(v)], ids=lambda v: type(v).__name__)
def test_comes_back_from_sets_and_keys(value: Any, wrapping: str) -> None:
    whole = HASHABLE_WRAPPINGS[wrapping](value)
    assert same(decode(encode(whole)), whole)


def test_the_comparison_itself_tells_apart() -> None:
    for a, b in [(0.0, -0.0), (1, True), (1, 1.0), ("a", Markup("a")), ((1,), [1]), ({1}, {True})]:
        assert not same(a, b)
    assert not same(SHIFT, SHIFT.replace(fold=1))
    assert not same(SHIFT, SHIFT.astimezone(UTC))
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})


def test_a_fold_is_another_moment() -> None:
    first, second = decode(encode([SHIFT, SHIFT.replace(fold=1)]))
    assert second.timestamp() - first.timestamp() == 3600


def test_what_is_called_immutable_is() -> None:
    for value in PLAIN:
        assert (type(value) in IMMUTABLE) == (not isinstance(value, list | dict | tuple | set))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=8)
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.datetimes()
    | st.datetimes(timezones=st.sampled_from([UTC, PARIS, ODD_ZONE]))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.text(max_size=4).map(Markup)
)
keys = st.recursive(
    scalars.filter(lambda v: not (isinstance(v, Decimal) and v.is_snan())),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(keys, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(values)
def test_any_value_comes_back(value: Any) -> None:
    data = encode(value)
    again = decode(data)
    assert same(again, value)
    assert encode(again) == data, "an unchanged value must not look changed"


class LazyString:
    """As flask-babel has it: looks up its text when it is used."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def __getattr__(self, name: str) -> Any:
        if name == "__setstate__":
            raise AttributeError(name)
        return getattr(str(self), name)

    def __str__(self) -> str:
        return self._text()


@pytest.mark.parametrize("make", [LazyString, LocalProxy])
@pytest.mark.parametrize("text", ["hello", "", "é", "\ud800"])
def test_lazy_strings_are_stored_as_their_text(make: Callable[[Any], Any], text: str) -> None:
    for whole, stored in [
        (make(lambda: text), text),
        ([make(lambda: text)], [text]),
        ((1, make(lambda: text)), (1, text)),
        ({"a": {2: make(lambda: text)}}, {"a": {2: text}}),
    ]:
        assert same(decode(encode(whole)), stored)


# -- what becomes plain -------------------------------------------------------------------------


class Number(enum.IntEnum):
    ONE = 1


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Word(str, enum.Enum):
    HELLO = "hello"


class Day(dt.date, enum.Enum):
    FIRST = (2026, 1, 1)


@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 1


@dataclasses.dataclass
class Line:
    points: list[Point]
    name: Any = None


Pair = namedtuple("Pair", "a b")


class List(list[Any]):
    pass


class Items(set[Any]):
    pass


class FrozenItems(frozenset[Any]):
    pass


class Text(str):
    __slots__ = ()


class Safe(Markup):
    __slots__ = ()


class Page:
    def __html__(self) -> str:
        return "<p>"


class TextOfAPage(Page, str):
    """What has an ``__html__`` is Markup, except a dict, a tuple, a list and bytes."""


class NumberOfAPage(Page, int):
    pass


class SetOfAPage(Page, set[Any]):
    pass


class DictOfAPage(Page, dict[Any, Any]):
    pass


class TupleOfAPage(Page, tuple[Any, ...]):
    pass


class BytesOfAPage(Page, bytes):
    pass


def misleading(base: Any) -> Any:
    """A subclass of ``base`` that overrides all that can be overridden, and answers nothing."""

    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("what a subclass overrides is not asked")

    needed = {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__ne__"}
    of_classes = {"__init_subclass__", "__subclasshook__", "__dict__", "__doc__", "__module__"}
    own = {"int", "is_safe", "_numerator", "_denominator"} if base in (UUID, Fraction) else set()
    names = set(dir(base)) - needed - of_classes - own - {"__hash__", "__eq__", "__slots__"}
    space = {name: answer if callable(getattr(base, name)) else property(answer) for name in names}
    return type(f"Misleading{base.__name__}", (base,), space)


SCALARS: list[tuple[type, tuple[Any, ...]]] = [
    *((str, ("text",)), (str, ("\ud800",)), (int, (7,)), (int, (2**80,)), (float, (-0.0,))),
    *((float, (math.nan,)), (bytes, (b"\xc4",)), (complex, (-0.0, math.inf))),
    *((Decimal, ("1.10",)), (Decimal, ("sNaN12",)), (Fraction, (1, 3)), (UUID, ("0" * 31 + "7",))),
    *((dt.date, (2026, 1, 2)), (dt.timedelta, (-1, 5, 7))),
    (dt.datetime, (2026, 1, 2, 3, 4, 5, 678901, UTC)),
    (dt.time, (1, 2, 3, 4, ODD_ZONE)),
]


class Folded(dt.datetime):
    pass


#: What goes in, and the plain value that comes back.
BECOMES: list[tuple[Any, Any]] = [
    *((OrderedDict(b=1, a=2), {"b": 1, "a": 2}), (defaultdict(int, a=1), {"a": 1})),
    *(
        (Counter("abb"), {"a": 1, "b": 2}),
        (Pair(1, [2]), (1, [2])),
        (List([1, Pair(1, 2)]), [1, (1, 2)]),
    ),
    *((OrderedDict({1: OrderedDict(a=b"x")}), {1: {"a": b"x"}}), ({Text("a"): 1}, {"a": 1})),
    (MultiDict([("a", "1"), ("a", "2"), ("b", "3")]), {"a": "1", "b": "3"}),
    (ImmutableMultiDict([("a", "1"), ("a", "2")]), {"a": "1"}),
    (
        CombinedMultiDict([MultiDict({"a": "1"}), MultiDict({"a": "2", "b": "3"})]),
        {"a": "1", "b": "3"},
    ),
    *((Items({1, Text("a")}), {1, "a"}), (FrozenItems({Pair(1, 2)}), frozenset({(1, 2)}))),
    *(
        (Number.ONE, 1),
        (Bits.A | Bits.B, 3),
        (Word.HELLO, "hello"),
        (Day.FIRST, dt.date(2026, 1, 1)),
    ),
    *(
        (Point(), {"x": 1}),
        (Line([Point(2)], Pair(1, {3})), {"points": [{"x": 2}], "name": (1, {3})}),
    ),
    *((Safe("<b>"), Markup("<b>")), (Page(), Markup("<p>")), (TextOfAPage("x"), Markup("<p>"))),
    *((NumberOfAPage(1), Markup("<p>")), (SetOfAPage({1}), Markup("<p>"))),
    *((DictOfAPage(a=1), {"a": 1}), (TupleOfAPage([1]), (1,)), (BytesOfAPage(b"x"), b"x")),
    *((LocalProxy(lambda: {"a": (1,)}), {"a": (1,)}), (LocalProxy(lambda: [Pair(1, 2)]), [(1, 2)])),
    *((LocalProxy(lambda: Pair(1, 2)), (1, 2)), (LocalProxy(lambda: UUID(int=7)), UUID(int=7))),
    *(
        (LocalProxy(lambda: SHIFT), SHIFT),
        (LocalProxy(Point), {"x": 1}),
        (LocalProxy(Page), Markup("<p>")),
    ),
    (Folded(2026, 10, 25, 2, 30, tzinfo=PARIS, fold=1), SHIFT.replace(fold=1)),
    *((misleading(base)(*args), base(*args)) for base, args in SCALARS),
]


@pytest.mark.parametrize("wrapping", [*WRAPPINGS, *HASHABLE_WRAPPINGS])
@pytest.mark.parametrize(
    ("value", "becomes"),
    BECOMES,
    ids=[f"{n} {type(v).__name__}" for n, (v, _) in enumerate(BECOMES)],
)
def test_what_is_not_plain_is_stored_as_what_is(value: Any, becomes: Any, wrapping: str) -> None:
    if wrapping in HASHABLE_WRAPPINGS and not (hashable(value) and hashable(becomes)):
        return
    wrap = {**WRAPPINGS, **HASHABLE_WRAPPINGS}[wrapping]
    data = encode(wrap(value))
    assert data == encode(wrap(becomes)), "the stored value must not look changed"
    assert same(decode(data), wrap(becomes))


def disguised(value: Any) -> Any:
    """As subclasses, all the way down."""
    kind = type(value)
    if kind is dict:
        pairs = [(disguised(key), disguised(item)) for key, item in value.items()]
        return OrderedDict(pairs)
    if kind in (list, tuple, set, frozenset):
        return DISGUISES[kind](map(disguised, value))
    if kind is Decimal or kind not in DISGUISES:
        return DISGUISES.get(kind, lambda same: same)(value)
    if kind in (dt.datetime, dt.time, dt.date):
        state = value.__reduce_ex__(4)[1]
        return DISGUISES[kind](*state)
    if kind is dt.timedelta:
        return DISGUISES[kind](value.days, value.seconds, value.microseconds)
    return DISGUISES[kind](int=value.int) if kind is UUID else DISGUISES[kind](value)


DISGUISES: dict[type, Any] = {
    base: type(f"{base.__name__.title()}Disguise", (base,), {})
    for base in (
        *(list, tuple, set, frozenset, str, int, float, complex, bytes, Decimal, Fraction, UUID),
        *(dt.datetime, dt.date, dt.time, dt.timedelta, Markup),
    )
}


@settings(max_examples=100, deadline=None)
@given(values)
def test_any_subclasses_give_the_bytes_of_the_plain_value(value: Any) -> None:
    assert encode(disguised(value)) == encode(value)


class Strange(str):
    """Equal to nothing but itself, as no plain text is."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.mark.parametrize(
    "value",
    [
        {Strange("a"): 1, "a": 2},
        {Strange("a"): 1, Strange("a"): 2},
        {"k": OrderedDict({1: 1, (Strange("a"),): 2, ("a",): 3})},
        {Strange("a"), "a"},
        [frozenset({(Strange("a"),), ("a",)})],
    ],
    ids=range(5),
)
def test_nothing_is_lost_where_two_become_one(value: Any) -> None:
    with pytest.raises(CodecError, match="would come back as one"):
        encode(value)


class HashableList(list[Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [{Point(): 1}, {Point()}, {(1, Point()): 1}, [frozenset({HashableList([1])})]],
    ids=range(4),
)
def test_a_key_that_would_come_back_as_no_key_is_refused(value: Any) -> None:
    with pytest.raises(CodecError, match="would come back as a dict, list or set"):
        encode(value)


def test_a_date_that_is_no_date_is_refused() -> None:
    class NaT(dt.datetime):
        """As pandas has it: not equal to itself."""

        def __eq__(self, other: object) -> bool:
            return False

        def __ne__(self, other: object) -> bool:
            return True

        __hash__ = dt.datetime.__hash__

    with pytest.raises(CodecError, match="NaT"):
        encode([NaT(1, 1, 1)])


# -- what is refused ----------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Flag(enum.Flag):
    UP = 1


class Anything:
    pass


class Buffer(bytearray):
    pass


REFUSED: list[Any] = [
    *(Color.RED, Flag.UP, Color, Point, Page, Markup, UserDict(a=1), deque([1]), ChainMap({})),
    *(bytearray(b"x"), memoryview(b"x"), Buffer(b"x"), Anything(), Anything, len, range(3)),
    *(iter([]), {}.keys(), {}.items(), object(), ..., NotImplemented, ValueError("x")),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda v: type(v).__name__)
def test_other_classes_are_refused(value: Any) -> None:
    wholes = [value, [value], (value,), {"a": [value]}, {"a": ({1: value},)}, [{2: [(value,)]}]]
    wholes += [
        OrderedDict(a=value),
        MultiDict({"a": value}),
        Pair(1, value),
        Line([], {"a": value}),
    ]
    wholes += [{"a": b"x", "b": [List([value])]}, LocalProxy(lambda: value)]
    if hashable(value):
        wholes += [{value}, frozenset([value]), [frozenset([(value,)])], {value: 1}, {(value,): 1}]
    for whole in wholes:
        with pytest.raises(CodecError) as caught:
            encode(whole)
        message = str(caught.value)
        assert f"{type(value).__module__}.{type(value).__qualname__}" in message
        assert "store a plain value" in message


@pytest.mark.parametrize("value", [Color.RED, Flag.UP])
def test_the_error_says_what_to_store_for_an_enum(value: Any) -> None:
    with pytest.raises(CodecError, match=r"such as its \.value or its \.name$"):
        encode(value)


def test_the_error_holds_no_value() -> None:
    class Login:
        def __repr__(self) -> str:
            return "hunter2"

    for whole in ({"k": Login()}, [b"hunter2", bytearray(b"hunter2")]):
        with pytest.raises(CodecError) as caught:
            encode(whole)
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value)
    assert caught.value.named("cart").name == "cart"
    assert "session['cart']" in str(caught.value.named("cart"))


def containing_itself() -> list[Any]:
    line: list[Any] = []
    line.append(line)
    names: dict[str, Any] = {}
    names["me"] = names
    numbers: dict[int, Any] = {}
    numbers[1] = numbers
    pair: tuple[Any, ...] = ([],)
    pair[0].append(pair)
    mixed: list[Any] = [b"x", {1: ()}]
    mixed.append({"a": (mixed,)})
    ordered: dict[str, Any] = OrderedDict()
    ordered["me"] = [ordered]
    fields = Line([])
    fields.name = (fields,)
    proxied: list[Any] = []
    proxied.append(LocalProxy(lambda: proxied))
    return [line, names, numbers, pair, mixed, ordered, fields, proxied]


@pytest.mark.parametrize("value", containing_itself(), ids=range(8))
def test_what_contains_itself_is_refused(value: Any) -> None:
    with pytest.raises(CodecError, match="contains itself"):
        encode(value)


@pytest.mark.parametrize("core", [1, b"\xc4", "\ud800"])
@pytest.mark.parametrize(
    "around",
    [
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"a": v},
        lambda v: {1: v},
        lambda v: frozenset([v]),
        lambda v: [({"a": v},)],
        lambda v: OrderedDict(a=v),
        lambda v: Pair(v, 1),
    ],
    ids=["list", "tuple", "dict", "int keys", "frozenset", "mixed", "OrderedDict", "namedtuple"],
)
def test_deep_nesting_comes_back_or_is_refused(around: Callable[[Any], Any], core: Any) -> None:
    value = core
    kept = 0
    for depth in range(1, 1200):
        value = around(value)
        if depth > 90 and depth % 37:
            continue
        try:
            data = encode(value)
        except CodecError as error:
            assert "too deeply" in str(error)  # noqa: PT017
            continue
        again = decode(data)
        kept = depth
        while isinstance(again, list | tuple | dict | frozenset):
            again, *_ = again.values() if isinstance(again, dict) else again
        assert again == core
    assert kept >= 30


@pytest.mark.parametrize(
    "value",
    [Fraction(10**5000, 3), Decimal("1" * 5000), 10**5000],
    ids=["Fraction", "Decimal", "int"],
)
def test_more_digits_than_python_likes_to_print(value: Any) -> None:
    assert decode(encode(value)) == value


# -- equal values give equal bytes --------------------------------------------------------------

SETS = """
import sys
from flask_hybridsession.core.codec import encode
words = {f"word{n}" for n in range(50)}
tree = {frozenset({"a", ("b", frozenset({"c", 1, 2.5, None}))}), ("x", frozenset("yz")), "w"}
print(encode([words, tree, {1: {"p", "q", "r"}}]).hex())
"""


def test_sets_are_written_in_one_order_in_every_process() -> None:
    written = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 2)
    }
    assert len(written) == 1
    assert len(written.pop()) > 500


def test_sets_are_written_in_one_order_however_they_were_made() -> None:
    for word in ("\ud800", "plain"):
        names = [f"n{n}" for n in range(100)] + [word]
        forward, backward = set(), set()
        forward.update(names)
        for name in reversed(names):
            backward.add(name)
        assert encode(forward) == encode(backward)
        assert encode([frozenset(forward)]) == encode([frozenset(backward)])


# -- what is read back --------------------------------------------------------------------------


def reads_or_refuses(data: bytes) -> None:
    try:
        decode(data)
    except CodecError as error:
        assert str(error).startswith("a session value cannot be read")  # noqa: PT017


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_junk_is_a_codec_error_or_a_value(data: bytes) -> None:
    reads_or_refuses(data)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([*range(1, 9), *range(16, 23), 99]),
    st.binary(max_size=20) | values.map(encode),
)
def test_junk_of_a_known_type_is_a_codec_error_or_a_value(tag: int, data: bytes) -> None:
    assert len(data) < 2**16
    reads_or_refuses(b"\xc8" + len(data).to_bytes(2, "big") + bytes([tag]) + data)


SAMPLES: list[Any] = [
    {"a": [1, (2, {3: 4})], "b": {1, "x"}},
    [SHIFT, dt.date(2026, 1, 2), dt.time(1, 2, fold=1), dt.timedelta(1, 2, 3)],
    (Decimal("1.5"), Fraction(1, 7), UUID(int=7), 2**80, 1j, Markup("<b>"), "\ud800", -0.0),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_every_cut_and_every_flipped_bit_is_survived(sample: Any) -> None:
    data = encode(sample)
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:length])
    for index in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[index] ^= 1 << bit
            reads_or_refuses(bytes(flipped))


@pytest.mark.parametrize(
    "zone",
    [
        "Nowhere/Land",
        "America",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "",
        ".",
        "x" * 5000,
        "a\0b",
    ],
)
def test_a_zone_that_is_not_known_here_keeps_its_offset(zone: str) -> None:
    import ormsgpack

    body = ormsgpack.packb(["2026-10-25T02:30:00+02:00", 0, zone])
    value = decode(ormsgpack.packb(ormsgpack.Ext(16, body)))
    assert value.utcoffset() == dt.timedelta(hours=2)


def test_a_pickle_is_not_read() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, ("/nonexistent/evil",))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        reads_or_refuses(pickle.dumps(Evil(), protocol))
    code = "import sys, flask_hybridsession.core.codec; print('pickle' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error" not in run.stderr


def test_a_short_fraction_cannot_take_long_to_read() -> None:
    import ormsgpack

    with pytest.raises(CodecError):
        decode(ormsgpack.packb(ormsgpack.Ext(22, b"1e99999")))


# -- a frozen clock -----------------------------------------------------------------------------


def test_values_made_while_the_clock_is_frozen() -> None:
    with freeze_time("2026-03-04 05:06:07.000008"):
        frozen = [
            dt.datetime.now(),
            dt.date.today(),
            dt.datetime.now(UTC),
            {"t": dt.datetime.now()},
        ]
        assert type(frozen[0]).__name__ == "FakeDatetime"
        data = encode(frozen)
        assert decode(data) == frozen
    assert same(
        decode(data),
        [
            dt.datetime(2026, 3, 4, 5, 6, 7, 8),
            dt.date(2026, 3, 4),
            dt.datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC),
            {"t": dt.datetime(2026, 3, 4, 5, 6, 7, 8)},
        ],
    )


def test_real_datetimes_while_the_clock_is_frozen() -> None:
    real = [dt.datetime(2026, 1, 2), dt.date(2026, 1, 2)]
    with freeze_time("2030-01-01"):
        data = encode(real)
    assert same(decode(data), real)


def test_what_a_frozen_clock_leaves_behind() -> None:
    with freeze_time("2026-03-04 05:06:07.000008"):
        left = [dt.datetime.now(), dt.date.today(), {dt.datetime.now(UTC): (dt.date.today(),)}]
        at_once = encode(left)
    moment, day = dt.datetime(2026, 3, 4, 5, 6, 7, 8), dt.date(2026, 3, 4)
    assert encode(left) == at_once
    assert same(decode(at_once), [moment, day, {moment.replace(tzinfo=UTC): (day,)}])


def test_subclasses_while_the_clock_is_frozen() -> None:
    moment, day = Folded(2026, 1, 2, tzinfo=UTC), DISGUISES[dt.date](2026, 1, 2)
    with freeze_time("2030-01-01"):
        data = encode([moment, {day}])
    assert same(decode(data), [dt.datetime(2026, 1, 2, tzinfo=UTC), {dt.date(2026, 1, 2)}])


FROZEN_FIRST = """
import datetime as dt
from freezegun import freeze_time
with freeze_time("2026-03-04 05:06:07"):
    from flask_hybridsession.core.codec import decode, encode
    class Moment(dt.datetime): pass
    left = [dt.datetime.now(), dt.date.today()]
for value in (left, [dt.datetime(2026, 3, 4, 5, 6, 7), dt.date(2026, 3, 4)]):
    again = decode(encode(value))
    assert again == value
    assert [type(part) for part in again] == [dt.datetime, dt.date]
"""


def test_the_codec_may_be_imported_while_the_clock_is_frozen() -> None:
    subprocess.run([sys.executable, "-c", FROZEN_FIRST], check=True)
