"""Drawn orders: stated propensities against a case by hand, against frequencies, and against the city's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import permutations
from math import log, prod

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.datasets.city.logging_policy import plackett_luce
from feature_repo.workspace import Workspace
from serving.client import Happened, Recommender, Wish, shown, violations
from serving.exploration import Exploration, gumbel
from serving.feedback import FeedbackLog
from serving.feedback_export import REQUEST, grown
from serving.feedback_tables import opened
from serving.online import ValueStatus
from serving.opening import open_pipeline
from serving.pipeline import Pipeline, order
from serving.server import ServerOptions, create_server

ODDS = np.array([1.0, 3.0, 4.0])  # of three places; the propensities below are shares of these
SCORES = ODDS / (1.0 + ODDS)
DRAWS = 20_000
SCORE = st.floats(0.0, 1.0, width=32)
GUMBEL_OF_AN_ID = [-1.0155081453585506, 2.0713672811181962, 1.8436813422299823]
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def exploring(workspace: Workspace) -> Pipeline:
    return open_pipeline(workspace, workspace.bundles / "larr", workspace.index, unproven=True, explore=TEMPERATURE)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('explored') / 'feedback.db'}"


@pytest.fixture(scope="module")
def explorer(exploring: Pipeline, url: str) -> Iterator[Recommender]:
    log = FeedbackLog(url)
    server = create_server(exploring, ServerOptions(), log)
    with Recommender(f"127.0.0.1:{server.port}") as recommender:
        yield recommender
    server.stop()
    log.close()


def drawn(scores: np.ndarray, known: np.ndarray, temperature: float, answer_id: str) -> tuple[list[int], np.ndarray]:
    exploration = Exploration(temperature)
    statuses = tuple(ValueStatus.PRESENT if there else ValueStatus.MISSING for there in known)
    best = order(exploration.perturbed(scores, answer_id), statuses)
    return best.tolist(), exploration.propensities(scores[best], known[best])


def test_three_places_by_hand():
    """Place 2, then 0, then 1: 4 of 8, 1 of the 4 that are left, the last one."""
    everything = np.ones(3, dtype=bool)
    found = Exploration(1.0).propensities(SCORES[[2, 0, 1]], everything)
    assert found == pytest.approx([4 / 8, 1 / 4, 1])
    # At temperature 1/2 odds count squared: 16 of 26, 1 of 10.
    found = Exploration(0.5).propensities(SCORES[[2, 0, 1]], everything)
    assert found == pytest.approx([16 / 26, 1 / 10, 1])
    # A place that the store does not know is drawn among those alone: it could not stand higher.
    found = Exploration(1.0).propensities(SCORES[[0, 2, 1]], np.array([True, False, False]))
    assert found == pytest.approx([1, 4 / 7, 1])


def test_orders_come_as_often_as_their_propensities_say():
    """Chi-square over the six orders of three places: below 20.5, the 99.9 % quantile of five degrees of freedom."""
    everything, temperature = np.ones(3, dtype=bool), 0.7
    seen: Counter[tuple[int, ...]] = Counter()
    for at in range(DRAWS):
        seen[tuple(drawn(SCORES, everything, temperature, f"answer {at}")[0])] += 1
    stated = {
        p: prod(Exploration(temperature).propensities(SCORES[list(p)], everything)) for p in permutations(range(3))
    }
    assert sum(stated.values()) == pytest.approx(1.0)
    chi_square = sum((seen[p] - DRAWS * chance) ** 2 / (DRAWS * chance) for p, chance in stated.items())
    assert chi_square < 20.5


def test_a_cut_answer_keeps_the_propensities_of_the_whole_one():
    """Of forty places three are returned; each first place comes as often as its propensity says it does."""
    scores = np.random.default_rng(0).uniform(0.05, 0.6, 40)
    everything, first, stated = np.ones(40, dtype=bool), np.zeros(40), np.zeros(40)
    for at in range(DRAWS // 4):
        best, propensities = drawn(scores, everything, 0.5, f"answer {at}")
        first[best[0]] += 1
        stated[best[0]] = propensities[0]
    odds = (scores / (1 - scores)) ** 2
    seen = first > 0
    assert stated[seen] == pytest.approx((odds / odds.sum())[seen])
    expected = DRAWS / 4 * odds / odds.sum()
    assert float(((first - expected) ** 2 / expected).sum()) < 72.1  # the 99.9 % quantile of 39 degrees of freedom


def test_the_propensities_mean_what_those_of_the_citys_log_mean():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(200, 12))
    columns, wanted = plackett_luce(logits, 5, rng)
    for row in range(len(logits)):
        rest = [place for place in range(12) if place not in columns[row]]
        whole = np.array([*columns[row], *rest])
        scores = 1 / (1 + np.exp(-logits[row, whole]))
        found = Exploration(1.0).propensities(scores, np.ones(12, dtype=bool))
        assert found[:5] == pytest.approx(wanted[row], rel=1e-9)


@given(
    places=st.lists(st.tuples(SCORE, st.booleans()), max_size=60),
    temperature=st.floats(0.01, 10.0),
    answer_id=st.text(max_size=30),
)
def test_whatever_is_ranked(places, temperature, answer_id):
    scores = np.array([score for score, _ in places], dtype=np.float32)
    known = np.array([there for _, there in places], dtype=bool)
    best, propensities = drawn(scores, known, temperature, answer_id)
    again, same = drawn(scores, known, temperature, answer_id)
    assert best == again and propensities.tolist() == same.tolist()
    assert sorted(best) == list(range(len(places)))
    assert known[best].tolist() == sorted(known.tolist(), reverse=True)
    assert ((propensities > 0) & (propensities <= 1)).all()
    for end in {int(known.sum()), len(places)} - {0}:
        assert propensities[end - 1] == 1.0  # the last one of those that could stand there


def test_towards_zero_the_order_is_that_of_the_scores():
    scores = np.random.default_rng(1).permutation(np.linspace(0.1, 0.9, 30))
    best, propensities = drawn(scores, np.ones(30, dtype=bool), 1e-4, "an answer")
    assert best == np.argsort(-scores).tolist()
    assert propensities == pytest.approx(np.ones(30))


def test_how_often_the_worse_of_two_stands_first():
    """As the documentation of the temperature says."""
    for steps, share in ((1.0, 0.269), (3.0, 0.047)):
        logits = np.array([0.0, steps * 0.4])
        scores = 1 / (1 + np.exp(-logits))
        assert Exploration(0.4).propensities(scores, np.ones(2, dtype=bool))[0] == pytest.approx(share, abs=1e-3)


def test_noise_is_gumbels_and_stays_the_same():
    assert gumbel(3, "an id") == pytest.approx(GUMBEL_OF_AN_ID, rel=1e-12)
    noise = gumbel(100_000, "another id")
    assert noise.mean() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert np.median(noise) == pytest.approx(-log(log(2)), abs=0.02)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="above 0, not"):
        Exploration(temperature)


def test_an_answer_says_how_it_was_drawn_and_its_id_draws_it_again(exploring, explorer, client, asker, poi_ids):
    certain = client.rank(asker, poi_ids)
    assert not certain.propensities
    asked, orders = ["x1", *poi_ids, "x2"], set()
    for _ in range(5):
        ranking = explorer.rank(asker, asked)
        orders.add(tuple(ranking.poi_ids))
        assert set(ranking.poi_ids[-2:]) == {"x1", "x2"}
        place = {poi_id: at for at, poi_id in enumerate(ranking.poi_ids)}
        scores = np.array([ranking.scores[place[poi_id]] for poi_id in asked], dtype=np.float32)
        known = np.array([False, *[True] * len(poi_ids), False])
        answer_id = exploring.signer.read(ranking.attribution_token).answer_id
        best, propensities = drawn(scores, known, TEMPERATURE, answer_id)
        assert [asked[at] for at in best] == list(ranking.poi_ids)
        assert list(ranking.propensities) == pytest.approx(propensities, rel=1e-6)
    assert len(orders) == 5, "each answer is another draw"


def test_a_limit_keeps_the_chances_of_the_whole_draw(exploring, explorer, asker, poi_ids):
    ranking = explorer.rank(asker, poi_ids, Wish(limit=3))
    whole = explorer.rank(asker, poi_ids)
    scores = dict(zip(whole.poi_ids, whole.scores, strict=True))
    answer_id = exploring.signer.read(ranking.attribution_token).answer_id
    everything = np.ones(len(poi_ids), dtype=bool)
    best, propensities = drawn(np.float32([scores[p] for p in poi_ids]), everything, TEMPERATURE, answer_id)
    assert list(ranking.poi_ids) == [poi_ids[at] for at in best[:3]]
    assert list(ranking.propensities) == pytest.approx(propensities[:3], rel=1e-4)
    assert len(explorer.recommend(asker, Wish(limit=4)).propensities) == 4


def test_the_log_gets_the_propensity_that_was_served(workspace, explorer, client, url, asker, poi_ids, moment):
    explored, certain = explorer.rank(asker, poi_ids[:6]), client.rank(asker, poi_ids[:2])
    again = Happened(  # the second place, seen once more further down
        token=explored.attribution_token, poi_id=explored.poi_ids[1], outcome="shown", position=5, propensity=0.9
    )
    silent = Happened(token=certain.attribution_token, poi_id=certain.poi_ids[0], outcome="clicked", time=moment)
    explorer.record([again, *shown(explored, moment)])
    explorer.record([silent])
    log = grown(workspace, opened(url), moment + timedelta(days=1), timedelta(minutes=30))[0].tables["impressions"]
    rows = [row for row in log.to_pylist() if row[columns.REQUEST_ID].startswith(REQUEST)]
    told = {row[columns.POI_ID]: row for row in rows if row[columns.POSITION] is not None}
    assert [told[poi_id][columns.PROPENSITY] for poi_id in explored.poi_ids] == list(explored.propensities)
    assert told[explored.poi_ids[1]][columns.POSITION] == 1
    assert [row[columns.PROPENSITY] for row in rows if row[columns.POSITION] is None] == [None]
    assert [one.propensity for one in shown(certain)] == [1.0, 1.0]


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_what_is_no_propensity_is_refused(explorer, asker, poi_ids, propensity):
    ranking = explorer.rank(asker, poi_ids[:1])
    bad = Happened(token=ranking.attribution_token, poi_id=poi_ids[0], outcome="shown", propensity=propensity)
    with pytest.raises(grpc.RpcError) as caught:
        explorer.record([bad])
    assert list(violations(caught.value)) == ["events[0].propensity"]
