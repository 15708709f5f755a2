"""The session that is measured: 571 bytes as plain text.

That is the JSON of Flask's own cookie before it is compressed and signed; as a cookie it has about
as many again.
"""

from __future__ import annotations

from typing import Any

from flask.sessions import session_json_serializer

#: What the write changes. Always seven digits, so that the session keeps its size.
COUNT = 1_000_000

SESSION: dict[str, Any] = {
    "user_id": 184467,
    "name": "Ada Lovelace",
    "email": "ada.lovelace@example.org",
    "roles": ["customer", "reviewer", "beta"],
    "csrf_token": "9f2c61d07be84a35a1c47e90d3385bf26c10e4d7",
    "locale": "en_GB",
    "timezone": "Europe/Prague",
    "theme": "dark",
    "next": "/account/orders",
    "cart": [
        {"sku": "TEA-EARL-GREY-250", "quantity": 2, "price": "7.90", "gift": False},
        {"sku": "CUP-PORCELAIN-BLUE", "quantity": 4, "price": "12.50", "gift": True},
        {"sku": "BOOK-9780141439518", "quantity": 1, "price": "9.99", "gift": False},
    ],
    "recent": [90125, 4711, 31337, 8640, 6553],
    "logged_in_at": "2024-05-14T08:21:37.402311Z",
    "count": COUNT,
}

SIZE = len(session_json_serializer.dumps(SESSION))
