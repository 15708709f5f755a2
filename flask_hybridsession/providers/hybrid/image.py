"""The image: the sessions as the log has made them, in an LMDB file that all workers map.

It is fast, never synced, and can be made again from the log. It is believed only within the same
boot of the machine, in the very file that it was written to, and as long as no newer log is there.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from copy import copy
from hashlib import sha256
from math import inf
from struct import Struct, unpack_from
from typing import Any, NamedTuple
from weakref import ref
from zlib import crc32

import lmdb

from ...core import forks
from ...core.change import Record
from ...core.errors import CorruptData
from ...core.packing import dumps, loads
from .files import open_file
from .inherited import leave, let_open
from .log import Log, allocate, identity

#: Raised by one when the layout below changes: an image of another format is made again.
FORMAT = 2
META = b"meta"
_DATABASES = (b"sessions", b"deadlines", b"users", b"aliases", b"locks")

#: Fewer sessions than these are not many.
_CROWD = 20_000
_SAMPLES = 8

_SPACE = 1 << 38
_LEAST_SPACE = 1 << 26


class Meta(NamedTuple):
    """Where the image stands: beside which log, up to which position and commit number.

    ``floor`` is the size that the log had when its generation began, ``image`` the image's own
    inode: a copy is none of its own. These stay; the rest, from ``position`` on, is of each
    transaction: ``number`` is its own, ``chain`` names the log's last frame.
    """

    format: int
    boot: bytes
    store: int
    device: int
    inode: int
    generation: int
    floor: int
    image: int
    position: int
    sequence: int
    number: int
    chain: bytes

    def pack(self) -> bytes:
        """The bytes that stand in the image."""
        return _META.pack(*self)

    def is_beside(self, log: Log) -> bool:
        """Whether that is the very file."""
        there = log.store, log.device, log.inode, log.generation
        return there == (self.store, self.device, self.inode, self.generation)


_META = Struct("<Q16s9Q4s")
_PLACE = Struct("<3Q4s")
#: What stays is before this.
FIXED = _META.size - _PLACE.size
pack_place, unpack_place = _PLACE.pack, _PLACE.unpack_from


def read_meta(txn: Any) -> Meta | None:
    """Where the image stands, or None while it is being made."""
    data = txn.get(META)
    return None if data is None or len(data) != _META.size else Meta._make(_META.unpack(data))


class State(NamedTuple):
    """A session with what the provider keeps beside it.

    ``version`` is the number of the last frame that changed it; ``aliases`` are pairs of an old key
    and the moment until which it leads here.
    """

    version: int
    record: Record
    aliases: list[tuple[bytes, float]]


def encode(key: bytes, state: State) -> bytes:
    """The session as it stands in the image, and in create and snapshot frames."""
    version, (_, values, created, touched, deadline, user, device), aliases = state
    if type(values) is not dict:
        values = dict(values)
    parts = version, created, touched, deadline, user, device, aliases, values, _NO_CRC
    blob = dumps(parts)[:-4]
    return blob + _pack_crc(crc32(blob, crc32(key)))  # of the key too: none is taken for another


def seal(key: bytes, blob: bytes) -> bytes:
    """What format 1 of the log holds of a session, as ``encode`` would have it."""
    version, created, touched, deadline, user, device, aliases, values = loads(blob)
    record = Record(key.hex(), values, created, touched, deadline, user, device)
    return encode(key, State(version, record, aliases))


_pack_crc = Struct("<I").pack
_NO_CRC = bytes(4)
#: The checksum of all that ends with its own checksum.
_WHOLE = 0x2144DF1C


def decode(key: bytes, blob: bytes) -> State:
    """What ``encode`` was given. Raises ``CorruptData``."""
    try:
        if crc32(blob, crc32(key)) != _WHOLE:
            raise ValueError
        version, created, touched, deadline, user, device, aliases, values, _ = loads(blob)
    except (ValueError, TypeError):
        raise CorruptData(f"session {key.hex()[:12]}... cannot be read") from None
    record = Record(key.hex(), values, created, touched, deadline, user, device)
    return State(version, record, aliases)


def decode_due(key: bytes, blob: bytes, now: float) -> State | None:
    """The session if its deadline is past. What cannot be read is left to others."""
    try:
        state = decode(key, blob)
    except CorruptData:
        return None
    return state if state.record.deadline <= now else None


_DUE = Struct(">d32s")
_pack_due = _DUE.pack
_ALIAS = Struct("<32sd")


def due_key(moment: float, key: bytes) -> bytes:
    """The index entry of a deadline: bytes that sort as the moments do."""
    return _pack_due(moment if moment > 0 else 0.0, key)


def user_key(user: str) -> bytes:
    """The start of the index entries of a user: of one length, whatever the user's name is."""
    return sha256(user.encode("utf-8", "surrogatepass")).digest()


