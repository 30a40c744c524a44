"""Proto <-> plain types, and nothing else: what `recommender.proto` promises, said in the words of the pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from serving.attribution import Attribution, InvalidToken, Signer
from serving.degrade import Degradation
from serving.explain import Cause, CauseKind, CauseLevel, Explanation
from serving.features import SceneAspect
from serving.feedback import FeedbackEvent, Outcome
from serving.online import ValueStatus, ViewReading
from serving.pipeline import Pipeline, Ranking
from serving.request import (
    ExplainRequest,
    InvalidRequest,
    Objective,
    Place,
    RankRequest,
    RecommendRequest,
    RequestContext,
    Violation,
    check_event,
    check_event_count,
    check_propensity,
    quoted,
)
from serving.v1 import recommender_pb2 as pb

OBJECTIVES: dict[int, Objective] = {
    pb.OBJECTIVE_UNSPECIFIED: Objective.CLICK,
    pb.OBJECTIVE_CLICK: Objective.CLICK,
    pb.OBJECTIVE_ORDER: Objective.ORDER,
}
OUTCOMES: dict[int, Outcome] = {
    pb.OUTCOME_SHOWN: Outcome.SHOWN,
    pb.OUTCOME_CLICKED: Outcome.CLICKED,
    pb.OUTCOME_ORDERED: Outcome.ORDERED,
}
# A caller takes 8 KiB of trailers. There the message stands once with up to three bytes for one, and once more, beside
# the violations, in base64, which adds a third.
TOLD_BYTES, MESSAGE_BYTES, PART_BYTES = 3000, 700, 300
CAUSE_KINDS = {
    CauseKind.SCENE_VALUE: pb.CAUSE_KIND_SCENE_VALUE,
    CauseKind.KNOWLEDGE: pb.CAUSE_KIND_KNOWLEDGE,
    CauseKind.FEATURE: pb.CAUSE_KIND_FEATURE,
}
CAUSE_LEVELS = {
    CauseLevel.MOMENT: pb.CAUSE_LEVEL_MOMENT,
    CauseLevel.USER: pb.CAUSE_LEVEL_USER,
    CauseLevel.POI: pb.CAUSE_LEVEL_POI,
    CauseLevel.SCENARIO: pb.CAUSE_LEVEL_SCENARIO,
    CauseLevel.USER_AND_POI: pb.CAUSE_LEVEL_USER_AND_POI,
}
STATUSES = {
    ValueStatus.PRESENT: pb.VALUE_STATUS_PRESENT,
    ValueStatus.MISSING: pb.VALUE_STATUS_MISSING,
    ValueStatus.STALE: pb.VALUE_STATUS_STALE,
}


def rank_request(message: pb.RankRequest) -> RankRequest:
    """Raises InvalidRequest for what plain types cannot say: an unknown objective, an empty input, broken nanos."""
    return RankRequest(
        context=_context(message.context),
        poi_ids=tuple(message.poi_ids),
        limit=message.limit,
        objective=_objective(message.objective),
    )


def recommend_request(message: pb.RecommendRequest) -> RecommendRequest:
    """Raises InvalidRequest as `rank_request` does."""
    return RecommendRequest(
        context=_context(message.context),
        candidates=message.candidates,
        limit=message.limit,
        objective=_objective(message.objective),
        radius_km=message.radius_km if message.HasField("radius_km") else None,
        only_open=message.only_open,
    )


def explain_request(message: pb.ExplainRequest) -> ExplainRequest:
    """Raises InvalidRequest as `rank_request` does."""
    return ExplainRequest(
        context=_context(message.context),
        poi_id=message.poi_id,
        limit=message.limit,
        objective=_objective(message.objective),
    )


def feedback_events(message: pb.RecordFeedbackRequest, signer: Signer) -> list[FeedbackEvent]:
    """Raises InvalidRequest with every broken rule of every event."""
    if violations := list(check_event_count(len(message.events))):
        raise InvalidRequest(violations)
    # Most events of a request are of one answer: each token is read once.
    answers = {token: _answer(token, signer) for token in {one.attribution_token for one in message.events}}
    events: list[FeedbackEvent] = []
    for number, one in enumerate(message.events):
        try:
            events.append(_event(f"events[{number}]", one, answers[one.attribution_token]))
        except InvalidRequest as error:
            violations.extend(error.violations)
    if violations:
        raise InvalidRequest(violations)
    return events


def _answer(token: str, signer: Signer) -> Attribution | InvalidToken:
    try:
        return signer.read(token)
    except InvalidToken as error:
        return error


def _event(path: str, message: pb.FeedbackEvent, answer: Attribution | InvalidToken) -> FeedbackEvent:
    violations = []
    if message.outcome not in OUTCOMES:
        violations.append(
            Violation(f"{path}.outcome", f"{message.outcome} is no outcome; there are {sorted(OUTCOMES)}")
        )
    if isinstance(answer, InvalidToken):
        raise InvalidRequest([*violations, Violation(f"{path}.attribution_token", str(answer))])
    told = message.HasField("time")
    # The answer's own time may be ahead of this clock.
    time_us = _time_us(message.time, f"{path}.time") if told else max(time.time_ns() // 1000, answer.time_us)
    position = message.position if message.HasField("position") else None
    propensity = message.propensity if message.HasField("propensity") else None
    violations += check_event(path, message.event_id, message.poi_id, position, time_us, answer.time_us)
    violations += check_propensity(path, propensity)
    if violations:
        raise InvalidRequest(violations)
    return FeedbackEvent(
        event_id=message.event_id,
        answer=answer,
        poi_id=message.poi_id,
        outcome=OUTCOMES[message.outcome],
        position=position,
        time_us=time_us,
        propensity=propensity,
    )


def model_info(pipeline: Pipeline) -> pb.ModelInfo:
    manifest = pipeline.bundle.manifest
    return pb.ModelInfo(name=manifest.model, version=manifest.version, service=manifest.service, proven=pipeline.proven)


def ranking(answer: Ranking, model: pb.ModelInfo, include_details: bool) -> pb.Ranking:
    message = pb.Ranking(
        poi_ids=answer.poi_ids,
        scores=answer.scores,
        p_click=answer.p_click,
        p_order=answer.p_order,
        distance_km=answer.distance_km,
        poi_statuses=[STATUSES[status] for status in answer.poi_statuses],
        propensities=answer.propensities,
        user_status=STATUSES[answer.user_status],
        scene=[_aspect(aspect) for aspect in answer.scene],
        views=[_view(view) for view in answer.views],
        values=_counts(answer.views),
        model=model,
        attribution_token=answer.token,
        time=timestamp(answer.time_us),
        degraded=None if answer.degradation is None else _degradation(answer.degradation),
    )
    if include_details:
        pairs = zip(answer.names, answer.categories, strict=True)
        message.details.extend(pb.PoiDetails(name=name or "", category=category or "") for name, category in pairs)
    return message


def explanation(answer: Explanation, model: pb.ModelInfo) -> pb.Explanation:
    return pb.Explanation(
        poi_id=answer.poi_id,
        score=answer.score,
        p_click=answer.p_click,
        p_order=answer.p_order,
        causes=[_cause(cause, effect) for cause, effect in zip(answer.causes, answer.effects, strict=True)],
        poi_status=STATUSES[answer.poi_status],
        details=pb.PoiDetails(name=answer.name or "", category=answer.category or ""),
        user_status=STATUSES[answer.user_status],
        scene=[_aspect(aspect) for aspect in answer.scene],
        values=_counts(answer.views),
        views=[_view(view) for view in answer.views],
        model=model,
        time=timestamp(answer.time_us),
    )


def _degradation(degradation: Degradation) -> pb.Degradation:
    return pb.Degradation(
        level=pb.Degradation.Level.Name(degradation.level),
        reason=pb.Degradation.Reason.Name(degradation.reason),
        missing=degradation.missing,
    )


def bad_request(error: InvalidRequest) -> status_pb2.Status:
    """INVALID_ARGUMENT with a field violation for each broken rule, as many as there is room for in a call's trailers.

    The message names the first ones and counts the others.
    """
    broken = [Violation(_clipped(v.field), _clipped(v.rule)) for v in error.violations]
    told, named = _fitting(broken, TOLD_BYTES), _fitting(broken, MESSAGE_BYTES)
    parts = [f"{v.field}: {v.rule}" for v in named]
    if further := len(told) - len(named):
        parts.append(f"{further} more in the details")
    if untold := error.count - len(told):
        parts.append(f"and {untold} more")
    details = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.rule) for v in told]
    )
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="; ".join(parts))
    status.details.add().Pack(details)
    return status


def _fitting(violations: Sequence[Violation], limit: int) -> list[Violation]:
    """The first ones that have together at most so many bytes."""
    sizes = accumulate(len(f"{v.field}: {v.rule}; ".encode()) for v in violations)
    return [violation for violation, size in zip(violations, sizes, strict=True) if size <= limit]


def _clipped(text: str) -> str:
    """At most `PART_BYTES` of UTF-8, cut between characters."""
    raw = text.encode()
    return text if len(raw) <= PART_BYTES else raw[: PART_BYTES - 3].decode(errors="ignore") + "..."


def exhausted(message: str, retry_after_s: float) -> status_pb2.Status:
    """RESOURCE_EXHAUSTED with the time after which to come again."""
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=message)
    hint = error_details_pb2.RetryInfo()
    hint.retry_delay.FromMicroseconds(round(1e6 * retry_after_s))
    status.details.add().Pack(hint)
    return status


def _context(message: pb.RequestContext) -> RequestContext:
    return RequestContext(
        user_id=message.user_id,
        scenario_id=message.scenario_id,
        time_us=_time_us(message.time) if message.HasField("time") else None,
        place=_place(message.place) if message.HasField("place") else None,
        scene_inputs={name: _scene_input(name, message.scene_inputs[name]) for name in sorted(message.scene_inputs)},
    )


def _place(message: pb.Place) -> Place:
    return Place(
        latitude=message.latitude if message.HasField("latitude") else None,
        longitude=message.longitude if message.HasField("longitude") else None,
    )


def _scene_input(name: str, message: pb.SceneInput) -> str | float:
    match message.WhichOneof("kind"):
        case "text":
            return message.text
        case "number":
            return message.number
        case _:
            raise InvalidRequest([Violation(f"context.scene_inputs[{quoted(name)}]", "needs a text or a number")])


def _objective(value: int) -> Objective:
    if value not in OBJECTIVES:
        raise InvalidRequest([Violation("objective", f"{value} is no objective; there are {sorted(OBJECTIVES)}")])
    return OBJECTIVES[value]


def _time_us(message: Timestamp, path: str = "context.time") -> int:
    if not 0 <= message.nanos < 1_000_000_000:
        raise InvalidRequest([Violation(path, f"nanos must be from 0 to 999999999, are {message.nanos}")])
    return message.seconds * 1_000_000 + message.nanos // 1000


def timestamp(time_us: int) -> Timestamp:
    """Of microseconds since the epoch, UTC."""
    seconds, rest = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def _cause(cause: Cause, effect: float) -> pb.Cause:
    return pb.Cause(
        kind=CAUSE_KINDS[cause.kind],
        level=CAUSE_LEVELS[cause.level],
        name=cause.name,
        value=cause.value,
        text=cause.text,
        effect=effect,
    )


def _aspect(aspect: SceneAspect) -> pb.SceneAspect:
    return pb.SceneAspect(
        feature=aspect.feature, value=aspect.value or "", known=aspect.known, has_vector=aspect.has_vector
    )


def _counts(views: Sequence[ViewReading]) -> pb.StatusCounts:
    """Over all views."""
    return pb.StatusCounts(
        present=sum(view.present for view in views),
        missing=sum(view.missing for view in views),
        stale=sum(view.stale for view in views),
    )


def _view(view: ViewReading) -> pb.ViewStatus:
    return pb.ViewStatus(
        view=view.view,
        values=pb.StatusCounts(present=view.present, missing=view.missing, stale=view.stale),
        oldest=None if view.oldest_us is None else timestamp(view.oldest_us),
        newest=None if view.newest_us is None else timestamp(view.newest_us),
    )
