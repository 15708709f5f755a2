"""What a forked child has of its parent's image: it is left alone, for ever.

Closing it, or losing the last reference to it, would free slots in LMDB's table of readers that
the parent reads with; using it would share them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

_left: list[Any] = []
_keys: set[tuple[object, ...]] = set()


def leave(thing: Any) -> None:
    """Keep it as it is, beyond the end of the interpreter too."""
    _left.append(thing)
    try:
        from ctypes import py_object, pythonapi
    except ImportError:  # a Python without it closes at its end: readers of the parent open anew
        pass
    else:
        pythonapi.Py_IncRef(py_object(thing))


def let_open(identities: Iterable[tuple[int, int] | None]) -> None:
    """Let files be opened that the parent has open."""
    if not _keys:
        _count_by_process()
    _keys.update(("ino", *identity) for identity in identities if identity is not None)


def _count_by_process() -> None:
    """py-lmdb from 2.0 on opens a file once per process, and counts what was inherited.

    Where it cannot be told, it refuses, and the image is made again from the log: slow, but right.
    """
    envid: Any = sys.modules.get("lmdb._envid")
    if envid is None or not hasattr(envid, "env_keys"):
        return
    keys_of = envid.env_keys

    def env_keys(path: Any, subdir: Any) -> tuple[Any, ...]:
        return tuple((*key, os.getpid()) if key in _keys else key for key in keys_of(path, subdir))

    envid.env_keys = env_keys
