"""The life of a session: open, commit, rename, destroy. The only caller of a provider."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from datetime import timedelta
from typing import Any

from . import clock, forks, identity, ids
from .breaker import own_budgets
from .change import Record
from .edits import Merge, merge_flashes
from .errors import (
    ConfigError,
    CorruptData,
    ProviderUnavailable,
)
from .lifetime import COOKIE_CAP, TOUCH_PART, Terms, terms
from .names import FLASHES
from .provider import Lists, Locks, Provider, Remote, Users
from .saving import save
from .session import Session
from .settings import Settings
from .timers import SLICE, clockwork

log = logging.getLogger("flask_hybridsession")

#: Seconds after which a lock is taken from a holder that died or hangs.
LEASE = 30.0

#: Sessions that a worker remembers to deny, some 2 MB; of more, the first ones.
MOST_DENIED = 10_000

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
        flask_login: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.provider = provider
        self._take(settings)
        self.config = config
        self.announce = announce
        self.merges: Mapping[str, Merge] = {FLASHES: merge_flashes} if merges is None else merges
        #: The method by which Flask-Login asks a user for his id; None: it is not in use.
        self._flask_login = flask_login
        self._load_user = load_user
        #: The sessions whose end the provider has not confirmed, with their users.
        self._denied: dict[str, str | None] = {}
        if isinstance(provider, Remote):
            provider.breaker.on_recovery(self._settle_all)
        clockwork.watch(self)

    def under(self, settings: Settings) -> Manager:
        """The same manager for the sessions that are opened from now on; others keep theirs."""
        twin = copy(self)
        twin._take(settings)
        return twin

    def _take(self, settings: Settings) -> None:
        self.settings = settings
        #: Whether a name tells who is logged in, so that another user in it is a new sid.
        self.rotates_on = identity.matcher(settings.rotate_on)
        self.tells_who = identity.matcher((*settings.rotate_on, *identity.FLASK_LOGIN))
        self._is_sid = ids.shape_of(settings.id_length)
        self._known_terms: tuple[object, tuple[Terms, float]] = (None, (Terms(), 0.0))

    # -- what a session needs -------------------------------------------------------------------

    def mint(self) -> str:
        return ids.mint(self.settings.id_length)

    def mint_beside(self, key: str) -> str:
        """A sid that the session of ``key`` can be renamed to: see ``Provider.kinship``."""
        kin = key[: self.provider.kinship]
        while not ids.key_of(sid := self.mint()).startswith(kin):
            pass
        return sid

    def follows(self) -> bool:
        """Whether Flask-Login says who is logged in, with ids that are texts."""
        return self._followed_method() is not None

    def user_token(self, user: ids.UserId | ids.HasId) -> str:
        """Raises ``TypeError`` for what is no user id."""
        method = self._followed_method()
        if method is None:
            return ids.user_token(user)
        return ids.user_token(user, texts=True, method=method)

    def _followed_method(self) -> str | None:
        return self._flask_login() if self.settings.flask_login else None

    def csrf_names(self) -> Iterable[str]:
        """Where tokens against forged requests may be in a session."""
        named = self.config.get(identity.CSRF_SETTING)
        return (*identity.CSRF_NAMES, named) if isinstance(named, str) else identity.CSRF_NAMES

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

    def open(self, presented: Sequence[str]) -> tuple[str | None, Record] | None:
        """The session of the first sid that has one. A sid that we never made is never adopted.

        Without a sid: the session that a sid shown belonged to until it was given a new one. It is
        served to nobody by the old one, which who planted it knows (ASVS 5.0 7.2.4).
        """
        forks.look()
        successor: Record | None = None
        for sid in presented:
            if not self._is_sid(sid):
                self.announce("rejected", reason="malformed", key=None)
                continue
            key = ids.key_of(sid)
            try:
                record = self._find(key)
            except CorruptData:
                log.error("session %s... is damaged and not served", key[:12])
                self.announce("rejected", reason="corrupt", key=key)
                continue
            if record is not None and record.key == key:
                return sid, record
            successor = successor or record
            self.announce("rejected", reason="unknown", key=key)
        return None if successor is None else (None, successor)

    def load(self, key: str) -> Record | None:
        """The session of that key, by which it is still known."""
        record = self._find(key)
        return record if record is not None and record.key == key else None

    def _find(self, key: str) -> Record | None:
        """The session, unless it was to end: then it is destroyed first, or not served."""
        denied = self._denied
        if key in denied:
            self.settle(key)
        record = self.provider.load(key, clock.now())
        if record is None or record.key not in denied:
            return record
        self.settle(record.key)  # ``key`` was an alias
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

    def save(self, session: Session) -> bool:
        """Store what a request changed. ``session._cookie`` says what its response must do.

        False: something was to be stored, and was not. Raises ``CodecError`` before anything is
        written, ``ProviderUnavailable``.
        """
        try:
            return save(self, session)
        except CorruptData as error:  # since it was loaded: the next request finds it so
            raise ProviderUnavailable("a session was damaged while it was in use") from error

    def refresh(self, session: Session) -> bool:
        """See ``Session.refresh``."""
        if not session.commit() or session._record is None:
            return False
        record = self.load(session._record.key)
        if record is None:
            session._end_unasked()
            return False
        session._live = {}
        session._settle(record)
        return True

    # -- ending ---------------------------------------------------------------------------------

    def destroy(self, key: str, user: str | None = None) -> bool:
        """End a session now. True for exactly one caller: it is announced once.

        While the provider cannot confirm it (``ProviderUnavailable``), the session is denied.
        """
        try:
            destroyed = self.provider.destroy(key)
        except ProviderUnavailable:
            self.deny(key, user)
            raise
        self._denied.pop(key, None)
        if destroyed:
            self.announce("destroyed", key=key, user=user)
        return destroyed

    def deny(self, key: str, user: str | None = None) -> None:
        """Serve the session to nobody, in this worker, until it is known to have ended."""
        if len(self._denied) >= MOST_DENIED:
            return
        self._denied.setdefault(key, user)
        if len(self._denied) == MOST_DENIED:
            log.error("%d sessions are to end and cannot: more are not denied", MOST_DENIED)

    def deny_presented(self, presented: Sequence[str]) -> None:
        """Deny what a client showed, as nobody can tell which of it is a session."""
        for sid in presented:
            if self._is_sid(sid):
                self.deny(ids.key_of(sid))

    def settle(self, key: str) -> None:
        """Destroy the session if it is denied. Raises ``ProviderUnavailable`` if it stays so."""
        if key in self._denied:
            self.destroy(key, self._denied.get(key))

    def _settle_all(self) -> None:
        for key in list(self._denied):
            self.settle(key)

    def destroy_user(self, user: str, keep: str | None = None) -> int:
        """End a user's sessions, but for the one with the key ``keep``; how many there were."""
        users = self.need_users()
        return self._destroy_all_of(lambda: users.keys_of(user, clock.now()), user, keep)

    def destroy_all(self) -> int:
        lists = self.need_lists()
        with own_budgets():
            return self._destroy_all_of(lambda: lists.keys(clock.now()))

    def _destroy_all_of(
        self, find: Callable[[], Iterable[str]], user: str | None = None, keep: str | None = None
    ) -> int:
        """Again while one got away: another request may have given it a new key meanwhile."""
        tried, total = {keep}, 0
        while True:
            keys = [key for key in find() if key not in tried]
            destroyed = self.destroy_each(keys, user)
            total += destroyed
            if destroyed == len(keys):
                return total
            tried.update(keys)

    def destroy_each(self, keys: Sequence[str], user: str | None) -> int:
        """End these sessions; how many were there. Once one cannot be ended, the rest is denied."""
        destroyed = 0
        for index, key in enumerate(keys):
            try:
                destroyed += self.destroy(key, user)
            except ProviderUnavailable:
                for other in keys[index:]:
                    self.deny(other, user)
                raise
        return destroyed

    def sweep(self, now: float, limit: int) -> int:
        """Destroy and announce up to ``limit`` sessions that are due; how many there were.

        For the clockwork: it rests while the provider is known to be away.
        """
        return 0 if self._is_away() else self._sweep(now, limit)

    def _sweep(self, now: float, limit: int) -> int:
        records = self.provider.purge(now, limit)
        for record in records:
            self.announce("expired", key=record.key, user=record.user, record=record)
        try:
            self._settle_all()
        except ProviderUnavailable as error:
            log.warning("sessions that were to end are still denied: %s", error)
        return len(records)

    def purge(self) -> int:
        """Destroy all sessions that are due; how many there were."""
        total = 0
        with own_budgets():
            while True:
                count = self._sweep(clock.now(), SLICE)
                total += count
                if count < SLICE:
                    return total

    def next_deadline(self) -> float | None:
        return None if self._is_away() else self.provider.next_deadline()

    def _is_away(self) -> bool:
        return isinstance(self.provider, Remote) and self.provider.breaker.is_open

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
        session._need_storage()
        with ExitStack() as held:
            try:
                with own_budgets():  # others' work is what is waited for, not the storage
                    held.enter_context(locks.lock(session.key, timeout, LEASE))
            except TimeoutError:
                raise ProviderUnavailable(
                    f"another request has held the session for more than {timeout} seconds"
                ) from None
            session.refresh()
            try:
                yield session
            finally:  # what is left for the end of the request would overwrite the next holder's
                session.commit()
