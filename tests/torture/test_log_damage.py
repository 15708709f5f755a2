"""C3, C4, C5: a log that is cut at every byte, that has every bit flipped, that ends in garbage.

It opens. What is served is the state after some commit, or, of a log that had been on the disk,
what can be proven of the last state; damage is reported. Each file is opened as on the same boot of
the machine (all that was written had been there) and as after another one (it may have been lost).
Every bit is judged by replaying; a short run opens a store, with all that belongs to it, for some.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider, frame
from flask_hybridsession.providers.hybrid.frame import Frame
from flask_hybridsession.providers.hybrid.log import Log
from flask_hybridsession.providers.hybrid.recovery import replay

from .workers import DUE, LATER, NOW, Seen, key, seen

NAMES = ("kept", "gone", "due", "moved", "changed", "moved 2", "late", "end", "short")
KEYS = tuple(map(key, NAMES))
State = dict[str, Seen]


def look(provider: HybridProvider) -> State:
    return {name: seen(provider, name) for name in KEYS}


@dataclass
class Told:
    """A log's bytes, the file that says which boot they are of, and the state after each commit."""

    data: bytes
    words: bytes
    states: list[State]
    begin: int


@pytest.fixture(scope="module", params=["always", "never"])
def durability(request: pytest.FixtureRequest) -> str:
    """Frames of the first know that those before them are on the disk."""
    return str(request.param)


@pytest.fixture(scope="module", params=["first", "compacted"])
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, durability: str
) -> Told:
    """All kinds of frames; a compacted log has sessions in its snapshot too."""
    path = tmp_path_factory.mktemp("told")
    provider = HybridProvider(path, durability=durability)
    states = [look(provider)]
    for name in NAMES[:5]:
        change = Change({"a": name.encode()}, create=True, user="u", deadline=inf)
        provider.commit(key(name), change._replace(deadline=DUE if name == "due" else inf), NOW)
        states.append(look(provider))
    if request.param == "compacted":
        assert provider.compact()
        del states[:-1]
    begin = (path / "log").stat().st_size if request.param == "compacted" else frame.HEADER_SIZE
    for step in (
        lambda: provider.commit(key("changed"), Change({"b": b"2" * 40}, touched=NOW), NOW),
        lambda: provider.destroy(key("gone")),
        lambda: provider.rename(key("moved"), key("moved 2"), NOW, LATER),
        lambda: provider.commit(key("moved"), Change({"c": b"3"}, ["a"], user=None), NOW),
        lambda: provider.purge(LATER, 1),
        lambda: provider.purge(LATER, 9),
        lambda: provider.commit(key("late"), Change({"\ud800": b"x"}, create=True), NOW),
        lambda: provider.rename(key("late"), key("end"), NOW),
        lambda: provider.commit(key("changed"), Change({"d": b"4"}, wipe=True), NOW),
        lambda: provider.commit(key("short"), Change(create=True), NOW),
        lambda: provider.destroy(key("short")),
    ):
        step()
        states.append(look(provider))
    provider.close()
    log = Log.open(str(path / "log"))
    assert log is not None
    ops = {entry.op for _, entry in log.entries() if isinstance(entry, Frame)}
    assert ops | {frame.SNAPSHOT} == set(range(6))
    return Told((path / "log").read_bytes(), (path / "sync").read_bytes(), states, begin)


