"""The caller of five lines, sync and asyncio.

>>> with Recommender("localhost:50051") as recommender:                                    # doctest: +SKIP
...     ranking = recommender.rank(
...         Asker(user_id="u7", scenario_id="lunch_deals", place=(60.17, 24.94), scene={"weather": "rain"}),
...         poi_ids=["p1", "p2", "p3"],
...     )
...     print(ranking.poi_ids[0], ranking.p_click[0])

Errors are `grpc.RpcError`; `violations(error)` lists the fields and rules of an INVALID_ARGUMENT.

The deadline is that of the whole call: `Access.timeout_seconds`, or `timeout_seconds` of one call. Within it
UNAVAILABLE and RESOURCE_EXHAUSTED are tried again (`Retries`): after the time that the server names, else after 0.1,
0.2, 0.4 and 0.8 seconds, a fifth more or less. No other error is, and nothing once failures are more than a tenth of
the answers for a while. Feedback may be tried again too, as an event counts once. A pause that would outlast the
deadline ends with it, as DEADLINE_EXCEEDED.

With `Hedging` a question that is not answered after some time is put a second time, and the first answer is taken; see
there what it costs, and `hedged` for what it did. Feedback is never hedged.

An address is any target of gRPC: `localhost:50051`, `dns:///recommender:50051`, whose addresses are all used, or
`ipv4:10.0.0.1:50051,10.0.0.2:50051`. Servers are asked in turn, and one that cannot be reached is passed over.
Plain text stays on this machine where a token or a certificate is sent: elsewhere `Access` must say how TLS is checked.
It goes through no proxy, whatever `http_proxy` says: one would read it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.auth import is_loopback
from serving.tries import Hedged, Hedging, Retries, SecondTries, channel_options, first_answer, first_answer_async
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
        details: `explain` has them always.
        candidates, radius_km, only_open: how places are found; `recommend` alone looks at them.
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
        event_id: unique among the events of the answer; sent again, as after an error, it counts once.
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
        tls: TLS without a root certificate of one's own: the server must be signed by one of the public authorities
            that gRPC trusts (the variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names a file of others).
        certificate, key: PEM of the caller, where the server wants mutual TLS.
        token: the bearer token, where the server wants one.
    Raises ValueError for a certificate without its key, or a key without its certificate.
    """

    root_certificate: bytes | None = None
    tls: bool = False
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):  # gRPC would end the process
            raise ValueError("certificate and key come together: give both, or neither")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """What a channel to this target is secured by; None: plain text.

        Raises ValueError where plain text would carry a secret to another machine.
        """
        if self.tls or self.root_certificate is not None:
            return grpc.ssl_channel_credentials(self.root_certificate, self.key, self.certificate)
        if any((self.token, self.certificate, self.key)) and not _stays_here(address):
            raise ValueError(
                f"{address} is on another machine, and a token or certificate is not sent there in plain text: give "
                "the root certificate that the server is signed by, or tls where a public authority signed it"
            )
        return None


ChannelOptions = Sequence[tuple[str, str | int]]
NO_PROXY = ("grpc.enable_http_proxy", 0)  # gRPC has even this machine's own plain text go through one
ANYTHING = Wish()
LOCAL = Access()
PATIENT = Retries()
ONCE = Retries(tries=1)


def dialled(transport: Any, access: Access, address: str, options: ChannelOptions = ()) -> Any:
    """A channel of `transport`, which is `grpc` or `grpc.aio`. Raises ValueError as `Access.credentials` does."""
    secret = access.credentials(address)
    if secret is None:
        return transport.insecure_channel(address, [*options, NO_PROXY])
    return transport.secure_channel(address, secret, options)


class Recommender:
    """A blocking client, safe to share between threads; close it, or use it in a `with` block."""

    def __init__(
        self, address: str, access: Access = LOCAL, *, retries: Retries = PATIENT, hedging: Hedging | None = None
    ) -> None:
        self._access = access
        self._channels = [dialled(grpc, access, *one) for one in _channels(address, retries, hedging)]
        self._stubs = [pb_grpc.RecommenderServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._second_tries = None if hedging is None else SecondTries(hedging)

    @property
    def hedged(self) -> Hedged:
        """What second tries did so far."""
        return Hedged() if self._second_tries is None else self._second_tries.seen

    def rank(
        self, asker: Asker, poi_ids: Sequence[str], wish: Wish = ANYTHING, *, timeout_seconds: float | None = None
    ) -> pb.Ranking:
        """Order these POIs. Raises grpc.RpcError."""
        methods = [stub.Rank for stub in self._stubs]
        return self._answer(methods, _rank_request(asker, poi_ids, wish), timeout_seconds).ranking

    def recommend(self, asker: Asker, wish: Wish = ANYTHING, *, timeout_seconds: float | None = None) -> pb.Ranking:
        """Find POIs and order them. Raises grpc.RpcError."""
        methods = [stub.Recommend for stub in self._stubs]
        return self._answer(methods, _recommend_request(asker, wish), timeout_seconds).ranking

    def explain(
        self, asker: Asker, poi_id: str, wish: Wish = ANYTHING, *, timeout_seconds: float | None = None
    ) -> pb.Explanation:
        """What moved this POI's score, `wish.limit` causes of it. Raises grpc.RpcError."""
        methods = [stub.Explain for stub in self._stubs]
        return self._answer(methods, _explain_request(asker, poi_id, wish), timeout_seconds).explanation

    def record(self, events: Sequence[Happened], *, timeout_seconds: float | None = None) -> pb.RecordFeedbackResponse:
        """Once this returns, all of them are on disk. Raises grpc.RpcError; the same events can be sent again."""
        return self._answer([self._stubs[0].RecordFeedback], _record_request(events), timeout_seconds)

    def record_stream(self, batches: Iterable[Sequence[Happened]]) -> Iterator[pb.RecordFeedbackResponse]:
        """The same over one call, for as long as batches come: an answer each, in order, once it is on disk. Raises
        grpc.RpcError, after which all batches without an answer can be sent again."""
        requests = map(_record_request, batches)
        yield from self._stubs[0].RecordFeedbackStream(requests, metadata=self._access.metadata)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, methods: Sequence[Any], request: Any, timeout_seconds: float | None) -> Any:
        """The answer of one method, or of the first of two servers that has one."""
        seconds = self._access.timeout_seconds if timeout_seconds is None else timeout_seconds
        if self._second_tries is None or len(methods) == 1:
            return methods[0](request, timeout=seconds, metadata=self._access.metadata)
        tries = [partial(method.future, request, metadata=self._access.metadata) for method in methods]
        return first_answer(tries, self._second_tries, seconds)


