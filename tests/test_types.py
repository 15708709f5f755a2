"""What a type checker says of code that uses the package: of the README's, and of mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import ROOT, programs

MISTAKES = """
from flask_hybridsession import HybridSession, session

session.login(1.5)  # no user id
session.increment(5)  # no name
session.lifetime = "long"  # no lifetime
session.user_id = 7  # only login says who it is
HybridSession().of_user(None)  # no user id
"""

RIGHT = """
from datetime import timedelta
from uuid import UUID

from flask_hybridsession import UNLIMITED, Handle, HybridSession, session


class User:
    def get_id(self) -> str:
        return "7"


session.login(1)
session.login("ada", exclusive=True)
session.login(UUID(int=7))
session.login(User())
session.logout(everywhere=True)
session.lifetime = timedelta(days=1)
session.lifetime = UNLIMITED
session["cart"] = ["tea"]
cart: list[str] = session.get("cart", [])
name: int | str | UUID | None = session.user_id
with session.exclusive() as mine:
    mine.increment("n")
handles: list[Handle] = HybridSession().of_user(User())
"""


def check(folder: Path) -> str:
    """What mypy says of the files there; nothing is well."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--hide-error-context",
            "--no-error-summary",
            ".",
        ],
        cwd=folder,
        env={**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/stubs'}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somewhere where nothing but the code under test is checked."""
    (tmp_path / "pyproject.toml").write_text("[tool.mypy]\npython_version = '3.10'\n")
    return tmp_path


def test_the_readmes_code_and_every_right_use(folder: Path) -> None:
    (folder / "right.py").write_text(RIGHT)
    for number, program in enumerate(programs()):
        code = "".join("\n" * 3 + block.source for block in program)
        (folder / f"readme{number}.py").write_text(code)
    assert check(folder) == ""


def test_mistakes_are_found(folder: Path) -> None:
    (folder / "mistakes.py").write_text(MISTAKES)
    said = check(folder)
    for line, text in enumerate(MISTAKES.splitlines(), 1):
        assert (f"mistakes.py:{line}: error" in said) == ("#" in text), said
