from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.testing import ProviderSuite


class TestMemory(ProviderSuite):
    def make_provider(self) -> Provider:
        return MemoryProvider()
