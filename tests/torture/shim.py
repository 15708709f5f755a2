"""The shim's build, and the environment that puts it into a worker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")


def build(directory: Path) -> Path:
    """Compile the shim. Without a C compiler the test is skipped, or fails where CI is set."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("there is no C compiler (cc)")
        pytest.skip("there is no C compiler (cc)")
    library = directory / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return library


class Shim:
    """The built library: ``environment`` is what a worker needs to be struck by it."""

    def __init__(self, directory: Path) -> None:
        self.library = build(directory)

    def environment(
        self,
        directory: Path,
        fault: str = "",
        trace: Path | None = None,
        while_: Path | None = None,
    ) -> dict[str, str]:
        env = {"LD_PRELOAD": str(self.library), "SHIM_DIR": str(directory)}
        if fault:
            env["SHIM_FAULT"] = fault
        if trace is not None:
            env["SHIM_TRACE"] = str(trace)
            env["SHIM_FAILED"] = f"{trace}.failed"
        if while_ is not None:
            env["SHIM_WHILE"] = str(while_)
        return env
