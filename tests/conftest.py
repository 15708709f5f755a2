import pytest

from tests.servers import memcached_server, redis_server

pytest.register_assert_rewrite("flask_hybridsession.testing")

__all__ = ["memcached_server", "redis_server"]
