import pytest

pytest.register_assert_rewrite("flask_hybridsession.testing")
