"""A few numbers that all workers see at once, in a small file that each of them maps.

Whoever has the store open holds a shared lock on the file: who gets it alone is the only one.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from io import FileIO
from mmap import mmap
from struct import Struct
from typing import Any

from ...core import clock
from .files import open_file
from .log import allocate, checksum, identity

#: Counts the images: another number means that the one in hand was given up. It begins anywhere,
#: so that the words of another store are another epoch.
EPOCH = 0
#: The last commit number that is known to be on the disk.
SYNCED = 1
#: The generation of a log whose sync failed: nothing more is acknowledged on it.
POISONED = 2
_BOOT = 3
#: The anchor of the clock, and its complement: what is damaged is not believed.
_ANCHOR = 5
#: The number of the store.
STORE = 7
#: The last commit that was acknowledged: an image or a log that ends before it is not the newest.
SEEN = 8
#: The image's checksum, written by the last one to close it; 0 while anybody has it open.
_CLOSED = 9
_SIZE = 4096
_PAIR = Struct("QQ")
_WORD, _SECONDS = Struct("Q"), Struct("d")
_ALL = (1 << 64) - 1


def next_epoch(view: Any) -> None:
    """Begin another epoch. After a power cut the number may be any: also the largest."""
    view[EPOCH] = (view[EPOCH] + 1) % (1 << 64)


def peek(path: str) -> Any:
    """The numbers as they are now, to read only; None if they cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(_SIZE)
    except OSError:
        return None
    return memoryview(data).cast("Q") if len(data) == _SIZE else None


def adopt_anchor(path: str, boot: bytes) -> None:
    """Count the time as the others of this boot do, if any has begun to."""
    view = peek(path)
    if view is not None and is_of(view, boot) and _is_anchor(view):
        clock.adopt(_seconds(view))


def is_blank(view: Any) -> bool:
    """Whether nobody has used the numbers yet."""
    return not any(view[_BOOT : _BOOT + 2])


def is_of(view: Any, boot: bytes) -> bool:
    """Whether the numbers are of this boot of the machine."""
    return tuple(view[_BOOT : _BOOT + 2]) == _PAIR.unpack(boot)


def _is_anchor(view: Any) -> bool:
    return bool(view[_ANCHOR] ^ view[_ANCHOR + 1] == _ALL)


def _seconds(view: Any) -> float:
    (seconds,) = _SECONDS.unpack(_WORD.pack(view[_ANCHOR]))
    return float(seconds)


class Words:
    """The shared numbers: ``words[SYNCED]``. Each is 8 bytes, aligned, so never seen in halves."""

    def __init__(self, path: str) -> None:
        self._file = FileIO(open_file(path))  # it is closed even if ``__del__`` is interrupted
        self.fd = self._file.fileno()
        self.identity = identity(self.fd)
        if os.fstat(self.fd).st_size > _SIZE:
            os.ftruncate(self.fd, _SIZE)
        allocate(self.fd, _SIZE)
        self._map = mmap(self.fd, _SIZE)
        self.view = memoryview(self._map).cast("Q")

    def is_blank(self) -> bool:
        """Whether the file was made just now."""
        return is_blank(self.view)

    def is_of(self, boot: bytes) -> bool:
        """Whether the numbers are of this boot of the machine."""
        return is_of(self.view, boot)

    def new_boot(self, boot: bytes) -> bool:
        """Whether the machine was restarted; then the numbers start anew, and a new epoch."""
        if self.is_of(boot):
            return False
        view = self.view
        if self.is_blank():
            view[EPOCH] = secrets.randbits(62)
        view[SYNCED] = view[POISONED] = view[_ANCHOR] = view[_ANCHOR + 1] = 0
        view[SEEN] = view[_CLOSED] = 0
        next_epoch(view)
        view[_BOOT], view[_BOOT + 1] = _PAIR.unpack(boot)
        return True

    def begin_anew(self) -> None:
        """These were the numbers of another store, or of none. The clock's anchor stays."""
        self.view[SYNCED] = self.view[POISONED] = self.view[SEEN] = 0
        next_epoch(self.view)

    def come(self) -> bool:
        """Be one of those who have the store open; whether nobody else is. Under the store's lock.

        Given up with the last reference.
        """
        alone = self._is_alone()
        with suppress(BlockingIOError):
            flock(self.fd, LOCK_SH | LOCK_NB)
        return alone

    def _is_alone(self) -> bool:
        try:
            flock(self.fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave(self, image: str) -> None:
        """Note what the image is like, if nobody else has it open. Under the store's lock."""
        if self._is_alone():
            self.view[_CLOSED] = checksum(image)
            flock(self.fd, LOCK_UN)  # a child that was forked behind our back has the file too

    def was_closed(self) -> bool:
        """Whether the last one to have the image open has closed it."""
        return bool(self.view[_CLOSED])

    def is_as_closed(self, image: str) -> bool:
        """Whether every byte of the image is what it was when it was closed."""
        return self.was_closed() and self.view[_CLOSED] == checksum(image)

    def begin(self, store: int, sequence: int) -> None:
        """From here on the image of this store changes."""
        self.view[STORE], self.view[SEEN], self.view[_CLOSED] = store, sequence, 0

    def anchor(self) -> float:
        """What ``clock.now()`` counts from in this boot; the first who asks decides."""
        view = self.view
        if not _is_anchor(view):
            (bits,) = _WORD.unpack(_SECONDS.pack(clock.anchor()))
            view[_ANCHOR], view[_ANCHOR + 1] = bits, bits ^ _ALL
        return _seconds(view)

    def __del__(self) -> None:
        # By reference count: another thread may be waiting for a number to change.
        if hasattr(self, "view"):
            self.view.release()
            self._map.close()
        if hasattr(self, "_file"):
            self._file.close()
