"""The store: one per directory and process, shared by all providers that use the directory.

It owns the log and the image, lets one writer at a time make a *turn*, and decides when what was
written is on the disk. Order within a turn: judge, append to the log, commit the image, tell the
words. A writer killed anywhere in between leaves bytes behind the position that image and words
know: the next one cuts them off. What was put there in place of the image or the log does not end
where the other one and the words say.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from io import FileIO
from math import inf
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import lmdb

from ...core import clock, forks, threads
from ...core.errors import ConfigError, CorruptData, ProviderUnavailable
from ...core.locks import Bell, Hold, Lock, clear_frames, give_back, wait_until_gone
from . import compact as _compact
from . import files, owners
from .age import Age
from .frame import pack_parts
from .image import (
    FIXED,
    META,
    Image,
    Meta,
    boot_id,
    open_images,
    pack_place,
    read_meta,
    unpack_place,
)
from .inherited import leave
from .log import Log, identity, remove
from .opening import Opening, is_newer, synced
from .recovery import replay
from .words import EPOCH, POISONED, SEEN, SYNCED, Words, adopt_anchor, next_epoch

T = TypeVar("T")
logger = logging.getLogger("flask_hybridsession.hybrid")


_TRIES = 100
#: Seconds between two looks of a writer that waits, at most.
_PAUSE = 0.0005
#: Seconds between two slices of purge: writers that wait look more often.
_COURTESY = 0.0006
#: Seconds that one who purges waits for another who does.
_SWEEPER = 1.0
#: Seconds after which a lock that is still held is held by somebody who is at work.
_LEFT_BEHIND = 0.5
#: Seconds within which every worker has noticed that its image is not the one in place.
_NOTICED = 3.0
#: Seconds in which two changes of a directory may get the same time: file systems take that of the
#: kernel's last tick.
_TICK = 0.05
#: Seconds that one who ends, or forks, waits for threads of this process.
_PARTING = 10.0
#: Seconds that a new provider waits for another worker that recovers the store.
_RECOVERY = 120.0


class Tuning(NamedTuple):
    """What rarely needs another value.

    ``sync_interval`` seconds between syncs of what nobody waits for. ``patience`` is how long, in
    seconds, a writer waits for its turn. The log is compacted when it is larger than
    ``compact_bytes`` and ``compact_factor`` times what it was after the last time; and when that
    was ``compact_age`` seconds ago, if a session has ended since. ``map_bytes`` is the address
    space to begin with; it grows when it must.
    """

    sync_interval: float = 1.0
    patience: float = 5.0
    compact_bytes: int = 16 << 20
    compact_factor: float = 2.0
    compact_age: float = 86_400.0
    map_bytes: int = 1 << 38


class Turn:
    """What the one writer has in hand: the image to change, and the frames to log for it."""

    __slots__ = (
        "chain",
        "dirty",
        "frames",
        "image",
        "log",
        "sequence",
        "synced",
        "txn",
    )

    def __init__(
        self, txn: Any, image: Image, log: Log, sequence: int, synced: int, chain: bytes
    ) -> None:
        self.txn = txn
        self.image = image
        self.log = log
        self.sequence = sequence
        self.synced = synced
        self.chain = chain
        self.frames: list[bytes] = []
        self.dirty = False

    def add(self, op: int, key: bytes, data: bytes, previous: int) -> None:
        """Log one thing, as commit number ``sequence + 1``."""
        self.sequence = sequence = self.sequence + 1
        log = self.log
        frame = pack_parts(
            op, key, data, sequence, previous, self.synced, log.generation, log.salt, self.chain
        )
        self.chain = frame[-4:]
        self.frames.append(frame)


class Store:
    """See the module."""

    def __init__(self, directory: str, tuning: Tuning, group: str | int | None = None) -> None:
        self.directory = directory
        self.tuning = tuning
        self.group = group
        self.users = 0
        self._waits = max(_RECOVERY, tuning.patience)
        self._reset()
        self._check()

    def _reset(self) -> None:
        self.image: Any = None
        self.log: Any = None
        self.words: Any = None
        self.view: Any = None
        # What the image says of a log that is the one in hand.
        self._beside = b""
        # The words that were in use before: to open anew is not to come as the first one.
        self._stay: Any = None
        self.epoch = -1
        # Who has it may write, open and close. Other processes are kept out by ``_lock_fd``.
        self._turns = Lock(after=self._end_turn)
        self._syncs = Lock()
        self._builds = Lock()
        self._starts = Lock()
        self._paused: list[Hold] = []
        self._leaving = self._ended = False
        self._lock_fd = -1
        self._txn: Any = None
        self._locked: WeakSet[_LockFile] = WeakSet()
        self._unsynced = False
        self._bell: Bell | None = None
        self._keeper: threading.Thread | None = None
        self._compactor: threading.Thread | None = None
        self._compact_at: float = inf
        self._compact_here = False
        self._age = Age(self.tuning.compact_age)
        self._mend_after = -inf
        self._suspicious = False
        self._lingering: list[tuple[float, int]] = []
        # What the directory was like when all was in place; and since when it is like this.
        self._stamp = self._new_stamp = (0, 0, 0)
        self._settled_at = inf
        self.syncing = getattr(self, "syncing", False)

    def path(self, name: str) -> str:
        """A file in the directory."""
        return os.path.join(self.directory, name)

    # Readers

    def hold(self) -> Image:
        """The image, which is not closed while anybody has it in hand. Let go of it soon."""
        forks.look()
        for _ in range(_TRIES):
            image: Image | None = self.image
            if image is not None and self.view[EPOCH] == self.epoch:
                return image
            del image
            self._ready()
        raise _restless()

    def read(self, work: Callable[..., T], *args: Any) -> T:
        """Call ``work(txn, image, *args)`` with a view of the image that does not change."""
        for _ in range(_TRIES):
            image: Image | None = self.hold()
            if self._keeper is None:
                self._keep()
            repair: Callable[[], None] = self._ready
            try:
                txn = image.begin()  # type: ignore[union-attr]
                try:
                    return work(txn, image, *args)
                finally:
                    txn.abort()
                    del txn
            except lmdb.MapResizedError:
                repair = self._grow
            except lmdb.BadRslotError:  # a child that was forked behind our back closed the image
                repair = self._shut
            except lmdb.ReadersFullError as error:
                image.env.reader_check()  # type: ignore[union-attr]
                raise self.down(error) from error
            except lmdb.Error as error:
                raise self.down(error) from error
            image = None
            repair()
        raise _restless()

    def meta(self) -> Meta:
        """Where the image stands."""
        return self.read(_meta)

    def _withdraw(self) -> Image | None:
        """Take the image from the readers, and wait for those who have it in hand.

        What was taken before, and was never closed, is waited for too.
        """
        image: Image | None = self.image
        mine = None if image is None else image.again()
        self.image = image = None
        wait_until_gone(open_images(self.path("image"), mine), self.tuning.patience)
        return mine

    def _grow(self) -> None:
        with self._turns.take(self.tuning.patience):
            image = self._withdraw()
            if image is None:
                return
            try:
                image.grow()
                self.image = image
            except lmdb.Error as error:
                image.close()
                raise self.down(error) from error

    # Writers

    def write(self, wait: bool, work: Callable[..., T], *args: Any) -> T:
        """Call ``work(turn, *args)`` as the only writer, and make all of it happen or nothing.

        With ``wait``, return when it is on the disk. Raises ``ProviderUnavailable``.
        """
        forks.look()
        while True:
            try:
                result, sequence = self._turn(work, args)
                break
            except (lmdb.MapFullError, lmdb.MapResizedError):
                repair = self._grow
            except _Moved:
                repair = self._shut
            except (OSError, lmdb.Error) as error:
                raise self.down(error) from error
            repair()  # not before: the error has what the turn had in hand
        if self._keeper is None:
            self._keep()
        if sequence:
            if wait or (self.syncing and self._keeper is None):
                self.sync(sequence)
            elif self.syncing and not self._unsynced:
                self._unsynced = True
                if self._bell is not None:
                    self._bell.ring()
        if self._compact_here:
            self._compact_here = False
            self._compact_once()
        return result

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """One worker purges at a time and leaves room after each slice: requests come first.

        A courtesy, not a lock: who waited in vain goes on.
        """
        with self.lock_file("purge") as fd:
            try:
                take(fd, min(_SWEEPER, self.tuning.patience), 0.002)
            except ProviderUnavailable:
                clear_frames()  # one of ours may have kept it
            yield
            time.sleep(_COURTESY)

    @contextmanager
    def lock_file(self, name: str) -> Iterator[int]:
        """A file to lock beside the writers' own: unlocked and closed at the end."""
        forks.look()
        if self._lock_fd < 0:
            self._ready()
        try:
            file = _LockFile(self.path(name))
        except OSError as error:
            raise self.down(error) from error
        self._locked.add(file)
        try:
            yield file.fd
        finally:
            file.close()

    def _turn(self, work: Callable[..., T], args: tuple[Any, ...]) -> tuple[T, int]:
        with self._turns.take(self.tuning.patience):
            return self._alone(work, args)

    def _end_turn(self) -> None:
        """Let go of what a turn has in hand, also of one that was lost: others may go on."""
        txn, self._txn = self._txn, None
        if txn is not None:
            txn.abort()
        if self._lock_fd >= 0 and forks.ours[0]:
            flock(self._lock_fd, LOCK_UN)

    def _alone(self, work: Callable[..., T], args: tuple[Any, ...]) -> tuple[T, int]:
        if self._lock_fd < 0:
            self._prepare()
        take(self._lock_fd, self.tuning.patience)
        if self.image is None or self.view[EPOCH] != self.epoch:
            self._open()
        else:
            self._look()
        txn, (position, sequence, number, chain) = self._begin()
        log, view = self.log, self.view
        turn = Turn(txn, self.image, log, sequence, view[SYNCED], chain)
        result = work(turn, *args)
        if not turn.frames and not turn.dirty:
            return result, 0
        try:
            if turn.frames:
                data = turn.frames[0] if len(turn.frames) == 1 else b"".join(turn.frames)
                log.append(data)
                position += len(data)
            stands = pack_place(position, turn.sequence, number + 1, turn.chain)
            txn.put(META, self._beside + stands)
            txn.commit()
        except BaseException:
            txn.abort()
            self._cut_back()
            raise
        view[SEEN] = turn.sequence
        if position > self._compact_at:
            self._start_compaction(position)
        return result, turn.sequence if turn.frames else 0

    def _begin(self) -> tuple[Any, tuple[int, int, int, bytes]]:
        """A transaction, which ends with the turn, and where the image stands."""
        for _ in range(2):
            self._txn = txn = self.image.begin(write=True)
            place = self._place(txn)
            if place is not None:
                return txn, place
            txn.abort()
            self._settle()
        raise _restless()

    def _look(self) -> None:
        """Notice files that were deleted, moved or replaced: that changes the directory's time."""
        try:
            status = os.stat(self.directory)
        except FileNotFoundError:
            raise _Moved from None
        stamp = status.st_mtime_ns, status.st_ino, status.st_dev
        if stamp == self._stamp:
            return
        now = time.monotonic()
        if stamp != self._new_stamp:
            self._new_stamp, self._settled_at = stamp, now + _TICK
        self._check_directory()
        if not self._in_place():
            self._open()
        self._suspicious = not self.log.is_at(self.path("log"))
        if now > self._settled_at:
            self._stamp = stamp

    def _in_place(self) -> bool:
        """Whether image and words are those that another worker would open."""
        here = self.words.identity == identity(self.path("sync"))
        return here and bool(self.image.is_in_place())

    def _place(self, txn: Any) -> tuple[int, int, int, bytes] | None:
        """Where the image stands, if the log in hand can be continued from there."""
        data, log, view = txn.get(META), self.log, self.view
        if data is None or data[:FIXED] != self._beside or view[POISONED] == log.generation:
            return None
        place: tuple[int, int, int, bytes] = unpack_place(data, FIXED)
        position, sequence, number, chain = place
        if self._suspicious or number + 1 != txn.id():
            return None
        if os.lseek(log.fd, 0, os.SEEK_END) != position:
            if log.chain_at(position) != chain or view[SEEN] != sequence:
                return None
            log.cut(position)  # what a killed writer left
        return place

    def _settle(self) -> None:
        """Image, log and words do not fit: go on with the newest."""
        self._suspicious = False
        meta = self.image.sound_meta(write=True)
        log = Log.open(self.path("log"))
        if meta is None or is_newer(log, meta, self.view):
            logger.error("the session image is not the newest one; it will be made again")
            self._open(doubted=True)
        elif not self._adopt(log, meta):
            self._mend()

    def _adopt(self, log: Log | None, meta: Meta) -> bool:
        """Go on with this log, if it is the one that the image stands beside."""
        if log is None or not meta.is_beside(log) or self.view[POISONED] == log.generation:
            return False
        if log.chain_at(meta.position) != meta.chain:
            return False
        if log.size() > meta.position:
            log.cut(meta.position)  # what a killed writer left
        self._take(log, meta)
        return True

    def _take(self, log: Log, meta: Meta) -> None:
        self.log = log
        self._beside = meta.pack()[:FIXED]
        self.words.begin(meta.store, meta.sequence)
        self._plan(meta.floor)
        self._age.begin(log, meta.floor)

    def _plan(self, floor: int) -> None:
        tuning = self.tuning
        self._compact_at = max(tuning.compact_bytes, tuning.compact_factor * floor)

    def _mend(self) -> None:
        """The log was lost, replaced, shortened, or did not sync: write it anew from the image."""
        self._check_directory()
        if time.monotonic() < self._mend_after:
            raise ProviderUnavailable("the log cannot be written")
        self._mend_after = time.monotonic() + 1.0
        meta = self.image.stands()
        there = Log.open(self.path("log"))
        generation = meta.generation + 1
        if there is not None:
            generation = max(generation, there.generation + 1)
        if self._is_to_be_kept(there, meta):
            _compact.set_aside(self.directory)
        logger.error("session log of generation %d is lost; writing it anew", meta.generation)
        self._take(*_compact.replace(self.image, self.directory, meta, generation))
        self.view[SYNCED] = meta.sequence
        self._mend_after = -inf

    def _is_to_be_kept(self, there: Log | None, meta: Meta) -> bool:
        """Whether the log in place may hold what the image does not hold."""
        if there is None:
            path = self.path("log")
            return os.path.exists(path) and os.path.getsize(path) > 0
        if there.store != meta.store or there.generation < meta.generation:
            return True
        if there.generation > meta.generation:
            found = replay(there, True)
            return bool(found.damage) or found.sequence != meta.sequence  # not made of this image
        return there.size() > meta.position or there.chain_at(meta.position) != meta.chain

    def _check_directory(self) -> None:
        """A directory that was deleted, or made anew, is another store."""
        if identity(self.path("lock")) != identity(self._lock_fd):
            raise _Moved

    def _cut_back(self) -> None:
        """After a failure: the log ends where the image says, committed or not."""
        try:
            position = self.image.stands().position
            if self.log.size() > position:
                self.log.cut(position)
        except (OSError, lmdb.Error, CorruptData):
            pass  # the next writer does it

    def down(self, error: BaseException) -> ProviderUnavailable:
        """What a caller is told of a failure below."""
        if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)):
            logger.error("the session image is damaged (%s); it will be made again", error)
            self._give_up_image()
        elif getattr(error, "errno", None) in (ENOSPC, EDQUOT):
            return ProviderUnavailable("the session store is full: no space left on its disk")
        return ProviderUnavailable(f"the session store cannot be used now: {error}")

    def _give_up_image(self) -> None:
        """Let every worker open anew, and the first of them make the image again."""
        remove(self.path("image"))
        next_epoch(self.view)

    # Durability

    def sync(self, sequence: int) -> None:
        """Wait until commit ``sequence`` is on the disk.

        A thread syncs for all threads that wait by then. Workers sync beside one another, which
        the file system does in one go: to wait for another worker's turn would take longer.
        """
        forks.look()
        with self._syncs.take():
            view = self.view
            if (view is None or view[SYNCED] < sequence) and self._sync_now() < sequence:
                raise ProviderUnavailable("what was written cannot be brought to the disk")

    def _sync_now(self) -> int:
        """Sync the log, and say up to which commit.

        One that failed once is never believed again: another takes its place.
        """
        meta = self.meta()
        log, words = self.log, self.words  # another thread may let go of them meanwhile
        if log is None or log.generation != meta.generation:
            log = Log.open(self.path("log"))
        if log is None or log.generation != meta.generation:
            self._suspicious = True
        elif words is not None and synced(log, words.view):
            # Workers may overtake one another here: a number that is too small does no harm.
            words.view[SYNCED] = max(words.view[SYNCED], meta.sequence)
            return meta.sequence
        self.write(False, _nothing)  # a turn begins with mending what does not fit
        view = self.view
        return 0 if view is None else int(view[SYNCED])

    def flush(self) -> None:
        """Bring everything that was committed, by whomever, to the disk."""
        forks.look()
        if self.image is not None:
            self._unsynced = False
            sequence = self.meta().sequence
            if self.view[SYNCED] < sequence:
                self.sync(sequence)

    # The keeper: one thread per process

    def _keep(self) -> None:
        hold = self._starts.try_take()
        if hold is None:
            return  # another thread is at it
        with hold:
            # While it closes, and so at the end of the interpreter, no thread may begin.
            if self._keeper is None and not self._ended and threads.may_start():
                self._bell = self._bell or Bell()
                thread = threading.Thread(
                    target=self._look_after, name="hybridsession-keeper", daemon=True
                )
                thread.start()
                self._keeper = thread

    def _look_after(self) -> None:
        """Sync what nobody waits for, and notice when the files are not ours any more."""
        self._keeper = me = threading.current_thread()
        bell, interval = self._bell, self.tuning.sync_interval
        while not self._ended and self._keeper is me and bell is not None:
            if bell.wait(max(1.0, interval)) and self.syncing:
                self._rest(interval / 2)
            if self._ended:
                return
            try:
                if self.syncing:
                    self.flush()
                else:
                    self._unsynced = False
                self._watch()
                self._let_go(time.monotonic() - _NOTICED)
                self.compact_aged()
            except Exception as error:
                logger.error("the session store's keeper failed: %s", error)
                self._unsynced = False

    def _rest(self, seconds: float) -> None:
        """Sleep, unless the store is closed meanwhile."""
        end = time.monotonic() + seconds
        while self._bell is not None and not self._ended and (left := end - time.monotonic()) > 0:
            self._bell.wait(left)

    def _watch(self) -> None:
        with self._turns.take(self.tuning.patience):
            if self.image is None:
                return
            try:
                self._check_directory()
            except _Moved:
                self._shut_files()
                return
            well = self._in_place() and self._is_of_one_mind()
        if not well:
            self._suspicious = True
            self.write(False, _nothing)  # a turn begins with looking

    def _is_of_one_mind(self) -> bool:
        """Whether the log is in place, and holds what the image holds: all that a reader can tell.

        What was written since then makes no difference, but for a new generation.
        """
        log = self.log
        if log is None or not log.is_at(self.path("log")) or not log.has_header():
            return False
        try:
            meta = self.image.sound_meta()
        except lmdb.Error:
            return True  # nothing was told; who reads is told of it too
        return meta is not None and bool(log.chain_at(meta.position) == meta.chain)

    def compact_aged(self) -> None:
        """Have the log compacted if it is old, and holds what has ended."""
        if self.image is None or self._is_compacting() or not self._age.is_due():
            return
        if threads.may_start():
            self._compact_beside(self._compact_ended)
        else:
            self._compact_ended()

    def _compact_ended(self) -> None:
        try:
            if not self._age.has_ended(self):
                return
        except Exception as error:
            logger.error("the session log could not be looked through: %s", error)
            return
        self._compact_once()

    def _start_compaction(self, position: int) -> None:
        if self._is_compacting():
            return  # the next turn asks again
        # Who opens what is there after it plans the next one.
        self._compact_at = position * 1.1 + self.tuning.compact_bytes
        if threads.may_start():
            self._compact_beside(self._compact_once)
        else:
            self._compact_here = True  # when the turn is over

    def _is_compacting(self) -> bool:
        return self._compactor is not None and self._compactor.is_alive()

    def _compact_beside(self, work: Callable[[], None]) -> None:
        self._compactor = threading.Thread(target=work, name="hybridsession-compactor", daemon=True)
        self._compactor.start()

    def _compact_once(self) -> None:
        try:
            _compact.compact(self)
        except Exception as error:
            logger.error("the session log could not be compacted: %s", error)

    def building(self) -> Hold:
        """While another image than ours is open. It must not cross a fork either.

        Raises ``BlockingIOError`` when another thread is at it, or forks: after a while, in which a
        hold that was left behind comes back.
        """
        forks.look()
        try:
            return self._builds.take(_LEFT_BEHIND)
        except ProviderUnavailable:
            raise BlockingIOError from None

    def linger(self, fd: int) -> None:
        """Close a file later: to free a large one takes long, and who does it must not be a writer.

        The last one to close it does.
        """
        self._lingering.append((time.monotonic(), fd))

    def _let_go(self, before: float = inf) -> None:
        while self._lingering and self._lingering[0][0] < before:
            os.close(self._lingering.pop(0)[1])

    def is_leaving(self) -> bool:
        """Whether this worker is about to fork or to end: what takes long is given up."""
        return self._leaving or self._ended

    # Opening and closing

    def is_there(self) -> bool:
        """Whether anything was ever stored: who only looks for something makes no store."""
        names = ("log", "image")
        return self.image is not None or any(os.path.lexists(self.path(name)) for name in names)

    @contextmanager
    def unopened(self) -> Iterator[bool]:
        """Whether it is not open here; then it stays so until the end."""
        forks.look()
        with self._turns.take(self._waits):
            yield self.image is None

    def adopt_clock(self) -> None:
        """Count the time as the other workers do, before anything is open."""
        adopt_anchor(self.path("sync"), boot_id())

    def _prepare(self) -> None:
        """Make the directory and the lock file, if the log is one that we understand."""
        try:
            files.make_directory(self.directory)
            # Since the app was loaded anybody may have made it.
            owners.check_directory(self.directory, self.group)
            Log.open(self.path("log"))
            self._lock_fd = files.open_file(self.path("lock"))
        except OSError as error:
            raise self._unusable(error) from None

    def _check(self) -> None:
        """Raise ``ConfigError`` if the directory cannot be used, or made. Makes nothing."""
        try:
            files.check_usable(self.directory)
            for name in ("lock", "sync", "log"):
                files.check_file(self.path(name))
            Log.open(self.path("log"), readonly=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"SESSION_DIR: {self.directory} cannot be used: {error.strerror}. "
            "Set SESSION_DIR to a directory that this process may create and write."
        )

    def _ready(self) -> None:
        """Be open. While another worker recovers the store, wait for it."""
        with self._turns.take(self._waits):
            if self._lock_fd < 0:
                self._prepare()
            try:
                take(self._lock_fd, self._waits)
                self._waits = self.tuning.patience
                if self.image is None or self.view[EPOCH] != self.epoch:
                    self._open()
            except _Moved:
                self._shut_files()
            except (OSError, lmdb.Error) as error:
                raise self.down(error) from error

    def _open(self, doubted: bool = False) -> None:
        """Open the files as the only writer, and recover them when that is needed."""
        self._close_files()
        words = Words(self.path("sync"))
        alone = words.come() and self._stay is None
        log = Log.open(self.path("log"))
        place = self.directory, self.tuning.map_bytes
        opening = Opening(*place, words, log, alone=alone, doubted=doubted)
        clock.adopt(words.anchor())
        if not os.path.exists(self.path("image-lock")):
            next_epoch(words.view)  # who has a deleted one open must not go on with it
        image, log = opening.choose()
        self.words, self.view, self.log = words, words.view, log
        self.epoch = words.view[EPOCH]
        self.image = image  # last: from here on it is read
        self._stay = None
        if not self._adopt(log, image.stands()):
            self._mend()

    def _close_files(self) -> None:
        image = self._withdraw()
        if image is not None:
            image.close()
        self.log = None
        self._stay = self.words or self._stay
        self.words = self.view = None
        self._beside = b""
        self.epoch = -1

    def _shut(self) -> None:
        """Let go of everything; the next call opens what is there then."""
        with self._turns.take(self.tuning.patience):
            self._shut_files()

    def _shut_files(self) -> None:
        self._close_files()
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Sync and close. A later call would open again."""
        forks.look()
        self._ended = True
        if self._bell is not None:
            self._bell.ring()
        for thread in (self._keeper, self._compactor):
            if thread is not None and thread is not threading.current_thread():
                thread.join(_PARTING)
        try:
            if self.syncing:
                self.flush()
        finally:
            self._leave()
            self._let_go()
            self._keeper = self._compactor = self._bell = None
            self._ended = False

    def _leave(self) -> None:
        """Close, and let the next one who opens the image know it again."""
        with self._turns.take(self.tuning.patience):
            replaced = self.image is not None and not self._in_place()
            self._close_files()
            words, self._stay = self._stay, None
            try:
                if words is not None and words.identity == identity(self.path("sync")):
                    if self._lock_fd < 0:
                        self._prepare()
                    take(self._lock_fd, self.tuning.patience)
                    if not replaced:
                        words.leave(self.path("image"))
            except (OSError, ConfigError, ProviderUnavailable):
                pass  # then it is made again
            finally:
                self._end_turn()
                self._shut_files()

    def pause(self) -> None:
        """Finish and close, and let nobody begin anything before ``resume``."""
        self._leaving = True
        for lock in (self._builds, self._syncs, self._turns):
            self._paused.append(lock.take(_PARTING))
        self._shut_files()

    def resume(self) -> None:
        """Go on: the next call opens the files again."""
        self._leaving = False
        give_back(self._paused)

    def forget(self) -> None:
        """In a forked child: begin anew with the next call.

        Locks are left as they are: to unlock one would unlock it for the parent, and to keep its
        file open would keep it locked when the parent is gone.
        """
        locked, fd = list(self._locked), self._lock_fd
        self._let_go()
        if self._txn is not None:
            leave(self._txn)
        self._reset()
        for file in locked:
            file.forget()
        if fd >= 0:
            os.close(fd)


class _LockFile:
    """An open file to lock. Its lock goes with it."""

    def __init__(self, path: str) -> None:
        self._file = FileIO(files.open_file(path))
        self.fd = self._file.fileno()

    def close(self) -> None:
        if not self._file.closed:
            # Not by closing alone: a child that was forked meanwhile has the file too.
            flock(self.fd, LOCK_UN)
            self._file.close()

    def forget(self) -> None:
        """Close it in a child, where the lock is the parent's."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()


