"""What a request did to its session: encoded where it differs, and worked out again where another
request was faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from . import ids
from .change import Record
from .codec import IMMUTABLE, decode, encode
from .errors import CodecError
from .names import CLEARED, LIFETIME, MOVED, PERMANENT

#: (base, mine, theirs) -> the value to store; None stands for "no value", on both sides.
Merge = Callable[[Any, Any, Any], Any]


class Pending(NamedTuple):
    """What is to be stored: only what differs from what was loaded."""

    puts: dict[str, bytes]
    drops: list[str]
    expects: dict[str, bytes | None]
    wipe: bool

    def __bool__(self) -> bool:
        return bool(self.puts or self.drops or self.wipe)


#: The changes of a request that changed nothing.
NOTHING = Pending({}, [], {}, False)


class Edits:
    """The edits of one request.

    ``puts`` maps each name that was set to its bytes, or to None where the value can change in
    place and is encoded when the session is saved. ``deltas`` are increments, ``taken`` the flashes
    that were got, ``barred`` what must not be there afterwards, even if another request puts it.
    """

    __slots__ = ("barred", "deltas", "dropped", "puts", "taken", "wiped")

    def __init__(self, wiped: bool = False, taken: Iterable[str] = ()) -> None:
        self.puts: dict[str, bytes | None] = {}
        self.dropped: set[str] = set()
        self.taken = set(taken)
        self.deltas: dict[str, Any] = {}
        self.barred: set[str] = set()
        self.wiped = wiped

    def put(self, name: str, value: Any) -> None:
        """Raises ``CodecError`` for what cannot be stored."""
        data = encode_named(name, value)
        self._forget(name)
        self.puts[name] = data if type(value) in IMMUTABLE else None

    def drop(self, name: str) -> None:
        self._forget(name)
        self.dropped.add(name)

    def _forget(self, name: str) -> None:
        self.puts.pop(name, None)
        self.dropped.discard(name)
        self.deltas.pop(name, None)
        self.taken.discard(name)

    def increment(self, name: str, value: Any, by: Any) -> None:
        """``value`` is the sum; unless the name was set before, only ``by`` counts in the end."""
        counted = name in self.deltas or name not in self.puts
        delta = self.deltas.get(name, 0) + by
        self.put(name, value)
        if counted:
            self.deltas[name] = delta

    def change_terms(self, base: Mapping[str, bytes]) -> bool:
        """Whether the session may end at another time than before, and its cookie too."""
        permanent = base.get(PERMANENT)
        return (
            self.wiped
            or LIFETIME in self.puts
            or PERMANENT in self.dropped
            or self.puts.get(PERMANENT, permanent) != permanent
        )

    def own_work(
        self, live: Mapping[str, Any], base: Mapping[str, bytes], merges: Mapping[str, Merge]
    ) -> dict[str, Any]:
        """What this request wrote, as if there had been nothing before."""
        base = {} if self.wiped else base
        written = {name: live[name] for name in self.puts if name not in merges}
        for name in self.puts.keys() & merges.keys():
            merged = self._merged(name, live[name], None, base, merges)
            if merged is not None:
                written[name] = merged
        return written | self.deltas

    def pending(
        self,
        live: Mapping[str, Any],
        base: Mapping[str, bytes],
        merges: Mapping[str, Merge],
        stored: bool,
    ) -> Pending:
        """Encode again what can change in place, and compare with ``base``.

        ``live`` are the values that were looked at or set. Raises ``CodecError``.
        """
        puts: dict[str, bytes] = {}
        for name, value in live.items():
            if name in self.puts:
                data = self.puts[name] or encode_named(name, value)
            elif type(value) in IMMUTABLE:
                continue
            else:
                data = encode_named(name, value)
            if self.wiped or base.get(name) != data:
                puts[name] = data
        if self is NO_EDITS and not puts:
            return NOTHING
        for name in self.taken:
            puts.pop(name, None)
        if self.wiped:
            if stored:
                puts[CLEARED] = encode(ids.mint())
            return Pending(puts, [], {}, True)
        drops = [name for name in (*self.dropped, *self.taken) if name in base]
        drops += [name for name in self.barred if name not in base and name not in puts]
        expects = {
            name: base.get(name)
            for name in (*puts, *drops)
            if name in merges or name in self.deltas or name in self.taken
        }
        return Pending(puts, drops, expects, False)

    def merge(
        self,
        pending: Pending,
        current: Record,
        mine: Mapping[str, Any],
        base: Mapping[str, bytes],
        merges: Mapping[str, Merge],
    ) -> tuple[Pending, dict[str, Any]]:
        """What to try next, now that another request has stored ``current``.

        ``mine`` is what this request made of the values by itself. Besides what is pending,
        returns the values that were worked out anew.
        """
        puts, drops, expects = dict(pending.puts), set(pending.drops), dict(pending.expects)
        anew: dict[str, Any] = {}
        for name in expects:
            theirs = current.values.get(name)
            if theirs == expects[name]:
                continue
            expects[name] = theirs
            value = anew[name] = self._merged(name, mine.get(name), theirs, base, merges)
            data = None if value is None else encode_named(name, value)
            puts.pop(name, None)
            drops.discard(name)
            if data is None and theirs is not None:
                drops.add(name)
            elif data is not None and data != theirs:
                puts[name] = data
        return Pending(puts, list(drops), expects, pending.wipe), anew

    def _merged(
        self,
        name: str,
        mine: Any,
        data: bytes | None,
        base: Mapping[str, bytes],
        merges: Mapping[str, Merge],
    ) -> Any:
        theirs = None if data is None else decode(data)
        if name in self.taken:
            return theirs
        if name in self.deltas:
            number = 0 if theirs is None else theirs
            return number + self.deltas[name] if is_number(number) else mine
        if name in GROUND:
            return mine if name in self.puts or name in self.dropped else theirs
        before = base.get(name)
        return merges[name](None if before is None else decode(before), mine, theirs)


#: What most requests do. Shared by them all, so never changed.
NO_EDITS = Edits()

#: What any change stands on: what its deadline was worked out from, and that nobody has cleared
#: the session or given it a new sid meanwhile.
GROUND = (LIFETIME, PERMANENT, CLEARED, MOVED)


def encode_named(name: str, value: Any) -> bytes:
    """As ``encode``; the error names the session key."""
    try:
        return encode(value)
    except CodecError as error:
        raise error.named(name) from None


def is_number(value: object) -> bool:
    """Whether ``increment`` can add to it."""
    return isinstance(value, (int, float, complex, Decimal, Fraction)) and not isinstance(
        value, bool
    )


def merge_flashes(base: Any, mine: Any, theirs: Any) -> list[Any] | None:
    """Their messages without those that this request showed, then those that it flashed."""
    shown, flashed = list(base or ()), []
    for message in mine or ():
        if message in shown:
            shown.remove(message)
        else:
            flashed.append(message)
    kept = list(theirs or ())
    for message in shown:
        if message in kept:
            kept.remove(message)
    return [*kept, *flashed] or None
