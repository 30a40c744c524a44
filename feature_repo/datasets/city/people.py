"""The people of the city: where they live and work, what they like, how much a price or the weather matters to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from feature_repo.datasets.city import world
from feature_repo.datasets.city.world import World

DISTRICTS: Mapping[str, tuple[float, float]] = {
    "Hakaniemi": (60.1785, 24.9500),
    "Kaisaniemi": (60.1735, 24.9445),
    "Kamppi": (60.1680, 24.9365),
    "Kluuvi": (60.1710, 24.9470),
    "Kruununhaka": (60.1730, 24.9530),
    "Kaartinkaupunki": (60.1655, 24.9485),
    "Punavuori": (60.1645, 24.9380),
}
JOINS_LATE = 0.25  # share of people who sign up during the log


@dataclass(frozen=True, kw_only=True)
class People:
    """n users; C concepts.

    Attributes:
        diet, price_taste, ...: what the platform knows (noisy), beside what is true (taste, price_pref).
        home, work: (n, 2) degrees; visitors live in a hotel, students work at a campus.
        rate: mean requests a day; joins: share of the log's length before the sign-up.
        taste: (n, C); hidden: (n, HIDDEN); price_pref: 1..4; price_sense, weather_sense: positive factors.
    """

    age_band: np.ndarray
    household: np.ndarray
    role: np.ndarray
    home_district: np.ndarray
    diet: np.ndarray
    price_taste: np.ndarray
    home: np.ndarray
    work: np.ndarray
    rate: np.ndarray
    joins: np.ndarray
    habit: np.ndarray
    taste: np.ndarray
    hidden: np.ndarray
    price_pref: np.ndarray
    price_sense: np.ndarray
    weather_sense: np.ndarray

    def __len__(self) -> int:
        return len(self.rate)

    @staticmethod
    def concatenate(parts: list[People]) -> People:
        return People(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(People)})


def draw(count: int, rate: float, tables: World, rng: np.random.Generator) -> People:
    """`count` people whose mean number of requests a day is `rate`."""
    age = _choose(world.AGES, count, rng)
    household = _choose(world.HOUSEHOLDS, count, rng)
    role = _choose(world.ROLES, count, rng)
    role[(age == "65+") & (role != "visitor")] = "resident"
    diet = _choose(world.DIETS, count, rng)
    taste = 1.3 * rng.standard_normal((count, len(tables.concepts))) * (rng.random((count, len(tables.concepts))) < 0.3)
    for attribute, words in (("age_band", age), ("household", household), ("diet", diet)):
        for word in np.unique(words):
            taste[words == word] += 0.8 * tables.rule(attribute, str(word))
    price_pref = np.clip(
        rng.normal(2.0 + 0.5 * np.isin(age, ("35-49", "50-64")) - 0.5 * (role == "student"), 0.6), 1, 4
    )
    home, district = _homes(count, role, rng)
    campus = np.array([[float(r["latitude"]), float(r["longitude"])] for r in _landmarks("university")])
    office = _at_spots(world.WORK_SPOTS, count, rng)[0]
    work = np.where((role == "student")[:, None], campus[rng.integers(len(campus), size=count)], office)
    return People(
        age_band=age,
        household=household,
        role=role,
        home_district=district,
        diet=np.where(rng.random(count) < 0.2, "eats everything", diet),
        price_taste=np.array(world.PRICE_TASTES)[np.digitize(price_pref + rng.normal(0, 0.35, count), (1.75, 2.5))],
        home=home,
        work=work,
        rate=rate * np.clip(rng.gamma(1.1, 1 / 1.1, count), 0.08, 6.0),
        joins=np.where(rng.random(count) < JOINS_LATE, rng.uniform(0.05, 0.97, count), 0.0),
        habit=rng.standard_normal(count),
        taste=taste,
        hidden=rng.standard_normal((count, world.HIDDEN)),
        price_pref=price_pref,
        price_sense=rng.lognormal(0.0, 0.5, count),
        weather_sense=rng.lognormal(0.0, 0.3, count),
    )


def _choose(shares: Mapping[str, float], count: int, rng: np.random.Generator) -> np.ndarray:
    weights = np.array(list(shares.values()))
    return rng.choice(np.array(list(shares)), size=count, p=weights / weights.sum())


def _at_spots(spots: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places at one of the fixed spots around district centres, 25 m off, and the index of the district."""
    centres = np.array(list(DISTRICTS.values()))
    fixed = np.random.default_rng(spots)
    district = fixed.integers(len(centres), size=spots)
    places = centres[district] + fixed.standard_normal((spots, 2)) * (0.0024, 0.0048)
    chosen = rng.choice(spots, size=count, p=world.zipf(spots, world.SPOTS_POWER))
    return places[chosen] + rng.standard_normal((count, 2)) * (0.00022, 0.00044), district[chosen]


def _homes(count: int, role: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    places, which = _at_spots(world.HOME_SPOTS, count, rng)
    hotels = np.array([[float(r["latitude"]), float(r["longitude"])] for r in _landmarks("hotel", "hostel")])
    visitor = role == "visitor"
    places[visitor] = hotels[rng.integers(len(hotels), size=int(visitor.sum()))]
    return places, np.array(list(DISTRICTS))[which]


def _landmarks(*kinds: str) -> list[dict[str, str]]:
    return [row for row in world.rows("landmarks.csv") if row["kind"] in kinds]
