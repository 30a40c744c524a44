"""Measures of retrieval and of neighbourhoods: pure functions on scores. Letters: Q queries, C candidates, N values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Number:
    """A mean over n questions with its 95 % interval; n = 0 for one that is known exactly."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.high - self.mean:.3f}" if self.n else "")


def number(value_N: np.ndarray, cluster_N: np.ndarray | None = None) -> Number:
    """Mean and normal 95 % interval of at least one value; values of a cluster are not taken for independent ones."""
    count = len(value_N)
    mean = float(value_N.mean())
    _, cluster = np.unique(np.arange(count) if cluster_N is None else cluster_N, return_inverse=True)
    error = float(np.sqrt(np.square(np.bincount(cluster, value_N - mean)).sum()) / count)
    return Number(mean=mean, low=mean - Z95 * error, high=mean + Z95 * error, n=count)


def recall(score_QC: np.ndarray, target_Q: np.ndarray, depth: int) -> np.ndarray:
    """Whether the target is among the first `depth` candidates: 0 or 1 for each query. Ties count against it."""
    own_Q1 = np.take_along_axis(score_QC, target_Q[:, None], axis=1)
    return np.asarray((score_QC >= own_Q1).sum(1) <= depth, np.float64)


def above(own_Q: np.ndarray, other_QE: np.ndarray, there_QE: np.ndarray) -> np.ndarray:
    """For each query with any other, the share of the others that it scores above; a tie counts half."""
    some_Q = there_QE.any(1)
    own_Q1, other_QE, there_QE = own_Q[some_Q, None], other_QE[some_Q], there_QE[some_Q]
    win_QE = (own_Q1 > other_QE) + (own_Q1 == other_QE) / 2
    return np.asarray((win_QE * there_QE).sum(1) / there_QE.sum(1))


def r_precision(score_QC: np.ndarray, kind_Q: np.ndarray, kind_C: np.ndarray) -> np.ndarray:
    """For each query of a kind with R candidates, the share of them among its first R."""
    right = []
    for scores, kind in zip(score_QC, kind_Q, strict=True):
        size = int((kind_C == kind).sum())
        right.append(float((kind_C[np.argsort(-scores, kind="stable")[:size]] == kind).mean()))
    return np.array(right)


def purity(score_CC: np.ndarray, kind_C: np.ndarray, neighbours: int) -> np.ndarray:
    """How much of its neighbourhood is of a candidate's own kind, between other candidates only.

    Of a kind with n members at most n - 1 neighbours can be right, so the nearest min(`neighbours`, n - 1) are looked
    at. NaN for the only one of its kind.
    """
    score_CC = np.where(np.eye(len(kind_C), dtype=bool), -np.inf, score_CC)
    order_CC = np.argsort(-score_CC, axis=1, kind="stable")
    share_C = np.full(len(kind_C), np.nan)
    for at, kind in enumerate(kind_C):
        most = min(neighbours, int((kind_C == kind).sum()) - 1)
        if most:
            share_C[at] = (kind_C[order_CC[at, :most]] == kind).mean()
    return share_C
