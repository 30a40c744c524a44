"""What another ranker would have brought, from the log of one that explored: IPS, SNIPS and doubly robust estimates.

What is assumed: the reward of a place depends on the place, its position and the request, not on its neighbours (the
item-position model, Li et al., KDD 2018). It holds in the city: `behaviour.City.respond` adds up terms of the place and
of its position. Then a policy is worth, for a request,

    V = sum over positions k and places i of  pi(i at k) q(i, k)

and a logged reward at k is weighted by pi(i at k) / mu(i at k), two chances that a place stands at a position whatever
stands elsewhere. Weights of whole slates, or of all that stands above (the cascade model), are right too, and their
variance hopeless: they are products over positions.

Logged propensities are chances given what stands above. Those of a whole answer say with which odds it was drawn
(`logits_of`), and these say how often each place comes to stand at each position (`marginals`).

    IPS    mean of sum_k w_k r_k                                              (Horvitz and Thompson 1952)
    SNIPS  sum_k of (sum w_k r_k / sum w_k): at every position weights have mean 1   (Swaminathan and Joachims 2015)
    DR     mean of sum_k sum_i pi(i at k) q_hat(i, k)  +  sum_k w_k (r_k - q_hat_k)  (Dudik et al. 2011)

Intervals are of means of requests whose users were drawn: a user's requests are one draw. Weights and bills are skewed,
so that normal intervals, which are symmetric, miss the truth above them twice as often as below; the studentised
bootstrap (Efron 1979; Hall 1988) puts that right.

Letters: N requests, M candidates of each, K positions that are seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from benchmarks.experiments.statistics import RESAMPLES

Estimator = Literal["IPS", "SNIPS", "DR"]
ESTIMATORS: tuple[Estimator, ...] = ("IPS", "SNIPS", "DR")
STEP = 0.25  # of the integral over the logarithm of time: errors of 1e-7
EARLIEST, LATEST = -16.0, 4.0  # its ends, in units of all odds together and of the smallest
CHUNK = 64  # requests whose integrals are in memory together
NEARLY_ONE = 1.0 - float(np.finfo(np.float32).eps)  # a propensity is told as a float32


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over requests with its standard error and 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    def covers(self, truth: float) -> bool:
        return self.low <= truth <= self.high


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What a policy showed, and what came of it.

    Attributes:
        user: (N,) codes.
        shown: (N, K) which of the candidates stood at each position.
        reward: (N, K).
        predicted: (N, M) what the logging ranker expected of each candidate, wherever it stands.
    """

    user: np.ndarray
    shown: np.ndarray
    reward: np.ndarray
    predicted: np.ndarray


def logits_of(propensities: np.ndarray) -> np.ndarray:
    """(N, M) logits, up to a constant of each request, that answers were drawn with.

    Args:
        propensities: (N, M) of whole answers, in their order: each is the place's odds over those of all from it on.
    """
    p = np.minimum(propensities.astype(np.float64), NEARLY_ONE)
    p[:, -1] = 1.0
    left = np.zeros_like(p)  # logarithms of the odds from each place on; those of the last place are 1
    left[:, :-1] = -np.cumsum(np.log1p(-p[:, -2::-1]), axis=1)[:, ::-1]
    return np.log(p) + left


def marginals(logits: np.ndarray, positions: int) -> np.ndarray:
    """(N, M, K) chances that each candidate stands at each of the first K positions, under Plackett-Luce.

    Candidates arrive at times of exponential clocks whose rates are their odds; a place stands at k if k others have
    arrived before it. So its chance is the integral, over its own time, of a Poisson binomial: exact but for the
    integral, which is taken over the logarithm of time, where the trapezoidal rule converges exponentially.
    """
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    found = np.empty((*logits.shape, positions))
    for start in range(0, len(odds), CHUNK):
        found[start : start + CHUNK] = _positions(odds[start : start + CHUNK], positions)
    return found


