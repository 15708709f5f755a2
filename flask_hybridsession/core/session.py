"""The mapping that views see: loads when it is looked at, finds out by itself what changed."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple

from . import clock, identity, ids
from .change import Change, Record, apply
from .codec import decode, encode
from .cookies import Action
from .edits import GROUND, NO_EDITS, Edits, Pending, encode_named, is_number
from .errors import CodecError, ConfigError, ProviderUnavailable
from .lifetime import BROWSER, UNLIMITED, Lifetime, Terms, parse_lifetime, terms
from .names import ASIDE, CLEARED, HIDDEN, LIFETIME, LOGIN, MOVED, OWNER, PERMANENT

if TYPE_CHECKING:
    from .manager import Manager


log = logging.getLogger("flask_hybridsession")

#: Seconds in which a second login of the same user is not noted again.
MINUTE = 60.0


class Binding(NamedTuple):
    """Whose the session becomes when it is saved; None: nobody's."""

    user: str | None
    exclusive: bool = False


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
    _binding: Binding | None = None
    _bound_by_name = False  # Flask-Login has just written who it is
    _unconfirmed = False  # Flask-Login has not said yet whether it knows that user
    _logs_in = False  # this request tells who the user is, in whatever way
    _rotated = False  # and has given a new sid for it
    _successor: Record | None = None  # the sid shown was this session's, before a new one
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
        self._binding = None
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
        """When somebody logged in, so that an app can ask for a fresh login. UTC.

        None: nobody is, or it was no more than a cookie of Flask-Login that remembers him.
        """
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
        record = self._record or self._successor
        if record is not None:
            self._manager.destroy(record.key, record.user)
        self._forget()
        self._ended = True

    def commit(self) -> bool:
        """Store the changes now rather than at the end of the request.

        False: they could not be stored. If that is since the session has ended, by a logout in
        another request or by a new id, it is empty from here on, and nothing of it is saved.
        """
        stored = self._manager.save(self)
        keeps_its_id = self._next_sid is not None and self._cannot_send_cookies()
        if not stored and self._record is not None and not keeps_its_id:
            self._end_unasked()
        self._catch_up()
        self._modified = None
        return stored

    def refresh(self) -> bool:
        """Store the changes, then read the session anew: for a socket or a task that takes long.

        False: there is none, or it has ended, by a logout in another request or by a new id. Then
        it is empty from here on, and nothing of it is saved.
        """
        if not self._loaded:
            self._load()
        return self._manager.refresh(self)

    def exclusive(self, timeout: float = 10) -> AbstractContextManager[Session]:
        """A ``with`` block that only one request of this session is in at a time.

        It begins with the values as they are stored then, and ends with a commit. Waits up to
        ``timeout`` seconds, then raises ``ProviderUnavailable``. Needs a provider with ``Locks``.
        """
        return self._manager.exclusive(self, timeout)

    def login(self, user_id: ids.UserId | ids.HasId, exclusive: bool = False) -> None:
        """This is now ``user_id``'s session. It gets a new sid (ASVS 5.0 7.2.4), never an alias.

        What an anonymous visitor collected stays, but for tokens against forged requests. Over a
        session that is or was another user's it starts empty, but for what this request wrote.
        ``user_id`` may be a user object with ``get_id()``. ``exclusive`` ends all other sessions of
        the user; it needs a provider with ``Users``. Raises ``TypeError`` for what is no user id.
        """
        token = self._manager.user_token(user_id)
        if exclusive:
            self._manager.need_users()
        self.regenerate()
        self._bind(token, exclusive)

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

    # -- who it belongs to ----------------------------------------------------------------------

    def _bind(self, token: str, exclusive: bool = False) -> None:
        """It is the user's from here on: nothing of another's, no token of before."""
        owner = self._user_token() or self._hidden(OWNER)
        if owner != token:
            self._forget_csrf()
        if owner not in (None, token):
            self._start_empty()
        if OWNER in self:
            self._drop(OWNER)
        self._put(LOGIN, clock.now())
        self._binding = Binding(token, exclusive)
        self._unconfirmed = False
        self._logs_in = True

    def _unbind(self) -> None:
        """Flask-Login has logged the user out: it remembers only whose it was."""
        owner = self._user_token()
        if owner is not None:
            self._put(OWNER, owner)
            self._drop(LOGIN)
            self._binding = Binding(None)
            self._rotate()

    def _start_empty(self) -> None:
        """Nothing is left but what this request wrote, without what it added it to."""
        written = self._edits.own_work(self._live, self._base, self._manager.merges)
        self._live, self._raw, self._edits = {}, {}, Edits(wiped=True)
        for name, value in written.items():
            self._edits.put(name, value)
            self._live[name] = value

    def _forget_csrf(self) -> None:
        """Drop the tokens against forged requests that were here before this request."""
        for name in self._manager.csrf_names():
            new = name in self._edits.puts and encode(self._live[name]) != self._base.get(name)
            if not new:
                if name in self:
                    self._drop(name)
                self._edit().barred.add(name)

    def _rotate(self) -> None:
        """A new sid, since who the user is has changed. One in a request: nobody knows it yet."""
        if self._record is None or self._rotated:
            return
        self._rotated = True
        if self._cannot_send_cookies():
            key = self._record.key
            log.warning("session %s... keeps its id at a login: no cookie can be sent", key[:12])
        elif self._next_sid is None:
            self.regenerate()

    def _notice(self, name: str, value: Any) -> None:
        """``name`` tells who is logged in: is it another by now?"""
        after = identity.read(encode_named(name, value))
        if name in identity.FLASK_LOGIN and self._manager.follows():
            if name == identity.FLASK_LOGIN_FRESH:
                self._follow_fresh(bool(after))
            elif identity.is_nobody(after):
                self._unbind()
            else:
                self._follow(after)
        elif self._manager.rotates_on(name):
            self._judge(self.get(name), after)

    def _follow(self, user_id: Any) -> None:
        """Flask-Login says who it is, some apps with each request."""
        another = identity.is_another(self.get(identity.FLASK_LOGIN_USER), user_id)
        token = self._manager.user_token(user_id)
        if token != self._user_token():
            self._bind(token)
            self._bound_by_name = True
        elif clock.now() - (self._hidden(LOGIN) or -inf) > MINUTE:
            self._put(LOGIN, clock.now())
        self._logs_in = True
        if another:
            self._rotate()

    def _follow_fresh(self, fresh: bool) -> None:
        """Flask-Login says whether he gave a password, or is only remembered by a cookie."""
        if not fresh and self._bound_by_name:
            self._drop(LOGIN)
            self._unconfirmed = True  # whether there still is such a user, it finds out now
        elif (
            fresh
            and self.get(identity.FLASK_LOGIN_FRESH) is False
            and self._user_token() is not None
        ):
            self._put(LOGIN, clock.now())
            self._rotate()
        self._bound_by_name = False

    def _confirm(self) -> None:
        """Flask-Login knows the user."""
        self._unconfirmed = False

    def _leave(self) -> None:
        """Flask-Login has logged out whoever it was, also one of whom the session knows nothing."""
        self._load_to_end()
        if self._successor is not None:
            self.destroy()

    def _judge(self, before: Any, after: Any) -> bool:
        """Whether one of the app's own names tells of another user; if so it has rotated."""
        if not identity.is_another(before, after):
            return False
        self._forget_csrf()
        self._logs_in = True
        self._rotate()
        return True

    def _notice_nested(self, pending: Pending) -> bool:
        """Whether a value that changed in place tells of another user; if so it has rotated."""
        if self._rotated:
            return False
        base = {} if pending.wipe else self._base
        names = [name for name in pending.puts if self._manager.rotates_on(name)]
        for name in names:
            if name == identity.FLASK_LOGIN_USER and self._manager.follows():
                continue
            if self._judge(identity.read(base.get(name)), identity.read(pending.puts[name])):
                self._edit().puts.setdefault(name, None)
                return True
        return False

    def _withhold_remembered(self) -> None:
        """A cookie that remembers somebody logs in nobody under an id that stays.

        Whoever planted the id would be him. The next request shows the cookie again.
        """
        remembered = self._binding is not None and self.get(identity.FLASK_LOGIN_FRESH) is False
        if remembered and self._rotated and self._next_sid is None and self._cannot_send_cookies():
            self._binding = None
            for name in (*identity.FLASK_LOGIN, LOGIN):
                if name in self:
                    self._edit().drop(name)

    def _new_user(self) -> str | None | EllipsisType:
        """Whose it is when it is saved; ``...``: whose it was."""
        if (binding := self._confirmed()) is not None:
            return binding.user
        return None if self._edits.wiped else ...

    def _confirmed(self) -> Binding | None:
        return None if self._unconfirmed else self._binding

    def _cannot_send_cookies(self) -> bool:
        """The response has started, or there is none."""
        return self._closed

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
            sid, record = found
            if sid is None:
                self._successor = record
            else:
                self._sid, self._record = sid, record
                self._base = self._raw = record.values
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
        self._sid = self._next_sid = self._record = self._binding = self._modified = None
        self._successor = None
        self._logs_in = self._rotated = self._unconfirmed = False
        self._base = self._raw = {}
        self._new = self._loaded = True
        self._cookie = Action.LEAVE

    def _end_unasked(self) -> None:
        """Become a session that is not stored, and is not to be: another request has ended it."""
        record = self._record
        self._forget()
        self._successor = record

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
        if self._manager.tells_who(name):
            self._notice(name, value)
        self._edit().put(name, value)
        self._live[name] = value
        self._changed(name)

    def _drop(self, name: str) -> None:
        if name == identity.FLASK_LOGIN_USER and self._manager.follows():
            self._unbind()
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

    def _ground(self, *names: str) -> dict[str, bytes | None]:
        """What must still be there for any change to be stored."""
        return {name: self._base.get(name) for name in names or GROUND}

    def _is_over(self, current: Record, stays: bool = False) -> bool:
        """Another request forgot everything, or gave a new sid: what this one knows is the past.

        ``stays``: who was about to give a new sid has died.
        """
        names = (CLEARED,) if stays else (CLEARED, MOVED)
        return any(current.values.get(name) != self._base.get(name) for name in names)

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
        self._binding = self._next_sid = None

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
        if (binding := self._confirmed()) is not None:
            return binding.user
        return None if self._record is None or self._edits.wiped else self._record.user

    def _stored_or(self, read: Callable[[Record], float]) -> float:
        if not self._loaded:
            self._load()
        return clock.now() if self._record is None else read(self._record)


def _utc(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
