"""Which values a session takes and what comes back, beside what Flask's own cookie makes of them.

``TABLE`` is the promise: what Flask's cookie takes, this takes. Each row is stored in one request
and looked at in the next, alone and within a list in a dict, on every provider.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import re
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from flask import Flask, request, session
from flask.testing import FlaskClient
from markupsafe import Markup
from werkzeug.local import LocalProxy

from flask_hybridsession import CodecError, HybridSession
from flask_hybridsession.core.provider import Provider
from tests.everywhere import KINDS, made
from tests.same import same

# -- the values ----------------------------------------------------------------------------------


class OAuth2Token(dict[str, Any]):
    """As oauthlib and authlib have it: Flask-Dance and Flask-OIDC store one at a login."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._new_scope = set(params["scope"].split())

    @property
    def scopes(self) -> list[str]:
        return list(self._new_scope)


Pair = namedtuple("Pair", "a b")


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Bytes(bytes):
    pass


class List(list[Any]):
    pass


class Tuple(tuple[Any, ...]):
    __slots__ = ()


class Items(set[Any]):
    pass


class FrozenItems(frozenset[Any]):
    pass


class Safe(Markup):
    __slots__ = ()


class Id(UUID):
    pass


class Money(Decimal):
    pass


class Part(Fraction):
    pass


class Moment(dt.datetime):
    """As pendulum and pandas have it."""


class Day(dt.date):
    pass


class Clock(dt.time):
    pass


class Span(dt.timedelta):
    pass


class Word(str, enum.Enum):
    HELLO = "hello"


class Number(enum.IntEnum):
    ONE = 1


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Color(enum.Enum):
    RED = "red"


class Flag(enum.Flag):
    UP = 1


@dataclasses.dataclass
class Line:
    product: str
    price: Any


@dataclasses.dataclass
class Cart:
    lines: list[Line]
    size: tuple[int, int] = (1, 2)


class Link:
    def __html__(self) -> str:
        return "<a>"


class LinkText(str):
    __slots__ = ()

    def __html__(self) -> str:
        return f"<i>{self}</i>"


class LinkDict(dict[str, Any]):
    def __html__(self) -> str:
        return "<dl>"


@dataclasses.dataclass
class Widget:
    name: str

    def __html__(self) -> str:
        return f"<input name={self.name}>"


class Lazy:
    """A translation, as flask-babel's is when it has no ``__html__``."""

    def __getattr__(self, name: str) -> Any:
        return getattr("lazy", name)

    def __str__(self) -> str:
        return "lazy"


class Anything:
    pass


if hasattr(enum, "StrEnum"):

    class Letter(enum.StrEnum):
        A = "a"

else:  # Python 3.10

    class Letter(str, enum.Enum):  # type: ignore[no-redef]
        A = "a"


# -- the table -----------------------------------------------------------------------------------

#: What Flask raises a TypeError for.
REFUSED: Any = object()


class Row(NamedTuple):
    name: str
    #: Makes the value, within the request that stores it.
    make: Callable[[], Any]
    here: Any
    #: What Flask's cookie gives back, or ``REFUSED``.
    flask: Any
    #: Why the two differ.
    why: str = ""


def alike(name: str, make: Callable[[], Any], both: Any) -> Row:
    return Row(name, make, both, both)


UTC, PARIS = dt.timezone.utc, ZoneInfo("Europe/Paris")
NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 5)
HTTP_DAY = "Fri, 02 Jan 2026 00:00:00 GMT"

ONLY_HERE = "Flask refuses it"
ORDER = "Flask sorts keys"
TEXT_KEYS = "Flask's keys are text"
MOMENTS = "Flask's moments are in UTC, of whole seconds"
AS_TEXT = "Flask makes text of it"
INSIDE = "within a dataclass Flask has the types of JSON alone"

