"""``flask sessions ...``: what an operator types."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any, Protocol, runtime_checkable

import click
from flask import current_app
from flask.cli import AppGroup

from .copying import Copy, Pass
from .core.errors import ConfigError, ProviderError
from .core.provider import Checks, Compacts, Provider, Reports
from .core.settings import KNOWN, Settings, read_settings
from .providers.registry import make_provider


class _Sessions(AppGroup):
    """An operator gets a sentence, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise _Unable(str(error)) from error
        except ProviderError as error:
            raise click.ClickException(str(error)) from error


sessions_cli = _Sessions("sessions", help="Look after the server-side sessions.")


@runtime_checkable
class HasTables(Protocol):
    """A provider whose tables are made by an operator, never by itself."""

    def create_tables(self) -> None:
        """Make those that are missing."""

    def ddl(self) -> str:
        """The statements that make them."""


@sessions_cli.command("init")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--type", "name", metavar="TYPE", help="Another provider than the app's, as sql.")
@click.option("--option", multiple=True, metavar="NAME=VALUE", help="An option of that provider.")
def init(only_print: bool, name: str | None, option: Sequence[str]) -> None:
    """Make the tables that the provider needs. Harmless when they are there.

    --type and --option are as for "flask sessions copy".
    """
    provider = _sessions().provider if name is None else _provider_of(name, option)
    tiers = [getattr(provider, "authority", provider), *getattr(provider, "others", ())]
    makers = [tier for tier in tiers if isinstance(tier, HasTables)]
    if not makers:
        raise _Unable(f"{type(provider).__name__} has nothing to make")
    for maker in makers:
        if only_print:
            click.echo(maker.ddl())
        else:
            maker.create_tables()
    if not only_print:
        click.echo("the tables are there")


@sessions_cli.command("purge")
def purge() -> None:
    """Destroy the sessions that are past their deadline."""
    count = _sessions().purge()
    click.echo(f"{count} expired session{'' if count == 1 else 's'} destroyed")


@sessions_cli.command("stats")
def stats() -> None:
    """Tell how many sessions there are, and how the provider is."""
    figures = _sessions().stats()
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:<{width}}  {value}")


@sessions_cli.command("check")
def check() -> None:
    """Look for damage; change nothing. Exit code 1 when there is some, 2 when it cannot look."""
    texts = _able(Checks, "check").check()
    for text in texts:
        click.echo(text)
    if texts:
        raise click.ClickException(f"{len(texts)} finding{'' if len(texts) == 1 else 's'}")
    click.echo("no damage found")


@sessions_cli.command("compact")
def compact() -> None:
    """Give back the space of sessions that are gone. The workers may go on meanwhile."""
    provider = _able(Compacts, "compact")
    before = _sizes(provider)
    if not provider.compact():
        raise click.ClickException("another worker is compacting: nothing was done")
    after = _sizes(provider)
    for name, size in before.items():
        click.echo(f"{name.removesuffix(_BYTES)}: {size} -> {after[name]} bytes")
    click.echo("compacted")


@sessions_cli.command("copy")
@click.option("--from", "source", required=True, metavar="TYPE", help="As for SESSION_TYPE.")
@click.option("--to", "target", required=True, metavar="TYPE", help="As for SESSION_TYPE.")
@click.option("--from-option", multiple=True, metavar="NAME=VALUE", help="An option of the source.")
@click.option("--to-option", multiple=True, metavar="NAME=VALUE", help="An option of the target.")
@click.option("--mirror", is_flag=True, help="Destroy what the target has and the source has not.")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C, then copy the last changes.")
def copy(
    source: str,
    target: str,
    from_option: Sequence[str],
    to_option: Sequence[str],
    mirror: bool,
    follow: bool,
) -> None:
    """Copy all sessions, while they are in use. If it is interrupted, start it again.

    Both providers take the app's settings. An option given here is one of the provider's own
    parameters, or a setting of the app to be different: --to-option SESSION_REDIS=redis://...

    Exit code 1 when the target is not equal to the source, 2 when it cannot be copied at all.
    """
    providers: list[Provider] = []
    try:
        for name, options in ((source, from_option), (target, to_option)):
            providers.append(_provider_of(name, options))
        work = Copy(*providers, mirror=mirror)
        work.begin()
        _copy(work, follow)
    except ProviderError as error:
        raise click.ClickException(f"{error}. Start the copy again to go on.") from error
    finally:
        for provider in providers:
            provider.close()


