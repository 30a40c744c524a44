from __future__ import annotations

import pytest
import torch

from trainers.models.embedding import (
    SPARSE_ABOVE_ROWS,
    FeatureEmbedding,
    FrozenVectors,
    FusedEmbedding,
    InputSizes,
    RecentPooling,
)


def test_columns_of_a_fused_table_do_not_touch() -> None:
    table = FusedEmbedding((3, 4), width=2)
    with torch.no_grad():
        table.table.weight.copy_(torch.arange(14.0).view(7, 2))
    found = table(torch.tensor([[2, 0], [0, 3]]))
    assert found.tolist() == [[[4, 5], [6, 7]], [[0, 1], [12, 13]]]
    assert table.column(1, torch.tensor([[3, 1]])).tolist() == [[[12, 13], [8, 9]]]


def test_unknown_starts_at_zero_and_large_tables_are_sparse() -> None:
    table = FusedEmbedding((3, 4), width=2)
    assert float(table(torch.zeros(1, 2, dtype=torch.int64)).detach().abs().sum()) == 0.0
    assert float(table.table.weight.detach().abs().sum()) > 0
    assert not table.table.sparse and FusedEmbedding((SPARSE_ABOVE_ROWS, 1), width=1).table.sparse


def test_training_makes_the_asked_share_of_ids_unknown() -> None:
    torch.manual_seed(0)
    table = FusedEmbedding((2,), width=1, unknown_rate=0.3)
    ids = torch.ones(20_000, 1, dtype=torch.int64)
    zero = (table.train()(ids) == 0).float().mean()
    assert float(zero) == pytest.approx(0.3, abs=0.02)
    assert bool((table.eval()(ids) != 0).all())


def vectors() -> FrozenVectors:
    torch.manual_seed(1)
    matrix = torch.randn(6, 3) * torch.tensor([1.0, 5.0, 0.2]) + 10.0
    matrix[0] = 0.0
    return FrozenVectors(matrix, width=2)


def test_frozen_vectors_are_standardised_by_the_rows_that_are_read() -> None:
    frozen = vectors()
    rows = torch.tensor([1, 2, 3, 3, 3, 0])
    frozen.fit(rows)
    used = frozen.matrix[1:4]
    assert torch.allclose(frozen.mean_SV[0], used.mean(0))
    assert torch.allclose(frozen.scale_V[:2], used.std(0, correction=0)[:2])
    expected = frozen.projection((frozen.matrix[2] - frozen.mean_SV[0]) / frozen.scale_V)
    assert torch.allclose(frozen(torch.tensor([[2]]))[0, 0], expected, atol=1e-6)


def test_each_slot_is_centred_on_its_own_mean() -> None:
    """Two slots whose sentences lie far apart: what is common to a slot's values must not drown how they differ."""
    values = torch.tensor([[0.0, 0.0], [101.0, 2.0], [99.0, 2.0], [-100.0, 7.0], [-100.0, 5.0]])
    frozen = FrozenVectors(values, width=2, slots=2)
    with torch.no_grad():
        frozen.projection.weight.copy_(torch.eye(2))
        frozen.projection.bias.zero_()
    frozen.fit(torch.tensor([[1, 3], [2, 4], [1, 0]]))
    assert frozen.mean_SV.tolist() == [[100.0, 2.0], [-100.0, 6.0]]
    scale = 0.5**0.5  # two of four centred values are 1 or -1, in both dimensions
    found = frozen(torch.tensor([[1, 3], [2, 4]])) * scale
    assert torch.allclose(found, torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]]), atol=1e-5)


def test_a_missing_vector_is_a_learned_one_and_the_matrix_is_no_weight() -> None:
    frozen = vectors()
    with torch.no_grad():
        frozen.missing.fill_(7.0)
    found = frozen(torch.tensor([0, 4]))
    assert found[0].tolist() == [7.0, 7.0] and found[1].tolist() != [7.0, 7.0]
    assert set(frozen.state_dict()) == {"mean_SV", "scale_V", "projection.weight", "projection.bias", "missing"}
    found.sum().backward()
    assert frozen.missing.grad is not None and frozen.missing.grad.tolist() == [1.0, 1.0]


def test_a_matrix_grows_at_its_end_only() -> None:
    frozen = vectors()
    before = frozen(torch.tensor([4]))
    frozen.extend(torch.cat([frozen.matrix, torch.ones(2, 3)]))
    assert torch.equal(frozen(torch.tensor([4])), before) and frozen(torch.tensor([7])).shape == (1, 2)
    with pytest.raises(ValueError, match="does not extend"):
        frozen.extend(torch.zeros(3, 3))


def test_recent_pois_are_weighted_by_match_and_age() -> None:
    pooling = RecentPooling(2)
    with torch.no_grad():
        pooling.query.weight.copy_(torch.eye(2))
        pooling.decay.fill_(1.0)
        pooling.nothing.fill_(0.0)
    target = torch.tensor([[2.0, 0.0]])
    recent = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    age = torch.tensor([[0.5, 1.5, 0.0]])
    pooled = pooling(target, recent, age, torch.tensor([[True, True, False]]))
    score = torch.tensor([2 / 2**0.5 - 0.5, -1.5, 0.0])  # the last one is "nothing"
    weight = torch.softmax(score, dim=0)
    assert torch.allclose(pooled, weight[:2][None], atol=1e-6)
    nobody = pooling(target, recent, age, torch.zeros(1, 3, dtype=torch.bool))
    assert nobody.tolist() == [[0.0, 0.0]]


def test_text_vectors_that_are_not_there_are_asked_for() -> None:
    sizes = InputSizes(
        cardinalities=(3, 3), user_fields=1, numbers=0, scene_cardinalities=(), text_spaces=(), scene_space="scene_text"
    )
    with pytest.raises(ValueError, match=r"poi_text.*embed them"):
        FeatureEmbedding(FeatureEmbedding.Config(text_spaces=("poi_text",)), sizes, {})
