"""What has ended leaves the disk: an old log is compacted, however small it is.

Its header says when it began, and its frames whether a session ended since, so it is all the same
which worker looks, and how often they are restarted.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

from ...core import clock
from .frame import DESTROY, HEADER_SIZE
from .log import Log

if TYPE_CHECKING:
    from .store import Store

#: Seconds between two looks at a log that is old.
_AGAIN = 60.0
#: Frames that are read at a stretch, and seconds of rest after it: requests come first.
_STRETCH, _REST = 200, 0.001


class Age:
    """The age of the log in hand. ``limit`` is how old it may be, in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._due = inf
        self._generation = 0
        #: Up to here nothing has ended.
        self._position = HEADER_SIZE

    def begin(self, log: Log, floor: int) -> None:
        """This is the log in hand, and ``floor`` where its snapshot ends."""
        self._due = log.header.created + self._limit
        if log.generation != self._generation:
            self._generation, self._position = log.generation, max(HEADER_SIZE, floor)

    def is_due(self) -> bool:
        """Whether it is time to look through it; then, not again for a while."""
        now = clock.now()
        if now < self._due:
            return False
        self._due = now + _AGAIN
        return True

    def has_ended(self, store: Store) -> bool:
        """Whether a session ended in it: then its values are still there."""
        meta, log = store.meta(), store.log
        if log is None or not meta.generation == log.generation == self._generation:
            return False
        try:
            for number, frame in enumerate(log.tail(self._position, meta.position)):
                if frame.op == DESTROY:
                    return True
                if number % _STRETCH == 0:
                    if store.is_leaving():
                        return False
                    time.sleep(_REST)
        except OSError:
            return True  # damage in it is healed by a compaction, too
        self._position = meta.position
        return False
