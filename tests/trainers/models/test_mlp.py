from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.models.mlp import Dropout, GroupedLinear, GroupedMLP


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_computes_what_its_members_would(shared: bool) -> None:
    torch.manual_seed(0)
    grouped = GroupedMLP(3, 5, (4, 2)).double()
    rows = torch.randn(7, 5).double() if shared else torch.randn(3, 7, 5).double()
    result = grouped(rows)
    for g in range(3):
        expected = rows if shared else rows[g]
        for layer in grouped.layers:
            assert isinstance(layer, GroupedLinear)
            expected = torch.relu(expected @ layer.weight_GIO[g] + layer.bias_G1O[g])
        assert torch.allclose(result[g], expected, atol=1e-12)


def test_dropout_keeps_the_mean_and_the_asked_share() -> None:
    torch.manual_seed(0)
    rows = torch.ones(301, 999)
    out = Dropout(0.25).train()(rows)
    assert out.shape == rows.shape and out.unique().tolist() == pytest.approx([0.0, 256 / 192])
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(Dropout(0.25).eval()(rows), rows) and torch.equal(Dropout(0.0).train()(rows), rows)
    columns = (out == 0).float().mean(0)
    assert float(columns.min()) > 0.15 and float(columns.max()) < 0.35  # no column is dropped more than another


def test_dropout_is_a_draw_of_the_random_state() -> None:
    dropout, rows = Dropout(0.5).train(), torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(rows), dropout(rows)
    torch.manual_seed(3)
    assert torch.equal(dropout(rows), first) and not torch.equal(first, second)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        nn.Sequential(Dropout(rate))
