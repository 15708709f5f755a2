"""One connection to a server: commands out, replies in.

redis-py makes the connection, with all that it knows of TLS, passwords and sockets. From then on we
speak for ourselves: each call has its own time limit, and costs a fraction.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, TypeAlias

#: What a server answers: bytes, an int, None, a list of those, or ``Refused``.
Reply: TypeAlias = Any
Part: TypeAlias = bytes
#: Makes of a reply what it means, and raises what it likes for one that can mean nothing.
Meaning: TypeAlias = Callable[[Reply], Any]

#: Connections that are kept for the next call; what more threads need is made and closed.
MOST_IDLE = 64
#: Bytes of a line at most: of what is longer, a server says before how long it is.
_LONGEST_LINE = 1 << 16
#: What it is called that reading a reply comes to grief in.
NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Refused(Exception):
    """An error that the server answered with. ``code`` is what kind, as ``NOSCRIPT``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.code = _code(text)
        super().__init__(self.code)


class Nonsense(ConnectionError):
    """The server said what cannot be an answer. Who knows what its next words answer."""

    def __init__(self) -> None:
        super().__init__("this is not what a Redis server says")


class Push(list[Any]):
    """What the server says unasked: an invalidation."""


def pack(*parts: Part) -> bytes:
    """One command as it is sent."""
    head = b"*%d\r\n" % len(parts)
    return head + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Wire:
    """A connection that is used by one at a time. After any error it is closed, never used again.

    A reply that comes too late would otherwise be taken for the answer to the next question
    (CVE-2023-28858).
    """

    __slots__ = ("_at", "_buffer", "_connection", "_give_up", "_socket")

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._buffer = b""
        self._at = 0
        self._give_up = 0.0

    def ask(self, packed: bytes, meanings: Iterable[Meaning], give_up: float) -> list[Any]:
        """Send as many commands as there are meanings; what the replies mean, or ``Refused``.

        All before ``give_up`` (monotonic). Raises ``OSError``, and ``CorruptData`` where a
        meaning does.
        """
        self.send(packed, give_up)
        try:
            return [self._meant(meaning) for meaning in meanings]
        except NONSENSE as error:
            raise Nonsense from error

    def _meant(self, meaning: Meaning) -> Any:
        reply = self._reply()
        return reply if type(reply) is Refused else meaning(reply)

    def send(self, packed: bytes, give_up: float) -> None:
        self._give_up = give_up
        self._socket.settimeout(self._left())
        self._socket.sendall(packed)

    def listen(self, give_up: float) -> Reply:
        """The next thing that the server says. Raises ``OSError``.

        A ``TimeoutError`` is harmless: nothing was said, and whoever only listens may go on.
        """
        self._give_up = give_up
        if self._at >= len(self._buffer):
            self._buffer, self._at = b"", 0
            self._more()
        self._give_up = give_up + 1.0
        try:
            return self._reply()
        except TimeoutError as error:
            raise ConnectionResetError("the server stopped in the middle of a word") from error
        except NONSENSE as error:
            raise Nonsense from error

    def is_quiet(self) -> bool:
        """Whether it is still connected, and nothing waits to be read."""
        self._socket.settimeout(0.0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, InterruptedError):
            return self._at >= len(self._buffer)
        except OSError as error:
            return type(error).__name__ == "SSLWantReadError"
        return False

    def close(self) -> None:
        self._connection.disconnect()

    def _left(self) -> float:
        left = self._give_up - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _more(self) -> bytes:
        self._socket.settimeout(self._left())
        data: bytes = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        return data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > _LONGEST_LINE:
                raise Nonsense
            self._more()
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _bulk(self, size: int) -> bytes:
        missing = self._at + size + 2 - len(self._buffer)
        if missing > 0:
            parts = [self._buffer[self._at :]]
            self._buffer, self._at = b"", 0
            while missing > 0:
                data = self._more()
                self._buffer = b""
                parts.append(data)
                missing -= len(data)
            self._buffer = b"".join(parts)
        start, end = self._at, self._at + size
        self._at = end + 2
        if self._buffer[end : end + 2] != b"\r\n":
            raise Nonsense
        return self._buffer[start:end]

    def _reply(self) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self._bulk(_size(rest))
        if kind == b"*":
            return None if rest == b"-1" else self._list(_size(rest))
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refused(rest.decode(errors="replace"))
        if kind == b"_":
            return None
        if kind == b">":
            return Push(self._reply() for _ in range(_size(rest)))
        raise Nonsense

    def _list(self, length: int) -> list[Reply]:
        """Texts that are here as a whole, as most are, are read at once."""
        items: list[Reply] = []
        for _ in range(length):
            buffer, at = self._buffer, self._at
            if buffer.startswith(b"$", at) and (end := buffer.find(b"\r\n", at)) > 0:
                start = end + 2
                stop = start + int(buffer[at + 1 : end])
                if stop >= start and buffer.startswith(b"\r\n", stop):
                    items.append(buffer[start:stop])
                    self._at = stop + 2
                    continue
            items.append(self._reply())
        return items


def _size(digits: bytes) -> int:
    size = int(digits)
    if size < 0:
        raise Nonsense
    return size


class Pool:
    """This process's connections to one server. Needs no lock: a deque's ends are atomic."""

    def __init__(self, connect: Callable[[float], Wire]) -> None:
        self._connect = connect
        self._idle: deque[Wire] = deque()
        self._pid = os.getpid()
        self._ended = False

    def ask(self, packed: bytes, meanings: Sequence[Meaning], give_up: float) -> list[Any]:
        """See ``Wire.ask``. Raises what ``connect`` raises too."""
        wire = self._take() or self._connect(give_up)
        try:
            answers = wire.ask(packed, meanings, give_up)
        except BaseException:  # gevent may end it in the middle, too
            wire.close()
            raise
        self._keep(wire)
        return answers

    def close(self) -> None:
        """Close those that nobody uses."""
        if self._pid == os.getpid():
            close_all(self._idle)

    def end(self) -> None:
        """Close all: those that are in use when their call is over."""
        self._ended = True
        self.close()

    def _take(self) -> Wire | None:
        if self._pid != os.getpid():  # those that a fork left here are the parent's
            self._idle, self._pid = deque(), os.getpid()
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return None
            if wire.is_quiet():
                return wire
            wire.close()

    def _keep(self, wire: Wire) -> None:
        if len(self._idle) < MOST_IDLE and not self._ended:
            self._idle.append(wire)
        else:
            wire.close()


def close_all(wires: deque[Wire]) -> None:
    while wires:
        wires.pop().close()


def _code(text: str) -> str:
    """The first word; before Redis 7, what went wrong in a script stands further behind."""
    if "non local key" in text:  # a script met a key that is on its way to another node
        return "TRYAGAIN"
    word = text.partition(" ")[0]
    if word in ("ERR", "EXECABORT") or not word.isupper():
        for known in _IN_SCRIPTS:
            if known in text:
                return known
    return word[:20]


_IN_SCRIPTS: Iterable[str] = (
    *("CORRUPT", "WRONGTYPE", "READONLY", "OOM", "MISCONF", "NOPERM", "NOREPLICAS", "LOADING"),
    *("MASTERDOWN", "CLUSTERDOWN"),
)
