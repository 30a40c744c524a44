from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo import columns, geo
from feature_repo.store import open_store
from serving.client import Recommender, Wish
from serving.features import FeatureReader
from serving.online import ServiceMismatch, ValueStatus
from serving.pipeline import NoIndex, Pipeline, order
from serving.request import InvalidRequest, Objective, Place, RankRequest, RecommendRequest, RequestContext
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.server import ServerOptions, create_server

HERE = Place(60.17, 24.94)
PRESENT, MISSING = ValueStatus.PRESENT, ValueStatus.MISSING


@pytest.fixture
def context(moment):
    return RequestContext(
        user_id="u3", scenario_id="home_feed", time_us=int(pd.Timestamp(moment).value // 1000), place=HERE
    )


def test_an_answer_is_ordered_by_what_the_objective_names(pipeline, context, poi_ids):
    for objective in Objective:
        ranking = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids, objective=objective))
        chosen = ranking.p_order if objective is Objective.ORDER else ranking.p_click
        assert np.array_equal(ranking.scores, chosen)
        assert np.all(np.diff(ranking.scores) <= 0)
        assert sorted(ranking.poi_ids) == sorted(poi_ids)
        assert np.all((ranking.p_order > 0) & (ranking.p_order < ranking.p_click) & (ranking.p_click < 1))


def test_arrays_belong_to_their_poi(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids))
    for position in (0, 7, len(poi_ids) - 1):
        alone = pipeline.rank(RankRequest(context=context, poi_ids=[ranking.poi_ids[position]]))
        assert alone.names[0] == ranking.names[position]
        assert alone.categories[0] == ranking.categories[position]
        assert alone.distance_km[0] == ranking.distance_km[position]
        # Scores do not depend on company: 1e-5 on logits in float32.
        for ours, theirs in ((alone.p_click, ranking.p_click), (alone.p_order, ranking.p_order)):
            assert _logit(ours[0]) == pytest.approx(_logit(theirs[position]), abs=1e-5)


def test_a_limit_cuts_the_end(pipeline, context, poi_ids):
    everything = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids))
    best = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids, limit=3))
    assert best.poi_ids == everything.poi_ids[:3]
    assert len(best.scores) == len(best.distance_km) == len(best.poi_statuses) == len(best.names) == 3


def test_unknown_pois_are_answered_last_with_their_status(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=context, poi_ids=["x1", *poi_ids[:3], "x2"]))
    assert ranking.poi_statuses == (PRESENT, PRESENT, PRESENT, MISSING, MISSING)
    assert set(ranking.poi_ids[3:]) == {"x1", "x2"}
    assert ranking.names[3:] == (None, None)
    assert np.isnan(ranking.distance_km[3:]).all() and np.isfinite(ranking.p_click).all()


def test_equal_scores_keep_the_order_of_the_candidates():
    scores = np.array([0.1, 0.3, 0.9, 0.3, 0.3])
    assert order(scores, (PRESENT, PRESENT, MISSING, PRESENT, PRESENT)).tolist() == [1, 3, 4, 0, 2]


def test_an_unknown_user_is_an_answer(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=replace(context, user_id="nobody"), poi_ids=poi_ids[:2]))
    assert ranking.user_status is MISSING
    assert len(ranking.poi_ids) == 2


def test_distances_are_unknown_without_a_place(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=replace(context, place=None), poi_ids=poi_ids[:2]))
    assert np.isnan(ranking.distance_km).all()


