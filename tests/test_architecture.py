"""The law of the house: who may import whom. Reads the sources, imports nothing.

__init__ -> extension -> interface, flash, signals, cli, testing -> providers -> core
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "flask_hybridsession"
NAME = PACKAGE.name

#: The only packages outside the standard library that core may use: pure functions, all of them.
CORE_MAY_USE = {"itsdangerous", "markupsafe", "ormsgpack", "publicsuffixlist", "typing_extensions"}
#: What of the standard library reaches outside the process. Core does none of that.
OUTSIDE = {
    *{"asyncio", "ctypes", "dbm", "fcntl", "ftplib", "glob", "http", "importlib", "io", "mmap"},
    *{"multiprocessing", "pathlib", "select", "selectors", "shutil", "socket", "socketserver"},
    *{"sqlite3", "ssl", "subprocess", "tempfile", "urllib"},
}
#: But for memory that no other process sees.
MEMORY = {"core.forks": {"mmap"}}
#: Bytes that run code when they are read.
NEVER = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve"}
#: Flask's and Werkzeug's names for a request or a response: the business of interface.py alone.
OF_A_REQUEST = {
    *{"Request", "Response", "after_this_request", "has_request_context", "make_response"},
    *{"request", "werkzeug.wrappers"},
}


class Arrow(NamedTuple):
    """One import. ``source`` and ``target`` are dotted; ours without the package's name."""

    source: str
    line: int
    target: str
    ours: bool
    names: tuple[str, ...]  # what it takes from there
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target or NAME}"


def violations(package: Path) -> list[str]:
    """Every breach of the law in the package at that path, in words."""
    trees = {_module(file, package): _parse(file.read_text()) for file in package.rglob("*.py")}
    arrows = [arrow for name in sorted(trees) for arrow in _arrows(name, trees[name], package)]
    found = [f"{arrow}: {why}" for arrow in arrows for why in _judge(arrow)]
    found += [why for name in sorted(trees) for why in _judge_uses(name, trees[name])]
    return found + [f"a circle: {' -> '.join(circle)}" for circle in _circles(arrows)]


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


# The judgement


def _judge(arrow: Arrow) -> Iterator[str]:
    yield from _judge_ours(arrow) if arrow.ours else _judge_outsider(arrow)


def _judge_ours(arrow: Arrow) -> Iterator[str]:
    room, other = _room(arrow.source), _room(arrow.target)
    if arrow.typing_only and room not in {"core", "providers"}:
        return
    if room == "core" != other:
        yield "core imports nothing outside core"
    if other == "" != room:
        yield "import from the module that has it, not from the package"
    if other == "extension" and room != "":
        yield "only __init__ imports extension"
    if room == other == "providers":
        if not _one_provider(arrow.source, arrow.target):
            yield "one provider never imports another"
    elif _height(room) < _height(other):
        yield f"{room} lies below {other}"
    elif other == "providers" and arrow.target != "providers.registry":
        yield "providers are found through providers.registry"


def _judge_outsider(arrow: Arrow) -> Iterator[str]:
    room, top = _room(arrow.source), _room(arrow.target)
    if top in NEVER:
        yield "its bytes run code when they are read"
    outside = OUTSIDE - MEMORY.get(arrow.source, set())
    if room == "core" and (top in outside or top not in CORE_MAY_USE | sys.stdlib_module_names):
        yield "core knows no Flask, no files, no sockets"
    if room == "providers" and top in {"click", "flask", "werkzeug"}:
        yield "a provider knows no Flask"
    if room != "interface" and top in {"flask", "werkzeug"}:
        for name in OF_A_REQUEST.intersection((*arrow.names, arrow.target)):
            yield f"only interface touches {name}"


def _judge_uses(module: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="set_cookie" | "delete_cookie") if module != "interface":
                yield f"{module}:{node.lineno} uses .{node.attr}: only interface may"
            case ast.Attribute(ast.Name("flask"), attr) if module != "interface":
                if attr in OF_A_REQUEST:
                    yield f"{module}:{node.lineno} uses flask.{attr}: only interface may"
            case ast.Call(ast.Name("open" | "__import__" | "exec" | "eval" as name)):
                if _room(module) == "core":
                    yield f"{module}:{node.lineno} calls {name}: core may not"


def _room(module: str) -> str:
    """``core``, ``providers``, or for a file at the top its own name."""
    return module.partition(".")[0]


def _height(room: str) -> int:
    return {"": 4, "extension": 3, "providers": 1, "core": 0}.get(room, 2)


def _one_provider(source: str, target: str) -> bool:
    """Within one provider's own folder; or from the registry, which knows them all by name.

    ``tiered`` makes others, and asks the registry for them.
    """
    parts = source.split(".")
    if target == "providers.registry":
        return parts[1] == "tiered"
    return parts[1:2] == ["registry"] or parts[:2] == target.split(".")[:2]


