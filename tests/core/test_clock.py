"""The clock: what it counts from, and that whoever replaces the wall clock is followed."""

from __future__ import annotations

import ast
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from freezegun import freeze_time

from flask_hybridsession.core import clock

#: Cachelib stamps its own entries with it; leases in a database are for all machines.
MAY_READ_THE_WALL_CLOCK = {"providers/cachelib", "providers/sql"}
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}


@pytest.fixture(autouse=True)
def without_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_anchor", None)


def between(first: Callable[[], float], look: Callable[[], float]) -> bool:
    """Whether two clocks agree."""
    before = first()
    seen = look()
    return before <= seen <= first()


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def loaded_anew() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clock_anew", clock.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_an_anchor_it_is_the_wall_clock() -> None:
    assert between(time.time, clock.now)


def test_with_an_anchor_it_counts_from_the_boot() -> None:
    clock.adopt(1000.0)
    assert between(lambda: 1000.0 + since_boot(), clock.now)


def test_the_first_anchor_holds() -> None:
    clock.adopt(1000.0)
    clock.adopt(2000.0)
    assert clock.anchor() == 1000.0
    assert between(lambda: 1000.0 + since_boot(), clock.now)


def test_an_anchor_of_its_own_is_the_wall_clock_of_now() -> None:
    before = time.time()
    taken = clock.anchor()
    clock.adopt(taken)
    # The two clocks are read one after the other.
    assert before - 1 <= taken + since_boot() <= time.time() + 1
    assert abs(clock.now() - time.time()) < 1


def test_an_anchor_is_never_of_a_frozen_clock() -> None:
    with freeze_time("2001-01-01"):
        taken = clock.anchor()
    assert abs(taken + since_boot() - time.time()) < 60


@pytest.mark.parametrize("anchored", [True, False])
def test_a_frozen_clock_is_followed(anchored: bool) -> None:
    if anchored:
        clock.adopt(1000.0)
    before = clock.now
    with freeze_time("2001-01-01") as frozen:
        assert clock.now is before
        assert clock.now() == time.time() == 978307200.0
        frozen.tick(3600.5)
        assert clock.now() == time.time() == 978310800.5
        frozen.move_to("1999-01-01")
        assert clock.now() == time.time() == 915148800.0
    expected = (lambda: 1000.0 + since_boot()) if anchored else time.time
    assert between(expected, clock.now)


def test_loaded_under_a_frozen_clock_it_goes_on_afterwards() -> None:
    with freeze_time("2001-01-01"):
        anew = loaded_anew()
        assert anew.now() == 978307200.0
        anew.adopt(1000.0)
        assert anew.now() == 978307200.0
    assert between(lambda: 1000.0 + since_boot(), anew.now)


@pytest.mark.parametrize("anchored", [True, False])
def test_a_patched_clock_is_followed(anchored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if anchored:
        clock.adopt(1000.0)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert clock.now() == 5.0


def test_a_library_that_sets_the_clock_beneath_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock.adopt(1000.0)
    monkeypatch.setitem(sys.modules, "time_machine", ModuleType("time_machine"))
    assert between(time.time, clock.now)


def test_where_no_clock_counts_sleep_the_monotonic_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    anew = loaded_anew()
    anew.adopt(1000.0)
    assert between(lambda: 1000.0 + time.monotonic(), anew.now)


def test_a_wall_clock_that_is_far_off_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flask_hybridsession"):
        clock.adopt(clock.anchor())
        assert not caplog.records
    clock._anchor = None
    clock.adopt(clock.anchor() - 86400)
    (record,) = caplog.records
    assert "the wall clock was set by +86400 seconds" in record.getMessage()


def reads_wall_clock(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in WALL
        and isinstance(node.value, ast.Name)
        and node.value.id in {"time", "datetime", "date"}
        for node in ast.walk(tree)
    ) or any(
        isinstance(node, ast.ImportFrom)
        and node.module == "time"
        and WALL & {alias.name for alias in node.names}
        for node in ast.walk(tree)
    )


def test_nobody_else_reads_the_wall_clock() -> None:
    package = Path(clock.__file__).parents[1]
    assert reads_wall_clock(ast.parse(Path(clock.__file__).read_text()))
    readers = {
        str(file.parent.relative_to(package))
        for file in package.rglob("*.py")
        if file != Path(clock.__file__) and reads_wall_clock(ast.parse(file.read_text()))
    }
    assert readers <= MAY_READ_THE_WALL_CLOCK
