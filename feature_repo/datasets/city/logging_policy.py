"""Who was shown: the policy that made the logs, with the probability of every choice it made.

A request sees one *slice* of the city (about 460 places; slices are drawn evenly and only matter beyond that size).
Within it, places fill the positions one after the other, each drawn from a softmax over the places that are left
(Plackett-Luce). The recorded propensity of a row is

    p = 1 / slices * softmax(place | places not yet drawn for this request)

that is, the chance to stand at this position given what stands above it; the product over the rows of a request,
with 1 / slices taken once, is the probability of the whole slate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.datasets.city import behaviour, world
from feature_repo.datasets.city.behaviour import City
from feature_repo.datasets.city.moments import Requests
from feature_repo.datasets.city.world import COEFFICIENTS as W

SLICE = 460
FRESH_DAYS = 7
CLOSED_TO_ALL = -np.inf


@dataclass(frozen=True, kw_only=True)
class Slates:
    """(n, k) venue indices in the order of their positions, and their propensities."""

    venues: np.ndarray
    propensity: np.ndarray


def slices(places: int) -> np.ndarray:
    """(slices, size) venue indices; -1 fills up the last ones."""
    count = max(1, round(places / SLICE))
    table = np.full((count, -(-places // count)), -1, dtype=np.int64)
    for number in range(count):
        part = np.arange(number, places, count)
        table[number, : len(part)] = part
    return table


def show(city: City, requests: Requests, opening_day: np.ndarray, size: int, rng: np.random.Generator) -> Slates:
    """Draw a slate of `size` places for each of n requests.

    Args:
        opening_day: (places,) days since the start; places are not shown before.
    Raises:
        ValueError: a slice has fewer open places than `size`.
    """
    table = slices(len(city.venues))
    drawn = rng.integers(len(table), size=len(requests))
    pool = table[drawn]
    logits = np.empty(pool.shape)
    for number in np.unique(drawn):
        rows = np.flatnonzero(drawn == number)
        logits[rows] = policy_logits(city, requests.take(rows), table[number], opening_day)
    available = np.isfinite(logits).sum(axis=1)
    if len(requests) and int(available.min()) < size:
        raise ValueError(
            f"a slate of {size} places from {int(available.min())} available ones; use fewer candidates or more pois"
        )
    chosen, propensity = plackett_luce(logits, size, rng)
    return Slates(venues=np.take_along_axis(pool, chosen, axis=1), propensity=propensity / len(table))


def policy_logits(city: City, requests: Requests, pool: np.ndarray, opening_day: np.ndarray) -> np.ndarray:
    """(n, pool) for the (pool,) venues of one slice; minus infinity where there is nothing to show.

    Popularity, distance, being open, being new, the scenario's theme and (in search) the user's taste.
    """
    venues = city.venues
    number = {name: i for i, name in enumerate(world.SCENARIOS)}
    rules = list(world.SCENARIOS.values())
    which = np.array([number[str(s)] for s in requests.scenario], dtype=np.int64)
    weights = np.array([[r.show_distance, r.show_taste, r.show_theme] for r in rules])[which]
    toward = weights[:, 1:2] * W.taste * city.people.taste[requests.user]
    toward += weights[:, 2:3] * W.theme * behaviour.theme_vectors(city.tables, requests)
    age = requests.day[:, None] - opening_day[pool]
    logits = (
        W.show_popularity * venues.popularity[pool]
        + W.show_distance * weights[:, :1] * behaviour.distance_km(requests, venues, pool)
        + W.show_open * venues.open[pool, requests.hour[:, None]]
        + W.show_fresh * ((age < FRESH_DAYS) & (opening_day[pool] > 0))
        + toward @ venues.concepts[pool].T
    )
    return np.where((age >= 0) & (pool >= 0), logits, CLOSED_TO_ALL)


def plackett_luce(logits: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw without replacement by perturbing logits with Gumbel noise; (n, size) columns and their probabilities."""
    keys = logits + rng.gumbel(size=logits.shape)
    top = np.argpartition(-keys, size - 1, axis=1)[:, :size]
    chosen = np.take_along_axis(top, np.argsort(-np.take_along_axis(keys, top, axis=1), axis=1), axis=1)
    mass = np.exp(logits - logits.max(axis=1, keepdims=True))
    taken = np.take_along_axis(mass, chosen, axis=1)
    left = mass.sum(axis=1, keepdims=True) - (np.cumsum(taken, axis=1) - taken)
    return chosen, np.minimum(taken / left, 1.0)
