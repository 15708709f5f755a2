"""The storage contract: what every provider promises, checked by ``testing.ProviderSuite``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from .change import Change, Record

if TYPE_CHECKING:
    from typing_extensions import Self

    from .breaker import Breaker
    from .settings import Settings


class Promise(Enum):
    """What a provider may be unable to keep, because its backend cannot.

    A provider that keeps fewer than all says so in ``Provider.promises``; the suite checks those
    that are named, and that the rest of the contract holds for calls one after the other.
    """

    #: A commit is judged and written in one step, whoever else writes: commits that name different
    #: keys both survive, ``expects`` and ``create`` hold against other threads and processes.
    CONDITIONAL = "conditional commits"
    #: Once destroyed or renamed, a session stays so: a commit already under way cannot revive it.
    FINAL = "nothing comes back"
    #: ``rename`` happens at one moment: never both keys, never neither.
    ATOMIC_RENAME = "atomic rename"
    #: ``destroy`` is True for exactly one of several callers at once.
    DESTROY_ONCE = "destroy is True once"
    #: ``purge`` hands each due session to exactly one caller, so each expiry is announced once.
    PURGE = "expiry is announced"


class Provider(ABC):
    """Where sessions are kept. Safe to use from several threads.

    ``key`` is always the 64 hexadecimal characters of a hashed sid, times are wall-clock seconds,
    and what is unknown or past its deadline (``now >= deadline``) is "not found". Any call may
    raise ``ProviderUnavailable``; a read of damaged bytes raises ``CorruptData``.
    """

    promises: ClassVar[frozenset[Promise]] = frozenset(Promise)

    #: How many leading digits a session's new key must share with the old one, for backends that
    #: rename only within a part of their keys. Such a provider refuses another with ``ValueError``.
    kinship: int = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Make one for an app. By default ``SESSION_OPTIONS`` are the constructor's parameters."""
        return cls(**settings.options)

    @abstractmethod
    def load(self, key: str, now: float) -> Record | None:
        """The session, or None. Creates and touches nothing.

        A live alias answers with the record under its new key.
        """

    @abstractmethod
    def commit(self, key: str, change: Change, now: float) -> None:
        """Do all of the change or none of it; names that it does not mention stay as they are.

        Through a live alias it lands on the new key. Raises ``SessionGone`` when there is no such
        session, ``KeyTaken`` when ``change.create`` meets one, ``Conflict`` when a value in
        ``change.expects`` is another one by now.
        """

    @abstractmethod
    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        """Give the session a new key, atomically. Until ``alias_until`` the old key is an alias.

        Earlier aliases lead to the new key too, or end when there is no ``alias_until``: after a
        login no key from before it opens anything. Through an alias, its session is renamed. An
        alias never opens a later session that is created under the same key.

        Raises ``SessionGone`` when ``old`` is not alive, ``KeyTaken`` when ``new`` is, if only
        as an alias.
        """

    @abstractmethod
    def destroy(self, key: str) -> bool:
        """Remove the session and its aliases. True for exactly one caller, ever.

        A session that is due is claimed by either ``destroy`` or ``purge``. Through an alias that
        has ended, by ``clock.now()``, it is False.
        """

    def exists(self, key: str, now: float) -> bool:
        """Whether ``load`` would find it."""
        return self.load(key, now) is not None

    @abstractmethod
    def next_deadline(self) -> float | None:
        """The earliest deadline of all, or None when nothing is due ever."""

    @abstractmethod
    def purge(self, now: float, limit: int) -> list[Record]:
        """Remove up to ``limit`` sessions that are due and return them.

        Each due session is returned to exactly one caller, in any process: that one announces it.
        Fewer than ``limit`` means that no more are due.
        """

    def close(self) -> None:  # noqa: B027  (a provider that holds nothing has nothing to close)
        """Write out what is held back and let go of files and connections. Harmless twice."""


class Lists(ABC):
    """The ability to enumerate sessions."""

    @abstractmethod
    def keys(self, now: float) -> Iterable[str]:
        """The keys of all live sessions, in no order. Sessions made meanwhile may be missing."""

    @abstractmethod
    def count(self, now: float) -> int:
        """How many sessions are stored. Those due but not yet purged may be counted."""


class Users(ABC):
    """The ability to find a user's sessions."""

    @abstractmethod
    def keys_of(self, user: str, now: float) -> Iterable[str]:
        """The keys of all live sessions whose ``Record.user`` is ``user``."""


class Locks(ABC):
    """The ability to let one request work on a session while others wait."""

    @abstractmethod
    def lock(self, key: str, timeout: float, lease: float) -> AbstractContextManager[None]:
        """Hold the lock of ``key`` within a ``with`` block.

        Waits up to ``timeout`` seconds, then raises ``TimeoutError``. A holder that died, or that
        takes longer than ``lease`` seconds, loses it.
        """


class Remote(ABC):
    """The ability to be away: a backend across a network, whose every call is a ``breaker.call``.

    A request then spends at most the breaker's budget on storage; what could not be destroyed
    while the backend was away is destroyed before any request is let through again.
    """

    breaker: Breaker


class Reports(ABC):
    """The ability to tell about itself, for ``flask sessions stats``."""

    @abstractmethod
    def stats(self) -> dict[str, int | float | str]:
        """Names and numbers, no keys and no values."""


class Checks(ABC):
    """The ability to find damage, for ``flask sessions check``."""

    @abstractmethod
    def check(self) -> list[str]:
        """What is wrong and where, one sentence each. Changes nothing; others may go on working.

        A session is named by the beginning of its key.
        """


class Compacts(ABC):
    """The ability to give back the space of what is gone, for ``flask sessions compact``."""

    @abstractmethod
    def compact(self) -> bool:
        """Do it now, while others go on working. False when another worker is doing it."""
