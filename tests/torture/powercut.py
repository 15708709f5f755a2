"""What a directory may look like after a power cut.

The shim has recorded what the disk was told. ``Disk`` plays the records up to the cut and knows of
each write, truncation and name whether a sync that *succeeded* covers it. ``Disk.ruins`` makes a
directory in which all of that is there, and of the rest whatever the dice say: kept, dropped, torn
or garbled. Names change in the order in which they were told, as journaled file systems have it.
A write that a failed sync was about counts as dropped for ever: the kernel calls its page clean.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import NamedTuple

_HEAD = Struct("=IIQqqII")
_SECTOR = 512


class Record(NamedTuple):
    """One thing that the disk was told, or (``B``, ``E``) the begin and end of a sync."""

    op: str
    thread: int
    inode: int
    offset: int
    seconds: float
    path: str
    data: bytes


def read_trace(path: Path) -> list[Record]:
    return list(_records(path.read_bytes()))


def _records(data: bytes) -> Iterator[Record]:
    at = 0
    while at < len(data):
        op, thread, inode, offset, moment, names, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path = data[at : at + names].decode()
        at += names
        yield Record(chr(op), thread, inode, offset, moment / 1e9, path, data[at : at + size])
        at += size


@dataclass
class _File:
    """``settled`` is on the disk; the writes behind it are not, until a sync says so."""

    settled: bytearray = field(default_factory=bytearray)
    waiting: list[Record] = field(default_factory=list)


def put(content: bytearray, record: Record, data: bytes) -> None:
    if record.op == "T":
        del content[record.offset :]
        content.extend(bytes(record.offset - len(content)))
        return
    content.extend(bytes(max(0, record.offset - len(content))))
    content[record.offset : record.offset + len(data)] = data


class Disk:
    """The files of one directory, as far as they are known to be on the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.files: list[_File] = []
        self.names: dict[str, int] = {}
        self.renamings: list[Record] = []
        self._numbers: dict[int, int] = {}  # of files by inode, which are used again
        self._begun: dict[tuple[int, int], list[Record]] = {}

    def play(self, record: Record) -> None:
        """Go on by one record."""
        if record.path == self.directory:
            if record.op in "BE":
                self._sync(record)
        elif record.path.startswith((f"{self.directory}/log", f"{self.directory}/damaged")):
            self._play(record)

    def _play(self, record: Record) -> None:
        if record.op in "RLU":
            self.renamings.append(record)
        elif record.op in "BE":
            self._sync(record)
        else:
            if record.op == "W" and not record.offset:
                self._numbers[record.inode] = len(self.files)
                self.files.append(_File())
                created = record._replace(op="C", offset=self._numbers[record.inode])
                self.renamings.append(created)
            self._file(record).waiting.append(record)

    def _file(self, record: Record) -> _File:
        return self.files[self._numbers[record.inode]]

    def _sync(self, record: Record) -> None:
        """What was told before the begin is settled by the end, if the end is a success."""
        what = self.renamings
        if record.path != self.directory:
            what = self._file(record).waiting
        which = (record.thread, record.inode)
        if record.op == "B":
            self._begun[which] = list(what)
            return
        begun = {id(each) for each in self._begun.pop(which)}
        done = [each for each in what if id(each) in begun]
        what[:] = [each for each in what if id(each) not in begun]
        if record.offset:
            return
        for each in done:
            if record.path == self.directory:
                rename(self.names, each)
            else:
                put(self._file(record).settled, each, each.data)

    def ruins(self, path: Path, dice: random.Random) -> None:
        """Make ``path`` what may be left of the directory."""
        mood = dice.choice(("drop", "keep", "prefix", "any", "any"))
        names = dict(self.names)
        count = {"drop": 0, "keep": len(self.renamings)}.get(mood)
        for each in self.renamings[
            : dice.randint(0, len(self.renamings)) if count is None else count
        ]:
            rename(names, each)
        path.mkdir(0o700)
        for name, number in names.items():
            target = path / os.path.basename(name)
            target.write_bytes(self._content(self.files[number], mood, dice))
            target.chmod(0o600)
        rubbish(path, dice)

    def _content(self, file: _File, mood: str, dice: random.Random) -> bytearray:
        content = bytearray(file.settled)
        last = dice.randint(0, len(file.waiting))
        for place, record in enumerate(file.waiting):
            fate = mood
            if mood == "prefix":
                fate = "keep" if place < last else "garble" if place == last else "drop"
            elif mood == "any":
                fate = dice.choice(("keep", "keep", "drop", "garble"))
            if fate == "keep":
                put(content, record, record.data)
            elif fate == "garble" and record.op == "W":
                put(content, record, garbled(record, dice))
        return content


def rename(names: dict[str, int], record: Record) -> None:
    """Play a change of the directory."""
    if record.op == "C":
        names[record.path] = record.offset
    elif record.op == "U":
        names.pop(record.path, None)
    else:
        names[record.data.decode()] = names[record.path]
        if record.op == "R":
            del names[record.path]


def garbled(record: Record, dice: random.Random) -> bytes:
    """A write of which only some sectors came through, or whose bytes are zeros or anything."""
    data = bytearray(record.data)
    how = dice.choice(("start", "sectors", "zeros", "noise"))
    if how == "start":
        return bytes(data[: dice.randint(0, len(data))])
    for start in range(-(record.offset % _SECTOR), len(data), _SECTOR):
        first, end = max(start, 0), min(start + _SECTOR, len(data))
        if how == "zeros" or (how == "sectors" and dice.random() < 0.5):
            data[first:end] = bytes(end - first)
        elif how == "noise":
            data[first:end] = dice.randbytes(end - first)
    return bytes(data)


def rubbish(path: Path, dice: random.Random) -> None:
    """What was never synced on purpose: the image and the shared numbers, of another boot."""
    if dice.random() < 0.3:
        (path / "image").write_bytes(dice.randbytes(dice.choice((0, 100, 8192))))
    if dice.random() < 0.5:
        (path / "sync").write_bytes(
            dice.choice((b"", bytes(4096), b"\xff" * 4096, dice.randbytes(4096)))
        )
