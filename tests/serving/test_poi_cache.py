"""Against a plain dictionary that answers what a store would, which the test changes under the cache."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.stores.packed import StoreUnavailable
from serving.online import Read, View
from serving.poi_cache import NEW, PoiCache

TTL_US = 100
VIEWS = (
    View(name="forever", keys=frozenset({"poi_id"}), ttl_us=0, types={"word": pa.string()}, plan=None),
    View(
        name="lives", keys=frozenset({"poi_id"}), ttl_us=TTL_US, types={"n": pa.int64(), "m": pa.float64()}, plan=None
    ),
)


class Store:
    """POI -> (word, n, event time in us); counts what it is asked for."""

    def __init__(self, **rows) -> None:
        self.rows, self.asked, self.away = dict(rows), [], False

    def read(self, views, poi_ids):
        if self.away:
            raise StoreUnavailable("away")
        self.asked.append(list(poi_ids))
        found = [self.rows.get(poi_id) for poi_id in poi_ids]
        times = np.array([row[2] if row else 0 for row in found], dtype=np.int64)
        stale = np.zeros(len(found), dtype=bool)
        values = {
            "forever": {"word": pa.array([row and row[0] for row in found], pa.string())},
            "lives": {
                "n": pa.array([row and row[1] for row in found], pa.int64()),
                "m": pa.array([row and row[1] / 2 for row in found], pa.float64()),
            },
        }
        return [Read(view=view, values=dict(values[view.name]), stale=stale, times_us=times) for view in views]


def plain(reads):
    """word, n, stale, time of each POI."""
    forever, lives = reads
    assert forever.times_us.tolist() == lives.times_us.tolist()
    return list(
        zip(
            forever.values["word"].to_pylist(),
            lives.values["n"].to_pylist(),
            lives.stale.tolist(),
            lives.times_us.tolist(),
            strict=True,
        )
    )


def test_what_was_read_in_the_background_is_not_asked_for_again():
    store = Store(a=("x", 1, 1000), b=("y", 2, 1050))
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=["a", "b"])
    cache.refresh()
    assert store.asked == [["a", "b"]]
    assert plain(cache.read(["b", "a", "b"], 1100)) == [
        ("y", 2, False, 1050),
        ("x", 1, False, 1000),
        ("y", 2, False, 1050),
    ]
    assert len(store.asked) == 1


def test_what_was_not_is_read_with_the_request_and_kept_from_the_next_round_on():
    store = Store(a=("x", 1, 1000), b=("y", 2, 1050), c=("z", 3, 1060))
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=["a", "b"])
    cache.refresh()
    expected = [("z", 3, False, 1060), ("x", 1, False, 1000), (None, None, False, 0), ("y", 2, False, 1050)]
    assert plain(cache.read(["c", "a", "nowhere", "b"], 1100)) == expected
    assert store.asked[1:] == [["c", "nowhere"]]
    cache.refresh()
    assert plain(cache.read(["c", "a", "nowhere", "b"], 1100)) == expected
    assert store.asked[2:] == [["a", "b", "c", "nowhere"], ["nowhere"]], "of what the store lacks nothing is kept"


def test_the_time_to_live_counts_to_the_moment_of_the_request():
    store = Store(a=("x", 1, 1000))
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=["a"])
    cache.refresh()
    assert plain(cache.read(["a"], 1000 + TTL_US)) == [("x", 1, False, 1000)]
    assert plain(cache.read(["a"], 1001 + TTL_US)) == [("x", None, True, 1000)]
    assert plain(cache.read(["a"], 1000 + TTL_US)) == [("x", 1, False, 1000)]


def test_no_value_is_older_than_the_bound():
    store = Store(a=("old", 1, 1000))
    cache = PoiCache(VIEWS, store.read, max_age_s=0.2, first=["a"])
    cache.refresh()
    store.rows["a"] = ("new", 2, 1001)
    time.sleep(0.25)
    assert plain(cache.read(["a"], 1050)) == [("new", 2, False, 1001)]


def test_the_background_keeps_up_with_the_store():
    store = Store(a=("old", 1, 1000))
    cache = PoiCache(VIEWS, store.read, max_age_s=0.15, first=["a"])
    cache.start()
    try:
        time.sleep(0.3)
        store.rows["a"] = ("new", 2, 1001)
        time.sleep(0.3)
        assert cache.age_s < 0.3
        asked = len(store.asked)
        assert plain(cache.read(["a"], 1050, reach=False)) == [("new", 2, False, 1001)]
        assert asked > 2
    finally:
        cache.close()


def test_without_the_store_the_last_values_are_there():
    store = Store(a=("x", 1, 1000))
    cache = PoiCache(VIEWS, store.read, max_age_s=0.01, first=["a"])
    assert plain(cache.read(["a"], 1050, reach=False)) == [(None, None, False, 0)]
    cache.refresh()
    store.away = True
    time.sleep(0.02)
    with pytest.raises(StoreUnavailable):
        cache.read(["a"], 1050)
    with pytest.raises(StoreUnavailable):
        cache.refresh()
    assert plain(cache.read(["a", "b"], 1050, reach=False)) == [("x", 1, False, 1000), (None, None, False, 0)]
    store.away = False
    assert plain(cache.read(["b", "a"], 1050)) == [(None, None, False, 0), ("x", 1, False, 1000)]


def test_beyond_the_capacity_those_that_nobody_asks_for_go():
    store = Store(**{poi_id: ("x", 1, 1000) for poi_id in "abcde"})
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=["a", "b", "c", "d"], capacity=4)
    cache.refresh()
    cache.read(["c", "d", "e"], 0)
    cache.refresh()
    assert set(store.asked[-1]) == {"c", "d", "e", "a"}
    cache.read([f"x{n}" for n in range(100)], 0)
    cache.refresh()
    assert len(store.asked[-1]) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 9), st.integers(1, 300))
    ),
    st.lists(st.sampled_from("abcdef")),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.integers(0, 400),
)
def test_it_answers_what_the_store_would(rows, known, asked, at_us):
    store = Store(**rows)
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=known)
    cache.refresh()
    expected = []
    for poi_id in asked:
        word, n, time_us = rows.get(poi_id, (None, None, 0))
        stale = poi_id in rows and time_us < at_us - TTL_US
        expected.append((word, None if stale else n, stale, time_us))
    assert plain(cache.read(asked, at_us)) == expected


def test_nothing_is_kept_of_places_that_callers_make_up():
    store = Store(a=("x", 1, 1000))
    cache = PoiCache(VIEWS, store.read, max_age_s=60.0, first=["a", "gone"])
    cache.refresh()
    for call in range(30):
        made_up = [f"{call}-{at}" for at in range(1000)]
        assert plain(cache.read(["a", *made_up], 1100))[:2] == [("x", 1, False, 1000), (None, None, False, 0)]
    del store.asked[:]
    cache.refresh()
    assert sum(map(len, store.asked)) <= NEW + 1, "one round looks at some of them, each once"
    del store.asked[:]
    cache.refresh()
    assert store.asked == [["a"]]
    store.rows["gone"] = ("y", 2, 1050)
    assert plain(cache.read(["gone"], 1100)) == [("y", 2, False, 1050)]
    del store.asked[:]
    cache.refresh()
    cache.read(["gone"], 1100)
    assert store.asked == [["a", "gone"]], "what comes to be known is kept"


@pytest.mark.parametrize("age", [0.0, -1.0, float("nan")])
def test_an_age_of_nothing_is_no_bound(age):
    with pytest.raises(ValueError, match="leave the cache out"):
        PoiCache(VIEWS, Store().read, max_age_s=age)
