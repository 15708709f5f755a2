"""Sessions in Redis: a hash each, every commit one script and one round trip."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ...core import clock
from ...core.breaker import Breaker, own_budgets
from ...core.change import Change, Record
from ...core.errors import (
    ConfigError,
    Conflict,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from ...core.provider import Lists, Locks, Provider, Remote, Reports, Users
from . import replies, scripts
from .connect import read
from .layout import change_parts, corrupt, encode, pack_time, unpack
from .near import Near
from .scripts import Script
from .servers import Cluster, One, Servers
from .wire import Meaning, Refused, Wire, pack

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...core.settings import Settings

log = logging.getLogger("flask_hybridsession")

T = TypeVar("T")

#: Seconds between two tries to get a lock: at first, and at most.
_FIRST_TRY, _LAST_TRY = 0.002, 0.05
#: Keys that are looked at in one call while all are listed.
_SLICE = 500
#: Calls of one purge for one part at most; the next sweep goes on.
_MOST_SLICES = 1_000


class RedisProvider(Provider, Lists, Users, Locks, Reports, Remote):
    """Sessions in Redis 6 or later, or Valkey: one server, one under Sentinel, or a cluster.

    ``client`` is a URL, a list of URLs, or a client of redis-py, of which only the parameters are
    used: connections are our own. ``service``: the URLs are those of sentinels, which name the
    master by this name. ``cluster``: the URLs are those of some of a cluster's nodes.

    ``near_cache``: read sessions are kept in this worker until Redis says that they changed; a read
    may then miss what another worker wrote less than so many seconds ago. Not with a cluster.

    ``budget`` is how many seconds the calls of one request may take in all. The server need not be
    up yet. Raises ``ConfigError``.

    In a cluster the sessions lie in 16 parts by the first digit of their key, and a session stays
    in its part: ``rename`` to a key of another one raises ``ValueError``.
    """

    def __init__(
        self,
        client: Any,
        key_prefix: str = "session:",
        *,
        service: str | None = None,
        cluster: bool = False,
        near_cache: float | None = None,
        budget: float = 0.25,
    ) -> None:
        given = read(client, service, cluster)
        self._servers: Servers = (Cluster if given.cluster else One)(given, self._greet)
        self.kinship = 1 if given.cluster else 0
        prefix = _checked_prefix(key_prefix, given.cluster)
        self._spaces = {
            part: (prefix + (f"{{{part}}}" if part else "")).encode()
            for part in self._servers.parts
        }
        self._alone = self._spaces.get("")
        self._greeted = False
        self._near = None if near_cache is None else self._make_near(near_cache)
        self.breaker = Breaker(self._servers.check, budget=budget)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take ``SESSION_REDIS`` and ``SESSION_KEY_PREFIX``; the rest is in ``SESSION_OPTIONS``."""
        if settings.redis is None:
            raise ConfigError(
                "the redis provider needs to know where Redis is: write SESSION_REDIS = "
                '"redis://localhost:6379/0", or a client of redis-py.'
            )
        return cls(settings.redis, settings.key_prefix, **settings.options)

    # -- the contract ---------------------------------------------------------------------------

    def load(self, key: str, now: float) -> Record | None:
        near = self._near
        record = self._load(key, now) if near is None else near.get(key)
        if near is not None and record is None:
            token = near.begin(key)
            try:
                record = self._load(key, now)
            finally:
                near.keep(key, token, record)
        return record if record is not None and now < record.deadline else None

    def _load(self, key: str, now: float) -> Record | None:
        """The record, alive or not."""
        command = pack(b"HGETALL", self._space(key) + key.encode())
        record = self._ask(key, command, partial(replies.stored, key), damage="WRONGTYPE")
        if record is replies.ALIAS:
            record = self._run(scripts.LOAD, key, now, key.encode())
        return record  # type: ignore[no-any-return]

    def commit(self, key: str, change: Change, now: float) -> None:
        with self._changing(key):
            outcome = self._run(scripts.COMMIT, key, now, key.encode(), *change_parts(change))
            self._forget(outcome)
        if outcome == "gone":
            raise SessionGone(key)
        if outcome == "taken":
            raise KeyTaken(key)
        if isinstance(outcome, Record):
            raise Conflict(outcome)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        if old[: self.kinship] != new[: self.kinship]:
            raise ValueError(
                "in a cluster a session stays in its part: its new key must begin like the old one"
            )
        until = pack_time(alias_until)
        with self._changing(old, new):
            outcome = self._run(scripts.RENAME, old, now, old.encode(), new.encode(), until)
            self._forget(outcome)
        if outcome == "gone":
            raise SessionGone(old)
        if outcome == "taken":
            raise KeyTaken(new)

    def destroy(self, key: str) -> bool:
        with self._changing(key):
            destroyed = self._run(scripts.DESTROY, key, clock.now(), key.encode())
            self._forget(destroyed)
        return destroyed is not None

    def next_deadline(self) -> float | None:
        firsts = self._run_each(scripts.FIRST, self._spaces, 0.0).values()
        first = min((first for first in firsts if first is not None), default=inf)
        return None if first == inf else first

    def purge(self, now: float, limit: int) -> list[Record]:
        claimed: list[Record] = []
        for part in self._due(now):
            for _ in range(_MOST_SLICES):
                try:
                    again, found = self._run(
                        scripts.PURGE, part, now, b"%d" % (limit - len(claimed))
                    )
                except ProviderUnavailable:
                    if not claimed:
                        raise
                    return claimed  # those that are gone are the caller's to announce
                claimed += [self._announced(key, fields, now) for key, fields in found]
                if not again or len(claimed) >= limit:
                    break
        return claimed

    def close(self) -> None:
        self.breaker.close()
        if self._near is not None:
            self._near.close()
        self._servers.close()

    # -- abilities ------------------------------------------------------------------------------

    def keys(self, now: float) -> Iterator[str]:
        """The keys of all live sessions; what is asked for bit by bit has a whole budget each."""
        for part, space in self._spaces.items():
            seen: set[bytes] = set()
            cursor = b"0"
            while True:
                scan = pack(b"ZSCAN", space + b"@due", cursor, b"COUNT", b"%d" % _SLICE)
                with own_budgets():
                    cursor, found = self._ask(part, scan, replies.scanned)
                    new = [key for key in found[::2] if key not in seen]
                    living = self._run(scripts.LIVING, part, now, *new) if new else []
                seen.update(new)
                yield from living
                if cursor == b"0":
                    break

    def count(self, now: float) -> int:
        commands = {part: pack(b"ZCARD", s + b"@due") for part, s in self._spaces.items()}
        return sum(self._ask_each(commands, replies.number).values())

    def keys_of(self, user: str, now: float) -> list[str]:
        found = self._run_each(scripts.OF_USER, self._spaces, now, encode(user))
        return [key for keys in found.values() for key in keys]

    @contextmanager
    def lock(self, key: str, timeout: float, lease: float) -> Iterator[None]:
        name = self._space(key) + b"@lock:" + key.encode()
        mine = secrets.token_bytes(16)
        milliseconds = b"%d" % max(1, int(lease * 1000))
        take = pack(b"SET", name, mine, b"NX", b"PX", milliseconds)
        give_up = time.monotonic() + timeout
        pause = _FIRST_TRY
        with own_budgets():  # who waits for another request does not wait for Redis
            while self._ask(key, take, replies.okay_or_none, writes=True) is None:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"session {key[:12]}... is locked by another request")
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # noqa: S311  (no secret)
                pause = min(2 * pause, _LAST_TRY)
        self._forget(key)  # what the one before has written is read
        try:
            yield
        finally:
            try:
                with own_budgets():
                    self._run(scripts.UNLOCK, key, 0.0, name, mine)
            except ProviderUnavailable:
                log.warning("a lock was not let go of: it ends after %s seconds", lease)

    def stats(self) -> dict[str, int | float | str]:
        part = next(iter(self._spaces))
        info = _info(self._ask(part, pack(b"INFO"), replies.text))
        return {
            "sessions": self.count(clock.now()),
            "server": f"{info.get('server_name', 'redis')} "
            f"{info.get('valkey_version', info.get('redis_version', '?'))}",
            "nodes": "cluster" if self.kinship else "one",
            "used_memory": info.get("used_memory", "?"),
            "maxmemory_policy": info.get("maxmemory_policy", "?"),
            "near_cache": 0 if self._near is None else len(self._near),
        }

    # -- asking ---------------------------------------------------------------------------------

    def _part(self, key: str) -> str:
        return "" if self._alone is not None else key[:1]

    def _space(self, key: str) -> bytes:
        """What the names of all that is stored beside ``key`` begin with."""
        alone = self._alone
        return self._spaces[key[:1]] if alone is None else alone

    def _call(self, work: Callable[[float], T]) -> T:
        return self.breaker.call(lambda seconds: work(time.monotonic() + seconds))

    def _ask(
        self,
        key: str,
        command: bytes,
        means: Meaning = replies.anything,
        damage: str = scripts.DAMAGE,
        writes: bool = False,
    ) -> Any:
        part, ask = self._part(key), self._servers.ask
        answer = self._call(lambda give_up: ask(part, command, means, give_up, writes))
        return _good(answer, key, damage)

    def _ask_each(self, commands: Mapping[str, bytes], means: Meaning) -> dict[str, Any]:
        ask = self._servers.ask_each
        answers = self._call(lambda give_up: ask(commands, means, give_up))
        return {part: _good(reply, part) for part, reply in answers.items()}

    def _run(self, script: Script, key: str, now: float, *arguments: bytes) -> Any:
        """Run it where ``key`` is; a part's name will do."""
        part, command = self._part(key), self._script(script, key, now, arguments)

        def work(give_up: float) -> Any:
            ask = self._servers.ask
            means, writes = script.means, script.writes
            reply = ask(part, command(b"EVALSHA", script.sha), means, give_up, writes)
            if isinstance(reply, Refused) and reply.code == "NOSCRIPT":
                reply = ask(part, command(b"EVAL", script.text), means, give_up, writes)
            return reply

        return _good(self._call(work), key)

    def _run_each(
        self, script: Script, parts: Iterable[str], now: float, *arguments: bytes
    ) -> dict[str, Any]:
        commands = {part: self._script(script, part, now, arguments) for part in parts}

        def work(give_up: float) -> dict[str, Any]:
            answers = self._servers.ask_each(
                {part: command(b"EVALSHA", script.sha) for part, command in commands.items()},
                script.means,
                give_up,
            )
            for part, reply in answers.items():
                if isinstance(reply, Refused) and reply.code == "NOSCRIPT":
                    whole = commands[part](b"EVAL", script.text)
                    answers[part] = self._servers.ask(part, whole, script.means, give_up)
            return answers

        return {part: _good(reply, part) for part, reply in self._call(work).items()}

    def _script(
        self, script: Script, key: str, now: float, arguments: tuple[bytes, ...]
    ) -> Callable[[bytes, bytes], bytes]:
        space = self._space(key)
        names = (b"3", space + key.encode(), space + b"@due", space + b"@ends")
        rest = (*names, space, pack_time(now), *arguments)
        return lambda verb, body: pack(verb, body, *rest)

    def _due(self, now: float) -> list[str]:
        """The parts in which something has ended."""
        if self._alone is not None:
            return [""]
        firsts = self._run_each(scripts.FIRST, self._spaces, now)
        due = [part for part, at in firsts.items() if at is not None and at <= now]
        random.shuffle(due)  # workers that sweep at once do not all begin with the same part
        return due

    def _announced(self, key: str, fields: list[bytes], now: float) -> Record:
        self._forget(key)
        try:
            return unpack(key, fields)
        except CorruptData:
            log.error("session %s... was damaged; it has expired", key[:12])
            return Record(key, {}, now, now, now)

    def _make_near(self, bound: float) -> Near:
        if self._alone is None:
            raise ConfigError("near_cache does not work with a cluster: remove it.")
        servers = self._servers
        return Near(
            partial(servers.connect, protocol=3), self._alone, bound, term=lambda: servers.term
        )

    def _changing(self, *keys: str) -> AbstractContextManager[None]:
        return _nothing if self._near is None else self._near.changing(*keys)

    def _forget(self, key: Any) -> None:
        """What a script says that it changed is not served from the near cache."""
        if self._near is not None and isinstance(key, str):
            self._near.drop(key)

    def _greet(self, wire: Wire, give_up: float) -> None:
        """On the first connection: would this server throw sessions away?"""
        if self._greeted:
            return
        try:
            (reply,) = wire.ask(pack(b"INFO", b"memory"), [replies.text], give_up)
        except OSError as error:
            wire.close()
            raise ProviderUnavailable("Redis does not answer in time") from error
        if isinstance(reply, Refused):
            log.info("Redis does not say how it treats a lack of memory: %s", reply.code)
            self._greeted = reply.code == "NOPERM"
            return
        self._greeted = True
        policy = _info(reply).get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log.warning(
                "Redis may throw sessions away when memory is short (maxmemory-policy %s): users "
                "would be logged out. Set it to noeviction for the Redis that keeps sessions.",
                policy,
            )


