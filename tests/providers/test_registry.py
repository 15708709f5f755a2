from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import ConfigError
from flask_hybridsession.core.ids import key_of
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers import registry
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.registry import make_provider, register_provider


class Plain(Provider):
    """The least that a provider can be."""

    def load(self, key: str, now: float) -> Record | None:
        return None

    def commit(self, key: str, change: Change, now: float) -> None: ...

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None: ...

    def destroy(self, key: str) -> bool:
        return False

    def next_deadline(self) -> float | None:
        return None

    def purge(self, now: float, limit: int) -> list[Record]:
        return []


class WithOptions(Plain):
    def __init__(self, size: int, *, color: str = "red") -> None:
        self.size, self.color = size, color


class FromSettings(Plain):
    def __init__(self, directory: str, size: int = 1) -> None:
        self.directory, self.size = directory, size

    @classmethod
    def from_settings(cls, settings: Settings) -> FromSettings:
        return cls(settings.directory, **settings.options)


class BrokenInside(Plain):
    def __init__(self, size: int = 1) -> None:
        len(size)  # type: ignore[arg-type]


class CallsWrongly(Plain):
    def __init__(self) -> None:
        WithOptions(nonsense=1)  # type: ignore[call-arg]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


def made(name: Any, **options: Any) -> Any:
    return make_provider(Settings(type=name, options=options))


# By name


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_the_built_in_ones(name: str, tmp_path: Path) -> None:
    options = {"cachelib": {"type": "SimpleCache"}, "tiered": {"authority": "memory"}}.get(name, {})
    settings = Settings(
        type=name,
        options=options,
        directory=str(tmp_path / "sessions"),
        redis="redis://127.0.0.1:1",
        sqlalchemy=f"sqlite:///{tmp_path}/sessions.db",
    )
    one, other = make_provider(settings), make_provider(settings)
    try:
        assert type(one).__module__.startswith(f"flask_hybridsession.providers.{name}")
        assert type(one).__name__ == f"{name.title()}Provider"
        assert one is not other
    finally:
        one.close()
        other.close()


def test_nothing_is_imported_before_it_is_used() -> None:
    code = """
import sys
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.registry import make_provider
make_provider(Settings(type="memory"))
drivers = {"cachelib", "lmdb", "pymemcache", "redis", "sqlalchemy"}
print(sorted(drivers & set(sys.modules)))
"""
    path = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", without_the_package(code)],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout == "[]\n"


def without_the_package(code: str) -> str:
    """The code, in a process that imports parts of the package without its ``__init__``."""
    return f"""
import sys, types
package = types.ModuleType("flask_hybridsession")
package.__path__ = ["flask_hybridsession"]
sys.modules["flask_hybridsession"] = package
{code}"""


def test_two_apps_in_one_process() -> None:
    one, other = made("memory"), made("memory", max_sessions=5)
    key = key_of("a sid")
    one.commit(key, Change(create=True), 1.0)
    assert one.exists(key, 1.0)
    assert not other.exists(key, 1.0)
    assert one._max != other._max


def test_an_instance_is_taken_as_it_is() -> None:
    provider = Plain()
    assert made(provider) is provider


@pytest.mark.parametrize("wrong", [7, object(), Plain, b"memory"])
def test_what_is_neither_a_name_nor_a_provider(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="SESSION_TYPE must be the name of a provider"):
        made(wrong)


def test_an_unknown_name_lists_the_known() -> None:
    register_provider("mine", Plain)
    with pytest.raises(ConfigError) as error:
        made("nonsense")
    said = str(error.value)
    assert "'nonsense'" in said
    known = sorted({*registry.BUILT_IN, "mine"})
    assert said.endswith(f"{', '.join(known)}.")
    assert "Did you mean" not in said


