"""What is asked, in plain types, and the rules that it must keep before any work is done.

Every broken rule of a request is reported at once, each with the path of its field as the wire contract spells it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from feature_repo import columns
from feature_repo.datasets.schema import Schema

MAX_POIS = 1000
MAX_EVENTS = 1000
MAX_VIOLATIONS = 20  # that are told: a status has to fit into the trailers of a call
MAX_TEXT = 256
MAX_RADIUS_KM = 20_100.0  # a little more than half the way around the globe
DEFAULT_CANDIDATES = 200
DEFAULT_LIMIT = 20
EARLIEST_US = 0  # 1970-01-01
AHEAD_US = 24 * 3600 * 1_000_000


@dataclass(frozen=True)
class Violation:
    """One broken rule: the field's path (`context.place.latitude`) and the rule in words."""

    field: str
    rule: str


class InvalidRequest(ValueError):
    """A request breaks rules of the contract; the message names field and rule, of the first `MAX_VIOLATIONS`.

    `violations` are those; `count` is of all.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations, self.count = tuple(violations[:MAX_VIOLATIONS]), len(violations)
        more = self.count - len(self.violations)
        told = [f"{v.field}: {v.rule}" for v in self.violations]
        super().__init__("; ".join([*told, *([f"and {more} more"] if more else [])]))


class Objective(Enum):
    """Which probability the order of an answer maximises."""

    CLICK = "click"
    ORDER = "order"


@dataclass(frozen=True)
class Place:
    """A point in degrees, WGS84; a coordinate that was not given is None, which the rules refuse."""

    latitude: float | None
    longitude: float | None


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """Who asks, where and when.

    Args:
        time_us: microseconds since the epoch UTC; None: now.
        place: None: unknown.
        scene_inputs: request fields of the data set (`weather`), each a word or a number.
    """

    user_id: str
    scenario_id: str
    time_us: int | None = None
    place: Place | None = None
    scene_inputs: Mapping[str, str | float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """Order these POIs; `limit` 0 returns all of them."""

    context: RequestContext
    poi_ids: Sequence[str]
    limit: int = 0
    objective: Objective = Objective.CLICK


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """Explain this POI's score by the `limit` (0: all) largest causes."""

    context: RequestContext
    poi_id: str
    limit: int = 0
    objective: Objective = Objective.CLICK


@dataclass(frozen=True, kw_only=True)
class RecommendRequest:
    """Find `candidates` POIs (0: the default) and return the best `limit` (0: the default)."""

    context: RequestContext
    candidates: int = 0
    limit: int = 0
    objective: Objective = Objective.CLICK
    radius_km: float | None = None
    only_open: bool = False


@dataclass(frozen=True)
class Rules:
    """The rules of one served model: its data set's request fields and the scenarios that it was trained on."""

    schema: Schema
    scenarios: tuple[str, ...]

    def check_rank(self, request: RankRequest) -> None:
        """Raises InvalidRequest."""
        _refuse(
            *self._context(request.context),
            *_candidates(request.poi_ids),
            *_between("limit", request.limit, 0, MAX_POIS),
        )

    def check_recommend(self, request: RecommendRequest) -> None:
        """Raises InvalidRequest."""
        _refuse(
            *self._context(request.context),
            *_between("candidates", request.candidates, 0, MAX_POIS),
            *_between("limit", request.limit, 0, MAX_POIS),
            *_radius(request),
        )

    def check_explain(self, request: ExplainRequest) -> None:
        """Raises InvalidRequest."""
        _refuse(
            *self._context(request.context),
            *_text(columns.POI_ID, request.poi_id),
            *_between("limit", request.limit, 0, MAX_POIS),
        )

    def _context(self, context: RequestContext) -> Iterator[Violation]:
        yield from _text("context.user_id", context.user_id)
        if context.scenario_id not in self.scenarios:
            known = ", ".join(self.scenarios)
            yield Violation("context.scenario_id", f"{quoted(context.scenario_id)} is unknown; there are {known}")
        if context.time_us is not None:
            latest = time.time_ns() // 1000 + AHEAD_US
            if not EARLIEST_US <= context.time_us <= latest:
                yield Violation("context.time", "must be from the year 1970 on and at most one day ahead of now")
        yield from _place(context.place)
        for name in sorted(context.scene_inputs):
            yield from self._scene_input(name, context.scene_inputs[name])

    def _scene_input(self, name: str, value: str | float) -> Iterator[Violation]:
        path = f"context.scene_inputs[{quoted(name)}]"
        dtypes = {f.name: f.dtype for f in self.schema.request_fields}
        if name not in dtypes:
            known = ", ".join(sorted(dtypes)) or "none"
            yield Violation(path, f"is no request field of {self.schema.dataset}; there are: {known}")
        elif isinstance(value, str) != (dtypes[name] == "string"):
            yield Violation(path, f"must be a {'text' if dtypes[name] == 'string' else 'number'}")
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                yield Violation(path, f"must have at most {MAX_TEXT} characters, has {len(value)}")
        elif not math.isfinite(value):
            yield Violation(path, f"must be a finite number, is {value}; leave the field out if it is unknown")


