"""Flask-Login's own tests pass with our sessions; and scripts/ecosystem tells what does not.

The other packages' tests take longer, and what they need is not in the ``test`` extra.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.ecosystem.running import PROVIDERS, Run, fetch_or_skip, judge, lost, run
from tests.ecosystem.suites import SUITES, Suite

PLAIN = Suite("Package")
#: With these, pip finds nothing.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
#: Tests of a package. One of them holds only as long as the cookie carries the session.
THEIRS = """
import flask
import pytest

app = flask.Flask(__name__)
app.secret_key = "secret"


@pytest.fixture
def cookie():
    client = app.test_client()
    with client.session_transaction() as session:
        session["value"] = 1
    return client.get_cookie("session").value


def test_any_cookie(cookie):
    assert cookie


def test_flasks_cookie(cookie):
    serializer = flask.sessions.SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer.loads(cookie) == {"value": 1}


def test_own_interface():
    app = flask.Flask(__name__)
    app.session_interface = flask.sessions.SecureCookieSessionInterface()
    with app.test_request_context():
        assert isinstance(flask.session, flask.sessions.NullSession)


def test_reached_the_end(request):
    request.addfinalizer(lambda: 1 / 0)


@pytest.mark.skip
def test_skipped():
    pass
"""


def test_flask_login(tmp_path: Path) -> None:
    suite = SUITES["Flask-Login"]
    archive = fetch_or_skip(suite, tmp_path / "flask_login")
    without = run(suite, archive, None)
    assert len(without.passed()) > 100, without.printed
    ours = {provider: run(suite, archive, provider) for provider in PROVIDERS}
    assert not judge(suite, without, ours), "\n".join(its.printed for its in ours.values())


def of(created: int = 5, **outcomes: str) -> Run:
    """A run of twenty tests that pass, and those."""
    passing = {f"test_{number}": "passed" for number in range(20)}
    return Run(passing | outcomes, {"it": "assert 500 == 302"}, "", created)


WITHOUT = of(created=0, it="passed")


def test_a_test_that_fails_only_with_ours_is_told_once_with_its_reason() -> None:
    ours = {"memory": of(it="failed"), "hybrid": of(it="failed")}
    assert judge(PLAIN, WITHOUT, ours) == ["it (memory, hybrid): assert 500 == 302"]
    ours["memory"] = of(it="passed")
    assert judge(PLAIN, WITHOUT, ours) == ["it (hybrid): assert 500 == 302"]


@pytest.mark.parametrize("now", [of(it="skipped"), of()])
def test_a_test_that_is_not_run_with_ours_is_lost(now: Run) -> None:
    assert lost(WITHOUT, now) == {"it"}
    assert judge(PLAIN, WITHOUT, {"memory": now})


@pytest.mark.parametrize("before", ["failed", "skipped"])
def test_a_test_that_does_not_pass_without_does_not_count(before: str) -> None:
    without = of(created=0, it=before)
    assert judge(PLAIN, without, {"memory": of(it="failed"), "hybrid": of(it="passed")}) == []


def test_a_test_that_is_said_to_differ_must_differ() -> None:
    suite = Suite("Package", differing={"it": "its cookie is decoded"})
    failing, passing = of(it="failed"), of(it="passed")
    assert judge(suite, WITHOUT, {"memory": failing, "hybrid": passing}) == []
    (wrong,) = judge(suite, WITHOUT, {"memory": passing, "hybrid": passing})
    assert wrong.startswith("it: ")


def test_runs_that_show_nothing_are_told() -> None:
    unused = of(created=0, it="passed")
    assert judge(PLAIN, WITHOUT, {"memory": unused}) == ["memory: our sessions were not in use"]
    assert judge(PLAIN, of(), {"memory": of()}) == ["without: our sessions were in use"]
    empty = Run({}, {}, "", 0)
    assert judge(PLAIN, empty, {"memory": of()}) == ["without: only 0 tests pass"]
    broken = of(created=0, a="failed", b="failed", c="failed")
    assert judge(PLAIN, broken, {"memory": of()}) == ["without: only 20 tests pass"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A source distribution with THEIRS as its tests."""
    tests = tmp_path / "package-1" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_it.py").write_text(THEIRS)
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tests.parent, "package-1")
    return archive


def test_what_becomes_of_real_tests(archive: Path) -> None:
    without, ours = run(PLAIN, archive, None), run(PLAIN, archive, "memory")
    assert without.outcomes == {
        "tests.test_it::test_any_cookie": "passed",
        "tests.test_it::test_flasks_cookie": "passed",
        "tests.test_it::test_own_interface": "passed",
        "tests.test_it::test_reached_the_end": "failed",
        "tests.test_it::test_skipped": "skipped",
    }, without.printed
    assert "ZeroDivisionError" in without.reasons["tests.test_it::test_reached_the_end"]
    assert lost(without, ours) == {"tests.test_it::test_flasks_cookie"}, ours.printed
    assert (without.created, ours.created) == (0, 2)


def test_hybrid_keeps_its_sessions_in_a_folder_of_the_run(archive: Path) -> None:
    for _ in range(2):
        assert run(PLAIN, archive, "hybrid").created == 2
    folders = list(archive.parent.glob("hybrid-*/sessions"))
    assert len(folders) == 2
    assert all(any(folder.iterdir()) for folder in folders)


def test_tests_that_cannot_be_collected_are_not_taken_for_good(archive: Path) -> None:
    broken = run(Suite("Package", arguments=("-p", "no_such_plugin")), archive, None)
    assert broken.outcomes == {}
    assert "no_such_plugin" in broken.printed


def test_all_that_the_table_needs_is_pinned() -> None:
    pins = Path(__file__).with_name("ecosystem").joinpath("requirements.txt").read_text().lower()
    assert [name for name in SUITES if f"\n{name.lower()}==" not in pins] == []


def test_without_the_network_a_test_is_skipped_but_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in OFFLINE.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip cannot get the source of Flask-Login=="):
        fetch_or_skip(SUITES["Flask-Login"], tmp_path)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="pip cannot get the source of Flask-Login=="):
        fetch_or_skip(SUITES["Flask-Login"], tmp_path)


@pytest.mark.parametrize(
    ("package", "status", "told"), [("Flask", 1, "cannot"), ("Nothing", 2, "")]
)
def test_the_command_fails_if_anything_is_wrong(package: str, status: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ecosystem", package],
        cwd=Path(__file__).parents[1],
        env=os.environ | OFFLINE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert told in done.stdout
