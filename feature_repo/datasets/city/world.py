"""The tables of the world: every constant that decides what people want, frozen and hashed.

`tables/*.csv` hold the word tables (which dish has which concepts, which moment wants which concepts), this file the
numbers. Scenes act on places only through *concepts*, so that a rare dish or a landmark seen twice behaves like the
common ones that mean the same. Nothing here was taken from a language model. `WORLD_SHA256` pins all of it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
TIMEZONE = "Europe/Helsinki"
FILES = (
    "landmarks.csv",
    "tables/affinities.csv",
    "tables/categories.csv",
    "tables/dishes.csv",
    "tables/occasions.csv",
    "tables/reserve.csv",
    "venues.csv",
    "weather.csv",
)


@dataclass(frozen=True, kw_only=True)
class ScenarioRules:
    """How one business surface shifts what is shown and what is wanted. Logits unless said otherwise.

    Args:
        base: added to the click logit.
        order_base: added to the order logit.
        semantics, distance, price, position: multiply the terms of the same name.
        show_distance, show_taste, show_theme: weights in the logging policy (theme: the scenario's own concepts).
    """

    name: str
    text: str
    base: float = 0.0
    order_base: float = 0.0
    semantics: float = 1.0
    distance: float = 1.0
    price: float = 1.0
    position: float = 1.0
    show_distance: float = 1.0
    show_taste: float = 0.0
    show_theme: float = 0.0


SCENARIOS: Mapping[str, ScenarioRules] = {
    "home_feed": ScenarioRules(
        name="home feed",
        text="The home feed: the first screen of the app, an endless list of places for people who just look around.",
        base=-0.25,
        semantics=1.1,
        position=1.2,
    ),
    "search": ScenarioRules(
        name="search",
        text="Search results: people typed what they are hungry for and compare the places that match their taste.",
        base=0.3,
        order_base=0.2,
        semantics=0.75,
        position=1.35,
        show_taste=0.9,
    ),
    "lunch_deals": ScenarioRules(
        name="lunch deals",
        text="Lunch deals: quick and inexpensive meals close to work, offered on weekdays around noon.",
        base=0.05,
        order_base=0.25,
        distance=1.5,
        price=1.7,
        position=0.9,
        show_distance=1.6,
        show_theme=0.6,
    ),
    "late_night": ScenarioRules(
        name="late night",
        text="Late night: what is still open after ten in the evening, grills, kebab, pizza and bars.",
        base=0.1,
        order_base=0.1,
        semantics=0.9,
        distance=1.3,
        price=0.6,
        position=0.8,
        show_theme=0.5,
    ),
    "nearby_map": ScenarioRules(
        name="nearby map",
        text="The nearby map: pins around the user, for people on foot who want something just around the corner.",
        base=-0.1,
        semantics=1.0,
        distance=2.0,
        position=0.25,
        show_distance=2.4,
    ),
    "weekend_table": ScenarioRules(
        name="weekend table",
        text="Weekend table: brunch and dinner tables for couples, families and groups of friends who take their time.",
        base=0.0,
        order_base=-0.1,
        semantics=1.2,
        distance=0.6,
        price=0.7,
        show_theme=0.6,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Weights of the terms of both logits (see `behaviour`), of the logging policy and of what people are like."""

    click_base: float = -1.3
    order_base: float = -1.0
    semantics: float = 0.29
    last_click: float = 1.1
    variety: float = -1.2
    taste: float = 0.29
    appeal: float = 0.5
    hidden: float = 0.30
    distance: float = -0.9
    wet_distance: float = 1.4
    price: float = -0.30
    closed: float = -1.3
    familiar: float = 0.8
    theme: float = 0.25
    habit: float = 0.35
    order_semantics: float = 0.5
    order_taste: float = 0.5
    order_appeal: float = 0.3
    order_distance: float = 0.5
    order_price: float = 1.2
    order_closed: float = -3.2
    order_sated: float = -1.0
    show_popularity: float = 0.9
    show_distance: float = -1.0
    show_open: float = 1.2
    show_fresh: float = 1.2
    without_semantics_taste: float = 3.0


COEFFICIENTS = Coefficients()
# Added to the click logit by position 0, 1, ...; later positions get the last value.
POSITION_BIAS = (0.45, 0.28, 0.14, 0.03, -0.07, -0.15, -0.22, -0.28, -0.33, -0.38)
# How much the rules on one attribute of the scene weigh, and those on several at once.
EMPHASIS = {
    "clock": 0.8,
    "day": 1.2,
    "weather": 1.3,
    "temperature_band": 1.3,
    "place_kind": 1.1,
    "company": 1.1,
    "landmark_kind": 2.4,
    "occasion_theme": 1.2,
    "several": 1.5,
}
HIDDEN = 8  # dimensions of the taste that no word explains

# End hour (exclusive) and word, by the local clock.
CLOCK = (
    (5, "late night"),
    (9, "early morning"),
    (11, "morning"),
    (14, "lunch"),
    (17, "afternoon"),
    (22, "evening"),
    (24, "late night"),
)
TEMPERATURE = ((-5.0, "freezing"), (5.0, "cold"), (14.0, "cool"), (22.0, "mild"), (28.0, "warm"), (np.inf, "hot"))
SINCE_ORDER = (
    (3.0, "just now"),
    (8.0, "some hours ago"),
    (30.0, "a day ago"),
    (168.0, "this week"),
    (np.inf, "long ago"),
)
WET = ("rain", "heavy rain", "drizzle", "snow")

# Shares of app openings by hour of the local day.
OPENINGS = {
    "weekday": (2, 1, 1, 0, 0, 1, 3, 7, 9, 7, 8, 14, 13, 8, 6, 7, 9, 12, 12, 10, 8, 7, 6, 4),
    "weekend": (7, 6, 4, 2, 1, 0, 1, 2, 5, 8, 10, 10, 10, 9, 8, 8, 9, 11, 13, 12, 10, 9, 9, 8),
}
DAY_FACTOR = (0.85, 0.9, 0.95, 1.0, 1.25, 1.2, 0.9)

AGES = {"18-24": 0.2, "25-34": 0.3, "35-49": 0.24, "50-64": 0.16, "65+": 0.1}
HOUSEHOLDS = {"single": 0.36, "couple": 0.28, "family with children": 0.2, "shared flat": 0.16}
ROLES = {"resident": 0.45, "office worker": 0.32, "student": 0.13, "visitor": 0.1}
DIETS = {
    "eats everything": 0.5,
    "vegetarian": 0.13,
    "pescatarian": 0.09,
    "healthy eater": 0.12,
    "sweet tooth": 0.1,
    "spice lover": 0.06,
}
PRICE_TASTES = ("low prices", "middle prices", "high prices")

# Homes and offices stand at this many spots; spot n is chosen in proportion to n ** -SPOTS_POWER.
HOME_SPOTS = 70
WORK_SPOTS = 40
SPOTS_POWER = 0.7
# The same law, with a power, says how often landmarks are visited.
VISITS_POWER = 1.6

# Where people are when they open the app: weights of place kinds by part of the clock, weekday | weekend.
PLACE_KINDS = ("home", "work", "transit stop", "park", "shopping street", "culture", "market square")
PLACES = {
    "early morning": ((5, 3, 4, 0, 0, 0, 0.5), (8, 1, 2, 1, 0.5, 0, 1)),
    "morning": ((2, 6, 1, 0.5, 1, 0.3, 1), (6, 0.5, 1, 1.5, 2, 1, 2)),
    "lunch": ((1.5, 7, 1, 1, 1.5, 0.5, 1), (3, 1, 1, 2, 3, 1.5, 2)),
    "afternoon": ((2, 4, 2, 1.5, 2, 1, 1), (3, 0.5, 1.5, 2.5, 3, 2, 1.5)),
    "evening": ((5, 1, 2.5, 1.5, 2, 2, 0.3), (4, 0.3, 2, 1.5, 2, 3, 0.3)),
    "late night": ((4, 0.2, 2, 0.2, 0.6, 0.5, 0), (3, 0.2, 3, 0.3, 1, 0.5, 0)),
}
LANDMARKS_OF_PLACE = {
    "transit stop": ("station", "tram stop"),
    "park": ("park", "garden", "playground", "statue", "memorial"),
    "shopping street": (
        "street",
        "clothes shop",
        "shoe shop",
        "bookshop",
        "design shop",
        "shopping centre",
        "sports shop",
        "toy shop",
        "music shop",
        "antiques shop",
        "flower shop",
        "supermarket",
    ),
    "culture": ("museum", "gallery", "theatre", "cinema", "library", "church"),
    "market square": ("square", "ferry pier"),
    "campus": ("university", "library", "school"),
    "hotel": ("hotel", "hostel"),
}
# Hours that venues of a category keep where OpenStreetMap knows none: (open, close), Mon-Thu | Fri-Sat | Sun.
HOURS = {
    "morning": ((7, 19), (8, 20), (9, 18)),
    "lunch": ((10, 15), (10, 15), (0, 0)),
    "day": ((11, 22), (11, 23), (12, 21)),
    "dinner": ((16, 23), (15, 24), (0, 0)),
    "long": ((8, 24), (8, 28), (10, 23)),
    "night": ((17, 28), (17, 30), (17, 27)),
    "bar": ((14, 26), (13, 27), (14, 25)),
    "club": ((21, 28), (20, 29), (0, 0)),
}


@dataclass(frozen=True, kw_only=True)
class Dish:
    name: str
    category: str
    concepts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Where every condition holds (attribute -> accepted words), these concepts are wanted by so much."""

    when: Mapping[str, frozenset[str]]
    weights: Mapping[str, float]

    @property
    def attributes(self) -> frozenset[str]:
        return frozenset(self.when)


@dataclass(frozen=True, kw_only=True)
class World:
    """The word tables. `semantics` and `taste` scale two terms; variants of the world change them, or `scenarios`."""

    concepts: tuple[str, ...]
    dishes: tuple[Dish, ...]
    rules: tuple[Rule, ...]
    categories: Mapping[str, str]  # category of categories.csv -> how this world calls it
    semantics: float = 1.0
    taste: float = 1.0
    scenarios: Mapping[str, ScenarioRules] = field(default_factory=lambda: SCENARIOS)

    def vector(self, weights: Mapping[str, float]) -> np.ndarray:
        """(concepts,) weights in the order of `concepts`."""
        return np.array([weights.get(c, 0.0) for c in self.concepts])

    def rule(self, attribute: str, word: str) -> np.ndarray:
        """(concepts,) summed weights of the rules on this attribute alone that accept `word`."""
        return self._single.get((attribute, word), np.zeros(len(self.concepts)))

    @cached_property
    def _single(self) -> dict[tuple[str, str], np.ndarray]:
        """The answers of `rule`."""
        table: dict[tuple[str, str], np.ndarray] = {}
        for rule in self.rules:
            if len(rule.when) == 1:
                attribute, words = next(iter(rule.when.items()))
                for word in words:
                    known = table.get((attribute, word), np.zeros(len(self.concepts)))
                    table[attribute, word] = known + self.vector(rule.weights)
        return table


@cache
def default() -> World:
    """The world as the tables say."""
    dishes = tuple(
        Dish(name=row["dish"], category=row["category"], concepts=tuple(row["concepts"].split()))
        for row in rows("tables/dishes.csv")
    )
    return World(
        concepts=tuple(sorted({c for dish in dishes for c in dish.concepts})),
        dishes=dishes,
        rules=tuple(_rule(row) for row in rows("tables/affinities.csv")),
        categories={row["category"]: row["category"] for row in rows("tables/categories.csv")},
    )


def _rule(row: Mapping[str, str]) -> Rule:
    when = dict(condition.strip().split("=") for condition in row["when"].split("&"))
    terms = (re.fullmatch(r"([a-z-]+?)([+-][\d.]+)", term) for term in row["concepts"].split())
    return Rule(
        when={attribute: frozenset(words.split("|")) for attribute, words in when.items()},
        weights={term[1]: float(term[2]) for term in terms if term},
    )


def band(values: np.ndarray, table: tuple[tuple[float, str], ...]) -> np.ndarray:
    """The word of each value: that of the first (exclusive) upper border above it; the last word has no border."""
    borders = np.array([border for border, _ in table[:-1]])
    return np.array([word for _, word in table])[np.digitize(values, borders)]


def zipf(count: int, power: float) -> np.ndarray:
    """(count,) probabilities in proportion to 1 / rank ** power."""
    weights = 1.0 / np.arange(1, count + 1) ** power
    return np.asarray(weights / weights.sum())


@cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one table of this folder."""
    with (FOLDER / name).open(newline="") as file:
        return tuple(csv.DictReader(file))


def digest() -> str:
    """SHA-256 over all tables and constants; must equal the committed `WORLD_SHA256`."""
    constants = {
        name: value
        for name, value in globals().items()
        if name.isupper() and name not in ("FOLDER", "SCENARIOS", "COEFFICIENTS")
    }
    constants["SCENARIOS"] = {name: asdict(rules) for name, rules in SCENARIOS.items()}
    constants["COEFFICIENTS"] = asdict(COEFFICIENTS)
    total = hashlib.sha256(json.dumps(constants, sort_keys=True).encode())
    for name in FILES:
        total.update((FOLDER / name).read_bytes())
    return total.hexdigest()
