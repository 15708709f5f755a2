"""``DynamoDbCache``, made safe."""

from __future__ import annotations

import time
import warnings
from typing import Any
from weakref import WeakSet

import cachelib

from ...core import forks
from ...core.errors import ConfigError
from .waits import UNHURRIED, RefusedError, failed


class DynamoDb:
    """What it lacks: reads that are not behind, and writes that do not hide that they failed.

    DynamoDB removes what is expired up to two days late: an item's time is judged here.
    """

    key_prefix: str
    _table: Any
    _table_name: str
    _key_field: str
    _expiration_time_field: str

    def prepare(self) -> None:
        from boto3.dynamodb.types import Binary
        from botocore.exceptions import BotoCoreError

        self.away = (BotoCoreError, OSError)
        self._binary = Binary
        self._client = self._table.meta.client
        _clients.add(self._client)
        wait = self._client.meta.config.read_timeout
        if wait > PATIENCE and not isinstance(self, MadeDynamoDbCache):
            warnings.warn(
                f"The client of this DynamoDbCache may wait {wait} seconds, so requests may too: "
                'give it a botocore Config, or write SESSION_OPTIONS = {"type": "DynamoDbCache"}.',
                UserWarning,
                stacklevel=5,
            )

    def get(self, key: str) -> Any:
        answer = self._do("get_item", Key=self._key(key), ConsistentRead=True)
        item = answer.get("Item")
        if item is None or 0 < item.get(self._expiration_time_field, 0) <= time.time():
            return None
        value = item.get("response")
        # An item that holds nothing is damaged; None would say that there is none.
        return value.value if isinstance(value, self._binary) else (value or b"")

    def get_many(self, *keys: str) -> list[Any]:
        # One after the other: a mark counts if it was there after the session was read.
        return [self.get(key) for key in keys]

    def set(self, key: str, value: bytes, timeout: int) -> bool:
        self._do("put_item", Item=self._item(key, value, timeout))
        return True

    def add(self, key: str, value: bytes, timeout: int) -> bool:
        put = self._do(
            "put_item",
            Item=self._item(key, value, timeout),
            ConditionExpression="attribute_not_exists(#key) OR #until <= :now",
            ExpressionAttributeNames={
                "#key": self._key_field,
                "#until": self._expiration_time_field,
            },
            ExpressionAttributeValues={":now": int(time.time())},
        )
        return put is not None

    def delete(self, key: str) -> bool:
        gone = self._do("delete_item", Key=self._key(key), ReturnValues="ALL_OLD")
        return "Attributes" in gone

    def largest(self) -> int:
        """Bytes of an item, less what is not the value."""
        return 400 * 1024 - 2048

    def _key(self, key: str) -> dict[str, str]:
        return {self._key_field: self.key_prefix + key}

    def _item(self, key: str, value: bytes, timeout: int) -> dict[str, Any]:
        now = time.time()
        created = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now))
        item: dict[str, Any] = {**self._key(key), "created_at": created, "response": value}
        if timeout:
            item[self._expiration_time_field] = int(now) + timeout
        return item

    def _do(self, what: str, **parameters: Any) -> Any:
        """Ask DynamoDB. None: a condition did not hold."""
        from botocore.exceptions import ClientError

        try:
            return getattr(self._client, what)(TableName=self._table_name, **parameters)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "ConditionalCheckFailedException":
                return None
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
                raise failed(code) from error
            raise RefusedError(code) from error


class MadeDynamoDbCache(cachelib.DynamoDbCache):
    """A ``DynamoDbCache`` whose calls take ``budget`` seconds at most; making it may take longer.

    As cachelib's own, it makes the table if there is none.
    """

    def __init__(
        self, table_name: str = "python-cache", budget: float = 0.25, **given: Any
    ) -> None:
        import boto3
        from botocore import exceptions as failures
        from botocore.config import Config

        def waiting(seconds: float) -> Any:
            own = Config(
                connect_timeout=seconds / 2,
                read_timeout=seconds / 2,
                retries={"total_max_attempts": 1},
            )
            return own.merge(given["config"]) if "config" in given else own

        place = {name: given[name] for name in given if name not in PARAMETERS}
        try:
            try:
                super().__init__(table_name, **{**given, "config": waiting(UNHURRIED)})
            except failures.ClientError as error:
                if error.response.get("Error", {}).get("Code") != "ResourceInUseException":
                    raise
                # Another worker is making the table: this time it is there.
                super().__init__(table_name, **{**given, "config": waiting(UNHURRIED)})
            except (failures.ConnectionError, failures.HTTPClientError):
                pass  # away: an app starts all the same, as some versions of cachelib see to
            quick = boto3.resource("dynamodb", **{**place, "config": waiting(budget)})
        except (failures.BotoCoreError, failures.ClientError, ValueError) as error:
            raise ConfigError(f"DynamoDbCache cannot be made: {type(error).__name__}.") from error
        self._dynamo = quick
        self._table = quick.Table(table_name)

    def disconnect(self) -> None:
        self._table.meta.client.close()


#: Seconds that a client may wait without a warning.
PATIENCE = 1.0
#: The parameters of ``DynamoDbCache`` that are not boto3's.
PARAMETERS = (
    *("default_timeout", "key_field", "expiration_time_field", "key_prefix"),
    *("ignore_delete_many_errors", "check_connection"),
)

_clients: WeakSet[Any] = WeakSet()


@forks.in_child
def _disconnect_child() -> None:
    # Two processes on one connection would read each other's answers.
    for client in list(_clients):
        client.close()
