"""Pairs of texts that belong together, mined from the clicks of the history part: what contrastive tuning learns from.

Three kinds: two users who chose the same place in moments alike, two places that one user chose in moments alike, and a
user's moment with the place that was chosen in it. Either side of a pair is a set of texts, one vector when summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

import numpy as np

from feature_repo.workspace import Workspace
from trainers.language.clicks import NONE, ClickConfig, ClickLog, HeldOut, PairError, SpaceText, read_clicks

Kind = Literal["user_user", "poi_poi", "user_poi"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which pairs are made of clicks.

    Args:
        clicks: which clicks, and as which texts.
        users: what makes a user-user pair. "companions": the profiles of two users who clicked the same POI in the same
            bucket; "halves": two halves of the POIs that one user clicked, as sets of POI texts.
        partners: a click is paired with at most this many others of its group (users of a POI, POIs of a user), drawn
            once by `seed`: without a limit the pairs of a popular place would be the square of its clicks. Also the
            number of ways in which a user's POIs are cut into halves.
        half: at most this many POIs in a half.
        discount: a POI-POI pair is drawn in proportion to 1 / (clicks_i * clicks_j) ** discount, as what everybody
            clicks says little about what goes together; 0.5 is cosine-like, 0 takes pairs as often as they occur.
    """

    clicks: ClickConfig = field(default_factory=ClickConfig)
    users: Literal["companions", "halves"] = "companions"
    partners: int = 4
    half: int = 8
    discount: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.partners, self.half) < 1 or self.discount < 0:
            raise PairError(f"partners and half must be positive and the discount not negative, got {self}")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N pairs of one kind, as numbers of texts, `NONE` where a side has no further one.

    Two pairs are no negatives of each other if they agree in `anchor_N`, in `positive_N` or in `group_N`: what is known
    to belong together is never pushed apart.

    Attributes:
        anchor_NK, positive_NK: int32, the texts of each side.
        exposed_NE: int32, texts of POIs that the anchor saw and did not choose; E = 0 where nothing was shown.
        anchor_N, positive_N: int64, equal where the sides are the same; comparable with each other where both sides are
            of the same kind.
        group_N: int64, equal where pairs come from the same coincidence.
        probability_N: float64, how often each pair is drawn; sums to 1.
    """

    anchor_NK: np.ndarray
    positive_NK: np.ndarray
    exposed_NE: np.ndarray
    anchor_N: np.ndarray
    positive_N: np.ndarray
    group_N: np.ndarray
    probability_N: np.ndarray

    def __len__(self) -> int:
        return len(self.group_N)


@dataclass(frozen=True, kw_only=True)
class Mined:
    """All pairs of a history part, over one list of texts. Kinds without any pair are absent."""

    texts: tuple[SpaceText, ...]
    pairs: Mapping[Kind, Pairs]
    held_out: HeldOut
    cut: datetime


def mine(workspace: Workspace, cut: datetime, config: PairConfig) -> Mined:
    """Every kind of pair from the clicks known before `cut`. Raises PairError as `read_clicks` does."""
    log = read_clicks(workspace, cut, config.clicks)
    users = halves(log, config) if config.users == "halves" else companions(log, config)
    found: dict[Kind, Pairs] = {"user_user": users, "poi_poi": poi_poi(log, config), "user_poi": user_poi(log)}
    pairs = {kind: pairs for kind, pairs in found.items() if len(pairs)}
    return Mined(texts=log.texts, pairs=pairs, held_out=log.held_out, cut=cut)


def user_poi(log: ClickLog) -> Pairs:
    """Who, in which moment, clicked what; clicks of one request are one anchor."""
    rows = np.flatnonzero((log.side_CK != NONE).any(1))
    return Pairs(
        anchor_NK=log.side_CK[rows],
        positive_NK=log.poi_C[rows, None],
        exposed_NE=log.exposed_CE[rows],
        anchor_N=log.request_C[rows],
        # POIs and requests are numbered apart, so that a POI is never taken for the anchor of another pair.
        positive_N=-1 - log.poi_C[rows].astype(np.int64),
        group_N=log.request_C[rows],
        probability_N=np.full(len(rows), 1 / max(len(rows), 1)),
    )


def companions(log: ClickLog, config: PairConfig) -> Pairs:
    """Profiles of two users who clicked the same POI in the same bucket; the same profile twice says nothing."""
    place_C = _joint(log.poi_C, log.bucket_C)
    _, once = np.unique(_joint(place_C, log.profile_C), return_index=True)
    once = once[log.profile_C[once] != NONE]
    left, right = partners(place_C[once], config.partners, np.random.default_rng(config.seed))
    return _same_kind(log.profile_C[once], place_C[once], left, right)


def poi_poi(log: ClickLog, config: PairConfig) -> Pairs:
    """Two POIs that one user clicked in the same bucket."""
    taste_C = _joint(log.user_C, log.bucket_C)
    _, once = np.unique(_joint(taste_C, log.poi_C), return_index=True)
    left, right = partners(taste_C[once], config.partners, np.random.default_rng(config.seed))
    clicks = np.bincount(log.poi_C, minlength=len(log.texts)).astype(np.float64)
    poi = log.poi_C[once]
    weight = (clicks[poi[left]] * clicks[poi[right]]) ** -config.discount
    return _same_kind(poi, taste_C[once], left, right, weight)


def halves(log: ClickLog, config: PairConfig) -> Pairs:
    """The POIs that one user clicked, cut in two at random, `partners` times each; every half is a set of POI texts."""
    rng = np.random.default_rng(config.seed)
    _, once = np.unique(_joint(log.user_C, log.poi_C), return_index=True)
    users, pois = log.user_C[once], log.poi_C[once]
    sides: list[np.ndarray] = []
    owners: list[int] = []
    borders = np.flatnonzero(np.diff(users)) + 1
    for user, own in zip(users[np.r_[0, borders]], np.split(pois, borders), strict=True):
        for _ in range(config.partners if len(own) > 1 else 0):
            both = np.full((2, config.half), NONE, np.int32)
            for side, half in zip(both, np.array_split(rng.permutation(own), 2), strict=True):
                side[: len(half)] = half[: config.half]
            sides.append(both)
            owners.append(int(user))
    found = np.stack(sides) if sides else np.empty((0, 2, config.half), np.int32)
    owner_N = np.array(owners, np.int64)
    return Pairs(
        anchor_NK=found[:, 0],
        positive_NK=found[:, 1],
        exposed_NE=np.empty((len(found), 0), np.int32),
        anchor_N=owner_N,
        positive_N=owner_N,
        group_N=owner_N,
        probability_N=np.full(len(found), 1 / max(len(found), 1)),
    )


def partners(group_N: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of positions within groups, at most `most` for each first position.

    Members of a group stand in a random circle; each is paired with those that follow it. A group of at most
    `most + 1` members gives every ordered pair once.
    """
    order = np.lexsort((rng.random(len(group_N)), group_N))
    _, start, size = np.unique(group_N[order], return_index=True, return_counts=True)
    start_N, size_N = np.repeat(start, size), np.repeat(size, size)
    place_N = np.arange(len(order)) - start_N
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step in range(1, most + 1):
        from_ = np.flatnonzero(size_N > step)
        left.append(order[from_])
        right.append(order[start_N[from_] + (place_N[from_] + step) % size_N[from_]])
    return np.concatenate(left), np.concatenate(right)


def _same_kind(
    text_M: np.ndarray, group_M: np.ndarray, left: np.ndarray, right: np.ndarray, weight: np.ndarray | None = None
) -> Pairs:
    """Pairs of single texts; text numbers say which sides are the same."""
    weight = np.ones(len(left)) if weight is None else weight
    total = weight.sum()
    return Pairs(
        anchor_NK=text_M[left, None].astype(np.int32),
        positive_NK=text_M[right, None].astype(np.int32),
        exposed_NE=np.empty((len(left), 0), np.int32),
        anchor_N=text_M[left].astype(np.int64),
        positive_N=text_M[right].astype(np.int64),
        group_N=group_M[left],
        probability_N=weight / total if total else weight,
    )


def _joint(first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """One code for two numbers from `NONE` on: equal where both are, sorted by the first."""
    second = second_N.astype(np.int64) - NONE
    return first_N.astype(np.int64) * (second.max(initial=0) + 1) + second
