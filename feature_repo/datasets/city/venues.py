"""The places of the city: real venues first, then as many invented neighbours of theirs as asked for.

Everything about a place is drawn from its own id, so a place is the same in every sample of every size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from feature_repo import hours
from feature_repo.datasets.city import world
from feature_repo.datasets.city.world import Dish, World

ADJECTIVES = (
    "Little",
    "Old",
    "Golden",
    "Northern",
    "Blue",
    "Quiet",
    "Hidden",
    "Sunny",
    "Red",
    "Royal",
    "Corner",
    "New",
)
METRES_A_DEGREE = 111_195.0
OPENS_LATE = 0.12  # share of places that open during the log
HOURS_UNKNOWN = 0.05  # share of places whose hours the platform does not know


@dataclass(frozen=True, kw_only=True)
class Venues:
    """n places; C concepts.

    Attributes:
        menus: the other dishes, by name.
        price: 1 (cheap) .. 4.
        open: (n, 168) truth by local hour of the week; `hours_known` says whether the platform knows it too.
        opens: share of the log's length after which a place opens; 0 for places that were there before.
        appeal: what everybody likes about the place, standard normal; `popularity`: a noisy view of it.
        hidden: (n, HIDDEN) what words do not tell.
        concepts: (n, C) centred, about unit length.
    """

    ids: np.ndarray
    names: np.ndarray
    categories: np.ndarray
    specialties: np.ndarray
    menus: np.ndarray
    streets: np.ndarray
    price: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    open: np.ndarray
    hours_known: np.ndarray
    opens: np.ndarray
    appeal: np.ndarray
    popularity: np.ndarray
    hidden: np.ndarray
    concepts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class _Menus:
    """The dishes of each category with their unit vectors, the unit mean of these, and the mean over categories."""

    dishes: Mapping[str, Sequence[Dish]]
    vectors: Mapping[str, np.ndarray]
    means: Mapping[str, np.ndarray]
    centre: np.ndarray


def build(count: int, tables: World) -> Venues:
    """The first `count` places. The order is fixed: named real venues, unnamed ones, then rounds of neighbours."""
    real = sorted(world.rows("venues.csv"), key=lambda row: (not row["name"], _digest(row["osm_id"])))
    menus = _menus(tables)
    categories = [_category(row) for row in real]
    profiles = {row["category"]: row for row in world.rows("tables/categories.csv")}
    table = []
    for copy, number in (divmod(i, len(real)) for i in range(count)):
        table.append(_place(real[number], copy, tables, menus, profiles[categories[number]]))
    menu_column = np.empty(count, dtype=object)
    menu_column[:] = [row["menus"] for row in table]
    columns = {f.name: np.array([row[f.name] for row in table]) for f in fields(Venues) if f.name != "menus"}
    return Venues(menus=menu_column, **columns)


def _place(
    row: Mapping[str, str], copy: int, tables: World, menus: _Menus, profile: Mapping[str, str]
) -> dict[str, object]:
    """One place from a real venue and the row of its category; `copy` 0 is the venue itself."""
    identity = row["osm_id"] + (f"x{copy}" if copy else "")
    rng = np.random.default_rng(_digest(identity))
    category = profile["category"]
    chosen = rng.permutation(len(menus.dishes[category]))[:4]
    dishes = [menus.dishes[category][i] for i in chosen]
    vectors = menus.vectors[category]
    mixed = vectors[chosen[0]] + 0.3 * vectors[chosen[1:]].sum(axis=0) + 0.8 * menus.means[category]
    appeal = rng.standard_normal()
    shift = rng.normal(0.0, 400.0, 2) / METRES_A_DEGREE if copy else np.zeros(2)
    week = hours.decode(row["open_hours"]) if row["open_hours"] and not copy else _week(profile["hours"], rng)
    return {
        "ids": identity,
        "names": _name(row, copy, tables.categories[category], rng),
        "categories": tables.categories[category],
        "specialties": dishes[0].name,
        "menus": tuple(dish.name for dish in dishes[1:]),
        "streets": row["street"],
        "price": float(np.clip(float(profile["price"]) + 0.35 * rng.standard_normal(), 1.0, 4.0)),
        "latitude": round(float(row["latitude"]) + shift[0], 6),
        "longitude": round(float(row["longitude"]) + 2 * shift[1], 6),
        "open": week,
        "hours_known": rng.random() >= HOURS_UNKNOWN,
        "opens": rng.uniform(0.2, 0.985) if rng.random() < OPENS_LATE else 0.0,
        "appeal": appeal,
        "popularity": 0.7 * appeal + 0.7 * rng.standard_normal(),
        "hidden": rng.standard_normal(world.HIDDEN),
        "concepts": _unit(mixed) - menus.centre,
    }


def _menus(tables: World) -> _Menus:
    dishes: dict[str, list[Dish]] = {}
    for dish in tables.dishes:
        dishes.setdefault(dish.category, []).append(dish)
    vectors = {
        category: np.array([_unit(tables.vector(dict.fromkeys(dish.concepts, 1.0))) for dish in served])
        for category, served in dishes.items()
    }
    means = {category: _unit(served.mean(axis=0)) for category, served in vectors.items()}
    return _Menus(dishes=dishes, vectors=vectors, means=means, centre=np.mean(list(means.values()), axis=0))


def _category(row: Mapping[str, str]) -> str:
    """By cuisine, else by a telling word of the name, else drawn from what venues of this kind usually are."""
    table = world.rows("tables/categories.csv")
    for text in (row["cuisine"], row["name"].lower()):
        tokens = set(re.findall(r"[^\s;,&+/]+", text))
        for entry in table:
            if tokens & set(entry["words"].split()):
                return entry["category"]
    usual = [entry["category"] for entry in table for kind in entry["kinds"].split() if kind == row["kind"]]
    return usual[_digest(row["osm_id"] + "/category") % len(usual)]


def _name(row: Mapping[str, str], copy: int, category: str, rng: np.random.Generator) -> str:
    if copy:
        return f"{rng.choice(ADJECTIVES)} {category.title()} {row['street']} {copy}"
    return row["name"] or f"{category.capitalize()} at {row['street']}"


def _week(profile: str, rng: np.random.Generator) -> np.ndarray:
    """168 booleans from a profile of HOURS; each place opens and closes up to an hour earlier or later."""
    week = np.zeros(hours.HOURS_A_WEEK, dtype=bool)
    early, late = rng.integers(-1, 2, 2)
    for day in range(7):
        first, last = world.HOURS[profile][(0, 0, 0, 0, 1, 1, 2)[day]]
        if last > first:
            week[(day * 24 + np.arange(first + early, last + late)) % hours.HOURS_A_WEEK] = True
    return week


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
