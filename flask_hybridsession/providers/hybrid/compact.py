"""A new log generation: the live sessions as a snapshot, then the commits made meanwhile.

The new file is complete and on the disk, and so is its name, before anything is appended to it or
acknowledged on it. A crash at any step leaves the old log or the new one, each of them complete.
"""

from __future__ import annotations

import os
import secrets
import time
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import TYPE_CHECKING, Any

from ...core import clock
from .frame import IN_SNAPSHOT, SNAPSHOT, Frame, Header
from .image import META, Image, Meta, unpack_meta
from .log import Log, remove, sync_directory

if TYPE_CHECKING:
    from .store import Store, Turn

#: Sessions written between two offers of the processor to the requests of this worker.
_SLICE = 32
#: Bytes of tail that a writer may have to wait for.
_SHORT = 1 << 16


class Abandoned(Exception):
    """The log in hand is not the log any more, or somebody needs the image for himself."""


def compact(store: Store) -> bool:
    """Write a new generation beside the writers. False when another worker is at it, or was."""
    fd = os.open(store.path("compact"), os.O_RDWR | os.O_CREAT, 0o600)
    path = store.path("log.new")
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        try:
            old, new, position = _beside(store, path)
            store.write(False, switch, old, new, position, path)
        finally:
            remove(path)
    except (BlockingIOError, Abandoned):
        return False
    finally:
        os.close(fd)
    return True


def _beside(store: Store, path: str) -> tuple[Log, Log, int]:
    """The old log; the new one, synced, with all but the last commits; where these begin."""
    begin = store.enter()
    try:
        txn = begin()
        try:
            meta = Meta._make(unpack_meta(txn.get(META)))
            old = Log.open(store.path("log"))
            if old is None or old.generation != meta.generation:
                raise Abandoned
            new = snapshot(store.image, txn, path, meta.generation + 1, meta.sequence, store)
        finally:
            txn.abort()
    finally:
        store.tickets.append(begin)
    position = meta.position
    for _ in range(100):
        latest = store.meta()
        if latest.generation != meta.generation:
            raise Abandoned
        copy(old, new, position, latest.position)
        done, position = position, latest.position
        if position - done < _SHORT:
            break
    new.sync()
    return old, new, position


def snapshot(
    image: Image, txn: Any, path: str, generation: int, base: int, store: Store | None = None
) -> Log:
    """A new log with the sessions that ``txn`` sees. Given a ``store``, stay out of its way."""
    count = txn.stat(image.sessions)["entries"]
    salt = secrets.randbits(32)
    log = Log.create(path, Header(generation, base, count, salt, clock.now()))
    frames: list[bytes] = []
    for place, (key, blob) in enumerate(image.scan(txn), IN_SNAPSHOT + 1):
        frames.append(log.packed(Frame(SNAPSHOT, key, blob, place, 0, base)))
        if len(frames) == _SLICE:
            log.append(b"".join(frames))
            frames.clear()
            if store is not None:
                if store.draining:
                    raise Abandoned
                time.sleep(0)
    log.append(b"".join(frames))
    return log


def copy(old: Log, new: Log, start: int, end: int) -> None:
    """Append the old log's frames between two positions."""
    frames: list[bytes] = []
    for frame in old.tail(start, end):
        frames.append(new.packed(frame))
        if len(frames) == _SLICE:
            new.append(b"".join(frames))
            frames.clear()
    new.append(b"".join(frames))


def switch(turn: Turn, old: Log, new: Log, position: int, path: str) -> None:
    """As the only writer: copy the rest and put the new log in the old one's place."""
    if turn.log.generation != old.generation:
        raise Abandoned
    copy(old, new, position, turn.position)
    install(new, path, os.path.dirname(path))
    turn.switch(new)


def install(new: Log, path: str, directory: str) -> None:
    """Sync a complete log, give it its name, and sync that."""
    new.sync()
    os.rename(path, os.path.join(directory, "log"))
    sync_directory(directory)


def replace(image: Image, directory: str, meta: Meta, generation: int) -> tuple[Log, Meta]:
    """Write a new log from the image, as the only writer: the log in place cannot be used."""
    path = os.path.join(directory, "log.fix")
    try:
        txn = image.begin()
        try:
            new = snapshot(image, txn, path, generation, meta.sequence)
        finally:
            txn.abort()
        install(new, path, directory)
    finally:
        remove(path)
    size = new.size()
    meta = meta._replace(
        device=new.device, inode=new.inode, generation=generation, position=size, floor=size
    )
    image.set_meta(meta)
    return new, meta
