"""The gRPC edge: proto in, pipeline, proto out, and a status code for everything that can go wrong.

The process loads neither transformers nor peft: what a language model knows was computed before and is read.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import torch
from feast import FeatureStore
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from feature_repo.store import open_store, view_of
from feature_repo.workspace import Workspace
from serving import certificate, logs, observe, wire
from serving.admission import Admission, Expired, Gone, Overloaded
from serving.attribution import Signer, key_of
from serving.auth import Tls, TokenInterceptor, require_loopback
from serving.calibration import Calibration
from serving.dependencies import INTERVAL_S, Dependencies
from serving.features import FeatureReader
from serving.feedback import FeedbackBusy, FeedbackLog
from serving.feedback_streams import Stopping, Streams, TooManyStreams
from serving.feedback_tables import FeedbackUnavailable, url_of
from serving.metrics import Metrics
from serving.observe import Observer, ObservingInterceptor
from serving.online import ServiceMismatch
from serving.pipeline import NoIndex, Pipeline, Ranking
from serving.request import InvalidRequest
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.served import ServedLog
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from trainers import bundle as bundles
from trainers.knowledge import load_matrix, served_from

log = logging.getLogger(__name__)
SERVICE = pb.DESCRIPTOR.services_by_name["RecommenderService"].full_name
Answer = TypeVar("Answer")
LONGEST_S = 24 * 3600.0  # a deadline further away is none
FEEDBACK_CALLS = 48  # at a time; where the database is slow they must not take the threads of rankings
SPARE_THREADS = FEEDBACK_CALLS + 16  # and for refusals


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens.

    Args:
        address: host and port; port 0 lets the system choose. Without `tls` it must be of this machine only.
        workers: requests answered at the same time.
        waiting: further ones that wait; what more comes is refused.
        max_message_bytes: larger requests are refused; 1,000 ids of the longest allowed kind fit.
        grace_seconds: how long a stop waits for answers under way.
        metrics_port: where `/metrics` is served over HTTP, on 127.0.0.1; None: nowhere.
        observers: told of every request, beside the metrics and the log.
        ask_seconds: between questions whether the store and the feedback database are there.
    """

    address: str = "127.0.0.1:0"
    workers: int = 4
    waiting: int = 16
    max_message_bytes: int = 2 * 1024 * 1024
    grace_seconds: float = 10.0
    tls: Tls | None = None
    token: str | None = None
    metrics_port: int | None = None
    observers: tuple[Observer, ...] = ()
    ask_seconds: float = INTERVAL_S


class NoFeedback(RuntimeError):
    """Feedback was brought to a server that keeps none."""


class RecommenderServicer(pb_grpc.RecommenderServiceServicer):
    """Translates; whatever decides anything is in the pipeline.

    Args:
        admission: of rankings; feedback has a queue of its own.
        feedback: None where none is kept.
        streams: of feedback.
        calibration: None where there is no feedback.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        admission: Admission,
        feedback: FeedbackLog | None,
        streams: Streams,
        calibration: Calibration | None,
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._admission = admission
        self._feedback = feedback
        self._streams = streams
        self._calibration = calibration
        self._recording = threading.BoundedSemaphore(FEEDBACK_CALLS)
        self._model = wire.model_info(pipeline.bundle.manifest, pipeline.proven)

    def Rank(self, request: pb.RankRequest, context: grpc.ServicerContext) -> pb.RankResponse:
        def answer() -> pb.RankResponse:
            ranking = self._pipeline.rank(wire.rank_request(request))
            return pb.RankResponse(ranking=self._encoded(ranking, request))

        return _guarded(partial(self._admitted, answer, context), context)

    def Recommend(self, request: pb.RecommendRequest, context: grpc.ServicerContext) -> pb.RecommendResponse:
        def answer() -> pb.RecommendResponse:
            ranking = self._pipeline.recommend(wire.recommend_request(request))
            return pb.RecommendResponse(
                ranking=self._encoded(ranking, request), index_version=self._pipeline.index_version
            )

        return _guarded(partial(self._admitted, answer, context), context)

    def _admitted(self, answer: Callable[[], Answer], context: grpc.ServicerContext) -> Answer:
        with ExitStack() as seat:
            with observe.stage("queue"):
                seat.enter_context(self._admission.entered(_remaining_s(context), context.add_callback))
            return answer()

    def _encoded(self, ranking: Ranking, request: pb.RankRequest | pb.RecommendRequest) -> pb.Ranking:
        self._metrics.read(ranking.views, ranking.time_us)
        self._metrics.scored(request.context.scenario_id, ranking.p_click, ranking.p_order)
        if self._calibration is not None:
            self._calibration.answered(request.context.scenario_id, ranking)
        with observe.stage("encode"):
            return wire.ranking(ranking, self._model, request.include_details)

    def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, context: grpc.ServicerContext
    ) -> pb.RecordFeedbackResponse:
        return _guarded(partial(self._record, request, context), context)

    def RecordFeedbackStream(
        self, requests: Iterator[pb.RecordFeedbackRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RecordFeedbackResponse]:
        with closing(self._streams.requests(requests)) as told:
            while (request := _guarded(partial(next, told, None), context)) is not None:
                yield _guarded(partial(self._record, request, context), context)

    def _record(self, request: pb.RecordFeedbackRequest, context: grpc.ServicerContext) -> pb.RecordFeedbackResponse:
        if self._feedback is None:
            raise NoFeedback("this server keeps no feedback")
        if not self._recording.acquire(blocking=False):
            raise FeedbackBusy("too many events are waiting to be stored")
        try:
            events = wire.feedback_events(request, self._pipeline.signer)
            recorded = self._feedback.record(events, _remaining_s(context))
        finally:
            self._recording.release()
        self._metrics.recorded(recorded.new, recorded.repeated)
        return pb.RecordFeedbackResponse(recorded=recorded.new, repeated=recorded.repeated)


def _remaining_s(context: grpc.ServicerContext) -> float | None:
    """Until the caller's deadline; None where there is none: gRPC says so with a number that no clock can wait for."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > LONGEST_S else remaining


