"""The next generation: a log of the live sessions and a packed image, then what came meanwhile.

The image is copied in slices, each as it stands by then: LMDB cannot use a page again that a long
transaction might look at, and grows with each write beside one. The old log says which sessions
were changed since the first slice; these are copied again, until few are left. The last of them
are copied as the only writer.

The new log is complete and on the disk, and so is its name, before anything is appended to it or
acknowledged on it. A crash at any step leaves the old log or the new one, each of them complete,
and an image that belongs to it, or none: then it is made from the log.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ...core import clock
from ...core.errors import CorruptData
from .frame import IN_SNAPSHOT, RENAME, SNAPSHOT, Frame, Header, parse_rename
from .image import META, Image, Meta, decode, read_meta
from .log import Log, remove, sync_directory
from .words import SYNCED, next_epoch

if TYPE_CHECKING:
    from .store import Store, Turn

T = TypeVar("T")
logger = logging.getLogger("flask_hybridsession.hybrid")

#: Sessions that are copied in one go.
_SLICE = 64
#: Sessions in a transaction of the new image.
_CHUNK = 8192
#: Bytes of tail that a writer may have to wait for.
_SHORT = 1 << 14
#: Seconds of the processor at a stretch, and of rest after it: requests come first.
_STRETCH, _REST = 0.001, 0.001
#: Times that the tail is copied beside the writers, at most.
_ROUNDS = 30
#: Bytes between two syncs of the new log: one sync of it all would keep other files waiting.
_SYNC = 16 << 20


class Abandoned(Exception):
    """The log in hand is not the log any more, or this worker forks or ends."""


def compact(store: Store) -> bool:
    """Write a new generation beside the writers. False when another worker is at it, or was."""
    try:
        with store.building(), store.lock_file("compact") as fd:
            flock(fd, LOCK_EX | LOCK_NB)
            successor = Successor(store)
            try:
                successor.build()
                store.write(False, switch, successor)
            finally:
                successor.close()
    except (BlockingIOError, Abandoned):
        return False
    return True


class Successor:
    """The next generation in the making: the files ``log.new`` and ``image.new``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meta = meta = store.meta()
        old = Log.open(store.path("log"))
        if old is None or old.generation != meta.generation:
            raise Abandoned
        self.old = old
        self._log: Log | None = None
        #: What the old log says up to here is in the new image, and in the new log if there is one.
        self._position = meta.position
        self._damaged = False
        self._began = time.thread_time()
        self._remove_files()
        space = store.read(lambda _, image: image.env.info()["map_size"])
        # While it is not in place it cannot grow.
        self._image = Image(store.path("image.new"), 2 * space)
        self._txn: Any = None
        self._changes = 0

    def close(self) -> None:
        """Take away what was not put in place."""
        if self._txn is not None:
            self._txn.abort()
        self._image.close()
        self._remove_files()

    def _remove_files(self) -> None:
        for name in ("log.new", "image.new", "image.new-lock"):
            remove(self._store.path(name))

    # Beside the writers

    def build(self) -> None:
        """Be complete but for the last few commits, and on the disk."""
        read = self._store.read
        start: bytes | None = b""
        while start is not None:
            found, start = read(_some, start)
            for key, blob in found:
                self._put(key, blob, append=True)
            self._rest()
        self._catch_up()
        self._meta = read(self._exact)
        self._commit()
        txn = self._image.begin()
        try:
            path = self._store.path("log.new")
            self._log = snapshot(
                self._image, txn, path, self._meta.generation + 1, self._meta, self._rest
            )
        finally:
            txn.abort()
        self._catch_up()
        self._log.sync()
        self._catch_up()
        self._commit()

    def _catch_up(self) -> None:
        for turn in range(_ROUNDS):
            meta = self._store.meta()
            length = meta.position - self._position
            # One that always rests would never reach those that do not.
            self._follow(meta, self._store.read, self._look_up if turn else self._rest)
            if length < _SHORT:
                break

    def _exact(self, txn: Any, image: Image) -> Meta:
        """Have in the new image what ``txn`` sees, no more and no less."""
        meta = _meta(txn)
        self._follow(meta, _reader(txn, image), _never)
        return meta

    def _follow(self, meta: Meta, read: Callable[..., Any], rest: Callable[[], None]) -> None:
        """Copy again all that was changed since: first it goes, so that aliases can move."""
        if meta.generation != self.old.generation:
            raise Abandoned
        keys: set[bytes] = set()
        for frames in _slices(self.old.tail(self._position, meta.position)):
            if self._log is not None:
                self._log.append(b"".join(map(self._log.packed, frames)))
            for frame in frames:
                keys.add(frame.key)
                if frame.op == RENAME:
                    keys.add(parse_rename(frame.data)[0])
            rest()
        for some in _slices(keys):
            for key in some:
                self._remove(key)
            rest()
        for some in _slices(keys):
            for key, blob in read(_these, some):
                self._put(key, blob)
            rest()
        self._position = meta.position

    def _rest(self) -> None:
        """Leave the processor to the requests, when it is time."""
        if time.thread_time() - self._began > _STRETCH:
            self._look_up()
            time.sleep(_REST)
            self._began = time.thread_time()

    def _look_up(self) -> None:
        if self._store.is_leaving():
            raise Abandoned

    # The new image

    def _writing(self) -> Any:
        self._changes += 1
        if self._changes % _CHUNK == 0:
            self._commit()
        if self._txn is None:
            self._txn = self._image.begin(write=True)
        return self._txn

    def _commit(self) -> None:
        if self._txn is not None:
            txn, self._txn = self._txn, None
            txn.commit()

    def _remove(self, key: bytes) -> None:
        txn = self._writing()
        state = self._image.get(txn, key)
        if state is not None:
            self._image.remove(txn, key, state)

    def _put(self, key: bytes, blob: bytes, append: bool = False) -> None:
        try:
            state = decode(key, blob)
        except CorruptData as error:
            self._damaged = True
            logger.error("it is left out of the new session log, the old one is kept: %s", error)
            return
        txn = self._writing()
        txn.put(key, blob, True, True, append, self._image.sessions)
        self._image.put_marks(txn, key, state)

    # As the only writer

    def take_over(self, turn: Turn, meta: Meta) -> None:
        """Copy the rest, and put both files in their place."""
        store, log = self._store, self._log
        if log is None:
            raise Abandoned
        read = _reader(turn.txn, turn.image)
        self._follow(meta, read, _never)
        txn = self._writing()
        for lease in read(_leases):
            txn.put(*lease, db=self._image.locks)
        meta = beside(log, meta)._replace(image=self._image.inode, number=txn.id())
        txn.put(META, meta.pack())
        self._commit()
        store.linger(os.open(store.path("image"), os.O_RDONLY | os.O_NOFOLLOW))
        self._image.close()
        if self._damaged:
            set_aside(store.directory)
        install(log, store.path("log.new"), store.directory)
        # First the epoch: who dies between the two leaves an image with a lock file that is not
        # the one by which others read. And its blocks are there: on a full disk no other can be.
        next_epoch(store.view)
        os.rename(store.path("image.new-lock"), store.path("image-lock"))
        os.rename(store.path("image.new"), store.path("image"))
        store.view[SYNCED] = meta.sequence


