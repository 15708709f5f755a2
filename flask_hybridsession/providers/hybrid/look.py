"""A store seen from outside, by who only looks: nothing is made, recovered, mended or cut.

Image, log and shared numbers are opened between two turns, under the writers' lock. Then the image
is read as it stood, through a line in LMDB's table of readers: that is all that is written, in
memory that the workers share for it. An image that a worker would not believe is not looked at:
the log says, in our own memory, what will be made of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_SH, LOCK_UN, flock
from typing import Any, NamedTuple, TypeVar

import lmdb

from ...core.errors import ConfigError, ProviderUnavailable
from .check import LOST, compare, set_aside
from .image import FORMAT, Image, Meta, boot_id, is_whole, read_meta
from .log import Log
from .opening import is_newer
from .recovery import replay
from .store import Store, take
from .words import POISONED, SEEN, STORE, SYNCED, is_blank, is_of, peek

T = TypeVar("T")

#: Seconds that a worker may hold the writers' lock, to recover the store, before we give up.
_RECOVERY = 120.0
_AGAIN = "; the next start makes it again from the log"


class View(NamedTuple):
    """An image that a worker would go on with, and where it stands."""

    image: Image
    txn: Any
    meta: Meta


class Sight(NamedTuple):
    """What is there at one moment. ``same_boot``: nothing written can have been lost."""

    directory: str
    numbers: Any
    same_boot: bool
    log: Log | None
    view: View | None
    #: The image is there, but the log holds more.
    is_behind: bool

    @property
    def is_there(self) -> bool:
        """Whether anything was ever stored."""
        return any(os.path.lexists(os.path.join(self.directory, name)) for name in _STORED)

    def number(self, which: int) -> int:
        """One of the shared numbers of this boot."""
        return self.numbers[which] if self.numbers is not None and self.same_boot else 0


_STORED = ("log", "image")


def problems(store: Store) -> list[str] | None:
    """What is wrong, and what a start would do about it; None if the store is open here.

    Raises ``ConfigError`` if there is nothing, ``ProviderUnavailable``.
    """
    return _look(store, _problems)


def figures(store: Store) -> dict[str, int | float | str] | None:
    """What ``HybridProvider.stats`` tells; None if the store is open here."""
    return _look(store, _figures)


def _problems(sight: Sight) -> list[str]:
    if not sight.is_there:
        raise ConfigError(f"SESSION_DIR: there are no sessions in {sight.directory} yet.")
    log, view = sight.log, sight.view
    texts = []
    if view is None or sight.is_behind:
        path = os.path.join(sight.directory, "image")
        if sight.is_behind:
            texts.append(f"image: it is older than the log{_AGAIN}")
        elif sight.same_boot and os.path.lexists(path) and not os.path.lexists(f"{path}-lock"):
            texts.append("image-lock: it is lost; the next start makes it")
        elif sight.same_boot and os.path.lexists(path):
            texts.append(f"image: it is not the one that was written last, or damaged{_AGAIN}")
        texts += [f"log: {text}" for text in _log_problems(sight)]
    elif log is None or not view.meta.is_beside(log):
        texts.append(LOST)
    else:
        try:
            texts += compare(*view, log)
        except lmdb.Error as error:
            texts.append(f"image: it cannot be read: {error}")
    if log is not None and sight.number(POISONED) == log.generation:
        texts.append("log: the disk failed to sync it; the next write makes a new one")
    return texts + set_aside(sight.directory)


def _log_problems(sight: Sight) -> Iterator[str]:
    """What is wrong with a log that the image is to be made from."""
    log = sight.log
    if log is None:
        yield "it is lost, or its header is"
        return
    found = replay(log, sight.same_boot)
    yield from found.damage
    seen = sight.number(SEEN)
    if found.sequence < seen and sight.number(STORE) in (0, log.store):
        yield f"it ends with commit {found.sequence}, but {seen} was acknowledged"


def _figures(sight: Sight) -> dict[str, int | float | str]:
    log, view = sight.log, sight.view
    sessions = generation = position = sequence = 0
    if view is not None and not sight.is_behind:
        state = "sound" if log is not None and view.meta.is_beside(log) else "the log is lost"
        sessions = view.txn.stat(view.image.sessions)["entries"]
        _, _, _, _, _, generation, _, _, position, sequence, _, _ = view.meta
    elif log is not None:
        state = "the next start makes the image from the log"
        found = replay(log, sight.same_boot)
        sessions, sequence = len(found.sessions), found.sequence
        generation, position = log.generation, found.position
    else:
        state = "lost" if sight.is_there else f"there are no sessions in {sight.directory} yet"
    unsynced = sequence - sight.number(SYNCED) if sight.same_boot else 0
    return {
        "sessions": sessions,
        "state": state,
        "generation": generation,
        "log_bytes": position,
        "image_bytes": _size(os.path.join(sight.directory, "image")),
        "commits": sequence,
        "unsynced_commits": max(0, unsynced),
    }


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def damaged_logs(directory: str) -> int:
    """How many logs were set aside."""
    try:
        return sum(name.startswith("damaged-") for name in os.listdir(directory))
    except FileNotFoundError:
        return 0


# Opening


def _look(store: Store, work: Callable[[Sight], T]) -> T | None:
    if store.image is not None:
        return None
    with store.unopened() as unopened, ExitStack() as held:
        if not unopened:
            return None
        try:
            with _between_turns(store):
                sight = _open(store, held)
            return work(sight)
        except (OSError, lmdb.Error) as error:
            raise ProviderUnavailable(f"the session store cannot be read: {error}") from error


def _open(store: Store, held: ExitStack) -> Sight:
    numbers = peek(store.path("sync"))
    boot = boot_id()
    same = numbers is not None and is_of(numbers, boot)
    log = Log.open(store.path("log"), readonly=True)
    believed = same or numbers is None or is_blank(numbers)
    view = _view(store, boot, held) if believed else None
    is_behind = False
    if view is not None and numbers is not None:
        is_behind = is_newer(log, view.meta, numbers)
    return Sight(store.directory, numbers, same or view is not None, log, view, is_behind)


def _view(store: Store, boot: bytes, held: ExitStack) -> View | None:
    path = store.path("image")
    if not is_whole(path) or not os.path.isfile(f"{path}-lock"):
        return None
    with ExitStack() as opened:
        try:
            image = Image(path, store.tuning.map_bytes, create=False, readonly=True)
            opened.callback(image.close)
            txn = image.begin()
            opened.callback(txn.abort)
            meta = read_meta(txn)
        except lmdb.Error:
            return None
        if meta is None or meta.number != txn.id():
            return None
        if (meta.format, meta.boot, meta.image) != (FORMAT, boot, image.inode):
            return None
        held.push(opened.pop_all())
        return View(image, txn, meta)


@contextmanager
def _between_turns(store: Store) -> Iterator[None]:
    """While nobody writes. Where there is no lock, nobody does."""
    try:
        fd = os.open(store.path("lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    try:
        take(fd, max(_RECOVERY, store.tuning.patience), kind=LOCK_SH)
        yield
    finally:
        flock(fd, LOCK_UN)  # not by closing alone: a child forked meanwhile has the file too
        os.close(fd)
