"""Whether this process may have threads of its own, beside those that serve requests.

The master of uWSGI may not: it forks without Python's lock, and a child that is made while a thread
has that lock waits for it for ever. Nor may a worker of uWSGI that was told to have none: between
requests its threads stand still, with whatever they have locked. What threads would do is done
within requests there.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

log = logging.getLogger("flask_hybridsession")
_warned = False


def may_start() -> bool:
    """Whether a thread that is started now runs, and does no harm."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return True
    if not getattr(uwsgi, "has_threads", True):
        _warn()
        return False
    return bool(uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler())


def _warn() -> None:
    global _warned
    if not _warned:
        _warned = True
        log.warning(
            "uWSGI runs no threads here: each change of a session is brought to the disk before "
            "its response, and sessions expire when there are requests. Set enable-threads = true"
        )
