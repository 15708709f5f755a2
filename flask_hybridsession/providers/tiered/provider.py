"""Several databases at once: one decides, the others are told everything."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...core import clock
from ...core.breaker import Breaker
from ...core.change import Change, Record
from ...core.errors import (
    ConfigError,
    Conflict,
    KeyTaken,
    ProviderError,
    ProviderUnavailable,
    SessionGone,
)
from ...core.mirror import RESERVED, own
from ...core.names import HIDDEN
from ...core.provider import Checks, Compacts, Lists, Locks, Provider, Remote, Reports, Users
from ..registry import make_provider
from .follower import Follower
from .ledger import GRACE, Ledger
from .targets import target_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...core.settings import Settings

log = logging.getLogger("flask_hybridsession")

#: In the values of a session that is being filled: until it is gone, there is no session yet.
FILLING = f"{HIDDEN}filling"
#: Seconds for which a session may be in the making. A worker that dies leaves it behind.
_FILL_TIME = 30.0


class TieredProvider(Provider, Reports):
    """An authority, and others that follow it.

    Each of ``others`` is a provider, or an object with ``load(key)`` and ``sync(payload)``: see
    ``core.database``. The authority alone answers and judges, so what is promised, and what else it
    is able to do, is what the authority promises and is able to do (``Lists``, ``Users`` and so on
    are there if the authority has them). The others are told every commit before it returns, in
    order: a provider gets the session as it now is, an object one ``sync`` for each entry. A rename
    is to them the end of the old key, then a session under the new one: aliases are the authority's
    alone. What the authority does not have is asked of the others: the first that has something
    fills the authority. All workers must share each of them.

    **What ended is not filled again.** Three things could bring it back, and each has its answer.
    (1) *A follower that missed the end*: before a session ends in the authority, a grave for its
    key is stored there; it stays open until every follower has confirmed, so a worker that is
    killed at any point in between leaves at most a grave too many (``ledger``). (2) *A worker that
    is late*: it wrote to a follower just after that one had confirmed the end. It reads the
    authority again after each write, and takes back what is gone; and closed graves stay for a
    minute. (3) *A fill under way*, that read a follower before the end. It first claims the key in
    the authority with an unborn session (hidden: it carries ``FILLING``), then looks for a grave,
    then turns what it claimed into the session by one conditional commit. An end before the claim
    has left a grave; an end after the claim destroys the unborn, and that commit fails. What the
    authority holds past its deadline, until it is purged, is not filled either, and no follower is
    believed while some worker knows it to be behind.

    **The others become equal to the authority.** Whoever writes to a follower compares with the
    authority afterwards, and writes again if it moved. So the last of several workers that write
    the same session has seen both equal.

    What does not hold: a worker killed between a commit and its telling leaves a follower with the
    session as it was before, until the next commit of it, or ``resync``. Ends by expiry are known
    after the fact, so what protects them there is the follower's own deadline. The authority must
    not forget graves: one that throws out what was not used for long may forget those of a
    follower that is away for long.
    """

    #: Called once each time that a follower falls behind.
    on_failure: Callable[[ProviderUnavailable], object] | None = None

    def __new__(cls, authority: Provider, *others: Any) -> Self:
        kind: Any = _kind_of(authority) if cls is TieredProvider else cls
        made: Self = super().__new__(kind)
        return made

    def __init__(self, authority: Provider, *others: Any) -> None:
        if not isinstance(authority, Provider):
            raise ConfigError(
                f"the authority must be a provider, not a {type(authority).__name__}: only a "
                "provider can judge who may change a session."
            )
        self.authority: Any = authority
        self.others = others
        self.kinship = authority.kinship
        load_user = getattr(authority, "load_user", None)
        if load_user is not None:
            self.load_user = load_user
        self._ledger = Ledger(authority)
        self._followers: list[Follower] = []
        for number, other in enumerate(others, 1):
            target = target_of(other)
            name = f"{target.kind} {number}"
            self._followers.append(
                Follower(
                    *(name, target, authority, self._read, self._ledger),
                    *(self._told, self._confirm),
                )
            )
        self._by_entry = any(follower.target.by_entry for follower in self._followers)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """``SESSION_OPTIONS = {"authority": "hybrid", "others": [{"type": "redis", ...}]}``.

        Each is the name of a provider, a dict of its ``type`` and its own options, a provider, or,
        among the others, an object with ``load`` and ``sync``.
        """
        options = dict(settings.options)
        authority, others = options.pop("authority", None), options.pop("others", ())
        tiers = [authority, *others] if isinstance(others, list | tuple) else [None]
        nameless = [tier for tier in tiers if isinstance(tier, Mapping) and "type" not in tier]
        if options or None in tiers or nameless:
            raise ConfigError(
                'SESSION_OPTIONS of "tiered" must be {"authority": ..., "others": [...]}, each '
                'the name of a provider, or {"type": its name, and its own options}, or the '
                "provider itself."
            )
        return cls(_made(authority, settings), *(_made(other, settings) for other in others))

    def with_database(self, database: Any) -> TieredProvider:
        """The same with one more. This one is not to be used any more."""
        return TieredProvider(self.authority, *self.others, database)

    # -- the contract ---------------------------------------------------------------------------

    def load(self, key: str, now: float) -> Record | None:
        record: Record | None = self.authority.load(key, now)
        if record is None or FILLING in record.values:
            return self._fill(key, now)
        return record

    def commit(self, key: str, change: Change, now: float) -> None:
        before = self._before(key, change, now)
        if change.create:
            self.authority.commit(key, change, now)
        else:
            self._commit(key, change, now)
        after = self._after(key, before, now)
        if after is None:
            self._settle([before.key if before is not None else key], now)
            return
        for follower in self._followers:
            follower.tell(before, change, after, now)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        while True:
            there = self.load(old, now)
            if there is None:
                raise SessionGone(old)
            self._ledger.dig(there.key)
            try:
                self.authority.rename(there.key, new, now, alias_until)
                break
            except SessionGone:
                pass  # it ended, or has another key by now
        self._settle([there.key], now, new)

    def destroy(self, key: str) -> bool:
        now = clock.now()
        while True:
            there = self.load(key, now)
            name = key if there is None else there.key
            dug = there is not None or self._needs_graves()
            if dug:
                self._ledger.dig(name)
            nothing = there is None and self._is_unborn(name)
            destroyed = not nothing and bool(self.authority.destroy(name))
            if destroyed or dug:
                self._settle([name], now)
            if destroyed or there is None or self.authority.load(key, now) is None:
                return destroyed

    def next_deadline(self) -> float | None:
        deadline: float | None = self.authority.next_deadline()
        return deadline

    def purge(self, now: float, limit: int) -> list[Record]:
        for follower in self._followers:
            follower.sweep(now, limit)  # first: what ends now in the authority is not filled again
        gone: list[Record] = []
        while len(gone) < limit:
            wanted = limit - len(gone)
            try:
                records = self.authority.purge(now, wanted)
            except ProviderError:
                if not gone:
                    raise
                break  # those that are gone are the caller's to announce
            gone += [record for record in records if FILLING not in record.values]
            if len(records) < wanted:
                break
        self._tell_expired([record.key for record in gone], now)
        return gone

    def close(self) -> None:
        for follower in self._followers:
            follower.close()
        self.authority.close()

    def stats(self) -> dict[str, int | float | str]:
        """The authority's own, then how each of the others is."""
        stats: dict[str, int | float | str] = {"authority": type(self.authority).__name__}
        if isinstance(self.authority, Reports):
            stats |= self.authority.stats()
            if "sessions" in stats:
                stats["sessions"] = max(0, int(stats["sessions"]) - self._ledger.size(clock.now()))
        for follower in self._followers:
            stats |= follower.stats()
        return stats

    def resync(self) -> None:
        """Write all sessions of the authority to the others once more, in the background.

        Needs an authority that ``Lists``. What only another one has stays there, to be filled from.
        """
        for follower in self._followers:
            follower.resync()

    # -- telling the others ---------------------------------------------------------------------

    def _read(self, key: str, now: float) -> Record | None:
        """The session under this very key."""
        record = own(self.authority.load(key, now), key)
        return None if record is None or FILLING in record.values else record

    def _before(self, key: str, change: Change, now: float) -> Record | None:
        ends = change.deadline is not None and change.deadline <= now
        if not ends and (change.create or not self._by_entry):
            return None
        before: Record | None = self.authority.load(key, now)
        if ends and before is not None:
            self._ledger.dig(before.key)
        return before

    def _commit(self, key: str, change: Change, now: float) -> None:
        """What is being filled is not there yet, and what is not there may be filled."""
        guarded = change._replace(expects={**change.expects, FILLING: None})
        while True:
            try:
                return self.authority.commit(key, guarded, now)  # type: ignore[no-any-return]
            except SessionGone:
                if self._fill(key, now) is None:
                    raise
            except Conflict as conflict:
                if FILLING not in conflict.current.values:
                    raise
                if self._fill(key, now) is None:
                    raise SessionGone(key) from None

    def _after(self, key: str, before: Record | None, now: float) -> Record | None:
        try:
            record: Record | None = self.authority.load(key, now)
        except ProviderError as error:
            # The commit is done. Whoever asks for the followers' state finds them behind.
            log.warning("a commit is to be told again: %s", type(error).__name__)
            self._missed([before.key if before is not None else key])
            return None
        return None if record is not None and FILLING in record.values else record

    def _missed(self, keys: Iterable[str]) -> None:
        for follower in self._followers:
            for key in keys:
                follower.bring(key, clock.now())

    def _settle(self, ended: list[str], now: float, moved_to: str | None = None) -> None:
        """Tell of ends, and of the session that one of them became. Close the graves."""
        for follower in self._followers:
            for key in ended:
                follower.bring(key, now)
            if moved_to is not None:
                follower.bring(moved_to, now, fresh=True)
        for key in ended:
            try:
                self._confirm(key)
            except ProviderError as error:
                # An open grave says no more than that nobody knows whether all have confirmed.
                log.warning("a grave stays open: %s", type(error).__name__)

    def _confirm(self, key: str) -> None:
        """Close a grave, if there is one, nobody misses the end and it has come."""
        if any(follower.misses(key) for follower in self._followers):
            return
        if self._ledger.is_open(key) and self._read(key, clock.now()) is None:
            self._ledger.close(key)

    def _tell_expired(self, keys: list[str], now: float) -> None:
        try:
            if self._needs_graves():
                for key in keys:
                    self._ledger.dig(key)
        except ProviderError as error:
            log.warning("expired sessions have no graves: %s", type(error).__name__)
        self._settle(keys, now)

    def _needs_graves(self) -> bool:
        """Whether one of the others may hold what the authority knows nothing of."""
        return self._by_entry or any(follower.is_behind for follower in self._followers)

    def _told(self, error: ProviderUnavailable) -> None:
        if self.on_failure is not None:
            self.on_failure(error)

    # -- filling --------------------------------------------------------------------------------

    def _fill(self, key: str, now: float) -> Record | None:
        """What the first of the others has, now the authority's. See (3) above."""
        start = monotonic()
        moment = max(now, clock.now())  # it may have expired, and been purged, since the call
        for follower in self._followers:
            copy = follower.copy(key, moment)
            if copy is not None:
                break
        else:
            return None
        if self._ledger.holds(key):
            return None
        token = self._claim(copy, now)
        if token is None:
            return self._born(key, now)
        late = monotonic() - start > GRACE / 2
        if late or self._ledger.holds(key) or not follower.may_fill():
            self.authority.destroy(key)
            return None
        birth = Change(
            puts=copy.values,
            drops=(FILLING,),
            expects={FILLING: token},
            deadline=copy.deadline,
            user=copy.user,
            device=copy.device,
        )
        with suppress(Conflict, SessionGone):  # it ended meanwhile, or another worker did the same
            self.authority.commit(key, birth, now)
        return self._born(key, now)

    def _claim(self, copy: Record, now: float) -> bytes | None:
        """An unborn session in the authority: its token. None when something else is there."""
        stored: Record | None = self.authority.load(copy.key, 0.0)
        if stored is not None:
            token = stored.values.get(FILLING)
            if token is None or now < stored.deadline:
                return token  # it is past its deadline, or was renamed; or another fills it
            self.authority.destroy(copy.key)  # somebody died while he was filling it
        token = secrets.token_bytes(16)
        unborn = Change(
            puts={FILLING: token},
            create=True,
            deadline=min(copy.deadline, now + _FILL_TIME),
            touched=copy.touched,
        )
        try:
            self.authority.commit(copy.key, unborn, min(copy.created, now))
            return token
        except KeyTaken:
            there: Record | None = self.authority.load(copy.key, now)
            return None if there is None else there.values.get(FILLING)

    def _is_unborn(self, key: str) -> bool:
        stored: Record | None = self.authority.load(key, 0.0)
        return stored is not None and FILLING in stored.values

    def _born(self, key: str, now: float) -> Record | None:
        record: Record | None = self.authority.load(key, now)
        return None if record is None or FILLING in record.values else record


