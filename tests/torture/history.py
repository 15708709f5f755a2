"""Whether some order of what clients asked explains all that they were answered.

Each client notes what it asked of a session, when, and what was acknowledged. A session is right
(linearizable: Herlihy and Wing, 1990) if every operation can be given one moment between question
and answer, such that the answers are those of a session to which they happen one after the other.
What was never answered, because a worker was killed, may have happened at any time since, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any, NamedTuple

#: The answer to what has none.
UNKNOWN = object()


class State(NamedTuple):
    """A session as the model has it; ``sid`` is None once it has ended, ``former`` are earlier."""

    sid: str | None
    values: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    former: tuple[str | None, ...] = ()


class Op(NamedTuple):
    """One request: what was asked with which id, when (seconds), and what was answered.

    ``create`` begins the session under this very id, if there is none. Answers: of ``read`` the
    values and the user, or None for nobody; of ``login`` and ``rename`` the new id, or None; of all
    others whether it was stored.
    """

    kind: str
    sid: str
    args: tuple[Any, ...]
    began: float
    ended: float
    answer: Any

    def __str__(self) -> str:
        end = "no answer" if self.ended == inf else f"{self.ended:.4f} -> {self.answer!r}"
        what = ", ".join(map(repr, self.args))
        return f"{self.began:.4f} {self.kind}({what}) by {self.sid[:6]}: {end}"


Effect = Callable[..., tuple[State, Any]]


def _put(state: State, name: str, number: int) -> tuple[State, Any]:
    return state._replace(values=_with(state, name, number)), True


def _add(state: State, name: str, by: int) -> tuple[State, Any]:
    return state._replace(values=_with(state, name, dict(state.values).get(name, 0) + by)), True


def _drop(state: State, name: str) -> tuple[State, Any]:
    return state._replace(values=tuple(pair for pair in state.values if pair[0] != name)), True


def _read(state: State) -> tuple[State, Any]:
    return state, (dict(state.values), state.user)


def _end(state: State) -> tuple[State, Any]:
    return State(None), True


def _login(state: State, user: str, sid: str) -> tuple[State, Any]:
    kept = state.values if state.user in (None, user) else ()
    return State(sid, kept, user, (*state.former, state.sid)), sid


def _rename(state: State, sid: str) -> tuple[State, Any]:
    return state._replace(sid=sid, former=(*state.former, state.sid)), sid


EFFECTS: dict[str, Effect] = {
    **{"put": _put, "add": _add, "drop": _drop, "read": _read},
    **{"logout": _end, "clear": _end, "expire": _end, "login": _login, "rename": _rename},
}


def _with(state: State, name: str, number: int) -> tuple[tuple[str, int], ...]:
    return tuple(sorted({**dict(state.values), name: number}.items()))


def apply(state: State, op: Op) -> Iterator[State]:
    """The states after it, if it happens now; none, if its answer says otherwise."""
    if op.kind == "create":
        if op.answer is not (state.sid is None) and op.answer is not UNKNOWN:
            return
        yield State(op.sid) if state.sid is None else state
        return
    if state.sid != op.sid:
        # Whoever shows an id that is dead, or not yet there, is nobody, and changes nothing.
        if op.answer in (None, False) or op.answer is UNKNOWN or op.kind in ("logout", "clear"):
            yield state
        # But who leaves by the id of a moment ago has left.
        if op.kind in ("logout", "clear") and op.sid in state.former and state.sid is not None:
            yield State(None)
        return
    if op.answer is UNKNOWN and op.kind in ("login", "rename"):
        yield state._replace(sid=None)  # under an id that nobody has learnt
        return
    args = (*op.args, op.answer) if op.kind in ("login", "rename") else op.args
    if op.answer is None or op.answer is False:
        return
    after, answer = EFFECTS[op.kind](state, *args)
    if op.answer is UNKNOWN or op.answer == answer:
        yield after


def explains(first: State, ops: Iterable[Op]) -> bool:
    """Whether some order of the operations gives all the answers."""
    todo = sorted(ops, key=lambda op: op.began)
    count = len(todo)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, first)]
    answered = sum(1 << i for i, op in enumerate(todo) if op.ended < inf)
    while stack:
        done, state = stack.pop()
        if done & answered == answered:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [i for i in range(count) if not done >> i & 1]
        latest = min(todo[i].ended for i in left)
        for i in left:
            if todo[i].began > latest:
                break  # something that had ended by then must come first
            stack += [(done | 1 << i, after) for after in apply(state, todo[i])]
    return False


def smallest(first: State, ops: Iterable[Op]) -> list[Op]:
    """The operations that still have no explanation when any one of them is left out."""
    left = sorted(ops, key=lambda op: op.began)
    assert not explains(first, left)
    shrinks = True
    while shrinks:
        shrinks = False
        for op in list(left):
            fewer = [other for other in left if other is not op]
            # Without a change, what shows it has no explanation for another reason.
            if not explains(first, fewer) and (op.kind == "read" or _is_unseen(op, fewer)):
                left, shrinks = fewer, True
    return left


def _is_unseen(op: Op, others: list[Op]) -> bool:
    """Whether nothing that was read, and no id, comes from it."""
    if op.kind in ("login", "rename"):
        return not any(other.sid == op.answer for other in others)
    if op.kind in ("put", "add", "drop"):
        shown = [other.answer[0] for other in others if other.kind == "read" and _is_seen(other)]
        return not any(op.args[0] in values for values in shown)
    return False


def _is_seen(op: Op) -> bool:
    return op.answer is not None and op.answer is not UNKNOWN


def story(ops: Iterable[Op]) -> str:
    """For a person: one line each, by their beginnings."""
    return "\n".join(str(op) for op in sorted(ops, key=lambda op: op.began))
