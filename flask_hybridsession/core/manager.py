"""The life of a session: open, commit, rename, destroy. The only caller of a provider."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from math import inf
from typing import Any

from . import clock, ids
from .change import Change, Record
from .codec import decode, encode
from .cookies import Action
from .errors import (
    CodecError,
    ConfigError,
    Conflict,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from .lifetime import COOKIE_CAP, TOUCH_PART, Terms, terms
from .provider import Lists, Locks, Provider, Users
from .session import (
    ASIDE,
    FLASH,
    FLASHES,
    LOGIN,
    NOTHING,
    Merge,
    Pending,
    Session,
    merge_flashes,
)
from .settings import Settings
from .timers import SLICE, clockwork

log = logging.getLogger("flask_hybridsession")

#: How often a commit is tried again after a ``Conflict``. Each time, another request got through.
MOST_TRIES = 1000
#: Seconds after which a lock is taken from a holder that died or hangs.
LEASE = 30.0

#: (event, details): "created", "renamed", "destroyed", "expired", "rejected".
Announce = Callable[..., None]


class Manager:
    """Opens and saves the sessions of one app.

    ``config`` is where Flask's own settings are read, each time, as Flask does.
    """

    def __init__(
        self,
        provider: Provider,
        settings: Settings,
        config: Mapping[str, Any],
        announce: Announce = lambda event, **details: None,
        load_user: Callable[[ids.UserId], Any] | None = None,
        merges: Mapping[str, Merge] | None = None,
    ) -> None:
        self.provider = provider
        self.settings = settings
        self.config = config
        self.announce = announce
        self.merges: Mapping[str, Merge] = {FLASHES: merge_flashes} if merges is None else merges
        self._load_user = load_user
        self._is_sid = ids.shape_of(settings.id_length)
        self._known_terms: tuple[object, tuple[Terms, float]] = (None, (Terms(), 0.0))
        clockwork.watch(self)

    # -- what a session needs -------------------------------------------------------------------

    def mint(self) -> str:
        return ids.mint(self.settings.id_length)

    def flask_lifetime(self) -> float:
        """``PERMANENT_SESSION_LIFETIME`` in seconds."""
        value = self.config["PERMANENT_SESSION_LIFETIME"]
        return value.total_seconds() if isinstance(value, timedelta) else float(value)

    def browser_terms(self) -> Terms:
        """The terms of a session that says nothing about its lifetime, by far the most."""
        return self._default_terms()[0]

    def _default_terms(self) -> tuple[Terms, float]:
        """``browser_terms``, and how long no session at all needs a touch. Worked out once."""
        value = self.config["PERMANENT_SESSION_LIFETIME"]
        known, default = self._known_terms
        if value is not known:
            idle, lifetime = self.settings.idle_timeout, self.flask_lifetime()
            browser = terms(None, 0.0, permanent=False, flask_lifetime=lifetime, idle=idle)
            every = self.settings.touch_every
            if every is None:
                every = min(browser.idle, lifetime, COOKIE_CAP) * TOUCH_PART
            default = browser, every
            self._known_terms = value, default
        return default

    def open(self, presented: Sequence[str]) -> tuple[str, Record] | None:
        """The session of the first sid that has one. A sid that we never made is never adopted."""
        clockwork.notice()
        for sid in presented:
            if not self._is_sid(sid):
                self.announce("rejected", reason="malformed", key=None)
                continue
            key = ids.key_of(sid)
            try:
                record = self.provider.load(key, clock.now())
            except CorruptData:
                log.error("session %s... is damaged and not served", key[:12])
                self.announce("rejected", reason="corrupt", key=key)
                continue
            if record is not None:
                return sid, record
            self.announce("rejected", reason="unknown", key=key)
        return None

    def reject(self, reason: str, record: Record | None) -> None:
        """A stored session cannot be read: it stays where it is, and is not served."""
        key = None if record is None else record.key
        log.error("session %s... holds a value that cannot be read", (key or "")[:12])
        self.announce("rejected", reason=reason, key=key)

    def load_user(self, user_id: ids.UserId) -> Any:
        if self._load_user is None:
            raise ConfigError(
                "session.user needs a function that loads a user: decorate one with "
                "@sessions.user_loader, or use session.user_id."
            )
        return self._load_user(user_id)

    def note_late_write(self, name: str | None) -> None:
        what = "the session was cleared" if name is None else f"session[{name!r}] was changed"
        log.error("%s after the response had started and is not saved: call session.commit()", what)

    # -- saving ---------------------------------------------------------------------------------

    def save(self, session: Session) -> None:
        """Store what a request changed. ``session._cookie`` says what its response must do.

        Raises ``CodecError`` before anything is written, ``ProviderUnavailable``.
        """
        if session._saved is not None:
            session._catch_up()
        elif not session._loaded and not self._refreshes_unseen(session):
            return
        pending = session._pending() if session._modified is not False else NOTHING
        record = session._record
        if record is None:
            self._save_new(session, pending)
        elif (
            pending is NOTHING
            and session._next_sid is None
            and not session._forced
            # Touched so recently that no lifetime asks for more.
            and clock.now() - record.touched < self._default_terms()[1]
        ):
            return
        elif pending.wipe and session._is_empty():
            session.destroy()
            session._cookie = Action.DELETE
        else:
            self._save_stored(session, record, pending)

    def _refreshes_unseen(self, session: Session) -> bool:
        """``SESSION_TOUCH_EVERY = 0`` is Flask to the letter: a sliding cookie always goes out."""
        if self.settings.touch_every != 0 or not self._refreshes():
            return False
        session._load()
        return session._record is not None and session._terms().span > 0

    def _save_new(self, session: Session, pending: Pending) -> None:
        if session._is_empty() or session._modified is False:
            if session._ended or (session._modified and session._presented):
                session._cookie = Action.DELETE
            return
        if session._closed:
            log.error("a new session after the response had started cannot be saved: no cookie")
            return
        self._create(session, pending.puts)

    def _create(self, session: Session, puts: Mapping[str, bytes]) -> None:
        now = clock.now()
        deadline = session._terms(now).deadline(now)
        login = session._login
        user = None if login is None else login[0]
        change = Change(puts=puts, create=True, deadline=deadline, touched=now, user=user)
        for attempt in range(3):
            key = ids.key_of(session.sid)
            try:
                self.provider.commit(key, change, now)
                break
            except KeyTaken:
                if attempt == 2:
                    raise
                session._sid = None
        session._saved, session._loaded = (Record(key, {}, now, now, inf), change), False
        session._cookie = Action.SEND
        clockwork.notice(deadline)
        self.announce("created", key=key, user=user)
        self._end_others(login, session)

    def _save_stored(self, session: Session, record: Record, pending: Pending) -> None:
        login, renaming = session._login, session._next_sid is not None
        now = clock.now()
        limits = session._terms()
        other_terms = session._deadline_changes()
        changed = bool(pending) or renaming or other_terms or session._forced
        if not (changed or self._touch_is_due(record, limits, now)):
            return
        if renaming and session._closed:
            log.error("a new sid after the response had started cannot be sent: nothing is saved")
            return
        renew = (
            other_terms
            or (limits.span > 0 and (changed or self._refreshes()))
            or (self.settings.touch_every == 0 and bool(session._modified))
        )
        emptied = bool(pending.drops) and session._is_empty()
        if renaming:
            renamed = self._rename(session, record, pending, now)
            if renamed is None:
                if login is not None:
                    self._start_afresh(session, pending)
                return
            record = renamed
        if self._commit(session, record, pending, limits, now):
            if renew:
                session._cookie = Action.SEND
            self._end_others(login, session)
            if emptied:
                self._end_if_empty(session, pending)
        elif renaming:  # it ended between the two steps
            session._cookie = Action.LEAVE
            self.destroy(record.key, record.user)
            if login is not None:
                self._start_afresh(session, pending)

    def _touch_is_due(self, record: Record, limits: Terms, now: float) -> bool:
        """An unchanged session is touched at most once in ``SESSION_TOUCH_EVERY``."""
        if limits.idle == inf and not limits.span:
            return False
        if limits.span and not self._refreshes() and self.settings.idle_timeout is None:
            return False
        every = self.settings.touch_every
        return now - record.touched >= (limits.touch_every() if every is None else every)

    def _refreshes(self) -> bool:
        return bool(self.config["SESSION_REFRESH_EACH_REQUEST"])

    def _commit(
        self, session: Session, record: Record, pending: Pending, limits: Terms, now: float
    ) -> bool:
        """Commit; merge and try again while other requests are faster. False: it is gone."""
        login = session._login
        user: Any = login[0] if login is not None else (None if pending.wipe else ...)
        deadline = limits.deadline(now)
        mine: dict[str, Any] = {}
        if not pending.wipe:
            pending = pending._replace(expects=pending.expects | session._ground())
        for _ in range(MOST_TRIES):
            puts, drops, expects, wipe = pending
            change = Change(puts, drops, wipe, False, expects, deadline, now, user)
            try:
                self.provider.commit(record.key, change, now)
            except Conflict as conflict:
                if session._is_cleared(conflict.current):
                    self._note_gone(record.key, pending)
                    return False
                pending = session._merge(pending, conflict.current, mine)
                deadline = session._terms().deadline(now)
            except SessionGone:
                self._note_gone(record.key, pending)
                return False
            else:
                session._saved, session._loaded = (record, change), False
                clockwork.notice(deadline)
                return True
        raise ProviderUnavailable("a session is changed by too many requests at once; try again")

    def _rename(
        self, session: Session, record: Record, pending: Pending, now: float
    ) -> Record | None:
        """The record under its new key; None: the session is gone."""
        sid = session.sid
        key = ids.key_of(sid)
        try:
            self.provider.rename(record.key, key, now)
        except SessionGone:
            self._note_gone(record.key, pending)
            return None
        session._sid, session._next_sid = sid, None
        session._record = renamed = record._replace(key=key)
        session._cookie = Action.SEND
        self.announce("renamed", key=key, old_key=record.key, user=record.user)
        return renamed

    def _note_gone(self, key: str, pending: Pending) -> None:
        names = [*pending.puts, *pending.drops]
        log.info("session %s... ended during the request; not saved: %s", key[:12], names)

    def _start_afresh(self, session: Session, pending: Pending) -> None:
        """A login met a session that ended meanwhile: the user gets one with nothing of the old."""
        edits = session._edits
        mine = {name: data for name, data in pending.puts.items() if name in edits.puts}
        mine |= {name: encode(number) for name, number in edits.deltas.items()}
        session._live = {name: value for name, value in session._live.items() if name in mine}
        session._live |= edits.deltas
        session._record = session._sid = session._next_sid = None
        session._base = session._raw = {}
        self._create(session, mine)

    def _end_others(self, login: tuple[str, bool] | None, session: Session) -> None:
        """Of several exclusive logins at once the last one stays."""
        if login is None or not login[1]:
            return
        mine = (session._hidden(LOGIN), session.key)
        for key in list(self.need_users().keys_of(login[0], clock.now())):
            if key != mine[1] and self._logged_in_at(key, mine[0]) < mine:
                self.destroy(key, login[0])

    def _logged_in_at(self, key: str, default: float) -> tuple[float, str]:
        try:
            record = self.provider.load(key, clock.now())
            at = None if record is None else record.values.get(LOGIN)
            return (default if at is None else decode(at), key)
        except (CorruptData, CodecError):
            return (-inf, key)  # nobody can use it: it goes

    def _end_if_empty(self, session: Session, pending: Pending) -> None:
        """As Flask does: a session from which the last value was removed ends, with its cookie.

        Unless it was emptied by showing flashes only, or another request put something in.
        """
        if all(_is_flash(name) for name in pending.drops):
            return
        current = self.provider.load(session.key, clock.now())
        if current is None or current.user is not None:
            return
        if not any(_is_content(name) for name in current.values):
            session.destroy()
            session._cookie = Action.DELETE

    # -- ending ---------------------------------------------------------------------------------

    def destroy(self, key: str, user: str | None = None) -> bool:
        """End a session now. True for exactly one caller: it is announced once."""
        destroyed = self.provider.destroy(key)
        if destroyed:
            self.announce("destroyed", key=key, user=user)
        return destroyed

    def destroy_user(self, user: str, keep: str | None = None) -> int:
        """End a user's sessions, but for the one with the key ``keep``; how many there were."""
        users = self.need_users()
        return self._destroy_each(lambda: users.keys_of(user, clock.now()), user, keep)

    def destroy_all(self) -> int:
        lists = self.need_lists()
        return self._destroy_each(lambda: lists.keys(clock.now()))

    def _destroy_each(
        self, find: Callable[[], Iterable[str]], user: str | None = None, keep: str | None = None
    ) -> int:
        """Again while one got away: another request may have given it a new key meanwhile."""
        tried, total = {keep}, 0
        while True:
            keys = [key for key in find() if key not in tried]
            destroyed = sum(self.destroy(key, user) for key in keys)
            total += destroyed
            if destroyed == len(keys):
                return total
            tried.update(keys)

    def sweep(self, now: float, limit: int) -> int:
        """Destroy and announce up to ``limit`` sessions that are due; how many there were."""
        records = self.provider.purge(now, limit)
        for record in records:
            self.announce("expired", key=record.key, user=record.user, record=record)
        return len(records)

    def purge(self) -> int:
        """Destroy all sessions that are due; how many there were."""
        total = 0
        while True:
            count = self.sweep(clock.now(), SLICE)
            total += count
            if count < SLICE:
                return total

    def next_deadline(self) -> float | None:
        return self.provider.next_deadline()

    def close(self) -> None:
        clockwork.unwatch(self)
        self.provider.close()

    # -- abilities ------------------------------------------------------------------------------

    def need_users(self) -> Users:
        users: Users = self._need(Users, "finding the sessions of a user")
        return users

    def need_lists(self) -> Lists:
        lists: Lists = self._need(Lists, "listing sessions")
        return lists

    def _need(self, ability: type[Any], what: str) -> Any:
        if not isinstance(self.provider, ability):
            raise ConfigError(
                f"{what} needs a provider with the ability {ability.__name__}; "
                f"{type(self.provider).__name__} does not have it. See the table of providers."
            )
        return self.provider

    @contextmanager
    def exclusive(self, session: Session, timeout: float) -> Iterator[Session]:
        locks: Locks = self._need(Locks, "session.exclusive()")
        session.commit()
        with ExitStack() as held:
            try:
                held.enter_context(locks.lock(session.key, timeout, LEASE))
            except TimeoutError:
                raise ProviderUnavailable(
                    f"another request has held the session for more than {timeout} seconds"
                ) from None
            self._refresh(session)
            try:
                yield session
            finally:  # what is left for the end of the request would overwrite the next holder's
                session.commit()

    def _refresh(self, session: Session) -> None:
        if session._record is None:
            return
        record = self.provider.load(session._record.key, clock.now())
        if record is None:  # ended: what comes now is not saved
            record = session._record._replace(values={}, user=None)
        session._live = {}
        session._settle(record)


def _is_flash(name: str) -> bool:
    return name == FLASHES or name.startswith(FLASH)


def _is_content(name: str) -> bool:
    return name not in ASIDE