# What an authority is able to do, for those whose authority is.


class _Lists(TieredProvider, Lists):
    def keys(self, now: float) -> Iterator[str]:
        return (key for key in self.authority.keys(now) if key not in RESERVED)

    def count(self, now: float) -> int:
        others = self._ledger.size(now)  # first: it only grows
        count: int = self.authority.count(now)
        return max(0, count - others)


class _Users(TieredProvider, Users):
    def keys_of(self, user: str, now: float) -> Iterable[str]:
        keys: Iterable[str] = self.authority.keys_of(user, now)
        return keys


class _Locks(TieredProvider, Locks):
    def lock(self, key: str, timeout: float, lease: float) -> AbstractContextManager[None]:
        lock: AbstractContextManager[None] = self.authority.lock(key, timeout, lease)
        return lock


class _Remote(TieredProvider, Remote):
    @property
    def breaker(self) -> Breaker:  # type: ignore[override]
        breaker: Breaker = self.authority.breaker
        return breaker


class _Checks(TieredProvider, Checks):
    def check(self) -> list[str]:
        texts: list[str] = self.authority.check()
        return texts


class _Compacts(TieredProvider, Compacts):
    def compact(self) -> bool:
        done: bool = self.authority.compact()
        return done


_PARTS: dict[type, type[TieredProvider]] = {
    Lists: _Lists,
    Users: _Users,
    Locks: _Locks,
    Remote: _Remote,
    Checks: _Checks,
    Compacts: _Compacts,
}
_kinds: dict[Any, type[TieredProvider]] = {}


def _kind_of(authority: Provider) -> type[TieredProvider]:
    """The class that is able to do what this authority is, and promises what it promises."""
    if not isinstance(authority, Provider):
        return TieredProvider
    parts = tuple(part for ability, part in _PARTS.items() if isinstance(authority, ability))
    known = (parts, authority.promises)
    if known not in _kinds:
        _kinds[known] = type(
            "TieredProvider",
            parts or (TieredProvider,),
            {"__module__": __name__, "promises": authority.promises},
        )
    return _kinds[known]


def _made(what: Any, settings: Settings) -> Any:
    """A provider from its name, or from a dict of its ``type`` and options; others as they are."""
    if isinstance(what, str):
        return make_provider(replace(settings, type=what, options={}))
    if isinstance(what, Mapping):
        options = dict(what)
        return make_provider(replace(settings, type=options.pop("type"), options=options))
    return what