@pytest.fixture(params=[True, False], ids=["same boot", "other boot"])
def same_boot(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@dataclass
class Found:
    """What is served of a damaged log, and whether anybody was told."""

    state: State
    reported: bool
    damaged: bool


def opened(path: Path, told: Told, data: bytes, same_boot: bool) -> Found:
    """Open a store with this log, without an image; use it, check it and open it again."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(0o700)
    (path / "log").write_bytes(data)
    if same_boot:
        (path / "sync").write_bytes(told.words)
    reports: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: reports.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flask_hybridsession.hybrid")
    logger.addHandler(handler)
    try:
        provider = HybridProvider(path, durability="never")
        state = look(provider)
        damaged = bool(provider.stats()["damaged_logs"])
        provider.commit(key("after"), Change(create=True), NOW)
        provider._check()
        provider.close()
        (path / "image").unlink()
        provider = HybridProvider(path, durability="never")
        assert look(provider) == state
        assert provider.load(key("after"), NOW) is not None
        provider.close()
    finally:
        logger.removeHandler(handler)
    assert not any(name in text for name in KEYS for text in reports)
    return Found(state, bool(reports), damaged)


def replayed(path: Path, same_boot: bool) -> Found:
    log = Log.open(str(path))
    if log is None:
        return Found(dict.fromkeys(KEYS), True, True)
    found = replay(log, same_boot)
    state: State = dict.fromkeys(KEYS)
    for raw in found.sessions:
        kept = found.state(raw)
        assert kept is not None
        for name in (raw, *(alias for alias, until in kept.aliases if until > NOW)):
            state[name.hex()] = (kept.record.key, dict(kept.record.values))
    return Found(state, bool(found.damage or found.cut), bool(found.damage))


def proven(found: State, last: State) -> bool:
    """Whether each key serves what it must serve, or nothing."""
    return all(found[name] in (None, last[name]) for name in KEYS)


def check_cut(told: Told, found: Found, end: int, seen_before: int) -> int:
    """The place of the state among all states: an exact prefix, none of them before the last."""
    if end < told.begin:
        assert found.reported or found.state == told.states[0]
        assert proven(found.state, told.states[0])
        return 0
    assert found.state in told.states[seen_before:]
    assert not found.damaged
    return told.states.index(found.state, seen_before)


def test_cut_at_every_byte(
    fast_path: Path, told: Told, same_boot: bool, minutes: float, torture_seed: int
) -> None:
    dice = random.Random(torture_seed)
    place = 0
    with (fast_path / "log").open("wb", buffering=0) as log:
        for end in range(len(told.data) + 1):
            log.write(told.data[max(0, end - 1) : end])
            found = replayed(fast_path / "log", same_boot)
            place = check_cut(told, found, end, place)
            if minutes or dice.random() < 0.02:
                found = opened(fast_path / "store", told, told.data[:end], same_boot)
                assert check_cut(told, found, end, place) == place
    assert told.states[place] == told.states[-1]


def check_flip(told: Told, found: Found, bit: int, same_boot: bool) -> None:
    last = told.states[-1]
    if bit < frame.HEADER_SIZE * 8:
        assert found.state == last, "the header is there twice"
        return
    assert found.reported
    if found.damaged or same_boot:
        assert found.damaged
        assert proven(found.state, last)
        # One frame is lost: nobody but its session can be in doubt.
        missing = [name for name in KEYS if found.state[name] != last[name]]
        assert len({(last[name] or ("",))[0] for name in missing}) <= 1
    else:
        assert found.state in told.states[:-1]


def test_every_bit_flipped(
    fast_path: Path,
    told: Told,
    same_boot: bool,
    durability: str,
    minutes: float,
    torture_seed: int,
) -> None:
    dice = random.Random(torture_seed)
    damaged = bytearray(told.data)
    path = fast_path / "log"
    path.write_bytes(damaged)
    reported = flips = 0
    # All bits of the log that is the likeliest, one of each byte of the others.
    every = minutes or (durability == "always" and told.begin > frame.HEADER_SIZE)
    with path.open("r+b", buffering=0) as log:
        for bit in range(0, len(damaged) * 8, 1 if every else 9):
            damaged[bit // 8] ^= 1 << bit % 8
            os.pwrite(log.fileno(), damaged[bit // 8 : bit // 8 + 1], bit // 8)
            found = replayed(path, same_boot)
            check_flip(told, found, bit, same_boot)
            flips += 1
            reported += found.damaged
            if minutes or dice.random() < 0.005:
                found = opened(fast_path / "store", told, bytes(damaged), same_boot)
                check_flip(told, found, bit, same_boot)
            damaged[bit // 8] ^= 1 << bit % 8
            os.pwrite(log.fileno(), damaged[bit // 8 : bit // 8 + 1], bit // 8)
    if durability == "always" or same_boot:
        assert reported > 0.8 * flips, "what had been synced is not taken for unfinished"


def tails(told: Told, dice: random.Random) -> dict[str, bytes]:
    """What may stand behind the last frame."""
    header = frame.parse_header(told.data)
    assert header is not None
    zero = bytes(32)
    next_one = Frame(frame.CREATE, zero, b"", 99, 0, 0)
    chain = frame.chain_of(told.data)
    other = frame.pack(next_one, header.generation + 1, header.salt, chain)
    salted = frame.pack(next_one, header.generation, header.salt ^ 1, chain)
    return {
        "zeros": bytes(dice.choice((1, 100, 4096, 70_000))),
        "ones": b"\xff" * 77,
        "noise": dice.randbytes(3000),
        "half a frame": told.data[told.begin : told.begin + dice.randint(1, 80)],
        "the same frames again": told.data[told.begin :],
        "another generation's frame": other,
        "another file's frame": salted,
        "the whole log again": told.data,
    }


def test_garbage_tails(fast_path: Path, told: Told, same_boot: bool, torture_seed: int) -> None:
    for name, tail in tails(told, random.Random(torture_seed)).items():
        found = opened(fast_path / "store", told, told.data + tail, same_boot)
        assert found.state == told.states[-1], name
        assert found.reported, name


def test_garbage_tails_of_a_store_in_use(fast_path: Path, told: Told, torture_seed: int) -> None:
    """The next writer cuts them, whoever is it."""
    path = fast_path / "store"
    path.mkdir(0o700)
    (path / "log").write_bytes(told.data)
    provider = HybridProvider(path, durability="never")
    for number, tail in enumerate(tails(told, random.Random(torture_seed)).values()):
        with (path / "log").open("ab") as log:
            log.write(tail)
        provider.commit(key("changed"), Change({"e": b"%d" % number}), NOW)
        provider._check()
        record = provider.load(key("changed"), NOW)
        assert record is not None
        assert record.values["e"] == b"%d" % number
    before = look(provider)
    provider.close()
    (path / "image").unlink()
    provider = HybridProvider(path, durability="never")
    assert look(provider) == before
    provider.close()


def test_every_bit_of_the_shared_numbers(
    fast_path: Path, told: Told, minutes: float, torture_seed: int
) -> None:
    """They say what is synced, and of which boot they are. Flipped, they change no session."""
    dice = random.Random(torture_seed)
    path = store_of(fast_path, told)
    for bit in range(10 * 64):
        if not minutes and dice.random() > 0.1:
            continue
        before = (path / "sync").read_bytes()
        words = bytearray(before)
        words[bit // 8] ^= 1 << bit % 8
        (path / "sync").write_bytes(words)
        check_use(path, told)
        (path / "sync").write_bytes(before)


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"x", bytes(4096), b"\xff" * 4096, b"\x5a" * 9000],
    ids=["nothing", "short", "zeros", "ones", "long"],
)
def test_shared_numbers_that_are_rubbish(fast_path: Path, told: Told, rubbish: bytes) -> None:
    path = store_of(fast_path, told)
    (path / "sync").write_bytes(rubbish)
    check_use(path, told)


def store_of(path: Path, told: Told) -> Path:
    """A closed store with this log and all that belongs to it."""
    (path / "store").mkdir(0o700)
    (path / "store" / "log").write_bytes(told.data)
    provider = HybridProvider(path / "store", durability="never")
    assert provider.count(0.0) >= 0  # it opens with its first use
    provider.close()
    return path / "store"


def check_use(path: Path, told: Told) -> None:
    """It opens, holds what it must hold, and can be written."""
    provider = HybridProvider(path, durability="always")
    assert look(provider) == told.states[-1]
    provider.commit(key("after"), Change(create=True), NOW)
    assert provider.destroy(key("after"))
    provider._check()
    provider.close()