_nothing = nullcontext()


def _good(answer: Any, key: str, damage: str = scripts.DAMAGE) -> Any:
    """The answer, unless the server refused: what it says there is for whoever runs the site.

    ``damage`` is what it says when something else than a session lies under the key.
    """
    if not isinstance(answer, Refused):
        return answer
    if answer.code == damage:
        raise corrupt(key)
    raise ProviderUnavailable(f"Redis {REFUSALS.get(answer.code, f'answers {answer.code}')}")


#: Answers of a server that serves, but not this. They come at once, so they open no breaker.
REFUSALS = {
    "FAILOVER": "is about to be replaced by another master: until then nothing is written",
    "MOVED": 'belongs to a cluster: write SESSION_OPTIONS = {"cluster": True}',
    "MISCONF": "cannot write to its disk, and accepts no changes",
    "NOAUTH": "wants a password: write it into SESSION_REDIS",
    "NOPERM": "does not allow its user all that is needed: on the keys that begin with "
    "SESSION_KEY_PREFIX, +@hash +@sortedset +@keyspace +@string +@scripting, and +info",
    "NOREPLICAS": "has fewer replicas than it needs to accept changes (min-replicas-to-write)",
    "OOM": "is out of memory: raise maxmemory",
    "WRONGTYPE": "holds something else under a name that begins with SESSION_KEY_PREFIX and @: "
    "does another app use that prefix?",
}


def _info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _checked_prefix(prefix: object, cluster: bool) -> str:
    if not isinstance(prefix, str) or not prefix:
        raise ConfigError('SESSION_KEY_PREFIX must be a text that is not empty, as "session:".')
    if cluster and "{" in prefix:
        raise ConfigError("SESSION_KEY_PREFIX must hold no { in a cluster: it says where keys go.")
    return prefix
