from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from datetime import datetime

import grpc
import pytest

from serving.client import Access, Asker, AsyncRecommender, Recommender, Wish, violations
from serving.operator_client import Operator


def test_the_asyncio_client_gets_the_same_answers(running, client, asker, poi_ids):
    async def ask():
        async with AsyncRecommender(f"127.0.0.1:{running.port}") as recommender:
            return await asyncio.gather(
                recommender.rank(asker, poi_ids[:5]), recommender.recommend(asker, Wish(limit=3))
            )

    ranked, recommended = asyncio.run(ask())
    assert ranked.poi_ids == client.rank(asker, poi_ids[:5]).poi_ids
    assert recommended.poi_ids == client.recommend(asker, Wish(limit=3)).poi_ids


def test_violations_of_an_asyncio_call(running, asker):
    async def ask():
        async with AsyncRecommender(f"127.0.0.1:{running.port}") as recommender:
            await recommender.rank(asker, [])

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(ask())
    assert violations(caught.value) == {"poi_ids": "must have 1 to 1000 elements, has 0"}


def test_other_errors_have_no_violations(asker):
    with Recommender("127.0.0.1:1", Access(timeout_seconds=1)) as nobody, pytest.raises(grpc.RpcError) as caught:
        nobody.rank(asker, ["a"])
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert violations(caught.value) == {}


def test_what_is_not_said_is_not_sent():
    message = Asker(user_id="u", scenario_id="s").message()
    assert not message.HasField("time") and not message.HasField("place") and not message.scene_inputs


def test_a_time_without_a_zone_is_refused(asker):
    with pytest.raises(ValueError, match="has no zone"):
        replace(asker, time=datetime(2024, 1, 1)).message()


def test_what_is_secret_is_not_shown() -> None:
    access = Access(root_certificate=b"public", certificate=b"mine", key=b"secret key", token="secret-token")
    assert "secret" not in repr(access) and "public" in repr(access)


def test_plain_text_goes_through_no_proxy(running, asker, poi_ids, monkeypatch) -> None:
    address, access = f"127.0.0.1:{running.port}", Access(token="a token of the caller's")

    async def ask() -> None:
        async with AsyncRecommender(address, access) as recommender:
            await recommender.rank(asker, poi_ids[:2])

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        with Recommender(address, access) as recommender:
            recommender.rank(asker, poi_ids[:2])
        asyncio.run(ask())
        with Operator(address, access) as operator:
            operator.serving()
        proxy.settimeout(0.0)
        with pytest.raises(BlockingIOError):  # nobody came
            proxy.accept()