TABLE = [
    # Plain values
    alike("None", lambda: None, None),
    alike("bool", lambda: True, True),
    alike("int", lambda: 2**80, 2**80),
    alike("float", lambda: -0.0, -0.0),
    alike("str", lambda: "é\0😀", "é\0😀"),
    alike("bytes", lambda: b"\0\xff", b"\0\xff"),
    alike("list", lambda: [1, [2]], [1, [2]]),
    alike("tuple", lambda: (1, (2, [3])), (1, (2, [3]))),
    alike("Markup", lambda: Markup("<b>"), Markup("<b>")),
    alike("UUID", lambda: UUID(int=7), UUID(int=7)),
    alike(
        "datetime", lambda: dt.datetime(2026, 1, 2, tzinfo=UTC), dt.datetime(2026, 1, 2, tzinfo=UTC)
    ),
    Row("naive datetime", lambda: NOON, NOON, NOON.replace(microsecond=0, tzinfo=UTC), MOMENTS),
    Row(
        "datetime in a zone",
        lambda: NOON.replace(tzinfo=PARIS),
        NOON.replace(tzinfo=PARIS),
        dt.datetime(2026, 1, 2, 11, tzinfo=UTC),
        MOMENTS,
    ),
    alike("dict", lambda: {"a": 1, "b": {}}, {"a": 1, "b": {}}),
    Row("dict in its order", lambda: {"b": 1, "a": 2}, {"b": 1, "a": 2}, {"a": 2, "b": 1}, ORDER),
    Row("int keys", lambda: {1: "a"}, {1: "a"}, {"1": "a"}, TEXT_KEYS),
    Row("None for a key", lambda: {None: 1}, {None: 1}, {"null": 1}, TEXT_KEYS),
    Row("tuples for keys", lambda: {(1, 2): 3}, {(1, 2): 3}, REFUSED, ONLY_HERE),
    Row("keys of two types", lambda: {1: 2, "a": 3}, {1: 2, "a": 3}, REFUSED, ONLY_HERE),
    Row("date", lambda: dt.date(2026, 1, 2), dt.date(2026, 1, 2), HTTP_DAY, AS_TEXT),
    Row("Decimal", lambda: Decimal("1.10"), Decimal("1.10"), "1.10", AS_TEXT),
    Row("time", lambda: dt.time(1, 2), dt.time(1, 2), REFUSED, ONLY_HERE),
    Row("timedelta", lambda: dt.timedelta(1, 2, 3), dt.timedelta(1, 2, 3), REFUSED, ONLY_HERE),
    Row("Fraction", lambda: Fraction(1, 3), Fraction(1, 3), REFUSED, ONLY_HERE),
    Row("complex", lambda: 1 + 2j, 1 + 2j, REFUSED, ONLY_HERE),
    Row("set", lambda: {1, "a"}, {1, "a"}, REFUSED, ONLY_HERE),
    Row("frozenset", lambda: frozenset("ab"), frozenset("ab"), REFUSED, ONLY_HERE),
    # Subclasses of them
    Row("OrderedDict", lambda: OrderedDict(b=1, a=2), {"b": 1, "a": 2}, {"a": 2, "b": 1}, ORDER),
    alike("defaultdict", lambda: defaultdict(list, a=[1]), {"a": [1]}),
    alike("Counter", lambda: Counter("abb"), {"a": 1, "b": 2}),
    Row("Counter of numbers", lambda: Counter([7, 7]), {7: 2}, {"7": 2}, TEXT_KEYS),
    alike(
        "OAuth2Token",
        lambda: OAuth2Token({"access_token": "x", "expires_at": 1.5, "scope": "a b"}),
        {"access_token": "x", "expires_at": 1.5, "scope": "a b"},
    ),
    alike("request.args", lambda: request.args, {"a": "1", "b": "3"}),
    alike("request.form", lambda: request.form, {"a": "4", "c": "6"}),
    alike("request.values", lambda: request.values, {"a": "1", "b": "3", "c": "6"}),
    alike("namedtuple", lambda: Pair(1, Pair(2, "x")), (1, (2, "x"))),
    alike("StrEnum", lambda: Letter.A, "a"),
    alike("str and Enum", lambda: Word.HELLO, "hello"),
    alike("Enum for a key", lambda: {Word.HELLO: [Word.HELLO]}, {"hello": ["hello"]}),
    alike("IntEnum", lambda: Number.ONE, 1),
    Row("IntEnum for a key", lambda: {Number.ONE: 2}, {1: 2}, {"1": 2}, TEXT_KEYS),
    alike("IntFlag", lambda: Bits.A | Bits.B, 3),
    alike("numpy.float64", lambda: np.float64(1.5), 1.5),
    alike("numpy.str_", lambda: np.str_("é"), "é"),
    alike("numpy.bytes_", lambda: np.bytes_(b"\xff"), b"\xff"),
    Row("numpy.complex128", lambda: np.complex128(1 + 2j), 1 + 2j, REFUSED, ONLY_HERE),
    alike("a str", lambda: Text("x"), "x"),
    alike("an int", lambda: Whole(2**80), 2**80),
    alike("a float", lambda: Real(1.5), 1.5),
    alike("a bytes", lambda: Bytes(b"\xff"), b"\xff"),
    alike("a list", lambda: List([Text("x"), List()]), ["x", []]),
    alike("a tuple", lambda: Tuple([Text("x"), List()]), ("x", [])),
    alike("a Markup", lambda: Safe("<b>"), Markup("<b>")),
    alike("a UUID", lambda: Id(int=7), UUID(int=7)),
    Row("a set", lambda: Items([Text("x")]), {"x"}, REFUSED, ONLY_HERE),
    Row("a frozenset", lambda: FrozenItems([Pair(1, 2)]), frozenset([(1, 2)]), REFUSED, ONLY_HERE),
    Row(
        "a datetime",
        lambda: Moment(2026, 1, 2, 12, 0, 0, 5, PARIS),
        NOON.replace(tzinfo=PARIS),
        dt.datetime(2026, 1, 2, 11, tzinfo=UTC),
        MOMENTS,
    ),
    Row("a date", lambda: Day(2026, 1, 2), dt.date(2026, 1, 2), HTTP_DAY, AS_TEXT),
    Row("a Decimal", lambda: Money("1.10"), Decimal("1.10"), "1.10", AS_TEXT),
    Row("a time", lambda: Clock(1, 2, fold=1), dt.time(1, 2, fold=1), REFUSED, ONLY_HERE),
    Row("a timedelta", lambda: Span(1, 2, 3), dt.timedelta(1, 2, 3), REFUSED, ONLY_HERE),
    Row("a Fraction", lambda: Part(1, 3), Fraction(1, 3), REFUSED, ONLY_HERE),
    # Dataclasses
    Row(
        "dataclass",
        lambda: Line("tea", 3),
        {"product": "tea", "price": 3},
        {"price": 3, "product": "tea"},
        ORDER,
    ),
    Row(
        "nested dataclasses",
        lambda: Cart([Line("tea", Decimal("1.10"))]),
        {"lines": [{"product": "tea", "price": Decimal("1.10")}], "size": (1, 2)},
        {"lines": [{"price": "1.10", "product": "tea"}], "size": [1, 2]},
        INSIDE,
    ),
    # What can show itself as HTML
    alike("an object with __html__", Link, Markup("<a>")),
    alike("a str with __html__", lambda: LinkText("x"), Markup("<i>x</i>")),
    alike("a dict with __html__", lambda: LinkDict(a=1), {"a": 1}),
    alike("a dataclass with __html__", lambda: Widget("x"), Markup("<input name=x>")),
    # What stands for another value
    alike("proxy to a dict", lambda: LocalProxy(lambda: {"a": (1,)}), {"a": (1,)}),
    alike("proxy to a list", lambda: LocalProxy(lambda: [1, (2,)]), [1, (2,)]),
    alike("proxy to a tuple", lambda: LocalProxy(lambda: Pair(1, [2])), (1, [2])),
    alike("proxy to a MultiDict", lambda: LocalProxy(lambda: request.args), {"a": "1", "b": "3"}),
    alike("proxy to a Markup", lambda: LocalProxy(lambda: Markup("<b>")), Markup("<b>")),
    alike("proxy to a UUID", lambda: LocalProxy(lambda: UUID(int=7)), UUID(int=7)),
    Row(
        "proxy to a datetime",
        lambda: LocalProxy(lambda: NOON),
        NOON,
        NOON.replace(microsecond=0, tzinfo=UTC),
        MOMENTS,
    ),
    Row("proxy to a str", lambda: LocalProxy(lambda: "x"), "x", REFUSED, ONLY_HERE),
    Row("proxy to an int", lambda: LocalProxy(lambda: 7), 7, REFUSED, ONLY_HERE),
    Row("lazy string", Lazy, "lazy", REFUSED, ONLY_HERE),
]

