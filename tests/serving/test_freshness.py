"""Ages of values, as they are and as they were promised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from serving import freshness
from serving.freshness import Freshness, Side


@pytest.fixture(scope="module")
def store(city) -> Any:
    from feature_repo.store import open_store

    return open_store(city.workspace)


@pytest.fixture(scope="module")
def end(city):
    return Schema.load(city.workspace.schema).split.end


def of(found: list[Freshness], view: str, side: Side) -> Freshness:
    return next(one for one in found if one.view == view and one.side == side)


def test_ages_are_those_of_the_newest_value_of_each_entity(city, store, end):
    found = list(freshness.measure(store, end))
    views = [view.name for view in store.list_batch_feature_views() if view.online]
    assert [(one.view, one.side) for one in found] == [(v, s) for v in sorted(views) for s in ("offline", "online")]
    state = pq.read_table(city.workspace.source("user_state"))
    state = state.filter(pc.less_equal(state[columns.EVENT_TIMESTAMP], end))
    newest = state.group_by(columns.USER_ID).aggregate([(columns.EVENT_TIMESTAMP, "max")])
    ages = np.array([(end - t).total_seconds() for t in newest[f"{columns.EVENT_TIMESTAMP}_max"].to_pylist()])
    offline = of(found, "user_state", "offline")
    assert offline.entities == len(ages)
    assert offline.ages_s == pytest.approx((ages.min(), np.median(ages), np.quantile(ages, 0.99)))
    assert offline.stale == pytest.approx((ages > 28 * 86_400).mean())
    # The online store was filled up to the end, from where values can still be alive.
    online = of(found, "user_state", "online")
    assert online.entities == (ages <= 28 * 86_400).sum()
    assert online.ages_s[0] == pytest.approx(ages.min())


def test_a_view_is_late_when_its_newest_value_is_older_than_it_promised(store, end):
    in_time = of(list(freshness.measure(store, end)), "user_stats", "online")
    assert in_time.within_s == 26 * 3600 and not in_time.late
    # Counts go on changing for four weeks while events leave their windows, but only in the source.
    later = list(freshness.measure(store, end + timedelta(days=3)))
    assert of(later, "user_stats", "online").late
    assert not of(later, "user_stats", "offline").late
    assert not of(later, "user_profile", "online").late, "attributes promise nothing"


def test_a_promise_about_a_view_without_values_is_broken():
    nothing = Freshness(view="v", side="online", entities=0, ages_s=(), stale=0.0, within_s=60.0)
    assert nothing.late


def test_gauges_can_be_scraped(store, end, tmp_path):
    freshness.export(list(freshness.measure(store, end)), tmp_path / "ages.prom")
    text = (tmp_path / "ages.prom").read_text()
    assert 'scenerank_view_late{side="online",view="user_stats"} 0.0' in text
    assert 'scenerank_view_age_seconds{quantile="0.5",side="offline",view="poi_profile"}' in text


def test_the_verb_fails_where_a_promise_is_broken(city, scenerank, end):
    assert scenerank("freshness").exit_code == 0
    late = scenerank("freshness", "--at", f"{end + timedelta(days=3):%Y-%m-%d}")
    assert late.exit_code == 1 and "late" in late.output


def test_a_source_that_is_not_there_is_no_late_view(city, scenerank):
    """Status 1 says that a promise is broken, 2 that nothing can be told."""
    file = city.workspace.knowledge / "poi_text.parquet"
    aside = file.rename(file.with_suffix(".aside"))
    try:
        done = scenerank("freshness")
    finally:
        aside.rename(file)
    assert done.exit_code == 2 and "a view's source is not there yet (`scenerank embed`, `knowledge`)" in done.words


def test_where_clicks_are_streamed_ages_are_as_of_now(city, scenerank):
    """Of a log of 2012 everything is late then; as of the log's end a pipeline that stopped would never be."""
    city.workspace.stream.touch()
    try:
        now = scenerank("freshness")
    finally:
        city.workspace.stream.unlink()
    assert now.exit_code == 1 and "late" in now.output and f"{datetime.now(UTC):%Y-%m-%d}" in now.output
    assert scenerank("freshness").exit_code == 0
