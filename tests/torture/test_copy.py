"""Sessions that move from hybrid to Redis to PostgreSQL and back, in use all the while.

Some thousands in a short run, 100,000 in a long one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from flask_hybridsession.copying import Copy
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.sql import SqlProvider
from tests.copying import fill, records, refuses, under_load
from tests.servers import Server, postgresql_url

#: Seconds: what is asked is what happens, not how soon.
BUDGET = 30.0
SHORT, LONG = 2_000, 100_000

Open = Callable[[], Provider]


def test_around(
    tmp_path: Path, redis_server: Server, postgresql_server: Server, minutes: float
) -> None:
    url = postgresql_url(postgresql_server)
    sql = partial(SqlProvider, url, table_prefix="copy_", budget=BUDGET, synchronous="NORMAL")
    made = sql()
    made.create_tables()
    made.close()
    redis = f"redis://{redis_server.address}/9"
    here = partial(HybridProvider, tmp_path / "here")
    stations: list[Open] = [
        here,
        partial(RedisProvider, redis, "copy:", budget=BUDGET),
        sql,
        partial(HybridProvider, tmp_path / "back"),
    ]
    first = here()
    keys = fill(first, LONG if minutes else SHORT)
    first.close()
    for source, target in pairwise(stations):
        keys = move(source, target, keys)


def move(open_source: Open, open_target: Open, keys: list[str]) -> list[str]:
    """Copy under load, then once more in peace, as after a restart; the keys there are by then."""
    source, target = open_source(), open_target()
    start = time.monotonic()
    copy = Copy(source, target)
    copy.begin()
    with under_load(open_source, keys, rest=0.002) as load:
        for one in copy.passes(quiet):
            print(*one[:4], f"{time.monotonic() - start:.1f} s")
    last = copy.run(quiet, check=True)
    copy.end()
    print(*last[:4], f"{time.monotonic() - start:.1f} s", type(target).__name__)
    assert last.bad == ()
    there, here = records(target), records(source)
    assert there == here
    assert set(keys) - load.ended <= set(there)
    assert load.made <= set(there)
    assert load.ended
    assert refuses(target, load.ended)
    source.close()
    target.close()
    return list(there)


def quiet(number: int, keys: Iterable[str], count: int) -> Iterator[str]:
    yield from keys
