"""What people do: the true logits of a click and of an order after a click, each a written sum of terms.

    click = base + habit + position + appeal + hidden + taste + theme + price + distance + closed + familiar + SCENE
    order = base + parts of SCENE, taste, appeal, distance, price + closed + sated        (given the click)
    SCENE = semantics * <what this moment wants, what the place is> + last click

Only SCENE joins a scene with what a place is; both sides are vectors over concepts (see `world`). The probability of an
order is p(click) * p(order | click).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from feature_repo.datasets.city import world
from feature_repo.datasets.city.moments import Requests
from feature_repo.datasets.city.people import People
from feature_repo.datasets.city.venues import Venues
from feature_repo.datasets.city.world import COEFFICIENTS as W
from feature_repo.datasets.city.world import World

SCENE_ATTRIBUTES = (
    "clock",
    "day",
    "weather",
    "temperature_band",
    "place_kind",
    "company",
    "landmark_kind",
    "occasion_theme",
)
WEATHER_ATTRIBUTES = frozenset(("weather", "temperature_band"))
SATED_HOURS = 8.0  # until then people want something else than what they looked at last
NEVER = -1
HOUR_US = 3.6e9


@dataclass(kw_only=True)
class State:
    """What happened to each user so far: index of the place clicked last and ordered from last, and when; or NEVER."""

    last_click: np.ndarray
    last_order: np.ndarray
    last_order_us: np.ndarray

    @staticmethod
    def empty(users: int) -> State:
        return State(**{name: np.full(users, NEVER, dtype=np.int64) for name in State.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Logits:
    """(n, k) each. `scene` is the part SCENE of `click`."""

    click: np.ndarray
    order: np.ndarray
    scene: np.ndarray

    @property
    def p_click(self) -> np.ndarray:
        return sigmoid(self.click)

    @property
    def p_order_if_clicked(self) -> np.ndarray:
        return sigmoid(self.order)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def wanted(tables: World, requests: Requests, weather_sense: np.ndarray) -> np.ndarray:
    """(n, C): how much each moment wants each concept, by every rule but the one on the last order.

    Args:
        weather_sense: (n,) factor on the rules that name the weather or the temperature.
    """
    words = {name: getattr(requests, name) for name in SCENE_ATTRIBUTES if name not in ("day", "occasion_theme")}
    words["day"] = requests.weekday
    total = np.zeros((len(requests), len(tables.concepts)))
    for rule in tables.rules:
        if not rule.attributes.issubset(SCENE_ATTRIBUTES):
            continue
        holds = np.ones(len(requests), dtype=bool)
        for attribute, accepted in rule.when.items():
            if attribute == "occasion_theme":
                holds &= _any_theme(requests.occasion_theme, accepted)
            else:
                holds &= np.isin(words[attribute], list(accepted))
        emphasis = world.EMPHASIS["several" if len(rule.when) > 1 else next(iter(rule.when))]
        sense = weather_sense[holds] if rule.attributes & WEATHER_ATTRIBUTES else np.ones(int(holds.sum()))
        total[holds] += emphasis * sense[:, None] * tables.vector(rule.weights)
    return total


def _any_theme(themes: np.ndarray, accepted: frozenset[str]) -> np.ndarray:
    """Which of the |-joined theme lists has one of the accepted themes."""
    distinct, inverse = np.unique(themes, return_inverse=True)
    hit = np.array([bool(accepted & set(str(text).split("|"))) for text in distinct], dtype=bool)
    return hit[inverse]


def distance_km(requests: Requests, venues: Venues, candidates: np.ndarray) -> np.ndarray:
    """(n, k) on a flat earth: good to a metre within one city."""
    north = (venues.latitude[candidates] - requests.latitude[:, None]) * 111.195
    east = (venues.longitude[candidates] - requests.longitude[:, None]) * 111.195 * np.cos(np.radians(60.17))
    return np.hypot(north, east)


def hours_since(state_us: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """Hours since a moment of the state; infinite where there was none."""
    return np.where(state_us == NEVER, np.inf, (time_us - state_us) / HOUR_US)


@dataclass(frozen=True, kw_only=True)
class City:
    """The tables, the places and the people; answers what a slate of places would bring."""

    tables: World
    venues: Venues
    people: People

    def respond(self, requests: Requests, state: State, slate: np.ndarray, want: np.ndarray) -> Logits:
        """The logits of n requests x k places, shown in this order.

        Args:
            state: of the user of each request, (n,) each.
            slate: (n, k) indices of venues; column = position.
            want: (n, C) from `wanted`.
        """
        venues, user = self.venues, requests.user
        rules = _by_scenario(self.tables, requests)
        since = hours_since(state.last_order_us, requests.time_us)
        scene = self._scene(state, since, slate, want) * rules["semantics"]
        taste = W.taste * self.tables.taste * self._match(self.people.taste[user], slate)
        wet = np.where(np.isin(requests.weather, world.WET), W.wet_distance, 1.0)[:, None]
        distance = W.distance * rules["distance"] * wet * distance_km(requests, venues, slate) ** 0.7
        gap = venues.price[slate] - self.people.price_pref[user][:, None]
        price = W.price * rules["price"] * self.people.price_sense[user][:, None] * gap**2
        closed = ~venues.open[slate, requests.hour[:, None]]
        appeal = venues.appeal[slate]
        bias = np.array(world.POSITION_BIAS)[np.minimum(np.arange(slate.shape[1]), len(world.POSITION_BIAS) - 1)]
        hidden = np.einsum("nh,nkh->nk", self.people.hidden[user], venues.hidden[slate]) / np.sqrt(world.HIDDEN)
        click = (
            W.click_base
            + rules["base"]
            + W.habit * self.people.habit[user][:, None]
            + rules["position"] * bias
            + W.appeal * appeal
            + W.hidden * hidden
            + W.theme * self._match(theme_vectors(self.tables, requests), slate)
            + W.familiar * (slate == state.last_order[:, None])
            + W.closed * closed
            + taste
            + distance
            + price
            + scene
        )
        order = (
            W.order_base
            + rules["order_base"]
            + W.order_semantics * scene
            + W.order_taste * taste
            + W.order_appeal * appeal
            + W.order_distance * distance
            + W.order_price * price
            + W.order_closed * closed
            + W.order_sated * (since < world.SINCE_ORDER[0][0])[:, None]
        )
        return Logits(click=click, order=order, scene=scene)

    def _scene(self, state: State, since: np.ndarray, slate: np.ndarray, want: np.ndarray) -> np.ndarray:
        """SCENE before the scenario's factor."""
        ago = np.where(np.isinf(since), "", world.band(since, world.SINCE_ORDER))
        for _, word in world.SINCE_ORDER:
            want = want + (ago == word)[:, None] * self.tables.rule("since_last_order", word)
        last = self.venues.concepts[state.last_click] * (state.last_click != NEVER)[:, None]
        toward = np.where(since < SATED_HOURS, W.variety, W.last_click)[:, None]
        return self.tables.semantics * (W.semantics * self._match(want, slate) + toward * self._match(last, slate))

    def _match(self, vectors: np.ndarray, slate: np.ndarray) -> np.ndarray:
        """(n, k) inner products of (n, C) with the concepts of the places."""
        return np.einsum("nc,nkc->nk", vectors, self.venues.concepts[slate])


def theme_vectors(tables: World, requests: Requests) -> np.ndarray:
    """(n, C): what the scenario itself is about."""
    vectors = {name: tables.rule("scenario", name) for name in world.SCENARIOS}
    total = np.zeros((len(requests), len(tables.concepts)))
    for name, vector in vectors.items():
        total[requests.scenario == name] = vector
    return total


def _by_scenario(tables: World, requests: Requests) -> Mapping[str, np.ndarray]:
    """(n, 1) of each behaviour number of the request's scenario."""
    names = ("base", "order_base", "semantics", "distance", "price", "position")
    distinct, inverse = np.unique(requests.scenario, return_inverse=True)
    return {
        name: np.array([getattr(tables.scenarios[str(s)], name) for s in distinct])[inverse][:, None] for name in names
    }