def _guarded(answer: Callable[[], Answer], context: grpc.ServicerContext) -> Answer:
    """The answer, or the call ended with the status that its error means."""
    try:
        return answer()
    except InvalidRequest as error:
        context.abort_with_status(rpc_status.to_status(wire.bad_request(error)))
    except (NoIndex, NoFeedback) as error:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except Overloaded as error:
        context.abort_with_status(rpc_status.to_status(wire.overloaded(error)))
    except Expired as error:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
    except Gone as error:
        context.abort(grpc.StatusCode.CANCELLED, str(error))
    except (FeedbackBusy, TooManyStreams) as error:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except (FeedbackUnavailable, Stopping) as error:
        context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except Exception:
        error_id = observe.request_id()
        log.exception("request failed, error id %s", error_id)
        context.abort(grpc.StatusCode.INTERNAL, f"internal error {error_id}")
    raise AssertionError("abort returned")


@dataclass(frozen=True)
class RunningServer:
    """A server that answers; `port` is the one that it listens on."""

    server: grpc.Server
    health: health.HealthServicer
    admission: Admission
    streams: Streams
    dependencies: Dependencies
    calibration: Calibration | None
    port: int
    metrics_port: int | None
    grace_seconds: float

    def stop(self) -> bool:
        """Say NOT_SERVING, take no new calls, wait for those under way; whether none of them hangs."""
        end = time.monotonic() + self.grace_seconds
        self.dependencies.stop()
        if self.calibration is not None:
            self.calibration.stop()
        self.health.enter_graceful_shutdown()
        self.streams.stop()
        self.server.stop(self.grace_seconds).wait()
        # What is worked on for callers that have left is no call any more.
        while self.admission.inside and time.monotonic() < end:
            time.sleep(0.01)
        return self.admission.inside == 0


