"""Whether the image is what the log says, and its indexes what its sessions say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .image import Image, State, decode, index
from .recovery import replay

if TYPE_CHECKING:
    from .store import Turn


def problems(turn: Turn) -> list[str]:
    """What is wrong, in words, without keys or values. Reads everything: not for every day."""
    found = replay(turn.log, same_boot=True)
    texts = [f"log: {text}" for text in found.damage]
    if (found.position, found.sequence) != (turn.position, turn.sequence):
        texts.append("log: it does not end where the image says")
    stored = dict(turn.image.scan(turn.txn))
    for key in found.sessions.keys() | stored.keys():
        blob = stored.get(key)
        if blob is None or _plain(decode(key.hex(), blob)) != _plain(found.state(key)):
            texts.append("image: a session is not what the log says")
    return texts + _index_problems(turn.image, turn.txn, stored)


def _plain(state: State | None) -> object:
    return state and (
        state.version,
        state.record,
        [(bytes(alias), until) for alias, until in state.aliases],
    )


def _index_problems(image: Image, txn: Any, stored: dict[bytes, bytes]) -> list[str]:
    due: list[tuple[bytes, bytes]] = []
    users: list[tuple[bytes, bytes]] = []
    aliases: list[tuple[bytes, bytes]] = []
    for key, blob in stored.items():
        index(key, decode(key.hex(), blob), due, users, aliases)
    texts = []
    for name, expected, database in (
        ("deadlines", due, image.deadlines),
        ("users", users, image.users),
        ("aliases", aliases, image.aliases),
    ):
        with txn.cursor(database) as cursor:
            if sorted(expected) != list(cursor):
                texts.append(f"image: the index of {name} is not what the sessions say")
    return texts