#: What has no plain value, here and in Flask.
REFUSED_BY_BOTH: dict[str, Callable[[], Any]] = {
    "Enum": lambda: Color.RED,
    "Flag": lambda: Flag.UP,
    "object": Anything,
    "class": lambda: Anything,
    "dataclass itself": lambda: Line,
    "proxy to an object": lambda: LocalProxy(Anything),
    "proxy to a class": lambda: LocalProxy(lambda: Anything),
    "function": lambda: len,
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"x"),
    "bytearray in an OrderedDict": lambda: OrderedDict(a=bytearray(b"x")),
    "object in a dataclass": lambda: Line("tea", Anything()),
    "numpy.int64": lambda: np.int64(1),
    "numpy.bool_": lambda: np.bool_(True),
    "numpy.ndarray": lambda: np.array([1]),
    "deque": lambda: deque([1]),
    "range": lambda: range(3),
    "UserDict": lambda: UserDict(a=1),
    "ChainMap": lambda: ChainMap({"a": 1}),
    "request.headers": lambda: request.headers,
}


# -- the sites -----------------------------------------------------------------------------------


class Visitor:
    """One browser at a Flask app with sessions of ``provider``; None: with Flask's own cookie."""

    def __init__(self, provider: Provider | None) -> None:
        app = Flask("values")
        app.testing = True
        app.secret_key = "key"
        self.sessions = HybridSession(app, provider=provider) if provider is not None else None
        app.add_url_rule("/", "work", self._work, methods=["POST"])
        self._client: FlaskClient = app.test_client()
        self._job: Callable[[], Any] = dict
        self._result: Any = None

    def do(self, job: Callable[[], Any]) -> Any:
        """What the job returns within a request."""
        self._job, self._result = job, None
        self._client.post("/?a=1&a=2&b=3", data={"a": ["4", "5"], "c": "6"})
        return self._result

    def _work(self) -> str:
        self._result = self._job()
        return "ok"

    def brings(self, make: Callable[[], Any]) -> Any:
        """What the next request sees of a value, alone and within others."""
        self.do(lambda: session.update(alone=make(), within={"list": [make()]}))
        return self.do(lambda: (session["alone"], session["within"]))