def create_server(pipeline: Pipeline, options: ServerOptions, feedback: FeedbackLog | None = None) -> RunningServer:
    """Start answering; without `feedback` none is taken.

    Raises AuthError for plain text on an address that other machines can reach, RuntimeError if the address is taken.
    """
    if options.tls is None:
        require_loopback(options.address)
    metrics = Metrics()
    metrics.serves(pipeline.bundle.manifest.model, pipeline.bundle.manifest.version)
    interceptors: list[grpc.ServerInterceptor] = [
        ObservingInterceptor((metrics.answered, logs.write, *options.observers))
    ]
    if options.token is not None:
        interceptors.append(TokenInterceptor(options.token))
    streams = Streams(most_streams := max(1, options.workers // 2))
    # Threads that wait for a seat, or refuse, cost nothing but their stack.
    threads = options.workers + options.waiting + most_streams + SPARE_THREADS
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="answer"),
        interceptors=interceptors,
        maximum_concurrent_rpcs=2 * threads,
        options=[
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    admission = Admission(options.workers, options.waiting)
    metrics.follow(admission)
    calibration = None if feedback is None else Calibration(pipeline.signer, feedback.outcomes, metrics.came)
    servicer = RecommenderServicer(pipeline, metrics, admission, feedback, streams, calibration)
    pb_grpc.add_RecommenderServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    life = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(life, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    if options.tls is None:
        port = server.add_insecure_port(options.address)
    else:
        port = server.add_secure_port(options.address, options.tls.credentials())
    metrics_port = None if options.metrics_port is None else metrics.listen(options.metrics_port)
    server.start()
    for name in ("", SERVICE):
        life.set(name, health_pb2.HealthCheckResponse.SERVING)
    asked = Dependencies(life, _questions(pipeline, feedback), metrics.found, interval_s=options.ask_seconds)
    return RunningServer(
        server, life, admission, streams, asked, calibration, port, metrics_port, options.grace_seconds
    )


def _questions(pipeline: Pipeline, feedback: FeedbackLog | None) -> dict[str, Callable[[], bool]]:
    """Of each dependency, whether it is there; what the server does without has none."""
    questions: dict[str, Callable[[], bool]] = {"store": pipeline.ask_store}
    if feedback is not None:
        questions["feedback"] = lambda: feedback.available
    if pipeline.retriever is not None:
        questions["index"] = lambda: True  # in memory
    return questions


def open_pipeline(
    workspace: Workspace, bundle: Path, index: Path | None, *, unproven: bool = False, served_share: float = 0.0
) -> Pipeline:
    """Load and verify a bundle and, where there is one, an index, over the workspace's store.

    Args:
        unproven: take a bundle without a valid certificate too; every answer then says so.
        served_share: of the answers whose values are kept in `workspace.served`.

    Raises BundleError, IndexArtefactError, Unproven or another ServiceMismatch where one of them cannot be used.
    """
    loaded = bundles.load(bundle)
    store = open_store(workspace)
    _check_knowledge(workspace, store, loaded)
    proven = _is_proven(bundle, loaded, unproven)
    retriever = None if index is None else Retriever.load(index)
    served = None
    if served_share:
        served = ServedLog(workspace.served, served_share, loaded.manifest.version, loaded.schema)
    reader, signer = FeatureReader(store, loaded), Signer(key_of(workspace.attribution_key))
    return Pipeline(reader, Scorer(loaded), retriever, proven=proven, served=served, signer=signer)


def _is_proven(folder: Path, bundle: bundles.Bundle, unproven: bool) -> bool:
    try:
        certificate.check(folder, bundle)
    except certificate.Unproven as error:
        if not unproven:
            raise
        log.warning("%s", error)
        return False
    return True


def _check_knowledge(workspace: Workspace, store: FeatureStore, bundle: bundles.Bundle) -> None:
    """Raises ServiceMismatch if another encoder than the bundle's made the workspace's knowledge, and its own version
    does not stand beside it."""
    for space, version in bundle.manifest.knowledge_versions.items():
        if view_of(store, space, version) != space:
            continue
        path = served_from(workspace, space)
        if path.exists() and (found := load_matrix(path).version) != version:
            raise ServiceMismatch(
                f"{space}: the bundle was trained on version {version}, the workspace holds {found}: train again, or "
                "put the bundle's version beside it (`--beside` of the verb that made it, then `scenerank apply` and "
                "`scenerank materialize`)"
            )


def serve(
    workspace: Workspace,
    bundle: Path,
    index: Path | None,
    options: ServerOptions,
    *,
    unproven: bool = False,
    served_share: float = 0.0,
    started: Callable[[RunningServer], None] = lambda server: None,
) -> None:
    """Answer until SIGTERM or SIGINT, then drain and return.

    Args:
        unproven, served_share: see `open_pipeline`.
        started: called once the server answers; a command line prints the port here.
    """
    torch.set_num_threads(1)  # one core a request: requests run side by side
    pipeline = open_pipeline(workspace, bundle, index, unproven=unproven, served_share=served_share)
    feedback = FeedbackLog(url_of(workspace))
    running = create_server(pipeline, options, feedback)
    # Not an Event: its lock would be held already by the thread that a signal interrupts on its way into waiting.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda arrived, _: signals.put(arrived))
    started(running)
    signals.get()
    ended = [running.stop(), feedback.close()]
    pipeline.close()
    if not all(ended):
        log.error("a call hangs, as where a store does not answer; leaving without it")
        os._exit(1)  # the interpreter would wait for its thread for ever