def check_event(
    path: str, event_id: str, poi_id: str, position: int | None, time_us: int, answer_us: int
) -> Iterator[Violation]:
    """The rules of one feedback event; `path`: of the event, `answer_us`: when its answer was given."""
    yield from _text(f"{path}.event_id", event_id)
    yield from _text(f"{path}.poi_id", poi_id)
    if position is not None:
        yield from _between(f"{path}.position", position, 0, MAX_POIS - 1)
    if not answer_us <= time_us <= time.time_ns() // 1000 + AHEAD_US:
        yield Violation(f"{path}.time", "must not be before the answer, and at most one day ahead of now")


def check_propensity(path: str, propensity: float | None) -> Iterator[Violation]:
    """The same event's propensity; `path`: of the event."""
    if propensity is not None and not 0.0 < propensity <= 1.0:  # NaN is refused here too
        yield Violation(f"{path}.propensity", f"must be above 0 and at most 1, is {propensity}")


def check_event_count(count: int) -> Iterator[Violation]:
    if not 1 <= count <= MAX_EVENTS:
        yield Violation("events", f"must have 1 to {MAX_EVENTS} elements, has {count}")


def _refuse(*violations: Violation) -> None:
    if violations:
        raise InvalidRequest(violations)


def _text(path: str, value: str) -> Iterator[Violation]:
    if not value:
        yield Violation(path, "is required")
    elif len(value) > MAX_TEXT:
        yield Violation(path, f"must have at most {MAX_TEXT} characters, has {len(value)}")
    elif "\0" in value:  # PostgreSQL has no such text, and would refuse all that is stored together with it
        yield Violation(path, "must not contain the character NUL")


def _place(place: Place | None) -> Iterator[Violation]:
    if place is None:
        return
    for name, value, limit in (("latitude", place.latitude, 90.0), ("longitude", place.longitude, 180.0)):
        path = f"context.place.{name}"
        if value is None:
            yield Violation(path, "is required: a place needs latitude and longitude")
        elif not -limit <= value <= limit:  # NaN is refused here too
            yield Violation(path, f"must be from {-limit:.0f} to {limit:.0f} degrees, is {value}")


def _candidates(poi_ids: Sequence[str]) -> Iterator[Violation]:
    if not 1 <= len(poi_ids) <= MAX_POIS:
        yield Violation("poi_ids", f"must have 1 to {MAX_POIS} elements, has {len(poi_ids)}")
        return
    first: dict[str, int] = {}
    for position, poi_id in enumerate(poi_ids):
        yield from _text(f"poi_ids[{position}]", poi_id)
        if first.setdefault(poi_id, position) != position:
            yield Violation(f"poi_ids[{position}]", f"repeats poi_ids[{first[poi_id]}]")
            return


def _radius(request: RecommendRequest) -> Iterator[Violation]:
    if request.radius_km is None:
        return
    if not 0.0 < request.radius_km <= MAX_RADIUS_KM:
        yield Violation("radius_km", f"must be above 0 and at most {MAX_RADIUS_KM:.0f}, is {request.radius_km}")
    if request.context.place is None:
        yield Violation("radius_km", "needs context.place")


def _between(path: str, value: int, low: int, high: int) -> Iterator[Violation]:
    if not low <= value <= high:
        yield Violation(path, f"must be from {low} to {high}, is {value}")


def quoted(value: str) -> str:
    """The value as a short quotation: an error message must not grow with what was sent."""
    return repr(value if len(value) <= 40 else value[:40] + "...")
