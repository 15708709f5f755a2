"""Where a command goes: to the one server there is, or to a cluster's node."""

from __future__ import annotations

import logging
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol, TypeAlias

from ...core.errors import ProviderUnavailable
from . import replies
from .connect import Address, Given, Sentinels, unavailable
from .watch import Watch
from .wire import NONSENSE, Meaning, Pool, Refused, Wire, pack

log = logging.getLogger("flask_hybridsession")

#: What a server says that is not able to serve now; another answer may come soon.
AWAY: Mapping[str, str] = {
    "BUSY": "is busy with a script that does not end",
    "CLUSTERDOWN": "belongs to a cluster that is down: some of its slots are served by no node",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica without its master",
    "READONLY": "is a read-only replica: SESSION_REDIS must lead to the master",
    "TRYAGAIN": "is moving these keys to another node",
}

#: The keys of a cluster lie in so many parts, by their first digit; each part is in one slot.
PARTS = tuple("0123456789abcdef")
#: A host and a port.
Node: TypeAlias = tuple[str, int]
#: Seconds between two looks at a cluster's map that nobody asked for.
_LOOK_AGAIN = 0.2


class Servers(Protocol):
    """Who answers. ``part`` is "", or in a cluster the first digit of a session's key."""

    parts: Sequence[str]
    #: Another number as soon as another server has taken over.
    term: int

    def ask(
        self, part: str, command: bytes, means: Meaning, give_up: float, writes: bool = True
    ) -> Any:
        """What the reply to one packed command means, before ``give_up`` (monotonic).

        An error that the server answers with is returned. Raises ``ProviderUnavailable``, and
        ``CorruptData`` where the meaning does. ``writes``: it would matter if it were lost.
        """

    def ask_each(
        self, commands: Mapping[str, bytes], means: Meaning, give_up: float
    ) -> dict[str, Any]:
        """The same for one command for each of several parts."""

    def check(self, seconds: float) -> None:
        """Raise ``ProviderUnavailable`` unless there is an answer on a new connection."""

    def connect(self, give_up: float, protocol: int = 2) -> Wire:
        """A connection to a server."""

    def close(self) -> None:
        """Close what is idle."""


class One:
    """One server; with a service, the one that the sentinels name."""

    parts: Sequence[str] = ("",)
    term = 0

    def __init__(self, given: Given, greet: Callable[[Wire, float], None]) -> None:
        self._watch: Watch | None = None
        self._where: Address | Sentinels = given.addresses[0]
        if given.service is not None:
            self._watch = Watch(given.addresses, given.service, self._moved)
            self._where = Sentinels(given, self._watch)
        self._greet = greet
        self._pool = Pool(self._connect)

    def ask(
        self, part: str, command: bytes, means: Meaning, give_up: float, writes: bool = True
    ) -> Any:
        if self._watch is not None:
            self._watch.listen()
            if writes and self._watch.is_moving():
                return Refused("FAILOVER")
        pool = self._pool
        try:
            (reply,) = pool.ask(command, [means], give_up)
        except OSError as error:
            raise unavailable(self._name(), error) from error
        if pool is not self._pool:
            raise ProviderUnavailable("another server has become the master meanwhile")
        if isinstance(reply, Refused) and reply.code in AWAY:
            self._pool.close()  # a sentinel may know another master by now
            raise ProviderUnavailable(f"{self._name()} {AWAY[reply.code]}")
        return reply

    def ask_each(
        self, commands: Mapping[str, bytes], means: Meaning, give_up: float
    ) -> dict[str, Any]:
        return {part: self.ask(part, command, means, give_up) for part, command in commands.items()}

    def check(self, seconds: float) -> None:
        _ping(self, monotonic() + seconds)

    def connect(self, give_up: float, protocol: int = 2) -> Wire:
        return self._where.connect(give_up, protocol)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._pool.close()

    def _moved(self) -> None:
        """What the former master still answers counts for nothing."""
        former, self._pool = self._pool, Pool(self._connect)
        self.term += 1
        former.end()

    def _connect(self, give_up: float) -> Wire:
        wire = self._where.connect(give_up)
        self._greet(wire, give_up)
        return wire

    def _name(self) -> object:
        return self._where if isinstance(self._where, Address) else "the master"