def test_a_click_that_is_stored_changes_the_next_scene(workspace, pipeline, context, poi_ids, moment):
    request = RankRequest(context=replace(context, user_id="clicker"), poi_ids=poi_ids[:2])
    before = {aspect.feature: aspect.value for aspect in pipeline.rank(request).scene}
    row = {
        columns.USER_ID: "clicker",
        columns.RECENT_POIS: [poi_ids[0]],
        columns.RECENT_TIMES: [context.time_us],
        columns.LAST_CATEGORY: "sauna bar",
        columns.LAST_SPECIALTY: "sausage",
        columns.LAST_ORDER_TIME: context.time_us - 3_600_000_000,
        columns.EVENT_TIMESTAMP: moment,
        columns.CREATED_TIMESTAMP: moment,
    }
    open_store(workspace).write_to_online_store("user_state", pd.DataFrame([row]))
    after = {aspect.feature: aspect.value for aspect in pipeline.rank(request).scene}
    assert (before["last_category"], before["since_last_order"]) == (None, None)
    assert (after["last_category"], after["since_last_order"]) == ("sauna bar", "just now")


def test_every_answer_has_a_token_of_its_own(pipeline, context, poi_ids):
    request = RankRequest(context=context, poi_ids=poi_ids[:1])
    assert len({pipeline.rank(request).token for _ in range(5)}) == 5


