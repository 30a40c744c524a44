"""The caller of five lines, sync and asyncio.

>>> with Recommender("localhost:50051") as recommender:                                    # doctest: +SKIP
...     ranking = recommender.rank(
...         Asker(user_id="u7", scenario_id="lunch_deals", place=(60.17, 24.94), scene={"weather": "rain"}),
...         poi_ids=["p1", "p2", "p3"],
...     )
...     print(ranking.poi_ids[0], ranking.p_click[0])

Errors are `grpc.RpcError`; `violations(error)` lists the fields and rules of an INVALID_ARGUMENT.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc

OUTCOMES = {"shown": pb.OUTCOME_SHOWN, "clicked": pb.OUTCOME_CLICKED, "ordered": pb.OUTCOME_ORDERED}
OBJECTIVES = {"click": pb.OBJECTIVE_CLICK, "order": pb.OBJECTIVE_ORDER}


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks, where and when.

    Args:
        time: aware; None: now, by the server's clock.
        place: latitude and longitude in degrees.
        scene: what else is known of the moment, such as `{"weather": "rain", "temperature": 7.5}`.
    """

    user_id: str
    scenario_id: str
    time: datetime | None = None
    place: tuple[float, float] | None = None
    scene: Mapping[str, str | float] = field(default_factory=lambda: MappingProxyType({}))

    def message(self) -> pb.RequestContext:
        """Raises ValueError for a time without a zone."""
        return pb.RequestContext(
            user_id=self.user_id,
            scenario_id=self.scenario_id,
            time=_aware(self.time),
            place=None if self.place is None else pb.Place(latitude=self.place[0], longitude=self.place[1]),
            scene_inputs={
                name: pb.SceneInput(text=value) if isinstance(value, str) else pb.SceneInput(number=value)
                for name, value in self.scene.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of an answer; `recommender.proto` documents defaults and limits (0: the default).

    Args:
        candidates, radius_km, only_open: how places are found; `rank` does not look at them.
    """

    limit: int = 0
    objective: Literal["click", "order"] = "click"
    details: bool = False
    candidates: int = 0
    radius_km: float | None = None
    only_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Happened:
    """What became of one place of an answer.

    Args:
        token: `attribution_token` of the answer.
        position: where it was shown, from 0; None: unknown.
        time: aware; None: now, by the server's clock.
        event_id: unique; sent again, as after an error, it counts once.
        propensity: the element of `propensities` that belongs to the place, 1 where the answer has none; None: unknown.
    """

    token: str
    poi_id: str
    outcome: Literal["shown", "clicked", "ordered"]
    position: int | None = None
    time: datetime | None = None
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    propensity: float | None = None

    def message(self) -> pb.FeedbackEvent:
        """Raises ValueError for a time without a zone."""
        return pb.FeedbackEvent(
            event_id=self.event_id,
            attribution_token=self.token,
            poi_id=self.poi_id,
            outcome=OUTCOMES[self.outcome],
            position=self.position,
            time=_aware(self.time),
            propensity=self.propensity,
        )


def shown(ranking: pb.Ranking, time: datetime | None = None) -> list[Happened]:
    """All places of an answer, shown in its order, with the propensity of each: 1 where the server did not explore."""
    return [
        Happened(
            token=ranking.attribution_token,
            poi_id=poi_id,
            outcome="shown",
            position=position,
            time=time,
            propensity=ranking.propensities[position] if ranking.propensities else 1.0,
        )
        for position, poi_id in enumerate(ranking.poi_ids)
    ]


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to reach a server.

    Args:
        root_certificate: PEM; with it, the channel is TLS and the server must be signed by it.
        certificate, key: PEM of the caller, where the server wants mutual TLS.
        token: the bearer token, where the server wants one.
    """

    root_certificate: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    token: str | None = None
    timeout_seconds: float = 5.0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        if self.root_certificate is None:
            return None
        return grpc.ssl_channel_credentials(self.root_certificate, self.key, self.certificate)


ANYTHING = Wish()
LOCAL = Access()


class Recommender:
    """A blocking client, safe to share between threads; close it, or use it in a `with` block."""

    def __init__(self, address: str, access: Access = LOCAL) -> None:
        secret = access.credentials
        self._channel = grpc.secure_channel(address, secret) if secret else grpc.insecure_channel(address)
        self._stub = pb_grpc.RecommenderServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._access = access

    def rank(self, asker: Asker, poi_ids: Sequence[str], wish: Wish = ANYTHING) -> pb.Ranking:
        """Order these POIs. Raises grpc.RpcError."""
        return self._answer(self._stub.Rank, _rank_request(asker, poi_ids, wish)).ranking

    def recommend(self, asker: Asker, wish: Wish = ANYTHING) -> pb.Ranking:
        """Find POIs and order them. Raises grpc.RpcError."""
        return self._answer(self._stub.Recommend, _recommend_request(asker, wish)).ranking

    def record(self, events: Sequence[Happened]) -> pb.RecordFeedbackResponse:
        """Once this returns, all of them are on disk. Raises grpc.RpcError; the same events can be sent again."""
        return self._answer(self._stub.RecordFeedback, _record_request(events))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, method: Any, request: Any) -> Any:
        return method(request, timeout=self._access.timeout_seconds, metadata=self._access.metadata)


class AsyncRecommender:
    """The same for asyncio; close it, or use it in an `async with` block."""

    def __init__(self, address: str, access: Access = LOCAL) -> None:
        secret = access.credentials
        self._channel = grpc.aio.secure_channel(address, secret) if secret else grpc.aio.insecure_channel(address)
        self._stub = pb_grpc.RecommenderServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._access = access

    async def rank(self, asker: Asker, poi_ids: Sequence[str], wish: Wish = ANYTHING) -> pb.Ranking:
        """Order these POIs. Raises grpc.RpcError."""
        return (await self._answer(self._stub.Rank, _rank_request(asker, poi_ids, wish))).ranking

    async def recommend(self, asker: Asker, wish: Wish = ANYTHING) -> pb.Ranking:
        """Find POIs and order them. Raises grpc.RpcError."""
        return (await self._answer(self._stub.Recommend, _recommend_request(asker, wish))).ranking

    async def record(self, events: Sequence[Happened]) -> pb.RecordFeedbackResponse:
        """Once this returns, all of them are on disk. Raises grpc.RpcError; the same events can be sent again."""
        return await self._answer(self._stub.RecordFeedback, _record_request(events))

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _answer(self, method: Any, request: Any) -> Any:
        return method(request, timeout=self._access.timeout_seconds, metadata=self._access.metadata)


def violations(error: grpc.RpcError) -> dict[str, str]:
    """The fields of an INVALID_ARGUMENT, each with the rule that it breaks; empty for other errors."""
    status = rpc_status.from_call(error)
    found: dict[str, str] = {}
    for detail in status.details if status else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found |= {violation.field: violation.description for violation in bad.field_violations}
    return found


def _aware(time: datetime | None) -> datetime | None:
    if time is not None and time.tzinfo is None:
        raise ValueError(f"time {time} has no zone; use datetime(..., tzinfo=...)")
    return time


def _record_request(events: Sequence[Happened]) -> pb.RecordFeedbackRequest:
    return pb.RecordFeedbackRequest(events=[one.message() for one in events])


def _rank_request(asker: Asker, poi_ids: Sequence[str], wish: Wish) -> pb.RankRequest:
    return pb.RankRequest(
        context=asker.message(),
        poi_ids=poi_ids,
        limit=wish.limit,
        objective=OBJECTIVES[wish.objective],
        include_details=wish.details,
    )


def _recommend_request(asker: Asker, wish: Wish) -> pb.RecommendRequest:
    return pb.RecommendRequest(
        context=asker.message(),
        candidates=wish.candidates,
        limit=wish.limit,
        objective=OBJECTIVES[wish.objective],
        include_details=wish.details,
        radius_km=wish.radius_km,
        only_open=wish.only_open,
    )
