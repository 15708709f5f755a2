"""Names in a session that are not the app's: the package's own, hidden from views, and Flask's."""

from __future__ import annotations

#: Names that begin so are the package's own.
HIDDEN = "_hybrid."
#: A lifetime that was set for this session: [seconds by the rule of the seeds, since when].
LIFETIME = HIDDEN + "lifetime"
#: When the cookie last went out, where it has an end that moves.
SENT = HIDDEN + "sent"
#: When somebody logged in.
LOGIN = HIDDEN + "login"
#: Another text after each ``clear``: of a request that began before it nothing is stored any more,
#: unless it clears, too.
CLEARED = HIDDEN + "cleared"
#: The key that the last new sid gave it: of a request that began before it nothing is stored. As a
#: list, with a time: the key that a request is about to give it, since then.
MOVED = HIDDEN + "moved"
#: Whose the session was, once Flask-Login has logged him out: another user begins without it.
OWNER = HIDDEN + "owner"
#: Keyed flashes begin so.
FLASH = HIDDEN + "flash."

#: Flask's flashed messages.
FLASHES = "_flashes"
#: Flask's ``session.permanent``.
PERMANENT = "_permanent"

#: What by itself is no reason to keep a session.
ASIDE = frozenset({LIFETIME, LOGIN, CLEARED, MOVED, OWNER, SENT})


def is_flash(name: str) -> bool:
    """Whether it is gone by being shown."""
    return name == FLASHES or name.startswith(FLASH)
