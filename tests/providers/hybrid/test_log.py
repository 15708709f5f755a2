"""A log that is cut, flipped, padded, unlinked, replaced: never wrong data, nothing comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import ConfigError
from flask_hybridsession.core.packing import dumps, loads
from flask_hybridsession.providers.hybrid import HybridProvider, frame
from flask_hybridsession.providers.hybrid.frame import Frame, Header
from flask_hybridsession.providers.hybrid.log import Log
from flask_hybridsession.providers.hybrid.recovery import Recovered, replay

from .tools import NOW, content, create, files, key

State = dict[str, Record]


def story(provider: HybridProvider) -> list[State]:
    """Every kind of frame; the state after each commit."""
    states: list[State] = [{}]

    def note() -> None:
        states.append(content(provider, 0.0))

    for name in ("kept", "gone", "due", "moved", "changed"):
        create(provider, name, user=f"s:{name}", deadline=NOW + 5 if name == "due" else inf)
        note()
    assert provider.compact()
    states[:] = [content(provider, 0.0)]
    provider.commit(key("changed"), Change({"b": b"2"}, touched=NOW + 1), NOW)
    note()
    provider.destroy(key("gone"))
    note()
    provider.rename(key("moved"), key("moved 2"), NOW, NOW + 2)
    note()
    provider.commit(key("moved"), Change({"c": b"3"}, ["a"], user=None), NOW)
    note()
    provider.purge(NOW + 3, 10)
    note()
    provider.purge(NOW + 6, 10)
    note()
    create(provider, "late", deadline=inf)
    note()
    provider.commit(key("changed"), Change({"d": b"4"}, wipe=True), NOW)
    note()
    return states


@pytest.fixture
def told(tmp_path: Path) -> tuple[bytes, list[State]]:
    """The bytes of a log with all kinds of frames, and its states, none of them like another."""
    provider = HybridProvider(tmp_path / "origin")
    states = story(provider)
    provider._check()
    provider.close()
    return (tmp_path / "origin" / "log").read_bytes(), states


def replayed(path: Path, data: bytes, same_boot: bool) -> tuple[Recovered, State]:
    path.write_bytes(data)
    path.chmod(0o600)
    log = Log.open(str(path))
    if log is None:
        return Recovered(damage=["header"]), {}
    found = replay(log, same_boot)
    state = {}
    for raw in found.sessions:
        kept = found.state(raw)
        assert kept is not None
        state[raw.hex()] = kept.record
    return found, state


def snapshot_end(data: bytes) -> int:
    header = frame.parse_header(data)
    assert header is not None
    end = frame.HEADER_SIZE
    for _ in range(header.snapshots):
        entry = frame.parse(data, end, header.generation, header.salt)
        assert entry is not None
        end += entry.size
    return end


def test_all_kinds_of_frames(tmp_path: Path, told: tuple[bytes, list[State]]) -> None:
    data, states = told
    (tmp_path / "log").write_bytes(data)
    log = Log.open(str(tmp_path / "log"))
    assert log is not None
    assert {entry.op for _, entry in log.entries() if isinstance(entry, Frame)} == set(range(6))
    assert replayed(tmp_path / "log", data, False)[1] == states[-1]


@pytest.mark.parametrize("same_boot", [True, False])
def test_cut_at_every_byte(
    tmp_path: Path, told: tuple[bytes, list[State]], same_boot: bool
) -> None:
    data, states = told
    seen = 0
    for end in range(snapshot_end(data), len(data) + 1):
        found, state = replayed(tmp_path / "log", data[:end], same_boot)
        assert not found.damage
        assert state in states[seen:]
        seen = states.index(state, seen)
    assert seen == len(states) - 1


def test_cut_within_the_snapshot_is_damage(tmp_path: Path, told: tuple[bytes, list[State]]) -> None:
    data, states = told
    for end in range(snapshot_end(data)):
        found, state = replayed(tmp_path / "log", data[:end], True)
        assert found.damage
        assert state.items() <= states[0].items()


@pytest.mark.parametrize("same_boot", [True, False])
def test_a_flipped_bit_in_every_byte(
    tmp_path: Path, told: tuple[bytes, list[State]], same_boot: bool
) -> None:
    data, states = told
    damaged = bytearray(data)
    for bit in range(0, len(data) * 8, 9):
        damaged[bit // 8] ^= 1 << bit % 8
        found, state = replayed(tmp_path / "log", bytes(damaged), same_boot)
        damaged[bit // 8] ^= 1 << bit % 8
        if bit < frame.HEADER_SIZE * 8:
            assert state == states[-1]
        elif found.damage:
            assert state.items() <= states[-1].items()
            assert len(state) >= len(states[-1]) - 1
        else:
            assert not same_boot
            assert found.cut
            assert state in states[:-1]


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("tail", [bytes(5000), b"\xff" * 77, os.urandom(3000)])
def test_a_garbage_tail_is_cut(
    tmp_path: Path, told: tuple[bytes, list[State]], tail: bytes, same_boot: bool
) -> None:
    data, states = told
    found, state = replayed(tmp_path / "log", data + tail, same_boot)
    assert (found.position, found.cut) == (len(data), len(tail))
    assert state == states[-1]
    assert not found.damage


def test_frames_behind_a_hole_in_what_was_never_synced_are_cut(
    tmp_path: Path, told: tuple[bytes, list[State]]
) -> None:
    data, states = told
    start = snapshot_end(data)
    holed = data[: start + 10] + bytes(20) + data[start + 30 :]
    found, state = replayed(tmp_path / "log", holed, False)
    assert (state, found.position) == (states[0], start)
    found, state = replayed(tmp_path / "log", holed, True)
    assert found.damage
    assert state.items() <= states[-1].items()


def test_a_frame_that_knows_of_a_sync_makes_the_hole_damage(tmp_path: Path) -> None:
    header = Header(1, 0, 0, 77, NOW)

    def packed(sequence: int, synced: int, name: str, before: bytes) -> bytes:
        entry = Frame(frame.DESTROY, bytes.fromhex(key(name)), b"", sequence, 0, synced)
        return frame.pack(entry, 1, 77, frame.chain_of(before))

    first = packed(1, 0, "a", header.pack())
    second = packed(2, 0, "b", first)
    third = packed(3, 2, "c", second)
    holed = header.pack() + first + b"\0" * len(second) + third
    found, _ = replayed(tmp_path / "log", holed, False)
    assert found.damage
    assert found.sequence == 3


def test_many_frames_lost_leave_only_what_is_proven(
    tmp_path: Path, told: tuple[bytes, list[State]]
) -> None:
    data, states = told
    start = snapshot_end(data)
    header = frame.parse_header(data)
    assert header is not None
    ends = [start]
    while ends[-1] < len(data):
        entry = frame.parse(data, ends[-1], header.generation, header.salt)
        assert entry is not None
        ends.append(ends[-1] + entry.size)
    holed = data[:start] + bytes(ends[3] - start) + data[ends[3] :]
    found, state = replayed(tmp_path / "log", holed, True)
    assert found.damage
    assert set(state) == {key("late")}
    assert state.items() <= states[-1].items()


def test_damage_is_kept_aside_reported_and_not_served(
    tmp_path: Path, told: tuple[bytes, list[State]], caplog: pytest.LogCaptureFixture
) -> None:
    data, states = told
    directory = tmp_path / "store"
    directory.mkdir(0o700)
    damaged = bytearray(data)
    damaged[snapshot_end(data) + 90] ^= 1
    (directory / "log").write_bytes(damaged)
    # The image is gone, the machine was not restarted: what was written had been whole.
    elsewhere = HybridProvider(tmp_path / "elsewhere")
    elsewhere.load(key(1), NOW)
    elsewhere.close()
    (directory / "sync").write_bytes((tmp_path / "elsewhere" / "sync").read_bytes())
    provider = HybridProvider(directory)
    served = content(provider, 0.0)
    assert served == {name: kept for name, kept in states[-1].items() if name != key("changed")}
    provider._check()
    assert provider.stats()["damaged_logs"] == 1
    assert "damaged" in caplog.text
    assert not any(name in caplog.text for name in states[0])
    provider.close()
    (aside,) = directory.glob("damaged-*")
    assert aside.read_bytes() == damaged
    assert aside.stat().st_mode & 0o777 == 0o600
    assert Log.open(str(directory / "log"))


def test_a_lost_header_serves_nothing(
    tmp_path: Path, told: tuple[bytes, list[State]], caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "store"
    directory.mkdir(0o700)
    (directory / "log").write_bytes(bytes(200) + told[0][200:])
    provider = HybridProvider(directory)
    assert content(provider) == {}
    assert provider.stats()["damaged_logs"] == 1
    assert "header" in caplog.text
    create(provider, "new")
    provider.close()


def entries(path: Path) -> Iterator[Frame]:
    log = Log.open(str(path))
    assert log is not None
    return (entry for _, entry in log.entries() if isinstance(entry, Frame))


def test_a_log_of_format_1_is_read_and_written_anew(
    tmp_path: Path, told: tuple[bytes, list[State]]
) -> None:
    header = frame.parse_header(told[0])
    assert header is not None
    data = header._replace(store=0, version=1).pack()
    for entry in entries(tmp_path / "origin" / "log"):
        if entry.op in (frame.CREATE, frame.SNAPSHOT):
            entry = entry._replace(data=dumps(loads(entry.data)[:-1]))
        data += frame.pack(entry, header.generation, header.salt, bytes(4))
    directory = tmp_path / "store"
    directory.mkdir(0o700)
    (directory / "log").write_bytes(data)
    for _ in range(2):
        provider = HybridProvider(directory)
        assert content(provider, 0.0) == told[1][-1]
        assert provider.check() == []
        provider.close()
        (directory / "image").unlink()
    written = Log.open(str(directory / "log"))
    assert written is not None
    assert (written.header.version, written.generation) == (frame.VERSION, header.generation + 1)


@pytest.mark.parametrize("same_boot", [True, False])
def test_a_frame_of_another_history_ends_the_log(
    tmp_path: Path, told: tuple[bytes, list[State]], same_boot: bool
) -> None:
    """It was written behind the same number of commits, but not behind these."""
    data, states = told
    header = frame.parse_header(data)
    assert header is not None
    last = list(entries(tmp_path / "origin" / "log"))[-1]
    other = last._replace(sequence=last.sequence + 1)
    kin, strange = (
        data + frame.pack(other, header.generation, header.salt, chain)
        for chain in (frame.chain_of(data), b"else")
    )
    assert not replayed(tmp_path / "log", kin, same_boot)[0].cut
    found, state = replayed(tmp_path / "log", strange, same_boot)
    assert found.position == len(data)
    assert bool(found.damage) == same_boot
    assert state.items() <= states[-1].items()


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    header = Header(1, 0, 0, 7, NOW, version=frame.VERSION + 1)
    (directory / "log").write_bytes(header.pack() + b"unknown")
    before = files(directory)
    with pytest.raises(ConfigError, match=r"SESSION_DIR.*newer"):
        HybridProvider(directory)
    assert files(directory) == before


def test_unlinked_live(tmp_path: Path) -> None:
    one = HybridProvider(tmp_path)
    create(one, 1)
    (tmp_path / "log").unlink()
    create(one, 2)
    before = content(one)
    one._check()
    one.close()
    (tmp_path / "image").unlink()
    two = HybridProvider(tmp_path)
    assert content(two) == before
    assert len(before) == 2
    two.close()


def test_unlinked_while_closed(tmp_path: Path) -> None:
    one = HybridProvider(tmp_path)
    create(one, 1)
    before = content(one)
    one.close()
    (tmp_path / "log").unlink()
    two = HybridProvider(tmp_path)
    assert content(two) == before
    two._check()
    two.close()


@pytest.mark.parametrize("how", ["shorter", "other"])
def test_spoilt_live(tmp_path: Path, how: str) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    create(provider, 2)
    if how == "shorter":
        os.truncate(tmp_path / "log", 200)
    else:
        (tmp_path / "other").write_bytes(b"something else")
        (tmp_path / "other").rename(tmp_path / "log")
    create(provider, 3)
    before = content(provider)
    assert len(before) == 3
    provider._check()
    provider.close()
    (tmp_path / "image").unlink()
    again = HybridProvider(tmp_path)
    assert content(again) == before
    again.close()


def test_what_a_killed_writer_left_is_cut(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    whole = (tmp_path / "log").read_bytes()
    with (tmp_path / "log").open("ab") as log:
        log.write(whole[-100:])
    create(provider, 2)
    provider._check()
    assert (tmp_path / "log").read_bytes().startswith(whole)
    provider.close()


def test_a_directory_that_moved_away_is_another_store(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path / "store")
    create(provider, 1)
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    create(provider, 2)
    assert list(content(provider)) == [key(2)]
    provider._check()
    provider.close()
