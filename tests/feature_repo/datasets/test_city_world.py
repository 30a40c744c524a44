"""The world behind the city: frozen tables, planted truths, exact propensities, variants that differ where they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from feature_repo import scenes
from feature_repo.datasets.city import (
    CityConfig,
    PlantedScenarios,
    Variant,
    behaviour,
    moments,
    people,
    prepare,
    simulate,
    variants,
    world,
)
from feature_repo.datasets.city.behaviour import City, State
from feature_repo.datasets.city.logging_policy import plackett_luce, policy_logits, show, slices
from feature_repo.datasets.city.moments import Requests
from feature_repo.datasets.city.simulate import Plan, run

CONFIG = CityConfig(users=60, requests_per_user_day=0.15)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return prepare(CONFIG)


@pytest.fixture(scope="module")
def city(plan: Plan) -> City:
    crowd = people.draw(60, 0.15, plan.tables, np.random.default_rng(5))
    return City(tables=plan.tables, venues=plan.venues, people=crowd)


@pytest.fixture(scope="module")
def requests(city: City) -> Requests:
    return moments.draw(city.people, CONFIG.start, CONFIG.days, np.random.default_rng(6))


def at_moment(requests: Requests, **words: str) -> Requests:
    """The same requests with some words of the scene replaced."""
    return replace(requests, **{name: np.full(len(requests), word) for name, word in words.items()})


def scene_logits(city: City, requests: Requests, slate: np.ndarray, state: State | None = None) -> np.ndarray:
    """(n, k) SCENE of one slate for every request."""
    want = behaviour.wanted(city.tables, requests, np.ones(len(requests)))
    all_slates = np.tile(slate, (len(requests), 1))
    return city.respond(requests, state or State.empty(len(requests)), all_slates, want).scene


def venues_with(city: City, concept: str) -> np.ndarray:
    """The ten venues that have most of a concept."""
    return np.argsort(-city.venues.concepts[:, city.tables.concepts.index(concept)])[:10]


def test_the_tables_are_the_frozen_ones() -> None:
    frozen = (world.FOLDER / "WORLD_SHA256").read_text().strip()
    assert world.digest() == frozen, (
        "the world changed: results on it cannot be compared; undo, or announce a new world"
    )


def test_tables_speak_of_each_other_in_the_same_words() -> None:
    tables = world.default()
    assert {concept for rule in tables.rules for concept in rule.weights} <= set(tables.concepts)
    for row in world.rows("tables/affinities.csv"):
        assert len(row["concepts"].split()) == len(world._rule(row).weights), row
    words = {(name, word) for rule in tables.rules for name, accepted in rule.when.items() for word in accepted}
    landmark_kinds = {row["kind"] for row in world.rows("landmarks.csv")}
    themes = {theme for row in world.rows("tables/occasions.csv") for theme in row["themes"].split("|")}
    assert {word for name, word in words if name == "landmark_kind"} <= landmark_kinds
    assert {word for name, word in words if name == "occasion_theme"} >= themes
    assert {word for name, word in words if name == "scenario"} <= set(world.SCENARIOS)
    assert {word for name, word in words if name == "since_last_order"} == {word for _, word in world.SINCE_ORDER}
    assert {row["near"] for row in world.rows("tables/occasions.csv")} - {""} <= {
        row["name"] for row in world.rows("landmarks.csv")
    }
    assert {dish.category for dish in tables.dishes} == set(tables.categories)
    assert len({dish.name for dish in tables.dishes}) == len(tables.dishes) > 300


def test_words_of_the_world_are_the_words_of_the_scene_features() -> None:
    for degrees in (-9.0, -5.0, 4.9, 5.0, 14.0, 21.9, 22.0, 28.0, 35.0):
        assert world.band(np.array([degrees]), world.TEMPERATURE)[0] == scenes.temperature_band(degrees)
    for hours in (0.1, 3.0, 7.9, 8.0, 30.0, 167.9, 168.0, 5000.0):
        word = world.band(np.array([hours]), world.SINCE_ORDER)[0]
        assert word == scenes.since_last_order(int(hours * 3.6e9), 0)


@pytest.mark.parametrize(
    ("concept", "more", "less"),
    [
        ("soup", {"weather": "rain"}, {"weather": "sun"}),
        ("ice-cream", {"weather": "sun"}, {"weather": "snow"}),
        ("beer", {"company": "with friends"}, {"company": "with children"}),
        ("children", {"company": "with children"}, {"company": "with a partner"}),
        ("beer", {"occasion_theme": "hockey"}, {"occasion_theme": "family"}),
        ("takeaway", {"landmark_kind": "station"}, {"landmark_kind": "theatre"}),
        ("takeaway", {"place_kind": "transit stop"}, {"place_kind": "hotel"}),
    ],
)
def test_planted_truths(
    city: City, requests: Requests, concept: str, more: dict[str, str], less: dict[str, str]
) -> None:
    """Every one of the ten places with most of a concept is clicked more at its moments, all else being equal."""
    slate = venues_with(city, concept)
    difference = scene_logits(city, at_moment(requests, **more), slate) - scene_logits(
        city, at_moment(requests, **less), slate
    )
    assert (difference.mean(axis=0) > 0.1).all()


def test_morning_wants_bakeries_and_night_wants_kebab(city: City, requests: Requests) -> None:
    morning, night = (replace(requests, hour=np.full(len(requests), h)) for h in (8, 23))
    for concept, sign in (("pastry", 1), ("kebab", -1)):
        slate = venues_with(city, concept)
        difference = scene_logits(city, morning, slate) - scene_logits(city, night, slate)
        assert (sign * difference.mean(axis=0) > 0.1).all()


def test_rare_words_share_effects_through_concepts(city: City, requests: Requests) -> None:
    """Two names of one kind have the same effect, however rarely each occurs."""
    slate = venues_with(city, "ice-cream")
    names = moments.landmark_names()
    one, other = (
        replace(at_moment(requests, landmark_kind="park"), landmark=np.full(len(requests), names.index(name)))
        for name in ("Simonpuistikko park", "Varsapuistikko park")
    )
    np.testing.assert_array_equal(scene_logits(city, one, slate), scene_logits(city, other, slate))


def test_the_last_click_attracts_its_like_until_something_was_ordered(city: City, requests: Requests) -> None:
    soups = venues_with(city, "soup")
    state = State.empty(len(requests))
    nothing = scene_logits(city, requests, soups[1:], state)
    state.last_click[:] = soups[0]
    clicked = scene_logits(city, requests, soups[1:], state)
    assert (clicked > nothing).all()
    state.last_order_us = requests.time_us - int(5 * 3.6e9)
    sated = scene_logits(city, requests, soups[1:], state)
    state.last_click[:] = behaviour.NEVER
    assert (sated < scene_logits(city, requests, soups[1:], state)).all()


def test_without_semantics_the_scene_has_no_effect_on_places(requests: Requests) -> None:
    plain = prepare(replace(CONFIG, variant=Variant(semantics=False)))
    crowd = people.draw(60, 0.15, plain.tables, np.random.default_rng(5))
    bare = City(tables=plain.tables, venues=plain.venues, people=crowd)
    state = State.empty(len(requests))
    state.last_click[:] = 3
    slate = np.tile(np.arange(10), (len(requests), 1))
    answers = []
    for moment in (
        at_moment(requests, weather="sun", company="alone", landmark_kind="park", occasion_theme="hockey"),
        at_moment(requests, weather="overcast", company="with children", landmark_kind="gym", occasion_theme="fish"),
    ):
        want = behaviour.wanted(plain.tables, moment, np.ones(len(moment)))
        answers.append(bare.respond(moment, state, slate, want))
    np.testing.assert_array_equal(answers[0].scene, 0.0)
    np.testing.assert_array_equal(answers[0].click, answers[1].click)
    np.testing.assert_array_equal(answers[0].order, answers[1].order)


def clicks_by_scenario(spread: float | None, requests: Requests) -> np.ndarray:
    """(scenarios, rows) true click probabilities of the same people, moments and places."""
    variant = Variant() if spread is None else PlantedScenarios(spread=spread)
    planted = prepare(replace(CONFIG, variant=variant))
    crowd = people.draw(60, 0.15, planted.tables, np.random.default_rng(5))
    there = City(tables=planted.tables, venues=planted.venues, people=crowd)
    slate = np.random.default_rng(7).integers(len(planted.venues), size=(len(requests), 10))
    want = behaviour.wanted(planted.tables, requests, crowd.weather_sense[requests.user])
    state = State.empty(len(requests))
    return np.stack(
        [there.respond(at_moment(requests, scenario=s), state, slate, want).p_click.ravel() for s in world.SCENARIOS]
    )


def test_scenarios_are_as_alike_as_planted(requests: Requests) -> None:
    """Correlations of the true click probabilities between scenarios, all else being equal."""
    pairs = np.triu_indices(len(world.SCENARIOS), 1)
    likeness = [np.corrcoef(clicks_by_scenario(s, requests))[pairs] for s in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert (np.diff([of.mean() for of in likeness]) < 0).all()
    assert likeness[0].min() > 0.96  # only positions weigh differently
    assert likeness[-1].mean() < 0.75 and likeness[-1].min() < 0.55


def test_where_scenarios_are_copies_only_positions_tell_them_apart(requests: Requests) -> None:
    clicks = clicks_by_scenario(0.0, requests).reshape(len(world.SCENARIOS), -1, 10)
    logits = np.log(clicks / (1 - clicks))
    by_position = logits - logits.mean(axis=0)
    np.testing.assert_allclose(by_position, by_position[:, :1].repeat(by_position.shape[1], axis=1), atol=1e-9)


def test_a_spread_of_one_is_the_default_world(requests: Requests) -> None:
    np.testing.assert_allclose(clicks_by_scenario(1.0, requests), clicks_by_scenario(None, requests), rtol=1e-9)


def test_spread_moves_what_is_wanted_and_nothing_else() -> None:
    default, planted = world.default(), variants.tables(PlantedScenarios(spread=2.0))
    for name, rules in planted.scenarios.items():
        kept = ("name", "text", "position", "show_distance", "show_taste", "show_theme")
        assert {f: getattr(rules, f) for f in kept} == {f: getattr(default.scenarios[name], f) for f in kept}
    assert planted.scenarios["search"].base == pytest.approx(2 * 0.3 - 0.1 / 6)
    distances = [rules.distance for rules in default.scenarios.values()]
    assert planted.scenarios["nearby_map"].distance == pytest.approx(2.0**2 / np.prod(distances) ** (1 / 6))
    others = [rule for rule in default.rules if rule.attributes != {"scenario"}]
    assert [rule for rule in planted.rules if rule.attributes != {"scenario"}] == others
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        PlantedScenarios(spread=-1.0)


def test_position_distance_and_price_work_against_a_place(city: City, requests: Requests) -> None:
    want = behaviour.wanted(city.tables, requests, np.ones(len(requests)))
    same = np.full((len(requests), 10), 7)
    click = city.respond(requests, State.empty(len(requests)), same, want).click
    assert (np.diff(click, axis=1) < 0).all()
    far = replace(requests, latitude=requests.latitude + 0.05)
    assert (city.respond(far, State.empty(len(requests)), same, want).click < click).all()


def test_plackett_luce_probabilities_are_those_of_the_draw() -> None:
    """All orders of 3 of 4 places: the product of the recorded conditionals is the frequency of the slate."""
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    draws = 200_000
    chosen, p = plackett_luce(np.tile(np.log(weights), (draws, 1)), 3, np.random.default_rng(0))
    code = chosen @ (100, 10, 1)
    total = 0.0
    for slate in permutations(range(4), 3):
        expected = np.prod([weights[slate[i]] / (8.0 - weights[list(slate[:i])].sum()) for i in range(3)])
        hit = code == np.dot(slate, (100, 10, 1))
        np.testing.assert_allclose(p[hit].prod(axis=1), expected)
        assert abs(hit.mean() - expected) < 5 * np.sqrt(expected / draws)
        total += expected
    assert total == pytest.approx(1.0)


def test_closed_doors_are_never_drawn_and_the_last_place_has_probability_one() -> None:
    chosen, p = plackett_luce(np.array([[0.0, -np.inf, 1.0, 2.0]] * 50), 3, np.random.default_rng(0))
    assert (chosen != 1).all()
    np.testing.assert_allclose(p[:, 2], 1.0)


def test_slices_share_the_city_evenly() -> None:
    table = slices(1000)
    assert table.shape == (2, 500)
    assert sorted(table[table >= 0]) == list(range(1000))
    assert slices(460).shape == (1, 460)
    assert (slices(2301) == -1).sum() == slices(2301).size - 2301


def test_recorded_propensity_is_the_softmax_of_the_policy(plan: Plan, city: City, requests: Requests) -> None:
    shown = show(city, requests, plan.opening_day, 10, np.random.default_rng(1))
    logits = policy_logits(city, requests, np.arange(len(city.venues)), plan.opening_day)
    first = np.take_along_axis(logits, shown.venues[:, :1], axis=1)[:, 0]
    expected = np.exp(first) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(shown.propensity[:, 0], expected)
    assert (plan.opening_day[shown.venues] <= requests.day[:, None]).all()


def test_a_variant_speaks_other_words_with_the_same_structure() -> None:
    plain, drawn, again = world.default(), variants.tables(Variant(concepts=7)), variants.tables(Variant(concepts=7))
    assert drawn == again
    assert not set(drawn.concepts) & set(plain.concepts)
    assert not {dish.name for dish in drawn.dishes} & {dish.name for dish in plain.dishes}
    assert len({dish.name for dish in drawn.dishes}) == len(plain.dishes)
    assert len(set(drawn.categories.values())) == len(plain.categories)
    assert [rule.when for rule in drawn.rules] == [rule.when for rule in plain.rules]
    assert variants.tables(Variant(concepts=8)) != drawn

    def spread(tables: world.World) -> list[tuple[float, ...]]:
        return sorted(tuple(sorted(rule.weights.values())) for rule in tables.rules)

    assert spread(drawn) == spread(plain)


def test_the_scene_is_worth_what_the_city_promises() -> None:
    """Best attainable AUC of click about .81, and .03 to .06 of it from the scene; order about .87."""
    sample = run(prepare(CityConfig(users=500)), 11, lambda stage, done, total: None)
    log = sample.log
    logit = np.log(log.p_click / (1 - log.p_click))
    best = auc(log.click, logit)
    assert 0.79 < best < 0.84
    assert 0.03 < best - auc(log.click, logit - log.scene) < 0.06
    assert 0.84 < auc(log.order, log.p_order) < 0.90


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; scores are continuous, so ties do not matter."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positives = int(labels.sum())
    rank_sum = float(ranks[labels.astype(bool)].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def test_weather_follows_the_measured_days() -> None:
    words, degrees = moments.weather_by_hour(CONFIG.start, CONFIG.days)
    by_date = {row["date"]: row for row in world.rows("weather.csv")}
    for day, date in ((0, "2012-03-12"), (12, "2012-03-24"), (17, "2012-03-29")):
        assert degrees[day].min() == pytest.approx(float(by_date[date]["temp_min"]), abs=0.06)
        assert degrees[day].max() == pytest.approx(float(by_date[date]["temp_max"]), abs=0.06)
    assert "snow" in words[0]
    assert degrees[words == "snow"].max() <= 3.0
    assert set(words[12]) == {"sun"}
    assert (words[17] == "heavy rain").mean() > 0.7


def test_local_events_reach_only_who_is_near(requests: Requests) -> None:
    day = np.full(2, 12)  # 24 March, a rock concert at Hakaniemi and nothing in the whole city
    row = next(r for r in world.rows("landmarks.csv") if r["name"] == "Hakaniemi")
    here = (float(row["latitude"]), float(row["longitude"]))
    rows = moments._occasions(CONFIG.start, day, np.array([here, (here[0] + 0.05, here[1])]))
    assert [[*moments.occasion_names(), None][row] for row in rows] == ["rock concert by the bay", None]


def test_the_truth_can_be_recomputed_from_the_log(plan: Plan) -> None:
    """A replay in plain Python of what each user had clicked and ordered gives the probabilities of the log."""
    sample = run(plan, 2, lambda stage, done, total: None)
    log, requests = sample.log, sample.requests
    city = City(tables=plan.tables, venues=plan.venues, people=sample.people)
    state = State.empty(len(requests))
    for row in range(len(requests)):
        before = np.flatnonzero(requests.user[log.request] == requests.user[row])
        before = before[log.outcome_us[before] < requests.time_us[row]]
        clicks, orders = before[log.click[before]], before[log.order[before]]
        if len(clicks):
            state.last_click[row] = log.venue[clicks[np.argmax(log.outcome_us[clicks])]]
        if len(orders):
            newest = orders[np.argmax(log.outcome_us[orders])]
            state.last_order[row], state.last_order_us[row] = log.venue[newest], log.outcome_us[newest]
    slate = np.full((len(requests), 10), -1)
    slate[log.request, log.position] = log.venue
    want = behaviour.wanted(plan.tables, requests, sample.people.weather_sense[requests.user])
    p_click = city.respond(requests, state, slate, want).p_click
    np.testing.assert_allclose(p_click[log.request, log.position], log.p_click, rtol=1e-12)
    assert (state.last_order_us > 0).sum() > 100


def test_users_of_several_blocks_keep_their_own_requests(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "BLOCK", 25)
    sample = run(plan, 0, lambda stage, done, total: None)
    requests, log = sample.requests, sample.log
    assert len(sample.people) == 60
    assert requests.user.max() > 50
    assert (np.diff(requests.user) >= 0).all()
    assert np.bincount(log.request).tolist() == [10] * len(requests)
    assert (log.outcome_us > requests.time_us[log.request]).all()


def test_a_city_of_several_slices_shows_places_of_all_of_them() -> None:
    large = prepare(replace(CONFIG, pois=1400))
    sample = run(large, 0, lambda stage, done, total: None)
    first = sample.log.venue.reshape(-1, 10)
    assert (first % 3 == first[:, :1] % 3).all(), "a request sees one slice"
    assert set(first[:, 0] % 3) == {0, 1, 2}
    assert sample.log.propensity.max() <= 1 / 3
