"""What the README shows runs, and the settings that it names are the settings there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.settings import KNOWN

README = Path(__file__).parents[1].joinpath("README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PROGRAMS = [i for i, block in enumerate(BLOCKS) if "Flask(__name__)" in block]


def program(start: int) -> str:
    """A block that makes an app, with those after it that go on with that app."""
    end = next((i for i in PROGRAMS if i > start), len(BLOCKS))
    return "\n".join(BLOCKS[start:end])


@pytest.mark.parametrize("start", PROGRAMS)
def test_the_code_runs(start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program(start), "README.md", "exec"), space)
    client = space["app"].test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 200]
    space["app"].extensions["hybridsession"].close()


def test_the_first_program_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "readme"}
    exec(compile(BLOCKS[0], "README.md", "exec"), space)
    client = space["app"].test_client()
    assert [client.get("/").text for _ in range(2)] == ["Visit number 1.", "Visit number 2."]
    space["app"].extensions["hybridsession"].close()


def test_all_settings_are_named_and_no_others() -> None:
    section = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"\bSESSION_[A-Z_]+\b", section)) == KNOWN


def test_the_files_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert Path(__file__).parents[1].joinpath(target).exists(), target