class Image:
    """The open LMDB environment and its named databases.

    ``readonly``: of what is there, nothing changes but the readers' table in the lock file, where
    the writers must see who reads. Nothing is made: both files must be there.
    """

    def __init__(
        self,
        path: str,
        space: int = _SPACE,
        readers: int = 2048,
        create: bool = True,
        readonly: bool = False,
    ) -> None:
        self.path = path
        self._note()
        if not readonly:
            _make_files(path, readers)
        self.env = _open(path, space, readers, create, readonly)
        self.identities = [identity(name) for name in self._files()]
        self.inode = os.stat(path).st_ino
        self.begin = self.env.begin
        try:
            self.sessions, self.deadlines, self.users, self.aliases, self.locks = [
                self.env.open_db(name, create=not readonly) for name in _DATABASES
            ]
            if not readonly:
                self.env.reader_check()
        except BaseException:
            self.close()
            raise

    def _files(self) -> tuple[str, str]:
        return self.path, f"{self.path}-lock"

    def is_in_place(self) -> bool:
        """Whether its files are still those that were opened."""
        return self.identities == [identity(path) for path in self._files()]

    def close(self) -> None:
        """Let go of the file. No transaction may be open."""
        self.env.close()
        _images.pop(id(self), None)

    def again(self) -> Image:
        """The same one, for who has it alone once nobody has this one."""
        other = copy(self)
        other._note()
        return other

    def _note(self) -> None:
        number = id(self)
        _images[number] = ref(self, lambda _: _images.pop(number, None))

    def meta(self) -> Meta | None:
        """Where the image stands, or None while it is being made."""
        txn = self.begin()
        try:
            return read_meta(txn)
        finally:
            txn.abort()

    def stands(self) -> Meta:
        """Where the image stands; it must be complete."""
        meta = self.meta()
        if meta is None:
            raise CorruptData("the session image is not complete")
        return meta

    def sound_meta(self, write: bool = False) -> Meta | None:
        """As ``meta``; None too if the files are not those that were written last.

        Each transaction notes its number. LMDB counts in ``image-lock``: where that is an older
        one, or the image is, they differ. With ``write`` it takes no reader's place there, which
        may be damaged; only for the only writer.
        """
        txn = self.begin(write=write)
        try:
            meta = read_meta(txn)
            return meta if meta is not None and meta.number + write == txn.id() else None
        finally:
            txn.abort()

    def set_meta(self, meta: Meta) -> None:
        """From here on the image is complete and stands where ``meta`` says."""
        txn = self.begin(write=True)
        try:
            txn.put(META, meta._replace(image=self.inode, number=txn.id()).pack())
            txn.commit()
        except BaseException:
            txn.abort()
            raise

    def get(self, txn: Any, key: bytes) -> State | None:
        """The state of the session under ``key`` itself, dead or alive."""
        blob = txn.get(key, None, self.sessions)
        return None if blob is None else decode(key, blob)

    def owner(self, txn: Any, key: bytes) -> State:
        """The session that an index entry leads to: it must be there."""
        state = self.get(txn, key)
        if state is None:
            raise CorruptData(f"session {key.hex()[:12]}... is missing")
        return state

    def target(self, txn: Any, key: bytes, now: float) -> bytes | None:
        """The key that a live alias leads to."""
        data = txn.get(key, None, self.aliases)
        if data is None:
            return None
        target, until = _ALIAS.unpack(data)
        return target if now < until else None

    def put(self, txn: Any, key: bytes, state: State, old: State | None) -> None:
        """Store a session over ``old``, and keep the indexes right. Aliases are not looked at."""
        record = state.record
        txn.put(key, encode(key, state), True, True, False, self.sessions)
        deadline, user = record.deadline, record.user
        if old is None:
            was, who = inf, None
        else:
            was, who = old.record.deadline, old.record.user
        if deadline != was:
            if was != inf:
                txn.delete(due_key(was, key), b"", self.deadlines)
            if deadline != inf:
                txn.put(due_key(deadline, key), b"", True, True, False, self.deadlines)
        if user != who:
            if who is not None:
                txn.delete(user_key(who) + key, b"", self.users)
            if user is not None:
                txn.put(user_key(user) + key, b"", True, True, False, self.users)

    def remove(self, txn: Any, key: bytes, state: State) -> None:
        """Delete a session, its index entries and its aliases."""
        txn.delete(key, b"", self.sessions)
        if state.record.deadline != inf:
            txn.delete(due_key(state.record.deadline, key), b"", self.deadlines)
        self.remove_marks(txn, key, state)

    def remove_marks(self, txn: Any, key: bytes, state: State) -> None:
        """Delete what leads to a session: its user's entry and its aliases."""
        record = state.record
        if record.user is not None:
            txn.delete(user_key(record.user) + key, b"", self.users)
        for alias, until in state.aliases:
            self.remove_alias(txn, alias, until)

    def remove_unread(self, txn: Any, key: bytes) -> None:
        """Delete a session that cannot be read, and all that leads to it: it must be looked for."""
        txn.delete(key, b"", self.sessions)
        with txn.cursor(self.users) as cursor:
            names = [entry for entry in cursor.iternext(values=False) if entry[32:] == key]
        for entry in names:
            txn.delete(entry, b"", self.users)
        with txn.cursor(self.aliases) as cursor:
            aliases = [(alias, data) for alias, data in cursor if data[:32] == key]
        for alias, data in aliases:
            self.remove_alias(txn, alias, _ALIAS.unpack(data)[1])

    def put_marks(self, txn: Any, key: bytes, state: State) -> None:
        """Make all index entries of a session that is new here."""
        record = state.record
        if record.deadline != inf:
            txn.put(due_key(record.deadline, key), b"", True, True, False, self.deadlines)
        if record.user is not None:
            txn.put(user_key(record.user) + key, b"", True, True, False, self.users)
        for alias, until in state.aliases:
            self.put_alias(txn, alias, key, until)

    def put_alias(self, txn: Any, alias: bytes, target: bytes, until: float) -> None:
        """Let ``alias`` lead to ``target``; its end stands among the deadlines."""
        txn.put(alias, _ALIAS.pack(target, until), True, True, False, self.aliases)
        if until != inf:
            txn.put(due_key(until, alias), b"a", True, True, False, self.deadlines)

    def remove_alias(self, txn: Any, alias: bytes, until: float) -> None:
        """Undo ``put_alias``."""
        txn.delete(alias, b"", self.aliases)
        if until != inf:
            txn.delete(due_key(until, alias), b"", self.deadlines)

    def is_mostly_due(self, txn: Any, now: float) -> bool:
        """Whether there are many sessions, and the deadline of nearly all is past: by samples."""
        if txn.stat(self.sessions)["entries"] < _CROWD:
            return False
        due = 0
        with txn.cursor(self.sessions) as cursor:
            for _ in range(_SAMPLES):
                if cursor.set_range(os.urandom(32)):
                    key, blob = cursor.item()
                    due += decode_due(key, blob, now) is not None
        return due >= _SAMPLES - 1

    def drop_alias(self, txn: Any, alias: bytes) -> None:
        """End an alias, whatever it leads to."""
        data = txn.get(alias, None, self.aliases)
        if data is not None:
            self.remove_alias(txn, alias, _ALIAS.unpack(data)[1])

    def pop_due(self, txn: Any, now: float, limit: int) -> tuple[list[bytes], list[bytes]]:
        """Up to ``limit`` keys of sessions whose deadline is past, earliest first, and aliases.

        The entries of the sessions are deleted; the rest of each session is for the caller.
        """
        last = due_key(now, b"\xff" * 32)
        keys: list[bytes] = []
        aliases: list[bytes] = []
        with txn.cursor(self.deadlines) as cursor:
            there = cursor.first()
            while there and len(keys) + len(aliases) < limit:
                entry, kind = cursor.item()
                if entry > last:
                    break
                if kind == b"a":
                    aliases.append(entry[8:])
                    there = cursor.next()
                else:
                    keys.append(entry[8:])
                    there = cursor.delete() and bool(cursor.key())
        return keys, aliases

    def scan(self, txn: Any, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and encoded sessions in the order of keys, from ``start`` on."""
        with txn.cursor(self.sessions) as cursor:
            if cursor.set_range(start):
                yield from cursor

    def grow(self) -> None:
        """Make room. No transaction may be open in this process."""
        before = self.env.info()["map_size"]
        self.env.set_mapsize(0)  # what another process has made of it by now
        if self.env.info()["map_size"] <= before:
            self.env.set_mapsize(before * 2)


#: Those that are open in this process.
_images: dict[int, ref[Image]] = {}


def open_images(path: str, besides: Image | None) -> list[ref[Image]]:
    """Those of a file that are open, or on their way to it, in this process."""
    found = []
    for there in list(_images.values()):
        image = there()
        if image is not None and image is not besides and image.path == path:
            found.append(there)
    return found


@forks.in_child
def _leave_all() -> None:
    for there in list(_images.values()):
        image = there()
        if image is not None and hasattr(image, "identities"):
            leave(image.env)
            let_open(image.identities)
    _images.clear()


def index(
    key: bytes,
    state: State,
    due: list[tuple[bytes, bytes]],
    users: list[tuple[bytes, bytes]],
    aliases: list[tuple[bytes, bytes]],
) -> None:
    """Append what the three indexes say of a session."""
    record = state.record
    if record.deadline != inf:
        due.append((due_key(record.deadline, key), b""))
    if record.user is not None:
        users.append((user_key(record.user) + key, b""))
    for alias, until in state.aliases:
        aliases.append((alias, _ALIAS.pack(key, until)))
        if until != inf:
            due.append((due_key(until, alias), b"a"))


def _make_files(path: str, readers: int) -> None:
    """Have LMDB's files, and the blocks of its lock file, which it writes to as memory.

    It takes any size from that of its table on, a line of 64 bytes for each reader and a head.
    No environment of this process may be open on it: its locks would go with the file.
    """
    os.close(open_file(path))
    fd = open_file(f"{path}-lock")
    try:
        allocate(fd, 64 * readers + 4096)
    finally:
        os.close(fd)


def _open(path: str, space: int, readers: int, create: bool, readonly: bool) -> Any:
    """Open with as much address space as can be had: it costs nothing until it is used."""
    while True:
        try:
            return lmdb.open(
                path,
                subdir=False,
                map_size=space,
                mode=0o600,
                create=create,
                readonly=readonly,
                sync=False,
                metasync=False,
                readahead=False,
                meminit=True,  # else what was freed on the heap, ids too, gets into the file
                max_dbs=5,
                max_readers=readers,
                max_spare_txns=16,
            )
        except (lmdb.MemoryError, MemoryError):
            if space <= _LEAST_SPACE:
                raise
            space //= 2


def is_whole(path: str) -> bool:
    """Whether the file holds all the pages that it claims: to map a shorter one is fatal."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(1 << 17)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    newest = -1
    last = -1
    if len(head) < 4096:
        return False
    (page,) = unpack_from("<I", head, _PAGE_SIZE_AT)
    for start in (0, page):
        if len(head) < start + 160 or page < 512:
            return False
        magic, version = unpack_from("<II", head, start + 16)
        last_page, txnid = unpack_from("<QQ", head, start + _LAST_PAGE_AT)
        if magic != 0xBEEFC0DE or version != 1:
            return False
        if txnid > newest:
            newest, last = txnid, last_page
    return bool(size >= (last + 1) * page)


# Offsets in LMDB's meta pages, 64-bit: page header 16, magic and version 8, address 8, map size 8,
# then two database records of 48, the first of which begins with the page size.
_PAGE_SIZE_AT = 16 + 8 + 8 + 8
_LAST_PAGE_AT = _PAGE_SIZE_AT + 2 * 48


def boot_id() -> bytes:
    """Names this boot of the machine: what was not synced is lost when it changes."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read().strip().replace(b"-", b"").decode())
    except FileNotFoundError:
        return _boot_time()


def _boot_time() -> bytes:
    """Elsewhere than on Linux: the moment of the boot, which no clock step may shift by much."""
    answer = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "kern.boottime"], capture_output=True, check=True
    ).stdout
    return sha256(answer).digest()[:16]
