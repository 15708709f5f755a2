import pytest

from tests.redis_servers import redis_cluster, redis_sentinels
from tests.servers import mariadb_server, memcached_server, postgresql_server, redis_server

pytest.register_assert_rewrite("flask_hybridsession.testing")

__all__ = [
    "mariadb_server",
    "memcached_server",
    "postgresql_server",
    "redis_cluster",
    "redis_sentinels",
    "redis_server",
]
