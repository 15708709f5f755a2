"""Sessions behind plain functions of the app: its own table, files or service.

import sqlite3
from contextlib import closing

def run(sql, *values):
    with closing(sqlite3.connect("app.db")) as db, db:
        return db.execute(sql, values).fetchall()

def load(key):
    rows = run("SELECT data FROM sessions WHERE key = ?", key)
    return rows[0][0] if rows else None

def save(key, data, deadline, user_id):
    run("REPLACE INTO sessions VALUES (?, ?, ?, ?)", key, data, deadline, user_id)

def delete(key):
    run("DELETE FROM sessions WHERE key = ?", key)

def user_sessions(user_id):
    return [key for (key,) in run("SELECT key FROM sessions WHERE user_id = ?", user_id)]

def cleanup():  # now and then: nobody else removes what has expired
    run("DELETE FROM sessions WHERE deadline <= ?", time.time())

run("CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, data, deadline REAL, user_id)")

app.config["SESSION_TYPE"] = "functions"
app.config["SESSION_OPTIONS"] = {
    "load": load, "save": save, "delete": delete, "user_sessions": user_sessions
}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ..core import clock, ids
from ..core.blob import Gone, Trail, pack, unpack
from ..core.change import Change, Record, decide
from ..core.errors import (
    ConfigError,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from ..core.keylocks import held
from ..core.provider import Provider, Users

if TYPE_CHECKING:
    from typing_extensions import Self

Load = Callable[[str], "bytes | None"]
Save = Callable[[str, bytes, "float | None", "ids.UserId | None"], object]
Delete = Callable[[str], object]
UserSessions = Callable[[ids.UserId], Iterable[str]]
LoadUser = Callable[[ids.UserId], Any]
Answer = TypeVar("Answer")


class FunctionsProvider(Provider):
    """Sessions kept by functions of yours, each of which may be left out.

    - ``load(key)`` returns the bytes that ``save`` was last given for the key, or None.
    - ``save(key, data, deadline, user_id)`` inserts or replaces. ``data`` is the whole session, as
      bytes to keep as they are. ``deadline`` is the end of the session, in seconds since the epoch,
      None if it has none: rows past it are of no use to anybody, remove them now and then.
      ``user_id`` is who is logged in, as the app knows the user, or None.
    - ``delete(key)`` removes what is there, if anything is.
    - ``user_sessions(user_id)`` returns the keys that were saved with that user. Without it the
      provider has not the ability ``Users``.
    - ``load_user(user_id)`` returns the app's own user object, for ``session.user``.

    ``key`` is 64 hexadecimal characters, never the sid. The functions are called from any thread;
    what they raise comes out as ``ProviderUnavailable``, from the original error.

    With ``load`` and ``save`` the functions are the one place where sessions are, and nothing is
    kept here: all processes see the same. Without one of the two this process remembers its
    sessions in memory, until it ends, tells those functions that are there what happens, and asks
    ``load`` for what it does not remember. Without ``delete`` a session that ends is saved once
    more, as bytes that say it is dead.

    None of the promises holds between processes: ``load`` and ``save`` are two steps. Among the
    threads of one process ``CONDITIONAL``, ``FINAL`` and ``DESTROY_ONCE`` hold.
    """

    promises = frozenset()

    def __new__(
        cls,
        load: Load | None = None,
        save: Save | None = None,
        delete: Delete | None = None,
        user_sessions: UserSessions | None = None,
        load_user: LoadUser | None = None,
    ) -> Self:
        with_users = cls is FunctionsProvider and user_sessions is not None
        kind: Any = FunctionsProviderWithUsers if with_users else cls
        made: Self = super().__new__(kind)
        return made

    def __init__(
        self,
        load: Load | None = None,
        save: Save | None = None,
        delete: Delete | None = None,
        user_sessions: UserSessions | None = None,
        load_user: LoadUser | None = None,
    ) -> None:
        given = {"load": load, "save": save, "delete": delete}
        given |= {"user_sessions": user_sessions, "load_user": load_user}
        for name, function in given.items():
            if function is not None and not callable(function):
                raise ConfigError(f"{name} must be a function, or left out.")
        self._load = load
        self._save = save
        self._delete = delete
        self._user_sessions: Any = user_sessions
        #: For ``session.user``.
        self.load_user = load_user
        self._remembers = load is None or save is None
        self._memory: dict[str, tuple[float, Record | Gone]] = {}  # key -> deadline, entry

    def load(self, key: str, now: float) -> Record | None:
        trail = Trail(key, now)
        while True:
            entry = self._read(trail.at)
            if not isinstance(entry, Gone):
                record = trail.own(entry)
                return record if record is not None and now < record.deadline else None
            if not trail.follow(entry):
                return None

    def commit(self, key: str, change: Change, now: float) -> None:
        def write(record: Record | None) -> bool:
            self._write(decide(record, key, change, now))
            return True

        if change.create:
            with held(key):
                write(self.load(key, now))
        elif not self._wherever_it_is(key, now, write):
            raise SessionGone(key)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        def move(record: Record | None) -> bool:
            if record is None or now >= record.deadline:
                raise SessionGone(old)
            if self.exists(new, now):
                raise KeyTaken(new)
            # Nobody knows the new key yet: if this ends half way, the old one still works, alone.
            self._write(record._replace(key=new))
            if alias_until is None:
                self._erase(record.key, record.deadline)
            else:
                self._put(Gone(record.key, new, alias_until, record.created), alias_until)
            return True

        if not self._wherever_it_is(old, now, move):
            raise SessionGone(old)

    def destroy(self, key: str) -> bool:
        def erase(record: Record | None) -> bool:
            if record is not None:
                self._erase(record.key, record.deadline)
            return record is not None

        try:
            return self._wherever_it_is(key, clock.now(), erase)
        except CorruptData:
            self._erase(key, inf)
            return True

    def next_deadline(self) -> float | None:
        """Of the sessions that this process remembers."""
        entries = [entry for _, entry in self._memory.copy().values()]
        ends = (entry.deadline for entry in entries if isinstance(entry, Record))
        first = min(ends, default=inf)
        return None if first == inf else first

    def purge(self, now: float, limit: int) -> list[Record]:
        """Ends what this process remembers and is due. Of the rest it knows nothing."""
        purged: list[Record] = []
        for key, (deadline, _) in self._memory.copy().items():
            if deadline <= now and len(purged) < limit:
                try:
                    purged += self._purge(key, now)
                except ProviderUnavailable:
                    if not purged:
                        raise
                    break  # those that are gone by now must be announced first
        return purged

    def _purge(self, key: str, now: float) -> list[Record]:
        with held(key):
            deadline, entry = self._memory.get(key, (inf, None))
            if now < deadline:
                return []
            if isinstance(entry, Record) and self._delete is not None:
                self._ask(self._delete, key)
            del self._memory[key]
            return [entry] if isinstance(entry, Record) else []

    def _wherever_it_is(self, key: str, now: float, work: Callable[[Record | None], bool]) -> bool:
        """Do the work on the session, under the key that it has by now. False: it is gone."""
        trail = Trail(key, now)
        while True:
            with held(trail.at):
                entry = self._read(trail.at)
                if not isinstance(entry, Gone):
                    return work(trail.own(entry))
            if not trail.follow(entry):
                return False

    def _read(self, key: str) -> Record | Gone | None:
        if key in self._memory:
            return self._memory[key][1]
        blob = None if self._load is None else self._ask(self._load, key)
        if blob is None:
            return None
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise CorruptData(f"load returned a {type(blob).__name__}: bytes went into save")
        return unpack(bytes(blob), key)

    def _write(self, record: Record) -> None:
        self._put(record, record.deadline, None if record.user is None else _as_known(record.user))

    def _put(
        self, entry: Record | Gone, deadline: float, user_id: ids.UserId | None = None
    ) -> None:
        if self._save is not None:
            end = None if deadline == inf else deadline
            self._ask(self._save, entry.key, pack(entry), end, user_id)
        if self._remembers:
            self._memory[entry.key] = deadline, entry

    def _erase(self, key: str, deadline: float) -> None:
        if self._delete is not None:
            self._ask(self._delete, key)
        elif self._load is not None or self._save is not None:
            self._put(Gone(key), deadline)
            return
        self._memory.pop(key, None)

    def _ask(self, function: Callable[..., Answer], *args: object) -> Answer:
        try:
            return function(*args)
        except Exception as error:
            why = type(error).__name__
            raise ProviderUnavailable(f"a function of the app failed: {why}") from error


class FunctionsProviderWithUsers(FunctionsProvider, Users):
    """What ``FunctionsProvider`` makes when it is given ``user_sessions``."""

    def keys_of(self, user: str, now: float) -> list[str]:
        keys: list[str] = self._ask(lambda: list(self._user_sessions(_as_known(user))))
        records = [self.load(key, now) for key in dict.fromkeys(keys)]
        return [record.key for record in records if record is not None and record.user == user]


def _as_known(token: str) -> ids.UserId:
    """The user id of the app; a text that is no user token is one itself."""
    try:
        return ids.user_id(token)
    except ValueError:
        return token
