"""A bit flipped in the image: no wrong value, no session lost, no worker killed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import CorruptData
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.providers.hybrid.tools import NOW, content, create, join, key, start

SESSIONS = 60


def fill(directory: Path) -> None:
    provider = HybridProvider(directory)
    for number in range(SESSIONS):
        puts = {"a": b"%d" % number, "b": bytes(number * 200)}
        create(provider, number, user=f"s:{number % 3}", puts=puts, deadline=inf)
    for number in range(0, SESSIONS, 7):
        provider.rename(key(number), key(("renamed", number)), NOW, inf)
    for number in range(1, SESSIONS, 7):
        provider.destroy(key(number))
    provider.close()


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, bit // 8)[0]
        os.pwrite(file.fileno(), bytes((byte ^ 1 << bit % 8,)), bit // 8)


def opened_as(directory: Path, expected: object, closed: bool) -> None:
    """In a process of its own: a damaged page could end it."""
    provider = HybridProvider(directory)
    assert content(provider) == expected
    assert len(provider.keys_of("s:1", NOW)) == sum(
        record is not None and record.user == "s:1" for record in content(provider).values()
    )
    provider.commit(key("after"), Change(create=True), NOW)
    assert provider.destroy(key("after"))
    provider._check()
    if closed:
        provider.close()
    else:
        os._exit(0)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_flipped_while_nobody_has_it(
    fast_path: Path, rounds: Callable[[int], Iterator[int]], closed: bool
) -> None:
    """Bits of every page, those at its beginning more often: there the structure is."""
    fill(fast_path)
    provider = HybridProvider(fast_path)
    expected = content(provider)
    provider.close()
    join(start(opened_as, fast_path, expected, closed))
    for seed in rounds(1):
        dice = random.Random(seed)
        for _ in range(20):
            size = (fast_path / "image").stat().st_size
            page = dice.randrange(size // 4096) * 4096
            flip(fast_path / "image", (page + dice.randrange(dice.choice((16, 80, 4096)))) * 8)
            join(start(opened_as, fast_path, expected, closed))


def test_flipped_in_a_value_under_a_live_worker(tmp_path: Path) -> None:
    """Who reads it is told; the others are not harmed."""
    provider = HybridProvider(tmp_path)
    spoilt, other = create(provider, 1, puts={"a": b"unlike all else"}), create(provider, 2)
    for byte in range(len(b"unlike all else")):
        # An earlier page may hold the same bytes.
        data = (tmp_path / "image").read_bytes()
        places = [at for at in range(len(data)) if data.startswith(b"unlike all else", at)]
        for at in places:
            flip(tmp_path / "image", (at + byte) * 8)
        with pytest.raises(CorruptData):
            provider.load(spoilt, NOW)
        assert provider.load(other, NOW) is not None
        for at in places:
            flip(tmp_path / "image", (at + byte) * 8)
        assert provider.load(spoilt, NOW) is not None
    provider.close()
