import numpy as np
import pyarrow as pa

from benchmarks.experiments import slices


def table(requests, pois, weather, place, *, users, clicks, scenarios):
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "click": pa.array(clicks, pa.int8()),
            "scenario_id": pa.array(scenarios, pa.string()),
            "request_id": pa.array(requests, pa.string()),
            "poi_id": pa.array(pois, pa.string()),
            "scene_weather": pa.array(weather, pa.string()),
            "scene_place_kind": pa.array(place, pa.string()),
        }
    )


# 12 requests of two rows: it rains in 11 of them, it snows in one, in which the user is at home.
TRAIN = table(
    [f"r{n // 2}" for n in range(24)],
    ["often"] * 22 + ["twice", "twice"],
    ["rain"] * 22 + ["snow"] * 2,
    [None] * 22 + ["home"] * 2,
    users=["six clicks"] * 12 + ["five clicks"] * 12,
    clicks=[1, 0] * 6 + [1, 0] * 5 + [0, 0],
    scenarios=["search"] * 24,
)
TEST = table(
    ["a", "b", "c", "d", "e"],
    ["often", "twice", "new", "often", "new"],
    ["rain", "snow", "hail", None, "rain"],
    [None, None, "home", None, "moon"],
    users=["six clicks", "five clicks", "new", "six clicks", "new"],
    clicks=[0] * 5,
    scenarios=["search", "feed", "feed", "search", "search"],
)


def test_counts_are_of_training_requests_not_rows():
    found = slices.scene_counts(TRAIN, TEST, ["weather", "place_kind"])
    assert found["weather"].tolist() == [11, 1, 0, slices.OFTEN, 11]
    assert found["place_kind"].tolist() == [slices.OFTEN, slices.OFTEN, 1, slices.OFTEN, 0]


def test_rows_fall_where_the_least_known_value_puts_them(monkeypatch):
    monkeypatch.setattr(slices, "RARE_ROWS", 2)
    found = {name: mask.tolist() for name, mask in slices.slices(TRAIN, TEST, ["weather", "place_kind"]).items()}
    assert found == {
        "all": [True] * 5,
        "unseen scene": [False, False, True, False, True],
        "rare scene": [False, True, False, False, False],
        "frequent scene": [True, False, False, True, False],
        "new POI": [False, False, True, False, True],
        "rare POI": [False, True, False, False, False],
        "known POI": [True, False, False, True, False],
        "untold": [False, True, True, False, True],
        "short history": [False, True, True, False, True],
        "scenario feed": [False, True, True, False, False],
        "scenario search": [True, False, False, True, True],
        "unseen weather": [False, False, True, False, False],
        "unseen place_kind": [False, False, False, False, True],
    }


def test_scenes_and_pois_are_each_cut_into_all_rows_once():
    found = slices.slices(TRAIN, TEST, ["weather", "place_kind"])
    for kinds in (("unseen scene", "rare scene", "frequent scene"), ("new POI", "rare POI", "known POI")):
        assert np.sum([found[kind] for kind in kinds], axis=0).tolist() == [1] * 5


def test_a_data_set_without_scenes_has_frequent_ones_only():
    found = slices.slices(TRAIN, TEST, [])
    assert found["frequent scene"].all() and not found["unseen scene"].any()
