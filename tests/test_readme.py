"""What the README shows runs, and the settings that it names are the settings there are."""

from __future__ import annotations

import re
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
from flask import Flask

from flask_hybridsession.core.settings import KNOWN
from flask_hybridsession.providers import registry
from flask_hybridsession.providers.hybrid import HybridProvider

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text()


class Block(NamedTuple):
    """One piece of Python in a text, and how many lines come before it."""

    source: str
    above: int

    def code(self) -> CodeType:
        """With the line numbers of the text."""
        return compile("\n" * self.above + self.source, "README.md", "exec")

    def chooses_a_provider(self) -> bool:
        """That is for the start of an app."""
        return "SESSION_TYPE=" in self.source


def blocks(name: str) -> list[Block]:
    text = ROOT.joinpath(name).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], text.count("\n", 0, match.start(1))) for match in found]


def programs() -> list[list[Block]]:
    """Each block that makes an app, with those after it that go on with that app."""
    found: list[list[Block]] = []
    for block in blocks("README.md"):
        if "Flask(__name__)" in block.source:
            found.append([])
        found[-1].append(block)
    return found


@pytest.mark.parametrize("program", programs())
def test_the_code_runs(
    program: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "readme"}
    for block in program:
        exec(block.code(), {"app": Flask("another")} if block.chooses_a_provider() else space)
    app = space["app"]
    visits = [app.test_client().get("/") for _ in range(2)]
    assert [visit.status_code for visit in visits] == [200, 200]
    with app.app_context():
        sessions = app.extensions["hybridsession"]
        assert isinstance(sessions.provider, HybridProvider)
        sessions.close()


def test_flask_logins_example_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "readme"}
    (block,) = (block for block in blocks("README.md") if "LoginManager(app)" in block.source)
    exec(block.code(), space)
    browser, admin = space["app"].test_client(), space["app"].test_client()
    assert browser.get("/").text == "Who are you?"
    browser.post("/login", data={"id": "7"})
    first = browser.get_cookie("session").value
    assert browser.get("/").text == "Hello, 7."
    browser.post("/login", data={"id": "8"})
    assert browser.get_cookie("session").value != first
    assert admin.post("/ban/7").text == "Ended 0 sessions."
    assert admin.post("/ban/8").text == "Ended 1 sessions."
    assert browser.get("/").text == "Who are you?"
    space["sessions"].close()


def test_the_code_for_contributors_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    space: dict[str, Any] = {"__name__": "contributing"}
    for block in blocks("CONTRIBUTING.md"):
        exec(block.code(), space)
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
