"""Places as waves, and a query that is the same whatever POI stands beside it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import columns, geo
from trainers.encoding import Encoding, Scaler, Vocabulary
from trainers.tower_inputs import PlaceFrame, TowerInputs

FRAME = PlaceFrame(60.17, 24.94)
NUMBERS = (
    "user_log_clicks_7d",
    "user_poi_log_clicks_7d",
    "poi_log_clicks_7d",
    "log_distance_km",
    "scenario_order_rate_28d",
)


def inputs() -> TowerInputs:
    vocabularies = {
        columns.SCENARIO_ID: Vocabulary(("home",)),
        columns.USER_ID: Vocabulary(("u1", "u2")),
        columns.POI_ID: Vocabulary(("p1", "p2", "p3")),
        columns.CATEGORY: Vocabulary(("cafe",)),
        columns.scene("daypart"): Vocabulary(("lunch",)),
    }
    encoding = Encoding(
        timezone="Europe/Helsinki",
        user_columns=(columns.SCENARIO_ID, columns.USER_ID),
        poi_columns=(columns.POI_ID, columns.CATEGORY),
        scene_features=("daypart",),
        text_spaces=(),
        vocabularies=vocabularies,
        scalers={name: Scaler(0.5, 2.0, -99.0, 99.0) for name in NUMBERS},
        rates=(0.1, 0.2),
    )
    return TowerInputs(encoding, FRAME)


def request() -> dict[str, list[object]]:
    return {
        columns.SCENARIO_ID: ["home", None],
        columns.USER_ID: ["u2", "nobody"],
        "event_time_us": [1_430_000_000_000_000] * 2,
        columns.scene("daypart"): ["lunch", None],
        columns.statistic("user", "clicks", 7): [6, None],
        columns.LATITUDE: [60.18, None],
        columns.LONGITUDE: [24.95, None],
        columns.RECENT_POIS: [["p3", "p1"], None],
        columns.RECENT_TIMES: [[1_429_990_000_000_000, 1_429_900_000_000_000], None],
    }


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))
def test_the_product_of_two_codes_depends_on_the_displacement_only(
    north: float, east: float, shift_north: float, shift_east: float
) -> None:
    latitude = FRAME.latitude + np.array([0, north, shift_north, north + shift_north]) / 100
    longitude = FRAME.longitude + np.array([0, east, shift_east, east + shift_east]) / 100
    code = FRAME.code(latitude, longitude)
    assert float(code[0] @ code[1]) == pytest.approx(float(code[2] @ code[3]), abs=1e-4)


def test_nearer_places_have_the_larger_product() -> None:
    latitude = FRAME.latitude + np.array([0.0, 0.001, 0.002, 0.004, 0.02])
    code = FRAME.code(latitude, np.full(5, FRAME.longitude))
    products = code @ code[0]
    km = geo.distance_km(latitude[:1], np.full(1, FRAME.longitude), latitude, np.full(5, FRAME.longitude))
    assert products[0] == pytest.approx(1.0) and list(np.argsort(-products[:4])) == list(np.argsort(km[:4]))
    assert abs(products[4]) < 0.5


def test_an_unknown_place_has_no_code_and_the_date_line_is_no_border() -> None:
    assert not FRAME.code(np.array([np.nan, 60.0]), np.array([24.0, np.nan])).any()
    frame = PlaceFrame(0.0, 179.999)
    code = frame.code(np.zeros(2), np.array([179.9985, -179.9985]))
    assert float(code[0] @ code[1]) == pytest.approx(float(code[0] @ frame.code(np.zeros(1), np.array([179.9955]))[0]))


def test_a_frame_needs_coordinates() -> None:
    names = [columns.POI_LATITUDE, columns.POI_LONGITUDE]
    assert PlaceFrame.fit(pa.table([pa.array([None], pa.float64())] * 2, names=names)) is None
    assert PlaceFrame.fit(pa.table([[60.0, None, 62.0], [20.0, 7.0, 22.0]], names=names)) == PlaceFrame(61.0, 21.0)


def test_a_query_is_the_same_with_and_without_a_poi_beside_it() -> None:
    alone = inputs().query(pa.table(request()))
    poi = {
        columns.POI_ID: ["p3", "p1"],
        columns.CATEGORY: ["cafe", None],
        columns.POI_LATITUDE: [60.0, 60.1],
        columns.POI_LONGITUDE: [24.0, 24.1],
        columns.statistic("poi", "clicks", 7): [50, 60],
        columns.statistic("user_poi", "clicks", 7): [5, 6],
    }
    beside = inputs().query(pa.table({**request(), **poi}))
    assert alone.numeric_BD.equal(beside.numeric_BD) and alone.recent_poi_BN.equal(beside.recent_poi_BN)
    assert alone.categorical_BF[:, :2].equal(beside.categorical_BF[:, :2])
    assert beside.categorical_BF[:, 2].tolist() == [3, 1]


def test_a_query_holds_user_and_scenario_numbers_and_the_place() -> None:
    query = inputs().query(pa.table(request()))
    # log(1 + 6 clicks) scaled by (x - 0.5) / 2; the scenario's rate is the prior; then 24 cosines and 24 sines.
    assert query.numeric_BD.shape == (2, 2 + 48)
    assert query.numeric_BD[:, 0].tolist() == pytest.approx([(np.log(7) - 0.5) / 2, -0.25])
    assert query.numeric_BD[:, 1].tolist() == pytest.approx([(0.2 - 0.5) / 2] * 2)
    assert query.numeric_BD[:, 2:].norm(dim=1).tolist() == pytest.approx([1.0, 0.0])
    assert query.categorical_BF[:, :2].tolist() == [[1, 2], [0, 0]]
    assert query.recent_poi_BN[:, :3].tolist() == [[3, 1, 0], [0, 0, 0]]


def test_inputs_survive_json() -> None:
    again = TowerInputs.from_json(inputs().to_json())
    assert again.frame == FRAME
    table = pa.table(request())
    assert again.query(table).numeric_BD.equal(inputs().query(table).numeric_BD)
    assert TowerInputs.from_json(TowerInputs(inputs().encoding, None).to_json()).frame is None
