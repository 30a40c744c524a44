from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.losses import NORMALISER, LossConfig, click_order_bce, info_nce, list_softmax


def test_click_and_order_loss_by_hand() -> None:
    click = torch.logit(torch.tensor([0.5, 0.2]))
    conversion = torch.logit(torch.tensor([0.4, 0.5]))
    of_click, of_order = click_order_bce(click, conversion, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert float(of_click) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-6)
    assert float(of_order) == pytest.approx(-(math.log(0.5 * 0.4) + math.log(1 - 0.2 * 0.5)) / 2, rel=1e-6)


def test_direct_order_loss_reads_its_own_logit() -> None:
    click, order = torch.zeros(2), torch.logit(torch.tensor([0.25, 0.25]))
    _, of_order = click_order_bce(click, order, torch.ones(2), torch.tensor([1.0, 0.0]), direct=True)
    assert float(of_order) == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2, rel=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -40.0, 40.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_logits_keep_loss_and_gradient_finite(logit: float, label: float) -> None:
    logits = torch.full((2, 3), logit, requires_grad=True)
    of_click, of_order = click_order_bce(logits[0], logits[1], torch.full((3,), label), torch.full((3,), label))
    (of_click + of_order).backward()
    assert bool(torch.isfinite(of_order)) and logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    if (logit > 0) != (label > 0):
        assert of_order.item() > abs(logit) - 0.7  # certain and wrong costs as much as it is certain (less log 2)


@given(st.floats(-15, 15), st.floats(-15, 15))
@settings(max_examples=50, deadline=None)
def test_the_product_is_the_one_of_probabilities(click: float, conversion: float) -> None:
    a, b = torch.tensor([click], dtype=torch.float64), torch.tensor([conversion], dtype=torch.float64)
    p = (a.sigmoid() * b.sigmoid()).item()
    for label in (0.0, 1.0):
        _, loss = click_order_bce(a, b, torch.ones(1), torch.tensor([label], dtype=torch.float64))
        assert float(loss) == pytest.approx(-math.log(p if label else 1 - p), rel=1e-6)


ANCHOR = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
POSITIVE = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
HALF = 1 / math.sqrt(2)
COSINE = [[1, 0, 0], [0, 1, 1], [HALF, HALF, HALF]]


def by_hand(rows: list[list[float]], temperature: float) -> float:
    total = 0.0
    for at, row in enumerate(rows):
        total -= row[at] / temperature - math.log(sum(math.exp(c / temperature) for c in row))
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_info_nce_by_hand(temperature: float) -> None:
    loss = info_nce(ANCHOR, POSITIVE, temperature=temperature)
    assert float(loss) == pytest.approx(by_hand(COSINE, temperature), rel=1e-5)
    turned = [list(column) for column in zip(*COSINE, strict=True)]
    both = info_nce(ANCHOR, POSITIVE, temperature=temperature, both_directions=True)
    assert float(both) == pytest.approx((by_hand(COSINE, temperature) + by_hand(turned, temperature)) / 2, rel=1e-5)


def test_equal_scenes_leave_the_denominator() -> None:
    loss = info_nce(ANCHOR, POSITIVE, temperature=0.5, group_B=torch.tensor([7, 4, 4]))
    first = -math.log(math.exp(2) / (math.exp(2) + 2))  # both others are negatives
    second = -math.log(math.exp(2) / (math.exp(2) + 1))  # the third is not: same scene
    third = -math.log(math.exp(2 * HALF) / (2 * math.exp(2 * HALF)))
    assert float(loss) == pytest.approx((first + second + third) / 3, rel=1e-5)


def test_the_temperature_divides() -> None:
    """Right pairs and sharp: multiplying by the temperature instead would make the loss grow as it falls."""
    losses = [float(info_nce(POSITIVE[:2], POSITIVE[:2], temperature=t)) for t in (0.05, 0.5, 5.0)]
    assert losses[0] < 1e-6 < losses[1] < losses[2] < math.log(2)


def test_the_gradient_reaches_both_sides() -> None:
    anchor, positive = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    info_nce(anchor, positive, temperature=0.2).backward()
    for side in (anchor, positive):
        assert side.grad is not None and float(side.grad.abs().sum()) > 0


def test_exchanged_pairs_cost_more() -> None:
    same = torch.eye(6)
    assert info_nce(same, same, temperature=0.1) < 0.01 < info_nce(same, same.roll(1, 0), temperature=0.1)


@pytest.mark.parametrize("group", [None, torch.zeros(4, dtype=torch.int64)])
def test_nothing_to_compare_costs_nothing(group: Tensor | None) -> None:
    rows = 4 if group is not None else 1
    vectors = torch.randn(rows, 3, requires_grad=True)
    loss = info_nce(vectors, vectors.roll(1, 1), temperature=0.1, group_B=group)
    loss.backward()
    assert loss.item() == 0.0
    assert float(info_nce(torch.zeros(0, 3), torch.zeros(0, 3), temperature=0.1)) == 0.0


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        LossConfig(temperature=0.0)


def test_a_choice_out_of_a_list_by_hand() -> None:
    """Rows of two requests, mixed; a row drawn with probability q counts 1 / q times."""
    request = torch.tensor([7, 3, 7, 3, 7])
    logit, click = torch.tensor([1.0, 0.5, 0.0, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    log_q = torch.log(torch.tensor([1.0, 1.0, 0.5, 0.1, 0.25]))
    sums = [math.exp(1) + 2 * math.exp(0) + 4 * math.exp(2), math.exp(0.5) + 10 * math.exp(-1)]
    shares = [math.exp(1) / sums[0], 10 * math.exp(-1) / sums[1]]
    choice = -(math.log(shares[0]) + math.log(shares[1])) / 2
    held = NORMALISER * (math.log(sums[0]) ** 2 + math.log(sums[1]) ** 2) / 2
    assert float(list_softmax(logit, click, request, log_q)) == pytest.approx(choice + held, rel=1e-6)


def test_lists_without_a_choice_teach_nothing() -> None:
    logit = torch.tensor([3.0, 1.0, 0.0], requires_grad=True)
    loss = list_softmax(logit, torch.zeros(3), torch.tensor([0, 0, 1]), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0.0 and logit.grad is not None and not logit.grad.any()


def test_what_was_drawn_seldom_counts_for_more_than_itself() -> None:
    """Choices go half to venue A and half to one of 100 others alike, of which one is drawn: A is 100 times as good."""
    logit = torch.zeros(2, requires_grad=True)
    q = torch.tensor([1.0, 0.01])
    optimizer = torch.optim.Adam([logit], lr=0.05)
    rows = torch.tensor([0, 1, 0, 1])
    for _ in range(800):
        optimizer.zero_grad()
        loss = list_softmax(
            logit[rows], torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.log(q)[rows]
        )
        loss.backward()
        optimizer.step()
    assert (logit[0] - logit[1]).item() == pytest.approx(math.log(100), abs=0.05)


def test_lists_leave_no_room_for_orders() -> None:
    with pytest.raises(ValueError, match="order=0"):
        LossConfig(lists=True)
