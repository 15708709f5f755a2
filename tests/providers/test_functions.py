from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import (
    ConfigError,
    CorruptData,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.core.ids import user_token
from flask_hybridsession.core.provider import Lists, Locks, Promise, Provider, Users
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers import functions
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.testing import ProviderSuite, create, load, new_key

NOW = 1_700_000_000.0

#: What the docstring says of the threads of one process.
OF_ONE_PROCESS = frozenset({Promise.FINAL, Promise.CONDITIONAL, Promise.DESTROY_ONCE})
#: And of sessions that the process remembers.
OF_ITS_MEMORY = OF_ONE_PROCESS | {Promise.PURGE}


def promising(provider: FunctionsProvider, promises: frozenset[Promise]) -> FunctionsProvider:
    provider.promises = promises  # type: ignore[misc]
    return provider


class Table:
    """What an app may keep: rows of a dict, and a note of who asked for what."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[bytes, float | None, Any]] = {}
        self.calls: list[str] = []

    def load(self, key: str) -> bytes | None:
        self.calls.append("load")
        return self.rows[key][0] if key in self.rows else None

    def save(self, key: str, data: bytes, deadline: float | None, user_id: Any) -> None:
        self.calls.append("save")
        self.rows[key] = data, deadline, user_id

    def delete(self, key: str) -> None:
        self.calls.append("delete")
        self.rows.pop(key, None)

    def user_sessions(self, user_id: Any) -> list[str]:
        owners = [(key, owner) for key, (_, _, owner) in list(self.rows.items())]
        return [key for key, owner in owners if owner == user_id]

    def functions(self, *names: str) -> dict[str, Callable[..., Any]]:
        return {name: getattr(self, name) for name in names}


#: A test need not wait for the disk.
UNSYNCED = 'db.execute("PRAGMA synchronous = OFF")'

ALL = ("load", "save", "delete", "user_sessions")


# The contract


class TestDocumentedExample(ProviderSuite):
    """sqlite3, as the docstring of the module has it."""

    shared = "process"
    rounds = 15

    def make_provider(self) -> Provider:
        return FunctionsProvider.from_settings(Settings(options=self.example()["SESSION_OPTIONS"]))

    def open_again(self) -> Provider:
        return self.make_provider()

    def example(self) -> dict[str, Any]:
        assert functions.__doc__ is not None
        code = textwrap.dedent(functions.__doc__.partition("\n\n")[2])
        assert "app.db" in code
        app = SimpleNamespace(config={})
        self.names: dict[str, Any] = {"app": app, "time": time}
        code = code.replace('"app.db"', f'"{self.path}/app.db", timeout=60')
        code = code.replace("        return db.", f"        {UNSYNCED}\n        return db.")
        assert UNSYNCED in code
        exec(code, self.names)
        return app.config

    def test_its_cleanup(self, provider: Provider) -> None:
        now = time.time()
        keys = [create(provider, now - 60, deadline=now + n) for n in (-1, 60)]
        keys.append(create(provider, now - 60))
        self.names["cleanup"]()
        assert self.names["run"]("SELECT count(*) FROM sessions") == [(2,)]
        assert [provider.exists(key, now - 60) for key in keys] == [False, True, True]


class OfATable(ProviderSuite):
    names = ALL
    promises = OF_ONE_PROCESS

    def make_provider(self) -> Provider:
        return promising(FunctionsProvider(**Table().functions(*self.names)), self.promises)


class TestAllFunctions(OfATable):
    pass


class TestWithoutUserSessions(OfATable):
    names = ("load", "save", "delete")


class TestWithoutDelete(OfATable):
    names = ("load", "save", "user_sessions")


class TestWithoutLoad(OfATable):
    names = ("save", "delete", "user_sessions")
    promises = OF_ITS_MEMORY


class TestWithoutSave(OfATable):
    names = ("load", "delete")
    promises = OF_ITS_MEMORY


class TestLoadAlone(OfATable):
    names = ("load",)
    promises = OF_ITS_MEMORY


class TestSaveAlone(OfATable):
    names = ("save",)
    promises = OF_ITS_MEMORY


class TestNoFunctions(OfATable):
    names = ()
    promises = OF_ITS_MEMORY


# What the functions are given


def test_what_is_saved() -> None:
    table = Table()
    provider = FunctionsProvider(**table.functions(*ALL))
    key = create(provider, NOW, {"a": b"1"}, deadline=NOW + 60.5)
    data, deadline, user_id = table.rows[key]
    assert type(data) is bytes
    assert (deadline, user_id) == (NOW + 60.5, None)
    assert load(FunctionsProvider(**table.functions(*ALL)), key, NOW).values == {"a": b"1"}
    provider.commit(key, Change(deadline=inf), NOW)
    assert table.rows[key][1] is None


@pytest.mark.parametrize("user_id", ["ann", "1", 1, -5, 2**70, UUID(int=7), ""])
def test_users_are_who_the_app_knows(user_id: Any) -> None:
    table = Table()
    provider = FunctionsProvider(**table.functions(*ALL))
    key = create(provider, NOW, user=user_token(user_id))
    known = table.rows[key][2]
    assert known == user_id
    assert type(known) is type(user_id)
    assert isinstance(provider, Users)
    assert list(provider.keys_of(user_token(user_id), NOW)) == [key]


def test_what_user_sessions_returns_is_checked() -> None:
    table = Table()
    keys = [new_key()]
    provider = FunctionsProvider(table.load, table.save, table.delete, lambda user_id: iter(keys))
    assert isinstance(provider, Users)
    ann, bob = create(provider, NOW, user="s:ann"), create(provider, NOW, user="s:bob")
    expired = create(provider, NOW - 9, user="s:ann", deadline=NOW)
    keys += [bob, ann, expired, ann]
    assert list(provider.keys_of("s:ann", NOW)) == [ann]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_load_may_return_any_bytes(kind: type) -> None:
    table = Table()
    provider = FunctionsProvider(lambda key: kind(table.rows[key][0]), table.save)
    key = new_key()
    table.rows[key] = b"", None, None
    with pytest.raises(CorruptData):
        provider.load(key, NOW)
    other = FunctionsProvider(**table.functions(*ALL))
    key = create(other, NOW, {"a": b"1"})
    assert load(provider, key, NOW).values == {"a": b"1"}


def test_nothing_is_kept_here_with_load_and_save() -> None:
    table = Table()
    provider = FunctionsProvider(**table.functions("load", "save"))
    key = create(provider, NOW, deadline=NOW + 60)
    table.rows.clear()
    assert not provider.exists(key, NOW)
    assert provider.next_deadline() is None
    assert provider.purge(NOW + 99, 10) == []


def test_load_is_asked_for_what_is_not_remembered() -> None:
    table = Table()
    of_another = FunctionsProvider(**table.functions(*ALL))
    key, other = create(of_another, NOW, {"a": b"1"}), create(of_another, NOW)
    before = dict(table.rows)
    provider = FunctionsProvider(load=table.load)
    provider.commit(key, Change(puts={"a": b"2"}), NOW)
    assert load(provider, key, NOW).values == {"a": b"2"}
    assert provider.destroy(other)
    assert not provider.exists(other, NOW)
    assert not provider.destroy(other)
    assert table.rows == before


def test_save_and_delete_are_told_of_what_is_remembered() -> None:
    table = Table()
    provider = FunctionsProvider(**table.functions("save", "delete"))
    key = create(provider, NOW, deadline=NOW + 60, user="i:7")
    assert table.rows[key][1:] == (NOW + 60, 7)
    new = new_key()
    provider.rename(key, new, NOW)
    assert list(table.rows) == [new]
    assert provider.destroy(new)
    assert table.rows == {}
    create(provider, NOW, deadline=NOW + 60)
    assert len(provider.purge(NOW + 60, 10)) == 1
    assert table.rows == {}


def test_without_delete_the_dead_are_saved() -> None:
    table = Table()
    one, other = (FunctionsProvider(**table.functions("load", "save")) for _ in range(2))
    key = create(one, NOW, {"a": b"1"}, deadline=NOW + 60, user="s:ann")
    assert one.destroy(key)
    assert table.rows[key][1:] == (NOW + 60, None)
    assert not other.exists(key, NOW)
    with pytest.raises(SessionGone):
        other.commit(key, Change(), NOW)


# Errors


class Broken(Exception):
    pass


def fail(*args: object) -> Any:
    raise Broken("a secret")


@pytest.mark.parametrize("name", ALL)
def test_what_a_function_raises(name: str) -> None:
    table = Table()
    healthy = FunctionsProvider(**table.functions(*ALL))
    key = create(healthy, NOW, {"a": b"1"}, user="s:ann")
    before = dict(table.rows)
    provider = FunctionsProvider(**{**table.functions(*ALL), name: fail})
    assert isinstance(provider, Users)
    calls: dict[str, list[Callable[[], object]]] = {
        "load": [
            lambda: provider.load(key, NOW),
            lambda: provider.exists(key, NOW),
            lambda: provider.commit(key, Change(puts={"a": b"2"}), NOW),
            lambda: provider.commit(new_key(), Change(create=True), NOW),
            lambda: provider.rename(key, new_key(), NOW),
            lambda: provider.destroy(key),
        ],
        "save": [
            lambda: provider.commit(key, Change(puts={"a": b"2"}), NOW),
            lambda: provider.commit(new_key(), Change(create=True), NOW),
            lambda: provider.rename(key, new_key(), NOW),
        ],
        "delete": [lambda: provider.destroy(key)],
        "user_sessions": [lambda: provider.keys_of("s:ann", NOW)],
    }
    for call in calls[name]:
        with pytest.raises(ProviderUnavailable) as error:
            call()
        assert isinstance(error.value.__cause__, Broken)
        assert "secret" not in str(error.value)
        assert table.rows == before


def test_a_rename_that_fails_half_way_keeps_the_session() -> None:
    table = Table()
    provider = FunctionsProvider(table.load, table.save, fail)
    key = create(provider, NOW, {"a": b"1"})
    with pytest.raises(ProviderUnavailable):
        provider.rename(key, new_key(), NOW)
    assert load(provider, key, NOW).values == {"a": b"1"}


def test_what_failed_to_be_saved_is_not_remembered() -> None:
    provider = FunctionsProvider(save=fail)
    key = new_key()
    with pytest.raises(ProviderUnavailable):
        create(provider, NOW, key=key)
    assert not provider.exists(key, NOW)


def test_a_purge_that_fails_half_way() -> None:
    table = Table()
    answers = [None, Broken(), Broken(), None]

    def delete(key: str) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    provider = FunctionsProvider(save=table.save, delete=delete)
    keys = [create(provider, NOW, deadline=NOW + n) for n in (1, 2)]
    assert [record.key for record in provider.purge(NOW + 9, 10)] == keys[:1]
    with pytest.raises(ProviderUnavailable):
        provider.purge(NOW + 9, 10)
    assert [record.key for record in provider.purge(NOW + 9, 10)] == keys[1:]
    assert provider.purge(NOW + 9, 10) == []


@pytest.mark.parametrize("returned", ["text", 7, [b"x"], True, b"", b"anything", b"\x80\x04."])
def test_load_returns_something_else(returned: Any) -> None:
    table = Table()
    provider = FunctionsProvider(lambda key: returned, table.save, table.delete)
    key = new_key()
    with pytest.raises(CorruptData):
        provider.load(key, NOW)
    with pytest.raises(CorruptData):
        provider.commit(key, Change(), NOW)
    assert provider.destroy(key)
    assert table.calls == ["delete"]


def test_one_session_under_another_key() -> None:
    table = Table()
    provider = FunctionsProvider(**table.functions(*ALL))
    ann, bob = create(provider, NOW, user="s:ann"), create(provider, NOW, user="s:bob")
    table.rows[bob] = table.rows[ann]
    with pytest.raises(CorruptData):
        provider.load(bob, NOW)


@pytest.mark.parametrize("name", [*ALL, "load_user"])
def test_what_is_not_a_function(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a function"):
        FunctionsProvider(**{name: "SELECT"})


# Abilities


def test_what_it_declares() -> None:
    assert FunctionsProvider.promises == frozenset()
    plain, with_users = FunctionsProvider(), FunctionsProvider(user_sessions=Table().user_sessions)
    for provider in plain, with_users:
        assert isinstance(provider, FunctionsProvider)
        assert not isinstance(provider, (Lists, Locks))
    assert not isinstance(plain, Users)
    assert isinstance(with_users, Users)


def test_load_user() -> None:
    assert FunctionsProvider().load_user is None
    assert FunctionsProvider(load_user=str.upper).load_user is str.upper


def test_two_apps_share_nothing_by_accident() -> None:
    key = create(FunctionsProvider(), NOW)
    assert not FunctionsProvider().exists(key, NOW)
