"""What the sentinels say about the master, as soon as they say it.

A master that is replaced according to plan goes on answering for seconds, and takes writes that
nobody will ever read. So a thread for each sentinel listens to its events: from the moment on in
which a replica is about to be made the master, nothing is written until there is another one, and
the old one is left then.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TypeAlias
from weakref import WeakSet

from ...core.errors import ProviderUnavailable
from ...core.locks import Lock
from . import replies
from .connect import Address, ask_for_master
from .wire import NONSENSE, Nonsense, Reply, Wire, pack

log = logging.getLogger("flask_hybridsession")

#: A host and a port.
Node: TypeAlias = tuple[str, int]

_SWITCHED, _BEGINS, _ABORTED = b"+switch-master", b"+failover-state-*", b"-failover-abort-*"
#: Comes a moment before the replica is told.
_TOLD = b"+failover-state-send-slaveof-noone"
#: Seconds after which a failover of which nothing more is heard counts as given up.
_LONGEST_MOVE = 10.0
#: Seconds for which a sentinel that names the former master is not believed: they learn of a new
#: one from each other within two, and the old one is told within ten.
_LEFT_FOR = 30.0
#: Seconds between two signs of life, and between two attempts to connect.
_SIGN, _PAUSE = 1.0, 0.25


class Watch:
    """Of one service. ``moved`` is called when another server has become its master."""

    def __init__(
        self, sentinels: Sequence[Address], service: str, moved: Callable[[], object]
    ) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self._moved = moved
        self._start_over()
        _watches.add(self)

    def _start_over(self) -> None:
        """A forked child has no threads, and does not know what they heard meanwhile."""
        self._lock = Lock()
        self._stopped = threading.Event()
        self._listens = False
        self._wires: set[Wire] = set()
        self._left: dict[Node, float] = {}
        self._moves_until = 0.0
        self._known: Node | None = None

    def listen(self) -> None:
        """Begin, unless that is done."""
        if self._listens:
            return
        with self._lock.take():
            if self._listens or self._stopped.is_set():
                return
            self._listens = True
            for sentinel in self._sentinels:
                threading.Thread(
                    target=self._run,
                    args=(sentinel, self._stopped),
                    name="flask-hybridsession-sentinel",
                    daemon=True,
                ).start()

    def is_moving(self) -> bool:
        """Whether what is written now may be lost."""
        return bool(self._moves_until) and monotonic() < self._moves_until

    def has_left(self, node: Node) -> bool:
        """Whether this was the master, and is no more."""
        return self._left.get(node, 0.0) > monotonic()

    def found(self, master: Node) -> None:
        """Where it is: to be said of each that a sentinel names."""
        known = self._known
        if known is None:
            self._known = master
        elif known != master and not self.has_left(master):
            self._switch(known, master)  # while nobody listened, or before it was heard

    def close(self) -> None:
        self._stopped.set()
        for wire in list(self._wires):
            wire.close()

    # -- listening ------------------------------------------------------------------------------

    def _run(self, sentinel: Address, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                self._follow(sentinel, stopped)
            except (OSError, ProviderUnavailable) as error:
                if not stopped.is_set():
                    log.info("%s is not heard: %s", sentinel, error)
            except Exception:
                # Whatever it is: without a thread the next failover would not be heard of.
                log.exception("%s is not understood", sentinel)
            stopped.wait(_PAUSE)

    def _follow(self, sentinel: Address, stopped: threading.Event) -> None:
        wire = sentinel.connect(monotonic() + _SIGN)
        self._wires.add(wire)
        try:
            kinds = (_SWITCHED, _BEGINS, _ABORTED)
            wire.send(pack(b"PSUBSCRIBE", *kinds), monotonic() + _SIGN)
            for _ in kinds:
                self._hear(wire.listen(monotonic() + _SIGN))
            self.found(ask_for_master(sentinel, self._service, monotonic() + _SIGN))
            while not stopped.is_set():
                self._listen_on(wire)
        finally:
            self._wires.discard(wire)
            wire.close()

    def _listen_on(self, wire: Wire) -> None:
        """To one event, or a sign of life. Raises ``OSError`` without."""
        try:
            said = wire.listen(monotonic() + _SIGN)
        except TimeoutError:
            wire.send(pack(b"PING"), monotonic() + _SIGN)
            try:
                said = wire.listen(monotonic() + _SIGN)
            except TimeoutError as error:
                raise ConnectionResetError("it does not answer") from error
        self._hear(said)

    def _hear(self, said: Reply) -> None:
        try:
            event = replies.event(said)
            if event is not None:
                self._learn(*event)
        except NONSENSE as error:
            raise Nonsense from error

    def _learn(self, kind: bytes, words: list[str]) -> None:
        if kind == _SWITCHED:
            if words[0] == self._service:
                self._switch((words[1], int(words[2])), (words[3], int(words[4])))
        elif self._service == words[1 if words[0] == "master" else 5]:
            if kind == _TOLD:
                self._moves_until = monotonic() + _LONGEST_MOVE
            elif kind.startswith(b"-"):
                self._moves_until = 0.0

    def _switch(self, old: Node, new: Node) -> None:
        with self._lock.take():
            again = self.has_left(old)
            self._left[old] = monotonic() + _LEFT_FOR
            self._left.pop(new, None)
            self._known = new
        if not again:  # each sentinel says so
            log.warning("the master of the service %r is another one now", self._service)
            self._moved()
        self._moves_until = 0.0


_watches: WeakSet[Watch] = WeakSet()


def _start_over() -> None:
    for watch in list(_watches):
        watch._start_over()


os.register_at_fork(after_in_child=_start_over)
