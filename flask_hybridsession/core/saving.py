"""The end of a request: what its changes come to, and what the response does about the cookie."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from . import clock, identity, ids
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
from .names import ASIDE, CLEARED, LOGIN, MOVED, SENT, is_flash
from .session import Binding, Session
from .timers import clockwork

if TYPE_CHECKING:
    from .manager import Manager

log = logging.getLogger("flask_hybridsession")

#: Seconds for which an id that was replaced is known as such. A browser goes on showing it until
#: the response with the new one has arrived: what it asks for meanwhile is nobody's, and no cookie
#: of those answers may come after the new one.
KNOWN_FOR = 15.0

#: Seconds that a request waits for another one to give the session a new id, before it does so
#: itself. One that only writes waits less long.
PATIENCE = 1.0
WRITERS_PATIENCE = 0.25

#: How often a commit is tried again after a ``Conflict``. Each time, another request got through.
MOST_TRIES = 1000


def save(manager: Manager, session: Session) -> bool:
    """Store what a request changed. ``session._cookie`` says what its response must do.

    False: something was to be stored, and was not. Raises ``CodecError`` before anything is
    written, ``ProviderUnavailable``.
    """
    if session._ephemeral:
        return False
    if session._saved is not None:
        session._catch_up()
    elif not session._loaded and not _refreshes_unseen(manager, session):
        return True
    session._withhold_remembered()
    ignored = session._modified is False and not session._logs_in
    pending = NOTHING if ignored else session._pending()
    if pending.puts and session._notice_nested(pending):
        pending = session._pending()
    record = session._record
    if record is None:
        return _save_new(manager, session, pending)
    if (
        pending is NOTHING
        and session._next_sid is None
        and not session._forced
        # Touched so recently that no lifetime asks for more.
        and clock.now() - record.touched < manager._default_terms()[1]
    ):
        return True
    if pending.wipe and session._is_empty():
        session.destroy()
        session._cookie = Action.DELETE
        return True
    return _save_stored(manager, session, record, pending)


def _refreshes_unseen(manager: Manager, session: Session) -> bool:
    """``SESSION_TOUCH_EVERY = 0`` is Flask to the letter: a sliding cookie always goes out."""
    if manager.settings.touch_every != 0 or not _refreshes(manager):
        return False
    session._open()
    return session._record is not None and session._terms().span > 0


def _save_new(manager: Manager, session: Session, pending: Pending) -> bool:
    if session._successor is not None and not session._logs_in:
        if pending:
            _note_gone(session._successor.key, pending)
        return not pending
    if session._is_empty() or session._modified is False:
        if session._ended or (session._modified and session._presented):
            session._cookie = Action.DELETE
        return True
    if session._cannot_send_cookies():
        log.error("a new session cannot be saved: no cookie can be sent any more")
        return False
    _create(manager, session, pending.puts)
    return True


def _create(manager: Manager, session: Session, puts: Mapping[str, bytes]) -> None:
    now = clock.now()
    limits = session._terms(now)
    deadline = limits.deadline(now)
    if limits.span > 0:
        puts = {**puts, SENT: encode(now)}
    binding = session._binding
    new_user = session._new_user()
    user = None if new_user is ... else new_user
    change = Change(puts=puts, create=True, deadline=deadline, touched=now, user=user)
    clockwork.let_pass(deadline)
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
    _end_others(manager, binding, session)


def _save_stored(manager: Manager, session: Session, record: Record, pending: Pending) -> bool:
    binding, renaming = session._binding, session._next_sid is not None
    now = clock.now()
    limits = session._terms()
    other_terms = session._deadline_changes()
    changed = bool(pending) or renaming or other_terms or session._forced
    if not (changed or _touch_is_due(manager, record, limits, now)):
        return True
    if renaming and session._cannot_send_cookies():
        log.error("no cookie can be sent any more, so no new sid: nothing is saved")
        return False
    manager.settle(record.key)
    if not renaming and _is_moving(record, now):
        _await_the_other(manager, record.key, WRITERS_PATIENCE)
    slides = limits.span > 0 and (changed or _refreshes(manager))
    renew = (
        other_terms
        or (slides and _is_old(manager, session, limits, now))
        or (manager.settings.touch_every == 0 and bool(session._modified))
    )
    if limits.span > 0 and (renew or renaming):
        pending = pending._replace(puts={**pending.puts, SENT: encode(now)})
    emptied = bool(pending.drops) and session._is_empty()
    if renaming:
        renamed = _rename(manager, session, record, pending, now)
        if renamed is None:
            return _go_on_without(manager, session, record)
        record = renamed
        pending = pending._replace(puts={**pending.puts, MOVED: encode(record.key)})
    if not _commit(manager, session, record, pending, limits, now):
        session._cookie = Action.LEAVE  # perhaps between the new id and the commit
        return _go_on_without(manager, session, record)
    if renew:
        session._cookie = Action.SEND
    _end_others(manager, binding, session)
    if emptied:
        _end_if_empty(manager, session, pending)
    return True


def _touch_is_due(manager: Manager, record: Record, limits: Terms, now: float) -> bool:
    """An unchanged session is touched at most once in ``SESSION_TOUCH_EVERY``."""
    if limits.idle == inf and not limits.span:
        return False
    if limits.span and not _refreshes(manager) and manager.settings.idle_timeout is None:
        return False
    return now - record.touched >= _touch_every(manager, limits)


def _is_old(manager: Manager, session: Session, limits: Terms, now: float) -> bool:
    """Whether the cookie is to be renewed: with each change would be more often than needed.

    A response with a cookie that is under way while another request logs in would undo that.
    """
    sent = session._hidden(SENT)
    return sent is None or now - sent >= _touch_every(manager, limits)


def _touch_every(manager: Manager, limits: Terms) -> float:
    every = manager.settings.touch_every
    return limits.touch_every() if every is None else every


def _refreshes(manager: Manager) -> bool:
    return bool(manager.config["SESSION_REFRESH_EACH_REQUEST"])


def _commit(
    manager: Manager,
    session: Session,
    record: Record,
    pending: Pending,
    limits: Terms,
    now: float,
) -> bool:
    """Commit; merge and try again while other requests are faster.

    False: the session ended meanwhile, was cleared or has another id. Nothing may come back.
    """
    user = session._new_user()
    deadline = limits.deadline(now)
    mine: dict[str, Any] = {}
    ground = session._ground(MOVED) if pending.wipe else session._ground()
    pending = pending._replace(expects=pending.expects | ground)
    if pending.wipe and (moved := session._base.get(MOVED)):
        pending = pending._replace(puts={MOVED: moved, **pending.puts})
    clockwork.let_pass(deadline)
    for _ in range(MOST_TRIES):
        puts, drops, expects, wipe = pending
        change = Change(puts, drops, wipe, False, expects, deadline, now, user)
        try:
            manager.provider.commit(record.key, change, now)
        except Conflict as conflict:
            # The answer must not be that it is gone while others still find it under this key.
            moving = _is_moving(conflict.current, now)
            stays = moving and not _await_the_other(manager, record.key, WRITERS_PATIENCE)
            if session._is_over(conflict.current, stays):
                _note_gone(record.key, pending)
                return False
            mine = mine or dict(session._live)
            pending = session._merge(pending, conflict.current, mine)
            deadline = session._terms().deadline(now)
        except SessionGone:
            _note_gone(record.key, pending)
            return False
        else:
            session._saved, session._loaded = (record, change), False
            clockwork.notice(deadline)
            return True
    raise ProviderUnavailable("a session is changed by too many requests at once; try again")


def _rename(
    manager: Manager, session: Session, record: Record, pending: Pending, now: float
) -> Record | None:
    """The record under its new key; None: the session is gone.

    The old key is an alias for a while, which nobody is served by. Who marks the session first may
    rename it: of two requests at once one would rename the other's, through that alias.
    """
    sid = session.sid
    key = ids.key_of(sid)
    moved = {MOVED: encode([key, now])}
    try:
        _claim(manager, record, Change(puts=moved, expects=session._ground(CLEARED, MOVED)), now)
        manager.provider.rename(record.key, key, now, now + KNOWN_FOR)
    except SessionGone:
        _note_gone(record.key, pending)
        return None
    except Conflict as conflict:
        _note_gone(record.key, pending)
        if session._logs_in and conflict.current.key == record.key:
            manager.destroy(record.key, record.user)  # it was cleared: its id must not live on
        return None
    session._sid, session._next_sid = sid, None
    session._record = renamed = record._replace(key=key, values={**record.values, **moved})
    session._base = renamed.values
    session._cookie = Action.SEND
    manager.announce("renamed", key=key, old_key=record.key, user=record.user)
    return renamed


def _claim(manager: Manager, record: Record, claim: Change, now: float) -> None:
    """Be the one who renames the session. Raises ``SessionGone``, ``Conflict``: another one was."""
    current = record
    while True:
        if _is_moving(current, now):
            if _await_the_other(manager, record.key, PATIENCE):
                raise SessionGone(record.key)
            claim = claim._replace(expects={**claim.expects, MOVED: current.values.get(MOVED)})
        try:
            manager.provider.commit(record.key, claim, now)
            return
        except Conflict as conflict:
            current = conflict.current
            if not _is_moving(current, now):
                raise


def _is_moving(record: Record, now: float) -> bool:
    """Whether another request is about to rename it, unless it died long ago."""
    claim = identity.read(record.values.get(MOVED))
    return isinstance(claim, list) and claim[0] != record.key and abs(now - claim[1]) < KNOWN_FOR


def _await_the_other(manager: Manager, key: str, patience: float) -> bool:
    """Whether the request that gives the session a new id has done so: until then the old lives."""
    give_up = time.monotonic() + patience
    while (alive := manager.load(key) is not None) and time.monotonic() < give_up:
        time.sleep(0.001)
    return not alive


def _note_gone(key: str, pending: Pending) -> None:
    names = [*pending.puts, *pending.drops]
    words = "session %s... ended during the request, or has another id; not saved: %s"
    log.info(words, key[:12], names)


def _go_on_without(manager: Manager, session: Session, record: Record) -> bool:
    """The session ended meanwhile, or has another id.

    Who logs in gets one with nothing of the old. Who logs out ends it under its new id, too.
    """
    if session._binding is not None and session._binding.user is None:
        manager.destroy(record.key, record.user)
        session._forget()
        session._cookie = Action.DELETE
        return True
    if not session._logs_in or session._cannot_send_cookies():
        return False
    session._start_empty()
    session._record = session._sid = session._next_sid = None
    session._base = {}
    _create(manager, session, session._pending().puts)
    return True


def _end_others(manager: Manager, binding: Binding | None, session: Session) -> None:
    """Of several exclusive logins at once the last one stays."""
    if binding is None or binding.user is None or not binding.exclusive:
        return
    mine = (session._hidden(LOGIN), session.key)
    keys = list(manager.need_users().keys_of(binding.user, clock.now()))
    others = [k for k in keys if k != mine[1] and _logged_in_at(manager, k) < mine]
    manager.destroy_each(others, binding.user)


def _logged_in_at(manager: Manager, key: str) -> tuple[float, str]:
    """Of one that a cookie brought back, or that nobody can read: at the beginning of time."""
    try:
        record = manager.load(key)
        at = None if record is None else record.values.get(LOGIN)
        return (-inf if at is None else decode(at), key)
    except (CorruptData, CodecError):
        return (-inf, key)


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
