"""Packed records in Redis, or a Redis cluster: a string key a view and entity, all of a request in one MGET.

    online_store:
      type: feature_repo.stores.packed_redis.PackedRedisOnlineStore
      connection_string: ${SCENERANK_REDIS}        as Feast's own Redis store, as are `redis_type` and `key_ttl_seconds`

That the newest record stays is decided by Redis itself, so writers in several processes need not know of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from feast import Entity, FeatureView
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.repo_config import RepoConfig
from redis.exceptions import RedisError

from feature_repo.stores.layout import TIMES, Layout
from feature_repo.stores.packed import PackedConfig, PackedOnlineStore, StoreUnavailable

PATIENCE_S = 10.0  # with a server that took the connection and does not answer
CALL_KEYS = 500  # of one call of the script, and of one deletion
# The times of a record are its bytes 9 to 24. Lua's numbers hold microseconds exactly until the year 2255.
KEEP_NEWEST = """
for at, key in ipairs(KEYS) do
  local old, new = redis.call('GETRANGE', key, 8, 23), string.sub(ARGV[at + 1], 9, 24)
  local keep = #old == 16
  if keep then
    local old_event, old_created = struct.unpack('<i8i8', old)
    local new_event, new_created = struct.unpack('<i8i8', new)
    keep = old_event > new_event or (old_event == new_event and old_created > new_created)
  end
  if not keep then
    if ARGV[1] == '0' then redis.call('SET', key, ARGV[at + 1])
    else redis.call('SET', key, ARGV[at + 1], 'EX', ARGV[1]) end
  end
end
"""


class PackedRedisOnlineStoreConfig(RedisOnlineStoreConfig, PackedConfig):
    """Feast's own, and `expire`."""

    type: str = "feature_repo.stores.packed_redis.PackedRedisOnlineStore"  # type: ignore[assignment]


class PackedRedisOnlineStore(PackedOnlineStore):
    """Records in Redis."""

    def __init__(self) -> None:
        super().__init__()
        self._feast = RedisOnlineStore()  # knows how connection strings are read, and keeps the client

    def get(self, config: RepoConfig, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        keys = [prefix + key for table, of_table in asked for prefix in (_prefix(config, table),) for key in of_table]
        if not keys:
            return [[] for _ in asked]
        try:
            client = self._client(config)
            found = iter(client.mget_nonatomic(keys) if _clustered(config) else client.mget(keys))
        except RedisError as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error
        return [[next(found) for _ in of_table] for _, of_table in asked]

    def put(
        self, config: RepoConfig, table: str, layout: Layout, keys: Sequence[bytes], records: Sequence[bytes]
    ) -> None:
        prefix, client = _prefix(config, table), self._client(config)
        life = config.online_store.key_ttl_seconds or 0
        # In a cluster the keys of one call must lie on one node: one call each.
        size = 1 if _clustered(config) else CALL_KEYS
        with client.pipeline(transaction=False) as pipe:
            pipe.hset(_layouts(config, table), layout.tag.hex(), str(layout))
            for start in range(0, len(keys), size):
                named = [prefix + key for key in keys[start : start + size]]
                pipe.execute_command("EVAL", KEEP_NEWEST, len(named), *named, life, *records[start : start + size])
            pipe.execute()

    def times(self, config: RepoConfig, table: str) -> np.ndarray:
        client, found = self._client(config), []
        for some in self._keys(config, table):
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.getrange(key, TIMES.start, TIMES.start + 7)
                # A record that expired since its key was found is empty.
                found += [time for time in pipe.execute() if time]
        return np.frombuffer(b"".join(found), dtype="<i8")

    def announced(self, config: RepoConfig, table: str) -> list[Layout]:
        return [Layout.parse(text.decode()) for text in self._client(config).hvals(_layouts(config, table))]

    def create(self, config: RepoConfig, table: str) -> None:
        """Nothing: keys need no table."""

    def drop(self, config: RepoConfig, table: str) -> None:
        client = self._client(config)
        for some in self._keys(config, table):
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.unlink(key)
                pipe.execute()
        client.delete(_layouts(config, table))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Deletes nothing where the whole server is not to be scanned for what to delete."""
        gone = tables_to_delete if config.online_store.full_scan_for_deletion else ()
        super().update(config, gone, tables_to_keep, entities_to_delete, entities_to_keep, partial)

    def _keys(self, config: RepoConfig, table: str) -> Iterator[list[bytes]]:
        """All keys of a table, some at a time."""
        return _batches(self._client(config).scan_iter(_escaped(_prefix(config, table)) + b"*", count=CALL_KEYS))

    def _client(self, config: RepoConfig) -> Any:
        if self._feast._client is None:  # built once, from this string
            patient = config.online_store.model_copy(update={"connection_string": _patient(config.online_store)})
            return self._feast._get_client(patient)
        return self._feast._client


def _patient(online: PackedRedisOnlineStoreConfig) -> str:
    """The connection string, with a bound on how long a call waits for a server that hangs, where it names none."""
    text = str(online.connection_string)
    missing = [name for name in ("socket_timeout", "socket_connect_timeout") if f"{name}=" not in text]
    return ",".join([text, *(f"{name}={PATIENCE_S}" for name in missing)])


def _clustered(config: RepoConfig) -> bool:
    return bool(config.online_store.redis_type == RedisType.redis_cluster)


def _prefix(config: RepoConfig, table: str) -> bytes:
    return f"packed:{config.project}\0{table}\0".encode()  # no name holds a zero byte


def _layouts(config: RepoConfig, table: str) -> str:
    return f"packed-layouts:{config.project}\0{table}"


def _escaped(prefix: bytes) -> bytes:
    """As a pattern that matches only itself."""
    for special in (b"\\", b"*", b"?", b"["):
        prefix = prefix.replace(special, b"\\" + special)
    return prefix


def _batches(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    for key in keys:
        some.append(key)
        if len(some) == CALL_KEYS:
            yield some
            some = []
    if some:
        yield some
