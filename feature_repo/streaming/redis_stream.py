"""A stream of Redis, read as one consumer of one group, so that Redis keeps what was not yet dealt with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from feature_repo.streaming.source import Message

FIELD = b"click"  # of a stream's entry: the click as JSON
GROUP = "scenerank"
OURS, NEW = "0", ">"  # entries given to this consumer and not acknowledged; entries given to nobody


class RedisStream:
    """Entries of `stream` with a field `click`, such as `XADD clicks * click '{"event_id": ...}'`.

    One process reads one stream: two clicks of one user that were merged at the same time would lose one of them. Who
    has more clicks than one process can take spreads users over several streams.
    """

    def __init__(self, url: str, stream: str) -> None:
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=30.0)
        self._stream = stream
        self._from = OURS

    @property
    def name(self) -> str:
        return f"redis:{self._stream}"

    def resume(self, position: str | None) -> None:
        """Redis keeps the position; what was given out and not acknowledged comes again first."""
        self._from = OURS
        if position is None:
            with suppress(ResponseError):  # there is no such stream or group yet
                self._redis.xgroup_setid(self._stream, GROUP, id="0")

    def read(self, most: int, wait_s: float) -> list[Message]:
        wait_ms = max(1, round(wait_s * 1000))
        while True:
            try:
                found: Any = self._redis.xreadgroup(GROUP, GROUP, {self._stream: self._from}, most, wait_ms)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._create()
                continue
            entries = found[0][1] if found else []
            if entries or self._from == NEW:
                return [Message(entry.decode(), (fields or {}).get(FIELD, b"")) for entry, fields in entries]
            self._from = NEW

    def done(self, messages: Sequence[Message]) -> None:
        self._redis.xack(self._stream, GROUP, *(message.position for message in messages))

    def _create(self) -> None:
        """From the beginning of the stream; a server that forgot everything is met with a new group."""
        try:
            self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