def take(fd: int, patience: float, pause: float = 0.0, kind: int = LOCK_EX) -> None:
    """Wait for the other workers, but not for ever: one of them may be stopped.

    ``pause`` is how many seconds it sleeps between two tries, at first; ``kind`` is ``LOCK_EX``, or
    ``LOCK_SH`` for who only looks.
    """
    try:
        return flock(fd, kind | LOCK_NB)
    except BlockingIOError:
        pass
    deadline = time.monotonic() + patience
    tries = 0
    while True:
        tries += 1
        time.sleep(pause)
        try:
            return flock(fd, kind | LOCK_NB)
        except BlockingIOError:
            # Who only yields takes the processor from the one that works, so it soon sleeps.
            if tries > 1:
                pause = max(pause, min(_PAUSE, pause * 1.02 or 0.00005))
            if pause and time.monotonic() > deadline:
                raise ProviderUnavailable("another worker is writing for too long") from None


class _Moved(Exception):
    """The directory is not the one that was opened."""


def _restless() -> ProviderUnavailable:
    return ProviderUnavailable("the session store does not come to rest")


def _meta(txn: Any, image: Image) -> Meta:
    meta = read_meta(txn)
    if meta is None:
        raise ProviderUnavailable("the session image is not complete")
    return meta


def _nothing(turn: Turn) -> None:
    """A turn that only makes sure that writing is possible."""
