"""What the tests of the redis provider share."""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

from flask_hybridsession.core import ids
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.redis.wire import pack

NOW = 1_000_000.0
#: Seconds that nobody waits in a test that passes.
PATIENCE = 30.0
#: A budget that a busy machine keeps.
BUDGET = 20.0


def new_prefix() -> str:
    """Names of a test's own: the servers are shared."""
    return f"{uuid.uuid4().hex}:"


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited {PATIENCE} s for {what}"
        time.sleep(0.01)


def key(name: object = "") -> str:
    return ids.key_of(repr(name))


def create(provider: Provider, name: object = "", now: float = NOW, **options: Any) -> str:
    made = key(name)
    options.setdefault("deadline", now + 1000)
    provider.commit(made, Change(options.pop("puts", {"a": b"1"}), create=True, **options), now)
    return made


def check(provider: Any) -> None:
    """Raise unless what is beside the sessions says the same as the sessions themselves."""
    for part, space in provider._spaces.items():
        sessions, aliases, due, ends, users = dump(provider, part, space)
        assert due == {name: times[2] for name, (times, _, _) in sessions.items()}
        by_user: dict[bytes, dict[bytes, float]] = {}
        for name, (times, user, _) in sessions.items():
            if user is not None:
                by_user.setdefault(user, {})[name] = times[2]
        assert users == by_user
        assert ends == {alias: until for alias, (until, _) in aliases.items()}
        for alias, (_, target) in aliases.items():
            assert alias in sessions[target][2]


def dump(provider: Any, part: str, space: bytes) -> tuple[Any, ...]:
    """All that is stored in a part: sessions, aliases, deadlines, aliases' ends, users."""

    def ask(*words: bytes) -> Any:
        return provider._ask(part, pack(*words))

    def scores(name: bytes) -> dict[bytes, float]:
        found = ask(b"ZRANGE", name, b"0", b"-1", b"WITHSCORES")
        return dict(zip(found[::2], map(float, found[1::2]), strict=True))

    sessions, aliases, users = {}, {}, {}
    names = names_of(ask, space)
    for name in names:
        own = name.removeprefix(space)
        if own.startswith(b"@user:"):
            users[own.removeprefix(b"@user:")] = scores(name)
        elif not own.startswith(b"@"):
            found = ask(b"HGETALL", name)
            fields = dict(zip(found[::2], found[1::2], strict=True))
            if b">" in fields:
                (until,) = struct.unpack_from("<d", fields[b">"], 1)
                aliases[own] = (until, fields[b">"][9:])
            else:
                times = struct.unpack_from("<ddd", fields[b"m"], 1)
                sessions[own] = (times, fields.get(b"u"), fields.get(b"a", b""))
    return sessions, aliases, scores(space + b"@due"), scores(space + b"@ends"), users


def names_of(ask: Callable[..., Any], space: bytes) -> list[bytes]:
    names: set[bytes] = set()
    cursor = b"0"
    while True:
        cursor, found = ask(b"SCAN", cursor, b"MATCH", space + b"*", b"COUNT", b"1000")
        names.update(found)
        if cursor == b"0":
            return sorted(names)
