"""What an operator may do to a running server: `AdminService` on top of what is live and what is in the shadow."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial

import grpc

from serving import observe, wire
from serving import shadow as shadows
from serving.feedback import FeedbackEvent
from serving.live import Changing, Live, NothingBefore
from serving.pipeline import Pipeline, Ranking
from serving.request import RankRequest, RecommendRequest
from serving.v1 import admin_pb2 as pb
from serving.v1 import admin_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
SHARE = 0.1
Load = Callable[[str], Pipeline]


class AdminServicer(pb_grpc.AdminServiceServicer):
    """Changes what is live; safe to call from threads.

    Args:
        load: opens and verifies the bundle of a name; None: this server answers with what it started with.
        announce: is called when an operator has another bundle answer, before anything else can change it.
        is_alone: whether no other process answers on the same address. Of several one would have the shadow, and
            whoever asks for its report would reach any of them.
    """

    def __init__(
        self, live: Live, load: Load | None, announce: Callable[[], None] = lambda: None, *, is_alone: bool = True
    ) -> None:
        self._live, self._load, self._announce, self._is_alone = live, load, announce, is_alone
        self._shadow: shadows.Shadow | None = None
        self._lock = threading.Lock()

    def answered(
        self, request: RankRequest | RecommendRequest, ranking: Ranking, seconds: float, pipeline: Pipeline
    ) -> None:
        """Tell the shadow, where there is one, of an answer; of one that the pipeline which answers by now gave."""
        if (shadow := self._shadow) is not None and pipeline is self._live.current:
            shadow.answered(request, ranking, seconds, pipeline.bundle.manifest.version)

    def happened(self, events: Sequence[FeedbackEvent]) -> None:
        """Tell the shadow, where there is one, of feedback."""
        if (shadow := self._shadow) is not None:
            shadow.happened(events)

    def close(self) -> None:
        """End the shadow."""
        self._put_in_shadow(None)

    def GetServing(self, request: pb.GetServingRequest, context: grpc.ServicerContext) -> pb.GetServingResponse:
        return pb.GetServingResponse(serving=self._serving())

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:
        load = self._loader(request.bundle, context)
        reload = partial(self._live.reload, load, request.bundle, self._announce)
        self._carry_out(reload, f"reload of {request.bundle}", context)
        return pb.ReloadResponse(serving=self._serving())

    def RollBack(self, request: pb.RollBackRequest, context: grpc.ServicerContext) -> pb.RollBackResponse:
        self._carry_out(partial(self._live.roll_back, self._announce), "roll back", context)
        return pb.RollBackResponse(serving=self._serving())

    def Shadow(self, request: pb.ShadowRequest, context: grpc.ServicerContext) -> pb.ShadowResponse:
        share = request.share or SHARE
        if not 0.0 < share <= 1.0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"share: must be above 0 and at most 1, is {share}")
        if not request.bundle:
            self._put_in_shadow(None)
        elif not self._is_alone:
            remedy = "send a part of the requests to a server without --processes, and have that one compare"
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"several processes answer here, and a shadow would be one's alone: {remedy}",
            )
        else:
            load = self._loader(request.bundle, context)
            self._carry_out(lambda: self._cast(load, share), f"shadow of {request.bundle}", context)
        return pb.ShadowResponse(serving=self._serving())

    def _loader(self, name: str, context: grpc.ServicerContext) -> Callable[[], Pipeline]:
        if not NAME.fullmatch(name):
            rule = "must be the name of a bundle: letters, digits, '-', '_' and '.', at most 128 characters"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"bundle: {rule}")
        load = self._load
        if load is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this server loads no other bundle than it started with")
            raise AssertionError("abort returned")
        return lambda: load(name)

    def _carry_out(self, change: Callable[[], None], what: str, context: grpc.ServicerContext) -> None:
        """Make a change, or end the call with the reason why not: an operator is told it, as in the log.

        What cannot be used raises ValueError (a bundle, an index, knowledge, a key) or OSError; anything else is a
        fault.
        """
        try:
            with self._live.changing():  # who follows what is agreed on finds no moment between a change and its word
                change()
        except Changing as error:
            context.abort(grpc.StatusCode.ABORTED, str(error))
        except NothingBefore as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (ValueError, OSError) as error:
            log.warning("%s refused: %s", what, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception:
            observe.fault(context)
        log.info("%s: done", what)

    def _cast(self, load: Callable[[], Pipeline], share: float) -> None:
        self._put_in_shadow(shadows.Shadow(self._live.opened(load), share))

    def _put_in_shadow(self, shadow: shadows.Shadow | None) -> None:
        with self._lock:
            before, self._shadow = self._shadow, shadow
        if before is not None:
            before.close()

    def _serving(self) -> pb.Serving:
        shadow, current, previous = self._shadow, self._live.current, self._live.previous
        return pb.Serving(
            current=wire.model_info(current),
            since=wire.timestamp(self._live.since_us),
            previous=None if previous is None else wire.model_info(previous),
            shadow=None if shadow is None else _report(shadow, current),
        )


def _report(shadow: shadows.Shadow, current: Pipeline) -> pb.ShadowReport:
    tally = shadow.tally(current.bundle.manifest.version)
    return pb.ShadowReport(
        model=wire.model_info(shadow.pipeline),
        share=shadow.share,
        answers=tally.answers,
        failed=tally.failed,
        skipped=tally.skipped,
        overlap_at_10=tally.overlap / max(tally.answers, 1),
        latency_ratio=tally.shadow_seconds / tally.seconds if tally.seconds else 0.0,
        scenarios=[
            pb.ShadowScenario(
                scenario_id=name,
                places=scenario.places,
                mean_p_click=scenario.p_click / max(scenario.places, 1),
                shadow_mean_p_click=scenario.shadow_p_click / max(scenario.places, 1),
                shown=scenario.shown,
                clicks=scenario.clicks,
                expected_clicks=scenario.expected,
                shadow_expected_clicks=scenario.shadow_expected,
            )
            for name, scenario in sorted(tally.scenarios.items())
        ],
    )
