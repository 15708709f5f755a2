"""The log file: append, cut, sync, read back.

It is always named ``log``. A new generation is written beside it, synced, and renamed over it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from errno import EINVAL, ENOSPC, ENOTSUP, EOPNOTSUPP
from io import FileIO
from mmap import ACCESS_READ, mmap
from zlib import crc32

from ...core.errors import ConfigError
from . import files
from .frame import (
    CHAIN_SIZE,
    HEADER_SIZE,
    SNAPSHOT,
    VERSION,
    Buffer,
    Frame,
    Gap,
    Header,
    chain_of,
    continues,
    pack,
    parse,
    parse_header,
    resync,
)


class Log:
    """An open log file of one generation. Closed when nobody refers to it any more."""

    def __init__(self, fd: int, header: Header) -> None:
        self._file = FileIO(fd)  # it is closed even if ``__del__`` is interrupted
        self.fd = fd
        self.header = header
        self.generation = header.generation
        self.salt = header.salt
        self.store = header.store
        #: What the next frame that ``packed`` makes is chained to.
        self.chain = header.chain
        status = os.fstat(fd)
        self.device, self.inode = status.st_dev, status.st_ino

    def __del__(self) -> None:
        # By reference count: another thread may be in fdatasync while a new generation begins.
        self._file.close()

    @classmethod
    def create(cls, path: str, header: Header) -> Log:
        """A new file, in place of any other at ``path``."""
        remove(path)
        log = cls(files.create(path, os.O_APPEND), header)
        log.append(header.pack())
        return log

    @classmethod
    def open(cls, path: str, readonly: bool = False) -> Log | None:
        """The log at ``path``; None when there is none or its header is lost.

        Raises ``ConfigError`` for a newer format and for a file that may not be opened.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK if readonly else os.O_RDWR | os.O_APPEND
        try:
            fd = os.open(path, flags | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"SESSION_DIR: {path} cannot be opened: {error.strerror}.") from None
        try:
            header = parse_header(os.pread(fd, HEADER_SIZE, 0))
            if header is not None and header.version > VERSION:
                raise ConfigError(
                    f"SESSION_DIR: {path} was written by a newer version of Flask-HybridSession "
                    f"(format {header.version}, this one reads {VERSION}). Install that version, "
                    "or set SESSION_DIR to another directory. Nothing was changed."
                )
            if header is not None:
                if not readonly:
                    files.make_private(fd)
                fd, kept = -1, fd
                return cls(kept, header)
        finally:
            if fd >= 0:
                os.close(fd)
        return None

    def append(self, data: bytes) -> None:
        """Write ``data`` at the end, whole: a short write raises ``OSError`` (cut it back)."""
        written = os.write(self.fd, data)
        while written < len(data):
            # The second try tells why: no space, a limit, a broken disk.
            written += os.write(self.fd, data[written:])

    def cut(self, position: int) -> None:
        """Forget what stands behind ``position``."""
        os.ftruncate(self.fd, position)

    def sync(self) -> None:
        """Wait until all that was appended is on the disk."""
        os.fdatasync(self.fd)

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.fd).st_size

    def chain_at(self, position: int) -> bytes:
        """What names the frame that ends at ``position``, and all before it."""
        return os.pread(self.fd, CHAIN_SIZE, position - CHAIN_SIZE)

    def goes_on(self, position: int, sequence: int) -> bool:
        """Whether commit ``sequence + 1`` stands whole at ``position``."""
        data = os.pread(self.fd, max(0, self.size() - position), position)
        frame = parse(data, 0, self.generation, self.salt)
        return frame is not None and frame.sequence == sequence + 1

    def has_header(self) -> bool:
        """Whether what is written there is still what was read."""
        return parse_header(os.pread(self.fd, HEADER_SIZE, 0)) == self.header

    def is_at(self, path: str) -> bool:
        """Whether ``path`` still names this very file."""
        return identity(path) == (self.device, self.inode)

    def entries(
        self, start: int = HEADER_SIZE, end: int = sys.maxsize
    ) -> Iterator[tuple[int, Frame | Gap]]:
        """Everything in the file between two positions, each with its offset."""
        size = min(self.size(), end)
        if size <= start:
            return
        with mmap(self.fd, size, access=ACCESS_READ) as buffer:
            # Where the walk begins amid the frames, and in a log of format 1, nothing is known.
            whole = start == HEADER_SIZE and self.header.version > 1
            chain = self.header.chain if whole else b""
            yield from walk(buffer, start, self.generation, self.salt, chain)

    def tail(self, start: int, end: int) -> Iterator[Frame]:
        """The frames between two positions that a writer has vouched for."""
        while start < end:
            data = os.pread(self.fd, min(end - start, 1 << 20), start)
            offset = 0
            while (frame := parse(data, offset, self.generation, self.salt)) is not None:
                yield frame
                offset += frame.size
            if not offset:
                data = os.pread(self.fd, end - start, start)
                frame = parse(data, 0, self.generation, self.salt)
                if frame is None:
                    raise OSError(f"the log is damaged at {start}")
                yield frame
                offset = frame.size
            start += offset

    def packed(self, frame: Frame) -> bytes:
        """The bytes of ``frame`` in this log, behind those that were packed before it."""
        data = pack(frame, self.generation, self.salt, self.chain)
        self.chain = chain_of(data)
        return data


def walk(
    buffer: Buffer, offset: int, generation: int, salt: int, chain: bytes
) -> Iterator[tuple[int, Frame | Gap]]:
    """Frames and gaps from ``offset`` to the end. Sequence numbers only ever grow.

    ``chain`` is what the first frame is chained to, or empty. A frame that is chained to another
    than the one before it is of another history: with it the log ends.
    """
    after, chained = 0, bool(chain)
    while offset < len(buffer):
        frame = parse(buffer, offset, generation, salt)
        if frame is None:
            gap = resync(buffer, offset, after, generation, salt)
            yield offset, gap
            offset, chain = gap.end, b""
        elif chain and not continues(buffer, offset, chain):
            yield offset, Gap(offset, len(buffer), {frame.sequence: frame.key}, True)
            return
        else:
            yield offset, frame
            offset += frame.size
            after = 0 if frame.op == SNAPSHOT else frame.sequence
            chain = buffer[offset - CHAIN_SIZE : offset] if chained else b""


def identity(file: str | int) -> tuple[int, int] | None:
    """Which file that is, by device and inode; None when there is none."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def allocate(fd: int, size: int) -> None:
    """Have the blocks of a file that is to be mapped, so that to write there never lacks room.

    A file that is shorter grows; the rest of what is in it stays.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", ENOTSUP) not in (ENOTSUP, EOPNOTSUPP, EINVAL):
            raise
        there = os.fstat(fd).st_size
        if there < size and os.pwrite(fd, bytes(size - there), there) < size - there:
            raise OSError(ENOSPC, os.strerror(ENOSPC)) from None


def checksum(path: str) -> int:
    """A number that hardly another content gives, and 0 if there is no file.

    Of a large file only where and when it was written is looked at: to read it takes too long.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if status.st_size > _LARGE:
                facts = status.st_ino, status.st_size, status.st_mtime_ns
                return crc32(repr(facts).encode()) | 2 << 32
            check = 0
            while data := file.read(1 << 20):
                check = crc32(data, check)
    except FileNotFoundError:
        return 0
    return check | 1 << 32


#: Bytes that are read in some 0.05 seconds.
_LARGE = 64 << 20


def remove(path: str) -> None:
    """Delete a file that may be absent."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: str) -> None:
    """Make a rename in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
