"""Check-ins by hand: a log of three users and five venues, what was known when, and where rules and scores rank."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.experiments.check_ins import rules
from benchmarks.experiments.check_ins.analysis import all_gains, resampled
from benchmarks.experiments.check_ins.cells import NOT_FOUND, ranks_of_pairs
from benchmarks.experiments.check_ins.log import (
    DAY_US,
    NEW,
    NEW_AMONG_ALL,
    VISITED,
    CheckIns,
    Ranks,
    Scores,
    gains,
    mean_gains,
    new_venues,
)
from benchmarks.experiments.check_ins.pairs import Pairs, Retrieval, candidates, drawn, spine
from benchmarks.experiments.check_ins.rules import UNSEEN, Asked, Baseline
from benchmarks.experiments.slices import ALL
from feature_repo import columns
from feature_repo.geo import distance_km

# (day, user, venue, daypart); venues lie on a line, a kilometre apart.
LOG = [
    (0.0, 0, 0, 0),
    (1.0, 0, 1, 1),
    (2.0, 1, 1, 0),
    (3.0, 0, 0, 0),
    (4.0, 2, 2, 1),
    (5.0, 0, 1, 1),
    (6.0, 1, 0, 0),
    (7.0, 0, 3, 1),
]
KM = 360 / 40_030  # degrees of latitude
VENUES = 5


@pytest.fixture
def log() -> CheckIns:
    day, user, venue, daypart = (np.array(column) for column in zip(*LOG, strict=True))
    time_us = (day * DAY_US).astype(np.int64)
    places = np.stack([np.arange(VENUES) * KM, np.zeros(VENUES)], axis=1)
    here = np.full((len(LOG), 2), np.nan)
    here[[3, 7]] = [[0.0, 0.0], [2 * KM, 0.0]]
    return CheckIns(
        user=user,
        venue=venue,
        daypart=daypart,
        time_us=time_us,
        known_us=time_us + 60_000_000,
        place=here,
        venues=pa.array([f"v{n}" for n in range(VENUES)]),
        venue_place=places,
        venue_kind=np.array([0, 1, 0, 1, 0]),
        rows=np.arange(len(LOG)) * 10,
    )


def test_nothing_looks_ahead(log: CheckIns) -> None:
    assert log.before(3).tolist() == [0, 1, 2]
    assert log.own_before(5).tolist() == [0, 1, 3]
    assert log.visited.tolist() == [False, False, False, True, False, True, False, False]
    assert new_venues(log, np.array([7])).tolist() == [[False, False, True, True, True]]
    late = replace(log, known_us=log.known_us + 10 * DAY_US)  # nothing is known before the end
    assert not late.visited.any() and not len(late.before(7))


def test_ranks_count_ties_half_and_leave_out_what_is_not_allowed() -> None:
    scores = Scores(first=np.array([[3.0, 2.0, 2.0, 1.0]]), then=np.array([[0.0, 1.0, 1.0, 9.0]]))
    everything, some = np.ones((1, 4), dtype=bool), np.array([[False, True, True, True]])
    assert [rank.tolist() for rank in scores.ranks(np.array([1]), everything, some)] == [[1.5], [0.5]]
    assert scores.ranks(np.array([3]), everything)[0].tolist() == [3.0]


def test_gains_by_hand() -> None:
    found = gains(np.array([0.0, 1.0, 9.5, 10.0, np.inf]))
    assert found["hr"].tolist() == [1, 1, 1, 0, 0]
    assert found["ndcg"].tolist() == pytest.approx([1.0, 1 / math.log2(3), 1 / math.log2(11.5), 0.0, 0.0])


def test_a_slice_is_asked_about_its_own_check_ins() -> None:
    ranks = Ranks(among_all=np.array([0.0, 20.0, 3.0]), among_new=np.array([np.nan, 4.0, np.nan]))
    means = mean_gains(ranks)
    assert means[ALL]["hr"] == pytest.approx(2 / 3) and means[VISITED]["hr"] == 1.0
    assert means[NEW]["ndcg"] == pytest.approx(1 / math.log2(6)) and means[NEW_AMONG_ALL]["hr"] == 0.0
    told = all_gains(ranks)
    assert np.isnan(told[NEW, "hr"]).tolist() == [True, False, True] and told[NEW, "hr"][1] == 1.0


def test_own_check_ins_fade_and_count_less_at_another_time_of_the_day(log: CheckIns) -> None:
    asked = Asked(log, np.array([5]))  # user 0 at daypart 1, five days after the first one
    scores = asked.scores(Baseline(own_half_life_days=2.0, own_elsewhen=0.1)).first[0]
    assert scores.tolist() == pytest.approx([0.1 * (0.5**2.5 + 0.5**1.0), 0.5**2.0, 0, 0, 0])
    everybody = asked.scores(Baseline(half_life_days=math.inf, elsewhen=0.5)).first[0]
    assert everybody.tolist() == pytest.approx([2 * 0.5, 1 + 0.5, 1.0, 0, 0])


def test_what_is_near_is_more_popular(log: CheckIns) -> None:
    asked = Asked(log, np.array([3, 4]))  # the second one tells no place
    found = asked.scores(Baseline(scale_km=0.5)).first
    km = [distance_km(0.0, 0.0, n * KM, 0.0) for n in range(VENUES)]
    visits = np.array([[1, 2, 0, 0, 0], [2, 2, 0, 0, 0]])
    assert found[0].tolist() == pytest.approx(((visits[0] + UNSEEN) * np.exp(-np.array(km) / 0.5)).tolist(), rel=1e-4)
    assert found[1].tolist() == pytest.approx((visits[1] + UNSEEN).tolist())


def test_each_question_gets_the_variant_that_answers_it_best(log: CheckIns) -> None:
    asked = Asked(log, np.arange(3, 8))
    best = rules.chosen(asked, (rules.OWN_DAYPART,))[rules.OWN_DAYPART]
    for (at, metric), variant in best.items():
        told = [mean_gains(asked.ranks(v))[at][metric] for v in rules.variants()[rules.OWN_DAYPART]]
        assert mean_gains(asked.ranks(variant))[at][metric] == max(told)


SMALL = Retrieval(size=2, drawn=1)


def test_candidates_are_own_venues_and_the_best_others_that_are_known(log: CheckIns) -> None:
    rows = np.array([1, 7])
    pairs = candidates(log, rows, SMALL)
    first = pairs.venue[pairs.check_in == 0]
    assert first.tolist() == [0]  # only one venue is known, and it is the user's own
    second = {
        int(v): bool(k) for v, k in zip(pairs.venue[pairs.check_in == 1], pairs.known[pairs.check_in == 1], strict=True)
    }
    assert second == {0: True, 1: True, 2: False}  # nobody was at venues 3 and 4 yet
    assert pairs.q[pairs.check_in == 1].tolist() == [1.0, 1.0, 1.0]


def test_draws_keep_own_venues_and_the_answer_and_say_how_likely_others_were(log: CheckIns) -> None:
    # User 1 comes to venue 0 on day 6: own venue 1, others 0 and 2, of which one is drawn beside the answer.
    rng, rows = np.random.default_rng(0), np.array([6, 7])
    others = []
    for _ in range(200):
        pairs = drawn(log, rows, SMALL, rng)
        assert set(pairs.check_in.tolist()) == {0}  # the venue of the second one is no candidate
        assert {0, 1} <= set(pairs.venue.tolist())
        assert pairs.q[pairs.venue == 1].tolist() == [1.0] and pairs.q[pairs.venue == 0].tolist() == [0.5]
        others.append(2 in pairs.venue)
    assert np.mean(others) == pytest.approx(0.5, abs=0.12)


def test_a_pair_is_the_moment_of_its_check_in_with_another_venue(log: CheckIns) -> None:
    impressions = pa.table(
        {
            columns.ROW_ID: pa.array(range(80)),
            columns.USER_ID: pa.array([f"of row {n}" for n in range(80)]),
            columns.POI_ID: pa.array(["?"] * 80),
            columns.CLICK: pa.array([0] * 80, pa.int8()),
            columns.POSITION: pa.array([3] * 80, pa.int32()),
            columns.PROPENSITY: pa.array([0.1] * 80),
        }
    )
    rows = np.array([6])
    pairs = candidates(log, rows, SMALL)
    made = spine(log, rows, pairs, impressions)
    assert made[columns.USER_ID].to_pylist() == ["of row 60"] * 3
    assert dict(zip(made[columns.POI_ID].to_pylist(), made[columns.CLICK].to_pylist(), strict=True)) == {
        "v0": 1,
        "v1": 0,
        "v2": 0,
    }
    assert made[columns.POSITION].null_count == 3 and made[columns.ROW_ID].to_pylist() == [0, 1, 2]
    assert sorted(made[columns.PROPENSITY].to_pylist()) == [0.5, 0.5, 1.0]


def test_scores_of_pairs_rank_the_answer_among_all_and_among_new_ones(log: CheckIns) -> None:
    rows = np.array([3, 6, 7])  # venue 0 again, venue 0 for the first time, venue 3 which is no candidate
    pairs = Pairs(
        check_in=np.array([0, 0, 1, 1, 1, 2]),
        venue=np.array([0, 1, 1, 0, 2, 2]),
        known=np.array([True, True, True, False, False, False]),
        q=np.ones(6),
    )
    found = ranks_of_pairs(log, rows, pairs, np.array([0.3, 0.3, 0.9, 0.5, 0.1, 0.7]))
    assert found.among_all.tolist() == [0.5, 1.0, NOT_FOUND]
    assert np.isnan(found.among_new[0]) and found.among_new[1:].tolist() == [0.0, NOT_FOUND]


def test_resampling_users_leaves_out_what_is_not_in_the_slice() -> None:
    gain, user = np.array([1.0, 0.0, np.nan, 0.5]), np.array([0, 0, 1, 2])
    times = np.array([[1, 1, 1], [0, 5, 2], [2, 0, 1]])
    assert resampled(gain, user, times).tolist() == pytest.approx([0.5, 0.5, 2.5 / 5])
