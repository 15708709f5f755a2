"""``flask sessions ...``: what an operator types."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from .core.provider import Checks, Compacts, Reports

sessions_cli = AppGroup("sessions", help="Look after the server-side sessions.")


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
