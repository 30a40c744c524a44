from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime

import grpc
import pytest

from serving.client import Access, Asker, AsyncRecommender, Recommender, Wish, violations


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