class Cluster:
    """The masters of a cluster, by the slots that they serve."""

    parts: Sequence[str] = PARTS
    term = 0

    def __init__(self, given: Given, greet: Callable[[Wire, float], None]) -> None:
        self._given = given
        self._greet = greet
        self._pools: dict[Node, Pool] = {}
        #: Where each range of slots starts, and whose it is.
        self._map: tuple[list[int], list[Node]] = ([], [])
        self._looked_at = 0.0
        self._stale = True
        self._suspect: Node | None = None

    def ask(
        self, part: str, command: bytes, means: Meaning, give_up: float, writes: bool = True
    ) -> Any:
        if self._stale:
            self._look(give_up)
        node = self._owner(part)
        try:
            reply = self._ask(node, command, means, give_up)
        except Unreached:
            # Nothing was sent: if another node has taken over, it may be asked.
            self._look(give_up)
            other = self._owner(part)
            if other == node:
                raise
            reply = self._ask(other, command, means, give_up)
        for _ in range(5):
            if not isinstance(reply, Refused) or reply.code not in ("MOVED", "ASK"):
                return self._checked(reply)
            reply = self._redirected(reply, node, command, means, give_up)
        raise ProviderUnavailable("the nodes of the cluster send us round in circles")

    def ask_each(
        self, commands: Mapping[str, bytes], means: Meaning, give_up: float
    ) -> dict[str, Any]:
        if self._stale:
            self._look(give_up)
        by_node: dict[Node, list[str]] = {}
        for part in commands:
            by_node.setdefault(self._owner(part), []).append(part)
        found: dict[str, Any] = {}
        for node, parts in by_node.items():
            packed = b"".join([commands[part] for part in parts])
            try:
                answers = self._ask_all(node, packed, [means] * len(parts), give_up)
            except Unreached:
                answers = [Refused("MOVED")] * len(parts)
            for part, reply in zip(parts, answers, strict=True):
                moved = isinstance(reply, Refused) and reply.code in ("MOVED", "ASK")
                found[part] = (
                    self.ask(part, commands[part], means, give_up)
                    if moved
                    else self._checked(reply)
                )
        return found

    def check(self, seconds: float) -> None:
        self._look(monotonic() + seconds, now=True)

    def connect(self, give_up: float, protocol: int = 2) -> Wire:
        raise ProviderUnavailable("a cluster is no single server")

    def close(self) -> None:
        for pool in list(self._pools.values()):
            pool.close()

    def _owner(self, part: str) -> Node:
        starts, owners = self._map
        index = bisect_right(starts, crc_hqx(part.encode(), 0) % 16384) - 1
        if index < 0:
            raise ProviderUnavailable("no node of the cluster serves these keys")
        return owners[index]

    def _ask(self, node: Node, command: bytes, means: Meaning, give_up: float) -> Any:
        return self._ask_all(node, command, [means], give_up)[0]

    def _ask_all(
        self, node: Node, packed: bytes, meanings: Sequence[Meaning], give_up: float
    ) -> list[Any]:
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools.setdefault(node, Pool(lambda give_up: self._open(node, give_up)))
        try:
            return pool.ask(packed, meanings, give_up)
        except OSError as error:
            self._stale, self._suspect = True, node
            raise unavailable(self._given.behind.at(*node), error) from error

    def _open(self, node: Node, give_up: float) -> Wire:
        try:
            wire = self._given.behind.at(*node).connect(give_up)
        except ProviderUnavailable as error:
            self._stale, self._suspect = True, node
            raise Unreached(str(error)) from error.__cause__
        self._greet(wire, give_up)
        return wire

    def _redirected(
        self, reply: Refused, asked: Node, command: bytes, means: Meaning, give_up: float
    ) -> Any:
        """``MOVED`` or ``ASK``, the slot, and the host and port that are to be asked instead."""
        try:
            host, port = replies.place(reply.text.split()[2])
        except NONSENSE as error:
            raise ProviderUnavailable("a node of the cluster sends us nowhere") from error
        node = self._mapped(host or asked[0], port)
        if reply.code == "MOVED":
            self._stale = True
            return self._ask(node, command, means, give_up)
        asking = pack(b"ASKING") + command
        return self._ask_all(node, asking, [replies.okay, means], give_up)[1]

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, Refused) and reply.code in AWAY:
            self._stale = True
            raise ProviderUnavailable(f"a node of the cluster {AWAY[reply.code]}")
        return reply

    def _look(self, give_up: float, now: bool = False) -> None:
        """Ask any node for the map; the one that failed last comes last."""
        owners = dict.fromkeys(self._map[1])
        if owners and not now and monotonic() - self._looked_at < _LOOK_AGAIN:
            return
        known = [self._given.behind.at(*node) for node in owners if node != self._suspect]
        failed: Exception | None = None
        nodes = [*known, *self._given.addresses]
        for number, address in enumerate(nodes):
            left = give_up - monotonic()
            try:
                self._read_map(address, monotonic() + left / min(3, len(nodes) - number))
            except ProviderUnavailable as error:
                failed = error
            else:
                self._looked_at = monotonic()
                self._stale = False
                return
        raise ProviderUnavailable("no node of the cluster answers") from failed

    def _read_map(self, address: Address, give_up: float) -> None:
        wire = address.connect(give_up)
        try:
            (reply,) = wire.ask(pack(b"CLUSTER", b"SLOTS"), [replies.slots], give_up)
        except OSError as error:
            raise unavailable(address, error) from error
        finally:
            wire.close()
        if isinstance(reply, Refused):
            raise ProviderUnavailable(f"{address} belongs to no cluster: {reply.code}")
        if not reply:
            raise ProviderUnavailable(f"{address} belongs to a cluster that serves no slots")
        asked = str(address.parameters.get("host", "localhost"))
        # An owner too many is corrected by MOVED; a slot too few by CLUSTERDOWN.
        self._map = (
            [start for start, _, _ in reply],
            [self._mapped(host or asked, port) for _, host, port in reply],
        )

    def _mapped(self, host: str, port: int) -> Node:
        remap = self._given.remap
        return (host, port) if remap is None else remap((host, port))


class Unreached(ProviderUnavailable):
    """Not even a connection: nothing was sent."""


def _ping(servers: Servers, give_up: float) -> None:
    wire = servers.connect(give_up)
    try:
        (reply,) = wire.ask(pack(b"PING"), [replies.pong], give_up)
    except OSError as error:
        raise ProviderUnavailable("Redis does not answer in time") from error
    finally:
        wire.close()
    if isinstance(reply, Refused) and reply.code in AWAY:
        raise ProviderUnavailable(f"Redis {AWAY[reply.code]}")
