"""Any calls in any order on four handles: see ``tests.model``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from flask_hybridsession.core import mirror
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.tiered import TieredProvider

from .model import Handle, InProcess, InThread, StoreMachine, WorkersMachine, machine_case


class Memory(StoreMachine):
    """One object, used by four threads in turn."""

    def open_handles(self) -> list[Handle]:
        provider = MemoryProvider()
        return [InThread(lambda: provider) for _ in range(4)]


def check(provider: Any) -> None:
    provider._check()


class Hybrid(WorkersMachine):
    """Two objects in this process, which share a store, and two other processes."""

    def open_handles(self) -> list[Handle]:
        open_ = partial(HybridProvider, self.path / "sessions", sync_interval=0.05)
        return [
            Handle(partial(open_, durability="never")),
            InThread(partial(open_, durability="interval")),
            InProcess(partial(open_, durability="always")),
            InProcess(partial(open_, durability="interval")),
        ]

    def check_store(self, handle: Handle) -> None:
        handle.do(self.now, check)

    @rule(lost=st.sampled_from(["nothing", "image", "image and words"]))
    def all_restart(self, lost: str) -> None:
        """Without the image the log must tell all."""
        for handle in self.handles:
            handle.close()
        if lost != "nothing":
            (self.path / "sessions" / "image").unlink()
        if lost == "image and words":
            (self.path / "sessions" / "sync").unlink()
        for handle in self.handles:
            handle.reopen()


class Tiered(StoreMachine):
    """Threads and processes, on an authority with two others. Nothing is behind after a step."""

    def open_handles(self) -> list[Handle]:
        open_ = partial(open_tiered, self.path)
        return [Handle(open_), InThread(open_), InProcess(open_), InProcess(open_)]

    def check_store(self, handle: Handle) -> None:
        """The others hold what the authority holds, and nothing besides."""
        handle.do(self.now, check_followers, self.now)


def open_tiered(path: Path) -> TieredProvider:
    one, two, three = (HybridProvider(path / name, durability="never") for name in "123")
    return TieredProvider(one, two, three)


def check_followers(provider: Any, now: float) -> None:
    for follower in provider._followers:
        assert not follower.is_behind
        target = follower.target.provider
        assert set(target.keys(now)) - mirror.RESERVED == set(provider.keys(now))
        for key in provider.keys(now):
            assert mirror.same(target.load(key, now), provider.load(key, now))


TestMemory = machine_case(Memory, steps=2000)
TestHybrid = machine_case(Hybrid, steps=300)
TestTiered = machine_case(Tiered, steps=200)
