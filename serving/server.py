"""The gRPC edge: proto in, pipeline, proto out.

The process loads neither transformers nor peft: what a language model knows was computed before and is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2

from serving import agreement, logs, observe, wire
from serving.admin import AdminServicer, Load
from serving.admission import Admission
from serving.agreement import Agreed, Follower
from serving.auth import Tls, TokenInterceptor, Tokens, require_loopback
from serving.calibration import Calibration
from serving.degrade import Caller
from serving.dependencies import INTERVAL_S, Dependencies
from serving.described import STREAMS as REFLECTION_THREADS
from serving.described import Described
from serving.feedback import FeedbackBusy, FeedbackLog
from serving.feedback_streams import Streams
from serving.life import THREADS as HEALTH_THREADS
from serving.life import Life
from serving.live import Live, identity_of
from serving.malformed import MalformedInterceptor
from serving.metrics import Metrics
from serving.observe import Observer, ObservingInterceptor
from serving.pipeline import Pipeline, Ranking
from serving.request import RankRequest, RecommendRequest
from serving.statuses import NoFeedback, guarded
from serving.unread import PATIENCE_S, READING, Unread, UnreadInterceptor
from serving.v1 import admin_pb2
from serving.v1 import admin_pb2_grpc as admin_grpc
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc

ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
SERVICE = pb.DESCRIPTOR.services_by_name["RecommenderService"].full_name
Answer = TypeVar("Answer")
LONGEST_S = 24 * 3600.0  # a deadline further away is none
FEEDBACK_CALLS = 48  # at a time; where the database is slow they must not take the threads of rankings
SPARE_THREADS = FEEDBACK_CALLS + HEALTH_THREADS + REFLECTION_THREADS + READING + 16  # and for refusals


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One of several processes behind an address.

    Args:
        agreed: the file by which they agree on what answers.
        parent: id of the process that started them, and without which they end.
    """

    agreed: Path
    parent: int


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens.

    Args:
        address: host and port; port 0 lets the system choose. Without `tls` it must be of this machine only.
        workers: requests answered at the same time.
        waiting: further ones that wait; what more comes is refused.
        feedback_streams: open at the same time; each holds two threads for as long as its caller likes.
        max_message_bytes: larger requests are refused; 1,000 ids of the longest allowed kind fit.
        max_metadata_bytes: of a call's headers; more is refused.
        drain_seconds: from a stop on, how long calls are still taken: while those who ask for health come to know.
        grace_seconds: how long a stop waits, after that, for answers under way.
        tokens: those that are let in, as of now; None: no token is asked.
        metrics_port, metrics_host: where `/metrics` is served over HTTP, in plain text to anybody; None: nowhere.
        observers: told of every request, beside the metrics and the log.
        ask_seconds: between questions whether the store and the feedback database are there.
        shared: with whom the address is shared; None: with nobody.
    """

    address: str = "127.0.0.1:0"
    workers: int = 4
    waiting: int = 16
    feedback_streams: int = 16
    max_message_bytes: int = 2 * 1024 * 1024
    max_metadata_bytes: int = 8 * 1024
    drain_seconds: float = 0.0
    grace_seconds: float = 10.0
    tls: Tls | None = None
    tokens: Callable[[], Tokens] | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    observers: tuple[Observer, ...] = ()
    ask_seconds: float = INTERVAL_S
    shared: Shared | None = None


class RecommenderServicer(pb_grpc.RecommenderServiceServicer):
    """Translates; whatever decides anything is in the pipeline.

    Args:
        live: the pipeline that answers.
        admin: is told of answers and feedback.
        admission: of rankings; feedback has a queue of its own.
        feedback: None where none is kept.
        streams: of feedback.
        calibration: None where there is no feedback.
    """

    def __init__(
        self,
        live: Live,
        admin: AdminServicer,
        metrics: Metrics,
        admission: Admission,
        feedback: FeedbackLog | None,
        streams: Streams,
        calibration: Calibration | None,
    ) -> None:
        self._live = live
        self._admin = admin
        self._metrics = metrics
        self._admission = admission
        self._feedback = feedback
        self._streams = streams
        self._calibration = calibration
        self._recording = threading.BoundedSemaphore(FEEDBACK_CALLS)

    def Rank(self, request: pb.RankRequest, context: grpc.ServicerContext) -> pb.RankResponse:
        def answer(pipeline: Pipeline) -> pb.RankResponse:
            ranking = self._ranked(pipeline, wire.rank_request(request), context)
            return pb.RankResponse(ranking=_encoded(ranking, pipeline, request))

        return guarded(partial(self._admitted, answer, context), context)

    def Recommend(self, request: pb.RecommendRequest, context: grpc.ServicerContext) -> pb.RecommendResponse:
        def answer(pipeline: Pipeline) -> pb.RecommendResponse:
            ranking = self._ranked(pipeline, wire.recommend_request(request), context)
            message = _encoded(ranking, pipeline, request)
            return pb.RecommendResponse(ranking=message, index_version=pipeline.index_version)

        return guarded(partial(self._admitted, answer, context), context)

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        def answer(pipeline: Pipeline) -> pb.ExplainResponse:
            explanation = pipeline.explain(wire.explain_request(request), _caller(context))
            self._metrics.read(explanation.views, explanation.time_us)
            return pb.ExplainResponse(explanation=wire.explanation(explanation, wire.model_info(pipeline)))

        return guarded(partial(self._admitted, answer, context), context)

    def _ranked(
        self, pipeline: Pipeline, asked: RankRequest | RecommendRequest, context: grpc.ServicerContext
    ) -> Ranking:
        """A pipeline's answer, with all told of it that keep an eye on answers."""
        started = time.perf_counter()
        ranking = pipeline.answer(asked, _caller(context))
        seconds = time.perf_counter() - started - observe.seconds_in("retrieve")
        self._metrics.answer(ranking, asked.context.scenario_id)
        if self._calibration is not None and ranking.degradation is None:
            self._calibration.answered(asked.context.scenario_id, ranking)
        self._admin.answered(asked, ranking, seconds, pipeline)
        return ranking

    def _admitted(self, answer: Callable[[Pipeline], Answer], context: grpc.ServicerContext) -> Answer:
        with ExitStack() as seat:
            with observe.stage("queue"):
                seat.enter_context(self._admission.entered(_remaining_s(context), context.add_callback))
            return answer(seat.enter_context(self._live.answering()))

    def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, context: grpc.ServicerContext
    ) -> pb.RecordFeedbackResponse:
        return guarded(partial(self._record, request, context), context)

    def RecordFeedbackStream(
        self, requests: Iterator[pb.RecordFeedbackRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RecordFeedbackResponse]:
        with closing(self._streams.requests(requests)) as told:
            while (request := guarded(partial(next, told, None), context)) is not None:
                yield guarded(partial(self._record, request, context), context)

    def _record(self, request: pb.RecordFeedbackRequest, context: grpc.ServicerContext) -> pb.RecordFeedbackResponse:
        if self._feedback is None:
            raise NoFeedback("this server keeps no feedback")
        if not self._recording.acquire(blocking=False):
            raise FeedbackBusy("too many events are waiting to be stored")
        try:
            events = wire.feedback_events(request, self._live.current.signer)
            recorded = self._feedback.record(events, _remaining_s(context))
        finally:
            self._recording.release()
        self._admin.happened(events)
        self._metrics.recorded(recorded.new, recorded.repeated)
        return pb.RecordFeedbackResponse(recorded=recorded.new, repeated=recorded.repeated)


def _remaining_s(context: grpc.ServicerContext) -> float | None:
    """Until the caller's deadline; None where there is none: gRPC says so with a number that no clock can wait for."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > LONGEST_S else remaining


def _encoded(ranking: Ranking, pipeline: Pipeline, request: pb.RankRequest | pb.RecommendRequest) -> pb.Ranking:
    with observe.stage("encode"):
        return wire.ranking(ranking, wire.model_info(pipeline), request.include_details)


def _caller(context: grpc.ServicerContext) -> Caller:
    remaining_s = _remaining_s(context)
    return Caller(deadline=None if remaining_s is None else time.monotonic() + remaining_s, is_wanted=context.is_active)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers; `port` is the one that it listens on."""

    server: grpc.Server
    live: Live
    admin: AdminServicer
    health: Life
    admission: Admission
    unread: Unread
    described: Described
    streams: Streams
    dependencies: Dependencies
    calibration: Calibration | None
    follower: Follower | None
    port: int
    metrics_port: int | None
    drain_seconds: float
    grace_seconds: float

    def stop(self) -> bool:
        """Say NOT_SERVING, then take no new calls, wait for those under way; whether none of them hangs."""
        self.health.stop()
        time.sleep(self.drain_seconds)
        end = time.monotonic() + self.grace_seconds
        self.dependencies.stop()
        if self.follower is not None:
            self.follower.close()
        if self.calibration is not None:
            self.calibration.stop()
        self.streams.stop()
        ended = self.server.stop(self.grace_seconds)  # takes no new calls; those under way go on
        for waiting in (self.unread, self.health.unread, self.described):
            waiting.stop()
        ended.wait()
        self.admin.close()
        # What is worked on for callers that have left is no call any more.
        while self.admission.inside and time.monotonic() < end:
            time.sleep(0.01)
        return self.admission.inside == 0


def create_server(
    pipeline: Pipeline,
    options: ServerOptions,
    feedback: FeedbackLog | None = None,
    load: Load | None = None,
    name: str = "",
) -> RunningServer:
    """Start answering.

    Args:
        feedback: without, none is taken.
        load: opens the bundle of a name, to be served in place of the pipeline; without, there is no other one.
        name: of the pipeline's bundle.

    Raises AuthError for plain text on an address that other machines can reach, FileError for TLS files that cannot be
    used, OSError if the address is taken.
    """
    if options.tls is None:
        require_loopback(options.address)
    metrics = Metrics()
    interceptors: list[grpc.ServerInterceptor] = [
        ObservingInterceptor((metrics.answered, logs.write, *options.observers))
    ]
    if options.tokens is not None:
        interceptors.append(TokenInterceptor(options.tokens))
    unread = Unread(READING, PATIENCE_S)
    interceptors += [UnreadInterceptor(unread), MalformedInterceptor()]
    streams = Streams(options.feedback_streams)
    server = _bounded(options, interceptors)
    admission = Admission(options.workers, options.waiting)
    metrics.follow(admission)
    live = Live(
        pipeline, lambda begun: metrics.serves(begun.bundle.manifest.model, begun.bundle.manifest.version), name
    )
    metrics.follow_pois(lambda: live.current.reader.pois_age_s)
    admin = AdminServicer(live, load, partial(_say, options.shared, live), is_alone=options.shared is None)
    calibration = None if feedback is None else Calibration(feedback.outcomes, metrics.came)
    servicer = RecommenderServicer(live, admin, metrics, admission, feedback, streams, calibration)
    admin_grpc.add_AdminServiceServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
    pb_grpc.add_RecommenderServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    life = Life()
    life.serve(server)
    described = Described((SERVICE, ADMIN_SERVICE, health.SERVICE_NAME))
    described.serve(server)
    port = _listening(server, options)
    metrics_port = None if options.metrics_port is None else metrics.listen(options.metrics_port, options.metrics_host)
    server.start()
    for name in ("", SERVICE):
        life.set(name, health_pb2.HealthCheckResponse.SERVING)
    asked = Dependencies(life, _questions(live, feedback), metrics.found, interval_s=options.ask_seconds)
    shared, follower = options.shared, None
    if shared is not None and load is not None:
        follower = Follower(shared.agreed, live, load, shared.parent)
    return RunningServer(
        server,
        live,
        admin,
        life,
        admission,
        unread,
        described,
        streams,
        asked,
        calibration,
        follower,
        port,
        metrics_port,
        options.drain_seconds,
        options.grace_seconds,
    )


def _bounded(options: ServerOptions, interceptors: Sequence[grpc.ServerInterceptor]) -> grpc.Server:
    """A server that neither calls nor messages can make larger than it may be."""
    # Threads that wait for a seat, or refuse, cost nothing but their stack.
    threads = options.workers + options.waiting + options.feedback_streams + SPARE_THREADS
    return grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="answer"),
        interceptors=interceptors,
        maximum_concurrent_rpcs=2 * threads,
        options=[
            ("grpc.max_receive_message_length", options.max_message_bytes),
            # Two limits, soft and hard: between them gRPC refuses by chance.
            ("grpc.max_metadata_size", options.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
            ("grpc.so_reuseport", int(options.shared is not None)),
        ],
    )


def _listening(server: grpc.Server, options: ServerOptions) -> int:
    """The port. Raises OSError for an address that cannot be had: the RuntimeError of gRPC names no remedy."""
    credentials = None if options.tls is None else options.tls.credentials()
    try:
        if credentials is None:
            return int(server.add_insecure_port(options.address))
        return int(server.add_secure_port(options.address, credentials))
    except RuntimeError as error:
        why = "another program does, or it is no address of this machine"
        raise OSError(f"cannot listen on {options.address}: {why}; take another one, or port 0 for any free") from error


def _say(shared: Shared | None, live: Live) -> None:
    """Let the processes behind the same port know what answers here."""
    if shared is not None:
        agreement.say(shared.agreed, Agreed(live.name, identity_of(live.current)))


def _questions(live: Live, feedback: FeedbackLog | None) -> dict[str, Callable[[], bool]]:
    """Of each dependency, whether it is there; what the server does without has none."""
    questions: dict[str, Callable[[], bool]] = {"store": lambda: live.current.ask_store()}
    if feedback is not None:
        questions["feedback"] = lambda: feedback.available
    if live.current.retriever is not None:
        questions["index"] = lambda: True  # in memory
    return questions
