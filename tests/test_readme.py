"""What the README shows runs, and the settings that it names are the settings there are."""

from __future__ import annotations

import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from flask import Flask

from flask_hybridsession.core.settings import KNOWN
from flask_hybridsession.providers import registry

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text()


def blocks(name: str) -> list[CodeType]:
    """The Python in a file, with the line numbers of the file."""
    text = ROOT.joinpath(name).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [
        compile("\n" * text.count("\n", 0, match.start(1)) + match[1], name, "exec")
        for match in found
    ]


def chooses_a_provider(block: CodeType) -> bool:
    """That is for the start of an app."""
    return any("SESSION_TYPE" in names for names in block.co_consts if isinstance(names, tuple))


def programs() -> list[list[CodeType]]:
    """Each block that makes an app, with those after it that go on with that app."""
    found: list[list[CodeType]] = []
    for block in blocks("README.md"):
        if "Flask" in block.co_names:
            found.append([])
        found[-1].append(block)
    return found


@pytest.mark.parametrize("program", programs())
def test_the_code_runs(
    program: list[CodeType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "readme"}
    for block in program:
        exec(block, {"app": Flask("another")} if chooses_a_provider(block) else space)
    app = space["app"]
    visits = [app.test_client().get("/") for _ in range(2)]
    assert [visit.status_code for visit in visits] == [200, 200]
    with app.app_context():
        app.extensions["hybridsession"].close()
    assert tmp_path.joinpath("instance/sessions").is_dir()


def test_the_code_for_contributors_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    space: dict[str, Any] = {"__name__": "contributing"}
    for block in blocks("CONTRIBUTING.md"):
        exec(block, space)
    assert space["TestMine"].make_provider


def test_all_settings_are_named_and_no_others() -> None:
    section = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"\bSESSION_[A-Z_]+\b", section)) == KNOWN


def test_the_files_that_texts_point_to_are_there() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for text in texts:
        links = re.findall(
            r"\]\((?!https?:)([^)#]+)|^\[\w+\]: (?!https?:)(.+)", text.read_text(), re.M
        )
        for link in map("".join, links):
            assert text.parent.joinpath(link).exists(), (text.name, link)
