"""Estimates from logs: chances by hand and by enumeration, estimators by hand, and coverage in the simulated city."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.experiments.online import off_policy
from benchmarks.experiments.online.coverage import Known, covered, drawn
from benchmarks.experiments.online.crowd import Crowd
from benchmarks.experiments.online.off_policy import Logged, certain, clustered, estimates, logits_of, marginals
from feature_repo.datasets.city import CityConfig
from serving.exploration import Exploration

CITY = CityConfig(users=300, pois=80, days=14, requests_per_user_day=0.6, candidates=6)
FIRST_DAY, CANDIDATES, POSITIONS = 7, 8, 5
LOGS, USERS = 400, 250
# 400 intervals of 95 % hold the truth 366 to 393 times, but for two of a thousand cases (binomial).
NOMINAL = range(366, 394)


def test_three_places_by_hand():
    """Odds 1, 3, 4. The first stands second after the 3 (3/8 * 1/5) or after the 4 (4/8 * 1/4)."""
    chances = marginals(np.log([[1.0, 3.0, 4.0]]), 2)[0]
    assert chances[:, 0] == pytest.approx([1 / 8, 3 / 8, 4 / 8], abs=1e-6)
    assert chances[0, 1] == pytest.approx(3 / 8 / 5 + 4 / 8 / 4, abs=1e-6)


def test_chances_are_those_of_all_orders():
    logits = np.random.default_rng(0).normal(size=(3, 6)) * 2
    wanted = np.zeros((3, 6, 4))
    for row, odds in enumerate(np.exp(logits)):
        for order in permutations(range(6)):
            left = np.cumsum(odds[list(order)][::-1])[::-1]
            chance = float(np.prod(odds[list(order)] / left))
            for position, place in enumerate(order[:4]):
                wanted[row, place, position] += chance
    assert marginals(logits, 4) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_every_position_has_a_place_and_every_place_a_position(spread):
    chances = marginals(np.random.default_rng(1).normal(size=(5, 20)) * spread, 20)
    assert chances.sum(axis=1) == pytest.approx(np.ones((5, 20)), abs=1e-5)
    assert chances.sum(axis=2) == pytest.approx(np.ones((5, 20)), abs=1e-5)


@given(st.lists(st.floats(0.01, 0.9), min_size=1, max_size=30), st.floats(0.2, 2.0))
def test_an_answers_propensities_say_with_which_odds_it_was_drawn(scores, temperature):
    """As they come over the wire."""
    p = np.array(scores)
    told = Exploration(temperature).propensities(p, np.ones(len(p), dtype=bool)).astype(np.float32)
    logits = logits_of(told[None])[0]
    wanted = np.log(p / (1 - p)) / temperature
    assert np.exp(logits - logits.max()) == pytest.approx(np.exp(wanted - wanted.max()), rel=2e-2, abs=1e-5)


def test_estimates_by_hand():
    """Two requests, two places, one position. Shown places had chances 1/2 and 1/4, and would have 1/4 and 1/2:
    weights 1/2 and 2; rewards 1 and 1. What was shown was expected to bring .4 and .1, twice as much would have come
    on average of the log (2 / .5 = 4 times): 1.6 and .4; the other places .2 and .3, so .8 and 1.2."""
    log = Logged(
        user=np.array([0, 1]),
        shown=np.array([[0], [1]]),
        reward=np.array([[1.0], [1.0]]),
        predicted=np.array([[0.4, 0.2], [0.3, 0.1]]),
    )
    mu = np.array([[[1 / 2], [1 / 2]], [[3 / 4], [1 / 4]]])
    pi = np.array([[[1 / 4], [3 / 4]], [[1 / 2], [1 / 2]]])
    found = estimates(log, mu, pi)
    assert found["IPS"].value == pytest.approx((1 / 2 + 2) / 2)
    assert found["SNIPS"].value == pytest.approx(1.0)
    first = 1.6 / 4 + 0.8 * 3 / 4 + 1 / 2 * (1 - 1.6)
    second = 1.2 / 2 + 0.4 / 2 + 2 * (1 - 0.4)
    assert found["DR"].value == pytest.approx((first + second) / 2)
    # Of two values half a difference apart from their mean: the standard error is half the difference.
    assert found["IPS"].error == pytest.approx((2 - 1 / 2) / 2)


def test_a_policys_own_log_needs_no_weights():
    rng = np.random.default_rng(2)
    known = planted(rng.normal(size=(200, 6)), rng.normal(size=(200, 6)), rng)
    log, mu, _ = drawn(known, 100, rng)
    found = estimates(log, mu, mu)
    mean = log.reward.sum(axis=1).mean()
    assert (found["IPS"].value, found["SNIPS"].value) == pytest.approx((mean, mean))
    assert abs(found["DR"].value - mean) < 3 * found["DR"].error


def test_an_order_that_is_not_drawn_is_a_policy_too():
    chances = certain(np.array([[2, 0, 1]]), 3, 2)
    assert chances[0].tolist() == [[0, 1], [0, 0], [1, 0]]


def test_a_users_requests_are_one_draw():
    """The same request thrice says no more than once."""
    values, user = np.random.default_rng(3).normal(size=50), np.arange(50)
    once, thrice = clustered(values, user), clustered(np.repeat(values, 3), np.repeat(user, 3))
    assert (once.value, once.error) == pytest.approx((thrice.value, thrice.error))
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))
    assert once.error == pytest.approx(values.std(ddof=1) / 50**0.5)


def test_intervals_lean_to_the_side_where_little_was_seen():
    """Of values of which a few are large: another large one may be missing, so the interval is longer upwards."""
    found = clustered(np.random.default_rng(10).lognormal(sigma=1.5, size=200), np.arange(200))
    assert found.high - found.value > 1.3 * (found.value - found.low) > 0
    even = clustered(np.random.default_rng(11).normal(size=4000), np.arange(4000))
    assert (even.low, even.high) == pytest.approx(
        (even.value - 1.96 * even.error, even.value + 1.96 * even.error), abs=0.003
    )


def planted(logging: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Known:
    """Two policies of these logits, rewards at random."""
    count, candidates = logging.shape
    return Known(
        user=np.arange(count) // 2,
        logits=logging,
        mu=marginals(logging, 3),
        pi=marginals(other, 3),
        chance=rng.uniform(size=(count, candidates, 3)),
        worth=np.ones((count, candidates)),
        predicted=rng.uniform(0.1, 0.9, size=(count, candidates)),
    )


@pytest.fixture(scope="module")
def city() -> Known:
    """The week's requests, a ranker that knows the true chances badly and one that knows them, and orders in euros."""
    crowd, rng = Crowd(CITY, FIRST_DAY), np.random.default_rng(4)
    rows = np.arange(len(crowd.requests))
    places = crowd.candidates(rows, CANDIDATES, rng)
    chances = crowd.chances(rows, places, POSITIONS)
    click = chances.click[:, :, 0]
    other = np.log(click / (1 - click))
    known = 0.3 * other + rng.normal(size=click.shape) * 0.5
    return Known(
        user=crowd.requests.user,
        logits=known,
        mu=marginals(known, POSITIONS),
        pi=marginals(other, POSITIONS),
        chance=chances.order,
        worth=crowd.bills[places],
        predicted=crowd.bills[places] * 0.3 / (1 + np.exp(-known)),
    )


