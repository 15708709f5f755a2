"""The packages whose own tests are run. To add one: an entry here, its pins in requirements.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Suite(NamedTuple):
    """The tests of a package, in the version that is installed. They are in its ``tests``.

    ``plugins`` are those of pytest that the tests need: none is loaded by itself.
    ``settings`` are given to each app beside the provider's, only where the tests need them.
    ``differing`` is test -> why it rightly passes without this extension only. It must be true.
    """

    package: str
    plugins: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    differing: Mapping[str, str] = {}


_ALL = [
    # Flask's cookie is signed, and sent with each response if it is permanent.
    Suite("Flask", settings={"SESSION_SIGN_COOKIE": True, "SESSION_TOUCH_EVERY": 0}),
    Suite("Flask-Login"),
    Suite("Flask-Dance", plugins=("pytest_mock", "flask_dance.fixtures.pytest")),
    Suite("Flask-OIDC"),
]

SUITES = {suite.package: suite for suite in _ALL}
