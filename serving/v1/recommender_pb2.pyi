import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_CLICK: _ClassVar[Objective]
    OBJECTIVE_ORDER: _ClassVar[Objective]

class CauseKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_KIND_UNSPECIFIED: _ClassVar[CauseKind]
    CAUSE_KIND_SCENE_VALUE: _ClassVar[CauseKind]
    CAUSE_KIND_KNOWLEDGE: _ClassVar[CauseKind]
    CAUSE_KIND_FEATURE: _ClassVar[CauseKind]

class CauseLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_LEVEL_UNSPECIFIED: _ClassVar[CauseLevel]
    CAUSE_LEVEL_MOMENT: _ClassVar[CauseLevel]
    CAUSE_LEVEL_USER: _ClassVar[CauseLevel]
    CAUSE_LEVEL_POI: _ClassVar[CauseLevel]
    CAUSE_LEVEL_SCENARIO: _ClassVar[CauseLevel]
    CAUSE_LEVEL_USER_AND_POI: _ClassVar[CauseLevel]

class ValueStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE_STATUS_UNSPECIFIED: _ClassVar[ValueStatus]
    VALUE_STATUS_PRESENT: _ClassVar[ValueStatus]
    VALUE_STATUS_MISSING: _ClassVar[ValueStatus]
    VALUE_STATUS_STALE: _ClassVar[ValueStatus]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_SHOWN: _ClassVar[Outcome]
    OUTCOME_CLICKED: _ClassVar[Outcome]
    OUTCOME_ORDERED: _ClassVar[Outcome]
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_CLICK: Objective
OBJECTIVE_ORDER: Objective
CAUSE_KIND_UNSPECIFIED: CauseKind
CAUSE_KIND_SCENE_VALUE: CauseKind
CAUSE_KIND_KNOWLEDGE: CauseKind
CAUSE_KIND_FEATURE: CauseKind
CAUSE_LEVEL_UNSPECIFIED: CauseLevel
CAUSE_LEVEL_MOMENT: CauseLevel
CAUSE_LEVEL_USER: CauseLevel
CAUSE_LEVEL_POI: CauseLevel
CAUSE_LEVEL_SCENARIO: CauseLevel
CAUSE_LEVEL_USER_AND_POI: CauseLevel
VALUE_STATUS_UNSPECIFIED: ValueStatus
VALUE_STATUS_PRESENT: ValueStatus
VALUE_STATUS_MISSING: ValueStatus
VALUE_STATUS_STALE: ValueStatus
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_SHOWN: Outcome
OUTCOME_CLICKED: Outcome
OUTCOME_ORDERED: Outcome