@pytest.fixture(params=KINDS, scope="module")
def visitor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Visitor]:
    folder = tmp_path_factory.mktemp("values")
    visitor = Visitor(made(request.param, folder, request.getfixturevalue))
    yield visitor
    assert visitor.sessions is not None
    visitor.sessions.close()


# -- the tests -----------------------------------------------------------------------------------

rows = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
refused = pytest.mark.parametrize("make", REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)


@rows
def test_what_comes_back(visitor: Visitor, row: Row) -> None:
    seen = visitor.brings(row.make)
    assert same(seen, (row.here, {"list": [row.here]})), seen


@rows
def test_what_flask_brings_back(row: Row) -> None:
    visitor = Visitor(None)
    if row.flask is REFUSED:
        with pytest.raises(TypeError):
            visitor.brings(row.make)
    else:
        seen = visitor.brings(row.make)
        assert same(seen, (row.flask, {"list": [row.flask]})), seen
    assert bool(row.why) == (not same(row.here, row.flask)), "a difference has a reason"


@refused
def test_what_is_refused_names_the_key(visitor: Visitor, make: Callable[[], Any]) -> None:
    for wrapped in (make, lambda: {"list": [make()]}):
        with pytest.raises(CodecError, match=re.escape("session['cart'] holds a ")) as caught:
            visitor.do(lambda wrapped=wrapped: session.update(cart=wrapped()))
        assert caught.value.name == "cart"
        assert "store a plain value instead" in str(caught.value)


@refused
def test_flask_refuses_it_too(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        Visitor(None).brings(make)


def test_names_come_back_as_text(visitor: Visitor) -> None:
    for each in (visitor, Visitor(None)):
        each.do(lambda: session.update({Word.HELLO: 1, Text("text"): 2}))
        names = each.do(lambda: [name for name in session if name in ("hello", "text")])
        assert [type(name) for name in names] == [str, str]
        assert each.do(lambda: (session["hello"], session["text"])) == (1, 2)


def test_what_is_stored_does_not_look_changed(visitor: Visitor) -> None:
    def store() -> None:
        session.clear()
        session.update({row.name: row.make() for row in TABLE})

    visitor.do(store)
    assert visitor.do(lambda: (len(dict(session)), session.modified)) == (len(TABLE), False)
