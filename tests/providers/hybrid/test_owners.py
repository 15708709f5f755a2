"""Whose the directory may be, tried as another user where the tests are root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flask_hybridsession import ConfigError
from flask_hybridsession.providers.hybrid import HybridProvider

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
            text = repr(error)
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
    assert provider.count(0.0) == 0
    provider.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that others can come to."""
    for above in (tmp_path, *tmp_path.parents):
        if above.owner() == "root" and not above.stat().st_mode & 1:
            above.chmod(0o711)
    path = tmp_path / "place"
    path.mkdir(0o700)
    return path


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
def test_files_that_a_command_as_root_has_made_are_named(place: Path) -> None:
    os.chown(place, SOMEBODY, SOMEBODY)
    use(place)
    said = as_somebody(lambda: HybridProvider(place))
    assert "belongs to root" in said
    assert f"chown -R {SOMEBODY} {place}" in said
