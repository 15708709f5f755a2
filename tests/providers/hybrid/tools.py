"""What the tests of the hybrid provider share: keys, processes that may die, a store's content."""

from __future__ import annotations

import hashlib
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.providers.hybrid import HybridProvider

NOW = 1_000.0
PATIENCE = 60.0


def key(name: object) -> str:
    return hashlib.sha256(repr(name).encode()).hexdigest()


def create(provider: HybridProvider, name: object, **options: Any) -> str:
    made = key(name)
    options.setdefault("deadline", NOW + 1000)
    change = Change(options.pop("puts", {"a": b"1"}), create=True, **options)
    provider.commit(made, change, NOW)
    return made


def content(provider: HybridProvider, now: float = NOW) -> dict[str, Record | None]:
    return {name: provider.load(name, now) for name in provider.keys(now)}


def start(target: Callable[..., None], *args: Any) -> Any:
    """A forked child that runs ``target``."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads: that they work is what is tested.
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        process.start()
    return process


def join(process: Any, expected: int = 0) -> None:
    process.join(PATIENCE)
    assert process.exitcode == expected


def run(target: Callable[..., None], *args: Any, expected: int = 0) -> None:
    join(start(target, *args), expected)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def spoil(provider: HybridProvider, name: str) -> None:
    """Make what the image holds of a session unreadable, as a bad memory would."""

    def overwrite(turn: Any) -> None:
        turn.txn.put(bytes.fromhex(name), b"\xc1 no MessagePack", db=turn.image.sessions)
        turn.dirty = True

    provider._store.write(False, overwrite)
