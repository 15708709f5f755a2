"""Flask's own tests with our sessions in place of its default: what passes there passes here.

They are the tests of the installed Flask, from its source distribution, in a process of their own.
``flask_suite/plugin.py`` gives each app ``SESSION_SIGN_COOKIE = True``, since Flask's cookie is
signed, and ``SESSION_TOUCH_EVERY = 0``, which renews it as Flask does. No test is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

PROJECT = Path(__file__).parents[1]


class Run(NamedTuple):
    """test -> "passed", "failed" or "skipped"; what was printed; how many sessions were stored."""

    outcomes: dict[str, str]
    printed: str
    created: int

    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution of the installed Flask."""
    directory = tmp_path_factory.mktemp("flask")
    flask = f"flask=={version('flask')}"
    download = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    got = subprocess.run(
        [*download, "--no-deps", "--no-binary", "flask", "--dest", str(directory), flask],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if got.returncode:
        reason = f"pip cannot get the source of {flask}:\n{got.stdout}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        file.extractall(directory)
    return directory / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def flasks(source: Path) -> Run:
    """The run with Flask's own interface: a test may fail for reasons that are not ours."""
    return run(source, None)


@pytest.fixture(scope="module", params=["memory", "hybrid"])
def ours(source: Path, request: pytest.FixtureRequest) -> Run:
    return run(source, request.param)


def test_what_passes_with_flasks_interface_passes_with_ours(flasks: Run, ours: Run) -> None:
    assert len(flasks.passed()) > 400, flasks.printed
    lost = flasks.passed() - ours.passed()
    assert not lost, ours.printed


def test_all_tests_of_sessions_and_flashes_pass(ours: Run) -> None:
    about_sessions = {test for test in ours.outcomes if "session" in test or "flash" in test}
    assert len(about_sessions) >= 20
    failed = about_sessions - ours.passed()
    assert not failed, ours.printed
    assert ours.created > 20


def run(source: Path, provider: str | None) -> Run:
    report, created = source / f"{provider}.xml", source / f"{provider}.created"
    environ = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    environ |= {
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests" / "flask_suite"), str(PROJECT)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYBRIDSESSION_CREATED": str(created),
    }
    if provider is not None:
        environ |= {
            "HYBRIDSESSION_TYPE": provider,
            "HYBRIDSESSION_DIR": str(source / "sessions"),
        }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", "tests"],
        cwd=source,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert report.exists(), done.stdout
    cases = ElementTree.parse(report).iter("testcase")
    outcomes = {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}
    return Run(outcomes, done.stdout, int(created.read_text()))


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"
