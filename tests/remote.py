"""A provider across a network that a test can break, without a network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from flask_hybridsession import ProviderUnavailable
from flask_hybridsession.core.breaker import Breaker
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.provider import Remote
from flask_hybridsession.providers.memory import MemoryProvider

T = TypeVar("T")

ALL = frozenset({"load", "commit", "rename", "destroy", "keys_of", "purge", "ping", "lock"})


class RemoteProvider(MemoryProvider, Remote):
    """Sessions in memory, reached over a line of which a test says what gets through."""

    def __init__(self, budget: float = 0.25, rest: float = 0.02) -> None:
        super().__init__()
        self.breaker = Breaker(self._ping, budget=budget, rest=rest)
        #: The calls that are refused.
        self.away: frozenset[str] = frozenset()
        #: The calls that get no answer: they take all the time that they are given.
        self.frozen: frozenset[str] = frozenset()
        #: The calls that are done, and whose answer is lost.
        self.deaf: frozenset[str] = frozenset()
        #: The calls to which the backend says no, as one that may not write at present.
        self.refused: frozenset[str] = frozenset()
        #: What reached the backend, in order.
        self.calls: list[str] = []
        #: Who calls: a probe must not be paid for by a request.
        self.probed_by: set[threading.Thread] = set()

    def load(self, key: str, now: float) -> Record | None:
        return self._ask("load", lambda: super(RemoteProvider, self).load(key, now))

    def commit(self, key: str, change: Change, now: float) -> None:
        self._ask("commit", lambda: super(RemoteProvider, self).commit(key, change, now))

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        rename = super().rename
        self._ask("rename", lambda: rename(old, new, now, alias_until))

    def destroy(self, key: str) -> bool:
        return self._ask("destroy", lambda: super(RemoteProvider, self).destroy(key))

    def purge(self, now: float, limit: int) -> list[Record]:
        return self._ask("purge", lambda: super(RemoteProvider, self).purge(now, limit))

    def keys_of(self, user: str, now: float) -> list[str]:
        return self._ask("keys_of", lambda: super(RemoteProvider, self).keys_of(user, now))

    def lock(self, key: str, timeout: float, lease: float) -> AbstractContextManager[None]:
        return self._ask("lock", lambda: super(RemoteProvider, self).lock(key, timeout, lease))

    def close(self) -> None:
        self.breaker.close()

    def take_down(self, *calls: str) -> None:
        """Refuse these calls, or all."""
        self.away = frozenset(calls) or ALL

    def bring_back(self) -> None:
        self.away = self.frozen = self.deaf = self.refused = frozenset()

    def new_calls(self) -> list[str]:
        """The calls since this was last asked, but for the sweeps of the clockwork."""
        calls, self.calls = self.calls, []
        return [call for call in calls if call != "purge"]

    def _ping(self, seconds: float) -> None:
        self.probed_by.add(threading.current_thread())
        self._reach("ping", seconds)

    def _ask(self, call: str, work: Callable[[], T]) -> T:
        def ask(seconds: float) -> T:
            self._reach(call, seconds)
            result = work()
            if call in self.deaf:
                raise ProviderUnavailable(f"the answer to {call} was lost")
            return result

        if call in self.refused:
            self.breaker.call(lambda seconds: None)
            raise ProviderUnavailable(f"{call} was answered with a no")
        return self.breaker.call(ask)

    def _reach(self, call: str, seconds: float) -> None:
        if call in self.frozen:
            time.sleep(seconds)
            raise ProviderUnavailable(f"no answer to {call} in time")
        if call in self.away:
            raise ProviderUnavailable(f"{call} was refused")
        self.calls.append(call)


def until(condition: Callable[[], object], what: str = "it to happen") -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, f"waited 30 s for {what}"
        time.sleep(0.005)


def raises_all(calls: Iterable[Callable[[], object]]) -> None:
    """Each of them says that the provider is unavailable."""
    for call in calls:
        try:
            call()
        except ProviderUnavailable:
            continue
        raise AssertionError("it did not raise")
