"""Measures on scores that are written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainers.language.answers import above, number, purity, r_precision, recall


def test_recall_counts_targets_among_the_first_and_ties_against_them() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2]])
    targets = np.array([0, 1, 2, 0])
    assert recall(scores, targets, 1).tolist() == [1, 0, 0, 0]
    assert recall(scores, targets, 2).tolist() == [1, 1, 0, 0]
    assert recall(scores, targets, 3).tolist() == [1, 1, 1, 1]


def test_above_is_the_share_of_what_was_shown() -> None:
    """Above two of three; a tie; nothing shown, which is left out."""
    others = np.array([[0.1, 0.2, 0.9], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    there = np.array([[True, True, True], [True, False, False], [False, False, False]])
    assert above(np.array([0.5, 0.5, 0.5]), others, there).tolist() == [pytest.approx(2 / 3), 0.5]


def test_r_precision_looks_as_deep_as_there_are_right_ones() -> None:
    kinds = np.array(["a", "a", "b", "c"])
    scores = np.array([[0.9, 0.1, 0.8, 0.0], [0.1, 0.2, 0.9, 0.3]])
    assert r_precision(scores, np.array(["a", "b"]), kinds).tolist() == [0.5, 1.0]


def test_purity_by_hand() -> None:
    """On a line: a at 0, 1 and 10, b at 2 and 3, c alone at 20. Nearest two others each, or one where only one can be.

    a0: a1, b2 -> 1/2. a1: a0, b2 -> 1/2. a10: b3, b2 -> 0. b2: its nearest is a1 or b3, both at distance 1; stable
    order takes a1 -> 0. b3: b2 -> 1.
    """
    places = np.array([0.0, 1.0, 10.0, 2.0, 3.0, 20.0])
    kinds = np.array(["a", "a", "a", "b", "b", "c"])
    shares = purity(-np.abs(places[:, None] - places), kinds, 2)
    assert shares[:5].tolist() == [0.5, 0.5, 0.0, 0.0, 1.0]
    assert math.isnan(shares[5])


def test_an_interval_takes_a_cluster_for_one_draw() -> None:
    """Four values 0 0 1 1: alone the error is sqrt(4 / 4) / 4; as two clusters, sqrt(1 + 1) / 4."""
    values = np.array([0.0, 0.0, 1.0, 1.0])
    alone, clustered = number(values), number(values, np.array([7, 7, 3, 3]))
    assert alone.mean == clustered.mean == 0.5
    assert alone.high - 0.5 == pytest.approx(1.96 * 1 / 4)
    assert clustered.high - 0.5 == pytest.approx(1.96 * math.sqrt(2) / 4)
    assert str(alone) == "0.500 ± 0.490"
