"""Who is asked about: users of a city whose tastes are known, and all that was known of them before the valid part.

Letters: n users, K kinds of places.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.city import CityWorld
from benchmarks.experiments.places import Places
from feature_repo import columns
from feature_repo.datasets import city
from feature_repo.datasets.city import simulate
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.language.facts import Facts, FactsConfig, History


@dataclass(frozen=True, kw_only=True)
class People:
    """Users with a click before the valid part, in an order that their city's seed draws: the first ones are asked.

    Attributes:
        kinds: of places, in alphabetical order.
        suits_nK: how well the places of each kind suit each user's own taste, on average: planted, known to no model.
        counts_nK: clicks on each kind among the user's newest ones.
        clicked: the kind clicked most of all.
    """

    users: tuple[str, ...]
    kinds: tuple[str, ...]
    suits_nK: np.ndarray
    counts_nK: np.ndarray
    clicked: tuple[str, ...]


@lru_cache(maxsize=2)
def people_of(world: CityWorld, places: Places) -> People:
    """The people of a prepared world; their tastes are drawn again as its log was drawn."""
    plan = city.prepare(world.config)
    taste_nC = simulate.run(plan, world.config.seed, lambda stage, done, total: None).people.taste
    kinds, of_place = np.unique(plan.venues.categories, return_inverse=True)
    mean_KC = np.array([plan.venues.concepts[of_place == kind].mean(axis=0) for kind in range(len(kinds))])
    workspace = Workspace(worlds.folder(world, places))
    rows = {user: row for row, user in enumerate(pq.read_table(workspace.source("users"))[columns.USER_ID].to_pylist())}
    known = {user.id: user for user in facts_of(world, FactsConfig(), places).users if user.clicked}
    order = np.random.default_rng(world.seed).permutation(sorted(known))
    users = tuple(str(user) for user in order)
    pois = pq.read_table(workspace.source("pois"), columns=[columns.POI_ID, columns.CATEGORY])
    kind_of = dict(zip(pois[columns.POI_ID].to_pylist(), pois[columns.CATEGORY].to_pylist(), strict=True))
    counts = [Counter(kind_of[poi] for poi in known[user].recent) for user in users]
    return People(
        users=users,
        kinds=tuple(kinds.tolist()),
        suits_nK=(taste_nC @ mean_KC.T)[[rows[user] for user in users]],
        counts_nK=np.array([[count[kind] for kind in kinds.tolist()] for count in counts], np.float64),
        clicked=tuple(known[user].likes[0] for user in users),
    )


@lru_cache(maxsize=8)
def facts_of(world: CityWorld, config: FactsConfig, places: Places) -> Facts:
    """All that was known before the valid part of a prepared world begins."""
    workspace = Workspace(worlds.folder(world, places))
    with History(workspace, config) as history:
        return history.as_of(Schema.load(workspace.schema).split.valid)
