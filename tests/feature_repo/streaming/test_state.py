"""The state that clicks leave behind equals the one that the log's own statistics say, whatever order they come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.aggregates import USER_STATE
from feature_repo.streaming.click import Click
from feature_repo.streaming.state import Kind, UserState
from tests.feature_repo.test_aggregates import POIS, SPECIALTIES, START, write_log

KINDS = {poi: Kind(POIS[poi], SPECIALTIES[poi]) for poi in POIS}
DAY = timedelta(days=1)


def click(number: int, poi: str, moment: datetime, ordered: bool = False) -> Click:
    return Click(event_id=f"e{number}", user_id="u0", poi_id=poi, time=moment, ordered=ordered)


moments = st.integers(0, 40_000_000) | st.sampled_from([0, 7_000_000, 39_999_999])  # several clicks at one, too
clicks = st.lists(st.tuples(st.sampled_from(list(POIS)), moments, st.booleans()), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(log=clicks, data=st.data())
def test_any_order_and_any_repetition_gives_the_state_of_the_log(tmp_path_factory, log, data):
    workspace = write_log(tmp_path_factory.mktemp("log"), [("u0", poi, us, 1, int(o)) for poi, us, o in log])
    newest = pq.read_table(workspace.source(USER_STATE)).to_pylist()[-1]
    happened = [click(n, poi, START + timedelta(microseconds=us), o) for n, (poi, us, o) in enumerate(log)]
    arrived = data.draw(st.permutations(happened + happened[:5]))
    cut = data.draw(st.integers(0, len(arrived)))
    state = UserState()
    for some in (arrived[:cut], arrived[cut:], arrived[:3]):
        state = state.after(some, KINDS) if some else state
    assert state.row() == {name: newest[name] for name in state.row()}
    assert state.event_us == int(newest[columns.EVENT_TIMESTAMP].timestamp() * 1e6)
    assert UserState.of(state.row()) == state


@pytest.mark.parametrize("recent", [("p2", "p1"), ("p1", "p2")], ids=["as the log says", "as an older log said"])
def test_a_late_click_after_two_at_one_time_leaves_the_last_one_the_last(recent):
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    time_us = click(1, "p0", moment).time_us
    filled = UserState(recent=tuple((time_us, poi) for poi in recent), last=KINDS[recent[0]])
    state = filled.after([click(3, "p0", moment - timedelta(seconds=5))], {"p0": KINDS["p0"]})
    assert state.recent == ((time_us, "p2"), (time_us, "p1"), (time_us - 5_000_000, "p0"))
    assert state.last == filled.last


def test_a_late_click_takes_its_place_and_leaves_the_last_one_the_last():
    moment = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    state = UserState().after([click(1, "p2", moment)], KINDS).after([click(2, "p0", moment - DAY, True)], KINDS)
    assert state.row()[columns.RECENT_POIS] == ["p2", "p0"]
    assert state.last == Kind("grill", None)
    assert state.last_order_us == click(2, "p0", moment - DAY).time_us
    assert state.event_us == int(datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC).timestamp() * 1e6)


def test_a_click_at_a_full_second_is_not_seen_in_that_second():
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert UserState().after([click(1, "p0", moment)], KINDS).event_us == click(1, "p0", moment).time_us + 1_000_000
