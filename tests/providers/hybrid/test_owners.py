"""Whose the directory may be, tried as another user where the tests are root."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flask_hybridsession import ConfigError
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.providers.hybrid import HybridProvider

from ...remote import until
from .tools import NOW, create, key, run

ROOT = Path(__file__).parents[3]

#: A user and a group without a name, who own nothing else.
SOMEBODY = 54321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def as_somebody(work: Callable[[], object]) -> str:
    """The text of the error that it raises as another user; empty: none."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        text = "it did not come to its end"
        try:
            os.setgroups([])
            os.setgid(SOMEBODY)
            os.setuid(SOMEBODY)
            work()
            text = ""
        except ConfigError as error:
            text = str(error)
        except BaseException as error:
            text = f"{error!r} at {traceback.extract_tb(error.__traceback__).format()}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def use(path: Path, **options: object) -> None:
    provider = HybridProvider(path, **options)  # type: ignore[arg-type]
    assert not provider.destroy(create(provider, 1)[::-1])
    provider.destroy(key(1))
    assert provider.count(0.0) == 0
    provider.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others can come to: pytest takes its own from them, time and again."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        path = Path(folder, "place")
        path.mkdir(0o700)
        yield path


def test_a_directory_that_anybody_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"can be written by everybody.*chmod o-w.*sessions"):
        HybridProvider(tmp_path)
    assert list(tmp_path.iterdir()) == []
    use(tmp_path / "sessions")
    assert (tmp_path / "sessions").stat().st_mode & 0o777 == 0o700


def test_a_directory_of_a_group_that_is_not_named_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o770)
    with pytest.raises(ConfigError, match=r'can be written by the group .*chmod g-w.*"group"'):
        HybridProvider(tmp_path)
    use(tmp_path, group=tmp_path.stat().st_gid)
    use(tmp_path, group=tmp_path.group())


@pytest.mark.parametrize("group", ["no such group", True, 1.5, ""])
def test_a_group_that_is_none(tmp_path: Path, group: object) -> None:
    with pytest.raises(ConfigError, match="group must be the name or the number"):
        HybridProvider(tmp_path, group=group)  # type: ignore[arg-type]


@needs_root
def test_a_directory_of_another_user_is_refused(place: Path) -> None:
    os.chown(place, SOMEBODY + 1, SOMEBODY)
    place.chmod(0o775)
    said = as_somebody(lambda: HybridProvider(place, group=SOMEBODY))
    assert f"belongs to {SOMEBODY + 1}, who could replace sessions" in said
    assert f"{place}/sessions" in said
    assert list(place.iterdir()) == []


@needs_root
def test_a_directory_of_ones_own_and_one_of_root_are_fine(place: Path) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    assert as_somebody(lambda: use(place)) == ""
    shared = place.parent / "volume"  # as a volume of a container: root's, for a group
    shared.mkdir()
    os.chown(shared, 0, SOMEBODY)
    shared.chmod(0o770)
    assert "can be written by the group" in as_somebody(lambda: HybridProvider(shared))
    assert as_somebody(lambda: use(shared, group=SOMEBODY)) == ""


@needs_root
def test_files_of_another_user_are_named(place: Path) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    (place / "log").touch()
    said = as_somebody(lambda: HybridProvider(place))
    assert "belongs to root" in said
    assert f"chown -R {SOMEBODY} {place}" in said


@needs_root
def test_a_directory_that_others_made_meanwhile_is_refused(place: Path) -> None:
    """What was fine when the app was loaded is judged again when it is first used."""
    place.chmod(0o777)
    provider = HybridProvider(place / "sessions")
    (place / "sessions").mkdir()
    (place / "sessions").chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by everybody"):
        create(provider, 1)
    assert list((place / "sessions").iterdir()) == []
    provider.close()


# Root, in the directory of somebody


def owners(path: Path) -> set[int]:
    return {file.lstat().st_uid for file in (path, *path.rglob("*"))}


