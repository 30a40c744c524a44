"""Retrieval of one request: filters against brute force, and the edges that broke other two-stage recommenders."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns, geo, hours
from serving.retriever import RetrievalError, Retriever
from trainers.encoding import Encoding, Scaler, Vocabulary
from trainers.index import IndexArtefact, IndexConfig, IndexManifest, build_index, filter_columns
from trainers.models.tower import QueryTower, TowerConfig
from trainers.tower_inputs import PlaceFrame, TowerInputs

POIS = 40
RANDOM = np.random.default_rng(5)
OPEN = RANDOM.random((POIS, hours.HOURS_A_WEEK)) < 0.5
LATITUDE, LONGITUDE = 60 + RANDOM.random(POIS) / 10, 24.9 + RANDOM.random(POIS) / 5
UNKNOWN = 3  # the first POIs have neither hours nor a place
# Every POI may be shown everywhere, or: nowhere, on one page, on two.
RULES = [None, [], ["search"], ["search", "lunch"], None]
SHOWN_IN = [RULES[i % len(RULES)] for i in range(POIS)]
SCENARIOS = ("search", "lunch", "feed", None)  # no POI names the last two


def pois(shown_in: list[list[str] | None] | None = None) -> pa.Table:
    known = [None] * UNKNOWN
    return pa.table(
        {
            columns.POI_ID: [f"p{i}" for i in range(POIS)],
            columns.OPEN_HOURS: pa.array([*known, *(hours.encode(row) for row in OPEN[UNKNOWN:])], pa.string()),
            columns.POI_LATITUDE: pa.array([*known, *LATITUDE[UNKNOWN:]], pa.float64()),
            columns.POI_LONGITUDE: pa.array([*known, *LONGITUDE[UNKNOWN:]], pa.float64()),
            columns.SHOWN_IN: pa.array(shown_in or [None] * POIS, pa.list_(pa.string())),
        }
    )


def built(config: IndexConfig, shown_in: list[list[str] | None] | None = None) -> Retriever:
    """A tower with random weights over random POI vectors."""
    encoding = Encoding(
        timezone="UTC",
        user_columns=(columns.USER_ID,),
        poi_columns=(columns.POI_ID,),
        scene_features=(),
        text_spaces=(),
        vocabularies={columns.USER_ID: Vocabulary(("u1", "u2")), columns.POI_ID: Vocabulary(("p1", "p2"))},
        scalers={"log_hours_since_order": Scaler(0.0, 1.0, -9.0, 9.0)},
        rates=(0.1, 0.1),
    )
    inputs = TowerInputs(encoding, PlaceFrame.fit(pois()))
    torch.manual_seed(0)
    tower_config = TowerConfig(embedding=4, hidden=8, taste=6)
    sizes = inputs.sizes
    tower = QueryTower(tower_config, sizes).eval()
    vectors = np.random.default_rng(1).normal(size=(POIS, tower.width)).astype(np.float32)
    index, plan = build_index(vectors, vectors, config)
    manifest = IndexManifest(
        dataset="hand-made",
        trained_until="",
        seed=0,
        tower=tower_config,
        sizes=sizes,
        plan=plan,
        knowledge_versions={},
        scene_fingerprints={},
        metrics={},
    )
    kept = filter_columns(pois(shown_in))
    return Retriever(IndexArtefact(manifest=manifest, inputs=inputs, tower=tower, index=index, pois=kept))


KINDS = {"exact": IndexConfig(), "ivf": IndexConfig(exact_up_to=0)}
BUILT = {kind: built(config) for kind, config in KINDS.items()}
RESTRICTED = {kind: built(config, SHOWN_IN) for kind, config in KINDS.items()}


@pytest.fixture(params=sorted(BUILT))
def retriever(request: pytest.FixtureRequest) -> Retriever:
    return BUILT[request.param]


def asked(user: str | None = "u1", latitude: float | None = 60.05, scenario: str | None = "search") -> pa.Table:
    return pa.table(
        {
            columns.USER_ID: pa.array([user], pa.string()),
            columns.SCENARIO_ID: pa.array([scenario], pa.string()),
            "event_time_us": [1_430_000_000_000_000],
            columns.LATITUDE: pa.array([latitude], pa.float64()),
            columns.LONGITUDE: pa.array([None if latitude is None else 25.0], pa.float64()),
            columns.RECENT_POIS: pa.array([["p2"]], pa.list_(pa.string())),
            columns.RECENT_TIMES: pa.array([[1_429_000_000_000_000]], pa.list_(pa.int64())),
        }
    )


def test_poi_ids_belong_to_their_vectors() -> None:
    retriever = BUILT["exact"]
    vectors = retriever.artefact.index.reconstruct_n(0, POIS)
    best = np.argsort(-(vectors @ retriever.embed(asked())[0]))[:5]
    found = retriever.retrieve(asked(), 5)
    assert found.poi_ids == tuple(f"p{i}" for i in best)
    assert np.allclose(found.scores, (vectors @ retriever.embed(asked())[0])[best], atol=1e-6)
    assert found.scores.dtype == np.float32


def showable(scenario: str | None) -> np.ndarray:
    """Which POIs of `RESTRICTED` the scenario may show."""
    return np.array([rule is None or scenario in rule for rule in SHOWN_IN])


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    scenario=st.sampled_from(SCENARIOS),
    restricted=st.booleans(),
    k=st.integers(1, 60),
    latitude=st.floats(59.9, 60.2),
    longitude=st.floats(24.8, 25.2),
    radius_km=st.one_of(st.just(0.0), st.floats(0, 20)),
    hour=st.one_of(st.none(), st.integers(0, 167)),
)
def test_filters_are_those_of_brute_force(
    kind: str,
    scenario: str | None,
    restricted: bool,
    k: int,
    latitude: float,
    longitude: float,
    radius_km: float,
    hour: int | None,
) -> None:
    km = geo.distance_km(np.array([latitude]), np.array([longitude]), LATITUDE, LONGITUDE)
    passes = km <= radius_km
    passes[:UNKNOWN] = False
    if hour is not None:
        passes &= OPEN[:, hour]
    if restricted:
        passes &= showable(scenario)
    retriever, near = (RESTRICTED if restricted else BUILT)[kind], (latitude, longitude, radius_km)
    found = retriever.retrieve(asked(scenario=scenario), k, near=near, open_hour_of_week=hour)
    assert set(found.poi_ids) <= {f"p{i}" for i in np.flatnonzero(passes)}
    assert len(set(found.poi_ids)) == len(found) == len(found.scores) == min(k, passes.sum())


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_shows_its_own_pois_and_those_that_every_one_may(kind: str, scenario: str | None) -> None:
    found = RESTRICTED[kind].retrieve(asked(scenario=scenario), POIS)
    assert set(found.poi_ids) == {f"p{i}" for i in np.flatnonzero(showable(scenario))}
    assert "p1" not in found.poi_ids and "p0" in found.poi_ids
    assert ("p2" in found.poi_ids) == (scenario == "search")
    assert ("p3" in found.poi_ids) == (scenario in ("search", "lunch"))


def test_what_a_scenario_may_not_show_takes_no_place_of_what_it_may() -> None:
    """The filter is inside the search: the best five that may be shown, not those of the best five that may."""
    retriever = RESTRICTED["exact"]
    vectors = retriever.artefact.index.reconstruct_n(0, POIS)
    score = np.where(showable("feed"), vectors @ retriever.embed(asked(scenario="feed"))[0], -np.inf)
    found = retriever.retrieve(asked(scenario="feed"), 5)
    assert found.poi_ids == tuple(f"p{i}" for i in np.argsort(-score)[:5])


def test_a_request_of_no_scenario_is_shown_what_every_one_may() -> None:
    found = RESTRICTED["exact"].retrieve(asked().drop_columns([columns.SCENARIO_ID]), POIS)
    assert set(found.poi_ids) == {f"p{i}" for i in np.flatnonzero(showable(None))}


def test_who_may_show_all_searches_without_a_filter(retriever: Retriever) -> None:
    assert retriever.allowed("search", None, None) is None
    all_in_search = built(IndexConfig(), [["search"]] * POIS)
    assert all_in_search.allowed("search", None, None) is None
    assert all_in_search.allowed("feed", None, None) is not None
    nowhere = built(IndexConfig(), [[]] * POIS)
    assert nowhere.retrieve(asked(), POIS).poi_ids == ()


def test_a_poi_of_unknown_hours_is_not_closed() -> None:
    for hour in (0, 7, 8, 100, 167):
        found = BUILT["exact"].retrieve(asked(), POIS, open_hour_of_week=hour)
        assert set(found.poi_ids) == {f"p{i}" for i in range(POIS) if i < UNKNOWN or OPEN[i, hour]}


def test_a_radius_reaches_its_border_and_a_whole_globe(retriever: Retriever) -> None:
    here = (LATITUDE[7], LONGITUDE[7])
    assert retriever.retrieve(asked(), 5, near=(*here, 0.0)).poi_ids == ("p7",)
    assert len(retriever.retrieve(asked(), POIS, near=(*here, 20_100.0))) == POIS - UNKNOWN
    to_eight = geo.distance_km(np.array([here[0]]), np.array([here[1]]), LATITUDE[8:9], LONGITUDE[8:9])[0]
    assert "p8" in retriever.retrieve(asked(), POIS, near=(*here, to_eight)).poi_ids
    assert "p8" not in retriever.retrieve(asked(), POIS, near=(*here, to_eight - 1e-6)).poi_ids


def test_more_than_there_are_means_all(retriever: Retriever) -> None:
    assert sorted(retriever.retrieve(asked(), 10_000).poi_ids) == sorted(f"p{i}" for i in range(POIS))


def test_filters_that_leave_nothing_leave_an_empty_answer(retriever: Retriever) -> None:
    found = retriever.retrieve(asked(), 5, near=(-40.0, 100.0, 1.0))
    assert found.poi_ids == () and found.scores.shape == (0,)


@pytest.mark.parametrize("request_row", [asked("nobody"), asked(None), asked("u1", None)])
def test_unknown_users_and_places_are_answered(retriever: Retriever, request_row: pa.Table) -> None:
    found = retriever.retrieve(request_row, 5)
    assert len(found) == 5 and np.isfinite(found.scores).all()


def test_a_row_of_nothing_but_a_time_is_answered(retriever: Retriever) -> None:
    assert len(retriever.retrieve(pa.table({"event_time_us": [0]}), 5)) == 5


def test_user_and_place_matter() -> None:
    retriever = BUILT["exact"]
    orders = {retriever.retrieve(row, POIS).poi_ids for row in (asked("u1"), asked("u2"), asked("u1", 60.09))}
    assert len(orders) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(retriever: Retriever, k: int) -> None:
    with pytest.raises(RetrievalError, match=f"got {k}"):
        retriever.retrieve(asked(), k)


@pytest.mark.parametrize("near", [(91, 0, 1), (0, 181, 1), (0, 0, -1), (float("nan"), 0, 1), (0, 0, float("nan"))])
def test_impossible_places_are_refused(retriever: Retriever, near: tuple[float, float, float]) -> None:
    with pytest.raises(RetrievalError, match="near must be"):
        retriever.retrieve(asked(), 5, near=near)


@pytest.mark.parametrize("hour", [-1, 168])
def test_impossible_hours_are_refused(retriever: Retriever, hour: int) -> None:
    with pytest.raises(RetrievalError, match=r"0 \.\. 167"):
        retriever.retrieve(asked(), 5, open_hour_of_week=hour)


def test_one_request_at_a_time(retriever: Retriever) -> None:
    with pytest.raises(RetrievalError, match="it has 2"):
        retriever.retrieve(pa.concat_tables([asked(), asked()]), 5)
