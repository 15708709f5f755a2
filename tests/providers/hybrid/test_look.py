"""What ``check`` and ``stats`` say of a store that is not open here; and they change nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider

from .tools import NOW, create, files, join, key, start


def fill(path: Path, *names: object) -> None:
    provider = HybridProvider(path)
    for name in names:
        create(provider, name)
    provider.close()


def said(path: Path) -> list[str]:
    """What a check says, which leaves every byte as it is; LMDB's table of readers is for that."""
    before = files(path)
    provider = HybridProvider(path)
    texts = provider.check()
    provider.stats()
    assert provider._store.image is None
    provider.close()
    after = files(path)
    assert {**after, "image-lock": b""} == {**before, "image-lock": b""}
    return texts


def older_image(path: Path) -> None:
    image = (path / "image").read_bytes()
    fill(path, "more")
    with (path / "image").open("r+b") as file:
        file.write(image)


def copied_image(path: Path) -> None:
    (path / "image.copy").write_bytes((path / "image").read_bytes())
    (path / "image.copy").rename(path / "image")


def lost_commits(path: Path) -> None:
    (path / "image").unlink()
    os.truncate(path / "log", 400)


def header(path: Path) -> None:
    (path / "image").unlink()
    with (path / "log").open("r+b") as file:
        file.write(bytes(128))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: None, None),
        (lambda path: (path / "image").unlink(), None),
        (lambda path: (path / "image-lock").unlink(), "image-lock: it is lost"),
        (lambda path: os.truncate(path / "image", 9000), "image: it is not the one"),
        (
            copied_image,
            "image: it is not the one that was written last, or damaged; the next start",
        ),
        (older_image, "image: it is"),
        (lambda path: (path / "log").unlink(), "log: it is lost, or not the one"),
        (lambda path: os.truncate(path / "log", 300), "log: it ends at byte 300, and should at"),
        (lost_commits, r"log: it ends with commit \d, but 3 was acknowledged"),
        (header, "log: it is lost, or its header is"),
        (lambda path: (path / "sync").unlink(), None),
    ],
)
def test_what_is_wrong(tmp_path: Path, damage: object, text: str | None) -> None:
    fill(tmp_path, 1, 2, 3)
    damage(tmp_path)  # type: ignore[operator]
    found = said(tmp_path)
    if text is None:
        assert found == []
    else:
        with pytest.raises(AssertionError, match=text):
            raise AssertionError(*found)


def test_beside_workers_that_write_and_compact_nothing_is_wrong(tmp_path: Path) -> None:
    def work() -> None:
        provider = HybridProvider(tmp_path, compact_bytes=20_000)
        number = 0
        while not (tmp_path / "stop").exists():
            made = create(provider, (os.getpid(), number))
            provider.commit(made, Change({"a": b"2"}), NOW)
            if number % 3:
                provider.destroy(made)
            number += 1
            if number % 50 == 0:
                time.sleep(0.01)
        provider.close()

    workers = [start(work) for _ in range(2)]
    commits = 0
    for _ in range(40):
        provider = HybridProvider(tmp_path)
        if provider._store.is_there():
            assert provider.check() == []
        figures = provider.stats()
        assert provider._store.image is None
        assert int(figures["commits"]) >= commits
        commits = int(figures["commits"])
        provider.close()
        time.sleep(0.02)
    (tmp_path / "stop").touch()
    for worker in workers:
        join(worker)
    assert commits > 100


def test_a_look_opens_nothing_and_keeps_nobody_from_it(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    provider = HybridProvider(tmp_path)
    cold = provider.stats()
    assert (cold["sessions"], cold["state"]) == (1, "sound")
    assert provider.check() == []
    create(provider, 2)
    warm = provider.stats()
    assert (warm["sessions"], warm["state"]) == (2, "open")
    assert cold.keys() == warm.keys()
    assert provider.load(key(1), NOW)
    provider.close()
