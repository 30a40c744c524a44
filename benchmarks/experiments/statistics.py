"""Intervals of paired comparisons: over seeds, and over users; which one counts, or both.

Where a seed draws people, requests, outcomes and initial weights, the t interval over seeds holds all of that, from few
seeds. The bootstrap resamples users within each seed: it holds what the choice of test users does to an AUC, from many
users, and takes the trained rankers as they are. The wider one counts, as neither adds what the other lacks.

Where all seeds have the same log, a seed draws weights alone. Then neither interval holds the other, and their squares
add up; the one over weights says nothing of other people, so by itself it decides nothing.

All are two-sided 95 % intervals of the mean over seeds.

Letters: S seeds, n test rows of a seed, K resamples of its users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

RESAMPLES = 1000
# 97.5 % quantiles of Student's t for 1 .. 30 degrees of freedom; of the normal distribution beyond.
T_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
NORMAL_QUANTILE = 1.9600
Verdict = Literal["equivalent", "above", "below", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and its 95 % interval.

    Attributes:
        by: what the interval was taken over; "nothing" where one seed and no scores leave it unknown (both ends None).
    """

    mean: float
    low: float | None
    high: float | None
    by: Literal["seeds", "users", "weights", "weights and users", "nothing"]

    @property
    def width(self) -> float:
        return self.high - self.low if self.low is not None and self.high is not None else -1.0

    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and t interval of S values; without ends where S = 1."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None, by="nothing")
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    half = quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Interval(mean=mean, low=mean - half, high=mean + half, by="seeds")


def over_users(mean: float, replicates: np.ndarray) -> Interval:
    """The percentile interval of K bootstrap replicates of a mean; those that could not be told (NaN) do not count."""
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return Interval(mean=mean, low=None, high=None, by="nothing")
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(mean=mean, low=float(low), high=float(high), by="users")


def together(weights: Interval, users: Interval) -> Interval:
    """An interval for both sources of chance, which are independent, from the interval of each."""
    if weights.low is None or weights.high is None:
        return users
    if users.low is None or users.high is None:
        return weights
    mean = weights.mean
    low, high = math.hypot(mean - weights.low, mean - users.low), math.hypot(weights.high - mean, users.high - mean)
    return Interval(mean=mean, low=mean - low, high=mean + high, by="weights and users")


def wider(*intervals: Interval) -> Interval:
    return max(intervals, key=lambda interval: interval.width)


def paired(
    ours: Sequence[float],
    reference: Sequence[float],
    replicates: tuple[np.ndarray, np.ndarray] | None,
    *,
    relative: bool,
    one_log: bool = False,
) -> Interval:
    """The mean over seeds of ours - reference, of each seed, with its interval.

    Args:
        ours, reference: S values each, of the same seeds.
        replicates: of both, (S, K) each, from the same resampled users; None: the interval is over seeds alone.
        relative: differences as shares of the reference's value.
        one_log: whether seeds draw weights alone.
    """
    differences = [_difference(a, b, relative) for a, b in zip(ours, reference, strict=True)]
    seeds = over_seeds([float(d) for d in differences])
    if one_log and seeds.by == "seeds":
        seeds = replace(seeds, by="weights")
    if replicates is None:
        return seeds
    users = over_users(seeds.mean, _difference(*replicates, relative).mean(axis=0))
    return together(seeds, users) if one_log else wider(seeds, users)


def _difference(ours: np.ndarray | float, reference: np.ndarray | float, relative: bool) -> np.ndarray:
    """As a share it is unknown (NaN) where the reference is 0, as an AUC of a handful of rows may be."""
    difference: np.ndarray = np.asarray(ours, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if not relative:
        return difference
    return np.divide(difference, reference, out=np.full_like(difference, np.nan), where=np.asarray(reference) != 0)


def verdict(interval: Interval, margin: float | None = None) -> Verdict:
    """What an interval of a difference says: inside +-margin, beside zero, or neither."""
    if interval.low is None or interval.high is None or interval.by == "weights":
        return "undecided"
    if margin is not None and -margin < interval.low and interval.high < margin:
        return "equivalent"
    return "undecided" if not interval.excludes_zero() else "above" if interval.low > 0 else "below"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """n rows, (n,) each: scores, labels, and users as codes 0 .. users - 1, of which some may have no row here."""

    score: np.ndarray
    label: np.ndarray
    user: np.ndarray


def resampled_aucs(
    sets: Mapping[str, Scored], *, users: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """AUCs of sets of rows under K resamples of users, (K,) each; the same users for the same `users` and `seed`.

    NaN where a resample has rows of one class only.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(users, 1 / users)
    ranked = {name: _Ranked(scored) for name, scored in sets.items()}
    found = {name: np.empty(resamples) for name in sets}
    for at in range(resamples):
        times = rng.multinomial(users, shares).astype(np.float64)
        for name, rows in ranked.items():
            found[name][at] = rows.auc(times)
    return found


class _Ranked:
    """Rows in the order of their scores, so that an AUC under any weights of users is one pass."""

    def __init__(self, rows: Scored) -> None:
        _, level, count = np.unique(rows.score, return_inverse=True, return_counts=True)
        positive = rows.label > 0
        self._positive_user, self._positive_level = rows.user[positive], level[positive]
        self._negative_user, self._negative_level = rows.user[~positive], level[~positive]
        self._levels = len(count)

    def auc(self, times: np.ndarray) -> float:
        """Weighted share of (positive, negative) pairs in the right order, ties counted half."""
        negative = np.bincount(self._negative_level, weights=times[self._negative_user], minlength=self._levels)
        below = np.cumsum(negative) - negative / 2
        weight = times[self._positive_user]
        pairs = weight.sum() * negative.sum()
        return float((weight * below[self._positive_level]).sum() / pairs) if pairs else np.nan
