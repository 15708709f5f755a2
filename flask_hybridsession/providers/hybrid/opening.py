"""Opening a store as the only writer: the image that is there, or one made again from the log.

Image, log and words have each seen the others: the image names the last frame of the log that it
holds, the words the last commit that was acknowledged. Where they differ, the newer one wins.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lmdb

from .compact import replace, set_aside
from .frame import VERSION
from .image import FORMAT, Image, Meta, boot_id, is_whole
from .log import Log, remove
from .recovery import Recovered, fill, replay
from .words import POISONED, SEEN, STORE, SYNCED, Words, next_epoch

logger = logging.getLogger("flask_hybridsession.hybrid")

#: Bytes of log from which an image is made in about a second: then none is believed that was left
#: open by workers that were killed.
_QUICK = 64 << 20


class Opening:
    """What is found in a directory: the words, and the log if it can be read.

    ``doubted``: the image may be damaged. ``alone``: nobody else has it open.
    """

    def __init__(
        self,
        directory: str,
        space: int,
        words: Words,
        log: Log | None,
        *,
        alone: bool,
        doubted: bool = False,
    ) -> None:
        self.directory = directory
        self.space = space
        self.words = words
        self.log = log
        self.boot = boot_id()
        self.doubted = doubted or (alone and self._is_doubtful())
        self.blank = words.is_blank()
        self.same = not words.new_boot(self.boot)

    def path(self, name: str) -> str:
        """A file in the directory."""
        return os.path.join(self.directory, name)

    def _is_doubtful(self) -> bool:
        """Whether the image may be another than the last one to have it open has left."""
        words, log = self.words, self.log
        if not words.is_of(self.boot) or words.is_as_closed(self.path("image")):
            return False
        if words.was_closed():
            logger.warning("the session image is not the one that was closed; it is made again")
            return True
        return log is None or log.size() <= _QUICK

    def _is_another_store(self) -> bool:
        """Whether words and log are not of the same store."""
        return self.log is not None and self.words.view[STORE] not in (0, self.log.store)

    def choose(self) -> tuple[Image, Log | None]:
        """The image to go on with, and the log; one that is not beside the image is older."""
        words, log, found = self.words, self.log, None
        if self.doubted and self.same and log is not None and not self._is_another_store():
            found = replay(log, self.same)
            if not found.damage and found.sequence >= words.view[SEEN]:
                return self._recover(found)
        image = self._trusted() if self.same or self.blank else None
        if image is None:
            return self._recover(found)
        meta = image.meta()
        if meta is None or is_newer(log, meta, words.view):
            image.close()
            return self._recover(found)
        if words.view[STORE] not in (0, meta.store):
            words.begin_anew()
        if log is not None and words.view[SEEN] < meta.sequence:
            # They were deleted, or are older, and do not say whether this log ever failed to sync.
            words.view[POISONED] = log.generation
        return image, log

    def _trusted(self) -> Image | None:
        """The image that is there, if it is one that was written in this boot, and no copy."""
        path = self.path("image")
        if not is_whole(path):
            return None
        try:
            image = Image(path, self.space, create=False)
        except lmdb.Error:
            return None
        try:
            meta = image.sound_meta(write=True)
        except lmdb.Error:
            meta = None
        here = FORMAT, self.boot, image.inode
        if meta is not None and (meta.format, meta.boot, meta.image) == here:
            return image
        image.close()
        return None

    def _recover(self, found: Recovered | None) -> tuple[Image, Log]:
        """Make the image from the log, and the log anew if it is damaged."""
        with _no_collection():
            if found is None:
                found = Recovered() if self.log is None else replay(self.log, self.same)
            if self.log is None and os.path.exists(self.path("log")):
                found.damage.append("its header is lost")
            seen = 0 if self._is_another_store() else self.words.view[SEEN]
            if found.sequence < seen:
                logger.error(
                    "the session log ends with commit %d, but %d was acknowledged",
                    found.sequence,
                    seen,
                )
            remove(self.path("image"))
            remove(self.path("image-lock"))
            next_epoch(self.words.view)
            image = Image(self.path("image"), self.space)
            try:
                fill(image, found)
                log = self._continue(image, found)
            except BaseException:
                image.close()
                raise
        self.words.view[SYNCED] = found.sequence
        self.words.view[POISONED] = 0
        return image, log

    def _continue(self, image: Image, found: Recovered) -> Log:
        """The log to go on with, beside an image that holds what was found."""
        log = self.log
        if found.damage:
            log = None
            set_aside(self.directory)
            logger.error(
                "the session log is damaged, a copy is kept as damaged-*: %s",
                "; ".join(found.damage[:10]),
            )
        elif log is not None:
            if found.cut:
                logger.warning("%d bytes of unfinished writes were cut", found.cut)
                log.cut(found.position)
            if log.header.version < VERSION or not synced(log, self.words.view):
                log = None
        place = found.position, found.sequence, 0, found.chain
        meta = Meta(FORMAT, self.boot, self._store(), 0, 0, 0, 0, 0, *place)
        if log is None:
            log, _ = replace(image, self.directory, meta, _next_generation(self.directory))
        else:
            image.set_meta(
                meta._replace(device=log.device, inode=log.inode, generation=log.generation)
            )
        return log

    def _store(self) -> int:
        """The number of the store; a new one if there is nothing."""
        there = 0 if self.log is None else self.log.store
        return there or self.words.view[STORE] or secrets.randbits(62) + 1


def is_newer(log: Log | None, meta: Meta, view: Any) -> bool:
    """Whether the log holds what the image does not hold, and may have been acknowledged."""
    if log is None:
        return False
    if log.store != meta.store:
        return bool(view[STORE] == log.store)
    if log.generation != meta.generation:
        later = log.generation > meta.generation and log.header.base >= meta.sequence
        return later and replay(log, True).sequence > meta.sequence
    if log.size() <= meta.position or log.chain_at(meta.position) != meta.chain:
        return False
    seen = view[SEEN]
    # Behind what both have seen there is but what a killed writer left.
    return bool(seen > meta.sequence) or (
        seen < meta.sequence and log.goes_on(meta.position, meta.sequence)
    )


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
