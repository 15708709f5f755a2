"""The one place that reads the time.

Call it through the module (``clock.now()``), so that a test can put another clock in its place.
"""

from __future__ import annotations

import time


def now() -> float:
    """Wall-clock seconds since the epoch."""
    return time.time()