@needs_root
def test_what_root_makes_is_the_owners(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.chown(place, SOMEBODY, SOMEBODY + 1)
    provider = HybridProvider(place)
    HybridProvider(place).close()
    create(provider, 1)
    provider.purge(0.0, 10)
    assert provider.compact()
    (place / "log").unlink()
    create(provider, 2)  # it is written anew
    with (place / "log").open("r+b") as file:
        file.truncate(0)
    create(provider, 3)
    assert list(place.glob("damaged-*")) == []
    assert {path.name for path in place.iterdir()} >= {"log", "image", "image-lock", "lock", "sync"}
    assert {path.lstat().st_uid for path in place.iterdir()} == {SOMEBODY}
    assert {path.lstat().st_gid for path in place.iterdir()} == {SOMEBODY + 1}
    provider.close()
    (place / "image").unlink()
    again = HybridProvider(place)  # recovered
    assert again.count(0.0) == 3
    again.close()
    assert owners(place) == {SOMEBODY}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    told = [record.message for record in caplog.records if "root uses" in record.message]
    assert told == [
        f"root uses {place}, the sessions of {SOMEBODY}: what is made there is given to him"
    ]
    assert as_somebody(lambda: HybridProvider(place).check()) == ""


@needs_root
def test_a_directory_that_root_makes_is_that_of_who_owns_the_one_above(place: Path) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    use(place / "instance" / "sessions")
    assert owners(place) == {SOMEBODY}
    assert (place / "instance" / "sessions").stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_service_of_roots_has_it_for_itself(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(place / "sessions")
    assert owners(place) == {0}
    assert "root uses" not in caplog.text


@needs_root
def test_in_a_directory_of_roots_the_files_tell_whose_they_are(place: Path) -> None:
    os.chown(place, 0, SOMEBODY)
    place.chmod(0o770)
    assert as_somebody(lambda: use(place, group=SOMEBODY)) == ""
    provider = HybridProvider(place, group=SOMEBODY)
    assert provider.compact()
    provider.close()
    assert {path.stat().st_uid for path in place.iterdir()} == {SOMEBODY}
    assert as_somebody(lambda: use(place, group=SOMEBODY)) == ""


WITHOUT_CHOWN = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(24, 0, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_CHOWN
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@needs_root
@pytest.mark.skipif(sys.platform != "linux", reason="a capability of Linux")
@pytest.mark.parametrize("inner", ["", "sessions"])
def test_what_cannot_be_given_is_not_made(place: Path, inner: str) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    code = f"""
from flask_hybridsession import ConfigError
from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider
provider = HybridProvider({str(place / inner)!r})
try:
    provider.commit("0" * 64, Change(create=True), 0.0)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CHOWN, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "cannot be given to him" in done.stdout, done.stderr
    assert f"sudo -u '#{SOMEBODY}'" in done.stdout
    assert list(place.iterdir()) == []


@needs_root
def test_root_follows_no_link(place: Path) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    target = place.parent / "of root"
    for name in ("lock", "sync", "image", "image-lock", "purge", "compact", "log.new", "image.new"):
        (place / name).symlink_to(target)
    with suppress(ConfigError, ProviderUnavailable):
        provider = HybridProvider(place)
        create(provider, 1)
        provider.compact()
    assert not target.exists()


# Commands beside a service

APP = """
import os
from flask import Flask
from flask_hybridsession import HybridSession

app = Flask("shop")
app.config["SESSION_DIR"] = os.environ["PLACE"]
HybridSession(app)
"""
COMMANDS = [
    ["sessions", "stats"],
    ["sessions", "check"],
    ["sessions", "purge"],
    ["sessions", "compact"],
    ["routes"],
]


def flask(folder: Path, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "shop.py").write_text(APP)
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PLACE": str(place)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def facts(place: Path) -> dict[str, tuple[object, ...]]:
    """What would tell of a change. LMDB's table of readers is there to be written."""
    return {
        path.name: (
            *(s.st_ino, s.st_uid, s.st_gid, s.st_mode, s.st_size),
            *(() if path.name == "image-lock" else (s.st_mtime_ns, s.st_ctime_ns)),
        )
        for path in (place, *place.rglob("*"))
        for s in [path.lstat()]
    }


def serve(place: Path, stop: Path) -> None:
    """A worker of a service: it stores, changes and ends sessions until it is told to stop."""
    provider = HybridProvider(place, sync_interval=0.05)
    number = 0
    while not stop.exists():
        made = create(provider, (os.getpid(), number), deadline=inf)
        provider.commit(made, Change({"a": b"2"}), NOW)
        record = provider.load(made, NOW)
        assert record is not None
        assert record.values["a"] == b"2"
        if number % 2:
            assert provider.destroy(made)
        number += 1
        time.sleep(0.005)
    assert number > 10, number
    assert provider.count(0.0) >= number // 2
    provider.close()


@needs_root
def test_roots_commands_beside_a_service_of_another_user(place: Path, tmp_path: Path) -> None:
    place = place / "sessions"
    os.chown(place.parent, SOMEBODY, SOMEBODY)
    target = place.parent / "copied"
    for words in COMMANDS:
        done = flask(tmp_path, place, *words)
        assert done.returncode == (2 if words[-1] == "check" else 0), done.stderr
        assert list(place.parent.iterdir()) == [], f"{words}, where nothing is there"
    for _ in range(2):  # the second time it starts again
        with a_service(place, place.parent.parent / "stop"):
            for words in COMMANDS:
                done = flask(tmp_path, place, *words)
                assert done.returncode == 0, (words, done.stdout, done.stderr)
            copied = flask(
                *(tmp_path, place, "sessions", "copy", "--from", "hybrid", "--to", "hybrid"),
                *("--to-option", f"directory={target}", "--mirror"),
            )
            assert copied.returncode in (0, 1), copied.stderr  # it changes all the time
        for words in COMMANDS:
            done = flask(tmp_path, place, *words)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert owners(place.parent) == {SOMEBODY}
        assert len(list(target.iterdir())) > 4


@contextmanager
def a_service(place: Path, stop: Path) -> Iterator[None]:
    with ThreadPoolExecutor() as pool:
        service = pool.submit(as_somebody, lambda: serve(place, stop))
        try:
            until(lambda: (place / "log").exists() or service.done())
            yield
        finally:
            stop.touch()
            said = service.result(60)
    assert said == ""
    stop.unlink()


@pytest.mark.parametrize("state", ["open", "closed", "killed", "no image", "empty", "absent"])
@pytest.mark.parametrize("words", [COMMANDS[0], COMMANDS[1], COMMANDS[-1]], ids=" ".join)
def test_who_looks_changes_nothing(tmp_path: Path, state: str, words: list[str]) -> None:
    place = tmp_path / "place"
    if state != "absent":
        place.mkdir(0o700)
    provider = HybridProvider(place)
    if state in ("open", "closed", "killed", "no image"):
        for name in range(5):
            create(provider, name)
        provider._store.flush()
    if state == "killed":
        run(lambda: kill_within(place), expected=-signal.SIGKILL)
    if state != "open":
        provider.close()
    if state == "killed":
        with (place / "log").open("ab") as file:
            file.write(b"half a frame")
    if state == "no image":
        (place / "image").unlink()
        with (place / "log").open("ab") as file:
            file.write(b"half a frame")
    before = facts(place) if place.exists() else {}
    done = flask(tmp_path, place, *words)
    assert (facts(place) if place.exists() else {}) == before
    nothing = state in ("empty", "absent")
    assert done.returncode == (2 if nothing and words[-1] == "check" else 0), done.stderr
    if words[-1] == "check":
        said = "no sessions in" if nothing else "no damage found"
        assert said in done.stdout + done.stderr
    if words[-1] == "stats":
        assert re.search(rf"^sessions +{0 if nothing else 5}$", done.stdout, re.M), done.stdout
        assert ("there are no sessions in" in done.stdout) == nothing
    if state == "open":
        create(provider, "more")
        provider.close()


def kill_within(place: Path) -> None:
    provider = HybridProvider(place)
    provider.count(0.0)
    os.kill(os.getpid(), signal.SIGKILL)
