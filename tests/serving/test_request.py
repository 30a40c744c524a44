from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.datasets.schema import RequestField, Schema, Split
from serving.request import (
    MAX_POIS,
    InvalidRequest,
    Place,
    RankRequest,
    RecommendRequest,
    RequestContext,
    Rules,
)

DAY = datetime(2024, 1, 1, tzinfo=UTC)
RULES = Rules(
    Schema(
        dataset="toy",
        timezone="UTC",
        split=Split(train=DAY, valid=DAY, test=DAY, end=DAY),
        request_fields=(RequestField(name="weather"), RequestField(name="temperature", dtype="float")),
    ),
    scenarios=("home", "search"),
)
CONTEXT = RequestContext(user_id="u", scenario_id="home", place=Place(60.0, 24.0), scene_inputs={"weather": "rain"})
RANK = RankRequest(context=CONTEXT, poi_ids=["a", "b"])
RECOMMEND = RecommendRequest(context=CONTEXT, radius_km=2.0)
TOMORROW_US = 25 * 3600 * 1_000_000


def broken(request: RankRequest | RecommendRequest) -> dict[str, str]:
    check = RULES.check_rank if isinstance(request, RankRequest) else RULES.check_recommend
    with pytest.raises(InvalidRequest) as caught:
        check(request)
    return {violation.field: violation.rule for violation in caught.value.violations}


def in_context(**changes: object) -> RankRequest:
    return replace(RANK, context=replace(CONTEXT, **changes))


def test_requests_at_the_edge_of_every_rule_pass():
    RULES.check_rank(RANK)
    RULES.check_rank(replace(RANK, poi_ids=[str(i) for i in range(MAX_POIS)], limit=MAX_POIS))
    RULES.check_rank(in_context(place=None, time_us=time.time_ns() // 1000 + 23 * 3600 * 1_000_000))
    RULES.check_rank(in_context(place=Place(-90.0, 180.0), time_us=946_684_800_000_000, user_id="u" * 256))
    RULES.check_rank(in_context(scene_inputs={"weather": "", "temperature": -40.0}))
    RULES.check_recommend(RECOMMEND)
    RULES.check_recommend(replace(RECOMMEND, candidates=1000, limit=1000, radius_km=0.001))


@pytest.mark.parametrize(
    ("request_", "field", "rule"),
    [
        (in_context(user_id=""), "context.user_id", "is required"),
        (in_context(user_id="u" * 257), "context.user_id", "at most 256 characters, has 257"),
        (in_context(scenario_id="tab9"), "context.scenario_id", "'tab9' is unknown; there are home, search"),
        (in_context(time_us=-1), "context.time", "from the year 1970 on"),
        (in_context(time_us=time.time_ns() // 1000 + TOMORROW_US), "context.time", "at most one day ahead"),
        (in_context(place=Place(90.1, 0.0)), "context.place.latitude", "from -90 to 90 degrees, is 90.1"),
        (in_context(place=Place(0.0, float("nan"))), "context.place.longitude", "from -180 to 180 degrees, is nan"),
        (in_context(place=Place(0.0, None)), "context.place.longitude", "is required"),
        (in_context(place=Place(None, None)), "context.place.latitude", "is required"),
        (in_context(scene_inputs={"moon": "full"}), "context.scene_inputs['moon']", "there are: temperature, weather"),
        (in_context(scene_inputs={"weather": 3.0}), "context.scene_inputs['weather']", "must be a text"),
        (in_context(scene_inputs={"weather": "r" * 257}), "context.scene_inputs['weather']", "has 257"),
        (in_context(scene_inputs={"temperature": "7"}), "context.scene_inputs['temperature']", "must be a number"),
        (in_context(scene_inputs={"temperature": float("inf")}), "context.scene_inputs['temperature']", "is inf"),
        (replace(RANK, poi_ids=[]), "poi_ids", "1 to 1000 elements, has 0"),
        (replace(RANK, poi_ids=["a"] * 1001), "poi_ids", "1 to 1000 elements, has 1001"),
        (replace(RANK, poi_ids=["a", "b", "a"]), "poi_ids[2]", "repeats poi_ids[0]"),
        (replace(RANK, poi_ids=["a", ""]), "poi_ids[1]", "is required"),
        (replace(RANK, limit=-1), "limit", "from 0 to 1000, is -1"),
        (replace(RECOMMEND, limit=1001), "limit", "is 1001"),
        (replace(RECOMMEND, candidates=-5), "candidates", "is -5"),
        (replace(RECOMMEND, radius_km=0.0), "radius_km", "above 0"),
        (replace(RECOMMEND, radius_km=float("nan")), "radius_km", "above 0"),
        (replace(RECOMMEND, context=replace(CONTEXT, place=None)), "radius_km", "needs context.place"),
    ],
)
def test_a_broken_rule_names_its_field_and_itself(request_, field, rule):
    assert rule in broken(request_)[field]


def test_all_broken_rules_are_reported_at_once():
    request = replace(in_context(user_id="", scenario_id="?"), poi_ids=[], limit=-1)
    assert set(broken(request)) == {"context.user_id", "context.scenario_id", "poi_ids", "limit"}


@given(st.text(min_size=50, max_size=2000))
def test_a_message_does_not_grow_with_what_was_sent(text):
    assert len(broken(in_context(scene_inputs={text: "x"}))) == 1
    with pytest.raises(InvalidRequest) as caught:
        RULES.check_rank(in_context(scene_inputs={text: "x"}, scenario_id=text))
    assert len(str(caught.value)) < 1500
