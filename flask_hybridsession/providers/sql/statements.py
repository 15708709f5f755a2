"""The SQL. Each statement is one round trip; a row is changed if it is of the version as read."""

from __future__ import annotations

from sqlalchemy import Engine

from .drivers import Driver
from .tables import Tables

#: What the statements have in common.
_PARTS = {
    "whole": "session_key, version, created, touched, deadline, data",
    "s_whole": "s.session_key, s.version, s.created, s.touched, s.deadline, s.data",
    "alive": "alias_of IS NULL AND (deadline IS NULL OR deadline > ?)",
    "due": "FROM {sessions} WHERE deadline <= ? ORDER BY deadline LIMIT ? {claim}",
    # An alias leads to the session that it was an alias of, never to a later one of that key.
    "through_alias": """
        FROM {sessions} r JOIN {sessions} s ON s.session_key = COALESCE(r.alias_of, r.session_key)
        WHERE r.session_key = ? AND s.alias_of IS NULL AND (r.alias_of IS NULL
        OR (r.deadline IS NULL OR r.deadline > ?) AND s.created = r.created)""",
}


class Statements:
    """Those of one database and one pair of tables, in the words of its driver."""

    # Joining costs more than reading one row: this comes first, and is all for what is no alias.
    read = "SELECT alias_of, {whole} FROM {sessions} WHERE session_key = ?"
    find = "SELECT {s_whole} {through_alias}"
    find_head = "SELECT s.session_key, s.version, s.created, s.deadline {through_alias}"
    find_alias = """
        SELECT alias_of, created FROM {sessions} WHERE session_key = ?
        AND alias_of IS NOT NULL AND (deadline IS NULL OR deadline > ?)"""
    find_version = "SELECT version FROM {sessions} WHERE session_key = ?"

    insert = """
        INSERT INTO {sessions} (session_key, alias_of, version, created, touched, deadline,
        user_hash, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?) {unless_there}"""
    update = """
        UPDATE {sessions} SET version = ?, touched = ?, deadline = ?, user_hash = ?, data = ?
        WHERE session_key = ? AND version = ?"""
    touch = """
        UPDATE {sessions} SET version = ?, touched = ?, deadline = ?
        WHERE session_key = ? AND version = ?"""
    rename = """
        UPDATE {sessions} SET session_key = ?, version = ? WHERE session_key = ? AND version = ?"""
    delete_version = "DELETE FROM {sessions} WHERE session_key = ? AND version = ?"

    delete = "DELETE FROM {sessions} WHERE session_key = ? AND alias_of IS NULL"
    delete_created = """
        DELETE FROM {sessions} WHERE session_key = ? AND alias_of IS NULL AND created = ?"""
    move_aliases = "UPDATE {sessions} SET alias_of = ? WHERE alias_of = ?"
    delete_aliases = "DELETE FROM {sessions} WHERE alias_of = ?"

    find_due = "SELECT alias_of, {whole} {due}"
    # ARRAY: PostgreSQL might run the inner SELECT more than once otherwise.
    claim_due = """
        DELETE FROM {sessions} WHERE session_key = ANY(ARRAY(SELECT session_key {due}))
        RETURNING alias_of, {whole}"""
    next_deadline = """
        SELECT deadline FROM {sessions} WHERE alias_of IS NULL AND deadline IS NOT NULL
        ORDER BY deadline LIMIT 1"""

    some_keys = """
        SELECT session_key FROM {sessions} WHERE session_key > ? AND {alive}
        ORDER BY session_key LIMIT ?"""
    keys_of = "SELECT session_key FROM {sessions} WHERE user_hash = ? AND {alive}"
    count = "SELECT COUNT(*), COUNT(alias_of) FROM {sessions}"

    lock = "INSERT INTO {locks} (session_key, holder, until) VALUES (?, ?, ?) {unless_there}"
    take_lock = "UPDATE {locks} SET holder = ?, until = ? WHERE session_key = ? AND until <= ?"
    unlock = "DELETE FROM {locks} WHERE session_key = ? AND holder = ?"
    delete_locks = "DELETE FROM {locks} WHERE until <= ?"

    #: To be followed by as many parameters as there are keys: see ``each``.
    delete_each = "DELETE FROM {sessions} WHERE session_key IN"
    delete_aliases_of_each = "DELETE FROM {sessions} WHERE alias_of IN"

    def __init__(self, tables: Tables, engine: Engine, driver: Driver) -> None:
        quoted = engine.dialect.identifier_preparer.format_table
        words = {
            "sessions": quoted(tables.sessions),
            "locks": quoted(tables.locks),
            "claim": driver.claim,
            "unless_there": driver.unless_there,
        }
        words |= {name: part.format(**words) for name, part in _PARTS.items()}
        self._mark = driver.mark
        for name, text in vars(Statements).items():
            if isinstance(text, str) and not name.startswith("_"):
                made = " ".join(text.format(**words).split()).replace("?", driver.mark)
                setattr(self, name, made)

    def each(self, statement: str, count: int) -> str:
        """The statement for so many keys."""
        return f"{statement} ({', '.join([self._mark] * count)})"
