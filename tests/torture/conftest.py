"""How long to torture: a few seconds for each test by default, or as long as one says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .shim import Shim


def pytest_addoption(parser: pytest.Parser) -> None:
    # Known only to runs that name this directory: others take the defaults.
    group = parser.getgroup("torture")
    group.addoption("--torture-minutes", type=float, help="how long each test goes on")
    group.addoption("--torture-seed", type=int, help="the seed of a run that failed")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory where there is one: for what looks at thousands of small files."""
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    with TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def fast_path(memory: Path) -> Iterator[Path]:
    """As ``tmp_path``, in memory, and gone after the test."""
    with TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    """What a long run was asked to last, for each test; 0 for a short one."""
    return float(request.config.getoption("--torture-minutes", None) or 0)


@pytest.fixture
def rounds(minutes: float, torture_seed: int) -> Callable[[int], Iterator[int]]:
    """``rounds(n)`` gives the seeds of n rounds; in a long run, of as many as fit into it."""

    def seeds(least: int) -> Iterator[int]:
        end = time.monotonic() + 60 * minutes
        number = 0
        while number < least or time.monotonic() < end:
            yield torture_seed + number
            number += 1

    return seeds


@pytest.fixture
def torture_seed(request: pytest.FixtureRequest) -> int:
    """Printed when a test fails; give it back with ``--torture-seed``."""
    seed = int(request.config.getoption("--torture-seed", None) or 1)
    print(f"--torture-seed {seed}")
    return seed
