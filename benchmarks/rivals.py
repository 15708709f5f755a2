"""What the store's commits are compared with: SQLite, and a bare file. The same contract for each.

``commit`` is the judgement of the package itself in a transaction of SQLite: read the row, judge,
write it back. The log without a store appends as many bytes and syncs them as workers share a sync.
"""

from __future__ import annotations

import os
import sqlite3
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from mmap import mmap

import ormsgpack

from flask_hybridsession.core.change import Change, Record, decide


class Sqlite:
    """A row per session and an index on the deadline. ``synchronous`` is NORMAL or FULL."""

    def __init__(self, directory: str, synchronous: str) -> None:
        path = os.path.join(directory, "sessions.sqlite")
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._run = self._database.execute
        self._run("PRAGMA journal_mode = WAL")
        self._run(f"PRAGMA synchronous = {synchronous}")
        self._run(
            "CREATE TABLE IF NOT EXISTS sessions (key BLOB PRIMARY KEY, deadline REAL, data BLOB)"
        )
        self._run("CREATE INDEX IF NOT EXISTS due ON sessions (deadline)")

    def commit(self, key: str, change: Change, now: float) -> None:
        raw = bytes.fromhex(key)
        self._run("BEGIN IMMEDIATE")
        try:
            row = self._run("SELECT data FROM sessions WHERE key = ?", (raw,)).fetchone()
            current = None if row is None else Record(key, *ormsgpack.unpackb(row[0]))
            record = decide(current, key, change, now)
            data = ormsgpack.packb(record[1:])
            if current is None:
                self._run("INSERT INTO sessions VALUES (?, ?, ?)", (raw, record.deadline, data))
            elif current.deadline != record.deadline:
                self._run(
                    "UPDATE sessions SET deadline = ?, data = ? WHERE key = ?",
                    (record.deadline, data, raw),
                )
            else:
                self._run("UPDATE sessions SET data = ? WHERE key = ?", (data, raw))
            self._run("COMMIT")
        except BaseException:
            self._run("ROLLBACK")
            raise

    def close(self) -> None:
        self._database.close()


class BareLog:
    """Append and ``fdatasync``, nothing else. Who syncs does so for all that wait."""

    def __init__(self, directory: str, size: int) -> None:
        self._data = bytes(size)
        self._lock = os.open(os.path.join(directory, "turn"), os.O_RDWR | os.O_CREAT)
        self._file = os.open(os.path.join(directory, "bare"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._sync = os.open(os.path.join(directory, "synced"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(self._sync, 8)
        self._synced = memoryview(mmap(self._sync, 8)).cast("Q")

    def commit(self, key: str, change: Change, now: float) -> None:
        flock(self._lock, LOCK_EX)
        os.write(self._file, self._data)
        mine = os.lseek(self._file, 0, os.SEEK_END)
        flock(self._lock, LOCK_UN)
        synced = self._synced
        while synced[0] < mine:
            try:
                flock(self._sync, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                time.sleep(0.00005)
                continue
            if synced[0] < mine:
                end = os.lseek(self._file, 0, os.SEEK_END)
                os.fdatasync(self._file)
                synced[0] = end
            flock(self._sync, LOCK_UN)

    def close(self) -> None:
        for file in (self._lock, self._file, self._sync):
            os.close(file)
