from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.models import meta_layers
from trainers.models.meta_layers import Codes, MetaLayers, MetaLinear

ROWS, INPUTS, WIDTH = 9, 5, 3


def codes_of(distinct: int = 4, seed: int = 0) -> Codes:
    rng = torch.Generator().manual_seed(seed)
    code = torch.randn(distinct, WIDTH, generator=rng, dtype=torch.float64)
    return Codes(code, torch.randint(0, distinct, (ROWS,), generator=rng))


def rows() -> Tensor:
    return torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_layers_are_the_equations_row_by_row(rank: int | None) -> None:
    torch.manual_seed(0)
    layers = MetaLayers(MetaLayers.Config(layers=2, bottleneck=WIDTH, rank=rank), INPUTS).double().eval()
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    codes, given = codes_of(), rows()
    found = layers(given, codes)
    for row in range(ROWS):
        code, y = codes.code_UC[codes.of_row_B[row]], given[row]
        for maps, bias in zip(layers.maps, layers.biases, strict=True):
            matrix = torch.eye(INPUTS, dtype=torch.float64)
            for of_map in maps:  # type: ignore[union-attr]
                matrix = matrix @ torch.einsum("c,cio->io", code, of_map.weight_CIO)
            assert isinstance(bias, torch.nn.Linear)
            y = y + torch.tanh(y @ matrix + bias.weight @ code + bias.bias)
        assert torch.allclose(found[row], y, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 2])
def test_few_and_many_codes_give_the_same(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = MetaLayers(MetaLayers.Config(bottleneck=WIDTH, rank=rank), INPUTS).double()
    codes, given = codes_of(), rows()
    few = layers(given, codes)
    # Layers of more codes, of which ours are some, in another order.
    more = torch.cat([torch.ones(2, WIDTH, dtype=torch.float64), codes.code_UC.flip(0)])
    chosen = layers.generate(more).of(torch.tensor([5, 4, 3, 2]))
    assert torch.allclose(layers(given, replace(codes, layers=chosen)), few, atol=1e-12)
    monkeypatch.setattr(meta_layers, "FEW", 1)
    assert not codes.few
    assert torch.allclose(layers(given, codes), few, atol=1e-12)
    one = Codes(codes.code_UC[:1], torch.zeros(ROWS, dtype=torch.int64))
    assert torch.allclose(layers(given, one)[codes.of_row_B == 0], few[codes.of_row_B == 0], atol=1e-12)


@pytest.mark.parametrize("outputs", [4, 7])
def test_a_map_is_linear_in_the_code(outputs: int) -> None:
    of_map, codes, given = MetaLinear(WIDTH, INPUTS, outputs).double(), codes_of(), rows()
    code_BC = codes.code_UC[codes.of_row_B]
    matrix_BIO = torch.einsum("bc,cio->bio", code_BC, of_map.weight_CIO)
    assert torch.allclose(of_map.generate(code_BC), matrix_BIO, atol=1e-12)
    assert torch.allclose(of_map(given, code_BC), torch.einsum("bi,bio->bo", given, matrix_BIO), atol=1e-12)


def test_layers_start_near_the_identity() -> None:
    torch.manual_seed(0)
    layers = MetaLayers(MetaLayers.Config(bottleneck=32), 200)
    given = torch.randn(50, 200)
    codes = Codes(torch.tanh(torch.randn(7, 32)), torch.arange(50) % 7)
    change = (layers(given, codes) - given).norm() / given.norm()
    assert 0.0 < change < 0.2


def test_users_of_different_codes_go_through_different_layers() -> None:
    """A taste that only the code tells: the sign with which the first column counts."""
    torch.manual_seed(0)
    layers = MetaLayers(MetaLayers.Config(layers=1, bottleneck=2, rank=1, activation="none"), 2)
    head = torch.nn.Linear(2, 1)
    codes = Codes(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.arange(400) % 2)
    given = torch.randn(400, 2)
    wanted = given[:, 0] * torch.where(codes.of_row_B == 0, 1.0, -1.0)
    optimizer = torch.optim.Adam([*layers.parameters(), *head.parameters()], lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (head(layers(given, codes))[:, 0] - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MetaLayers.Config(rank=0)
