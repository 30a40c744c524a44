from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.hamur import AdapterCell, Hamur
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features

CONFIG = Hamur.Config(layer_widths=(5, 4), adapter_width=3, matrix_side=2, hyper_width=6, tower_widths=(3,))


def adapted(cell: AdapterCell, hidden: Tensor, matrix: Tensor, scenario: int) -> Tensor:
    """One row through one cell, its weights written out."""
    down = cell.down.u_IK @ matrix @ cell.down.v_KO
    up = cell.up.u_IK @ matrix @ cell.up.v_KO
    made = torch.sigmoid(hidden @ down + cell.down.bias_O) @ up + cell.up.bias_O
    normed = (made - made.mean()) / (made.var(unbiased=False) + 1e-5).sqrt()
    return hidden + cell.scale_SH[scenario] * normed + cell.shift_SH[scenario]


def test_each_row_makes_its_own_weights_as_in_the_paper(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    torch.manual_seed(0)
    network, features = Hamur(CONFIG, sizes).double().eval(), features_of()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    logits, hidden = network(features)
    first, _, last = network.hyper
    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(first, torch.nn.Linear) and isinstance(last, torch.nn.Linear)
    assert isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        top = features.flat_BI[row]
        matrix = (last.weight @ torch.relu(first.weight @ top + first.bias) + last.bias).view(2, 2)
        for layer, cell in zip(network.layers, network.cells, strict=True):
            assert isinstance(layer, ScenarioLinear) and isinstance(cell, AdapterCell)
            top = torch.relu(top @ layer.weight_SGIO[scenario, 0] + layer.bias_SG1O[scenario, 0, 0])
            top = adapted(cell, top, matrix, scenario)
        assert torch.allclose(hidden[row], top, atol=1e-10)
        for task in range(2):
            out = torch.relu(top @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = out @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-10)


def test_a_fresh_network_learns_in_every_part(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    """The adapters' sigmoids start where they have a slope."""
    torch.manual_seed(1)
    network = Hamur(Hamur.Config(), replace(sizes, inputs=200)).train()
    features = features_of(400)
    features = replace(features, flat_BI=torch.randn(400, 200), scenario_B=torch.arange(400) % sizes.scenarios)
    logits, _ = network(features)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-6, name


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        Hamur.Config(layer_widths=())
    with pytest.raises(ValueError, match="widths of at least one"):
        Hamur.Config(matrix_side=0)
