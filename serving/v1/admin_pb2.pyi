import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from serving.v1 import recommender_pb2 as _recommender_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServingResponse(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: Serving
    def __init__(self, serving: _Optional[_Union[Serving, _Mapping]] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    def __init__(self, bundle: _Optional[str] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: Serving
    def __init__(self, serving: _Optional[_Union[Serving, _Mapping]] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollBackResponse(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: Serving
    def __init__(self, serving: _Optional[_Union[Serving, _Mapping]] = ...) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("bundle", "share")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    share: float
    def __init__(self, bundle: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class ShadowResponse(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: Serving
    def __init__(self, serving: _Optional[_Union[Serving, _Mapping]] = ...) -> None: ...

class Serving(_message.Message):
    __slots__ = ("current", "since", "previous", "shadow")
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    current: _recommender_pb2.ModelInfo
    since: _timestamp_pb2.Timestamp
    previous: _recommender_pb2.ModelInfo
    shadow: ShadowReport
    def __init__(self, current: _Optional[_Union[_recommender_pb2.ModelInfo, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., previous: _Optional[_Union[_recommender_pb2.ModelInfo, _Mapping]] = ..., shadow: _Optional[_Union[ShadowReport, _Mapping]] = ...) -> None: ...

class ShadowReport(_message.Message):
    __slots__ = ("model", "share", "answers", "failed", "skipped", "overlap_at_10", "latency_ratio", "scenarios")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_AT_10_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    SCENARIOS_FIELD_NUMBER: _ClassVar[int]
    model: _recommender_pb2.ModelInfo
    share: float
    answers: int
    failed: int
    skipped: int
    overlap_at_10: float
    latency_ratio: float
    scenarios: _containers.RepeatedCompositeFieldContainer[ShadowScenario]
    def __init__(self, model: _Optional[_Union[_recommender_pb2.ModelInfo, _Mapping]] = ..., share: _Optional[float] = ..., answers: _Optional[int] = ..., failed: _Optional[int] = ..., skipped: _Optional[int] = ..., overlap_at_10: _Optional[float] = ..., latency_ratio: _Optional[float] = ..., scenarios: _Optional[_Iterable[_Union[ShadowScenario, _Mapping]]] = ...) -> None: ...

class ShadowScenario(_message.Message):
    __slots__ = ("scenario_id", "places", "mean_p_click", "shadow_mean_p_click", "shown", "clicks", "expected_clicks", "shadow_expected_clicks")
    SCENARIO_ID_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    MEAN_P_CLICK_FIELD_NUMBER: _ClassVar[int]
    SHADOW_MEAN_P_CLICK_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    CLICKS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CLICKS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_EXPECTED_CLICKS_FIELD_NUMBER: _ClassVar[int]
    scenario_id: str
    places: int
    mean_p_click: float
    shadow_mean_p_click: float
    shown: int
    clicks: int
    expected_clicks: float
    shadow_expected_clicks: float
    def __init__(self, scenario_id: _Optional[str] = ..., places: _Optional[int] = ..., mean_p_click: _Optional[float] = ..., shadow_mean_p_click: _Optional[float] = ..., shown: _Optional[int] = ..., clicks: _Optional[int] = ..., expected_clicks: _Optional[float] = ..., shadow_expected_clicks: _Optional[float] = ...) -> None: ...
