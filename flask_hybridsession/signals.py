"""Signals, each sent once, by whichever worker did it. The sender is the app.

Keyword arguments: ``key`` (the hash of the sid) and ``user_id`` (None: unknown or nobody); besides,
``old_key`` for renamed, ``record`` for expired, ``reason`` for rejected ("malformed", "unknown" or
"corrupt"). ``provider_failed`` has ``error`` only.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A session was stored for the first time.
session_created = _signals.signal("hybridsession-created")
#: A session got a new sid: ``regenerate`` or ``login``.
session_renamed = _signals.signal("hybridsession-renamed")
#: A session was ended by logout, ``destroy`` or an operator.
session_destroyed = _signals.signal("hybridsession-destroyed")
#: A session was ended by its deadline. Sent outside a request, within an app context.
session_expired = _signals.signal("hybridsession-expired")
#: A client showed a cookie that names no session.
session_rejected = _signals.signal("hybridsession-rejected")
#: The provider could not answer. A request that depended on it got a 503, or what
#: ``SESSION_ON_OUTAGE`` says.
provider_failed = _signals.signal("hybridsession-provider-failed")
