"""The packages whose own tests are run. To add one: an entry here, its pins in requirements.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Suite(NamedTuple):
    """The tests of a package, in the version that is installed. They are in its ``tests``.

    ``arguments`` go to pytest, which loads no plugin by itself.
    ``settings`` are given to each app beside the provider's, only where the tests need them.
    ``differing`` is test -> why it rightly passes without this extension only. It must be true.
    """

    package: str
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    differing: Mapping[str, str] = {}


_ALL = [
    # Flask's cookie is signed, and sent with each response if it is permanent.
    Suite("Flask", settings={"SESSION_SIGN_COOKIE": True, "SESSION_TOUCH_EVERY": 0}),
    # Its tests make errors of warnings, and it calls what Python 3.12 warns of.
    Suite("Flask-Login", arguments=("-W", "ignore:datetime.datetime.utcnow:DeprecationWarning")),
    Suite("Flask-Dance", arguments=("-p", "pytest_mock", "-p", "flask_dance.fixtures.pytest")),
    Suite("Flask-OIDC"),
]

SUITES = {suite.package: suite for suite in _ALL}
