"""Contrastive losses against numbers that a reader can check with a pocket calculator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainers.language.clicks import NONE
from trainers.language.contrastive import (
    PairVectors,
    Scoring,
    belong_together,
    encode_pieces,
    exposed_loss,
    in_batch_loss,
    side_vectors,
    total_loss,
)

KINDS = ("user_user", "poi_poi", "user_poi")


def pairs(
    anchors: Sequence[Sequence[float]],
    positives: Sequence[Sequence[float]],
    keys: Sequence[Sequence[int]] | None = None,
) -> PairVectors:
    """Pairs with (anchor, positive, group) keys; without keys no two agree in anything."""
    keys = keys or [(i, 100 + i, 200 + i) for i in range(len(anchors))]
    anchor, positive, group = (torch.tensor(k) for k in zip(*keys, strict=True))
    return PairVectors(
        anchor_BD=torch.tensor(anchors, dtype=torch.float64),
        positive_BD=torch.tensor(positives, dtype=torch.float64),
        anchor_B=anchor,
        positive_B=positive,
        group_B=group,
    )


# Cosines: the first anchor has 0.6 with its own positive and 0 with the other, the second 1 and 0.8.
TWO = pairs([[2.0, 0.0], [0.0, 1.0]], [[0.3, 0.4], [0.0, 5.0]])


def test_in_batch_loss_by_hand() -> None:
    """At temperature 0.5 own - other is 1.2 and 0.4: log(1 + e^-1.2) = 0.2633, log(1 + e^-0.4) = 0.5130."""
    assert in_batch_loss(TWO, temperature=0.5).item() == pytest.approx((0.263282 + 0.513015) / 2, abs=1e-6)


def test_the_other_direction_by_hand() -> None:
    """From positives to anchors: 0.6 against 0.8, and 1 against 0; log(1 + e^0.4) = 0.9130, log(1 + e^-2) = 0.1269."""
    assert in_batch_loss(TWO.turned(), temperature=0.5).item() == pytest.approx((0.913015 + 0.126928) / 2, abs=1e-6)


def test_a_lower_temperature_sharpens() -> None:
    """Both anchors prefer their own positive; the colder, the surer."""
    losses = [in_batch_loss(TWO, temperature=t).item() for t in (2.0, 0.5, 0.1, 0.01)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-8


def test_pairs_that_belong_together_are_no_negatives() -> None:
    """With three pairs of which the third is left out for the first, the first has only the second to beat."""
    anchors, positives = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]]
    two = in_batch_loss(pairs(anchors[:2], positives[:2]), temperature=1.0).item()
    same = {
        "positive": [(0, 100, 200), (1, 101, 201), (2, 100, 202)],
        "anchor": [(0, 100, 200), (1, 101, 201), (0, 102, 202)],
        "group": [(0, 100, 200), (1, 101, 201), (2, 102, 200)],
    }
    # Each row alone, so that the numbers of the first and the second stand by themselves.
    first = math.log(1 + math.exp(0.0 - 0.8))
    second = math.log(1 + math.exp(0.6 - 1.0))
    assert two == pytest.approx((first + second) / 2)
    third = math.log(1 + math.exp(0.8 - 0.6))  # cos 0.6 with its own, 0.8 with the second, the first left out
    second_of_three = math.log(1 + math.exp(0.6 - 1.0) + math.exp(0.0 - 1.0))
    for what, keys in same.items():
        loss = in_batch_loss(pairs(anchors, positives, keys), temperature=1.0).item()
        assert loss == pytest.approx((first + second_of_three + third) / 3), what
    alike = in_batch_loss(pairs(anchors, positives), temperature=1.0).item()
    assert alike > loss  # unmasked, the duplicate is pushed away


def test_the_anchor_itself_is_no_negative_of_its_own() -> None:
    """Pairs (a, b) and (c, a): a text is not pushed away from itself. Pairs (b, a) and (c, b) neither, seen from b."""
    found = belong_together(*[pairs([[1.0], [1.0]], [[1.0], [1.0]], [(7, 8, 0), (9, 7, 1)])] * 2)
    assert found.tolist() == [[True, True], [False, True]]


def test_a_pair_alone_has_nothing_to_learn() -> None:
    assert in_batch_loss(pairs([[1.0, 2.0]], [[2.0, 1.0]]), temperature=0.1).item() == 0.0


def test_a_pool_adds_candidates() -> None:
    """Two processes with one pair each, and all positives as candidates, have the loss of one process with both."""
    halves = [
        in_batch_loss(
            PairVectors(**{name: value[at : at + 1] for name, value in vars(TWO).items()}),
            TWO,
            first=at,
            temperature=0.5,
        )
        for at in (0, 1)
    ]
    assert torch.stack(halves).mean().item() == pytest.approx(in_batch_loss(TWO, temperature=0.5).item())


def test_exposed_loss_by_hand() -> None:
    """Cosines 1 with the chosen, 0 and 0.6 with the two left, at temperature 0.5; a pair that was shown one; and none.

    log(1 + e^-2 + e^-0.8) = 0.4604, log(1 + e^-2) = 0.1269, 0.
    """
    anchor = torch.tensor([[1.0, 0.0]] * 3)
    positive = torch.tensor([[3.0, 0.0]] * 3)
    exposed = torch.tensor([[[0.0, 2.0], [0.6, 0.8]]] * 3)
    shown = torch.tensor([[True, True], [True, False], [False, False]])
    loss = exposed_loss(anchor, positive, exposed, shown, temperature=0.5)
    assert loss.item() == pytest.approx((0.460373 + 0.126928 + 0.0) / 3, abs=1e-6)


def test_gradients_draw_the_positive_near_and_push_what_was_left_away() -> None:
    anchor = torch.tensor([[1.0, 1.0]])
    positive = torch.tensor([[1.0, 0.0]], requires_grad=True)
    exposed = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    exposed_loss(anchor, positive, exposed, torch.tensor([[True]]), temperature=0.2).backward()
    assert positive.grad is not None and positive.grad[0, 1] < 0  # a step against the gradient turns it to the anchor
    assert exposed.grad is not None and exposed.grad[0, 0, 0] > 0  # and this one away


def test_total_is_the_weighted_sum() -> None:
    parts = {"user_user": torch.tensor(1.0), "poi_poi": torch.tensor(2.0), "user_poi": torch.tensor(4.0)}
    assert total_loss(parts, {"user_user": 0.5, "poi_poi": 0.25, "user_poi": 2.0}).item() == 9.0


def test_a_side_is_the_sum_of_its_texts() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 10.0], [100.0, 0.0]])
    sides = torch.tensor([[0, 1, 2], [2, NONE, NONE], [1, NONE, 1], [NONE, NONE, NONE]])
    assert side_vectors(texts, sides).tolist() == [[101.0, 10.0], [100.0, 0.0], [0.0, 20.0], [0.0, 0.0]]
    assert side_vectors(texts, sides[:2, None]).tolist() == [[[101.0, 10.0]], [[100.0, 0.0]]]


def test_both_readings_of_symmetric_and_asymmetric() -> None:
    by_projectors = Scoring()
    assert [by_projectors.projectors(kind) for kind in KINDS] == [("user", "user"), ("poi", "poi"), ("user", "poi")]
    assert not any(by_projectors.both_directions(kind) for kind in KINDS)
    by_directions = Scoring(reading="directions")
    assert {by_directions.projectors(kind) for kind in KINDS} == {("shared", "shared")}
    assert [by_directions.both_directions(kind) for kind in KINDS] == [True, True, False]


def test_every_kind_can_be_symmetric_or_not() -> None:
    everything = Scoring(symmetric=KINDS)
    assert {everything.projectors(kind) for kind in KINDS} == {("shared", "shared")}
    nothing = Scoring(symmetric=())
    assert [nothing.projectors(kind) for kind in KINDS] == [
        ("user", "user_positive"),
        ("poi", "poi_positive"),
        ("user", "poi"),
    ]
    assert all(Scoring(reading="directions", symmetric=KINDS).both_directions(kind) for kind in KINDS)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 10))
def test_the_cached_gradient_is_the_plain_one(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    pieces = [torch.randn(size, 6, dtype=torch.float64) for size in sizes]
    found = {}
    for cached in (False, True):
        encoder.zero_grad()
        vectors = torch.cat(encode_pieces(encoder, pieces, cached=cached))
        keys = torch.arange(len(vectors))
        both = PairVectors(
            anchor_BD=vectors, positive_BD=vectors.roll(1, 1), anchor_B=keys, positive_B=keys + 50, group_B=keys
        )
        loss = in_batch_loss(both, temperature=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        found[cached] = [loss.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]
    for plain, cached_one in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(cached_one, plain, rtol=1e-6, atol=1e-12)


def test_the_cached_gradient_keeps_no_activations() -> None:
    """What autograd holds between forward and backward: the hidden layer of every piece, or none."""
    encoder = nn.Sequential(nn.Linear(4, 1000), nn.Tanh(), nn.Linear(1000, 2))
    pieces = [torch.randn(8, 4) for _ in range(10)]
    calls: list[int] = []

    def encode(piece: Tensor) -> Tensor:
        calls.append(len(piece))
        vectors: Tensor = encoder(piece)
        return vectors

    kept = {}
    for cached in (False, True):
        sizes: list[int] = []
        calls.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            vectors = encode_pieces(encode, pieces, cached=cached)
        kept[cached] = sum(size for size in sizes if size >= 8000)
        torch.cat(vectors).sum().backward()  # type: ignore[no-untyped-call]
        assert len(calls) == (20 if cached else 10)
    assert kept[False] >= 10 * 8000
    assert kept[True] == 0
