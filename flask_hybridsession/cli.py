"""``flask sessions ...``: what an operator types."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

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


def _sessions() -> Any:
    return current_app.extensions["hybridsession"]
