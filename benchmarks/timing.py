"""Timing on a machine that others use too.

All contestants take turns in short blocks, in another order each round, so that whatever slows the
machine for a while slows them all; of each contestant's rounds the *quickest* counts. Other
programs can only add time to a block, never take any away, and a block is short enough to fit
between their turns, so the minimum is what the code itself costs; the median is kept to compare.

The clock is ``perf_counter``: ``process_time`` would hide what a visitor waits for and this process
does not spend, as the answer of a server or of a disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TypeVar

Name = TypeVar("Name")

#: Calls before each block that are not timed: the caches are cold after another contestant's turn.
WARM_UP = 5


def take_turns(
    works: Mapping[Name, Callable[[], object]], rounds: int, block: int
) -> dict[Name, list[float]]:
    """Seconds per call of each work, one number a round: the mean of a block of calls."""
    order = random.Random(0)
    names = list(works)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            seconds[name].append(_time(works[name], block))
    return seconds


def _time(work: Callable[[], object], calls: int) -> float:
    for _ in range(WARM_UP):
        work()
    start = perf_counter()
    for _ in range(calls):
        work()
    return (perf_counter() - start) / calls