def _circles(arrows: list[Arrow]) -> list[list[str]]:
    graph: dict[str, set[str]] = {}
    for arrow in arrows:
        if arrow.ours and not arrow.typing_only:
            graph.setdefault(arrow.source, set()).add(arrow.target)
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


# The reading


def _module(file: Path, package: Path) -> str:
    """The dotted name within the package: ``core.ids``, and ``""`` for the package itself."""
    return (
        ".".join(file.relative_to(package).with_suffix("").parts)
        .removesuffix("__init__")
        .strip(".")
    )


def _arrows(module: str, tree: ast.Module, package: Path) -> Iterator[Arrow]:
    for_types = {id(part) for node in ast.walk(tree) if _is_typing(node) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for target, names in _targets(node, module, package):
            ours = target == NAME or target.startswith(f"{NAME}.")
            inner = target[len(NAME) + 1 :] if ours else target
            yield Arrow(module, node.lineno, inner, ours, names, id(node) in for_types)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _targets(
    node: ast.Import | ast.ImportFrom, module: str, package: Path
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The full names of the modules that a statement imports, each with what it takes from it."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, ()
    else:
        base = _base(node, module, package)
        for name in (alias.name for alias in node.names):
            inner = package.parent.joinpath(*base.split("."), name)
            is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
            yield (f"{base}.{name}", ()) if is_module else (base, (name,))


def _base(node: ast.ImportFrom, module: str, package: Path) -> str:
    """What stands between ``from`` and ``import``, made absolute."""
    if not node.level:
        return node.module or ""
    parts = [NAME, *filter(None, module.split("."))]
    if not package.parent.joinpath(*parts).is_dir():
        parts.pop()
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *filter(None, [node.module])])


def test_every_arrow_runs_downwards() -> None:
    assert violations(PACKAGE) == []


def test_the_public_names_are_sorted_and_complete() -> None:
    import flask_hybridsession

    public = flask_hybridsession.__all__
    assert list(public) == sorted(public)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert {name for name in imported if not name.startswith("_")} == set(public)
    assert all(hasattr(flask_hybridsession, name) for name in public)


BREACHES = {
    "core imports flask": ("core/ids.py", "import flask", "core knows no Flask"),
    "core imports flask within a function": (
        "core/ids.py",
        "def f():\n    from flask import session",
        "core knows no Flask",
    ),
    "core imports flask for its types": (
        "core/ids.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flask import Flask",
        "core knows no Flask",
    ),
    "core opens a socket": ("core/ids.py", "import socket", "core knows no Flask"),
    "core opens a file": ("core/ids.py", "open('x')", "calls open"),
    "core imports a provider": ("core/ids.py", "from ..providers import one", "core imports no"),
    "core imports the extension": ("core/ids.py", "from ..extension import x", "only __init__"),
    "a provider imports another": ("providers/two.py", "from . import one", "imports another"),
    "a provider imports another's folder": (
        "providers/two.py",
        "from flask_hybridsession.providers.three.inner import x",
        "imports another",
    ),
    "a folder imports another provider": (
        "providers/three/inner.py",
        "from ..one import x",
        "imports another",
    ),
    "a provider imports flask": ("providers/two.py", "from flask import Flask", "knows no Flask"),
    "a provider looks up": ("providers/two.py", "from .. import signals", "lies below"),
    "the interface imports the extension": (
        "interface.py",
        "from .extension import x",
        "only __init__",
    ),
    "the extension names a provider": (
        "extension.py",
        "from .providers import one",
        "through providers.registry",
    ),
    "flash touches the request": ("flash.py", "from flask import request", "only interface"),
    "the extension sets a cookie": ("extension.py", "def f(r):\n    r.set_cookie('x')", "only i"),
    "a circle": ("core/errors.py", "def f():\n    from . import change", "a circle: core."),
    "pickle": ("providers/two.py", "import pickle", "run code"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with three more providers, lawful so far."""
    copy = tmp_path_factory.mktemp("copy") / NAME
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    providers = copy / "providers"
    (providers / "three").mkdir(parents=True)
    for file in ("__init__.py", "one.py", "two.py", "three/__init__.py", "three/inner.py"):
        providers.joinpath(file).touch()
    providers.joinpath("three/__init__.py").write_text("from .inner import x\n")
    assert violations(copy) == []
    return copy


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_found(copy: Path, name: str) -> None:
    file, code, said = BREACHES[name]
    breached = copy / file
    before = breached.read_text() if breached.exists() else None
    breached.write_text(f"{before or ''}\n{code}\n")
    found = violations(copy)
    if before is None:
        breached.unlink()
    else:
        breached.write_text(before)
    assert any(said in why for why in found), found
