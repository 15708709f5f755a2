"""C1 and C2: workers killed at random points, and in the middle of a write. What was acknowledged
is there, what was not is there whole or not at all, nothing comes back, no garbage is left behind.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .shim import Shim
from .workers import Crew

KILLED = -signal.SIGKILL
OPTIONS = {"compact_bytes": 60_000, "sync_interval": 0.05}


DURABILITIES = ["always", "interval", "never"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_workers_killed_at_random_points(
    tmp_path: Path, rounds: Callable[[int], Iterator[int]], durability: str, minutes: float
) -> None:
    options = {**OPTIONS, "durability": durability}
    kills = steps = 0
    for seed in rounds(1):
        with Crew(tmp_path / str(seed), seed, options=options) as crew:
            alive = [crew.start() for _ in range(4)]
            for _ in range(40 if minutes else 10):
                victim = alive.pop(crew.dice.randrange(4))
                crew.wait_until_busy(victim)
                time.sleep(crew.dice.random() / 20)
                victim.kill()
                crew.join(victim, KILLED)
                alive.append(crew.start())
                kills += 1
            crew.wait_until_busy(alive[-1])
            crew.kill_all()
            story = crew.judge()
        assert not story.failures()
        assert story.count() > 100
        steps += story.count()
        shutil.rmtree(crew.path)
    print(f"{kills} kills among {steps} acknowledged steps")


@pytest.mark.parametrize("compact_bytes", [6_000, 1 << 30], ids=["compacting", "one log"])
@pytest.mark.parametrize("action", ["before", "half", "after"])
def test_workers_killed_within_a_write(
    tmp_path: Path,
    shim: Shim,
    rounds: Callable[[int], Iterator[int]],
    action: str,
    compact_bytes: int,
) -> None:
    """While another one goes on: on the log, on a new generation of it, and on the first of all."""
    for seed in rounds(2):
        path = tmp_path / str(seed)
        options = {"compact_bytes": compact_bytes, "durability": DURABILITIES[seed % 3]}
        with Crew(path, seed, shared=False, options=options) as crew:

            def kill(number: int, path: Path = path, crew: Crew = crew) -> None:
                fault = f"write:{action}:{number}:1"
                crew.join(crew.start(shim.environment(path, fault)), KILLED)

            kill(crew.dice.randint(1, 3))
            survivor = crew.start(pause=0.001)
            for _ in range(2):
                kill(crew.dice.randint(3, 120))
            crew.wait_until_busy(survivor)
            size = crew.journal(survivor).stat().st_size
            crew.wait_until_busy(survivor, size + 2_000)
            crew.kill_all()
            story = crew.judge()
        assert not story.failures()
        assert story.count() > 20


@pytest.mark.parametrize("action", ["before", "after"])
def test_workers_killed_around_a_sync(
    tmp_path: Path, shim: Shim, rounds: Callable[[int], Iterator[int]], action: str
) -> None:
    for seed in rounds(2):
        path = tmp_path / str(seed)
        options = {"compact_bytes": 6_000, "durability": "always"}
        with Crew(path, seed, options=options) as crew:
            for _ in range(2):
                number = crew.dice.randint(1, 60)
                crew.start(shim.environment(path, f"fdatasync:{action}:{number}:1"))
            for victim in crew.workers:
                crew.join(victim, KILLED)
            story = crew.judge()
        assert not story.failures()