def test_intervals_cover_the_truth_at_their_nominal_rate(city):
    hits = covered(city, USERS, LOGS, seed=5)
    assert all(hits[name] in NOMINAL for name in off_policy.ESTIMATORS), hits


def test_what_was_logged_is_not_what_would_have_been(city):
    rng, unweighted = np.random.default_rng(6), 0
    for _ in range(50):
        log, _, _ = drawn(city, USERS, rng)
        unweighted += clustered(log.reward.sum(axis=1), log.user).covers(city.truth)
    assert unweighted < 30


def test_a_model_of_the_rewards_makes_intervals_narrower(city):
    found = estimates(*drawn(city, USERS, np.random.default_rng(7)))
    assert found["DR"].error < found["IPS"].error


def test_rewards_do_not_depend_on_neighbours():
    """What the estimates assume: the chances of one place everywhere are those within any slate."""
    crowd = Crowd(CITY, FIRST_DAY)
    rows = crowd.turns(FIRST_DAY)[0]
    places = crowd.candidates(rows, POSITIONS, np.random.default_rng(8))
    chances = crowd.chances(rows, places, POSITIONS)
    requests = crowd.requests.take(rows)
    state = type(crowd._state)(**{name: values[requests.user] for name, values in vars(crowd._state).items()})
    whole = crowd._city.respond(requests, state, places, crowd._want[rows])
    at = np.arange(POSITIONS)
    assert chances.click[:, at, at] == pytest.approx(whole.p_click, rel=1e-12)
    assert chances.order[:, at, at] == pytest.approx(whole.p_click * whole.p_order_if_clicked, rel=1e-12)
    assert (chances.click[:, :, 0] > chances.click[:, :, 1]).all(), "the first position is looked at most"


def test_people_remember_what_they_did_before_and_since():
    crowd = Crowd(CITY, FIRST_DAY)
    rng = np.random.default_rng(9)
    whole = Crowd(CITY, CITY.days)  # everything is before it
    assert not len(whole.requests) and (whole._state.last_click >= 0).mean() > (crowd._state.last_click >= 0).mean()
    rows = crowd.turns(FIRST_DAY)[0]
    places = crowd.candidates(rows, POSITIONS, rng)
    chances = crowd.chances(rows, places, POSITIONS)
    at = np.arange(POSITIONS)
    seen = type(chances)(click=chances.click[:, at, at], order=chances.order[:, at, at])
    outcomes = crowd.act(rows, places, seen, rng)
    assert not (outcomes.order & ~outcomes.click).any()
    once = outcomes.click.sum(axis=1) == 1
    users = crowd.requests.user[rows][once]
    assert (crowd._state.last_click[users] == places[once][outcomes.click[once]]).all()
