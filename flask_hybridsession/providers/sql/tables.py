"""The two tables, for SQLAlchemy's ``create_all`` and for Alembic."""

from __future__ import annotations

import re
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Engine,
    Index,
    LargeBinary,
    MetaData,
    Table,
)
from sqlalchemy.dialects.mysql import BINARY, LONGBLOB
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from ...core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,29}")
_MYSQL = ("mysql", "mariadb")
_HASH = LargeBinary(32).with_variant(BINARY(32), *_MYSQL)
_DATA = LargeBinary().with_variant(LONGBLOB(), *_MYSQL)


class Tables(NamedTuple):
    """``sessions`` has a row for each session, and one for each old key that is an alias."""

    metadata: MetaData
    sessions: Table
    locks: Table


def make_tables(
    metadata: MetaData | None = None, *, prefix: str = "hybrid_", schema: str | None = None
) -> Tables:
    """Describe the tables in ``metadata``, or in one of their own, as Alembic's target_metadata.

    They are the tables of a provider with the same ``table_prefix`` and ``schema``. Raises
    ``ConfigError`` when there are tables of these names already.
    """
    for option, value in (("table_prefix", prefix), ("schema", schema)):
        if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
            raise ConfigError(f"{option} must be a name of letters, digits and underscores.")
    metadata = MetaData() if metadata is None else metadata
    for name in (f"{prefix}sessions", f"{prefix}session_locks"):
        if (name if schema is None else f"{schema}.{name}") in metadata.tables:
            raise ConfigError(f"there is a table {name!r} already: choose another table_prefix.")
    return Tables(
        metadata,
        _sessions(metadata, f"{prefix}sessions", schema),
        _locks(metadata, f"{prefix}session_locks", schema),
    )


def _sessions(metadata: MetaData, name: str, schema: str | None) -> Table:
    deadline = Column("deadline", Double)
    user = Column("user_hash", _HASH)
    alias_of = Column("alias_of", _HASH)
    table = Table(
        name,
        metadata,
        Column("session_key", _HASH, primary_key=True),  # the SHA-256 of the sid
        alias_of,  # the key of the session; what is no alias has none
        Column("version", BigInteger, nullable=False),  # another one after each change
        Column("created", Double, nullable=False),  # seconds since the epoch; an alias: its owner's
        Column("touched", Double, nullable=False),
        deadline,  # null: never
        user,  # the SHA-256 of the user's id
        Column("data", _DATA, nullable=False),  # see rows.py
        schema=schema,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    for column in (deadline, user, alias_of):
        there = column.is_not(None)
        Index(f"ix_{name}_{column.name}", column, postgresql_where=there, sqlite_where=there)
    return table


def _locks(metadata: MetaData, name: str, schema: str | None) -> Table:
    return Table(
        name,
        metadata,
        Column("session_key", _HASH, primary_key=True),
        Column("holder", LargeBinary(16).with_variant(BINARY(16), *_MYSQL), nullable=False),
        Column("until", Double, nullable=False),  # seconds since the epoch
        schema=schema,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


def ddl(tables: Tables, engine: Engine) -> str:
    """The statements that make the tables in this database."""
    elements: list[DDLElement] = []
    for table in (tables.sessions, tables.locks):
        elements += [CreateTable(table), *map(CreateIndex, _indexes(table))]
    texts = [str(element.compile(engine)) for element in elements]
    return "\n\n".join(f"{_NO_ROOM.sub('', text).strip()};" for text in texts)


_NO_ROOM = re.compile(r"[ \t]+$", re.MULTILINE)


def _indexes(table: Table) -> list[Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))