def _copy(work: Copy, follow: bool) -> None:
    for one in work.passes(_show_progress):
        _tell(one)
    if follow:
        _follow(work)
    last = work.run(_show_progress, check=True)
    _tell(last)
    for key in last.bad:
        click.echo(f"session {key[:12]}... cannot be read, or is not equal", err=True)
    if last.bad:
        raise click.ClickException(f"{len(last.bad)} of {last.sessions} sessions are not copied")
    work.end()
    click.echo(f"{last.sessions} session{'' if last.sessions == 1 else 's'}, all equal")


def _follow(work: Copy) -> None:
    """Pass after pass, until Ctrl-C or SIGTERM."""
    click.echo("following: Ctrl-C ends it with a last pass")
    over = Event()
    before = {
        number: signal.signal(number, lambda *_: over.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not over.wait(1.0):
            one = work.run(lambda number, keys, count: iter(keys))
            if one.changes:
                _tell(one)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(one: Pass) -> None:
    click.echo(
        f"pass {one.number}: {one.sessions} sessions, {one.written} written, "
        f"{one.destroyed} destroyed"
    )


def _show_progress(number: int, keys: Iterable[str], count: int) -> Iterator[str]:
    bar: Any = click.progressbar(keys, length=count, label=f"pass {number}", file=sys.stderr)
    with bar:
        yield from bar


def _provider_of(name: str, options: Sequence[str]) -> Provider:
    return make_provider(_settings_of(name, _read_options(options)))


def _settings_of(name: str, given: dict[str, Any]) -> Settings:
    """The app's own, with what was given: options of the provider, and ``SESSION_*`` settings."""
    app = current_app
    others = {option: value for option, value in given.items() if option.isupper()}
    for option in others.keys() - KNOWN:
        raise _Unable(f"{option} is not a setting; an option of a provider has small letters")
    options = {option: value for option, value in given.items() if option not in others}
    config = {**app.config, **others, "SESSION_TYPE": name}
    config["SESSION_OPTIONS"] = {**_own_options(name), **options}
    return read_settings(config, os.path.join(app.instance_path, "sessions"))


def _own_options(name: str) -> Mapping[str, Any]:
    """What the app gives to the provider of that name, be it one of several databases."""
    settings: Settings = _sessions()._manager().settings
    if settings.type == name:
        return settings.options
    if settings.type == "tiered":
        tiers = [settings.options.get("authority"), *settings.options.get("others", ())]
        for tier in tiers:
            if isinstance(tier, Mapping) and tier.get("type") == name:
                return {option: value for option, value in tier.items() if option != "type"}
    return {}


def _read_options(texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE``; what is JSON is taken as that, anything else is a text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise _Unable("an option is written as NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


_BYTES = "_bytes"


def _sizes(provider: Any) -> dict[str, Any]:
    if not isinstance(provider, Reports):
        return {}
    return {name: size for name, size in provider.stats().items() if name.endswith(_BYTES)}


class _Unable(click.ClickException):
    exit_code = 2


def _able(ability: type[Any], what: str) -> Any:
    provider = _sessions().provider
    if not isinstance(provider, ability):
        raise _Unable(f"{type(provider).__name__} has nothing to {what}")
    return provider


def _sessions() -> Any:
    return current_app.extensions["hybridsession"]
