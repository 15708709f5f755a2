import pytest

from tests.redis_servers import redis_cluster, redis_sentinels
from tests.servers import memcached_server, redis_server

pytest.register_assert_rewrite("flask_hybridsession.testing")

__all__ = ["memcached_server", "redis_cluster", "redis_sentinels", "redis_server"]