class AsyncRecommender:
    """The same for asyncio; close it, or use it in an `async with` block. A cancelled call ends on the server too."""

    def __init__(
        self, address: str, access: Access = LOCAL, *, retries: Retries = PATIENT, hedging: Hedging | None = None
    ) -> None:
        self._access = access
        self._channels = [dialled(grpc.aio, access, *one) for one in _channels(address, retries, hedging)]
        self._stubs = [pb_grpc.RecommenderServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._second_tries = None if hedging is None else SecondTries(hedging)

    @property
    def hedged(self) -> Hedged:
        """What second tries did so far."""
        return Hedged() if self._second_tries is None else self._second_tries.seen

    async def rank(
        self, asker: Asker, poi_ids: Sequence[str], wish: Wish = ANYTHING, *, timeout_seconds: float | None = None
    ) -> pb.Ranking:
        """Order these POIs. Raises grpc.RpcError."""
        methods = [stub.Rank for stub in self._stubs]
        return (await self._answer(methods, _rank_request(asker, poi_ids, wish), timeout_seconds)).ranking

    async def recommend(
        self, asker: Asker, wish: Wish = ANYTHING, *, timeout_seconds: float | None = None
    ) -> pb.Ranking:
        """Find POIs and order them. Raises grpc.RpcError."""
        methods = [stub.Recommend for stub in self._stubs]
        return (await self._answer(methods, _recommend_request(asker, wish), timeout_seconds)).ranking

    async def explain(
        self, asker: Asker, poi_id: str, wish: Wish = ANYTHING, *, timeout_seconds: float | None = None
    ) -> pb.Explanation:
        """What moved this POI's score, `wish.limit` causes of it. Raises grpc.RpcError."""
        methods = [stub.Explain for stub in self._stubs]
        return (await self._answer(methods, _explain_request(asker, poi_id, wish), timeout_seconds)).explanation

    async def record(
        self, events: Sequence[Happened], *, timeout_seconds: float | None = None
    ) -> pb.RecordFeedbackResponse:
        """Once this returns, all of them are on disk. Raises grpc.RpcError; the same events can be sent again."""
        return await self._answer([self._stubs[0].RecordFeedback], _record_request(events), timeout_seconds)

    async def record_stream(
        self, batches: AsyncIterable[Sequence[Happened]]
    ) -> AsyncIterator[pb.RecordFeedbackResponse]:
        """The same over one call; see `Recommender.record_stream`."""
        requests = (_record_request(events) async for events in batches)
        async for answer in self._stubs[0].RecordFeedbackStream(requests, metadata=self._access.metadata):
            yield answer

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(self, methods: Sequence[Any], request: Any, timeout_seconds: float | None) -> Any:
        """The answer of one method, or of the first of two servers that has one."""
        seconds = self._access.timeout_seconds if timeout_seconds is None else timeout_seconds
        if self._second_tries is None or len(methods) == 1:
            return await methods[0](request, timeout=seconds, metadata=self._access.metadata)
        tries = [partial(method, request, metadata=self._access.metadata) for method in methods]
        return await first_answer_async(tries, self._second_tries, seconds)


def violations(error: grpc.RpcError) -> dict[str, str]:
    """The fields of an INVALID_ARGUMENT, each with the rule that it breaks; empty for other errors."""
    status = rpc_status.from_call(error)
    found: dict[str, str] = {}
    for detail in status.details if status else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found |= {violation.field: violation.description for violation in bad.field_violations}
    return found


def _channels(address: str, retries: Retries, hedging: Hedging | None) -> list[tuple[str, ChannelOptions]]:
    """Where the channels of a client lead, each with its options. Second tries are not made again."""
    first = (address, channel_options(retries))
    return [first] if hedging is None else [first, (hedging.to or address, channel_options(ONCE))]


def _stays_here(target: str) -> bool:
    """Whether every address of a target of gRPC is one of this machine."""
    parts = urlsplit(target)
    addresses = parts.path.lstrip("/") if parts.scheme in ("dns", "ipv4", "ipv6") else target
    return all(is_loopback(address) for address in addresses.split(","))


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


def _explain_request(asker: Asker, poi_id: str, wish: Wish) -> pb.ExplainRequest:
    return pb.ExplainRequest(
        context=asker.message(), poi_id=poi_id, limit=wish.limit, objective=OBJECTIVES[wish.objective]
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
