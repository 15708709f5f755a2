from __future__ import annotations

from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.testing import ProviderSuite


class HybridSuite(ProviderSuite):
    shared = "process"
    durability: str

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return HybridProvider(
            self.path / "sessions", durability=self.durability, sync_interval=0.05
        )


class TestHybridNever(HybridSuite):
    durability = "never"


class TestHybridInterval(HybridSuite):
    durability = "interval"


class TestHybridAlways(HybridSuite):
    durability = "always"
    rounds = 20
