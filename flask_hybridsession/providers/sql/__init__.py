"""Sessions in SQLite, PostgreSQL, MariaDB or MySQL."""

from .provider import SqlProvider
from .tables import make_tables

__all__ = ["SqlProvider", "make_tables"]
