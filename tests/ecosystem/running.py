"""Gets a package's own tests, runs them in a process of their own, and compares two such runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from tests.ecosystem.suites import Suite

PROJECT = Path(__file__).parents[2]
PROVIDERS = ("memory", "hybrid")
SECONDS = 600  # that one run may take

# What of this machine's environment the tests see: a proxy or a DATABASE_URI would change them.
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
# The worst of several reports on one test counts.
_RANKS = ("passed", "skipped", "failed")


class Run(NamedTuple):
    """What became of each test, why it failed, what was printed, how many sessions were stored.

    An outcome is "passed", "failed" or "skipped". There is none if pytest did not come to its end.
    """

    outcomes: dict[str, str]
    reasons: dict[str, str]
    printed: str
    created: int

    def those(self, outcome: str) -> set[str]:
        return {test for test, its in self.outcomes.items() if its == outcome}

    def passed(self) -> set[str]:
        return self.those("passed")


class UnavailableError(Exception):
    """pip cannot get a source distribution. It tells why."""


def lost(without: Run, ours: Run) -> set[str]:
    """The tests that pass without this extension, and with it fail, or are not there."""
    return without.passed() - ours.passed()


def judge(suite: Suite, without: Run, ours: dict[str, Run]) -> list[str]:
    """All that is wrong, in words. ``ours`` is provider -> the run with it."""
    wrong = []
    if len(without.passed()) <= 0.9 * (len(without.outcomes) - len(without.those("skipped"))):
        wrong.append(f"without: only {len(without.passed())} tests pass")
    if without.created:
        wrong.append("without: our sessions were in use")
    wrong += [f"{name}: our sessions were not in use" for name in ours if not ours[name].created]
    differ = {test for run in ours.values() for test in lost(without, run)}
    wrong += [_difference(test, without, ours) for test in sorted(differ - set(suite.differing))]
    stale = sorted(set(suite.differing) - differ)
    return wrong + [f"{test}: is said to differ, and does not" for test in stale]


def _difference(test: str, without: Run, ours: dict[str, Run]) -> str:
    losers = {name: run for name, run in ours.items() if test in lost(without, run)}
    whys = (run.reasons.get(test, run.outcomes.get(test, "did not run")) for run in losers.values())
    return f"{test} ({', '.join(losers)}): {'; '.join(dict.fromkeys(whys))}"


def fetch(suite: Suite, directory: Path) -> Path:
    """Download the source distribution of the installed version into the directory."""
    release = f"{suite.package}=={version(suite.package)}"
    options = ["--disable-pip-version-check", "--no-deps", "--no-binary", suite.package]
    directory.mkdir(exist_ok=True)
    got = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), release],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if got.returncode:
        raise UnavailableError(f"pip cannot get the source of {release}:\n{got.stdout}")
    (archive,) = directory.glob("*.tar.gz")
    return archive


def fetch_or_skip(suite: Suite, directory: Path) -> Path:
    """``fetch`` for a test: it is skipped where that fails, and fails where CI is set."""
    try:
        return fetch(suite, directory)
    except UnavailableError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def run(suite: Suite, archive: Path, provider: str | None) -> Run:
    """Run the tests in the archive, unpacked anew, with that provider or with Flask's interface."""
    directory = Path(mkdtemp(prefix=f"{provider or 'without'}-", dir=archive.parent))
    source = _unpacked(archive, directory)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "plugin"]
    command += [f"--junitxml={directory / 'report.xml'}", "-o", "junit_logging=all"]
    printed = directory / "printed"
    # Not into a pipe: a process that a test has left behind would keep it open.
    with printed.open("wb") as output:
        try:
            subprocess.run(
                [*command, *suite.arguments, "tests"],
                cwd=source,
                env=_environ(suite, directory, provider),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            output.write(b"\nIt took too long, and was killed.\n")
    return _read(directory)


def _unpacked(archive: Path, directory: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        file.extractall(directory)
    return directory / archive.name.removesuffix(".tar.gz")


def _environ(suite: Suite, directory: Path, provider: str | None) -> dict[str, str]:
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environ |= {
        "PYTHONPATH": str(_importable(directory)),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYBRIDSESSION_CREATED": str(directory / "created"),
    }
    if provider is not None:
        settings = {"SESSION_TYPE": provider, "SESSION_DIR": str(directory / "sessions")}
        environ["HYBRIDSESSION_SETTINGS"] = json.dumps({**settings, **suite.settings})
    return environ


def _importable(directory: Path) -> Path:
    """A folder with the extension and the plugin alone: our ``tests`` would hide theirs."""
    folder = directory / "importable"
    folder.mkdir()
    for path in (PROJECT / "flask_hybridsession", PROJECT / "tests" / "ecosystem" / "plugin.py"):
        (folder / path.name).symlink_to(path)
    return folder


def _read(directory: Path) -> Run:
    report, created = directory / "report.xml", directory / "created"
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        test = f"{case.get('classname')}::{case.get('name')}"
        outcomes[test] = max(outcomes.get(test, "passed"), _outcome(case), key=_RANKS.index)
        if outcomes[test] == "failed":
            reasons.setdefault(test, _reason(case))
    number = int(created.read_text()) if created.exists() else 0
    return Run(outcomes, reasons, (directory / "printed").read_text(errors="replace"), number)


def _reason(case: ElementTree.Element) -> str:
    """An exception of ours in what was logged, or else what pytest says. One line."""
    for line in "\n".join(case.itertext()).splitlines():
        if line.startswith("flask_hybridsession."):
            return line
    messages = [child.get("message") for child in case if child.tag in {"failure", "error"}]
    return (messages[0] or "failed").partition("\n")[0]


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"
