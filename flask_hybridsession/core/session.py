"""The mapping that views see: loads when it is looked at, finds out by itself what changed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import TYPE_CHECKING, Any

from . import clock, ids
from .change import Change, Record, apply
from .codec import decode
from .cookies import Action
from .edits import GROUND, NO_EDITS, Edits, Pending, is_number
from .errors import CodecError, ConfigError, ProviderUnavailable
from .lifetime import BROWSER, UNLIMITED, Lifetime, Terms, parse_lifetime, terms
from .names import ASIDE, CLEARED, HIDDEN, LIFETIME, LOGIN, PERMANENT

if TYPE_CHECKING:
    from .manager import Manager


class Session(MutableMapping[str, Any]):
    """A session during one request.

    Nothing is loaded, minted or stored before it is looked at. A mapping of str to plain values;
    ``codec`` has their types.
    """

    accessed = False

    _loaded = False
    _ephemeral = False
    _closed = False  # the response has started
    _watched = False  # it is a stream, and what it leaves unsaved is reported at its end
    _record: Record | None = None
    _sid: str | None = None
    _modified: bool | None = None
    _forced = False
    _edits = NO_EDITS
    _next_sid: str | None = None  # what the session is renamed to when it is saved
    _login: tuple[str, bool] | None = None
    _ended = False
    _new = True
    _cookie = Action.LEAVE
    _presented: Sequence[str] = ()
    _base: Mapping[str, bytes] = {}
    _raw: Mapping[str, bytes] = {}
    _saved: tuple[Record, Change] | None = None

    def __init__(self, manager: Manager, presented: Sequence[str] = ()) -> None:
        self._manager = manager
        self._presented = presented
        self._live: dict[str, Any] = {}

    def _present(self) -> Sequence[str]:
        """The sids that the client showed, best first."""
        return self._presented

    # -- the mapping ----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        live = self._live
        if name in live:
            return live[name]
        if not self._loaded:
            self._load()  # after a commit it gives another ``_live``
        data = self._raw[name]
        try:
            value = self._live[name] = decode(data)
        except CodecError:
            self._reject("corrupt")
            raise KeyError(name) from None
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._put(self._checked_name(name), value)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._drop(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or ``default``."""
        if not self._loaded:
            self._load()
        if name not in self._live and name not in self._raw:
            return default
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: object) -> bool:
        if not self._loaded:
            self._load()
        return name in self._live or name in self._raw

    def __iter__(self) -> Iterator[str]:
        # A value that cannot be read makes this a fresh session: not in the middle of a loop.
        for name in self._names():
            if not name.startswith(HIDDEN) and name not in self:
                break
            self.get(name)
        return iter([name for name in self._names() if not name.startswith(HIDDEN)])

    def __len__(self) -> int:
        return sum(not name.startswith(HIDDEN) for name in self._names())

    def __repr__(self) -> str:
        if not self._loaded:
            return f"<{type(self).__name__}, not looked at>"
        return f"<{type(self).__name__} {list(self)}>"

    def clear(self) -> None:
        """Forget everything: values, flashes and the login. Left so, the session ends."""
        self._need_storage()
        self._live = {}
        self._raw = {}
        self._edits = Edits(wiped=True)
        self._login = None
        self._modified = True
        self._note_late_write(None)

    def copy(self) -> dict[str, Any]:
        """The values as a dict."""
        return dict(self)

    def increment(self, name: str, by: int | float = 1) -> Any:
        """Add ``by`` to a number; a missing one counts as 0. Concurrent increments all count.

        Raises ``TypeError`` when the value is no number.
        """
        name = self._checked_name(name)
        value = self.get(name, 0)
        if not is_number(value):
            raise TypeError(f"session[{name!r}] is no number: it holds a {type(value).__name__}")
        value += by
        self._edit().increment(name, value, by)
        self._live[name] = value
        self._changed(name)
        return value

    # -- what Flask and its users know ----------------------------------------------------------

    @property
    def sid(self) -> str:
        """The secret id in the cookie. Never log it; ``key`` may be logged."""
        if not self._loaded:
            self._load()
        if self._next_sid is not None:
            return self._next_sid
        if self._sid is None:
            self._sid = self._manager.mint()
        return self._sid

    @property
    def key(self) -> str:
        """The hash of the sid, by which the session is stored."""
        return self._record.key if self._record is not None else ids.key_of(self.sid)

    @property
    def new(self) -> bool:
        """Whether the session did not exist when this request began."""
        if not self._loaded:
            self._load()
        return self._new

    @property
    def ephemeral(self) -> bool:
        """Whether it is an empty one for this request only, because the provider cannot answer.

        Nothing of it is saved, and ``SESSION_ON_OUTAGE`` asked for that.
        """
        if not self._loaded:
            self._load()
        return self._ephemeral

    @property
    def modified(self) -> bool:
        """Whether something changed; nested changes are found. Setting it True stores a touch."""
        if self._modified is None:
            return self._loaded and bool(self._pending())
        return self._modified

    @modified.setter
    def modified(self, value: bool) -> None:
        if value and not self._loaded:
            self._load()  # there must be something to touch
        self._catch_up()
        self._modified = self._forced = bool(value)

    @property
    def permanent(self) -> bool:
        """Flask's: whether the session outlives the browser, by ``PERMANENT_SESSION_LIFETIME``."""
        return bool(self.get(PERMANENT, False))

    @permanent.setter
    def permanent(self, value: bool) -> None:
        self[PERMANENT] = bool(value)

    # -- times ----------------------------------------------------------------------------------

    @property
    def lifetime(self) -> Lifetime:
        """``UNLIMITED``, ``BROWSER`` or a timedelta. Set, also in seconds, it counts from now."""
        own = self._own_lifetime()
        if own is not None:
            return own[0]
        if self._manager.settings.expires is not None:
            return self._manager.settings.expires
        if self.permanent:
            return dt.timedelta(seconds=self._manager.flask_lifetime())
        return BROWSER

    @lifetime.setter
    def lifetime(self, value: Lifetime | float) -> None:
        try:
            length = parse_lifetime(value, "session.lifetime")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if isinstance(length, dt.timedelta):
            number = length.total_seconds()
        else:
            number = 0.0 if length is UNLIMITED else -1.0
        self._put(LIFETIME, [number, clock.now()])

    @property
    def created(self) -> dt.datetime:
        """When the session was made. UTC."""
        return _utc(self._stored_or(lambda record: record.created))

    @property
    def touched(self) -> dt.datetime:
        """When the session was last stored or touched. UTC."""
        return _utc(self._stored_or(lambda record: record.touched))

    @property
    def expires(self) -> dt.datetime | None:
        """When the session ends if it is not used again; None: never. UTC."""
        if not self._loaded:
            self._load()
        changed = self._record is None or self._deadline_changes()
        deadline = (
            self._terms().deadline(clock.now())
            if changed
            else self._stored_or(lambda record: record.deadline)
        )
        return None if deadline == inf else _utc(deadline)

    @property
    def logged_in_at(self) -> dt.datetime | None:
        """When ``login`` was called, so that an app can ask for a fresh one. UTC."""
        at = self._hidden(LOGIN)
        return None if at is None else _utc(at)

    # -- its life -------------------------------------------------------------------------------

    def regenerate(self) -> None:
        """Give the session a new sid when it is saved; from then on the old one is dead."""
        self._need_storage()
        if self._record is None:
            self._sid = None
        else:
            self._next_sid = self._manager.mint_beside(self._record.key)

    def destroy(self) -> None:
        """End the session, now and everywhere. What is written afterwards begins a new one.

        ``ProviderUnavailable`` says that it may not have ended; until it has, this worker serves
        it to nobody.
        """
        self._load_to_end()
        if self._record is not None:
            self._manager.destroy(self._record.key, self._record.user)
        self._forget()
        self._ended = True

    def commit(self) -> None:
        """Store the changes now rather than at the end of the request."""
        self._manager.save(self)
        self._catch_up()
        self._modified = None

    def exclusive(self, timeout: float = 10) -> AbstractContextManager[Session]:
        """A ``with`` block that only one request of this session is in at a time.

        It begins with the values as they are stored then, and ends with a commit. Waits up to
        ``timeout`` seconds, then raises ``ProviderUnavailable``. Needs a provider with ``Locks``.
        """
        return self._manager.exclusive(self, timeout)

    def login(self, user_id: ids.UserId, exclusive: bool = False) -> None:
        """This is now ``user_id``'s session. It gets a new sid (ASVS 5.0 7.2.4), never an alias.

        ``exclusive`` ends all other sessions of the user.
        """
        token = ids.user_token(user_id)
        self._manager.need_users()
        self.regenerate()
        self._put(LOGIN, clock.now())
        self._login = (token, exclusive)

    def logout(self, everywhere: bool = False) -> None:
        """End this session; with ``everywhere``, all sessions of its user. See ``destroy``."""
        self._load_to_end()
        token = self._user_token()
        if everywhere and token is not None:
            try:
                self._manager.destroy_user(token)
            except ProviderUnavailable:
                self._deny()
                raise
        self.destroy()

    @property
    def user_id(self) -> ids.UserId | None:
        """Who is logged in, of the type that ``login`` was given; None: nobody."""
        token = self._user_token()
        return None if token is None else ids.user_id(token)

    @property
    def user(self) -> Any:
        """What ``@sessions.user_loader`` makes of ``user_id``; None: nobody is logged in."""
        token = self._user_token()
        if token is None:
            return None
        known = self.__dict__.get("_user")
        if known is None or known[0] != token:
            known = self._user = (token, self._manager.load_user(ids.user_id(token)))
        return known[1]

    # -- the package's own values, hidden from the views ----------------------------------------

    def _hidden(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            return None

    def _hidden_names(self, prefix: str) -> list[str]:
        return [name for name in self._names() if name.startswith(prefix)]

    def _take(self, name: str) -> None:
        """Drop at the end of the request, unless another request put a new value meanwhile."""
        self._edit().taken.add(name)

    def _untake(self, name: str) -> None:
        self._edit().taken.discard(name)

    # -- loading --------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._saved is not None:
            self._catch_up()
            return
        try:
            self._open()
        except ProviderUnavailable as error:
            if not self._goes_on_without(error):
                raise
            self._ephemeral = self._loaded = True

    def _open(self) -> None:
        self._presented = self._present()
        found = self._manager.open(self._presented) if self._presented else None
        if found is not None:
            self._sid, self._record = found
            self._base = self._raw = self._record.values
            self._new = False
        self._loaded = True

    def _goes_on_without(self, error: ProviderUnavailable) -> bool:
        """Whether a session that cannot be loaded is an empty one for this request."""
        return self._manager.settings.on_outage == "ephemeral"

    def _need_storage(self) -> None:
        """For what must not seem done when nothing is saved."""
        if self.ephemeral:
            raise ProviderUnavailable("the session could not be loaded and is ephemeral")

    def _load_to_end(self) -> None:
        try:
            self._need_storage()
        except ProviderUnavailable:
            self._deny()
            raise

    def _deny(self) -> None:
        """It was to end and has not: from here on it is served to nobody."""
        if self._record is not None:
            self._manager.deny(self._record.key, self._record.user)
        else:
            self._manager.deny_presented(self._presented)

    def _forget(self) -> None:
        """Become a session that is not stored."""
        self._live = {}
        self._edits = NO_EDITS
        self._saved = None
        self._sid = self._next_sid = self._record = self._login = self._modified = None
        self._base = self._raw = {}
        self._new = self._loaded = True
        self._cookie = Action.LEAVE

    def _reject(self, reason: str) -> None:
        self._manager.reject(reason, self._record)
        self._forget()

    # -- changes --------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        if not self._loaded:
            self._load()
        raw = self._raw
        return [*raw, *(name for name in self._live if name not in raw)]

    def _checked_name(self, name: str) -> str:
        if not isinstance(name, str):
            raise CodecError(f"cannot be stored: names are text, not {type(name).__name__}", name)
        name = str.__str__(name)  # of a StrEnum its text
        if name.startswith(HIDDEN):
            raise CodecError(f"cannot be stored: names with {HIDDEN} are reserved", name)
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise CodecError("cannot be stored: its name is not valid Unicode", name) from None
        return name

    def _put(self, name: str, value: Any) -> None:
        if not self._loaded:
            self._load()
        self._edit().put(name, value)
        self._live[name] = value
        self._changed(name)

    def _drop(self, name: str) -> None:
        self._edit().drop(name)
        self._live.pop(name, None)
        self._raw = {other: data for other, data in self._raw.items() if other != name}
        self._changed(name)

    def _edit(self) -> Edits:
        if self._edits is NO_EDITS:
            self._edits = Edits()
        return self._edits

    def _changed(self, name: str) -> None:
        self._modified = True
        self._note_late_write(name)

    def _report_unsaved(self) -> None:
        """Say what was changed since the response started: nobody will save it."""
        if not self._watched:
            return
        self._watched = False
        self._catch_up()
        if not self._loaded or self._modified is False or self._ephemeral:
            return
        try:
            puts, drops, _, wiped = self._pending()
        except CodecError as error:
            self._manager.note_late_write(error.name)
            return
        if wiped:
            self._manager.note_late_write(None)
        for name in (*puts, *drops):
            if name != CLEARED:
                self._manager.note_late_write(name)

    def _note_late_write(self, name: str | None) -> None:
        if self._closed and not self._watched:
            self._manager.note_late_write(name)

    def _pending(self) -> Pending:
        """What to store. Raises ``CodecError``."""
        return self._edits.pending(
            self._live, self._base, self._manager.merges, self._record is not None
        )

    def _ground(self) -> dict[str, bytes | None]:
        """What must still be there for any change to be stored."""
        return {name: self._base.get(name) for name in GROUND}

    def _is_cleared(self, current: Record) -> bool:
        """Another request forgot everything: a change of what there was would bring it back."""
        return current.values.get(CLEARED) != self._base.get(CLEARED)

    def _merge(self, pending: Pending, current: Record, mine: Mapping[str, Any]) -> Pending:
        pending, anew = self._edits.merge(pending, current, mine, self._base, self._manager.merges)
        for name in anew.keys() - self._edits.taken:
            self._show(name, anew[name])
        return pending

    def _show(self, name: str, value: Any) -> None:
        """Let the view see what was merged."""
        self._raw = {other: data for other, data in self._raw.items() if other != name}
        if value is None:
            self._live.pop(name, None)
        else:
            self._live[name] = value

    def _catch_up(self) -> None:
        """What was stored is the base of what comes now; after most requests nothing does."""
        if self._saved is not None:
            self._loaded = True
            record, change = self._saved
            self._settle(apply(record, change))

    def _settle(self, record: Record) -> None:
        live, taken = self._live, self._edits.taken & record.values.keys()
        self._saved = None
        self._edits = Edits(taken=taken) if taken else NO_EDITS
        self._record = record
        self._base = self._raw = record.values
        self._live = {name: value for name, value in live.items() if name in record.values}
        self._forced = False
        self._login = self._next_sid = None

    def _is_empty(self) -> bool:
        """Nothing that is worth a session: no values, no flashes, nobody logged in."""
        if self._user_token() is not None:
            return False
        taken = self._edits.taken
        return all(name in ASIDE or name in taken for name in self._names())

    # -- terms ----------------------------------------------------------------------------------

    def _own_lifetime(self) -> tuple[Lifetime, float] | None:
        own = self._hidden(LIFETIME)
        if own is None:
            return None
        return parse_lifetime(own[0], "session.lifetime"), own[1]

    def _terms(self, now: float | None = None) -> Terms:
        """When it ends. A session that is not stored yet begins ``now``."""
        manager, record = self._manager, self._record
        length: Lifetime | None = manager.settings.expires
        if length is None and PERMANENT not in self and LIFETIME not in self:
            return manager.browser_terms()
        since = record.created if record is not None else clock.now() if now is None else now
        if own := self._own_lifetime():
            length, since = own
        return terms(
            length,
            since,
            permanent=length is None and self.permanent,
            flask_lifetime=manager.flask_lifetime(),
            idle=manager.settings.idle_timeout,
        )

    def _deadline_changes(self) -> bool:
        return self._edits.change_terms(self._base)

    def _user_token(self) -> str | None:
        if not self._loaded:
            self._load()
        if self._login is not None:
            return self._login[0]
        return None if self._record is None or self._edits.wiped else self._record.user

    def _stored_or(self, read: Callable[[Record], float]) -> float:
        if not self._loaded:
            self._load()
        return clock.now() if self._record is None else read(self._record)


def _utc(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
