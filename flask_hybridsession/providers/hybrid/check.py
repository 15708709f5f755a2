"""Whether the log is sound, the image what the log says, and its indexes what its sessions say.

It looks at one moment, beside readers and writers, and changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import lmdb

from ...core.errors import ConfigError, CorruptData
from .image import Image, Meta, State, decode, index, read_meta
from .log import Log
from .recovery import Recovered, replay
from .words import POISONED

if TYPE_CHECKING:
    from .store import Store

LOST = "log: it is lost, or not the one that the image was made from"
#: Looks at a store that a compaction changes, and seconds between two of them.
_TRIES, _PAUSE = 50, 0.01
#: Sessions named; of more only the number is told.
_NAMED = 20


def problems(store: Store) -> list[str]:
    """What is wrong and where, in words, without values. Reads everything: not for every day."""
    texts = faults(store)
    log = Log.open(store.path("log"), readonly=True)
    if log is not None and store.view[POISONED] == log.generation:
        texts.append("log: the disk failed to sync it; the next write makes a new one")
    return texts + set_aside(store.directory)


def faults(store: Store) -> list[str]:
    """What is wrong with the log and the image that are in use."""
    for _ in range(_TRIES):
        image = store.hold()
        try:
            txn = image.begin()
            try:
                meta = read_meta(txn)
                log = Log.open(store.path("log"), readonly=True)
                if meta is not None and log is not None and meta.is_beside(log):
                    return compare(image, txn, meta, log)
            finally:
                txn.abort()
        except (lmdb.Error, CorruptData) as error:
            return [f"image: it cannot be read: {error}"]
        # A compaction may have put a new log there since the transaction began, or be about to put
        # the image beside it.
        del image, txn
        time.sleep(_PAUSE)
    return [LOST]


def compare(image: Image, txn: Any, meta: Meta, log: Log) -> list[str]:
    """What is wrong with the log, and with an image that stands beside it."""
    texts = []
    size = log.size()
    if size < meta.position:
        texts.append(f"log: it ends at byte {size}, and should at {meta.position}")
    found = replay(log, same_boot=True, end=meta.position)
    texts += [f"log: {text}" for text in found.damage]
    if not texts and (found.position, found.sequence) != (meta.position, meta.sequence):
        texts.append(
            f"log: its frames end at byte {found.position} with commit {found.sequence}, "
            f"and should at {meta.position} with {meta.sequence}"
        )
    damaged = bool(texts)
    stored = dict(image.scan(txn))
    wrong = _different(stored, found, damaged)
    texts += [f"image: session {key.hex()[:12]}... {why}" for key, why in islice(wrong, _NAMED)]
    if more := sum(1 for _ in wrong):
        texts.append(f"image: and {more} more")
    return texts + _index_problems(image, txn, stored)


def _different(
    stored: dict[bytes, bytes], found: Recovered, damaged: bool
) -> Iterator[tuple[bytes, str]]:
    for key, blob in stored.items():
        kept = found.sessions.get(key)
        if kept is None and damaged:
            continue  # the log cannot prove it any more: that was said
        if blob != kept and _plain(decode(key, blob)) != _plain(found.state(key)):
            yield key, "is not what the log says"
    for key in found.sessions.keys() - stored.keys():
        yield key, "is missing"


def _plain(state: State | None) -> object:
    return state and (
        state.version,
        state.record,
        [(bytes(alias), until) for alias, until in state.aliases],
    )


def _index_problems(image: Image, txn: Any, stored: dict[bytes, bytes]) -> list[str]:
    due: list[tuple[bytes, bytes]] = []
    users: list[tuple[bytes, bytes]] = []
    aliases: list[tuple[bytes, bytes]] = []
    for key, blob in stored.items():
        index(key, decode(key, blob), due, users, aliases)
    texts = []
    for name, expected, database in (
        ("deadlines", due, image.deadlines),
        ("users", users, image.users),
        ("aliases", aliases, image.aliases),
    ):
        with txn.cursor(database) as cursor:
            found = list(cursor)
        if database is image.deadlines:
            # A burst of expiries leaves entries that lead nowhere, for a while.
            found = [(due, kind) for due, kind in found if kind or due[8:] in stored]
        if sorted(expected) != found:
            texts.append(f"image: the index of {name} is not what the sessions say")
    return texts


def set_aside(directory: str) -> list[str]:
    """The logs that gave way to another, and what is wrong with them, until they are gone."""
    texts = []
    for name in sorted(os.listdir(directory)):
        if name.startswith("damaged-"):
            why = _damage(os.path.join(directory, name))
            texts += [f"{name}: {text}" for text in why]
            texts.append(f"{name}: a log that gave way to another; delete it when it is read")
    return texts


def _damage(path: str) -> list[str]:
    try:
        log = Log.open(path, readonly=True)
    except ConfigError as error:
        return [str(error)]
    return ["its header is lost"] if log is None else replay(log, same_boot=True).damage
