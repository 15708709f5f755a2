"""What a database of the app's own is told, and what it answers (seed 000).

class Archive:
    def load(self, key):
        return self.rows.get(key)

    def sync(self, payload):
        key, store = payload.key, payload.store
        if payload.action is Action.DESTROY:
            self.rows.pop(key, None)
        elif store.lifetime is not None:
            self.rows[key] = store
        elif key in self.rows:  # delete and clear: the lifetime stays as it is stored
            self.rows[key] = self.rows[key]._replace(values=store.values)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

from . import ids
from .change import Change, Record
from .codec import decode, encode
from .errors import CodecError


class Action(Enum):
    """What happened. Of the seed; the numbers are in its order."""

    #: The first entry of a session; without an entry, a session that is empty.
    CREATE = 0
    #: An entry under a name that the session did not have.
    INSERT = 1
    #: Another value of an entry; without an entry, only the lifetime, user or device changed.
    UPDATE = 2
    #: The entry is gone; its value is None. Said of a name that was not there, too.
    DELETE = 3
    #: All entries are gone, the session stays.
    CLEAR = 4
    #: The session is gone, for good: logged out, expired, or renamed (then it is created again
    #: under its new key).
    DESTROY = 5


class Entry(NamedTuple):
    """One name and its value. ``name`` is None where an action is about no entry."""

    name: str | None = None
    value: Any = None

    def __repr__(self) -> str:
        return f"<Entry {self.name!r}>"


class Lifetime(NamedTuple):
    """Wall-clock seconds since the epoch; ``deadline`` is ``inf`` when the session has none."""

    created: float
    touched: float
    deadline: float


class Values(Mapping[str, Any]):
    """Read-only; each value is decoded when it is read, and nobody else's to change."""

    def __init__(self, encoded: Mapping[str, bytes]) -> None:
        self._encoded = encoded

    def __getitem__(self, name: str) -> Any:
        data = self._encoded[name]
        try:
            return decode(data)
        except CodecError as error:
            raise error.named(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def __repr__(self) -> str:
        return f"<Values of {len(self)} names>"


class Store(NamedTuple):
    """A whole session. What ``load`` returns to give a session back as it was.

    ``values`` has the package's own names too (they begin with ``_hybrid.``): give them back.
    ``lifetime`` is None, and to be left as it is stored, on delete, clear and destroy.
    """

    values: Mapping[str, Any]
    lifetime: Lifetime | None = None
    user_id: ids.UserId | None = None
    device: str | None = None

    def __repr__(self) -> str:
        return f"<Store of {len(self.values)} values>"


class SyncPayload(NamedTuple):
    """One change of one session. ``store`` is how it stands after the commit as a whole."""

    key: str
    action: Action
    entry: Entry
    store: Store

    def __repr__(self) -> str:
        return f"<SyncPayload: {self.action.name} of {self.key[:12]}...>"


class Database(Protocol):
    """An object of the app's, called from any thread. What it raises never reaches a request."""

    def load(self, key: str) -> Mapping[str, Any] | Store | None:
        """The session, or None or something empty if there is none that lives."""

    def sync(self, payload: SyncPayload) -> object:
        """Store the change. To be told twice must do no harm."""


_NOTHING = Store({})

#: Seconds that a session lives whose database knows no lifetimes, until its next commit.
UNKNOWN_LIFETIME = 86_400.0


def store_of(record: Record) -> Store:
    user = None if record.user is None else _as_known(record.user)
    lifetime = Lifetime(record.created, record.touched, record.deadline)
    return Store(Values(record.values), lifetime, user, record.device)


def record_of(key: str, answer: Mapping[str, Any] | Store | None, now: float) -> Record | None:
    """What a ``load`` answered, as a session; None when it is empty or past its deadline.

    Values alone begin a new life: created now, nobody logged in, to be touched at once. Raises
    ``CodecError``, ``TypeError`` for what is no answer.
    """
    if not answer:
        return None
    store = answer if isinstance(answer, Store) else Store(answer)
    if not store.values:
        return None
    life = store.lifetime or Lifetime(now, 0.0, now + UNKNOWN_LIFETIME)
    if not now < life.deadline:
        return None
    user = None if store.user_id is None else ids.user_token(store.user_id)
    created, touched, deadline = life
    return Record(key, _encoded(store.values), created, touched, deadline, user, store.device)


def payloads(before: Record | None, change: Change, after: Record) -> Iterator[SyncPayload]:
    """What one commit comes to, in the order in which a commit does it."""
    key, store = after.key, store_of(after)
    held = set() if before is None else set(before.values)
    told = False
    if change.wipe and not change.create:
        held.clear()
        told = True
        yield SyncPayload(key, Action.CLEAR, Entry(), _NOTHING)
    for name in change.drops:
        if name not in change.puts:
            held.discard(name)
            told = True
            yield SyncPayload(key, Action.DELETE, Entry(name), store._replace(lifetime=None))
    for name, data in change.puts.items():
        action = Action.UPDATE if name in held else Action.INSERT if held else Action.CREATE
        held.add(name)
        told = True
        yield SyncPayload(key, action, Entry(name, Values({name: data})[name]), store)
    # Deletes leave the lifetime as it is stored.
    moved = before is not None and not change.puts and before[4:] != after[4:]
    if not told or moved:
        yield SyncPayload(key, Action.CREATE if change.create else Action.UPDATE, Entry(), store)


def whole(record: Record, fresh: bool) -> Iterator[SyncPayload]:
    """All of a session, for a database that has none of it, or something else under its key."""
    if not fresh:
        yield SyncPayload(record.key, Action.CLEAR, Entry(), _NOTHING)
    yield from payloads(None, Change(record.values, create=True), record)


def end(key: str) -> SyncPayload:
    return SyncPayload(key, Action.DESTROY, Entry(), _NOTHING)


def _encoded(values: Mapping[str, Any]) -> dict[str, bytes]:
    found = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a value is a str, not a {type(name).__name__}")
        try:
            found[name] = encode(value)
        except CodecError as error:
            raise error.named(name) from None
    return found


def _as_known(token: str) -> ids.UserId:
    """The user id of the app; a text that is no user token is one itself."""
    try:
        return ids.user_id(token)
    except ValueError:
        return token
