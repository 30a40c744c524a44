"""Metrics of predicted probabilities: numpy in, float out; None where the data cannot say, with the reason.

AUC is the chance that a positive row is scored above a negative one, ties counted half. Where the true probabilities
are known (a simulated world), the same metrics of those are the best that any ranker could reach in expectation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

ECE_BINS = 20
CLIP = 1e-7  # log loss of a probability beyond this is not told apart


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One task on one set of rows.

    Attributes:
        auc, gauc: None where the rows (or those of every user) are all of one class; `reason` says so.
        log_loss: in nats. ece: mean gap between predicted and observed rate over bins of equal count.
        best_auc, best_log_loss: of the true probabilities, where known.
    """

    rows: int
    positives: int
    auc: float | None
    gauc: float | None
    log_loss: float
    ece: float
    best_auc: float | None = None
    best_log_loss: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Both tasks, overall and for each scenario."""

    click: Metrics
    order: Metrics
    click_by_scenario: Mapping[str, Metrics] = field(default_factory=dict)
    order_by_scenario: Mapping[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What happened to n impressions, and what is known of them beside the scores; arrays of (n,).

    Attributes:
        user, scenario: ids of any kind to group by.
        true_click, true_order: the world's own probabilities of click, and of click and order; None where unknown.
    """

    click: np.ndarray
    order: np.ndarray
    user: np.ndarray
    scenario: np.ndarray
    true_click: np.ndarray | None = None
    true_order: np.ndarray | None = None


def evaluate(p_click: np.ndarray, p_order: np.ndarray, outcomes: Outcomes) -> Report:
    """All metrics of n predicted probabilities of click, and of click and order.

    Raises ValueError for no rows, lengths that differ, or probabilities that are none.
    """
    o = outcomes
    lengths = {len(p_click), len(p_order), len(o.click), len(o.order), len(o.user), len(o.scenario)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"metrics need the same number of rows of everything, and at least one; got {sorted(lengths)}")
    names, scenario = np.unique(o.scenario.astype(str), return_inverse=True)
    masks = {str(name): scenario == at for at, name in enumerate(names)}
    everything = np.ones(len(p_click), dtype=bool)

    def metrics(mask: np.ndarray, probability: np.ndarray, label: np.ndarray, true: np.ndarray | None) -> Metrics:
        return task_metrics(probability[mask], label[mask], o.user[mask], None if true is None else true[mask])

    return Report(
        click=metrics(everything, p_click, o.click, o.true_click),
        order=metrics(everything, p_order, o.order, o.true_order),
        click_by_scenario={n: metrics(m, p_click, o.click, o.true_click) for n, m in masks.items()},
        order_by_scenario={n: metrics(m, p_order, o.order, o.true_order) for n, m in masks.items()},
    )


def task_metrics(
    probability: np.ndarray, label: np.ndarray, user: np.ndarray, true: np.ndarray | None = None
) -> Metrics:
    """The metrics of one task. Raises ValueError naming the first row whose probability is not in 0 .. 1."""
    wrong = np.flatnonzero(~((probability >= 0) & (probability <= 1)))
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: {probability[wrong[0]]} is no probability ({len(wrong)} such rows)")
    positives = int((label > 0).sum())
    by_user = gauc(probability, label, user)
    reason = ""
    if positives in (0, len(label)):
        reason = f"all {len(label)} rows are {'positive' if positives else 'negative'}: there is nothing to order"
    elif by_user is None:
        reason = "no user has both positive and negative rows: there is no GAUC"
    return Metrics(
        rows=len(label),
        positives=positives,
        auc=auc(probability, label),
        gauc=by_user,
        log_loss=log_loss(probability, label),
        ece=ece(probability, label),
        best_auc=None if true is None else auc(true, label),
        best_log_loss=None if true is None else log_loss(true, label),
        reason=reason,
    )


def auc(score: np.ndarray, label: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks, (n,) each; None where all labels are equal.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    positive = label > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    rank = _average_ranks(score)
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def gauc(score: np.ndarray, label: np.ndarray, group: np.ndarray) -> float | None:
    """Mean AUC of the groups (users), weighted by their rows; groups of one class are left out, None if all are.

    One sort serves all groups: within a group, ranks are those of (group, score) less the rows of groups before it.
    """
    _, code = np.unique(group, return_inverse=True)
    _, level = np.unique(score, return_inverse=True)
    rank = _average_ranks(code.astype(np.int64) * (int(level.max()) + 1) + level)
    count = np.bincount(code)
    before = np.cumsum(count) - count
    positive = (label > 0).astype(np.float64)
    positives = np.bincount(code, weights=positive)
    rank_sum = np.bincount(code, weights=positive * (rank - before[code]))
    pairs = positives * (count - positives)
    mixed = pairs > 0
    if not mixed.any():
        return None
    areas = (rank_sum[mixed] - positives[mixed] * (positives[mixed] + 1) / 2) / pairs[mixed]
    return float(np.average(areas, weights=count[mixed]))


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean negative log likelihood in nats."""
    p = np.clip(probability.astype(np.float64), CLIP, 1 - CLIP)
    return float(-np.mean(np.where(label > 0, np.log(p), np.log1p(-p))))


def ece(probability: np.ndarray, label: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |mean prediction - observed rate|, over bins of equal count, weighted by rows.

    Rows of one prediction count with their common rate, so that their order says nothing where bins part them.
    """
    _, tie, count = np.unique(probability, return_inverse=True, return_counts=True)
    rate = (np.bincount(tie, weights=label > 0) / count)[tie]
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    gaps = [abs(probability[part].mean() - rate[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(probability))


def _average_ranks(score: np.ndarray) -> np.ndarray:
    """Ranks from 1; tied scores share the mean of theirs."""
    _, code, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: np.ndarray = (last - (count - 1) / 2)[code]
    return ranks
