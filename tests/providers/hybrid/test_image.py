"""When the image is believed, when it is made again, and that it grows."""

from __future__ import annotations

import os
import shutil
from math import inf
from pathlib import Path

import pytest

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import CorruptData
from flask_hybridsession.providers.hybrid import HybridProvider, image, log, opening
from flask_hybridsession.providers.hybrid.image import State

from .tools import NOW, content, create, join, key, run, start


def filled(directory: Path) -> tuple[HybridProvider, dict[str, Record | None]]:
    provider = HybridProvider(directory)
    for name in range(20):
        create(provider, name, user=f"s:{name % 3}", puts={"a": b"%d" % name})
    provider.rename(key(3), key("new"), NOW, NOW + 10)
    provider.destroy(key(4))
    return provider, content(provider)


def check_again(directory: Path, expected: dict[str, Record | None]) -> None:
    provider = HybridProvider(directory)
    assert content(provider) == expected
    found = provider.load(key(3), NOW)
    assert found is not None
    assert found.key == key("new")
    assert sorted(provider.keys_of("s:1", NOW)) == sorted(
        name for name, record in expected.items() if record and record.user == "s:1"
    )
    provider._check()
    provider.close()


RAW = bytes.fromhex(key(1))


def test_states_round_trip() -> None:
    record = Record(key(1), {"a": b"", "\ud800": b"x"}, 1.0, 2.0, inf, "s:\udfff", None)
    state = State(9, record, [(b"k" * 32, 5.0)])
    version, found, aliases = image.decode(RAW, image.encode(RAW, state))
    assert (version, found) == (9, record)
    assert [tuple(pair) for pair in aliases] == state.aliases


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x01", b"\x93\x01\x02\x03"])
def test_unreadable_states_are_corrupt_data(blob: bytes) -> None:
    with pytest.raises(CorruptData, match=key(1)[:12]):
        image.decode(RAW, blob)


def test_the_image_is_believed_when_opened_again(tmp_path: Path) -> None:
    provider, before = filled(tmp_path)
    provider.close()
    inode = (tmp_path / "image").stat().st_ino
    check_again(tmp_path, before)
    assert (tmp_path / "image").stat().st_ino == inode


@pytest.mark.parametrize("loss", ["missing", "empty", "shorter", "garbage", "head"])
def test_a_lost_image_is_made_again(tmp_path: Path, loss: str) -> None:
    provider, before = filled(tmp_path)
    provider.close()
    path = tmp_path / "image"
    if loss == "missing":
        path.unlink()
    elif loss == "garbage":
        path.write_bytes(b"\xa5" * 100_000)
    elif loss == "head":
        path.write_bytes(bytes(8192) + path.read_bytes()[8192:])
    else:
        os.truncate(path, 0 if loss == "empty" else path.stat().st_size - 4096)
    check_again(tmp_path, before)


def test_another_boot_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, before = filled(tmp_path)
    provider.close()
    inode = (tmp_path / "image").stat().st_ino
    monkeypatch.setattr(opening, "boot_id", lambda: bytes(16))
    held = (tmp_path / "image").open("rb")  # so that its inode is not used again
    check_again(tmp_path, before)
    assert (tmp_path / "image").stat().st_ino != inode
    held.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_large_image_is_believed_if_nobody_wrote_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """It is not read; one that was left open by killed workers is made again, unless that takes
    too long."""
    monkeypatch.setattr(log, "_LARGE", 1000)
    monkeypatch.setattr(opening, "_QUICK", 1000)

    def work() -> None:
        provider, _ = filled(tmp_path)
        if closed:
            provider.close()
        os._exit(0)

    run(work)
    inode = (tmp_path / "image").stat().st_ino
    provider = HybridProvider(tmp_path)
    before = content(provider)
    assert len(before) == 19
    assert (tmp_path / "image").stat().st_ino == inode
    provider.close()
    with (tmp_path / "image").open("r+b", buffering=0) as older:
        older.seek(5000)
        older.write(b"damage")
        check_again(tmp_path, before)
        assert (tmp_path / "image").stat().st_ino != inode


def test_a_copied_directory_is_another_store(tmp_path: Path) -> None:
    provider, before = filled(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    provider.destroy(key(1))
    check_again(tmp_path / "two", before)
    assert provider.load(key(1), NOW) is None
    provider.close()


@pytest.mark.parametrize("alone", [True, False])
def test_an_older_log_put_back_is_the_truth_if_it_is_alone(tmp_path: Path, alone: bool) -> None:
    """Beside an image that has seen more it is a mishap."""
    provider, before = filled(tmp_path)
    provider.close()
    shutil.copy2(tmp_path / "log", tmp_path / "backup")
    provider = HybridProvider(tmp_path)
    provider.destroy(key(1))
    provider.close()
    after = {name: record for name, record in before.items() if name != key(1)}
    (tmp_path / "backup").rename(tmp_path / "log")
    if alone:
        (tmp_path / "image").unlink()
    check_again(tmp_path, before if alone else after)
    assert len(list(tmp_path.glob("damaged-*"))) == (not alone)


def test_an_image_made_again_is_seen_by_those_who_have_the_old_one(tmp_path: Path) -> None:
    provider, before = filled(tmp_path)

    def remake() -> None:
        (tmp_path / "image").unlink()
        other = HybridProvider(tmp_path)
        assert content(other) == before
        other.destroy(key(1))
        other.close()

    run(remake)
    assert provider.load(key(1), NOW) is None
    provider.commit(key(2), Change({"b": b"2"}), NOW)
    provider._check()
    assert len(content(provider)) == len(before) - 1
    provider.close()


def test_nobody_else_may_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        provider, _ = filled(tmp_path / "a" / "store")
        assert provider.compact()
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "store").stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a/store").iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"log", "image"} <= modes.keys()
    provider.close()


def fill(directory: Path, part: int) -> None:
    provider = HybridProvider(directory, map_bytes=1 << 18)
    for name in range(60):
        create(provider, (part, name), puts={"a": bytes(20_000)})
        assert provider.exists(key((1 - part, 0)), NOW) in (True, False)
    provider.close()


def test_the_map_grows_under_two_writers_and_a_reader(tmp_path: Path) -> None:
    reader = HybridProvider(tmp_path, map_bytes=1 << 18)
    create(reader, "first")
    writers = [start(fill, tmp_path, part) for part in (0, 1)]
    while any(writer.is_alive() for writer in writers):
        assert reader.exists(key("first"), NOW)
    for writer in writers:
        join(writer)
    assert reader.count(NOW) == 121
    assert (tmp_path / "image").stat().st_size > 1 << 21
    reader.commit(key("first"), Change({"b": bytes(3_000_000)}), NOW)
    reader._check()
    reader.close()


def test_a_map_that_is_too_small_for_the_log_grows_at_recovery(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(100):
        create(provider, name, puts={"a": bytes(20_000)})
    before = content(provider)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path, map_bytes=1 << 18)
    assert content(provider) == before
    provider.close()


SECRET = b"the id in a cookie of a visitor."


def leave_secrets(path: Path) -> None:
    """A worker gives memory back to the heap, and then writes much at once."""
    provider = HybridProvider(path)
    for name in range(2000):
        create(provider, name, puts={"a": b"x" * 500})
    pages = [SECRET * (100 + number % 60) for number in range(3000)]
    del pages[::2]
    assert provider.compact()
    provider.close()


def test_no_memory_of_the_process_gets_into_the_file(tmp_path: Path) -> None:
    """A page is written whole, also where nothing was put into it."""
    run(leave_secrets, tmp_path)
    assert SECRET not in (tmp_path / "image").read_bytes()
