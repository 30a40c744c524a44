from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainers.metrics import Outcomes, auc, ece, evaluate, gauc, log_loss, task_metrics
from trainers.plain import to_plain

SCORES = arrays(np.float64, 30, elements=st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9]))
LABELS = arrays(np.int8, 30, elements=st.integers(0, 1))


@given(SCORES, LABELS)
@settings(max_examples=100, deadline=None)
def test_auc_is_the_share_of_ordered_pairs_with_ties_as_half(score: np.ndarray, label: np.ndarray) -> None:
    positive, negative = score[label == 1], score[label == 0]
    if not len(positive) or not len(negative):
        assert auc(score, label) is None
        return
    gaps = positive[:, None] - negative[None, :]
    assert auc(score, label) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@given(SCORES, LABELS, arrays(np.int8, 30, elements=st.integers(0, 4)))
@settings(max_examples=100, deadline=None)
def test_gauc_is_the_mean_of_the_users_weighted_by_rows(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> None:
    areas = [(auc(score[user == u], label[user == u]), int((user == u).sum())) for u in np.unique(user)]
    mixed = [(area, rows) for area, rows in areas if area is not None]
    if not mixed:
        assert gauc(score, label, user) is None
        return
    expected = sum(area * rows for area, rows in mixed) / sum(rows for _, rows in mixed)
    assert gauc(score, label, user) == pytest.approx(expected)


def test_log_loss_by_hand() -> None:
    loss = log_loss(np.array([0.8, 0.3]), np.array([1, 0]))
    assert loss == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)
    assert math.isfinite(log_loss(np.array([0.0, 1.0]), np.array([1, 0])))


def test_ece_by_hand() -> None:
    probability, label = np.array([0.1, 0.1, 0.6, 0.6]), np.array([0, 0, 1, 0])
    assert ece(probability, label, bins=2) == pytest.approx((0.1 * 2 + 0.1 * 2) / 4)
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 1, 50_000)
    happened = (rng.random(50_000) < true).astype(np.int8)
    assert ece(true, happened) < 0.02 < ece(true**2, happened)


def test_ece_does_not_depend_on_the_order_of_ties() -> None:
    """Of a thousand rows that are all said to be even, half are clicked: no error, whichever half comes first."""
    even, label = np.full(1000, 0.5), np.repeat([0, 1], 500)
    assert ece(even, label) == ece(even, label[::-1]) == pytest.approx(0, abs=1e-12)
    probability = np.repeat([0.2, 0.4, 0.7], 111)
    label = (np.random.default_rng(0).random(333) < probability).astype(np.int8)
    order = np.random.default_rng(1).permutation(333)
    assert ece(probability, label) == pytest.approx(ece(probability[order], label[order]), abs=1e-12) != 0


def test_report_tells_scenarios_and_the_best_attainable() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    true = rng.uniform(0.05, 0.9, n)
    click = (rng.random(n) < true).astype(np.int8)
    outcomes = Outcomes(
        click=click,
        order=np.zeros(n, dtype=np.int8),
        user=rng.integers(0, 40, n),
        scenario=np.where(np.arange(n) % 2, "home", "search"),
        true_click=true,
        true_order=true * 0.1,
    )
    report = evaluate(true**2, true * 0.1, outcomes)
    assert report.click.auc == report.click.best_auc  # a monotone score orders as the truth does
    assert report.click.best_log_loss is not None and report.click.best_log_loss < report.click.log_loss
    home = np.arange(n) % 2 == 1
    assert report.click_by_scenario["home"].auc == auc(true[home], click[home])
    assert report.click_by_scenario["search"].rows == n // 2
    assert (
        report.order.auc is None and report.order.gauc is None and "all 4000 rows are negative" in report.order.reason
    )
    plain = to_plain(report)
    assert plain["order"]["auc"] is None and plain["click_by_scenario"]["home"]["positives"] == int(click[home].sum())


def test_no_user_with_both_classes_has_its_own_reason() -> None:
    metrics = task_metrics(np.array([0.1, 0.9]), np.array([0, 1]), np.array(["a", "b"]))
    assert metrics.auc == 1.0 and metrics.gauc is None and "no user" in metrics.reason


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.5])
def test_what_is_no_probability_is_refused_with_its_row(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"row 1: .* is no probability \(1 such rows\)"):
        task_metrics(np.array([0.1, wrong]), np.array([0, 1]), np.array(["a", "a"]))


def test_lengths_must_agree() -> None:
    three = np.zeros(3)
    outcomes = Outcomes(click=three, order=three, user=three, scenario=three)
    with pytest.raises(ValueError, match="same number of rows"):
        evaluate(np.zeros(2), three, outcomes)
    with pytest.raises(ValueError, match="at least one"):
        none = np.zeros(0)
        evaluate(none, none, Outcomes(click=none, order=none, user=none, scenario=none))