def test_now_is_the_default_time(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=replace(context, time_us=None), poi_ids=poi_ids[:1]))
    assert abs(ranking.time_us - pd.Timestamp.now("UTC").value // 1000) < 60_000_000
    assert sum(view.stale for view in ranking.views) > 0  # the log is older than every time to live


def test_recommend_finds_and_orders(pipeline, context, poi_ids):
    found = pipeline.recommend(RecommendRequest(context=context, candidates=30, limit=10))
    assert len(found.poi_ids) == 10
    assert np.all(np.diff(found.scores) <= 0)
    again = pipeline.rank(RankRequest(context=context, poi_ids=found.poi_ids))
    assert again.poi_ids == found.poi_ids


def test_more_candidates_than_there_are_pois_means_all(pipeline, context):
    found = pipeline.recommend(RecommendRequest(context=context, candidates=1000, limit=1000))
    assert len(found.poi_ids) == len(pipeline.retriever)


def test_the_radius_holds(pipeline, context):
    found = pipeline.recommend(RecommendRequest(context=context, limit=1000, radius_km=0.4))
    assert 0 < len(found.poi_ids) < len(pipeline.retriever)
    assert np.all(found.distance_km <= 0.4)


def test_no_place_in_reach_is_an_empty_answer(pipeline, context):
    south_pole = replace(context, place=Place(-90.0, 0.0))
    found = pipeline.recommend(RecommendRequest(context=south_pole, radius_km=1.0))
    assert found.poi_ids == () and len(found.scores) == 0
    assert found.scene and found.user_status is PRESENT


def test_only_open_places_at_that_local_hour(pipeline, context):
    everything = pipeline.recommend(RecommendRequest(context=context, candidates=1000, limit=1000))
    at_night = replace(context, time_us=context.time_us + 4 * 3_600_000_000)  # 04:00 local
    still = pipeline.recommend(RecommendRequest(context=at_night, candidates=1000, limit=1000, only_open=True))
    closed = set(everything.poi_ids) - set(still.poi_ids)
    assert closed
    reading = pipeline.reader.read_pois(pipeline.reader.read_context(at_night, at_night.time_us), sorted(closed))
    hour = pd.Timestamp(at_night.time_us, unit="us", tz="UTC").tz_convert(pipeline.bundle.schema.timezone)
    bits = [bin(int("1" + text, 16))[3:] for text in reading.table[columns.OPEN_HOURS].to_pylist()]
    assert {week[hour.dayofweek * 24 + hour.hour] for week in bits} == {"0"}


@pytest.fixture
def restricted(workspace, pipeline):
    """The pipeline over an index whose places may be shown everywhere, in search, or nowhere, in turn."""
    artefact = pipeline.retriever.artefact
    rules = pa.array([[None, ["search"], []][at % 3] for at in range(len(artefact.pois))], pa.list_(pa.string()))
    pois = artefact.pois.set_column(artefact.pois.column_names.index(columns.SHOWN_IN), columns.SHOWN_IN, rules)
    reader = FeatureReader(open_store(workspace), pipeline.bundle)
    return Pipeline(reader, Scorer(pipeline.bundle), Retriever(replace(artefact, pois=pois)))


def may_show(restricted, scenario_id):
    ids = restricted.retriever.artefact.pois[columns.POI_ID].to_pylist()
    return {poi_id for at, poi_id in enumerate(ids) if at % 3 == 0 or (at % 3 == 1 and scenario_id == "search")}


@pytest.mark.parametrize("scenario_id", ["home_feed", "search"])
def test_recommend_finds_what_the_scenario_may_show(pipeline, restricted, context, scenario_id):
    context = replace(context, scenario_id=scenario_id)
    shown = may_show(restricted, scenario_id)
    assert 0 < len(shown) < len(pipeline.retriever)
    found = restricted.recommend(RecommendRequest(context=context, candidates=1000, limit=1000))
    assert set(found.poi_ids) == shown
    narrow = RecommendRequest(context=context, candidates=1000, limit=1000, radius_km=0.8, only_open=True)
    assert set(restricted.recommend(narrow).poi_ids) == shown & set(pipeline.recommend(narrow).poi_ids)


def test_rank_orders_candidates_whichever_scenarios_may_show_them(restricted, context, poi_ids):
    assert not set(poi_ids) <= may_show(restricted, context.scenario_id)
    assert set(restricted.rank(RankRequest(context=context, poi_ids=poi_ids)).poi_ids) == set(poi_ids)


def test_a_server_recommends_what_the_scenario_may_show(restricted, asker, poi_ids):
    server = create_server(restricted, ServerOptions(metrics_port=0))
    try:
        with Recommender(f"127.0.0.1:{server.port}") as client:
            for scenario_id in ("lunch_deals", "search"):
                found = client.recommend(replace(asker, scenario_id=scenario_id), Wish(candidates=1000, limit=1000))
                assert set(found.poi_ids) == may_show(restricted, scenario_id)
            assert set(client.rank(asker, poi_ids).poi_ids) == set(poi_ids)
    finally:
        server.stop()


def test_without_an_index_recommend_says_what_to_do(workspace, pipeline, context):
    alone = Pipeline(FeatureReader(open_store(workspace), pipeline.bundle), Scorer(pipeline.bundle))
    with pytest.raises(NoIndex, match="scenerank index"):
        alone.recommend(RecommendRequest(context=context))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene_fingerprints": {"hour": "0123"}}, "'hour' is declared otherwise than when the index"),
        ({"dataset": "kuairand"}, "the index holds POIs of 'kuairand', the bundle ranks those of 'city'"),
    ],
)
def test_an_index_that_does_not_belong_to_the_bundle_is_refused(pipeline, change, message):
    artefact = pipeline.retriever.artefact
    other = replace(artefact, manifest=replace(artefact.manifest, **change))
    with pytest.raises(ServiceMismatch, match=message):
        Pipeline(pipeline.reader, Scorer(pipeline.bundle), Retriever(other))


def test_broken_requests_are_refused_before_anything_is_read(pipeline, context):
    with pytest.raises(InvalidRequest):
        pipeline.rank(RankRequest(context=context, poi_ids=[]))
    with pytest.raises(InvalidRequest):
        pipeline.recommend(RecommendRequest(context=context, limit=-1))


def test_distances_are_great_circles(pipeline, context, poi_ids):
    ranking = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids[:3]))
    artefact = pipeline.retriever.artefact.pois
    places = {row[columns.POI_ID]: row for row in artefact.to_pylist()}
    for poi_id, distance in zip(ranking.poi_ids, ranking.distance_km, strict=True):
        at = places[poi_id]
        corner = [np.array([v]) for v in (60.17, 24.94, at[columns.POI_LATITUDE], at[columns.POI_LONGITUDE])]
        assert distance == pytest.approx(geo.distance_km(*corner)[0])


def _logit(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))
