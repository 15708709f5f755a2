"""Flask's own tests with our sessions in place of its default: what passes there passes here.

They are the tests of the installed Flask, from its source distribution, in a process of their own:
see ``tests/ecosystem``. No test is left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem.running import PROVIDERS, Run, fetch_or_skip, judge, run
from tests.ecosystem.suites import SUITES

FLASK = SUITES["Flask"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_or_skip(FLASK, tmp_path_factory.mktemp("flask"))


@pytest.fixture(scope="module")
def flasks(archive: Path) -> Run:
    """The run with Flask's own interface: a test may fail for reasons that are not ours."""
    return run(FLASK, archive, None)


@pytest.fixture(scope="module", params=PROVIDERS)
def ours(archive: Path, request: pytest.FixtureRequest) -> Run:
    return run(FLASK, archive, request.param)


def test_what_passes_with_flasks_interface_passes_with_ours(flasks: Run, ours: Run) -> None:
    assert len(flasks.passed()) > 400, flasks.printed
    assert not judge(FLASK, flasks, {"ours": ours}), ours.printed


def test_all_tests_of_sessions_and_flashes_pass(ours: Run) -> None:
    about_sessions = {test for test in ours.outcomes if "session" in test or "flash" in test}
    assert len(about_sessions) >= 20
    failed = about_sessions - ours.passed()
    assert not failed, ours.printed
    assert ours.created > 20
