"""Make what one provider holds under a key equal to what another one holds. Pure contract.

Nothing here locks. Whoever writes to the target reads the source again afterwards, and repeats if
it moved meanwhile. So the last writer of all has seen that the two were equal: several processes
may bring the same session over at once, while it goes on being used in the source.
"""

from __future__ import annotations

from . import ids
from .change import Change, Record
from .errors import KeyTaken, ProviderUnavailable, SessionGone
from .provider import Provider

# Keys of what is no session, but kept among them: graves and marks of ``providers.tiered``, and the
# mark of a copy that is under way. A colon is in no sid: no cookie leads to these.
SHARDS = tuple(ids.key_of(f"tiered:graves:{number}") for number in range(256))
BEHIND = ids.key_of("tiered:behind")
COMPLETE = ids.key_of("tiered:complete")
COPYING = ids.key_of("sessions:copying")
RESERVED = frozenset({*SHARDS, BEHIND, COMPLETE, COPYING})

#: Rounds of one session. In each of them another request got in between.
MOST_ROUNDS = 1000


def bring(source: Provider, target: Provider, key: str, now: float) -> bool:
    """Make the session of ``key`` in ``target`` what it is in ``source``. False: it was already.

    What ``source`` does not hold under this very key (gone, or an alias) is destroyed in
    ``target``. Aliases are not carried over.
    """
    changed = False
    for _ in range(MOST_ROUNDS):
        record = own(source.load(key, now), key)
        there = target.load(key, now)
        if same(record, own(there, key)) and (record is not None or there is None):
            return changed
        changed = True
        if record is None:
            target.destroy(key)
        else:
            if there is not None and there.created != record.created:
                target.destroy(key)
            put(target, record, now)
        if same(record, own(source.load(key, now), key)):
            return True
    raise restless(key)


def put(target: Provider, record: Record, now: float) -> None:
    """Write the whole of ``record``, over what is there."""
    change = Change(
        puts=record.values,
        wipe=True,
        deadline=record.deadline,
        touched=record.touched,
        user=record.user,
        device=record.device,
    )
    for _ in range(MOST_ROUNDS):
        try:
            return target.commit(record.key, change, now)
        except SessionGone:
            pass
        try:
            # The time of a creation is the session's ``created``.
            return target.commit(record.key, change._replace(create=True), record.created)
        except KeyTaken:
            if target.load(record.key, now) is None:  # past its deadline, but not at that time
                target.destroy(record.key)
    raise restless(record.key)


def own(record: Record | None, key: str) -> Record | None:
    """The record, unless ``key`` is only an alias of it."""
    return record if record is not None and record.key == key else None


def same(one: Record | None, other: Record | None) -> bool:
    """Whether they are equal, whatever kinds of mappings hold their values."""
    if one is None or other is None:
        return one is other
    return one[2:] == other[2:] and one.key == other.key and dict(one.values) == dict(other.values)


def restless(key: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"session {key[:12]}... changes faster than it can be copied")
