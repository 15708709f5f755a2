"""The end of a request: what its changes come to, and what the response does about the cookie."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

from . import clock, ids
from .change import Change, Record
from .codec import decode, encode
from .cookies import Action
from .edits import NOTHING, Pending
from .errors import (
    CodecError,
    Conflict,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from .lifetime import Terms
from .names import ASIDE, LOGIN, is_flash
from .session import Session
from .timers import clockwork

if TYPE_CHECKING:
    from .manager import Manager

log = logging.getLogger("flask_hybridsession")

#: How often a commit is tried again after a ``Conflict``. Each time, another request got through.
MOST_TRIES = 1000


def save(manager: Manager, session: Session) -> None:
    """Store what a request changed. ``session._cookie`` says what its response must do.

    Raises ``CodecError`` before anything is written, ``ProviderUnavailable``.
    """
    if session._ephemeral:
        return
    if session._saved is not None:
        session._catch_up()
    elif not session._loaded and not _refreshes_unseen(manager, session):
        return
    pending = session._pending() if session._modified is not False else NOTHING
    record = session._record
    if record is None:
        _save_new(manager, session, pending)
    elif (
        pending is NOTHING
        and session._next_sid is None
        and not session._forced
        # Touched so recently that no lifetime asks for more.
        and clock.now() - record.touched < manager._default_terms()[1]
    ):
        return
    elif pending.wipe and session._is_empty():
        session.destroy()
        session._cookie = Action.DELETE
    else:
        _save_stored(manager, session, record, pending)


def _refreshes_unseen(manager: Manager, session: Session) -> bool:
    """``SESSION_TOUCH_EVERY = 0`` is Flask to the letter: a sliding cookie always goes out."""
    if manager.settings.touch_every != 0 or not _refreshes(manager):
        return False
    session._open()
    return session._record is not None and session._terms().span > 0


def _save_new(manager: Manager, session: Session, pending: Pending) -> None:
    if session._is_empty() or session._modified is False:
        if session._ended or (session._modified and session._presented):
            session._cookie = Action.DELETE
        return
    if session._closed:
        log.error("a new session after the response had started cannot be saved: no cookie")
        return
    _create(manager, session, pending.puts)


def _create(manager: Manager, session: Session, puts: Mapping[str, bytes]) -> None:
    now = clock.now()
    deadline = session._terms(now).deadline(now)
    login = session._login
    user = None if login is None else login[0]
    change = Change(puts=puts, create=True, deadline=deadline, touched=now, user=user)
    for attempt in range(3):
        key = ids.key_of(session.sid)
        try:
            manager.provider.commit(key, change, now)
            break
        except KeyTaken:
            if attempt == 2:
                raise
            session._sid = None
    session._saved, session._loaded = (Record(key, {}, now, now, inf), change), False
    session._cookie = Action.SEND
    clockwork.notice(deadline)
    manager.announce("created", key=key, user=user)
    _end_others(manager, login, session)


def _save_stored(manager: Manager, session: Session, record: Record, pending: Pending) -> None:
    login, renaming = session._login, session._next_sid is not None
    now = clock.now()
    limits = session._terms()
    other_terms = session._deadline_changes()
    changed = bool(pending) or renaming or other_terms or session._forced
    if not (changed or _touch_is_due(manager, record, limits, now)):
        return
    if renaming and session._closed:
        log.error("a new sid after the response had started cannot be sent: nothing is saved")
        return
    manager.settle(record.key)
    renew = (
        other_terms
        or (limits.span > 0 and (changed or _refreshes(manager)))
        or (manager.settings.touch_every == 0 and bool(session._modified))
    )
    emptied = bool(pending.drops) and session._is_empty()
    if renaming:
        renamed = _rename(manager, session, record, pending, now)
        if renamed is None:
            if login is not None:
                _start_afresh(manager, session, pending)
            return
        record = renamed
    outcome = _commit(manager, session, record, pending, limits, now)
    if outcome is Outcome.STORED:
        if renew:
            session._cookie = Action.SEND
        _end_others(manager, login, session)
        if emptied:
            _end_if_empty(manager, session, pending)
    elif login is not None:
        if outcome is Outcome.CLEARED:
            manager.destroy(record.key, record.user)
        session._cookie = Action.LEAVE
        _start_afresh(manager, session, pending)
    elif outcome is Outcome.GONE:  # perhaps between the new id and the commit
        session._cookie = Action.LEAVE


def _touch_is_due(manager: Manager, record: Record, limits: Terms, now: float) -> bool:
    """An unchanged session is touched at most once in ``SESSION_TOUCH_EVERY``."""
    if limits.idle == inf and not limits.span:
        return False
    if limits.span and not _refreshes(manager) and manager.settings.idle_timeout is None:
        return False
    every = manager.settings.touch_every
    return now - record.touched >= (limits.touch_every() if every is None else every)


def _refreshes(manager: Manager) -> bool:
    return bool(manager.config["SESSION_REFRESH_EACH_REQUEST"])


class Outcome(Enum):
    """What became of a commit."""

    STORED = "stored"
    GONE = "the session ended meanwhile"
    CLEARED = "the session was cleared meanwhile: nothing of before may come back"


def _commit(
    manager: Manager,
    session: Session,
    record: Record,
    pending: Pending,
    limits: Terms,
    now: float,
) -> Outcome:
    """Commit; merge and try again while other requests are faster."""
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
            manager.provider.commit(record.key, change, now)
        except Conflict as conflict:
            if session._is_cleared(conflict.current):
                _note_gone(record.key, pending)
                return Outcome.CLEARED
            mine = mine or dict(session._live)
            pending = session._merge(pending, conflict.current, mine)
            deadline = session._terms().deadline(now)
        except SessionGone:
            _note_gone(record.key, pending)
            return Outcome.GONE
        else:
            session._saved, session._loaded = (record, change), False
            clockwork.notice(deadline)
            return Outcome.STORED
    raise ProviderUnavailable("a session is changed by too many requests at once; try again")


def _rename(
    manager: Manager, session: Session, record: Record, pending: Pending, now: float
) -> Record | None:
    """The record under its new key; None: the session is gone."""
    sid = session.sid
    key = ids.key_of(sid)
    try:
        manager.provider.rename(record.key, key, now)
    except SessionGone:
        _note_gone(record.key, pending)
        return None
    session._sid, session._next_sid = sid, None
    session._record = renamed = record._replace(key=key)
    session._cookie = Action.SEND
    manager.announce("renamed", key=key, old_key=record.key, user=record.user)
    return renamed


def _note_gone(key: str, pending: Pending) -> None:
    names = [*pending.puts, *pending.drops]
    log.info("session %s... ended during the request; not saved: %s", key[:12], names)


def _start_afresh(manager: Manager, session: Session, pending: Pending) -> None:
    """A login met a session that ended meanwhile: the user gets one with nothing of the old."""
    edits = session._edits
    mine = {name: data for name, data in pending.puts.items() if name in edits.puts}
    mine |= {name: encode(number) for name, number in edits.deltas.items()}
    session._live = {name: value for name, value in session._live.items() if name in mine}
    session._live |= edits.deltas
    session._record = session._sid = session._next_sid = None
    session._base = session._raw = {}
    _create(manager, session, mine)


def _end_others(manager: Manager, login: tuple[str, bool] | None, session: Session) -> None:
    """Of several exclusive logins at once the last one stays."""
    if login is None or not login[1]:
        return
    mine = (session._hidden(LOGIN), session.key)
    keys = list(manager.need_users().keys_of(login[0], clock.now()))
    others = [k for k in keys if k != mine[1] and _logged_in_at(manager, k, mine[0]) < mine]
    manager.destroy_each(others, login[0])


def _logged_in_at(manager: Manager, key: str, default: float) -> tuple[float, str]:
    try:
        record = manager.load(key)
        at = None if record is None else record.values.get(LOGIN)
        return (default if at is None else decode(at), key)
    except (CorruptData, CodecError):
        return (-inf, key)  # nobody can use it: it goes


def _end_if_empty(manager: Manager, session: Session, pending: Pending) -> None:
    """As Flask does: a session from which the last value was removed ends, with its cookie.

    Unless it was emptied by showing flashes only, or another request put something in.
    """
    if all(is_flash(name) for name in pending.drops):
        return
    current = manager.load(session.key)
    if current is None or current.user is not None:
        return
    if current.values.keys() <= ASIDE:
        session.destroy()
        session._cookie = Action.DELETE
