"""What the tests of the redis provider share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from flask_hybridsession.core import ids
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.provider import Provider

NOW = 1_000_000.0
#: Seconds that nobody waits in a test that passes.
PATIENCE = 30.0
#: A budget that a busy machine keeps.
BUDGET = 20.0


def new_prefix() -> str:
    """Names of a test's own: the servers are shared."""
    return f"{uuid.uuid4().hex}:"


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited {PATIENCE} s for {what}"
        time.sleep(0.01)


def key(name: object = "") -> str:
    return ids.key_of(repr(name))


def create(provider: Provider, name: object = "", now: float = NOW, **options: Any) -> str:
    made = key(name)
    options.setdefault("deadline", now + 1000)
    provider.commit(made, Change(options.pop("puts", {"a": b"1"}), create=True, **options), now)
    return made
