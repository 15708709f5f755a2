"""Tests that ``test_uwsgi`` runs in a worker of uWSGI: there alone is its cache."""

from __future__ import annotations

from typing import Any

import cachelib
import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable
from flask_hybridsession.core.provider import Provider, Remote
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import ProviderSuite, create, load

NOW = 1_700_000_000.0


def made(**options: Any) -> CachelibProvider:
    return CachelibProvider.from_settings(Settings(options={"type": "UWSGICache", **options}))


class TestUWSGICache(ProviderSuite):
    shared = "process"

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return CachelibProvider(cachelib.UWSGICache(cache="sessions"), f"{self.path}:"[-80:])


def test_a_full_cache_is_a_failure_not_a_loss() -> None:
    provider = made(cache="small")
    keys = [create(provider, NOW, {"a": b"1"}) for _ in range(9)]
    with pytest.raises(ProviderUnavailable, match="it is full"):
        create(provider, NOW)
    for key in keys:
        assert load(provider, key, NOW).values == {"a": b"1"}
        provider.commit(key, Change(puts={"a": b"2"}), NOW)
    with pytest.raises(ProviderUnavailable):  # there is no room for the mark
        provider.destroy(keys[0])
    assert provider.exists(keys[0], NOW)


def test_a_session_larger_than_a_block_stays_as_it_was() -> None:
    provider = made(cache="blocks")
    key = create(provider, NOW, {"a": b"1"})
    with pytest.raises(ProviderUnavailable, match="larger than its blocksize"):
        provider.commit(key, Change(puts={"b": bytes(70_000)}), NOW)
    assert load(provider, key, NOW).values == {"a": b"1"}


def test_it_talks_to_no_server() -> None:
    assert not isinstance(made(cache="sessions"), Remote)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "nowhere"}, "no cache 'nowhere'.*--cache2"),
        ({"cache": "sessions@127.0.0.1:3031"}, "without @"),
        ({"cache": "evicts"}, "throws sessions away.*purge_lru"),
        ({"cash": "sessions"}, "know cash.*cache"),
        ({"cache": "sessions", "budget": 1}, "remove budget"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(**options)