@pytest.mark.parametrize(
    ("name", "meant"), [("memry", "memory"), ("Hybrid", "hybrid"), ("cachlib", "cachelib")]
)
def test_a_typing_error(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
        made(name)


# Registered


def test_register() -> None:
    assert register_provider("mine", Plain) is Plain
    assert type(made("mine")) is Plain
    register_provider("mine", Plain)
    register_provider("other", Plain)


def test_register_as_a_decorator() -> None:
    @register_provider("mine")
    class Mine(Plain):
        pass

    assert type(made("mine")) is Mine
    assert Mine.__name__ == "Mine"


def test_a_taken_name() -> None:
    register_provider("mine", Plain)
    with pytest.raises(ConfigError, match="another provider 'mine'"):
        register_provider("mine", WithOptions)
    assert type(made("mine")) is Plain


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_built_in_name_is_taken(name: str) -> None:
    with pytest.raises(ConfigError, match=f"another provider '{name}'"):
        register_provider(name, Plain)


def test_a_built_in_class_may_be_registered_again() -> None:
    register_provider("memory", MemoryProvider)
    register_provider("functions", FunctionsProvider)
    register_provider("ram", MemoryProvider)
    assert type(made("ram")) is MemoryProvider


@pytest.mark.parametrize("wrong", [object, int, lambda: Plain(), Plain(), "module:Class"])
def test_only_providers_are_registered(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="not a subclass of Provider"):
        register_provider("mine", wrong)


@pytest.mark.parametrize("wrong", ["", None, 7])
def test_only_names_are_registered(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        register_provider(wrong, Plain)


# Of installed packages


class Site:
    """A folder of installed packages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, package: str, entry_points: dict[str, str], code: str) -> None:
        self.path.joinpath(f"{package}.py").write_text(code)
        info = self.path / f"{package}-1.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        text = "\n".join([f"[{registry.GROUP}]", *lines, ""])
        info.joinpath("entry_points.txt").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


THIRD = """
from flask_hybridsession.providers.memory import MemoryProvider
class Third(MemoryProvider):
    pass
"""


def test_an_entry_point(site: Site) -> None:
    site.install("third_party", {"third": "third_party:Third"}, THIRD)
    provider = made("third", max_sessions=3)
    assert type(provider).__name__ == "Third"
    with pytest.raises(ConfigError, match=r"memory, .*third"):
        made("nonsense")
    with pytest.raises(ConfigError, match="Did you mean 'third'"):
        made("thrid")


def test_an_entry_point_takes_its_name(site: Site) -> None:
    site.install("third_party", {"third": "third_party:Third"}, THIRD)
    with pytest.raises(ConfigError, match="another provider 'third'"):
        register_provider("third", Plain)


def test_an_entry_point_and_its_own_registration(site: Site) -> None:
    code = THIRD + (
        "from flask_hybridsession.providers.registry import register_provider\n"
        "register_provider('third', Third)\n"
    )
    site.install("third_party", {"third": "third_party:Third"}, code)
    assert type(made("third")).__name__ == "Third"
    assert type(made("third")).__name__ == "Third"


def test_an_entry_point_never_takes_a_built_in_name(site: Site) -> None:
    site.install("third_party", {"memory": "third_party:Third"}, THIRD)
    assert type(made("memory")) is MemoryProvider


def test_two_packages_with_one_name(site: Site) -> None:
    site.install("third_party", {"third": "third_party:Third"}, THIRD)
    site.install("fourth_party", {"third": "fourth_party:Third"}, THIRD)
    with pytest.raises(ConfigError, match="fourth_party:Third, third_party:Third"):
        made("third")


def test_an_entry_point_to_something_else(site: Site) -> None:
    site.install("third_party", {"third": "third_party:Third"}, "Third = dict")
    with pytest.raises(ConfigError, match="not a subclass of Provider"):
        made("third")


# Drivers


@pytest.mark.parametrize(
    ("driver", "extra", "options"),
    [
        ("redis", "redis", {"type": "RedisCache"}),
        ("pymemcache", "memcached", {"type": "MemcachedCache"}),
    ],
)
def test_a_missing_driver(
    monkeypatch: pytest.MonkeyPatch, driver: str, extra: str, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigError) as error:
        made("cachelib", **options)
    assert f'pip install "flask-hybridsession[{extra}]"' in str(error.value)
    assert isinstance(error.value.__cause__, ImportError)


@pytest.mark.parametrize("missing", ["redis.retry", "redis.backoff", "somewhere"])
def test_what_else_is_missing_is_said_as_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code = f"import {missing}\n{THIRD}"
    site.install("third_party", {"third": "third_party:Third"}, code)
    with pytest.raises(ModuleNotFoundError, match=missing) as error:
        made("third")
    assert error.value.name == missing


def test_a_package_without_its_class(site: Site) -> None:
    site.install("third_party", {"third": "third_party:Third"}, "from json import nothing")
    with pytest.raises(ImportError, match="nothing"):
        made("third")


# Options


def test_options_are_the_parameters() -> None:
    register_provider("mine", WithOptions)
    provider = made("mine", size=3, color="blue")
    assert (provider.size, provider.color) == (3, "blue")


def test_a_class_may_read_the_settings() -> None:
    register_provider("mine", FromSettings)
    provider: Any = make_provider(Settings(type="mine", directory="d", options={"size": 2}))
    assert (provider.directory, provider.size) == ("d", 2)


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (WithOptions, {}, "takes: size, color"),
        (WithOptions, {"size": 1, "colour": "secret"}, "'colour'.*takes: size, color"),
        (FromSettings, {"sise": 1}, "'sise'.*takes: directory, size"),
        (FromSettings, {"directory": "x"}, "'directory'.*takes: directory, size"),
        (Plain, {"size": 1}, "takes: none"),
        (MemoryProvider, {"max": 1}, "'max'.*takes: max_sessions"),
        (
            FunctionsProvider,
            {"store": 1},
            "'store'.*takes: load, save, delete, user_sessions, load_",
        ),
    ],
)
def test_options_that_do_not_fit(cls: type[Provider], options: dict[str, Any], said: str) -> None:
    register_provider("mine", cls)
    with pytest.raises(ConfigError, match=said) as error:
        made("mine", **options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("cls", "said"), [(BrokenInside, "no len"), (CallsWrongly, "nonsense")])
def test_errors_of_the_constructor_are_its_own(cls: type[Provider], said: str) -> None:
    register_provider("mine", cls)
    with pytest.raises(TypeError, match=said):
        made("mine")


def test_a_class_that_is_not_finished_says_so() -> None:
    class Unfinished(Plain):
        load = Provider.load

    register_provider("mine", Unfinished)
    with pytest.raises(TypeError, match="abstract"):
        made("mine")


def test_what_a_provider_refuses_is_said_as_it_is() -> None:
    with pytest.raises(ConfigError, match="max_sessions must be"):
        made("memory", max_sessions=0)