def _positions(odds: np.ndarray, positions: int) -> np.ndarray:
    """`marginals` of odds (n, M) that add up to 1."""
    time = np.exp(np.arange(EARLIEST, LATEST - np.log(odds.min()), STEP))
    arrived = -np.expm1(-odds[:, :, None] * time)  # (n, M, T)
    count, candidates = odds.shape
    # (n, M, T, K): how many of the others have arrived, of those that were looked at so far.
    before = np.zeros((count, candidates, len(time), positions))
    before[..., 0] = 1.0
    for other in range(candidates):
        p = np.repeat(arrived[:, None, other, :], candidates, axis=1)
        p[:, other] = 0.0  # nobody comes before itself
        stays = 1.0 - p[..., None]
        earlier = before[..., :-1] * p[..., None]
        before *= stays
        before[..., 1:] += earlier
    density = STEP * time * odds[:, :, None] * (1.0 - arrived)  # of its own arrival, by the logarithm of time
    chances: np.ndarray = np.einsum("nmt,nmtk->nmk", density, before)
    return chances


def certain(order: np.ndarray, candidates: int, positions: int) -> np.ndarray:
    """(N, M, K) likewise, of orders (N, M or fewer) that are not drawn."""
    places = np.zeros((len(order), candidates, positions))
    rows, at = np.indices((len(order), positions))
    places[rows, order[:, :positions], at] = 1.0
    return places


def estimates(log: Logged, mu: np.ndarray, pi: np.ndarray) -> dict[Estimator, Estimate]:
    """What the policy `pi` would have brought a request, from the log of `mu`.

    Args:
        mu, pi: (N, M, K) chances of each candidate at each position.
    """
    rows, at = np.indices(log.shown.shape)
    weight = pi[rows, log.shown, at] / mu[rows, log.shown, at]
    share = weight.mean(axis=0)
    mean = (weight * log.reward).mean(axis=0) / share
    seen = _examined(log) * log.predicted[rows, log.shown]
    expected = np.einsum("nmk,nm,k->n", pi, log.predicted, _examined(log))
    of_requests: Mapping[Estimator, np.ndarray] = {
        "IPS": (weight * log.reward).sum(axis=1),
        "SNIPS": (mean + weight * (log.reward - mean) / share).sum(axis=1),  # a ratio, and its linear part
        "DR": expected + (weight * (log.reward - seen)).sum(axis=1),
    }
    return {name: clustered(values, log.user) for name, values in of_requests.items()}


def value(pi: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """(N,) what a policy is worth where the rewards (N, M, K) are known."""
    worth: np.ndarray = np.einsum("nmk,nmk->n", pi, reward)
    return worth


def clustered(values: np.ndarray, user: np.ndarray) -> Estimate:
    """The mean of (N,) values of requests, whose users were drawn.

    The error is that of a ratio of sums over users; resamples of users say how far, in errors, a mean lies off.
    """
    _, code = np.unique(user, return_inverse=True)
    sums, count = np.bincount(code, weights=values), np.bincount(code) * 1.0
    users = len(count)
    mean = float(sums.sum() / count.sum())
    error = float(np.sqrt(((sums - mean * count) ** 2).sum() * users / max(users - 1, 1)) / count.sum())
    times = _resamples(users)
    requests = times @ count
    means = times @ sums / requests
    squares = times @ sums**2 - 2 * means * (times @ (sums * count)) + means**2 * (times @ count**2)
    off = (means - mean) * requests / np.sqrt(np.maximum(squares, np.finfo(float).tiny))
    least, most = np.quantile(off, (0.025, 0.975))
    return Estimate(value=mean, error=error, low=mean - float(most) * error, high=mean - float(least) * error)


@lru_cache(maxsize=8)
def _resamples(users: int) -> np.ndarray:
    """(RESAMPLES, users) how often each user is drawn."""
    times: np.ndarray = np.random.default_rng(users).multinomial(users, np.full(users, 1 / users), size=RESAMPLES)
    return times.astype(np.float64)


def _examined(log: Logged) -> np.ndarray:
    """(K,): how much more than predicted a position brings, from the log itself. Right or wrong, DR's mean stays: it is
    what makes the interval narrow."""
    rows = np.arange(len(log.shown))[:, None]
    factor: np.ndarray = log.reward.sum(axis=0) / log.predicted[rows, log.shown].sum(axis=0)
    return factor
