"""The bytes of the log: what goes in comes out, and nothing else does."""

from __future__ import annotations

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import frame
from flask_hybridsession.providers.hybrid.frame import Frame, Header

KEY = bytes(range(32))
SALT = 0xDEADBEEF
CHAIN = b"\1\2\3\4"
FRAME = Frame(frame.MODIFY, KEY, b"some data", 7, 5, 3)
PACKED = frame.pack(FRAME, 2, SALT, CHAIN)


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("data", [b"", b"x", bytes(100_000)])
@pytest.mark.parametrize("op", range(6))
def test_round_trip(op: int, data: bytes) -> None:
    written = Frame(op, KEY, data, (1 << 64) - 1, 0, 1 << 40)
    packed = frame.pack(written, 9, SALT, CHAIN)
    assert len(packed) == written.size
    assert frame.parse(b"before" + packed + b"after", 6, 9, SALT) == written


def test_every_cut_is_noticed() -> None:
    for end in range(len(PACKED)):
        assert frame.parse(PACKED[:end], 0, 2, SALT) is None


def test_every_flipped_bit_is_noticed() -> None:
    for bit in range(len(PACKED) * 8):
        assert frame.parse(flipped(PACKED, bit), 0, 2, SALT) is None


def test_one_flipped_bit_never_hides_whose_frame_it_was() -> None:
    following = frame.pack(
        Frame(frame.DESTROY, b"\1" * 32, b"", 8, 6, 3), 2, SALT, frame.chain_of(PACKED)
    )
    for bit in range(len(PACKED) * 8):
        gap = frame.resync(flipped(PACKED, bit) + following, 0, 6, 2, SALT)
        assert (gap.end, gap.last) == (len(PACKED), False)
        assert gap.lost == {7: KEY}


def test_zeros_are_no_frame() -> None:
    assert frame.parse(bytes(1000), 0, 0, 0) is None


def test_a_frame_of_another_generation_is_no_frame() -> None:
    assert frame.parse(PACKED, 0, 3, SALT) is None


def test_bytes_in_a_value_cannot_pose_as_a_frame() -> None:
    forged = frame.pack(FRAME, 2, SALT ^ 1, CHAIN)
    outer = frame.pack(Frame(frame.CREATE, KEY, forged, 6, 0, 3), 2, SALT, CHAIN)
    gap = frame.resync(flipped(outer, 3), 0, 5, 2, SALT)
    assert gap.last
    assert gap.lost == {6: KEY}


def test_header_round_trip() -> None:
    header = Header(3, 1 << 50, 1_000_000, SALT, 1.5)
    assert len(header.pack()) == frame.HEADER_SIZE
    assert frame.parse_header(header.pack() + b"frames") == header


def test_a_header_survives_any_flipped_bit() -> None:
    header = Header(3, 4, 5, SALT, 1.5)
    for bit in range(frame.HEADER_SIZE * 8):
        assert frame.parse_header(flipped(header.pack(), bit)) == header


def test_a_header_of_nothing_is_none() -> None:
    assert frame.parse_header(b"") is None
    assert frame.parse_header(bytes(frame.HEADER_SIZE)) is None


@pytest.mark.parametrize(
    "change",
    [
        Change(),
        Change({"a": b"1", "": b""}, ["b"], wipe=True, deadline=1.5, touched=2.5),
        Change({"\ud800": b"lone"}, ["\udfff"], user="s:\ud800", device=None),
        Change(user=None, device="d", deadline=float("inf")),
    ],
)
def test_changes_round_trip(change: Change) -> None:
    assert frame.parse_change(frame.pack_change(change)) == change._replace(
        drops=list(change.drops)
    )


@pytest.mark.parametrize("until", [None, 0.0, 12.5, float("inf")])
def test_renames_round_trip(until: float | None) -> None:
    assert frame.parse_rename(frame.pack_rename(KEY, until)) == (KEY, until)