class RequestContext(_message.Message):
    __slots__ = ("user_id", "scenario_id", "time", "place", "scene_inputs")
    class SceneInputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SceneInput
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SceneInput, _Mapping]] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SCENE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    scenario_id: str
    time: _timestamp_pb2.Timestamp
    place: Place
    scene_inputs: _containers.MessageMap[str, SceneInput]
    def __init__(self, user_id: _Optional[str] = ..., scenario_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., scene_inputs: _Optional[_Mapping[str, SceneInput]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("latitude", "longitude")
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    latitude: float
    longitude: float
    def __init__(self, latitude: _Optional[float] = ..., longitude: _Optional[float] = ...) -> None: ...

class SceneInput(_message.Message):
    __slots__ = ("text", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("context", "poi_ids", "limit", "objective", "include_details")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    POI_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DETAILS_FIELD_NUMBER: _ClassVar[int]
    context: RequestContext
    poi_ids: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    objective: Objective
    include_details: bool
    def __init__(self, context: _Optional[_Union[RequestContext, _Mapping]] = ..., poi_ids: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., objective: _Optional[_Union[Objective, str]] = ..., include_details: _Optional[bool] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("ranking",)
    RANKING_FIELD_NUMBER: _ClassVar[int]
    ranking: Ranking
    def __init__(self, ranking: _Optional[_Union[Ranking, _Mapping]] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("context", "candidates", "limit", "objective", "include_details", "radius_km", "only_open")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DETAILS_FIELD_NUMBER: _ClassVar[int]
    RADIUS_KM_FIELD_NUMBER: _ClassVar[int]
    ONLY_OPEN_FIELD_NUMBER: _ClassVar[int]
    context: RequestContext
    candidates: int
    limit: int
    objective: Objective
    include_details: bool
    radius_km: float
    only_open: bool
    def __init__(self, context: _Optional[_Union[RequestContext, _Mapping]] = ..., candidates: _Optional[int] = ..., limit: _Optional[int] = ..., objective: _Optional[_Union[Objective, str]] = ..., include_details: _Optional[bool] = ..., radius_km: _Optional[float] = ..., only_open: _Optional[bool] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("ranking", "index_version")
    RANKING_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    ranking: Ranking
    index_version: str
    def __init__(self, ranking: _Optional[_Union[Ranking, _Mapping]] = ..., index_version: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("context", "poi_id", "objective", "limit")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    POI_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    context: RequestContext
    poi_id: str
    objective: Objective
    limit: int
    def __init__(self, context: _Optional[_Union[RequestContext, _Mapping]] = ..., poi_id: _Optional[str] = ..., objective: _Optional[_Union[Objective, str]] = ..., limit: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("explanation",)
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    explanation: Explanation
    def __init__(self, explanation: _Optional[_Union[Explanation, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("poi_id", "score", "p_click", "p_order", "causes", "poi_status", "details", "user_status", "scene", "values", "views", "model", "time")
    POI_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    P_CLICK_FIELD_NUMBER: _ClassVar[int]
    P_ORDER_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    POI_STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    USER_STATUS_FIELD_NUMBER: _ClassVar[int]
    SCENE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    poi_id: str
    score: float
    p_click: float
    p_order: float
    causes: _containers.RepeatedCompositeFieldContainer[Cause]
    poi_status: ValueStatus
    details: PoiDetails
    user_status: ValueStatus
    scene: _containers.RepeatedCompositeFieldContainer[SceneAspect]
    values: StatusCounts
    views: _containers.RepeatedCompositeFieldContainer[ViewStatus]
    model: ModelInfo
    time: _timestamp_pb2.Timestamp
    def __init__(self, poi_id: _Optional[str] = ..., score: _Optional[float] = ..., p_click: _Optional[float] = ..., p_order: _Optional[float] = ..., causes: _Optional[_Iterable[_Union[Cause, _Mapping]]] = ..., poi_status: _Optional[_Union[ValueStatus, str]] = ..., details: _Optional[_Union[PoiDetails, _Mapping]] = ..., user_status: _Optional[_Union[ValueStatus, str]] = ..., scene: _Optional[_Iterable[_Union[SceneAspect, _Mapping]]] = ..., values: _Optional[_Union[StatusCounts, _Mapping]] = ..., views: _Optional[_Iterable[_Union[ViewStatus, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Cause(_message.Message):
    __slots__ = ("kind", "level", "name", "value", "text", "effect")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    kind: CauseKind
    level: CauseLevel
    name: str
    value: str
    text: str
    effect: float
    def __init__(self, kind: _Optional[_Union[CauseKind, str]] = ..., level: _Optional[_Union[CauseLevel, str]] = ..., name: _Optional[str] = ..., value: _Optional[str] = ..., text: _Optional[str] = ..., effect: _Optional[float] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("poi_ids", "scores", "p_click", "p_order", "distance_km", "poi_statuses", "details", "user_status", "scene", "values", "views", "model", "attribution_token", "time", "degraded", "propensities")
    POI_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    P_CLICK_FIELD_NUMBER: _ClassVar[int]
    P_ORDER_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_KM_FIELD_NUMBER: _ClassVar[int]
    POI_STATUSES_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    USER_STATUS_FIELD_NUMBER: _ClassVar[int]
    SCENE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PROPENSITIES_FIELD_NUMBER: _ClassVar[int]
    poi_ids: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    p_click: _containers.RepeatedScalarFieldContainer[float]
    p_order: _containers.RepeatedScalarFieldContainer[float]
    distance_km: _containers.RepeatedScalarFieldContainer[float]
    poi_statuses: _containers.RepeatedScalarFieldContainer[ValueStatus]
    details: _containers.RepeatedCompositeFieldContainer[PoiDetails]
    user_status: ValueStatus
    scene: _containers.RepeatedCompositeFieldContainer[SceneAspect]
    values: StatusCounts
    views: _containers.RepeatedCompositeFieldContainer[ViewStatus]
    model: ModelInfo
    attribution_token: str
    time: _timestamp_pb2.Timestamp
    degraded: Degradation
    propensities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, poi_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ..., p_click: _Optional[_Iterable[float]] = ..., p_order: _Optional[_Iterable[float]] = ..., distance_km: _Optional[_Iterable[float]] = ..., poi_statuses: _Optional[_Iterable[_Union[ValueStatus, str]]] = ..., details: _Optional[_Iterable[_Union[PoiDetails, _Mapping]]] = ..., user_status: _Optional[_Union[ValueStatus, str]] = ..., scene: _Optional[_Iterable[_Union[SceneAspect, _Mapping]]] = ..., values: _Optional[_Union[StatusCounts, _Mapping]] = ..., views: _Optional[_Iterable[_Union[ViewStatus, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., attribution_token: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., degraded: _Optional[_Union[Degradation, _Mapping]] = ..., propensities: _Optional[_Iterable[float]] = ...) -> None: ...

class Degradation(_message.Message):
    __slots__ = ("level", "reason", "missing")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Degradation.Level]
        LEVEL_FULL_MODEL: _ClassVar[Degradation.Level]
        LEVEL_WITHOUT_SCENE: _ClassVar[Degradation.Level]
        LEVEL_CACHED_SCORES: _ClassVar[Degradation.Level]
        LEVEL_POPULARITY: _ClassVar[Degradation.Level]
    LEVEL_UNSPECIFIED: Degradation.Level
    LEVEL_FULL_MODEL: Degradation.Level
    LEVEL_WITHOUT_SCENE: Degradation.Level
    LEVEL_CACHED_SCORES: Degradation.Level
    LEVEL_POPULARITY: Degradation.Level
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Degradation.Reason]
        REASON_DEADLINE: _ClassVar[Degradation.Reason]
        REASON_STORE_UNAVAILABLE: _ClassVar[Degradation.Reason]
        REASON_STORE_SLOW: _ClassVar[Degradation.Reason]
    REASON_UNSPECIFIED: Degradation.Reason
    REASON_DEADLINE: Degradation.Reason
    REASON_STORE_UNAVAILABLE: Degradation.Reason
    REASON_STORE_SLOW: Degradation.Reason
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    level: Degradation.Level
    reason: Degradation.Reason
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, level: _Optional[_Union[Degradation.Level, str]] = ..., reason: _Optional[_Union[Degradation.Reason, str]] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class PoiDetails(_message.Message):
    __slots__ = ("name", "category")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    category: str
    def __init__(self, name: _Optional[str] = ..., category: _Optional[str] = ...) -> None: ...

class SceneAspect(_message.Message):
    __slots__ = ("feature", "value", "known", "has_vector")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    HAS_VECTOR_FIELD_NUMBER: _ClassVar[int]
    feature: str
    value: str
    known: bool
    has_vector: bool
    def __init__(self, feature: _Optional[str] = ..., value: _Optional[str] = ..., known: _Optional[bool] = ..., has_vector: _Optional[bool] = ...) -> None: ...

class StatusCounts(_message.Message):
    __slots__ = ("present", "missing", "stale")
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    present: int
    missing: int
    stale: int
    def __init__(self, present: _Optional[int] = ..., missing: _Optional[int] = ..., stale: _Optional[int] = ...) -> None: ...

class ViewStatus(_message.Message):
    __slots__ = ("view", "values", "oldest", "newest")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    view: str
    values: StatusCounts
    oldest: _timestamp_pb2.Timestamp
    newest: _timestamp_pb2.Timestamp
    def __init__(self, view: _Optional[str] = ..., values: _Optional[_Union[StatusCounts, _Mapping]] = ..., oldest: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., newest: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "version", "service", "proven")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    service: str
    proven: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., service: _Optional[str] = ..., proven: _Optional[bool] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("event_id", "attribution_token", "poi_id", "outcome", "position", "time", "propensity")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    POI_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    attribution_token: str
    poi_id: str
    outcome: Outcome
    position: int
    time: _timestamp_pb2.Timestamp
    propensity: float
    def __init__(self, event_id: _Optional[str] = ..., attribution_token: _Optional[str] = ..., poi_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., position: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., propensity: _Optional[float] = ...) -> None: ...

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[FeedbackEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[FeedbackEvent, _Mapping]]] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("recorded", "repeated")
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    recorded: int
    repeated: int
    def __init__(self, recorded: _Optional[int] = ..., repeated: _Optional[int] = ...) -> None: ...
