"""The near cache: records kept in this worker until Redis says that they changed.

A thread of our own listens on a connection of its own (RESP3, ``CLIENT TRACKING ... BCAST``) and
asks for a sign of life again and again. What it heard last is how fresh the cache is: when that is
longer ago than the bound, for whatever reason, nothing is served from here.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from time import monotonic
from weakref import WeakSet

from ...core import forks, threads
from ...core.change import Record
from ...core.errors import ConfigError, ProviderUnavailable
from ...core.locks import Lock
from . import replies
from .wire import NONSENSE, Nonsense, Push, Refused, Reply, Wire, pack

log = logging.getLogger("flask_hybridsession")

#: Records that are kept, and the bytes of the largest one.
SIZE, LARGEST = 5_000, 20_000
#: Signs of life within the bound, and seconds between them at most.
_SIGNS, _SELDOM = 3, 0.5
#: Seconds between two attempts to connect.
_PAUSE = 0.25


class Near:
    """Records by key, the one used last at the end.

    ``bound`` is for how many seconds at most a read may miss what another worker has written,
    ``space`` what the names of all sessions begin with. ``term`` is another number once another
    server is to be listened to. Raises ``ConfigError``.
    """

    def __init__(
        self,
        connect: Callable[[float], Wire],
        space: bytes,
        bound: object,
        size: int = SIZE,
        term: Callable[[], int] = int,
    ) -> None:
        valid = isinstance(bound, int | float) and not isinstance(bound, bool) and 0 < bound < inf
        if not valid:
            raise ConfigError("near_cache must be more than 0 seconds, as 1.0; leave it out: none.")
        self._bound = float(bound)  # type: ignore[arg-type]
        self._connect = connect
        self._term = term
        self._space = space
        self._size = size
        self._start_over()
        _nears.add(self)

    def _start_over(self) -> None:
        """A forked child has no thread, and does not know what happened meanwhile."""
        self._lock = Lock()
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._reading: dict[str, object] = {}
        self._changing: Counter[str] = Counter()
        self._fresh_at = -inf
        self._bus: Bus | None = None

    def get(self, key: str) -> Record | None:
        """The record, alive or not; None: ask Redis."""
        forks.look()
        if self._bus is None:
            self._listen()
        if monotonic() - self._fresh_at >= self._bound:
            return None
        record = self._records.get(key)
        if record is not None:
            with self._lock.take():
                if key in self._records:
                    self._records.move_to_end(key)
        return record

    def begin(self, key: str) -> object:
        """Say that the record is about to be read. Returns what ``keep`` wants to see."""
        token = self._reading[key] = object()
        return token

    def keep(self, key: str, token: object, record: Record | None) -> None:
        """Keep what was read, unless it changed, or was read by somebody else, since ``begin``."""
        with self._lock.take():
            if self._reading.get(key) is not token:
                return
            del self._reading[key]
            if key in self._changing:
                return
            if record is None or record.key != key or _size(record) > LARGEST:
                return
            self._records[key] = record
            while len(self._records) > self._size:
                self._records.popitem(last=False)

    @contextmanager
    def changing(self, *keys: str) -> Iterator[None]:
        """Within it nothing of these is kept: another thread may see their new state already."""
        with self._lock.take():
            self._changing.update(keys)
        self.drop(*keys)
        try:
            yield
        finally:
            with self._lock.take():
                self._changing -= Counter(keys)
            self.drop(*keys)

    def drop(self, *keys: str) -> None:
        """Forget these, and what is being read of them."""
        with self._lock.take():
            for key in keys:
                self._reading.pop(key, None)
                self._records.pop(key, None)

    def flush(self) -> None:
        """Forget all."""
        with self._lock.take():
            self._reading.clear()
            self._records.clear()

    def close(self) -> None:
        """Stop listening. Harmless twice."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.stop()
        self._fresh_at = -inf
        self.flush()

    def __len__(self) -> int:
        return len(self._records)

    def _listen(self) -> None:
        with self._lock.take():
            if self._bus is None and threads.may_start():
                self._bus = Bus(self)


class Bus:
    """The thread that listens, and connects again when it must."""

    def __init__(self, near: Near) -> None:
        self._near = near
        self._wire: Wire | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="flask-hybridsession-near", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        wire = self._wire
        if wire is not None:
            wire.close()
        if self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except (OSError, ProviderUnavailable) as error:
                if not self._stopped.is_set():
                    log.info("the near cache does not hear from Redis: %s", error)
            except Exception:
                # Whatever it is: without a thread nothing would be served from here ever again.
                log.exception("the near cache does not understand Redis")
            self._stopped.wait(_PAUSE)

    def _follow(self) -> None:
        near = self._near
        term = near._term()
        self._wire = wire = near._connect(monotonic() + max(near._bound, 1.0))
        try:
            prefixes = [part for digit in _DIGITS for part in (b"PREFIX", near._space + digit)]
            wire.send(pack(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *prefixes), monotonic() + 1.0)
            self._hear(wire, b"OK", monotonic() + 1.0)
            near.flush()
            while not self._stopped.is_set():
                asked = monotonic()
                wire.send(pack(b"PING"), asked + near._bound)
                self._hear(wire, b"PONG", asked + max(near._bound, 1.0))
                if near._term() != term:
                    raise ConnectionResetError("another server has become the master")
                # Before it answered, it has said all that had changed when it was asked.
                near._fresh_at = asked
                self._hear_until(wire, asked + min(near._bound / _SIGNS, _SELDOM))
        finally:
            near._fresh_at = -inf
            near.flush()
            self._wire = None
            wire.close()

    def _hear(self, wire: Wire, answer: bytes, give_up: float) -> None:
        """Until the answer; invalidations may come before it. Raises ``OSError`` without it."""
        while isinstance(said := wire.listen(give_up), Push):
            self._invalidate(said)
        if isinstance(said, Refused):
            raise ProviderUnavailable(f"Redis answers {said.code}")
        if said != answer:
            raise Nonsense

    def _hear_until(self, wire: Wire, moment: float) -> None:
        try:
            while True:
                self._invalidate(wire.listen(moment))
        except TimeoutError:
            pass  # nothing more to hear for now

    def _invalidate(self, said: Reply) -> None:
        try:
            names = replies.invalidated(said)
        except NONSENSE as error:
            raise Nonsense from error
        if names is None:
            self._near.flush()
        else:
            start = len(self._near._space)
            self._near.drop(*(name[start:].decode(errors="replace") for name in names))


_nears: WeakSet[Near] = WeakSet()


@forks.in_child
def _start_over() -> None:
    for near in list(_nears):
        near._start_over()


#: What keys begin with. What lies beside the sessions begins with another sign.
_DIGITS: Sequence[bytes] = [b"%x" % digit for digit in range(16)]


def _size(record: Record) -> int:
    return sum(map(len, record.values.values()))
