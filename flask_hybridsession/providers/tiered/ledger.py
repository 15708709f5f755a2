"""What must be remembered about sessions that are gone, kept where the sessions are.

A miss in the authority has two meanings: *never here, or lost* (fill it from a follower) and
*ended* (never again). Only what is written down tells them apart, so before a session may end in
the authority, a *grave* is dug there for its key. An open grave stays until every follower has
confirmed that it holds the session no more; a closed one stays for ``GRACE`` seconds longer, for
those who read a follower, or were about to write to it, before that. A key with a grave is never
filled. As keys are hashes of random ids, none is ever needed again.

Graves lie together, in records under keys that no sid can have (``SHARDS``, without a deadline and
without a user); a record more (``BEHIND``) names the workers whose followers missed something.
They end with the authority: it remembers the ends of sessions as durably as the sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from ...core import clock
from ...core.change import Change
from ...core.errors import Conflict, KeyTaken, SessionGone
from ...core.mirror import BEHIND, RESERVED, SHARDS
from ...core.provider import Provider

#: Seconds for which a key whose end is confirmed everywhere is not filled. Far longer than anybody
#: takes from a read to the write that follows it.
GRACE = 60.0
#: Seconds after which a worker that says no more that its follower is behind is taken for dead.
SILENCE = 30.0

_OPEN = b""


class Ledger:
    """The graves and the marks in one authority."""

    def __init__(self, authority: Provider) -> None:
        self._authority = authority
        #: Of each database here, by its name: what takes in all sessions once more.
        self.resyncs: dict[str, Callable[[], object]] = {}
        self._known: set[str] = set()  # of the reserved keys, those that have a record

    def size(self, now: float) -> int:
        """How many records of the authority are no sessions."""
        for key in RESERVED - self._known:
            if self._authority.exists(key, now):
                self._known.add(key)
        return len(self._known)

    def dig(self, key: str) -> None:
        """From now on the key is not filled."""
        self._commit(_shard(key), {key: _OPEN})

    def close(self, key: str) -> None:
        """Every follower has confirmed the end."""
        shard, now = _shard(key), clock.now()
        graves = self._values(shard)
        over = {name: end for name, end in graves.items() if end != _OPEN and float(end) <= now}
        over.pop(key, None)
        end = repr(now + GRACE).encode()
        try:
            self._commit(shard, {key: end}, over, over)
        except Conflict:  # one of them is dug again
            self._commit(shard, {key: end})

    def holds(self, key: str) -> bool:
        end = self._values(_shard(key)).get(key)
        return end is not None and (end == _OPEN or clock.now() < float(end))

    def is_open(self, key: str) -> bool:
        return self._values(_shard(key)).get(key) == _OPEN

    def open_graves(self) -> Iterator[str]:
        for shard in SHARDS:
            yield from [key for key, end in self._values(shard).items() if end == _OPEN]

    def mark(self, name: str) -> None:
        """``name`` is behind, and somebody alive knows in what. To be said again and again."""
        self._commit(BEHIND, {name: repr(clock.now()).encode()})

    def unmark(self, names: Collection[str]) -> None:
        if names:
            self._commit(BEHIND, {}, names)

    def adopt(self, heir: str) -> bool:
        """Put the mark of ``heir`` in place of all that have fallen silent. Whether there were any.

        Each goes to one heir: whoever else was about to adopt it gets False.
        """
        now = clock.now()
        said = self._values(BEHIND)
        silent = {name: at for name, at in said.items() if name != heir and _is_silent(at, now)}
        if not silent:
            return False
        try:
            self._commit(BEHIND, {heir: repr(now).encode()}, silent, silent)
        except Conflict:
            return False
        return True

    def marks(self) -> dict[str, bool]:
        """Who is behind, and whether they have fallen silent."""
        now = clock.now()
        said = self._values(BEHIND)
        return {name: _is_silent(at, now) for name, at in said.items()}

    def marks_of(self, name: str) -> dict[str, bool]:
        """Those of one database, and those of nobody here: it may have had another name."""
        others = self.resyncs.keys() - {name}
        marks = self.marks().items()
        return {mark: silent for mark, silent in marks if mark.partition("/")[0] not in others}

    def _values(self, key: str) -> Mapping[str, bytes]:
        record = self._authority.load(key, clock.now())
        return {} if record is None else record.values

    def _commit(
        self,
        key: str,
        puts: Mapping[str, bytes],
        drops: Collection[str] = (),
        expects: Mapping[str, bytes | None] | None = None,
    ) -> None:
        now = clock.now()
        while True:
            try:
                return self._authority.commit(
                    key, Change(puts, tuple(drops), expects=expects or {}), now
                )
            except SessionGone:
                pass
            try:
                return self._authority.commit(key, Change(puts, create=True), now)
            except KeyTaken:
                pass  # another worker made it meanwhile


def _is_silent(said_at: bytes, now: float) -> bool:
    return abs(now - float(said_at)) > SILENCE


def _shard(key: str) -> str:
    return SHARDS[int(key[:2], 16)]
