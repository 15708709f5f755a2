"""Opening a store as the only writer: the image that is there, or one made again from the log."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lmdb

from .compact import replace, set_aside
from .image import FORMAT, Image, Meta, is_whole
from .log import Log, remove
from .recovery import Recovered, fill, replay
from .words import POISONED, SYNCED, next_epoch

logger = logging.getLogger("flask_hybridsession.hybrid")


def trusted(directory: str, space: int, log: Log | None, boot: bytes) -> Image | None:
    """The image that is there, if it is what the log has made."""
    path = os.path.join(directory, "image")
    if not is_whole(path):
        return None
    try:
        image = Image(path, space, create=False)
    except lmdb.Error:
        return None
    try:
        meta = image.meta()
    except lmdb.Error:
        meta = None
    if meta is not None and (meta.format, meta.boot) == (FORMAT, boot):
        if log is None and not os.path.exists(os.path.join(directory, "log")):
            return image
        if log is not None and (meta.device, meta.inode, meta.generation) == (
            log.device,
            log.inode,
            log.generation,
        ):
            return image
    image.close()
    return None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of objects come and none is garbage: to look for some takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def recover(
    directory: str, space: int, view: Any, log: Log | None, boot: bytes, same: bool
) -> tuple[Image, Log]:
    """Make the image from the log, and the log anew if it is damaged."""
    found = Recovered() if log is None else replay(log, same)
    path = os.path.join(directory, "image")
    if log is None and os.path.exists(os.path.join(directory, "log")):
        found.damage.append("its header is lost")
    remove(path)
    remove(f"{path}-lock")
    next_epoch(view)
    image = Image(path, space)
    try:
        fill(image, found)
        if log is not None and not found.damage:
            if found.cut:
                logger.warning("%d bytes of unfinished writes were cut", found.cut)
                log.cut(found.position)
            if not synced(log, view):
                log = None
        elif found.damage:
            log = None
            set_aside(directory)
            logger.error(
                "the session log is damaged, a copy is kept as damaged-*: %s",
                "; ".join(found.damage[:10]),
            )
        meta = Meta(FORMAT, boot, 0, 0, 0, found.position, found.sequence, 0)
        if log is None:
            log, _ = replace(image, directory, meta, _next_generation(directory))
        else:
            image.set_meta(
                meta._replace(device=log.device, inode=log.inode, generation=log.generation)
            )
    except BaseException:
        image.close()
        raise
    view[SYNCED] = found.sequence
    view[POISONED] = 0
    return image, log


def synced(log: Log, view: Any) -> bool:
    """Sync, unless a sync of this log ever failed: the kernel reports a lost write only once."""
    if view[POISONED] != log.generation:
        try:
            log.sync()
        except OSError as error:
            view[POISONED] = log.generation
            logger.error("the session log failed to sync (%s)", error)
    return bool(view[POISONED] != log.generation)


def _next_generation(directory: str) -> int:
    log = Log.open(os.path.join(directory, "log"))
    return 1 if log is None else log.generation + 1
