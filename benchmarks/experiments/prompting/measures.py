"""How much vectors tell of people's tastes, and how alike two sets of vectors of the same people are.

Every measure is a ratio of two sums over users, so that one bootstrap over users serves all of them, paired.

Letters: n users, E width of a vector, K kinds of places, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.experiments.statistics import RESAMPLES, Interval, over_users

FOLDS = 5
NEIGHBOURS = 10
# Strengths of the penalty for each user that is fitted, of standardised columns; leaving one out chooses.
PENALTIES = np.logspace(-3, 4, 15)


@dataclass(frozen=True)
class Share:
    """A ratio of sums over users: both (n,)."""

    above_n: np.ndarray
    below_n: np.ndarray

    @staticmethod
    def mean(values_n: np.ndarray) -> Share:
        return Share(values_n.astype(np.float64), np.ones(len(values_n)))

    @property
    def value(self) -> float:
        return float(self.above_n.sum() / self.below_n.sum())

    def resampled(self, seed: int = 0) -> np.ndarray:
        """(R,), the same resamples of users for the same n and seed."""
        n = len(self.above_n)
        times_Rn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        replicates: np.ndarray = (times_Rn @ self.above_n) / (times_Rn @ self.below_n)
        return replicates

    def interval(self) -> Interval:
        """95 %, over users."""
        return over_users(self.value, self.resampled())

    def less(self, other: Share) -> Interval:
        """The difference to another share of the same users."""
        return over_users(self.value - other.value, self.resampled() - other.resampled())


@dataclass(frozen=True)
class Foretold:
    """What a probe says of users that it was not fitted on.

    Attributes:
        said_nK: what it says. usual_nK: the mean over the users that it was fitted on, which it knows without vectors.
    """

    said_nK: np.ndarray
    usual_nK: np.ndarray

    def explained(self, true_nK: np.ndarray) -> Share:
        """The share of the squared deviations from what is usual that is foretold: 1 all of it, 0 or less nothing."""
        missed_n = ((true_nK - self.said_nK) ** 2).sum(axis=1)
        usual_n = ((true_nK - self.usual_nK) ** 2).sum(axis=1)
        return Share(usual_n - missed_n, usual_n)

    def first(self, true_nK: np.ndarray) -> Share:
        """The share of users whose highest value is foretold."""
        return Share.mean(self.said_nK.argmax(axis=1) == true_nK.argmax(axis=1))


def foretold(vectors_nE: np.ndarray, true_nK: np.ndarray, checked_nE: np.ndarray | None = None) -> Foretold:
    """Fit a ridge regression on all users but those of one fold, and ask it about these; for every fold.

    Args:
        vectors_nE: what it is fitted on. true_nK: what it has to say.
        checked_nE: other vectors of the same users, in place of `vectors_nE` where it is asked.
    """
    checked_nE = vectors_nE if checked_nE is None else checked_nE
    said_nK, usual_nK = np.empty_like(true_nK), np.empty_like(true_nK)
    fold_n = np.random.default_rng(0).permutation(len(true_nK)) % FOLDS
    for fold in range(FOLDS):
        fit, check = fold_n != fold, fold_n == fold
        mean_E, spread_E = vectors_nE[fit].mean(axis=0), vectors_nE[fit].std(axis=0)
        spread_E = np.where(spread_E > 0, spread_E, 1.0)
        usual_nK[check] = true_nK[fit].mean(axis=0)
        weights_EK = _ridge((vectors_nE[fit] - mean_E) / spread_E, true_nK[fit] - true_nK[fit].mean(axis=0))
        said_nK[check] = usual_nK[check] + (checked_nE[check] - mean_E) / spread_E @ weights_EK
    return Foretold(said_nK, usual_nK)


def _ridge(centred_nE: np.ndarray, centred_nK: np.ndarray) -> np.ndarray:
    """Weights, (E, K), under the penalty with the smallest error on users left out one at a time."""
    left_nr, lengths_r, right_rE = np.linalg.svd(centred_nE.astype(np.float64), full_matrices=False)
    seen_rK = left_nr.T @ centred_nK
    best, weights_EK = np.inf, np.zeros((centred_nE.shape[1], centred_nK.shape[1]))
    for penalty in PENALTIES * len(centred_nE):
        kept_r = lengths_r**2 / (lengths_r**2 + penalty)
        own_n = (left_nr**2 * kept_r).sum(axis=1) + 1 / len(centred_nE)  # how much a user's own value tells of itself
        missed_nK = (centred_nK - left_nr @ (kept_r[:, None] * seen_rK)) / (1 - own_n)[:, None]
        if (error := float((missed_nK**2).sum())) < best:
            best = error
            weights_EK = right_rE.T @ ((lengths_r / (lengths_r**2 + penalty))[:, None] * seen_rK)
    return weights_EK


def cosines(a_nE: np.ndarray, b_nE: np.ndarray) -> np.ndarray:
    """Of the two vectors of each user, each set centred: (n,)."""
    cosine_n: np.ndarray = (_directions(a_nE) * _directions(b_nE)).sum(axis=1)
    return cosine_n


def shared_neighbours(a_nE: np.ndarray, b_nE: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """The share of each user's nearest others (by cosine, centred) that are so in both sets: (n,); chance is
    count / (n - 1)."""
    near_a, near_b = (_nearest(vectors, count) for vectors in (a_nE, b_nE))
    return np.array([len(np.intersect1d(a, b)) / count for a, b in zip(near_a, near_b, strict=True)])


def _nearest(vectors_nE: np.ndarray, count: int) -> np.ndarray:
    """(n, count), a user not among their own."""
    direction_nE = _directions(vectors_nE)
    alike_nn = direction_nE @ direction_nE.T
    np.fill_diagonal(alike_nn, -np.inf)
    nearest: np.ndarray = np.argsort(-alike_nn, axis=1, kind="stable")[:, :count]
    return nearest


def _directions(vectors_nE: np.ndarray) -> np.ndarray:
    """Centred and of length 1; zero where a vector is the mean."""
    centred_nE = vectors_nE - vectors_nE.mean(axis=0)
    length_n = np.linalg.norm(centred_nE, axis=1, keepdims=True)
    direction_nE: np.ndarray = centred_nE / np.where(length_n > 0, length_n, 1.0)
    return direction_nE
