"""Whose the directory is: who may write in it may forge sessions, or put an older file in place.

The directory itself is judged, not those above it. Root may use any.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress

from ...core.errors import ConfigError


def check(directory: str, group: str | int | None = None) -> None:
    """Raise ``ConfigError`` if others could have a say in the sessions, or keep us from them.

    ``group`` is the one, by its name or number, whose members may write in the directory.
    """
    trusted = None if group is None else group_id(group)
    try:
        there = os.stat(directory)
    except OSError:
        return  # it is made, or refused, by who opens it
    me = os.geteuid()
    if not stat.S_ISDIR(there.st_mode):
        return
    if me and there.st_uid not in (me, 0):
        raise _refusal(directory, f"belongs to {_user(there.st_uid)}, who could replace sessions")
    if there.st_mode & stat.S_IWOTH:
        raise _refusal(directory, "can be written by everybody", f"chmod o-w {directory}")
    if there.st_mode & stat.S_IWGRP and there.st_gid != trusted:
        name = _group(there.st_gid)
        raise _refusal(
            directory,
            f"can be written by the group {name}",
            f"chmod g-w {directory}",
            f'say that you trust it: SESSION_OPTIONS = {{"group": "{name}"}}',
        )
    if me:
        _check_files(directory, me)


def group_id(group: str | int) -> int:
    """The number of a group. Raises ``ConfigError`` where there is none of that name."""
    if isinstance(group, str):
        with suppress(KeyError):
            return grp.getgrnam(group).gr_gid
    elif type(group) is int:
        return group
    raise ConfigError(
        f"SESSION_OPTIONS: group must be the name or the number of a group, not {group!r}."
    )


def _check_files(directory: str, me: int) -> None:
    """What a command as root has made, say, is no file of ours."""
    try:
        with os.scandir(directory) as entries:
            others = [entry for entry in entries if entry.stat(follow_symlinks=False).st_uid != me]
    except OSError:
        return  # who opens it tells why
    if others:
        raise ConfigError(
            f"SESSION_DIR: {others[0].path} belongs to {_user(others[0].stat().st_uid)}, not to "
            f"{_user(me)}, who runs this: chown -R {_user(me)} {directory}"
        )


def _refusal(directory: str, why: str, *cures: str) -> ConfigError:
    inner = os.path.join(directory, "sessions")
    ways = [*cures, f'take a directory in it, which is made for this user alone: "{inner}"']
    return ConfigError(f"SESSION_DIR: {directory} {why}. To mend it: {'; or '.join(ways)}.")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