def switch(turn: Turn, successor: Successor) -> None:
    """Let the next generation begin."""
    successor.take_over(turn, _meta(turn.txn))


def _meta(txn: Any) -> Meta:
    meta = read_meta(txn)
    if meta is None:
        raise Abandoned
    return meta


def _slices(things: Iterable[T]) -> Iterator[list[T]]:
    left = iter(things)
    while some := list(islice(left, _SLICE)):
        yield some


def _some(txn: Any, image: Image, start: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """The sessions from ``start`` on, and where to go on."""
    found = list(islice(image.scan(txn, start), _SLICE))
    return found, found[-1][0] + b"\0" if len(found) == _SLICE else None


def _these(txn: Any, image: Image, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Those of the sessions that are there."""
    with txn.cursor(image.sessions) as cursor:
        return cursor.getmulti(keys)  # type: ignore[no-any-return]


def _leases(txn: Any, image: Image) -> list[tuple[bytes, bytes]]:
    with txn.cursor(image.locks) as cursor:
        return list(cursor)


def _reader(txn: Any, image: Image) -> Callable[..., Any]:
    """What ``Store.read`` is, within a transaction."""
    return partial(_within, txn, image)


def _within(txn: Any, image: Image, work: Callable[..., T], *args: Any) -> T:
    return work(txn, image, *args)


def _never() -> None:
    """Somebody waits: no rest."""


def snapshot(
    image: Image,
    txn: Any,
    path: str,
    generation: int,
    meta: Meta,
    rest: Callable[[], None] = _never,
) -> Log:
    """A new log with the sessions that ``txn`` sees."""
    count = txn.stat(image.sessions)["entries"]
    salt, base = secrets.randbits(32), meta.sequence
    log = Log.create(path, Header(generation, base, count, salt, clock.now(), meta.store))
    places = itertools.count(IN_SNAPSHOT + 1)
    unsynced = 0
    for some in _slices(image.scan(txn)):
        data = b"".join(
            log.packed(Frame(SNAPSHOT, key, blob, next(places), 0, base)) for key, blob in some
        )
        log.append(data)
        unsynced += len(data)
        if unsynced > _SYNC:
            log.sync()
            unsynced = 0
        rest()
    return log


def install(new: Log, path: str, directory: str) -> None:
    """Sync a complete log, give it its name, and sync that."""
    new.sync()
    os.rename(path, os.path.join(directory, "log"))
    sync_directory(directory)


def beside(log: Log, meta: Meta) -> Meta:
    """Where an image stands that holds what was just packed into a new log."""
    size = log.size()
    return meta._replace(
        device=log.device,
        inode=log.inode,
        generation=log.generation,
        floor=size,
        position=size,
        chain=log.chain,
    )


def set_aside(directory: str) -> None:
    """Keep the log that is about to be replaced under another name."""
    name = f"damaged-{clock.now():.6f}"
    os.link(os.path.join(directory, "log"), os.path.join(directory, name))


def replace(image: Image, directory: str, meta: Meta, generation: int) -> tuple[Log, Meta]:
    """Write a new log from the image, as the only writer: the log in place cannot be used."""
    path = os.path.join(directory, "log.fix")
    try:
        txn = image.begin()
        try:
            new = snapshot(image, txn, path, generation, meta)
        finally:
            txn.abort()
        install(new, path, directory)
    finally:
        remove(path)
    meta = beside(new, meta)
    image.set_meta(meta)
    return new, meta
